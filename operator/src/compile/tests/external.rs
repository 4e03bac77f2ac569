//! Tests of external services: no cluster, nothing but what they make themselves.

use serde_json::{Value, json};
use weft_api::v1;

use super::{compiled, shop};
use crate::compile::{external_for, service};
use crate::index::testing::*;
use crate::index::{Index, ServiceId};

fn registered(key: &str, external: Value) -> Object {
    mesh_service(
        key,
        3,
        0,
        json!({ "target": { "external": external }, "circuitBreaker": { "maxConnections": 7 } }),
    )
}

fn api() -> Value {
    json!({ "hosts": ["api.example.com"], "ports": [
        { "port": 443, "protocol": "Tls" },
        { "port": 80, "protocol": "Grpc", "targetPort": 8443, "tls": {} },
    ] })
}

fn seen(index: &Index, namespace: &str) -> Vec<String> {
    external_for(index, namespace).iter().map(ToString::to_string).collect()
}

#[test]
fn each_port_is_a_service_with_the_whole_treatment() {
    let index = index_of([registered("shop/api", api())]);
    let tls = compiled(&index, "shop/api.external:443");
    assert_eq!(tls.egress, Some(v1::Egress { hosts: vec!["api.example.com".into()] }));
    assert_eq!((tls.protocol(), tls.routes.len()), (v1::Protocol::Tls, 1));
    let cluster = &tls.clusters[0];
    assert_eq!(cluster.breaker.as_ref().unwrap().max_connections, 7);
    assert!(cluster.outlier.is_some() && cluster.tls.is_none());
    let endpoint = &cluster.endpoints[0];
    assert_eq!((&*endpoint.address, &*endpoint.host, endpoint.host_port), ("", "api.example.com", 443));
    assert_eq!((tls.sources[0].kind.as_str(), tls.sources[0].generation), ("MeshService", 3));

    let grpc = compiled(&index, "shop/api.external:80");
    assert_eq!((grpc.protocol(), grpc.clusters[0].endpoints[0].host_port), (v1::Protocol::Http2, 8443));
    let origination = grpc.clusters[0].tls.clone().unwrap();
    assert_eq!((&*origination.sni, origination.roots_der.len()), ("api.example.com", 0));
    assert!(service(&index, &"shop/api.external:81".parse::<ServiceId>().unwrap()).is_none());
}

#[test]
fn written_endpoints_stand_in_place_of_the_host() {
    let root =
        crate::ca::Root::generate(&"cluster.local".parse().unwrap(), std::time::Duration::from_secs(86_400))
            .unwrap();
    let index = index_of([registered(
        "shop/db",
        json!({
            "hosts": ["a.example.com", "*.b.example.com"],
            "ports": [{ "port": 80, "protocol": "Http1", "targetPort": 8443,
                "tls": { "sni": "db.example.com", "caBundle": root.certificate_pem } }],
            "endpoints": [
                { "address": "192.0.2.1" },
                { "address": "2001:db8::1", "port": 9443, "weight": 0 },
                { "address": "db.example.net" },
            ],
        }),
    )]);
    let cluster = compiled(&index, "shop/db.external:80").clusters.remove(0);
    let at: Vec<_> =
        cluster.endpoints.iter().map(|e| (&*e.address, &*e.host, e.host_port, e.weight)).collect();
    assert_eq!(
        at,
        [("192.0.2.1:8443", "", 0, 100), ("[2001:db8::1]:9443", "", 0, 0), ("", "db.example.net", 8443, 100)]
    );
    let origination = cluster.tls.unwrap();
    assert_eq!((&*origination.sni, origination.roots_der.len()), ("db.example.com", 1));
}

#[test]
fn a_policy_for_it_gives_it_routes_and_what_has_no_meaning_is_missing() {
    let target = json!([{ "kind": "MeshService", "name": "api", "port": 80 }]);
    let mut index = index_of([
        registered("shop/api", api()),
        policy("shop/api", 1, 0, json!({ "targetRefs": target, "rules": [{ "timeout": "2s" }] })),
    ]);
    let routes = compiled(&index, "shop/api.external:80").routes;
    assert_eq!((routes.len(), routes[0].timeout_ms), (2, 2000));
    assert_eq!(compiled(&index, "shop/api.external:443").routes.len(), 1);
    let verdict = |index: &Index| index.space("shop").unwrap().settled.policies["api"].missing.clone();
    assert_eq!(verdict(&index), Vec::<String>::new());

    let split = json!([{ "service": "back", "weight": 1 }]);
    let dirty = policy("shop/api", 2, 0, json!({ "targetRefs": target, "rules": [{ "split": split }] }))
        .apply(&mut index);
    assert!(dirty.leader && verdict(&index)[0].contains("is an external service"), "{:?}", verdict(&index));
    let target = json!([{ "kind": "MeshService", "name": "api", "port": 81 }]);
    policy("shop/api", 3, 0, json!({ "targetRefs": target, "rules": [{}] })).apply(&mut index);
    assert!(verdict(&index)[0].contains("has no port 81"));
    assert_eq!(
        compiled(&index, "shop/api.external:80").routes[0].timeout_ms,
        2000,
        "the last good one stays"
    );
}

#[test]
fn a_namespace_sees_its_own_and_the_meshs() {
    let mut index = index_of(shop());
    assert_eq!(seen(&index, "shop"), Vec::<String>::new());
    let dirty = registered("shop/api", api()).apply(&mut index);
    assert!(dirty.external.contains("shop"));
    let dirty = registered(
        "weft-system/web",
        json!({ "hosts": ["*.example.org"],
        "ports": [{ "port": 443, "protocol": "Tls" }], "endpoints": [{ "address": "192.0.2.1" }] }),
    )
    .apply(&mut index);
    assert!(dirty.external.contains("weft-system"));
    registered("other/api", api()).apply(&mut index);
    assert_eq!(
        seen(&index, "shop"),
        ["shop/api.external:443", "shop/api.external:80", "weft-system/web.external:443"]
    );
    assert_eq!(seen(&index, "weft-system"), ["weft-system/web.external:443"]);
}

#[test]
fn of_two_that_register_the_same_the_older_counts() {
    let other = |protocol: &str| json!({ "target": { "external": { "hosts": ["api.example.com"], "ports": [{ "port": 443, "protocol": protocol }] } } });
    let index = index_of([
        registered("shop/api", api()),
        mesh_service("shop/late", 1, 5, other("Tls")),
        mesh_service("shop/plain", 1, 6, other("Http1")),
    ]);
    let verdicts = &index.space("shop").unwrap().settled.mesh_services;
    assert!(verdicts["late"].refused.is_some() && verdicts["late"].in_force.is_none());
    assert_eq!(verdicts["plain"].in_force, Some(1), "by authority, not by server name");
    assert!(!seen(&index, "shop").contains(&"shop/late.external:443".to_owned()));
}

#[test]
fn a_bundle_that_is_no_certificate_is_not_accepted() {
    let bad = json!({ "hosts": ["a.example"], "ports": [{ "port": 80, "protocol": "Http1",
        "tls": { "caBundle": "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----" } }] });
    let index = index_of([registered("shop/bad", bad)]);
    let verdict = &index.space("shop").unwrap().settled.mesh_services["bad"];
    assert!(format!("{:?}", verdict.refused).contains("is not a list of certificates in PEM"));
}
