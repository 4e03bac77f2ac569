//! What a rule does besides choosing where requests go, as proxies are told.

use serde_json::{Value, json};
use weft_api::v1::{self, abort, path_change};

use super::{compiled, shop};
use crate::index::testing::*;

fn service(rule: Value) -> v1::Service {
    let mut objects = shop();
    objects.push(policy(
        "shop/p",
        1,
        0,
        json!({ "targetRefs": [{ "kind": "Service", "name": "back" }], "rules": [rule], "precedence": "Specificity" }),
    ));
    compiled(&index_of(objects), "shop/back:80")
}

fn filters(rule: Value) -> v1::Filters {
    service(rule).routes[0].filters.clone().unwrap()
}

fn line(name: &str, value: &str) -> v1::HeaderLine {
    v1::HeaderLine { name: name.into(), value: value.into() }
}

#[test]
fn a_rule_that_does_nothing_more_says_nothing_of_it() {
    let service = service(json!({ "timeout": "1s" }));
    assert!(service.routes.iter().all(|route| route.filters.is_none()));
    assert_eq!(service.precedence(), v1::Precedence::Specificity);
    assert_eq!(compiled(&index_of(shop()), "shop/back:80").precedence(), v1::Precedence::Written);
}

#[test]
fn conditions_on_query_host_and_caller_are_sent() {
    let rule = json!({ "match": [{
        "query": [{ "name": "V", "exact": "1" }, { "name": "w", "present": false }],
        "hosts": ["*.shop.example"],
        "source": { "identities": ["spiffe://cluster.local/ns/a/sa/b"], "namespaces": ["c"] },
    }] });
    let sent = &service(rule).routes[0].matches[0];
    let query: Vec<_> = sent.query.iter().map(|q| (q.name.as_str(), q.value.clone().unwrap())).collect();
    use v1::query_match::Value;
    assert_eq!(query, [("V", Value::Exact("1".into())), ("w", Value::Present(false))]);
    assert_eq!(sent.hosts, ["*.shop.example"]);
    let source = sent.source.as_ref().unwrap();
    assert_eq!(
        (&source.identities[0][..], &source.namespaces[0][..]),
        ("spiffe://cluster.local/ns/a/sa/b", "c")
    );
}

#[test]
fn header_changes_and_rewrites_are_sent() {
    let sent = filters(json!({
        "match": [{ "path": { "prefix": "/a" } }],
        "headers": {
            "request": { "set": [{ "name": "X-A", "value": "1" }], "remove": ["X-B"] },
            "response": { "add": [{ "name": "x-c", "value": "2" }] },
        },
        "rewrite": { "host": "other:81", "path": { "prefix": "" } },
    }));
    let request = v1::HeaderChanges { set: vec![line("x-a", "1")], remove: vec!["x-b".into()], add: vec![] };
    assert_eq!(sent.request, Some(request));
    assert_eq!(sent.response.unwrap().add, [line("x-c", "2")]);
    let rewrite = sent.rewrite.unwrap();
    assert_eq!(rewrite.host, "other:81");
    assert_eq!(rewrite.path.unwrap().change, Some(path_change::Change::Prefix(String::new())));
}

#[test]
fn answers_have_their_defaults() {
    let redirect = filters(json!({ "redirect": { "scheme": "https" } })).redirect.unwrap();
    assert_eq!((redirect.scheme.as_str(), redirect.port, redirect.status), ("https", 0, 302));
    let response =
        filters(json!({ "response": { "status": 503, "body": "closed" } })).response_instead.unwrap();
    assert_eq!((response.status, response.content_type.as_str()), (503, "text/plain; charset=utf-8"));
}

#[test]
fn faults_and_cors_have_their_defaults() {
    let fault = filters(json!({ "fault": {
        "delay": { "duration": "1s" }, "abort": { "grpcStatus": 14, "percent": 5 }, "when": { "header": "X-Chaos" },
    } }));
    let fault = fault.fault.unwrap();
    assert_eq!(fault.delay, Some(v1::Delay { duration_ms: 1000, percent: 100 }));
    assert_eq!(fault.abort, Some(v1::Abort { with: Some(abort::With::GrpcStatus(14)), percent: 5 }));
    assert_eq!(fault.when, Some(v1::FaultCondition { header: "x-chaos".into(), value: None }));
    let cors = filters(json!({ "cors": { "allowOrigins": ["*"], "maxAge": "1500ms" } })).cors.unwrap();
    assert_eq!((cors.max_age_s, cors.allow_credentials), (2, false));
}
