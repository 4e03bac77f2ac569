//! Tests of `compile` (addresses): no cluster, nothing but what they make themselves.

use super::{at, compiled, shop};
use crate::compile::{Target, target};
use crate::index::testing::*;
use crate::index::{Index, ServiceId};

fn id(text: &str) -> ServiceId {
    text.parse().unwrap()
}

fn pinned(service: &str, endpoint: &str) -> Target {
    Target::Pinned(id(service), at(endpoint))
}

#[test]
fn a_cluster_ip_is_its_service_only_at_a_port_of_it() {
    let index = index_of(shop());
    assert_eq!(target(&index, at("10.96.0.1:80")), Target::Service(id("shop/back:80")));
    assert_eq!(target(&index, at("10.96.0.1:81")), Target::External);
    assert_eq!(target(&index, at("[::ffff:10.96.0.1]:80")), Target::Service(id("shop/back:80")));
    assert_eq!(target(&index, at("192.0.2.1:80")), Target::External);
}

#[test]
fn two_services_on_one_port_number_are_told_apart_by_their_address() {
    let mut objects = shop();
    objects.extend([
        service("shop/db", "10.96.0.2", &[("tcp", 5432, 5432)]),
        service("shop/other-db", "10.96.0.3", &[("tcp", 5432, 5432)]),
    ]);
    let index = index_of(objects);
    assert_eq!(target(&index, at("10.96.0.2:5432")), Target::Service(id("shop/db:5432")));
    assert_eq!(target(&index, at("10.96.0.3:5432")), Target::Service(id("shop/other-db:5432")));
}

#[test]
fn external_and_load_balancer_addresses_are_the_service_too() {
    let index = index_of([service_of(
        "shop/front",
        serde_json::json!({
            "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00::9"], "externalIPs": ["198.51.100.7"],
            "ports": [{ "port": 80 }, { "port": 53, "protocol": "UDP" }],
        }),
    )]);
    for address in ["10.96.0.9:80", "[fd00::9]:80", "198.51.100.7:80"] {
        assert_eq!(target(&index, at(address)), Target::Service(id("shop/front:80")), "{address}");
    }
    assert_eq!(target(&index, at("10.96.0.9:53")), Target::External, "a UDP port is no TCP port");
}

#[test]
fn an_endpoint_called_directly_is_pinned_under_the_policy_of_its_service() {
    let index = index_of(shop());
    assert_eq!(target(&index, at("10.0.0.1:8080")), pinned("shop/back:80", "10.0.0.1:8080"));
    let service = compiled(&index, "shop/back:80");
    assert!(service.clusters[0].endpoints.iter().any(|e| e.address == "10.0.0.1:8080"));
}

#[test]
fn another_port_of_a_pod_is_the_pod_itself_with_its_identity() {
    let index = index_of(shop());
    assert_eq!(target(&index, at("10.0.0.1:9090")), pinned("shop/back-1.pod:9090", "10.0.0.1:9090"));
    let service = compiled(&index, "shop/back-1.pod:9090");
    let endpoint = &service.clusters[0].endpoints[0];
    assert_eq!(endpoint.address, "10.0.0.1:9090");
    assert_eq!(endpoint.identity, "spiffe://cluster.local/ns/shop/sa/back");
    assert_eq!(service.default_cluster, service.clusters[0].name);
    assert_eq!(service.routes.len(), 1);
}

#[test]
fn an_endpoint_that_is_not_ready_is_the_pod_itself() {
    let mut objects = shop();
    objects[1] = slice("shop/back", &[("http", 8080)], &[("10.0.0.1", "back-1", false)]);
    let index = index_of(objects);
    assert_eq!(target(&index, at("10.0.0.1:8080")), pinned("shop/back-1.pod:8080", "10.0.0.1:8080"));
}

#[test]
fn headless_services_come_first_and_several_others_are_nobodys() {
    let mut objects = shop();
    let two = |name: &str, ip: &str| {
        [
            service(&format!("shop/{name}"), ip, &[("http", 90, 8080)]),
            slice(&format!("shop/{name}"), &[("http", 8080)], &[("10.0.0.1", "back-1", true)]),
        ]
    };
    objects.extend(two("also", "10.96.0.5"));
    let index = index_of(objects.clone());
    assert_eq!(target(&index, at("10.0.0.1:8080")), pinned("shop/back-1.pod:8080", "10.0.0.1:8080"));
    assert_eq!(target(&index, at("10.0.0.2:8080")), pinned("shop/back:80", "10.0.0.2:8080"));

    objects.extend(two("peers", "None"));
    let index = index_of(objects);
    assert_eq!(target(&index, at("10.0.0.1:8080")), pinned("shop/peers:90", "10.0.0.1:8080"));
}

#[test]
fn node_addresses_and_ended_pods_are_external() {
    let host = pod_of(
        "shop/agent",
        serde_json::json!({"app": "agent"}),
        "192.168.0.1",
        false,
        serde_json::json!({"hostNetwork": true}),
    );
    let mut index = index_of(shop());
    host.apply(&mut index);
    assert_eq!(target(&index, at("192.168.0.1:9100")), Target::External);

    let Object::Pod(mut ended) = pod("shop/job", "job", "10.0.0.9") else { unreachable!() };
    ended.ended = true;
    Object::Pod(ended).apply(&mut index);
    assert_eq!(target(&index, at("10.0.0.9:80")), Target::External);
}

#[test]
fn an_address_that_passes_from_one_pod_to_another_is_the_new_one() {
    let mut index: Index = index_of(shop());
    let Object::Pod(mut old) = pod("shop/back-1", "back", "10.0.0.1") else { unreachable!() };
    old.ended = true;
    let dirty = Object::Pod(old).apply(&mut index);
    assert!(dirty.ips.contains(&at("10.0.0.1:1").ip()));
    pod("shop/thief", "thief", "10.0.0.1").apply(&mut index);
    let endpoint = compiled(&index, "shop/thief.pod:1").clusters[0].endpoints[0].clone();
    assert_eq!(endpoint.identity, "spiffe://cluster.local/ns/shop/sa/thief");
    assert_eq!(target(&index, at("10.0.0.1:1")), pinned("shop/thief.pod:1", "10.0.0.1:1"));
}

/// Services and slices of another namespace that claim what is not theirs.
#[test]
fn nobody_puts_traffic_of_another_namespace_under_its_own_policies() {
    let headless = serde_json::json!({ "clusterIP": "None", "ports": [{ "port": 8080 }] });
    let mut objects = shop();
    objects.extend([
        pod("evil/back-1", "evil", "10.0.9.9"),
        service_of("evil/claims-pod", headless.clone()),
        slice("evil/claims-pod", &[("", 8080)], &[("10.0.0.1", "back-1", true)]),
        service_of("evil/claims-address", headless.clone()),
        slice("evil/claims-address", &[("", 8080)], &[("10.0.0.1", "", true), ("192.0.2.1", "", true)]),
        service_of(
            "evil/external",
            serde_json::json!({
                "clusterIP": "10.96.66.6", "externalIPs": ["10.96.0.1", "10.0.0.1", "198.51.100.1"],
                "ports": [{ "port": 80 }, { "port": 8080 }, { "port": 81 }],
            }),
        ),
    ]);
    // Even in its own namespace a slice names the pod that it means.
    objects.extend([
        service_of("shop/wrong-pod", headless),
        slice("shop/wrong-pod", &[("", 8080)], &[("10.0.0.1", "back-2", true)]),
    ]);
    let index = index_of(objects);
    assert_eq!(target(&index, at("10.0.0.1:8080")), pinned("shop/back:80", "10.0.0.1:8080"));
    assert_eq!(target(&index, at("10.0.0.1:80")), pinned("shop/back-1.pod:80", "10.0.0.1:80"));
    assert_eq!(target(&index, at("10.96.0.1:80")), Target::Service(id("shop/back:80")));
    assert_eq!(target(&index, at("10.96.0.1:81")), Target::External);
    assert_eq!(target(&index, at("192.0.2.1:8080")), Target::External);
    assert_eq!(
        target(&index, at("198.51.100.1:80")),
        Target::Service(id("evil/external:80")),
        "as kube-proxy does"
    );
}
