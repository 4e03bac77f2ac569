//! Tests of what pods may call outside of the cluster: no cluster, nothing but what they make themselves.

use serde_json::json;
use weft_api::v1::OutboundPolicy::{AllowAny, RegisteredOnly};

use super::shop;
use crate::compile::workload;
use crate::index::testing::*;
use crate::index::{Index, OutboundPolicy};

fn policy(index: &Index) -> weft_api::v1::OutboundPolicy {
    workload(index, index.pod(&key_of("shop/back-1")).unwrap()).outbound_policy()
}

fn annotation(word: &str) -> serde_json::Value {
    json!({ "weft.dev/outbound-policy": word })
}

#[test]
fn a_pods_own_word_counts_before_its_namespaces_before_the_meshs() {
    let mut index = index_of(shop());
    assert_eq!(policy(&index), AllowAny);
    index.outbound_policy = OutboundPolicy::RegisteredOnly;
    assert_eq!(policy(&index), RegisteredOnly);
    let dirty = namespace("shop", json!({}), annotation("AllowAny")).apply(&mut index);
    assert!(dirty.pods.contains(&key_of("shop/back-1")), "its pods are told");
    assert_eq!(policy(&index), AllowAny);
    annotated_pod("shop/back-1", "10.0.0.1", annotation("RegisteredOnly")).apply(&mut index);
    assert_eq!(policy(&index), RegisteredOnly);
    annotated_pod("shop/back-1", "10.0.0.1", annotation("registered")).apply(&mut index);
    assert_eq!(policy(&index), AllowAny, "what means nothing does not count");
}
