//! Tests of `compile` (rate limits): no cluster, nothing but what they make themselves.

use serde_json::{Value, json};
use weft_api::v1::{self, rate_limit::Key};

use super::shop;
use crate::compile::workload;
use crate::index::Index;
use crate::index::testing::*;

fn rules_of(index: &Index, key: &str) -> Vec<v1::InboundRules> {
    workload(index, index.pod(&key_of(key)).unwrap()).inbound_rules
}

fn limiting(generation: i64, rules: Value) -> Object {
    policy(
        "shop/limits",
        generation,
        0,
        json!({ "targetRefs": [{ "kind": "Service", "name": "back" }], "rules": rules }),
    )
}

#[test]
fn the_pods_behind_a_service_get_its_rules_up_to_the_last_limit() {
    let mut objects = shop();
    objects.push(pod("shop/front-1", "front", "10.0.0.9"));
    objects.push(limiting(
        4,
        json!([
            { "name": "free", "match": [{ "path": { "prefix": "/free" } }] },
            { "match": [{ "method": "POST" }], "timeout": "1s",
              "rateLimit": { "requests": 10, "per": "1m", "key": { "type": "Header", "header": "X-User" } } },
            { "match": [{ "method": "PUT" }], "rateLimit": { "requests": 10, "per": "1m", "scope": "Mesh" } },
            { "retry": { "attempts": 1 } },
        ]),
    ));
    let index = index_of(objects);
    let rules = rules_of(&index, "shop/back-1");
    assert_eq!(rules.len(), 1);
    assert_eq!((rules[0].port, rules[0].service.as_str()), (8080, "shop/back:80"));
    let names: Vec<_> = rules[0].rules.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(names, ["limits/free", "limits/1", "limits/2"]);
    assert!(rules[0].rules[0].rate_limit.is_none());
    let limit = rules[0].rules[1].rate_limit.as_ref().unwrap();
    assert_eq!((limit.requests, limit.per_ms, limit.burst), (10, 60_000, 10));
    assert_eq!(limit.key, Some(Key::Header("x-user".into())));
    assert_eq!(rules[0].rules[1].matches[0].method, "POST");
    let mesh = |rule: usize| rules[0].rules[rule].rate_limit.as_ref().unwrap().mesh;
    assert!(!mesh(1) && mesh(2));
    assert_eq!(rules_of(&index, "shop/back-2"), rules);
    assert!(rules_of(&index, "shop/front-1").is_empty());
    // So that "applied on N of M proxies" counts them.
    let sources = workload(&index, index.pod(&key_of("shop/back-1")).unwrap()).sources;
    assert!(sources.iter().any(|s| s.kind == "TrafficPolicy" && s.generation == 4));
}

#[test]
fn by_specificity_a_rule_after_the_last_limit_may_come_before_it() {
    let mut objects = shop();
    objects.push(policy(
        "shop/limits",
        1,
        0,
        json!({ "targetRefs": [{ "kind": "Service", "name": "back" }], "precedence": "Specificity", "rules": [
            { "rateLimit": { "requests": 1, "per": "1s" } },
            { "match": [{ "path": { "exact": "/free" } }] },
        ] }),
    ));
    let rules = rules_of(&index_of(objects), "shop/back-1");
    assert_eq!((rules[0].rules.len(), rules[0].precedence()), (2, v1::Precedence::Specificity));
}

#[test]
fn a_policy_without_limits_is_nothing_to_the_callee() {
    let mut index = index_of(shop());
    let dirty = limiting(1, json!([{ "timeout": "1s" }])).apply(&mut index);
    assert!(rules_of(&index, "shop/back-1").is_empty());
    assert!(dirty.pods.is_empty());
    let workload = workload(&index, index.pod(&key_of("shop/back-1")).unwrap());
    assert!(workload.sources.iter().all(|s| s.kind != "TrafficPolicy"));
}

#[test]
fn a_limit_that_comes_changes_or_goes_concerns_the_pods() {
    let mut index = index_of(shop());
    let limit = |requests: u32| json!([{ "rateLimit": { "requests": requests, "per": "1s", "burst": 3 } }]);
    let requests = |index: &Index| {
        let rules = rules_of(index, "shop/back-1");
        rules.first().map(|rules| rules.rules[0].rate_limit.as_ref().unwrap().requests)
    };
    for (object, wanted) in
        [(limiting(1, limit(1)), Some(1)), (limiting(2, limit(2)), Some(2)), (limiting(3, json!([{}])), None)]
    {
        let dirty = object.apply(&mut index);
        assert!(dirty.pods.contains(&key_of("shop/back-1")) && dirty.pods.contains(&key_of("shop/back-2")));
        assert_eq!(requests(&index), wanted);
    }
    limiting(4, limit(1)).apply(&mut index);
    let dirty = limiting(4, limit(1)).delete(&mut index);
    assert!(dirty.pods.contains(&key_of("shop/back-1")));
    assert_eq!(requests(&index), None);
}

#[test]
fn a_pod_behind_two_services_keeps_the_limits_of_both() {
    let mut objects = shop();
    objects.extend([
        service("shop/alias", "10.96.0.2", &[("http", 8000, 8080)]),
        slice("shop/alias", &[("http", 8080)], &[("10.0.0.1", "back-1", true)]),
        limiting(1, json!([{ "rateLimit": { "requests": 1, "per": "1s" } }])),
        policy("shop/other", 1, 1, json!({
            "targetRefs": [{ "kind": "Service", "name": "alias" }],
            "rules": [{ "rateLimit": { "requests": 2, "per": "1s", "key": { "type": "Path", "path": "/{a}" } } }],
        })),
    ]);
    let index = index_of(objects);
    let services: Vec<_> =
        rules_of(&index, "shop/back-1").into_iter().map(|rules| (rules.port, rules.service)).collect();
    assert_eq!(services, [(8080, "shop/alias:8000".to_owned()), (8080, "shop/back:80".to_owned())]);
    assert_eq!(rules_of(&index, "shop/back-2").len(), 1);
}
