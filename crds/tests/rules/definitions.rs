//! What holds for every field of every definition.

use super::*;

#[test]
fn no_field_or_value_is_a_boolean_to_a_yaml_1_1_reader() {
    fn words(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| {
                found.push(key.clone());
                words(value, found);
            }),
            Value::Array(items) => items.iter().for_each(|item| words(item, found)),
            Value::String(text) => found.push(text.clone()),
            _ => {}
        }
    }
    let mut found = Vec::new();
    weft_crds::manifest::all().unwrap().iter().for_each(|(_, crd)| words(crd, &mut found));
    let booleans = ["y", "n", "yes", "no", "on", "off"];
    let bad: Vec<_> = found.iter().filter(|word| booleans.contains(&word.to_lowercase().as_str())).collect();
    assert!(bad.is_empty(), "{bad:?}");
}

#[test]
fn every_field_of_a_spec_has_a_description_and_every_text_list_and_map_a_bound() {
    fn walk(schema: &Value, at: &str, found: &mut Vec<String>) {
        let bounded = match schema["type"].as_str() {
            Some("string") => schema.get("maxLength").is_some() || schema.get("enum").is_some(),
            Some("array") => schema.get("maxItems").is_some(),
            Some("integer") => schema.get("maximum").is_some(),
            Some("object") if schema.get("additionalProperties").is_some() => {
                schema.get("maxProperties").is_some()
            }
            _ => true,
        };
        if !bounded {
            found.push(format!("{at} has no bound"));
        }
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            if field.get("description").is_none() {
                found.push(format!("{at}.{name} has no description"));
            }
            walk(field, &format!("{at}.{name}"), found);
        }
        for part in ["items", "additionalProperties"] {
            if let Some(inner) = schema.get(part) {
                walk(inner, &format!("{at}[]"), found);
            }
        }
    }
    let mut found = Vec::new();
    for plural in [POLICY, MESH, AUTH, AUTHZ, REQUESTS, "trustdomains"] {
        walk(&schema(plural)["properties"]["spec"], plural, &mut found);
    }
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn every_rule_compiles_and_says_what_to_do() {
    fn rules(value: &Value, found: &mut Vec<(String, String)>) {
        match value {
            Value::Object(map) => {
                for rule in
                    map.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten()
                {
                    found.push((
                        rule["rule"].as_str().unwrap().into(),
                        rule["message"].as_str().unwrap_or_default().into(),
                    ));
                }
                map.values().for_each(|value| rules(value, found));
            }
            Value::Array(items) => items.iter().for_each(|item| rules(item, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    weft_crds::manifest::all().unwrap().iter().for_each(|(_, crd)| rules(crd, &mut found));
    assert!(found.len() > 20);
    for (rule, message) in found {
        assert!(kube::core::cel::cel::Program::compile(&rule).is_ok(), "{rule}");
        assert!(message.len() > 30 && !message.contains('\n'), "{rule}: {message}");
    }
}
