//! MeshService of an external service.

use super::*;

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
    let by_identity =
        |tls: serde_json::Value| api(json!({"ports": [{"port": 80, "protocol": "Http1", "tls": tls}]}));
    let id = "spiffe://partner.example/ns/shop/sa/orders";
    passes(MESH, by_identity(json!({"identity": id})));
    refused(MESH, by_identity(json!({"identity": "*/sa/orders"})), "tls.identity is not a SPIFFE id");
    refused(
        MESH,
        by_identity(json!({"identity": id, "sni": "a.example"})),
        "remove sni and caBundle, or identity",
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
