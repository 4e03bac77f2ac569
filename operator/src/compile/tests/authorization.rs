//! Tests of `compile` (authorization): no cluster, nothing but what they make themselves.

use serde_json::json;
use weft_api::v1::authorization_condition::Of;
use weft_api::v1::header_match::Value;
use weft_api::v1::{self, AuthorizationAction as Action, authorization_path::Path};

use super::shop;
use crate::compile::workload;
use crate::index::Index;
use crate::index::testing::*;

fn of(index: &Index, key: &str) -> v1::Workload {
    workload(index, index.pod(&key_of(key)).unwrap())
}

fn names(index: &Index, key: &str) -> Vec<String> {
    let policies = of(index, key).authorization.map(|a| a.policies).unwrap_or_default();
    policies.iter().map(|p| format!("{}/{}", p.namespace, p.name)).collect()
}

fn selecting(app: &str) -> serde_json::Value {
    json!({ "action": "Deny", "selector": { "matchLabels": { "app": app } }, "rules": [{}] })
}

#[test]
fn all_that_select_a_pod_count_and_changes_mark_just_those_pods() {
    let mut index = index_of(shop());
    assert!(of(&index, "shop/back-1").authorization.is_none());
    let dirty = authorization("shop/b", 1, json!({ "action": "Allow" })).apply(&mut index);
    assert!(dirty.pods.contains(&key_of("shop/back-1")) && dirty.services.is_empty());
    authorization("shop/a", 1, selecting("back")).apply(&mut index);
    let dirty = authorization("shop/other", 1, selecting("other")).apply(&mut index);
    assert!(!dirty.pods.contains(&key_of("shop/back-1")));
    authorization("bank/x", 1, json!({ "action": "Allow" })).apply(&mut index);
    let dirty =
        authorization("weft-system/mesh", 3, json!({ "action": "Audit", "rules": [{}] })).apply(&mut index);
    assert!(dirty.pods.contains(&key_of("shop/back-1")));
    // A selector in Weft's own namespace is of that namespace only.
    authorization("weft-system/own", 1, selecting("back")).apply(&mut index);
    assert_eq!(names(&index, "shop/back-1"), ["shop/a", "shop/b", "weft-system/mesh"]);
    let sources = of(&index, "shop/back-1").sources;
    let mesh = sources.iter().find(|s| s.name == "mesh").unwrap();
    assert_eq!((mesh.kind.as_str(), mesh.generation), ("AuthorizationPolicy", 3));
    let dirty =
        authorization("weft-system/mesh", 3, json!({ "action": "Audit", "rules": [{}] })).delete(&mut index);
    assert!(dirty.pods.contains(&key_of("shop/back-1")));
    assert_eq!(names(&index, "shop/back-1"), ["shop/a", "shop/b"]);
    // Another selector marks those that it selected before, too.
    let dirty = authorization("shop/a", 2, selecting("other")).apply(&mut index);
    assert!(dirty.pods.contains(&key_of("shop/back-1")));
    assert_eq!(names(&index, "shop/back-1"), ["shop/b"]);
}

#[test]
fn one_that_makes_no_sense_leaves_its_last_good_form_in_force() {
    let mut index = index_of(shop());
    let from = |id: &str| json!({ "action": "Allow", "rules": [{ "from": [{ "identities": [id] }] }] });
    authorization("shop/a", 1, from("*/sa/front")).apply(&mut index);
    authorization("shop/a", 2, from("spiffe://a/ns/b*")).apply(&mut index);
    let own = of(&index, "shop/back-1");
    assert_eq!(own.authorization.unwrap().policies[0].rules[0].from[0].identities, ["*/sa/front"]);
    assert_eq!(own.sources.iter().find(|s| s.name == "a").unwrap().generation, 1);
    let verdict = &index.space("shop").unwrap().settled.authorization_policies["a"];
    assert!(verdict.refused.is_some() && verdict.in_force == Some(1));
}

#[test]
fn trust_domains_of_callers_are_told_as_what_only_newer_proxies_know() {
    let mut index = index_of(shop());
    let from = json!([{ "trustDomains": ["partner.example"] }]);
    authorization("shop/p", 1, json!({ "action": "Allow", "rules": [{ "from": from }] })).apply(&mut index);
    let all = of(&index, "shop/back-1").authorization.unwrap();
    assert_eq!(
        (all.level, &*all.policies[0].rules[0].from[0].trust_domains),
        (3, &["partner.example".to_owned()][..])
    );
}

#[test]
fn every_field_is_told_to_the_proxy() {
    let spec = json!({ "action": "Deny", "dryRun": true, "audit": true, "rules": [
        { "name": "admins",
          "from": [{ "identities": ["*/sa/front"], "namespaces": ["shop"], "ipBlocks": ["10.0.0.0/8"] }],
          "to": [{ "hosts": ["back"], "ports": [8080], "methods": ["GET"], "paths": [{ "exact": "/a" }, { "prefix": "/b" }, { "template": "/u/{id}" }] },
                 { "services": ["shop.Orders", "shop.Orders/Buy"] }],
          "when": [{ "header": "X-User", "prefix": "a" }, { "header": "x-a", "exact": "1" }, { "header": "x-b", "regex": "1+" }, { "header": "x-c", "present": false }] },
        {} ] });
    let mut index = index_of(shop());
    authorization("shop/p", 1, spec).apply(&mut index);
    let all = of(&index, "shop/back-1").authorization.unwrap();
    let policy = &all.policies[0];
    assert_eq!((all.level, policy.action(), policy.dry_run, policy.audit), (1, Action::Deny, true, true));
    let rule = &policy.rules[0];
    let source = v1::AuthorizationSource {
        trust_domains: Vec::new(),
        identities: vec!["*/sa/front".into()],
        namespaces: vec!["shop".into()],
        ip_blocks: vec!["10.0.0.0/8".into()],
        principals: Vec::new(),
    };
    assert_eq!((rule.name.as_str(), &rule.from), ("admins", &vec![source]));
    let paths = |n: usize| rule.to[n].paths.iter().map(|p| p.path.clone().unwrap()).collect::<Vec<_>>();
    assert_eq!(
        paths(0),
        [Path::Exact("/a".into()), Path::Prefix("/b".into()), Path::Template("/u/{id}".into())]
    );
    assert_eq!(paths(1), [Path::Prefix("/shop.Orders".into()), Path::Exact("/shop.Orders/Buy".into())]);
    assert_eq!(
        (&rule.to[0].hosts[0], rule.to[0].ports[0], &rule.to[0].methods[0]),
        (&"back".into(), 8080, &"GET".into())
    );
    let headers: Vec<_> = rule
        .when
        .iter()
        .map(|condition| match condition.of.clone().unwrap() {
            Of::Header(header) => (header.name, header.value.unwrap()),
            Of::Claim(claim) => panic!("{claim:?}"),
        })
        .collect();
    let given = [
        ("x-user", Value::Prefix("a".into())),
        ("x-a", Value::Exact("1".into())),
        ("x-b", Value::Regex("1+".into())),
        ("x-c", Value::Present(false)),
    ];
    assert_eq!(headers, given.map(|(name, value)| (name.to_owned(), value)));
    assert_eq!(policy.rules[1], v1::AuthorizationRule { name: "1".into(), ..Default::default() });
}

#[test]
fn what_looks_at_tokens_needs_a_proxy_that_knows_them_and_nothing_else_does() {
    let rule = json!({ "from": [{ "requestPrincipals": ["https://a.example/alice", "https://a.example/*", "*/bob", "*"] }],
        "when": [{ "claim": "realm.roles", "exact": "admin" }, { "claim": "https://a\\.example/x", "prefix": "y" },
                 { "claim": "n", "regex": "[0-9]" }, { "claim": "z", "present": false }] });
    let mut index = index_of(shop());
    authorization("shop/plain", 1, json!({ "action": "Allow", "rules": [{}] })).apply(&mut index);
    assert_eq!(of(&index, "shop/back-1").authorization.unwrap().level, 1);
    authorization("shop/admins", 1, json!({ "action": "Allow", "rules": [rule] })).apply(&mut index);
    let all = of(&index, "shop/back-1").authorization.unwrap();
    assert_eq!(all.level, 2);
    let rule = &all.policies[0].rules[0];
    let principal = |issuer: Option<&str>, subject: Option<&str>| v1::TokenPrincipal {
        issuer: issuer.map(str::to_owned),
        subject: subject.map(str::to_owned),
    };
    let one = Some("https://a.example");
    let wanted = [
        principal(one, Some("alice")),
        principal(one, None),
        principal(None, Some("bob")),
        principal(None, None),
    ];
    assert_eq!(rule.from[0].principals, wanted);
    let claims: Vec<_> = rule
        .when
        .iter()
        .map(|condition| match condition.of.clone().unwrap() {
            Of::Claim(claim) => (claim.claim.join("|"), claim.value.unwrap()),
            Of::Header(header) => panic!("{header:?}"),
        })
        .collect();
    use v1::claim_match::Value;
    let given = [
        ("realm|roles", Value::Exact("admin".into())),
        ("https://a.example/x", Value::Prefix("y".into())),
        ("n", Value::Regex("[0-9]".into())),
        ("z", Value::Present(false)),
    ];
    assert_eq!(claims, given.map(|(name, value)| (name.to_owned(), value)));
}
