//! Weft's resources beside what exists: what is refused, what is a warning, what always passes.

// clippy.toml lets tests unwrap; this says that their helper functions are tests too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use weft_webhook::judge::{Known, judge};
use weft_webhook::review::{Answer, Request};

fn resource(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "weft.dev/v1alpha1", "kind": kind, "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
}

fn request(operation: &str, object: &Value, old: &Value) -> Request {
    let kind = if object.is_null() { old["kind"].clone() } else { object["kind"].clone() };
    serde_json::from_value(
        json!({"uid": "u", "kind": {"group": "weft.dev", "version": "v1alpha1", "kind": kind},
        "namespace": "shop", "operation": operation, "object": object, "oldObject": old}),
    )
    .unwrap()
}

fn created(object: &Value, known: &Known) -> Answer {
    judge(&request("CREATE", object, &Value::Null), known, "weft-system")
}

fn mesh(name: &str, service: &str, subsets: &[&str]) -> Value {
    let subsets: Vec<_> = subsets.iter().map(|s| json!({"name": s, "labels": {"version": s}})).collect();
    resource("MeshService", name, json!({"target": {"service": service}, "subsets": subsets}))
}

fn policy(name: &str, service: &str, split: &Value) -> Value {
    resource(
        "TrafficPolicy",
        name,
        json!({"targetRefs": [{"kind": "Service", "name": service, "port": 80}], "rules": [{"split": split}]}),
    )
}

fn auth(name: &str, mode: &str) -> Value {
    resource("PeerAuthentication", name, json!({"mtls": {"mode": mode}}))
}

fn shop() -> Known {
    let typed = |value: Value| serde_json::from_value(value).map(Arc::new).unwrap();
    Known {
        mesh_services: vec![typed(mesh("back", "back", &["v1", "v2"]))],
        traffic_policies: vec![
            serde_json::from_value(policy("split", "back", &json!([{"subset": "v1", "weight": 1}])))
                .map(Arc::new)
                .unwrap(),
        ],
        request_authentications: Vec::new(),
        trust_domains: Vec::new(),
        peer_authentications: vec![serde_json::from_value(auth("default", "Strict")).map(Arc::new).unwrap()],
        services: BTreeMap::from([("back".into(), vec![80, 9090]), ("front".into(), vec![80])]),
        trust_domain: "cluster.local".into(),
    }
}

fn refusal(answer: &Answer) -> &str {
    answer.refusal.as_ref().map(|(_, sentence)| sentence.as_str()).unwrap_or_default()
}

#[test]
fn good_resources_pass_in_silence() {
    for good in [mesh("front", "front", &["v1"]), policy("front", "front", &json!([]))] {
        assert_eq!(created(&good, &shop()), Answer::allow(vec![]), "{good}");
    }
}

#[test]
fn a_second_mesh_service_for_a_service_is_refused() {
    let answer = created(&mesh("other", "back", &[]), &shop());
    assert_eq!(
        refusal(&answer),
        "spec.target.service: Service back is already described by MeshService back: change that one"
    );
}

#[test]
fn an_external_service_is_no_missing_service_and_is_registered_once() {
    let external = |name: &str, host: &str| {
        let external = json!({"hosts": [host], "ports": [{"port": 443, "protocol": "Tls"}]});
        resource("MeshService", name, json!({"target": {"external": external}}))
    };
    let mut known = shop();
    assert_eq!(created(&external("api", "api.example.com"), &known), Answer::allow(vec![]));
    known.mesh_services.push(Arc::new(serde_json::from_value(external("api", "api.example.com")).unwrap()));
    assert_eq!(created(&external("web", "www.example.com"), &known), Answer::allow(vec![]));
    assert_eq!(
        refusal(&created(&external("late", "api.example.com"), &known)),
        "spec.target.external: api.example.com at port 443 is already registered by MeshService api: change that one"
    );
    let target = json!([{"kind": "MeshService", "name": "api"}]);
    let policy = |rule: Value| resource("TrafficPolicy", "p", json!({"targetRefs": target, "rules": [rule]}));
    assert_eq!(created(&policy(json!({"timeout": "1s"})), &known), Answer::allow(vec![]));
    let answer = created(&policy(json!({"split": [{"service": "back", "weight": 1}]})), &known);
    assert!(
        refusal(&answer).contains("spec.rules[0].split: MeshService api is an external service"),
        "{answer:?}"
    );
}

#[test]
fn a_second_policy_for_a_port_is_refused() {
    let answer = created(&policy("other", "back", &json!([])), &shop());
    assert!(
        refusal(&answer).starts_with(
            "spec.targetRefs[0]: port 80 of Service back is already governed by TrafficPolicy split"
        ),
        "{answer:?}"
    );
}

#[test]
fn a_second_peer_authentication_for_a_namespace_is_refused() {
    assert!(
        refusal(&created(&auth("other", "Permissive"), &shop()))
            .contains("PeerAuthentication shop/default already governs all of namespace shop")
    );
}

#[test]
fn an_unknown_subset_is_refused_with_what_to_create_first() {
    let unknown = resource(
        "TrafficPolicy",
        "p",
        json!({"targetRefs": [{"kind": "Service", "name": "back", "port": 9090}],
        "rules": [{"split": [{"subset": "v9", "weight": 1}]}]}),
    );
    let answer = created(&unknown, &shop());
    assert!(
        refusal(&answer)
            .contains("spec.rules[0].split[0].subset: subset v9 does not exist in MeshService back"),
        "{answer:?}"
    );
    assert!(refusal(&answer).contains("create it first"));
}

#[test]
fn an_expression_that_does_not_compile_is_refused() {
    let bad = resource(
        "TrafficPolicy",
        "p",
        json!({"targetRefs": [{"kind": "Service", "name": "front"}], "rules": [{"match": [{"path": {"regex": "("}}]}]}),
    );
    assert!(
        refusal(&created(&bad, &shop()))
            .contains("spec.rules[0].match[0].path.regex: the regular expression does not compile")
    );
}

#[test]
fn a_service_that_does_not_exist_yet_is_a_warning() {
    for early in [mesh("m", "later", &[]), policy("p", "later", &json!([]))] {
        let answer = created(&early, &shop());
        assert!(
            answer.refusal.is_none() && answer.warnings[0].contains("Service later does not exist yet"),
            "{answer:?}"
        );
    }
    let port = resource(
        "TrafficPolicy",
        "p",
        json!({"targetRefs": [{"kind": "Service", "name": "front", "port": 81}], "rules": [{}]}),
    );
    assert!(created(&port, &shop()).warnings[0].contains("Service front has no port 81"));
}

#[test]
fn taking_a_subset_away_from_under_a_policy_is_a_warning() {
    let (old, new) = (mesh("back", "back", &["v1", "v2"]), mesh("back", "back", &["v2"]));
    let answer = judge(&request("UPDATE", &new, &old), &shop(), "weft-system");
    assert!(
        answer.refusal.is_none()
            && answer.warnings[0].contains("TrafficPolicy split sends to a subset that this takes away"),
        "{answer:?}"
    );
}

#[test]
fn an_update_of_itself_is_no_conflict() {
    let (old, new) = (
        policy("split", "back", &json!([{"subset": "v1", "weight": 1}])),
        policy("split", "back", &json!([{"subset": "v2", "weight": 1}])),
    );
    assert_eq!(judge(&request("UPDATE", &new, &old), &shop(), "weft-system"), Answer::allow(vec![]));
}

#[test]
fn deletion_and_what_leaves_the_spec_alone_always_pass() {
    let bad = policy("other", "back", &json!([{"subset": "v9", "weight": 1}]));
    let mut labelled = bad.clone();
    labelled["metadata"]["labels"] = json!({"a": "b"});
    let mut going = policy("other", "back", &json!([{"subset": "v8", "weight": 1}]));
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    for (operation, new, old) in
        [("UPDATE", &labelled, &bad), ("UPDATE", &going, &bad), ("DELETE", &Value::Null, &bad)]
    {
        assert_eq!(
            judge(&request(operation, new, old), &shop(), "weft-system"),
            Answer::allow(vec![]),
            "{operation}"
        );
    }
}

#[test]
fn what_is_not_the_kind_that_it_says_is_refused() {
    let odd = resource("TrafficPolicy", "p", json!({"targetRefs": "back"}));
    assert!(refusal(&created(&odd, &shop())).starts_with("it is not a TrafficPolicy"));
}

#[test]
fn an_authorization_policy_that_makes_no_sense_is_refused_and_what_is_seldom_meant_is_a_warning() {
    let policy = |action: &str, rule: Value| {
        resource("AuthorizationPolicy", "p", json!({"action": action, "rules": [rule]}))
    };
    let from = |id: &str| json!({"from": [{"identities": [id]}]});
    let bad = created(&policy("Allow", from("spiffe://cluster.local/ns/shop*")), &shop());
    assert!(refusal(&bad).starts_with("spec.rules[0].from[0].identities[0]: "), "{}", refusal(&bad));
    let strange = created(&policy("Allow", from("spiffe://other.example/ns/shop/sa/a")), &shop());
    assert!(strange.refusal.is_none() && strange.warnings[0].contains("trust domain cluster.local"));
    assert_eq!(created(&policy("Allow", from("*/sa/front")), &shop()), Answer::allow(vec![]));
    let nothing = created(&resource("AuthorizationPolicy", "p", json!({"action": "Allow"})), &shop());
    assert!(nothing.refusal.is_none() && nothing.warnings[0].contains("allows nothing"));
}

#[test]
fn a_request_authentication_says_whose_keys_count_once() {
    let of = |name: &str, jwks: &str| {
        let issuer = json!({"issuer": "https://a.example", "audiences": ["shop"], "jwks": jwks});
        resource("RequestAuthentication", name, json!({"issuers": [issuer]}))
    };
    let keys =
        r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    assert_eq!(created(&of("first", keys), &shop()), Answer::allow(vec![]));
    let bad = created(&of("first", r#"{"keys":[{"kty":"oct","k":"AQAB"}]}"#), &shop());
    assert!(refusal(&bad).starts_with("spec.issuers[0].jwks: "), "{}", refusal(&bad));
    let mut known = shop();
    known.request_authentications = vec![serde_json::from_value(of("first", keys)).map(Arc::new).unwrap()];
    let second = created(&of("second", keys), &known);
    assert!(refusal(&second).contains("RequestAuthentication first already says"), "{}", refusal(&second));
    assert_eq!(created(&of("first", keys), &known), Answer::allow(vec![]), "itself");
    let mut warned = of("first", keys);
    warned["spec"]["issuers"][0]["audiences"] = json!([]);
    assert!(created(&warned, &shop()).warnings[0].contains("without audiences"));
}

#[test]
fn a_trust_domain_is_not_the_own_one_stands_once_and_in_the_own_namespace() {
    const ROOT: &str = include_str!("../../crds/src/validate/trust_domain/root.pem");
    let domain = |name: &str, namespace: &str, trust_domain: &str| {
        let mut object = resource("TrustDomain", name, json!({"trustDomain": trust_domain, "pem": ROOT}));
        object["metadata"]["namespace"] = namespace.into();
        object
    };
    let judged = |object: &Value, known: &Known| {
        let mut asked = request("CREATE", object, &Value::Null);
        asked.namespace = object["metadata"]["namespace"].as_str().unwrap().into();
        judge(&asked, known, "weft-system")
    };
    let mut known = shop();
    assert_eq!(judged(&domain("p", "weft-system", "partner.example"), &known), Answer::allow(vec![]));
    let answer = judged(&domain("p", "shop", "partner.example"), &known);
    assert!(refusal(&answer).contains("apply it in weft-system"), "{answer:?}");
    let answer = judged(&domain("p", "weft-system", "cluster.local"), &known);
    assert!(refusal(&answer).contains("this mesh's own trust domain"), "{answer:?}");
    let mut empty = domain("p", "weft-system", "partner.example");
    empty["spec"]["pem"] = "-----BEGIN CERTIFICATE-----".into();
    assert!(refusal(&judged(&empty, &known)).contains("not a list of certificates"));
    let there = serde_json::from_value(domain("older", "weft-system", "partner.example")).unwrap();
    known.trust_domains.push(Arc::new(there));
    let answer = judged(&domain("p", "weft-system", "partner.example"), &known);
    assert!(refusal(&answer).contains("named by TrustDomain older already"), "{answer:?}");
    assert_eq!(judged(&domain("older", "weft-system", "partner.example"), &known), Answer::allow(vec![]));
}
