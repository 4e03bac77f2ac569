//! TrafficPolicy: limits and breakers of a rule.

use super::*;

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
