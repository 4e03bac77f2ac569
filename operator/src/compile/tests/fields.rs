//! Fields whose way into the message needs no story: each arrives as it is written.

use serde_json::{Value, json};
use weft_api::v1::{self, active_check, header_match, path_change, query_match};

use super::{compiled, shop};
use crate::index::testing::*;

fn described(mut spec: Value) -> v1::Service {
    spec["target"] = json!({ "service": "back" });
    let mut objects = shop();
    // A port's name counts before what a MeshService says of it.
    objects[0] = service("shop/back", "10.96.0.1", &[("web", 80, 8080)]);
    objects[1] =
        slice("shop/back", &[("web", 8080)], &[("10.0.0.1", "back-1", true), ("10.0.0.2", "back-2", true)]);
    objects.push(mesh_service("shop/back", 1, 0, spec));
    compiled(&index_of(objects), "shop/back:80")
}

fn routed(rule: Value) -> v1::Route {
    let target = json!([{ "kind": "Service", "name": "back" }]);
    let mut objects = shop();
    objects.push(policy("shop/p", 1, 0, json!({ "targetRefs": target, "rules": [rule] })));
    compiled(&index_of(objects), "shop/back:80").routes.remove(0)
}

#[test]
fn connections_breakers_and_the_limit_that_finds_itself() {
    let service = described(json!({
        "connection": { "connectTimeout": "250ms", "idleTimeout": "7s", "maxRequests": 9, "protocol": "Grpc" },
        "circuitBreaker": { "maxConnections": 3, "maxPendingRequests": 4, "maxConcurrentRequests": 5, "maxRetries": 6 },
        "adaptiveConcurrency": { "minLimit": 2, "maxLimit": 50, "tolerancePercent": 40, "baselineInterval": "30s" },
    }));
    assert_eq!(service.protocol(), v1::Protocol::Http2);
    let cluster = &service.clusters[0];
    assert_eq!((cluster.connect_timeout_ms, cluster.idle_timeout_ms), (250, 7000));
    assert_eq!(cluster.max_requests_per_connection, 9);
    let breaker = v1::Breaker {
        max_connections: 3,
        max_pending_requests: 4,
        max_concurrent_requests: 5,
        max_retries: 6,
    };
    assert_eq!(cluster.breaker, Some(breaker));
    let adaptive =
        v1::Adaptive { min_limit: 2, max_limit: 50, tolerance_percent: 40, baseline_every_ms: 30_000 };
    assert_eq!(cluster.adaptive, Some(adaptive));
}

#[test]
fn what_endpoints_are_judged_by() {
    let service = described(json!({ "health": {
        "outlier": { "consecutiveFailures": 4, "ejectionTime": "2s", "maxEjectionTime": "1m", "maxEjectedPercent": 30, "interval": "5s",
            "successRate": { "minRequests": 20, "minHosts": 6, "stdevFactor": 1.5 } },
        "active": { "http": { "path": "/x", "host": "h.example", "expectedStatuses": [204] }, "interval": "2s", "timeout": "1s",
            "unhealthyThreshold": 4, "healthyThreshold": 3, "jitter": 20 },
    } }));
    let outlier = service.clusters[0].outlier.unwrap();
    assert_eq!((outlier.consecutive_failures, outlier.interval_ms), (4, 5000));
    assert_eq!((outlier.base_ejection_ms, outlier.max_ejection_ms), (2000, 60_000));
    assert_eq!(outlier.max_ejected_percent, 30);
    let rate = v1::SuccessRate { min_requests: 20, min_hosts: 6, stdev_factor_thousandths: 1500 };
    assert_eq!(outlier.success_rate, Some(rate));
    let active = service.clusters[0].active.as_ref().unwrap();
    assert_eq!((active.interval_ms, active.timeout_ms, active.jitter_percent), (2000, 1000, 20));
    assert_eq!((active.unhealthy_threshold, active.healthy_threshold), (4, 3));
    let http = v1::HttpCheck { path: "/x".into(), expected_statuses: vec![204], host: "h.example".into() };
    assert_eq!(active.kind, Some(active_check::Kind::Http(http)));
    let tcp = described(json!({ "health": { "active": { "tcp": {} } } }));
    let tcp = tcp.clusters[0].active.as_ref().unwrap();
    assert_eq!(tcp.kind, Some(active_check::Kind::Tcp(v1::TcpCheck {})));
}

#[test]
fn conditions_retries_and_paths_of_a_rule() {
    let route = routed(json!({
        "match": [{ "headers": [{ "name": "x-a", "regex": "a+" }], "query": [{ "name": "q", "regex": "b+" }] }],
        "circuitBreaker": { "maxRetries": 2 },
        "retry": { "backoff": "10ms", "maxBackoff": "20ms", "budget": { "percent": 30, "minPerSecond": 40 } },
        "rewrite": { "path": { "regex": { "pattern": "/a/(.*)", "substitution": "/$1" } } },
        "cors": { "allowOrigins": ["https://a.example"], "allowMethods": ["PUT"], "allowHeaders": ["x-a"], "exposeHeaders": ["x-b"],
            "maxAge": "10m", "allowCredentials": true },
    }));
    let matching = &route.matches[0];
    assert_eq!(matching.headers[0].value, Some(header_match::Value::Regex("a+".into())));
    assert_eq!(matching.query[0].value, Some(query_match::Value::Regex("b+".into())));
    assert_eq!(route.breaker, Some(v1::Breaker { max_retries: 2, ..Default::default() }));
    let retry = route.retry.as_ref().unwrap();
    assert_eq!((retry.backoff_base_ms, retry.backoff_max_ms), (10, 20));
    assert_eq!((retry.budget_percent, retry.budget_min_per_second), (30, 40));
    let filters = route.filters.as_ref().unwrap();
    let regex = v1::PathSubstitution { pattern: "/a/(.*)".into(), substitution: "/$1".into() };
    let path = filters.rewrite.as_ref().unwrap().path.as_ref().unwrap();
    assert_eq!(path.change, Some(path_change::Change::Regex(regex)));
    let cors = v1::Cors {
        allow_origins: vec!["https://a.example".into()],
        allow_methods: vec!["PUT".into()],
        allow_headers: vec!["x-a".into()],
        expose_headers: vec!["x-b".into()],
        max_age_s: 600,
        allow_credentials: true,
    };
    assert_eq!(filters.cors, Some(cors));
}

#[test]
fn whole_paths_ports_and_what_a_rule_answers() {
    let full = |path: &str| Some(path_change::Change::Full(path.into()));
    let rewrite =
        routed(json!({ "rewrite": { "path": { "full": "/one" } } })).filters.unwrap().rewrite.unwrap();
    assert_eq!(rewrite.path.unwrap().change, full("/one"));
    let redirect = json!({ "redirect": { "port": 8443, "path": { "full": "/two" } } });
    let redirect = routed(redirect).filters.unwrap().redirect.unwrap();
    assert_eq!((redirect.port, redirect.path.unwrap().change), (8443, full("/two")));
    let response = json!({ "response": { "status": 410, "body": "gone", "contentType": "text/x" } });
    let response = routed(response).filters.unwrap().response_instead.unwrap();
    assert_eq!((response.status, &response.body[..], &response.content_type[..]), (410, "gone", "text/x"));
}
