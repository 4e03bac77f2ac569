//! Tests of `compile` (workloads): no cluster, nothing but what they make themselves.

use serde_json::json;
use weft_api::v1::{MtlsMode, Protocol, probe::Kind};

use super::shop;
use crate::compile::workload;
use crate::index::testing::*;
use crate::index::{Index, Namespace};

fn of(index: &Index, key: &str) -> weft_api::v1::Workload {
    workload(index, index.pod(&key_of(key)).unwrap())
}

#[test]
fn a_workload_knows_its_name_identity_ports_and_service() {
    let mut objects = shop();
    objects[2] = pod_of(
        "shop/back-1",
        json!({"app": "back"}),
        "10.0.0.1",
        true,
        json!({
            "containers": [{ "name": "app", "ports": [{ "name": "http", "containerPort": 8080 }, { "name": "grpc-x", "containerPort": 9000 }] }],
        }),
    );
    let workload = of(&index_of(objects), "shop/back-1");
    assert_eq!(workload.identity, "spiffe://cluster.local/ns/shop/sa/back");
    assert_eq!(workload.mtls(), MtlsMode::Permissive);
    assert_eq!(workload.port_protocol[&8080], Protocol::Http1 as i32);
    assert_eq!(workload.port_protocol[&9000], Protocol::Http2 as i32);
    assert_eq!(workload.port_service[&8080], "shop/back");
    assert_eq!(workload.port_service.get(&9000), None);
}

#[test]
fn the_owner_of_a_pod_is_its_deployment_not_its_replica_set() {
    let owner = |kind: &str, name: &str, labels: serde_json::Value| {
        let object = json!({ "metadata": { "namespace": "shop", "name": "p", "labels": labels,
            "ownerReferences": [{ "apiVersion": "v1", "kind": kind, "name": name, "uid": "u", "controller": true }] } });
        crate::index::Pod::read(serde_json::from_value(object).unwrap()).unwrap().workload
    };
    assert_eq!(owner("ReplicaSet", "back-6d4", json!({"pod-template-hash": "6d4"})), "back");
    assert_eq!(owner("ReplicaSet", "by-hand", json!({})), "by-hand");
    assert_eq!(owner("StatefulSet", "db", json!({"pod-template-hash": "6d4"})), "db");
}

#[test]
fn the_narrowest_peer_authentication_counts_alone() {
    let mode = |mode: &str| json!({ "mtls": { "mode": mode } });
    let mut index = index_of(shop());
    authentication("weft-system/mesh", 0, mode("Strict")).apply(&mut index);
    assert_eq!(of(&index, "shop/back-1").mtls(), MtlsMode::Strict);
    authentication("shop/all", 0, mode("Disable")).apply(&mut index);
    assert_eq!(of(&index, "shop/back-1").mtls(), MtlsMode::Disable);
    let mut narrow = mode("Permissive");
    narrow["selector"] = json!({ "matchLabels": { "app": "back" } });
    narrow["portLevelMtls"] = json!({ "8080": { "mode": "Strict" } });
    let dirty = authentication("shop/back", 5, narrow.clone()).apply(&mut index);
    assert!(dirty.pods.contains(&key_of("shop/back-1")) && dirty.services.contains(&key_of("shop/back")));
    let workload = of(&index, "shop/back-1");
    assert_eq!(workload.mtls(), MtlsMode::Permissive);
    assert_eq!(workload.port_mtls[&8080], MtlsMode::Strict as i32);
    assert_eq!(workload.sources[0].name, "back");
    narrow["mtls"]["mode"] = json!("Strict");
    authentication("shop/a-younger", 9, narrow).apply(&mut index);
    assert_eq!(of(&index, "shop/back-1").mtls(), MtlsMode::Permissive, "the older of two counts");
    assert!(index.space("shop").unwrap().settled.peer_authentications["a-younger"].refused.is_some());
}

#[test]
fn a_selector_in_wefts_own_namespace_governs_only_that_namespace() {
    let mut index = index_of(shop());
    authentication(
        "weft-system/x",
        0,
        json!({ "selector": { "matchLabels": { "app": "back" } }, "mtls": { "mode": "Strict" } }),
    )
    .apply(&mut index);
    assert_eq!(of(&index, "shop/back-1").mtls(), MtlsMode::Permissive);
}

#[test]
fn probes_of_all_containers_pass_with_named_ports_and_hooks() {
    let containers = json!({
        "initContainers": [
            { "name": "weft-proxy", "restartPolicy": "Always", "startupProbe": { "httpGet": { "port": 15020, "path": "/ready" } } },
            { "name": "side", "restartPolicy": "Always", "livenessProbe": { "httpGet": { "port": 7000 } } },
            { "name": "once", "livenessProbe": { "httpGet": { "port": 7001 } } },
        ],
        "containers": [{
            "name": "app", "ports": [{ "name": "health", "containerPort": 8081 }],
            "readinessProbe": { "httpGet": { "port": "health", "path": "healthz?full=1" } },
            "livenessProbe": { "grpc": { "port": 9000, "service": "shop.Back" } },
            "startupProbe": { "tcpSocket": { "port": 1 } },
            "lifecycle": { "preStop": { "httpGet": { "port": "8082", "path": "/stop" } } },
        }],
    });
    let index = index_of([pod_of("shop/p", json!({"app": "p"}), "10.0.0.1", true, containers)]);
    let probes: Vec<_> = of(&index, "shop/p").probes.into_iter().map(|p| (p.port, p.kind.unwrap())).collect();
    assert_eq!(
        probes,
        [
            (7000, Kind::HttpPath("/".into())),
            (8081, Kind::HttpPath("/healthz?full=1".into())),
            (8082, Kind::HttpPath("/stop".into())),
            (9000, Kind::GrpcService("shop.Back".into())),
        ]
    );
}

#[test]
fn a_pod_is_in_the_mesh_only_with_label_and_proxy_and_never_on_the_hosts_network() {
    let mesh = |object: Object| match object {
        Object::Pod(pod) => pod.mesh,
        _ => unreachable!(),
    };
    let label = json!({ "app": "a", "weft.dev/injected": "enabled" });
    assert!(mesh(pod("a/b", "c", "10.0.0.1")));
    assert!(!mesh(pod_of("a/b", label, "10.0.0.1", false, json!({}))));
    assert!(!mesh(pod_of("a/b", json!({"app": "a"}), "10.0.0.1", true, json!({ "hostNetwork": true }))));
}

#[test]
fn a_namespaces_label_counts_before_its_annotation() {
    let read = |labels, annotations| match namespace("a", labels, annotations) {
        Object::Namespace(namespace) => namespace,
        _ => unreachable!(),
    };
    let on = || json!({ "weft.dev/inject": "enabled" });
    let off = || json!({ "weft.dev/inject": "disabled" });
    let said = |n: &Namespace| (n.injected(), n.wanted_mirror());
    assert_eq!(said(&read(json!({}), json!({}))), (false, None));
    assert_eq!(said(&read(json!({}), on())), (true, Some("enabled")));
    assert_eq!(said(&read(on(), json!({}))), (true, None));
    assert_eq!(said(&read(off(), on())), (false, None));
    assert_eq!(said(&read(json!({}), off())), (false, None));
}

#[test]
fn the_bundle_goes_where_proxies_are_or_will_be() {
    let mut index = index_of([
        namespace("on", json!({ "weft.dev/inject": "enabled" }), json!({})),
        namespace("off", json!({}), json!({})),
        namespace("shop", json!({}), json!({})),
        namespace(OWN, json!({}), json!({})),
        pod("shop/p", "p", "10.0.0.1"),
        plain_pod("off/p", "p", "10.0.0.2"),
    ]);
    assert_eq!(index.bundle_namespaces(), ["on", "shop", OWN].map(String::from).into());
    let dirty = pod("shop/p", "p", "10.0.0.1").delete(&mut index);
    assert!(dirty.leader);
    assert_eq!(index.bundle_namespaces(), ["on", OWN].map(String::from).into());
}
