//! Every bound and every CEL rule of the definitions: one resource that passes and one that is refused, judged without a
//! cluster by the definitions that the chart ships.

// clippy.toml lets tests unwrap; this says that their helper functions are tests too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use kube::core::cel::Validator;
use serde_json::{Value, json};
use std::collections::BTreeSet;

mod authorization;
mod bounds;
mod definitions;
mod external;
mod filters;
mod flow;
mod mesh_service;
mod peer_authentication;
mod request_authentication;
mod targets;
mod trust_domain;

/// The schema of a kind, as shipped.
fn schema(plural: &str) -> Value {
    let all = weft_crds::manifest::all().unwrap();
    let (_, crd) = all.into_iter().find(|(name, _)| name.contains(plural)).unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// What the API server would say: structural problems, then CEL messages.
fn problems(plural: &str, spec: &Value) -> Vec<String> {
    let (schema, object) = (schema(plural), json!({"spec": spec}));
    let mut found = Vec::new();
    structural(&schema, &object, "", &mut found);
    if let Err(errors) = Validator::new().validate(&schema, &object, None) {
        found.extend(errors.iter().map(|error| format!("{}: {}", error.field_path, error.message)));
    }
    found
}

/// The part of structural validation that the definitions use.
fn structural(schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let bound = |key: &str| schema[key].as_i64();
    let mut outside = |key: &str, n: i64| {
        let wrong =
            bound(key).is_some_and(|bound| if key.starts_with("min") { n < bound } else { n > bound });
        if wrong {
            found.push(format!("{at}: {key}"));
        }
    };
    match value {
        Value::String(text) => {
            let length = i64::try_from(text.chars().count()).unwrap();
            outside("minLength", length);
            outside("maxLength", length);
            if schema["pattern"]
                .as_str()
                .is_some_and(|pattern| !regex::Regex::new(pattern).unwrap().is_match(text))
            {
                found.push(format!("{at}: pattern"));
            }
            if schema["enum"].as_array().is_some_and(|words| !words.contains(value)) {
                found.push(format!("{at}: enum"));
            }
        }
        Value::Number(number) => {
            let number = number.as_f64().unwrap();
            let limit = |key: &str| schema[key].as_f64();
            if limit("minimum").is_some_and(|least| number < least) {
                found.push(format!("{at}: minimum"));
            }
            if limit("maximum").is_some_and(|most| number > most) {
                found.push(format!("{at}: maximum"));
            }
        }
        Value::Array(items) => {
            outside("minItems", i64::try_from(items.len()).unwrap());
            outside("maxItems", i64::try_from(items.len()).unwrap());
            let keys: Vec<_> =
                schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten().collect();
            let set = schema["x-kubernetes-list-type"] == "set";
            let key =
                |item: &Value| keys.iter().map(|k| item[k.as_str().unwrap()].to_string()).collect::<String>();
            let unique: BTreeSet<_> =
                items.iter().map(|i| if set { i.to_string() } else { key(i) }).collect();
            if (set || !keys.is_empty()) && unique.len() < items.len() {
                found.push(format!("{at}: duplicate"));
            }
            items
                .iter()
                .enumerate()
                .for_each(|(i, item)| structural(&schema["items"], item, &format!("{at}[{i}]"), found));
        }
        Value::Object(fields) => {
            outside("minProperties", i64::try_from(fields.len()).unwrap());
            outside("maxProperties", i64::try_from(fields.len()).unwrap());
            for needed in schema["required"].as_array().into_iter().flatten() {
                if !fields.contains_key(needed.as_str().unwrap()) {
                    found.push(format!("{at}: required {needed}"));
                }
            }
            for (name, field) in fields {
                let known = schema["properties"].get(name).or_else(|| schema.get("additionalProperties"));
                match known {
                    Some(schema) => structural(schema, field, &format!("{at}.{name}"), found),
                    None => found.push(format!("{at}: unknown {name}")),
                }
            }
        }
        Value::Bool(_) | Value::Null => {}
    }
}

#[track_caller]
fn passes(plural: &str, spec: Value) {
    assert_eq!(problems(plural, &spec), Vec::<String>::new(), "{spec}");
}

#[track_caller]
fn refused(plural: &str, spec: Value, word: &str) {
    let found = problems(plural, &spec);
    assert!(found.iter().any(|problem| problem.contains(word)), "`{word}` is not in {found:?} of {spec}");
}

const POLICY: &str = "trafficpolicies";

fn with_rule(rule: Value) -> Value {
    json!({"targetRefs": [{"kind": "Service", "name": "back"}], "rules": [rule]})
}

fn with_match(matching: Value) -> Value {
    with_rule(json!({"match": [matching]}))
}

fn with_targets(targets: Value) -> Value {
    json!({"targetRefs": targets, "rules": [{}]})
}

const MESH: &str = "meshservices";

fn mesh(more: Value) -> Value {
    let mut spec = json!({"target": {"service": "back"}});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    spec
}

const AUTH: &str = "peerauthentications";

const AUTHZ: &str = "authorizationpolicies";

const REQUESTS: &str = "requestauthentications";
