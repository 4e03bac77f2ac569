//! Tests of `compile` (balancing): no cluster, nothing but what they make themselves.

use serde_json::{Value, json};
use weft_api::v1::{self, hash::Key};

use super::{compiled, shop};
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
