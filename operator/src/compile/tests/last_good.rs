//! Tests of `compile` (last good): no cluster, nothing but what they make themselves.

use serde_json::json;

use super::{addresses, backends, cluster, compiled, shop};
use crate::index::Index;
use crate::index::space::{Refusal, Verdict};
use crate::index::testing::*;

fn about(generation: i64, subsets: &[&str]) -> Object {
    let subsets: Vec<_> = subsets.iter().map(|n| json!({ "name": n, "labels": { "version": n } })).collect();
    mesh_service("shop/back", generation, 0, json!({ "target": { "service": "back" }, "subsets": subsets }))
}

fn canary(generation: i64, split: serde_json::Value) -> Object {
    policy(
        "shop/canary",
        generation,
        0,
        json!({
            "targetRefs": [{ "kind": "Service", "name": "back" }], "rules": [{ "split": split }],
        }),
    )
}

fn versions() -> Vec<Object> {
    let mut objects = shop();
    objects[2] = pod_of("shop/back-1", json!({"app": "back", "version": "v1"}), "10.0.0.1", true, json!({}));
    objects[3] = pod_of("shop/back-2", json!({"app": "back", "version": "v2"}), "10.0.0.2", true, json!({}));
    objects
}

fn verdict(index: &Index) -> &Verdict {
    &index.space("shop").unwrap().settled.policies["canary"]
}

const NINETY_TEN: [(&str, u32); 2] = [("shop/back:80/v1", 90), ("shop/back:80/v2", 10)];

fn ninety_ten() -> serde_json::Value {
    json!([{ "subset": "v1", "weight": 90 }, { "subset": "v2", "weight": 10 }])
}

#[test]
fn a_subset_that_disappears_stays_in_force_with_its_live_pods_and_is_reported() {
    let mut index = index_of(versions());
    about(1, &["v1", "v2"]).apply(&mut index);
    canary(1, ninety_ten()).apply(&mut index);
    assert_eq!(verdict(&index).missing, [""; 0]);

    about(2, &["v1"]).apply(&mut index);
    let service = compiled(&index, "shop/back:80");
    assert_eq!(backends(&service.routes[0]), NINETY_TEN);
    assert_eq!(addresses(cluster(&service, "shop/back:80/v2")), ["10.0.0.2:8080"]);
    assert!(verdict(&index).missing[0].contains("subset v2"), "{:?}", verdict(&index));

    // Live: the next pod of v2 is in it.
    slice("shop/back", &[("http", 8080)], &[("10.0.0.1", "back-1", true), ("10.0.0.3", "back-3", true)])
        .apply(&mut index);
    pod_of("shop/back-3", json!({"app": "back", "version": "v2"}), "10.0.0.3", true, json!({}))
        .apply(&mut index);
    let service = compiled(&index, "shop/back:80");
    assert_eq!(addresses(cluster(&service, "shop/back:80/v2")), ["10.0.0.3:8080"]);

    // It comes back: nothing is missing any more.
    about(3, &["v1", "v2"]).apply(&mut index);
    assert_eq!(verdict(&index).missing, [""; 0]);
}

#[test]
fn an_edit_that_does_not_resolve_leaves_the_last_good_generation_in_force() {
    let mut index = index_of(versions());
    about(1, &["v1", "v2"]).apply(&mut index);
    canary(1, ninety_ten()).apply(&mut index);
    canary(2, json!([{ "subset": "v3", "weight": 1 }])).apply(&mut index);
    assert_eq!(backends(&compiled(&index, "shop/back:80").routes[0]), NINETY_TEN);
    assert_eq!(verdict(&index).in_force, Some(1));
    canary(3, json!([{ "subset": "v2", "weight": 1 }])).apply(&mut index);
    assert_eq!(backends(&compiled(&index, "shop/back:80").routes[0]), [("shop/back:80/v2", 1)]);
    assert_eq!(verdict(&index).in_force, Some(3));
}

#[test]
fn without_a_last_good_the_share_goes_to_the_others_and_at_last_to_the_whole() {
    let mut objects = versions();
    objects.extend([about(2, &["v1"]), canary(1, ninety_ten())]);
    let mut index = index_of(objects);
    assert_eq!(backends(&compiled(&index, "shop/back:80").routes[0]), [("shop/back:80/v1", 90)]);
    canary(2, json!([{ "subset": "v9", "weight": 1 }])).apply(&mut index);
    assert_eq!(backends(&compiled(&index, "shop/back:80").routes[0]), [("shop/back:80", 1)]);
    assert_eq!(verdict(&index).in_force, Some(2));
}

#[test]
fn a_service_that_is_deleted_is_sent_to_while_pods_of_it_are_left() {
    let mut index = index_of(shop());
    let next = service("shop/next", "10.96.0.7", &[("http", 80, 9090)]);
    let next_slice = slice("shop/next", &[("http", 9090)], &[("10.0.0.7", "next-1", true)]);
    let next_pod = pod("shop/next-1", "next", "10.0.0.7");
    for object in [&next, &next_slice, &next_pod] {
        object.clone().apply(&mut index);
    }
    canary(1, json!([{ "weight": 1 }, { "service": "next", "weight": 1 }])).apply(&mut index);
    let both = [("shop/back:80", 1), ("shop/next:80", 1)];
    assert_eq!(backends(&compiled(&index, "shop/back:80").routes[0]), both);

    // Kubernetes removes the slices of a deleted Service; its pods stay, if something else keeps them.
    next.delete(&mut index);
    next_slice.delete(&mut index);
    let service = compiled(&index, "shop/back:80");
    assert_eq!(backends(&service.routes[0]), both);
    assert_eq!(addresses(cluster(&service, "shop/next:80")), ["10.0.0.7:9090"]);
    assert!(verdict(&index).missing[0].contains("Service next"));

    let dirty = next_pod.delete(&mut index);
    assert!(dirty.services.contains(&key_of("shop/back")), "its pods count, so they are heard of");
    assert_eq!(backends(&compiled(&index, "shop/back:80").routes[0]), [("shop/back:80", 1)]);
}

#[test]
fn an_invalid_resource_is_refused_with_a_reason_and_the_last_good_stays() {
    let mut index = index_of(versions());
    let with = |generation, regex: &str| {
        policy(
            "shop/canary",
            generation,
            0,
            json!({
                "targetRefs": [{ "kind": "Service", "name": "back" }],
                "rules": [{ "match": [{ "path": { "regex": regex } }], "timeout": "1s" }],
            }),
        )
    };
    with(1, "(").apply(&mut index);
    assert_eq!(compiled(&index, "shop/back:80").routes.len(), 1, "nothing of it is in force");
    assert_eq!(verdict(&index).in_force, None);
    with(2, "/a.*").apply(&mut index);
    with(3, "(").apply(&mut index);
    assert_eq!(compiled(&index, "shop/back:80").routes[0].name, "canary/0");
    assert!(matches!(&verdict(&index).refused, Some(Refusal::Invalid(why)) if why.contains("regex")));
    assert_eq!(verdict(&index).in_force, Some(2));

    policy("shop/canary", 4, 0, json!({ "rules": "nonsense" })).apply(&mut index);
    assert!(matches!(&verdict(&index).refused, Some(Refusal::Invalid(_))));
    assert_eq!(verdict(&index).in_force, Some(2));
}

#[test]
fn a_policy_that_is_deleted_and_made_anew_has_no_past() {
    let mut index = index_of(versions());
    about(1, &["v1", "v2"]).apply(&mut index);
    canary(1, ninety_ten()).apply(&mut index);
    canary(1, ninety_ten()).delete(&mut index);
    about(2, &["v1"]).apply(&mut index);
    canary(1, ninety_ten()).apply(&mut index);
    assert_eq!(backends(&compiled(&index, "shop/back:80").routes[0]), [("shop/back:80/v1", 90)]);
}
