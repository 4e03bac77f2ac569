//! MeshService of a Service.

use super::*;

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
