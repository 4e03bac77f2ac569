//! Every bound and every CEL rule of the definitions: one resource that passes and one that is refused, judged without a
//! cluster by the definitions that the chart ships.

// clippy.toml lets tests unwrap; this says that their helper functions are tests too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use kube::core::cel::Validator;
use serde_json::{Value, json};
use std::collections::BTreeSet;

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

// --- TrafficPolicy

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

#[test]
fn a_policy_with_everything_passes() {
    passes(
        POLICY,
        json!({
            "targetRefs": [{"kind": "Service", "name": "back", "port": 80}, {"kind": "MeshService", "name": "front"}],
            "rules": [{
                "name": "canary",
                "match": [{"path": {"prefix": "/api"}, "method": "GET", "headers": [{"name": "X-User", "exact": ""}, {"name": "b", "present": false}]}, {"path": {"regex": "a.*"}}],
                "split": [{"subset": "v1", "weight": 90}, {"subset": "v2", "weight": 10}, {"service": "green", "subset": "v1", "weight": 0}, {"weight": 1}],
                "timeout": "1m30s",
                "retry": {"attempts": 3, "perTryTimeout": "1m30s", "retryOn": ["Reset", "ConnectFailure"], "nonIdempotent": true,
                    "backoff": "100ms", "maxBackoff": "1s", "budget": {"percent": 100, "minPerSecond": 0}},
            }, {}],
            "precedence": "Specificity",
        }),
    );
}

#[test]
fn targets_are_given_bounded_named_and_unique() {
    refused(POLICY, with_targets(json!([])), "minItems");
    refused(
        POLICY,
        with_targets(Value::Array(
            (0..17).map(|i| json!({"kind": "Service", "name": format!("s{i}")})).collect(),
        )),
        "maxItems",
    );
    refused(POLICY, with_targets(json!([{"kind": "Deployment", "name": "a"}])), "enum");
    refused(POLICY, with_targets(json!([{"kind": "Service", "name": "shop/back"}])), "write only its name");
    refused(POLICY, with_targets(json!([{"kind": "Service", "name": "a", "port": 0}])), "minimum");
    refused(POLICY, with_targets(json!([{"kind": "Service", "name": "a", "port": 65536}])), "maximum");
    let twice = "targetRefs names the same target twice";
    refused(
        POLICY,
        with_targets(json!([{"kind": "Service", "name": "a"}, {"kind": "Service", "name": "a"}])),
        twice,
    );
    refused(
        POLICY,
        with_targets(json!([{"kind": "Service", "name": "a"}, {"kind": "Service", "name": "a", "port": 80}])),
        twice,
    );
    passes(
        POLICY,
        with_targets(
            json!([{"kind": "Service", "name": "a", "port": 81}, {"kind": "Service", "name": "a", "port": 80}]),
        ),
    );
    passes(
        POLICY,
        with_targets(json!([{"kind": "Service", "name": "a"}, {"kind": "MeshService", "name": "a"}])),
    );
}

#[test]
fn rules_are_given_bounded_and_named_once() {
    let rules = |rules: Value| json!({"targetRefs": [{"kind": "Service", "name": "back"}], "rules": rules});
    refused(POLICY, rules(json!([])), "minItems");
    refused(POLICY, rules(Value::Array(vec![json!({}); 65])), "maxItems");
    refused(POLICY, rules(json!([{"name": "a"}, {"name": "a"}])), "rules[].name is given twice");
    refused(POLICY, rules(json!([{"name": "A b"}])), "rules[].name must be lower-case");
    passes(POLICY, rules(json!([{"name": "a"}, {"name": "b"}, {}, {}])));
}

#[test]
fn a_rate_limit_is_bounded_and_its_key_says_of_what() {
    let limit = |limit: Value| with_rule(json!({ "rateLimit": limit }));
    let keyed = |key: Value| limit(json!({ "requests": 10, "per": "1s", "key": key }));
    passes(POLICY, limit(json!({ "requests": 1_000_000, "per": "1h", "burst": 1 })));
    for key in [
        json!({ "type": "Identity" }),
        json!({ "type": "SourceIp" }),
        json!({ "type": "Header", "header": "x-user" }),
        json!({ "type": "Path", "path": "/users/{id}/items/{item_id}" }),
        json!({ "type": "Path", "path": "/{a}" }),
    ] {
        passes(POLICY, keyed(key));
    }
    refused(POLICY, limit(json!({ "requests": 0, "per": "1s" })), "minimum");
    refused(POLICY, limit(json!({ "requests": 1_000_001, "per": "1s" })), "maximum");
    refused(POLICY, limit(json!({ "requests": 1, "per": "1s", "burst": 0 })), "minimum");
    refused(POLICY, limit(json!({ "requests": 1 })), "required \"per\"");
    refused(POLICY, limit(json!({ "requests": 1, "per": "500ms" })), "between 1s and 1h");
    refused(POLICY, limit(json!({ "requests": 1, "per": "61m" })), "between 1s and 1h");
    passes(POLICY, limit(json!({ "requests": 1, "per": "1s", "scope": "Mesh" })));
    passes(
        POLICY,
        limit(json!({ "requests": 1, "per": "1s", "scope": "Pod", "key": { "type": "Identity" } })),
    );
    refused(POLICY, limit(json!({ "requests": 1, "per": "1s", "scope": "Cluster" })), "enum");
    let both = json!({ "requests": 1, "per": "1s", "scope": "Mesh", "key": { "type": "Identity" } });
    refused(POLICY, limit(both), "counts all requests together");
    refused(POLICY, keyed(json!({})), "required \"type\"");
    refused(POLICY, keyed(json!({ "type": "Cookie" })), "enum");
    refused(POLICY, keyed(json!({ "type": "Header" })), "needs header with type Header");
    refused(POLICY, keyed(json!({ "type": "Identity", "header": "x" })), "needs header with type Header");
    refused(POLICY, keyed(json!({ "type": "Header", "header": "a b" })), "not the name of an HTTP header");
    refused(POLICY, keyed(json!({ "type": "Path" })), "needs path with type Path");
    refused(POLICY, keyed(json!({ "type": "SourceIp", "path": "/{a}" })), "needs path with type Path");
    for path in ["users/{id}", "/users", "/users/{}", "/users/x{id}", "/{a}/{b", "/{a}?b"] {
        refused(POLICY, keyed(json!({ "type": "Path", "path": path })), "whole segment in braces");
    }
    let split = |to: Value| with_rule(json!({ "rateLimit": { "requests": 1, "per": "1s" }, "split": [to] }));
    passes(POLICY, split(json!({ "subset": "v1", "weight": 1 })));
    refused(
        POLICY,
        split(json!({ "service": "other", "weight": 1 })),
        "put it into a TrafficPolicy of that Service",
    );
}

#[test]
fn the_circuit_breaker_of_a_rule_bounds_something() {
    let breaker = |breaker: Value| with_rule(json!({ "circuitBreaker": breaker }));
    passes(POLICY, breaker(json!({ "maxConcurrentRequests": 1 })));
    passes(POLICY, breaker(json!({ "maxPendingRequests": 1 })));
    passes(POLICY, breaker(json!({ "maxRetries": 1_000_000 })));
    refused(POLICY, breaker(json!({})), "bounds nothing");
    for field in ["maxPendingRequests", "maxConcurrentRequests", "maxRetries"] {
        refused(POLICY, breaker(json!({ field: 0 })), "minimum");
        refused(POLICY, breaker(json!({ field: 1_000_001 })), "maximum");
    }
    refused(POLICY, breaker(json!({ "maxConnections": 1 })), "unknown maxConnections");
}

#[test]
fn a_path_has_exactly_one_condition_and_begins_with_a_slash() {
    for good in [json!({"exact": "/"}), json!({"prefix": "/a"}), json!({"regex": "a|b"})] {
        passes(POLICY, with_match(json!({"path": good})));
    }
    refused(POLICY, with_match(json!({"path": {}})), "path needs exactly one of");
    refused(
        POLICY,
        with_match(json!({"path": {"exact": "/a", "prefix": "/b"}})),
        "path needs exactly one of",
    );
    refused(POLICY, with_match(json!({"path": {"exact": "a"}})), "must begin with '/'");
    refused(POLICY, with_match(json!({"path": {"prefix": "a"}})), "must begin with '/'");
    refused(POLICY, with_match(json!({"path": {"exact": "/a?b=c"}})), "without its query");
    refused(POLICY, with_match(json!({"path": {"prefix": "/a?b=c"}})), "without its query");
    refused(POLICY, with_match(json!({"path": {"exact": format!("/{}", "a".repeat(1024))}})), "maxLength");
    refused(POLICY, with_match(json!({"path": {"regex": "a".repeat(513)}})), "maxLength");
}

#[test]
fn a_match_has_a_condition_and_methods_and_headers_are_what_http_knows() {
    refused(POLICY, with_match(json!({})), "would match every request");
    refused(POLICY, with_match(json!({"headers": []})), "would match every request");
    refused(POLICY, with_match(json!({"method": "get"})), "capital letters");
    refused(POLICY, with_match(json!({"method": ""})), "minLength");
    passes(POLICY, with_match(json!({"method": "M-SEARCH"})));
    let header = |header: Value| with_match(json!({"headers": [header]}));
    passes(POLICY, header(json!({"name": "x", "regex": "a"})));
    refused(POLICY, header(json!({"name": "x"})), "needs exactly one of exact, prefix, regex and present");
    refused(POLICY, header(json!({"name": "x", "exact": "a", "present": true})), "needs exactly one of");
    refused(POLICY, header(json!({"name": "x:", "exact": "a"})), "not the name of an HTTP header");
    refused(POLICY, header(json!({"exact": "a"})), "required");
    refused(POLICY, with_match(json!({"headers": vec![json!({"name": "x", "exact": "a"}); 17]})), "maxItems");
    refused(POLICY, with_rule(json!({"match": vec![json!({"method": "GET"}); 17]})), "maxItems");
}

#[test]
fn a_match_may_look_at_query_host_and_caller() {
    passes(
        POLICY,
        with_match(json!({"query": [{"name": "q", "exact": ""}, {"name": "Q[]", "present": false}],
            "hosts": ["shop.example", "*.shop.example", "back"],
            "source": {"identities": ["spiffe://cluster.local/ns/shop/sa/front"], "namespaces": ["shop"]}})),
    );
    for alone in [
        json!({"query": [{"name": "q", "regex": "a"}]}),
        json!({"hosts": ["a"]}),
        json!({"source": {"namespaces": ["a"]}}),
    ] {
        passes(POLICY, with_match(alone));
    }
    refused(POLICY, with_match(json!({"query": [], "hosts": []})), "would match every request");
    refused(POLICY, with_match(json!({"query": [{"name": "q"}]})), "an entry of query needs exactly one");
    refused(
        POLICY,
        with_match(json!({"query": [{"name": "q", "exact": "1", "prefix": "1"}]})),
        "exactly one",
    );
    refused(POLICY, with_match(json!({"query": [{"name": "", "exact": "1"}]})), "minLength");
    for host in ["http://a", "a:80", "*", "*a", "A", "a..", "-a", "*.*.a"] {
        refused(POLICY, with_match(json!({"hosts": [host]})), "hosts lists something that is not a host");
    }
    refused(POLICY, with_match(json!({"hosts": ["a", "a"]})), "duplicate");
    refused(POLICY, with_match(json!({"source": {}})), "source names nobody");
    refused(
        POLICY,
        with_match(json!({"source": {"identities": ["shop/front"]}})),
        "not the SPIFFE id of a workload",
    );
    refused(POLICY, with_match(json!({"source": {"namespaces": ["Shop"]}})), "not the name of a namespace");
    let mut spec = with_rule(json!({}));
    spec["precedence"] = json!("Random");
    refused(POLICY, spec, "enum");
}

#[test]
fn headers_are_changed_where_that_is_for_a_rule_to_do() {
    let request = |edits: Value| with_rule(json!({"headers": {"request": edits}}));
    passes(
        POLICY,
        with_rule(json!({"headers": {
            "request": {"set": [{"name": "X-A", "value": "a b"}], "add": [{"name": "x-b", "value": ""}], "remove": ["x-c"]},
            "response": {"remove": ["server", "proxied"]},
        }})),
    );
    refused(POLICY, with_rule(json!({"headers": {}})), "headers changes nothing");
    refused(POLICY, request(json!({"set": []})), "an entry of headers changes nothing");
    refused(
        POLICY,
        request(json!({"set": [{"name": "a", "value": "1"}, {"name": "a", "value": "2"}]})),
        "duplicate",
    );
    refused(
        POLICY,
        request(json!({"set": [{"name": "a b", "value": "1"}]})),
        "not the name of an HTTP header",
    );
    refused(POLICY, request(json!({"remove": [":path"]})), "not the name of an HTTP header");
    for value in ["a\nb", " a", "a ", "é"] {
        refused(POLICY, request(json!({"set": [{"name": "a", "value": value}]})), "printable ASCII");
    }
    for name in [
        "Host",
        "connection",
        "TE",
        "Content-Length",
        "transfer-encoding",
        "proxy-authorization",
        "Weft-Reason",
        "weft_client_identity",
        "x-request-id",
    ] {
        refused(POLICY, request(json!({"set": [{"name": name, "value": "1"}]})), "use rewrite.host");
        refused(POLICY, request(json!({"add": [{"name": name, "value": "1"}]})), "use rewrite.host");
        refused(POLICY, with_rule(json!({"headers": {"response": {"remove": [name]}}})), "use rewrite.host");
    }
}

#[test]
fn a_rewrite_changes_host_or_path_and_a_prefix_only_where_one_matched() {
    let path = |path: Value| with_rule(json!({"rewrite": {"path": path}}));
    let by_prefix = |rule: Value| {
        let mut rule = rule;
        rule["match"] = json!([{"path": {"prefix": "/a"}}, {"path": {"prefix": "/b"}, "method": "GET"}]);
        with_rule(rule)
    };
    for host in ["back", "shop.example:8080", "Shop"] {
        passes(POLICY, with_rule(json!({"rewrite": {"host": host}})));
    }
    for host in ["http://a", "a/b", "a:", "a b", "[::1]"] {
        refused(POLICY, with_rule(json!({"rewrite": {"host": host}})), "rewrite.host is not a host");
    }
    passes(POLICY, path(json!({"full": "/a"})));
    refused(
        POLICY,
        with_rule(json!({"rewrite": {"host": "a"}, "rateLimit": {"requests": 1, "per": "1s"}})),
        "put rateLimit into a rule without rewrite",
    );
    passes(POLICY, path(json!({"regex": {"pattern": "/(.*)", "substitution": "/x/$1/$$"}})));
    refused(POLICY, with_rule(json!({"rewrite": {}})), "rewrite changes nothing");
    refused(POLICY, path(json!({})), "rewrite.path needs exactly one");
    refused(POLICY, by_prefix(json!({"rewrite": {"path": {"prefix": "/a", "full": "/b"}}})), "exactly one");
    refused(POLICY, path(json!({"full": "a"})), "rewrite.path.full must begin with '/'");
    refused(POLICY, path(json!({"full": "/a?b"})), "rewrite.path.full must begin with '/'");
    for bad in ["x", "/$", "/$x", "/a?b", "/a b"] {
        refused(
            POLICY,
            path(json!({"regex": {"pattern": "a", "substitution": bad}})),
            "substitution must begin",
        );
    }
    for what in ["rewrite", "redirect"] {
        passes(POLICY, by_prefix(json!({what: {"path": {"prefix": ""}}})));
        passes(POLICY, by_prefix(json!({what: {"path": {"prefix": "/v2"}}})));
        refused(POLICY, by_prefix(json!({what: {"path": {"prefix": "v2"}}})), "begin with '/'");
        let where_one_matched = "replaces the prefix that matched";
        refused(POLICY, with_rule(json!({what: {"path": {"prefix": "/v2"}}})), where_one_matched);
        let exact = json!([{"path": {"prefix": "/a"}}, {"path": {"exact": "/b"}}]);
        refused(
            POLICY,
            with_rule(json!({"match": exact, what: {"path": {"prefix": "/v2"}}})),
            where_one_matched,
        );
        refused(
            POLICY,
            with_rule(json!({"match": [{"method": "GET"}], what: {"path": {"prefix": ""}}})),
            where_one_matched,
        );
    }
}

#[test]
fn a_rule_that_answers_itself_does_nothing_else() {
    passes(
        POLICY,
        with_rule(
            json!({"redirect": {"scheme": "https", "host": "shop.example", "port": 8443, "path": {"full": "/"}, "status": 308},
            "headers": {"response": {"set": [{"name": "cache-control", "value": "no-store"}]}}, "cors": {"allowOrigins": ["*"]}}),
        ),
    );
    passes(
        POLICY,
        with_rule(json!({"response": {"status": 503, "body": "{}", "contentType": "application/json"}})),
    );
    passes(POLICY, with_rule(json!({"response": {"status": 204}})));
    let redirect = |redirect: Value| with_rule(json!({"redirect": redirect}));
    refused(POLICY, redirect(json!({"status": 301})), "to where it came from");
    refused(POLICY, redirect(json!({"host": "a", "status": 304})), "must be 301, 302, 303, 307 or 308");
    refused(POLICY, redirect(json!({"scheme": "ftp"})), "enum");
    refused(POLICY, redirect(json!({"host": "a:80"})), "redirect.host is not a host");
    refused(POLICY, redirect(json!({"port": 0})), "minimum");
    refused(POLICY, redirect(json!({"path": {}})), "redirect.path needs exactly one");
    refused(POLICY, redirect(json!({"path": {"full": ""}})), "minLength");
    refused(POLICY, redirect(json!({"path": {"full": "a"}})), "redirect.path.full must begin");
    let response = |response: Value| with_rule(json!({"response": response}));
    refused(POLICY, response(json!({"status": 199})), "minimum");
    refused(POLICY, response(json!({"status": 600})), "maximum");
    refused(POLICY, response(json!({"status": 204, "body": "x"})), "cannot be sent with status 204");
    refused(POLICY, response(json!({"status": 200, "body": "x".repeat(4097)})), "maxLength");
    refused(POLICY, response(json!({"status": 200, "contentType": "text/plain"})), "give body too");
    refused(
        POLICY,
        response(json!({"status": 200, "body": "x", "contentType": "a\r\nb"})),
        "not a media type",
    );
    let both = with_rule(json!({"redirect": {"host": "a"}, "response": {"status": 200}}));
    refused(POLICY, both, "either with redirect or with response");
    for more in [
        json!({"split": [{"weight": 1}]}),
        json!({"timeout": "1s"}),
        json!({"retry": {"attempts": 1}}),
        json!({"rateLimit": {"requests": 1, "per": "1s"}}),
        json!({"circuitBreaker": {"maxRetries": 1}}),
        json!({"rewrite": {"host": "a"}}),
        json!({"fault": {"abort": {"status": 500}}}),
        json!({"headers": {"request": {"remove": ["x"]}}}),
    ] {
        let mut rule = json!({"response": {"status": 200}});
        rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        refused(POLICY, with_rule(rule), "sends the request nowhere");
    }
}

#[test]
fn a_fault_does_something_and_is_bounded() {
    let fault = |fault: Value| with_rule(json!({"fault": fault}));
    passes(
        POLICY,
        fault(json!({"delay": {"duration": "1m", "percent": 0}, "abort": {"grpcStatus": 14, "percent": 100},
            "when": {"header": "X-Chaos", "value": "1"}})),
    );
    passes(POLICY, fault(json!({"abort": {"status": 503}, "when": {"header": "x"}})));
    refused(POLICY, fault(json!({"when": {"header": "x"}})), "fault does nothing");
    refused(POLICY, fault(json!({"delay": {"duration": "61s"}})), "not be longer than 1m");
    refused(POLICY, fault(json!({"delay": {"percent": 1}})), "required");
    refused(POLICY, fault(json!({"delay": {"duration": "1s", "percent": 101}})), "maximum");
    refused(POLICY, fault(json!({"abort": {}})), "abort needs exactly one");
    refused(POLICY, fault(json!({"abort": {"status": 500, "grpcStatus": 14}})), "abort needs exactly one");
    refused(POLICY, fault(json!({"abort": {"status": 399}})), "minimum");
    refused(POLICY, fault(json!({"abort": {"grpcStatus": 17}})), "maximum");
    refused(POLICY, fault(json!({"abort": {"grpcStatus": 0}})), "minimum");
    refused(POLICY, fault(json!({"abort": {"status": 500}, "when": {"header": "a b"}})), "fault.when.header");
}

#[test]
fn cors_names_origins_methods_and_headers() {
    let cors = |cors: Value| with_rule(json!({"cors": cors}));
    passes(
        POLICY,
        cors(
            json!({"allowOrigins": ["https://shop.example", "https://*.shop.example:8443", "http://localhost:3000"],
            "allowMethods": ["PUT", "*"], "allowHeaders": ["X-A", "*"], "exposeHeaders": ["x-b"], "maxAge": "10m", "allowCredentials": true}),
        ),
    );
    passes(POLICY, cors(json!({"allowOrigins": ["*"], "allowCredentials": false})));
    refused(POLICY, cors(json!({})), "required");
    refused(POLICY, cors(json!({"allowOrigins": []})), "minItems");
    for origin in [
        "shop.example",
        "https://shop.example/",
        "https://Shop.example",
        "https://*",
        "null",
        "https://a.*.b",
    ] {
        refused(POLICY, cors(json!({"allowOrigins": [origin]})), "something that is not an origin");
    }
    refused(
        POLICY,
        cors(json!({"allowOrigins": ["https://a.example", "*"], "allowCredentials": true})),
        "every site on the web",
    );
    let with = |field: &str, value: &str| cors(json!({"allowOrigins": ["*"], field: [value]}));
    refused(POLICY, with("allowMethods", "put"), "cors.allowMethods lists");
    refused(POLICY, with("allowHeaders", "a,b"), "cors.allowHeaders lists");
    refused(POLICY, with("exposeHeaders", "a b"), "cors.exposeHeaders lists");
    refused(POLICY, cors(json!({"allowOrigins": ["*", "*"]})), "duplicate");
}

#[test]
fn a_split_sends_somewhere_and_names_each_destination_once() {
    let split = |split: Value| with_rule(json!({"split": split}));
    refused(
        POLICY,
        split(json!([{"subset": "a", "weight": 0}, {"subset": "b", "weight": 0}])),
        "every destination weight 0",
    );
    refused(
        POLICY,
        split(json!([{"subset": "a", "weight": 1}, {"subset": "a", "weight": 2}])),
        "the same destination twice",
    );
    refused(POLICY, split(json!([{"weight": 1}, {"weight": 2}])), "the same destination twice");
    refused(POLICY, split(json!([{"subset": "a"}])), "required");
    refused(POLICY, split(json!([{"subset": "a", "weight": 1_000_001}])), "maximum");
    refused(
        POLICY,
        split(json!([{"subset": "A", "weight": 1}])),
        "split[].subset is not the name of a subset",
    );
    refused(
        POLICY,
        split(json!([{"service": "a.b", "weight": 1}])),
        "split[].service is not the name of a Service",
    );
    refused(
        POLICY,
        split(Value::Array((0..17).map(|i| json!({"subset": format!("s{i}"), "weight": 1})).collect())),
        "maxItems",
    );
    passes(
        POLICY,
        split(json!([{"subset": "a", "weight": 1}, {"service": "x", "subset": "a", "weight": 1}])),
    );
}

#[test]
fn durations_are_longer_than_zero_and_shorter_than_a_day() {
    for good in ["1ms", "250ms", "1m30s", "24h", "90m"] {
        passes(POLICY, with_rule(json!({"timeout": good})));
    }
    refused(POLICY, with_rule(json!({"timeout": "0s"})), "longer than zero");
    refused(POLICY, with_rule(json!({"timeout": "0ms"})), "longer than zero");
    refused(POLICY, with_rule(json!({"timeout": "25h"})), "not be longer than 24h");
    for bad in ["", "5", "1.5s", "-1s", "1d", "5 s"] {
        refused(POLICY, with_rule(json!({"timeout": bad})), "pattern");
    }
}

#[test]
fn retries_fit_into_the_timeout_and_their_waits_into_each_other() {
    let retry = |retry: Value| with_rule(json!({"retry": retry}));
    refused(
        POLICY,
        with_rule(json!({"timeout": "1s", "retry": {"perTryTimeout": "1001ms"}})),
        "retry.perTryTimeout must not be longer",
    );
    passes(POLICY, retry(json!({"perTryTimeout": "1h"})));
    refused(POLICY, retry(json!({"backoff": "300ms"})), "retry.backoff");
    refused(POLICY, retry(json!({"maxBackoff": "20ms"})), "retry.backoff");
    passes(POLICY, retry(json!({"backoff": "300ms", "maxBackoff": "300ms"})));
    refused(POLICY, retry(json!({"attempts": 11})), "maximum");
    refused(POLICY, retry(json!({"retryOn": ["Reset", "Reset"]})), "duplicate");
    refused(POLICY, retry(json!({"retryOn": ["Timeout"]})), "enum");
    refused(POLICY, retry(json!({"budget": {"percent": 101}})), "maximum");
    refused(POLICY, retry(json!({"budget": {"minPerSecond": 10_001}})), "maximum");
}

#[test]
fn retries_name_statuses_of_failures_once_and_grpc_ones_need_leave() {
    let retry = |retry: Value| with_rule(json!({"retry": retry}));
    passes(POLICY, retry(json!({"statusCodes": [400, 429, 599], "maxBodyBytes": 0})));
    refused(POLICY, retry(json!({"statusCodes": [399]})), "minimum");
    refused(POLICY, retry(json!({"statusCodes": [600]})), "maximum");
    refused(POLICY, retry(json!({"statusCodes": [429, 429]})), "duplicate");
    refused(POLICY, retry(json!({"statusCodes": (400..433).collect::<Vec<_>>()})), "maxItems");
    passes(
        POLICY,
        retry(json!({"grpcStatuses": ["Unavailable", "ResourceExhausted"], "nonIdempotent": true})),
    );
    refused(POLICY, retry(json!({"grpcStatuses": ["OK"], "nonIdempotent": true})), "enum");
    refused(
        POLICY,
        retry(json!({"grpcStatuses": ["Aborted", "Aborted"], "nonIdempotent": true})),
        "duplicate",
    );
    refused(POLICY, retry(json!({"grpcStatuses": ["Aborted"]})), "needs nonIdempotent: true");
    refused(
        POLICY,
        retry(json!({"grpcStatuses": ["Aborted"], "nonIdempotent": false})),
        "needs nonIdempotent: true",
    );
    passes(POLICY, retry(json!({"grpcStatuses": []})));
    passes(POLICY, retry(json!({"maxBodyBytes": 1_048_576})));
    refused(POLICY, retry(json!({"maxBodyBytes": 1_048_577})), "maximum");
}

#[test]
fn a_mirror_has_a_destination_and_a_share() {
    let mirror = |mirror: Value| with_rule(json!({"mirror": mirror}));
    passes(POLICY, mirror(json!({"service": "next"})));
    passes(POLICY, mirror(json!({"subset": "v2", "percent": 1})));
    refused(POLICY, mirror(json!({"percent": 50})), "mirror needs a destination");
    refused(POLICY, mirror(json!({"service": "a.b"})), "mirror.service is not the name of a Service");
    refused(POLICY, mirror(json!({"subset": "V2"})), "mirror.subset is not the name of a subset");
    refused(POLICY, mirror(json!({"service": "next", "percent": 0})), "minimum");
    refused(POLICY, mirror(json!({"service": "next", "percent": 101})), "maximum");
}

#[test]
fn a_hedge_has_a_delay_within_the_timeout_and_few_tries() {
    let hedge = |hedge: Value| with_rule(json!({"timeout": "1s", "hedge": hedge}));
    passes(POLICY, hedge(json!({"delay": "999ms", "maxAttempts": 5})));
    passes(POLICY, with_rule(json!({"hedge": {"delay": "1h"}})));
    refused(POLICY, hedge(json!({"delay": "1s"})), "hedge.delay must be shorter");
    refused(POLICY, hedge(json!({"maxAttempts": 2})), "required");
    refused(POLICY, hedge(json!({"delay": "1ms", "maxAttempts": 1})), "minimum");
    refused(POLICY, hedge(json!({"delay": "1ms", "maxAttempts": 6})), "maximum");
    passes(POLICY, with_rule(json!({"timeout": "1s", "idleTimeout": "1h"})));
    refused(POLICY, with_rule(json!({"idleTimeout": "0s"})), "longer than zero");
}

// --- MeshService

const MESH: &str = "meshservices";

fn mesh(more: Value) -> Value {
    let mut spec = json!({"target": {"service": "back"}});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    spec
}

#[test]
fn a_mesh_service_with_everything_passes() {
    passes(
        MESH,
        mesh(json!({
            "subsets": [{"name": "v1", "labels": {"version": "v1"}}, {"name": "v2", "labels": {"version": "v2", "a/b": ""}}],
            "balancer": {"policy": "LeastRequest", "weights": [{"labels": {"big": "yes"}, "weight": 1000}]},
            "health": {"outlier": {"consecutiveFailures": 0, "ejectionTime": "5m", "maxEjectionTime": "5m", "maxEjectedPercent": 100}},
            "circuitBreaker": {"maxConnections": 1, "maxPendingRequests": 1, "maxConcurrentRequests": 1, "maxRetries": 1},
            "connection": {"connectTimeout": "1s", "idleTimeout": "1s", "maxRequests": 1, "protocol": "Grpc"},
        })),
    );
}

#[test]
fn adaptive_concurrency_is_bounded_and_its_bounds_are_in_order() {
    let adaptive = |adaptive: Value| mesh(json!({ "adaptiveConcurrency": adaptive }));
    passes(MESH, adaptive(json!({})));
    passes(
        MESH,
        adaptive(json!({ "minLimit": 5, "maxLimit": 5, "tolerancePercent": 200, "baselineInterval": "5s" })),
    );
    refused(MESH, adaptive(json!({ "minLimit": 0 })), "minimum");
    refused(MESH, adaptive(json!({ "tolerancePercent": 201 })), "maximum");
    refused(MESH, adaptive(json!({ "minLimit": 6, "maxLimit": 5 })), "must not be above maxLimit");
    refused(MESH, adaptive(json!({ "maxLimit": 2 })), "must not be above maxLimit");
    refused(MESH, adaptive(json!({ "minLimit": 1001 })), "must not be above maxLimit");
    refused(MESH, adaptive(json!({ "baselineInterval": "1s" })), "must not be below 5s");
}

#[test]
fn a_mesh_service_has_a_target_that_is_a_name() {
    refused(MESH, json!({}), "required");
    refused(
        MESH,
        json!({"target": {"service": "back.shop.svc"}}),
        "target.service is not the name of a Service",
    );
    refused(MESH, json!({"target": {"service": ""}}), "minLength");
    refused(MESH, json!({"target": {"service": "a".repeat(64)}}), "maxLength");
}

#[test]
fn subsets_have_unique_names_and_labels() {
    let subset = |name: &str| json!({"name": name, "labels": {"a": "b"}});
    refused(MESH, mesh(json!({"subsets": [subset("a"), subset("a")]})), "duplicate");
    refused(MESH, mesh(json!({"subsets": [subset("-a")]})), "subsets[].name must be lower-case");
    refused(MESH, mesh(json!({"subsets": [{"name": "a", "labels": {}}]})), "minProperties");
    refused(MESH, mesh(json!({"subsets": [{"name": "a", "labels": {"a": "b c"}}]})), "pattern");
    refused(MESH, mesh(json!({"subsets": [{"name": "a", "labels": {"a": "b".repeat(64)}}]})), "maxLength");
    refused(
        MESH,
        mesh(json!({"subsets": (0..65).map(|i| subset(&format!("s{i}"))).collect::<Vec<_>>()})),
        "maxItems",
    );
}

#[test]
fn numbers_of_a_mesh_service_are_bounded() {
    refused(MESH, mesh(json!({"balancer": {"policy": "Fastest"}})), "enum");
    refused(
        MESH,
        mesh(json!({"balancer": {"weights": [{"labels": {"a": "b"}, "weight": 1001}]}})),
        "maximum",
    );
    for field in ["maxConnections", "maxPendingRequests", "maxConcurrentRequests", "maxRetries"] {
        refused(MESH, mesh(json!({"circuitBreaker": {field: 0}})), "minimum");
        refused(MESH, mesh(json!({"circuitBreaker": {field: 1_000_001}})), "maximum");
    }
    refused(MESH, mesh(json!({"connection": {"maxRequests": 0}})), "minimum");
    refused(MESH, mesh(json!({"connection": {"protocol": "Quic"}})), "enum");
    refused(MESH, mesh(json!({"health": {"outlier": {"maxEjectedPercent": 101}}})), "maximum");
    refused(MESH, mesh(json!({"health": {"outlier": {"consecutiveFailures": 1001}}})), "maximum");
}

#[test]
fn what_endpoints_are_judged_by_is_bounded_and_could_judge() {
    let outlier = |outlier: Value| mesh(json!({"health": {"outlier": outlier}}));
    passes(
        MESH,
        outlier(
            json!({"consecutiveGatewayErrors": 3, "interval": "5s", "successRate": {"minRequests": 50, "minHosts": 5, "stdevFactor": 1.9},
            "latency": {"minRequests": 20, "factor": 2.5}}),
        ),
    );
    passes(MESH, outlier(json!({"successRate": {}, "latency": {}})));
    passes(MESH, outlier(json!({"successRate": {"minHosts": 3, "stdevFactor": 1}})));
    refused(MESH, outlier(json!({"consecutiveGatewayErrors": 0})), "minimum");
    refused(MESH, outlier(json!({"interval": "5s"})), "health.outlier.interval");
    refused(MESH, outlier(json!({"successRate": {"minHosts": 4}})), "could never eject");
    refused(MESH, outlier(json!({"successRate": {"stdevFactor": 2.0}})), "could never eject");
    refused(MESH, outlier(json!({"successRate": {"minHosts": 2}})), "minimum");
    refused(MESH, outlier(json!({"successRate": {"stdevFactor": 0.0}})), "minimum");
    refused(MESH, outlier(json!({"latency": {"factor": 1.4}})), "minimum");
    refused(MESH, outlier(json!({"latency": {"factor": 1000.5}})), "maximum");
    refused(MESH, outlier(json!({"latency": {"minRequests": 0}})), "minimum");
}

#[test]
fn an_active_check_is_of_one_kind_and_within_its_bounds() {
    let active = |active: Value| mesh(json!({"health": {"active": active}}));
    passes(
        MESH,
        active(
            json!({"http": {"path": "/healthz?deep=1", "expectedStatuses": [200, 204], "host": "back.shop.svc"}, "port": 8081,
            "interval": "5s", "timeout": "5s", "unhealthyThreshold": 1, "healthyThreshold": 100, "jitter": 0, "maxCheckers": 16}),
        ),
    );
    passes(MESH, active(json!({"grpc": {"service": "shop.v1.Back"}})));
    passes(MESH, active(json!({"grpc": {}})));
    passes(MESH, active(json!({"tcp": {}})));
    refused(MESH, active(json!({})), "exactly one of http, grpc and tcp");
    refused(MESH, active(json!({"tcp": {}, "grpc": {}})), "exactly one of http, grpc and tcp");
    refused(MESH, active(json!({"tcp": {}, "timeout": "11s"})), "health.active.timeout");
    refused(MESH, active(json!({"tcp": {}, "interval": "500ms"})), "health.active.timeout");
    refused(MESH, active(json!({"tcp": {}, "interval": "50ms", "timeout": "50ms"})), "at least 100ms");
    for (field, low, high) in [
        ("port", 0, 65_536),
        ("unhealthyThreshold", 0, 101),
        ("healthyThreshold", 0, 101),
        ("maxCheckers", 0, 17),
    ] {
        refused(MESH, active(json!({"tcp": {}, field: low})), "minimum");
        refused(MESH, active(json!({"tcp": {}, field: high})), "maximum");
    }
    refused(MESH, active(json!({"tcp": {}, "jitter": 101})), "maximum");
    let http = |more: Value| active(json!({"http": more}));
    refused(MESH, http(json!({})), "required \"path\"");
    refused(MESH, http(json!({"path": "healthz"})), "begin with a slash");
    refused(MESH, http(json!({"path": "/a b"})), "begin with a slash");
    refused(MESH, http(json!({"path": "/", "host": "a b"})), "name of a host");
    refused(MESH, http(json!({"path": "/", "expectedStatuses": [99]})), "minimum");
    refused(MESH, http(json!({"path": "/", "expectedStatuses": [600]})), "maximum");
    refused(MESH, http(json!({"path": "/", "expectedStatuses": [200, 200]})), "duplicate");
    refused(MESH, active(json!({"grpc": {"service": "x".repeat(254)}})), "maxLength");
}

#[test]
fn the_longest_ejection_is_not_shorter_than_the_first() {
    let outlier = |outlier: Value| mesh(json!({"health": {"outlier": outlier}}));
    refused(MESH, outlier(json!({"ejectionTime": "6m"})), "health.outlier.maxEjectionTime");
    refused(MESH, outlier(json!({"maxEjectionTime": "9s"})), "health.outlier.maxEjectionTime");
    refused(
        MESH,
        outlier(json!({"ejectionTime": "2s", "maxEjectionTime": "1s"})),
        "health.outlier.maxEjectionTime",
    );
    passes(MESH, outlier(json!({"ejectionTime": "1s", "maxEjectionTime": "1s"})));
    passes(MESH, outlier(json!({})));
}

#[test]
fn a_hash_goes_with_the_policies_that_hash() {
    let balancer = |balancer: Value| mesh(json!({"balancer": balancer}));
    for policy in ["RingHash", "Maglev"] {
        passes(MESH, balancer(json!({"policy": policy, "hash": {"header": "x-user-id"}})));
        refused(MESH, balancer(json!({"policy": policy})), "RingHash and Maglev need balancer.hash");
    }
    for policy in ["PeakEwma", "LeastRequest", "RoundRobin", "Random", "SourceIpHash"] {
        passes(MESH, balancer(json!({"policy": policy})));
        refused(
            MESH,
            balancer(json!({"policy": policy, "hash": {"sourceIp": true}})),
            "acts with the policies RingHash and Maglev only",
        );
    }
    refused(
        MESH,
        balancer(json!({"hash": {"sourceIp": true}})),
        "acts with the policies RingHash and Maglev",
    );
    passes(MESH, balancer(json!({"policy": "RingHash", "hash": {"query": "user", "ringPoints": 16}})));
    refused(
        MESH,
        balancer(json!({"policy": "Maglev", "hash": {"query": "user", "ringPoints": 16}})),
        "ringPoints acts with the policy RingHash only",
    );
}

#[test]
fn a_hash_is_by_exactly_one_thing() {
    let hash = |hash: Value| mesh(json!({"balancer": {"policy": "RingHash", "hash": hash}}));
    for good in [
        json!({"header": "Host"}),
        json!({"cookie": {"name": "weft-session"}}),
        json!({"cookie": {"name": "id", "ttl": "1h"}}),
        json!({"sourceIp": true}),
        json!({"query": "user id"}),
    ] {
        passes(MESH, hash(good));
    }
    refused(MESH, hash(json!({})), "balancer.hash needs exactly one of");
    refused(MESH, hash(json!({"ringPoints": 100})), "balancer.hash needs exactly one of");
    refused(MESH, hash(json!({"header": "a", "query": "b"})), "balancer.hash needs exactly one of");
    refused(MESH, hash(json!({"sourceIp": false})), "balancer.hash.sourceIp can only be true");
    refused(MESH, hash(json!({"header": "a:b"})), "not the name of an HTTP header");
    refused(MESH, hash(json!({"header": ""})), "minLength");
    refused(MESH, hash(json!({"cookie": {"name": "a=b"}})), "not the name of a cookie");
    refused(MESH, hash(json!({"cookie": {}})), "required");
    refused(MESH, hash(json!({"cookie": {"name": "a", "ttl": "0s"}})), "longer than zero");
    refused(MESH, hash(json!({"query": "a=b"})), "not the name of a parameter");
    refused(MESH, hash(json!({"query": "a".repeat(129)})), "maxLength");
    refused(MESH, hash(json!({"sourceIp": true, "ringPoints": 15})), "minimum");
    refused(MESH, hash(json!({"sourceIp": true, "ringPoints": 4097})), "maximum");
}

#[test]
fn the_order_of_endpoints_is_bounded() {
    let balancer = |balancer: Value| mesh(json!({"balancer": balancer}));
    passes(MESH, balancer(json!({"slowStart": {"window": "30s", "aggression": 10}})));
    refused(MESH, balancer(json!({"slowStart": {}})), "required");
    refused(MESH, balancer(json!({"slowStart": {"window": "30s", "aggression": 0}})), "minimum");
    refused(MESH, balancer(json!({"slowStart": {"window": "30s", "aggression": 11}})), "maximum");

    passes(MESH, balancer(json!({"locality": {"mode": "Prefer"}})));
    passes(MESH, balancer(json!({"locality": {"mode": "Strict"}})));
    passes(MESH, balancer(json!({"locality": {"mode": "Strict", "within": "Region"}})));
    refused(MESH, balancer(json!({"locality": {}})), "required");
    refused(MESH, balancer(json!({"locality": {"mode": "Nearest"}})), "enum");
    refused(
        MESH,
        balancer(json!({"locality": {"mode": "Prefer", "within": "Zone"}})),
        "within acts with mode Strict only",
    );

    let priority = json!({"labels": {"tier": "hot"}});
    passes(
        MESH,
        balancer(json!({"failover": [priority, {"labels": {"tier": "warm"}}], "panicThreshold": 100})),
    );
    refused(MESH, balancer(json!({"failover": [{"labels": {}}]})), "minProperties");
    refused(MESH, balancer(json!({"failover": vec![priority; 9]})), "maxItems");
    refused(MESH, balancer(json!({"panicThreshold": 101})), "maximum");
}

// --- PeerAuthentication

const AUTH: &str = "peerauthentications";

#[test]
fn a_mode_is_given_and_known() {
    passes(AUTH, json!({"mtls": {"mode": "Strict"}}));
    passes(AUTH, json!({"mtls": {"mode": "Disable"}, "selector": {"matchLabels": {"app": "a"}}}));
    refused(AUTH, json!({}), "required");
    refused(AUTH, json!({"mtls": {"mode": "strict"}}), "enum");
    refused(AUTH, json!({"mtls": {"mode": "Strict"}, "selector": {"matchLabels": {}}}), "minProperties");
}

#[test]
fn modes_of_ports_need_a_selector_and_port_numbers() {
    let ports = |ports: Value| json!({"mtls": {"mode": "Strict"}, "selector": {"matchLabels": {"app": "a"}}, "portLevelMtls": ports});
    passes(AUTH, ports(json!({"1": {"mode": "Permissive"}, "65535": {"mode": "Disable"}})));
    refused(
        AUTH,
        json!({"mtls": {"mode": "Strict"}, "portLevelMtls": {"80": {"mode": "Disable"}}}),
        "portLevelMtls needs a selector",
    );
    for bad in ["0", "65536", "080", "+80"] {
        refused(
            AUTH,
            ports(json!({bad: {"mode": "Disable"}})),
            "the keys of portLevelMtls are container port numbers",
        );
    }
    assert_ne!(problems(AUTH, &ports(json!({"http": {"mode": "Disable"}}))), Vec::<String>::new());
    let many =
        (1..=65).map(|port| (port.to_string(), json!({"mode": "Strict"}))).collect::<serde_json::Map<_, _>>();
    refused(AUTH, ports(many.into()), "maxProperties");
}

// --- All definitions

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
    for plural in [POLICY, MESH, AUTH] {
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

fn outside(external: Value) -> Value {
    json!({"target": {"external": external}})
}

fn api(more: Value) -> Value {
    let mut external = json!({"hosts": ["api.example.com"], "ports": [{"port": 443, "protocol": "Tls"}]});
    external.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    outside(external)
}

#[test]
fn an_external_service_with_everything_passes() {
    passes(MESH, api(json!({})));
    passes(
        MESH,
        json!({
            "target": {"external": {
                "hosts": ["*.example.com", "example.com"],
                "ports": [
                    {"port": 443, "protocol": "Tls"},
                    {"port": 80, "protocol": "Http1", "targetPort": 443, "tls": {"sni": "example.com", "caBundle": "-----BEGIN CERTIFICATE-----"}},
                ],
                "endpoints": [{"address": "192.0.2.1"}, {"address": "db.example.net", "port": 8443, "weight": 0}],
            }},
            "balancer": {"policy": "RoundRobin"},
            "circuitBreaker": {"maxConnections": 1},
        }),
    );
    passes(MESH, api(json!({"ports": [{"port": 80, "protocol": "Grpc", "tls": {}}]})));
}

#[test]
fn a_target_is_a_service_or_external() {
    refused(MESH, json!({"target": {}}), "target names neither or both of service and external");
    let mut both = api(json!({}));
    both["target"]["service"] = json!("back");
    refused(MESH, both, "target names neither or both");
}

#[test]
fn the_hosts_of_an_external_service_are_names() {
    for bad in ["https://a.example", "a.example:80", "A.example", "*", "a.*.example", "-a", "a..b", ""] {
        let spec = api(json!({"hosts": [bad], "endpoints": [{"address": "192.0.2.1"}]}));
        let found = problems(MESH, &spec);
        assert!(!found.is_empty(), "{bad} was taken");
    }
    refused(MESH, api(json!({"hosts": ["a b"]})), "leave out schemes, ports and paths");
    refused(MESH, api(json!({"hosts": []})), "minItems");
    refused(MESH, api(json!({"hosts": ["a.example", "a.example"]})), "duplicate");
}

#[test]
fn without_endpoints_there_is_exactly_one_host_to_resolve() {
    refused(MESH, api(json!({"hosts": ["*.example.com"]})), "without endpoints the host itself is resolved");
    refused(MESH, api(json!({"hosts": ["a.example", "b.example"]})), "without endpoints");
    passes(MESH, api(json!({"hosts": ["*.example.com"], "endpoints": [{"address": "192.0.2.1"}]})));
}

#[test]
fn tls_of_the_proxy_and_of_the_application_exclude_each_other() {
    refused(
        MESH,
        api(json!({"ports": [{"port": 443, "protocol": "Tls", "tls": {}}]})),
        "protocol Tls says that the application does",
    );
    let many = json!({"hosts": ["a.example", "b.example"], "endpoints": [{"address": "192.0.2.1"}],
        "ports": [{"port": 80, "protocol": "Http1", "tls": {}}]});
    refused(MESH, api(many), "needs sni");
    refused(
        MESH,
        api(json!({"ports": [{"port": 80, "protocol": "Http1", "tls": {"caBundle": "ca.crt"}}]})),
        "caBundle holds no certificate",
    );
    refused(MESH, api(json!({"ports": [{"port": 443}]})), "required");
    refused(
        MESH,
        api(json!({"ports": [{"port": 1, "protocol": "Tcp"}, {"port": 1, "protocol": "Tls"}]})),
        "duplicate",
    );
}

#[test]
fn what_chooses_pods_has_no_place_beside_an_external_target() {
    for more in [
        json!({"subsets": [{"name": "v1", "labels": {"a": "b"}}]}),
        json!({"balancer": {"weights": [{"labels": {"a": "b"}, "weight": 1}]}}),
        json!({"balancer": {"failover": [{"labels": {"a": "b"}}]}}),
        json!({"balancer": {"locality": {}}}),
    ] {
        let mut spec = api(json!({}));
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        refused(MESH, spec, "choose pods by their labels and zones");
    }
    let mut spec = api(json!({}));
    spec["connection"] = json!({"protocol": "Tcp"});
    refused(MESH, spec, "connection.protocol is for Services");
}
