//! TrafficPolicy: what it governs, and which requests a rule takes.

use super::*;

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
