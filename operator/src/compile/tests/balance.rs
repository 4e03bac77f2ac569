//! Tests of `compile` (balancing): no cluster, nothing but what they make themselves.

use serde_json::{Value, json};
use weft_api::v1::{self, hash::Key};

use super::{compiled, shop};
use crate::index::Index;
use crate::index::testing::*;

fn with(balancer: &Value) -> v1::Cluster {
    let mut objects = shop();
    objects[3] = pod_of("shop/back-2", json!({"app": "back", "tier": "warm"}), "10.0.0.2", true, json!({}));
    let spec = json!({ "target": { "service": "back" }, "balancer": balancer });
    objects.push(mesh_service("shop/back", 1, 0, spec));
    compiled(&index_of(objects), "shop/back:80").clusters.remove(0)
}

#[test]
fn nothing_said_is_nothing_sent() {
    let cluster = with(&json!({}));
    assert_eq!(cluster.balancer(), v1::Balancer::PeakEwma);
    assert_eq!((cluster.hash, cluster.slow_start), (None, None));
    assert_eq!((cluster.locality, cluster.panic_threshold_percent), (0, 0));
    assert!(cluster.endpoints.iter().all(|e| e.priority == 0));
}

#[test]
fn every_key_is_told() {
    let key = |hash: Value| with(&json!({ "policy": "RingHash", "hash": hash })).hash.unwrap().key.unwrap();
    assert_eq!(key(json!({ "header": "X-User" })), Key::Header("x-user".into()));
    assert_eq!(key(json!({ "query": "User" })), Key::Query("User".into()));
    assert_eq!(key(json!({ "sourceIp": true })), Key::SourceIp(true));
    let cookie = |ttl_ms| Key::Cookie(v1::HashCookie { name: "id".into(), ttl_ms });
    assert_eq!(key(json!({ "cookie": { "name": "id" } })), cookie(0));
    assert_eq!(key(json!({ "cookie": { "name": "id", "ttl": "90s" } })), cookie(90_000));
    let ring = with(&json!({ "policy": "RingHash", "hash": { "sourceIp": true, "ringPoints": 99 } }));
    assert_eq!((ring.balancer(), ring.hash.unwrap().ring_points), (v1::Balancer::RingHash, 99));
}

#[test]
fn source_ip_hash_is_maglev_by_address() {
    let cluster = with(&json!({ "policy": "SourceIpHash" }));
    assert_eq!(cluster.balancer(), v1::Balancer::Maglev);
    assert_eq!(cluster.hash.unwrap().key, Some(Key::SourceIp(true)));
}

#[test]
fn a_hash_that_was_stored_without_its_key_falls_back() {
    assert_eq!(with(&json!({ "policy": "Maglev" })).balancer(), v1::Balancer::PeakEwma);
}

#[test]
fn slow_start_locality_and_threshold_are_told() {
    let cluster = with(&json!({
        "slowStart": { "window": "30s" }, "locality": { "mode": "Prefer" }, "panicThreshold": 40,
    }));
    assert_eq!(cluster.slow_start, Some(v1::SlowStart { window_ms: 30_000, aggression: 1 }));
    assert_eq!((cluster.locality(), cluster.panic_threshold_percent), (v1::Locality::Prefer, 40));
    let strict =
        |within: Value| with(&json!({ "locality": { "mode": "Strict", "within": within } })).locality();
    assert_eq!(strict(json!(null)), v1::Locality::Zone);
    assert_eq!(strict(json!("Zone")), v1::Locality::Zone);
    assert_eq!(strict(json!("Region")), v1::Locality::Region);
}

#[test]
fn the_first_entry_of_failover_that_fits_is_the_priority_and_none_is_the_last() {
    let priorities = |failover: Value| -> Vec<u32> {
        with(&json!({ "failover": failover })).endpoints.iter().map(|e| e.priority).collect()
    };
    assert_eq!(priorities(json!([{ "labels": { "tier": "warm" } }])), [1, 0]);
    assert_eq!(
        priorities(json!([{ "labels": { "tier": "hot" } }, { "labels": { "tier": "warm" } }])),
        [2, 1]
    );
    assert_eq!(
        priorities(json!([{ "labels": { "app": "back" } }, { "labels": { "tier": "warm" } }])),
        [0, 0]
    );
}

fn on(pod: &str, app: &str, ip: &str, node: &str) -> Object {
    pod_of(pod, json!({ "app": app }), ip, true, json!({ "nodeName": node }))
}

#[test]
fn endpoints_and_workloads_are_where_their_nodes_are_whatever_is_known_first() {
    let mut objects = shop();
    objects[2] = on("shop/back-1", "back", "10.0.0.1", "n1");
    objects[3] = on("shop/back-2", "back", "10.0.0.2", "n2");
    objects.push(on("shop/front-1", "front", "10.0.0.3", "n2"));
    let mut index = index_of(objects);
    let places = |index: &Index| -> Vec<(String, String)> {
        let cluster = compiled(index, "shop/back:80").clusters.remove(0);
        cluster.endpoints.into_iter().map(|e| (e.zone, e.region)).collect()
    };
    let pair = |zone: &str, region: &str| (zone.to_owned(), region.to_owned());
    assert_eq!(places(&index), [pair("", ""), pair("", "")]);
    let before = index.service_version(&key_of("shop/back"));
    node("n1", "a", "r").apply(&mut index);
    assert!(index.service_version(&key_of("shop/back")) > before);
    let dirty = node("n2", "b", "r").apply(&mut index);
    for pod in ["shop/back-2", "shop/front-1"] {
        assert!(dirty.pods.contains(&key_of(pod)), "{dirty:?}");
    }
    assert!(!dirty.pods.contains(&key_of("shop/back-1")));
    assert_eq!(places(&index), [pair("a", "r"), pair("b", "r")]);
    let front = index.pod(&key_of("shop/front-1")).unwrap();
    let own = crate::compile::workload(&index, front);
    assert_eq!((own.zone.as_str(), own.region.as_str()), ("b", "r"));
    // The same again is no change, and a node that goes takes its place with it.
    assert!(node("n2", "b", "r").apply(&mut index).is_empty());
    node("n2", "b", "r").delete(&mut index);
    assert_eq!(places(&index), [pair("a", "r"), pair("", "")]);
}

#[test]
fn the_zone_of_a_slice_counts_before_that_of_the_node() {
    let mut objects = shop();
    if let Object::Slice(slice) = &mut objects[1] {
        slice.endpoints[0].zone = "hinted".into();
    }
    objects[2] = on("shop/back-1", "back", "10.0.0.1", "n1");
    objects.push(node("n1", "a", "r"));
    let cluster = compiled(&index_of(objects), "shop/back:80").clusters.remove(0);
    assert_eq!((cluster.endpoints[0].zone.as_str(), cluster.endpoints[0].region.as_str()), ("hinted", "r"));
}
