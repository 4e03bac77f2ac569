//! Tests of `world`: no cluster, nothing but what they make themselves.

use super::*;
use crate::mesh_pod::tests::pod;
use serde_json::{Value, json};

fn mesh_service(name: &str, service: &str, created: &str) -> MeshService {
    serde_json::from_value(json!({"apiVersion": "weft.dev/v1alpha1", "kind": "MeshService",
        "metadata": {"name": name, "namespace": "shop", "creationTimestamp": created},
        "spec": {"target": {"service": service}, "subsets": [{"name": "v2", "labels": {"version": "v2"}}]}}))
    .unwrap()
}

fn peer(namespace: &str, name: &str, selector: Value, mode: &str) -> PeerAuthentication {
    let mut spec = json!({"mtls": {"mode": mode}});
    if !selector.is_null() {
        spec["selector"] = json!({"matchLabels": selector});
    }
    serde_json::from_value(json!({"apiVersion": "weft.dev/v1alpha1", "kind": "PeerAuthentication",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec}))
    .unwrap()
}

fn authorizing(namespace: &str, name: &str, selector: Value) -> AuthorizationPolicy {
    let mut spec =
        json!({"action": "Deny", "dryRun": true, "rules": [{"name": "admin", "to": [{"ports": [80]}]}]});
    if !selector.is_null() {
        spec["selector"] = json!({"matchLabels": selector});
    }
    serde_json::from_value(json!({"apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec}))
    .unwrap()
}

fn world() -> World {
    World {
        root: "weft-system".into(),
        namespace: "shop".into(),
        pods: vec![
            pod("back-1", json!({"app": "back", "version": "v1"}), true),
            pod("back-2", json!({"app": "back", "version": "v2"}), true),
            pod("old", json!({"app": "old"}), false),
        ],
        services: vec![
            serde_json::from_value(json!({"metadata": {"name": "back", "namespace": "shop"},
            "spec": {"selector": {"app": "back"}, "ports": [{"port": 80, "name": "http"}]}}))
            .unwrap(),
        ],
        mesh_services: vec![
            mesh_service("young", "back", "2026-01-02T00:00:00Z"),
            mesh_service("first", "back", "2026-01-01T00:00:00Z"),
        ],
        traffic_policies: vec![
            serde_json::from_value(json!({"apiVersion": "weft.dev/v1alpha1", "kind": "TrafficPolicy",
            "metadata": {"name": "canary", "namespace": "shop"},
            "spec": {"targetRefs": [{"kind": "MeshService", "name": "first", "port": 80}],
                     "rules": [{"split": [{"subset": "v2", "weight": 1}, {"subset": "v3", "weight": 1}]}]}}))
            .unwrap(),
        ],
        peer_authentications: vec![
            peer("weft-system", "mesh", Value::Null, "Strict"),
            peer("shop", "all", Value::Null, "Permissive"),
            peer("shop", "back", json!({"app": "back"}), "Strict"),
            peer("weft-system", "own", json!({"app": "back"}), "Disable"),
        ],
        authorization_policies: vec![
            authorizing("shop", "admins", json!({"app": "back"})),
            authorizing("shop", "nobody", json!({"app": "none"})),
            authorizing("weft-system", "mesh", Value::Null),
            authorizing("weft-system", "own", json!({"app": "back"})),
        ],
        request_authentications: vec![
            requests("shop", "users", json!({"app": "back"})),
            requests("weft-system", "own", json!({"app": "back"})),
        ],
    }
}

fn requests(namespace: &str, name: &str, selector: Value) -> RequestAuthentication {
    let issuer = json!({"issuer": "https://a.example", "jwksUri": "https://a.example/keys"});
    serde_json::from_value(json!({"apiVersion": "weft.dev/v1alpha1", "kind": "RequestAuthentication",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"matchLabels": selector}, "issuers": [issuer]}}))
    .unwrap()
}

#[test]
fn a_pod_names_whose_tokens_it_takes_and_a_request_authentication_its_pods() {
    let facts = world().about_pod("back-1").unwrap();
    assert_eq!(detail(&facts, "request authentication", "shop/users"), Some("tokens of https://a.example"));
    assert_eq!(facts.iter().filter(|f| f.aspect == "request authentication").count(), 1);
    let facts = world().about_request_authentication("users").unwrap();
    let issuer = detail(&facts, "issuer", "https://a.example");
    assert_eq!(issuer, Some("keys from https://a.example/keys; any audience"));
    assert_eq!(detail(&facts, "pod", "shop/back-1"), Some("enforced by its proxy"));
    assert!(world().about_request_authentication("own").is_none(), "it belongs to another namespace");
}

fn detail<'a>(facts: &'a [Fact], aspect: &str, name: &str) -> Option<&'a str> {
    facts.iter().find(|f| f.aspect == aspect && f.name == name).map(|f| f.detail.as_str())
}

#[test]
fn a_pod_names_the_narrowest_peer_authentication_its_subset_and_its_policies() {
    let facts = world().about_pod("back-2").unwrap();
    assert_eq!(detail(&facts, "peer authentication", "shop/back"), Some("Strict"));
    assert_eq!(detail(&facts, "mesh service", "first"), Some("in subset v2"));
    assert_eq!(detail(&facts, "traffic policy", "canary"), Some("port 80 of back, 1 rule(s)"));
    let facts = world().about_pod("old").unwrap();
    assert!(detail(&facts, "mesh", "outside").is_some());
    assert_eq!(detail(&facts, "peer authentication", "shop/all"), Some("Permissive"));
}

#[test]
fn a_service_says_which_of_two_mesh_services_counts() {
    let facts = world().about_service("back").unwrap();
    assert!(detail(&facts, "mesh service", "first").unwrap().starts_with("PeakEwma"));
    assert!(detail(&facts, "mesh service", "young").unwrap().starts_with("ignored"));
    assert_eq!(detail(&facts, "pod", "back-2"), Some("in the mesh, subset v2"));
    assert!(world().about_service("none").is_none());
}

#[test]
fn a_traffic_policy_names_its_pods_and_what_does_not_exist() {
    let facts = world().about_traffic_policy("canary").unwrap();
    assert!(detail(&facts, "target", "back").unwrap().starts_with("port 80"));
    assert!(detail(&facts, "pod", "back-1").is_some());
    assert!(facts.iter().any(|f| f.aspect == "unresolved" && f.detail.contains("v3")));
}

#[test]
fn a_peer_authentication_says_where_it_has_no_effect() {
    let facts = world().about_peer_authentication("all").unwrap();
    assert_eq!(detail(&facts, "pod", "shop/back-1"), Some("no effect: shop/back is narrower or older"));
    let facts = world().about_peer_authentication("back").unwrap();
    assert_eq!(detail(&facts, "pod", "shop/back-1"), Some("in force"));
    assert!(world().about_peer_authentication("mesh").is_none(), "it belongs to another namespace");
}

#[test]
fn an_external_service_says_where_it_is() {
    let mut world = world();
    let external =
        json!({"hosts": ["api.example.com"], "ports": [{"port": 80, "protocol": "Http1", "tls": {}}]});
    world.mesh_services.push(
        serde_json::from_value(json!({"apiVersion": "weft.dev/v1alpha1", "kind": "MeshService",
        "metadata": {"name": "api", "namespace": "shop"}, "spec": {"target": {"external": external}}}))
        .unwrap(),
    );
    let facts = world.about_mesh_service("api").unwrap();
    assert_eq!(
        detail(&facts, "external service", "api"),
        Some("api.example.com; ports 80 (Http1, TLS by the proxy); at the host, resolved by each proxy")
    );
}

#[test]
fn all_authorization_policies_that_select_a_pod_are_named_and_each_says_what_it_selects() {
    let facts = world().about_pod("back-1").unwrap();
    let effect = Some("Deny, 1 rule(s), in dry run");
    assert_eq!(detail(&facts, "authorization policy", "shop/admins"), effect);
    assert_eq!(detail(&facts, "authorization policy", "weft-system/mesh"), effect);
    assert_eq!(facts.iter().filter(|f| f.aspect == "authorization policy").count(), 2);
    let facts = world().about_authorization_policy("admins").unwrap();
    assert_eq!(detail(&facts, "governs", "pods with app=back"), effect);
    assert_eq!(detail(&facts, "rule", "admin"), Some("to: 1"));
    assert_eq!(detail(&facts, "pod", "shop/back-1"), Some("enforced by its proxy"));
    let facts = world().about_authorization_policy("nobody").unwrap();
    assert_eq!(detail(&facts, "pod", "-"), Some("it selects no pod of the mesh"));
    assert!(world().about_authorization_policy("mesh").is_none(), "it belongs to another namespace");
}
