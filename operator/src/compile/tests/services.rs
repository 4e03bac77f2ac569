//! Tests of `compile` (services): no cluster, nothing but what they make themselves.

use serde_json::json;
use weft_api::v1::{self, Protocol};

use super::{addresses, backends, cluster, compiled, shop};
use crate::compile::endpoint_states;
use crate::index::testing::*;

#[test]
fn without_any_resource_the_defaults_hold() {
    let service = compiled(&index_of(shop()), "shop/back:80");
    assert_eq!(service.key, "shop/back:80");
    assert_eq!(service.protocol(), Protocol::Http1);
    assert_eq!(service.default_cluster, "shop/back:80");
    let route = service.routes.last().unwrap();
    assert!(route.matches.is_empty());
    assert_eq!(backends(route), [("shop/back:80", 1)]);
    let retry = route.retry.as_ref().unwrap();
    assert_eq!(retry.on, [v1::RetryOn::ConnectFailure as i32, v1::RetryOn::Reset as i32]);
    assert_eq!((retry.attempts, retry.budget_percent, retry.budget_min_per_second), (2, 20, 10));
    let cluster = cluster(&service, "shop/back:80");
    assert_eq!(cluster.balancer(), v1::Balancer::PeakEwma);
    assert_eq!((cluster.connect_timeout_ms, cluster.idle_timeout_ms), (2_000, 60_000));
    assert_eq!(cluster.breaker.unwrap().max_concurrent_requests, 4096);
    assert_eq!(cluster.outlier.unwrap().consecutive_failures, 5);
    assert_eq!(addresses(cluster), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    for endpoint in &cluster.endpoints {
        assert_eq!(endpoint.identity, "spiffe://cluster.local/ns/shop/sa/back");
        assert_eq!(endpoint.weight, 100);
    }
}

#[test]
fn a_pod_without_a_proxy_has_no_identity_and_an_unknown_pod_is_no_endpoint_yet() {
    let mut objects = shop();
    objects[2] = plain_pod("shop/back-1", "back", "10.0.0.1");
    objects.pop();
    let service = compiled(&index_of(objects), "shop/back:80");
    let cluster = cluster(&service, "shop/back:80");
    assert_eq!(addresses(cluster), ["10.0.0.1:8080"]);
    assert_eq!(cluster.endpoints[0].identity, "");
}

#[test]
fn the_identity_is_that_of_the_pod_that_the_slice_names_whoever_has_the_address() {
    let mut objects = shop();
    objects[1] = slice("shop/back", &[("http", 8080)], &[("10.0.0.66", "back-1", true)]);
    objects.push(pod("shop/thief", "thief", "10.0.0.66"));
    let service = compiled(&index_of(objects), "shop/back:80");
    assert_eq!(service.clusters[0].endpoints[0].identity, "spiffe://cluster.local/ns/shop/sa/back");
}

#[test]
fn endpoints_without_a_pod_are_plain_unless_a_pod_has_the_address() {
    let mut objects = shop();
    objects[1] = slice("shop/back", &[("http", 8080)], &[("10.0.0.1", "", true), ("192.0.2.9", "", true)]);
    let service = compiled(&index_of(objects), "shop/back:80");
    let identities: Vec<_> = service.clusters[0].endpoints.iter().map(|e| e.identity.as_str()).collect();
    assert_eq!(identities, ["spiffe://cluster.local/ns/shop/sa/back", ""]);
}

#[test]
fn what_is_not_ready_is_left_out_and_duplicates_count_once() {
    let mut objects = shop();
    objects[1] =
        slice("shop/back", &[("http", 8080)], &[("10.0.0.1", "back-1", false), ("10.0.0.2", "back-2", true)]);
    objects.push(slice_named("shop/back-x", "shop/back", &[("http", 8080)], &[("10.0.0.2", "back-2", true)]));
    let index = index_of(objects);
    assert_eq!(addresses(&compiled(&index, "shop/back:80").clusters[0]), ["10.0.0.2:8080"]);
    let space = index.space("shop").unwrap();
    let states = endpoint_states(space, &space.services["back"]);
    assert_eq!((states.ready, states.total, states.in_mesh), (1, 2, 2));
}

#[test]
fn a_dual_stack_pod_is_one_endpoint_and_reachable_at_both_addresses() {
    let spec = json!({
        "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"], "ipFamilies": ["IPv4", "IPv6"],
        "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }],
    });
    let index = index_of([
        service_of("shop/back", spec),
        slice_named("shop/back-4", "shop/back", &[("http", 8080)], &[("10.0.0.1", "back-1", true)]),
        slice_named("shop/back-6", "shop/back", &[("http", 8080)], &[("fd01::1", "back-1", true)]),
        pod("shop/back-1", "back", "10.0.0.1,fd01::1"),
    ]);
    assert_eq!(addresses(&compiled(&index, "shop/back:80").clusters[0]), ["10.0.0.1:8080"]);
    let sixth = compiled(&index, "shop/back-1.pod:8080");
    assert!(addresses(&sixth.clusters[0]).contains(&"[fd01::1]:8080"));
    assert_eq!(
        crate::compile::target(&index, super::at("[fd01::1]:8080")),
        crate::compile::Target::Pinned("shop/back-1.pod:8080".parse().unwrap(), super::at("[fd01::1]:8080"))
    );
}

#[test]
fn a_mesh_service_shapes_clusters_and_subsets() {
    let mut objects = shop();
    objects[3] = pod_of("shop/back-2", json!({"app": "back", "version": "v2"}), "10.0.0.2", true, json!({}));
    objects.push(mesh_service("shop/back", 7, 0, json!({
        "target": { "service": "back" },
        "subsets": [{ "name": "v2", "labels": { "version": "v2" } }],
        "balancer": { "policy": "RoundRobin", "weights": [{ "labels": { "version": "v2" }, "weight": 10 }] },
        "circuitBreaker": { "maxConnections": 3 },
        "adaptiveConcurrency": { "maxLimit": 50 },
        "health": { "outlier": { "consecutiveFailures": 0 } },
        "connection": { "connectTimeout": "250ms", "maxRequests": 9 },
    })));
    let service = compiled(&index_of(objects), "shop/back:80");
    let whole = cluster(&service, "shop/back:80");
    assert_eq!(whole.balancer(), v1::Balancer::RoundRobin);
    assert_eq!(whole.endpoints.iter().map(|e| e.weight).collect::<Vec<_>>(), [100, 10]);
    assert_eq!(whole.breaker.unwrap().max_connections, 3);
    assert_eq!(whole.breaker.unwrap().max_retries, 64);
    assert_eq!(whole.outlier, None);
    let adaptive =
        v1::Adaptive { min_limit: 3, max_limit: 50, tolerance_percent: 25, baseline_every_ms: 60_000 };
    assert_eq!(whole.adaptive, Some(adaptive));
    assert_eq!(cluster(&service, "shop/back:80/v2").adaptive, Some(adaptive));
    assert_eq!((whole.connect_timeout_ms, whole.max_requests_per_connection), (250, 9));
    assert_eq!(addresses(cluster(&service, "shop/back:80/v2")), ["10.0.0.2:8080"]);
    let source = &service.sources[0];
    assert_eq!((source.kind.as_str(), source.generation), ("MeshService", 7));
}

#[test]
fn ejection_is_off_only_when_there_is_nothing_to_judge_by() {
    let outlier = |outlier: serde_json::Value| {
        let mut objects = shop();
        let spec = json!({ "target": { "service": "back" }, "health": { "outlier": outlier } });
        objects.push(mesh_service("shop/back", 1, 0, spec));
        compiled(&index_of(objects), "shop/back:80").clusters[0].outlier
    };
    assert_eq!(outlier(json!({ "consecutiveFailures": 0 })), None);
    let by_gateway = outlier(json!({ "consecutiveFailures": 0, "consecutiveGatewayErrors": 3 })).unwrap();
    assert_eq!((by_gateway.consecutive_failures, by_gateway.consecutive_gateway_errors), (0, 3));
    let defaults =
        outlier(json!({ "consecutiveFailures": 0, "successRate": {}, "latency": {}, "interval": "5s" }))
            .unwrap();
    assert_eq!(defaults.interval_ms, 5000);
    let rate = defaults.success_rate.unwrap();
    assert_eq!((rate.min_requests, rate.min_hosts, rate.stdev_factor_thousandths), (100, 5, 1900));
    let latency = defaults.latency.unwrap();
    assert_eq!((latency.min_requests, latency.factor_thousandths), (100, 3000));
    let given = outlier(json!({ "latency": { "factor": 1.5, "minRequests": 7 } })).unwrap();
    assert_eq!(given.latency, Some(v1::LatencyRule { min_requests: 7, factor_thousandths: 1500 }));
    assert_eq!((given.consecutive_failures, given.success_rate), (5, None));
}

#[test]
fn active_checks_have_their_defaults_and_the_identity_of_the_port_that_is_checked() {
    let active = |active: serde_json::Value| {
        let mut objects = shop();
        let spec = json!({ "target": { "service": "back" }, "health": { "active": active } });
        objects.push(mesh_service("shop/back", 1, 0, spec));
        objects.push(authentication(
            "shop/back",
            0,
            json!({ "mtls": { "mode": "Strict" }, "portLevelMtls": { "9090": { "mode": "Disable" } } }),
        ));
        compiled(&index_of(objects), "shop/back:80").clusters.remove(0)
    };
    let cluster = active(json!({ "http": { "path": "/healthz" } }));
    assert_eq!(
        cluster.active.unwrap(),
        v1::ActiveCheck {
            kind: Some(v1::active_check::Kind::Http(v1::HttpCheck {
                path: "/healthz".into(),
                ..Default::default()
            })),
            interval_ms: 10_000,
            timeout_ms: 1_000,
            unhealthy_threshold: 3,
            healthy_threshold: 2,
            jitter_percent: 10,
            max_checkers: 3,
            port: 0,
        }
    );
    for endpoint in &cluster.endpoints {
        assert_eq!(endpoint.check.as_ref().unwrap().identity, endpoint.identity);
    }
    let other =
        active(json!({ "grpc": { "service": "s" }, "port": 9090, "interval": "5s", "maxCheckers": 1 }));
    assert!(
        other
            .endpoints
            .iter()
            .all(|e| e.check.as_ref().unwrap().identity.is_empty() && !e.identity.is_empty())
    );
    let check = other.active.unwrap();
    assert_eq!((check.port, check.interval_ms, check.max_checkers), (9090, 5_000, 1));
    assert_eq!(check.kind, Some(v1::active_check::Kind::Grpc(v1::GrpcCheck { service: "s".into() })));
    let without = &compiled(&index_of(shop()), "shop/back:80").clusters[0];
    assert!(without.active.is_none() && without.endpoints.iter().all(|endpoint| endpoint.check.is_none()));
}

#[test]
fn disabled_mtls_takes_the_identity_away_for_that_port_only() {
    let mut objects = shop();
    objects.push(authentication(
        "shop/legacy",
        0,
        json!({
            "selector": { "matchLabels": { "app": "back" } },
            "mtls": { "mode": "Strict" },
            "portLevelMtls": { "8080": { "mode": "Disable" } },
        }),
    ));
    let index = index_of(objects);
    let service = compiled(&index, "shop/back:80");
    assert!(service.clusters[0].endpoints.iter().all(|e| e.identity.is_empty()));
    assert_eq!(service.sources[0].kind, "PeerAuthentication");
    assert_ne!(compiled(&index, "shop/back-1.pod:9090").clusters[0].endpoints[0].identity, "");
}

#[test]
fn there_is_no_service_where_there_is_none() {
    let index = index_of(shop());
    for id in ["shop/back:81", "shop/none:80", "none/back:80", "shop/none.pod:80"] {
        assert!(crate::compile::service(&index, &id.parse().unwrap()).is_none(), "{id}");
    }
}
