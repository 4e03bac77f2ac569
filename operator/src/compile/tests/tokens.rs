//! Tests of `compile` (tokens): no cluster, nothing but what they make themselves.

use std::sync::Arc;

use serde_json::{Value, json};
use weft_api::v1::{self, TokenAlgorithm, token_location::At};
use weft_crds::validate::jwks;

use super::shop;
use crate::compile::workload;
use crate::index::testing::*;
use crate::index::{Change, Index, KeySet, KeySource};

const JWKS: &str =
    r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"k","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

fn of(index: &Index, key: &str) -> v1::Workload {
    workload(index, index.pod(&key_of(key)).unwrap())
}

fn issuers(index: &Index, key: &str) -> Vec<String> {
    let all = of(index, key).tokens.map(|tokens| tokens.issuers).unwrap_or_default();
    all.iter().map(|issuer| format!("{} by {}", issuer.issuer, issuer.policy)).collect()
}

fn given(selector: Value, names: &[&str]) -> Value {
    let issuers: Vec<Value> = names.iter().map(|name| json!({ "issuer": name, "jwks": JWKS })).collect();
    let mut spec = json!({ "issuers": issuers });
    if !selector.is_null() {
        spec["selector"] = json!({ "matchLabels": { "app": selector } });
    }
    spec
}

#[test]
fn all_that_select_a_pod_count_together_and_of_one_issuer_the_narrowest() {
    let mut index = index_of(shop());
    assert!(of(&index, "shop/back-1").tokens.is_none());
    let dirty = requests("shop/wide", 1, given(Value::Null, &["a", "b"])).apply(&mut index);
    assert!(dirty.pods.contains(&key_of("shop/back-1")) && dirty.services.is_empty());
    requests("shop/narrow", 2, given(json!("back"), &["b", "c"])).apply(&mut index);
    requests("shop/other", 2, given(json!("other"), &["x"])).apply(&mut index);
    requests("weft-system/mesh", 1, given(Value::Null, &["a", "m"])).apply(&mut index);
    requests("weft-system/own", 1, given(json!("back"), &["y"])).apply(&mut index);
    requests("bank/x", 1, given(Value::Null, &["z"])).apply(&mut index);
    let all = ["b by shop/narrow", "c by shop/narrow", "a by shop/wide", "m by weft-system/mesh"];
    assert_eq!(issuers(&index, "shop/back-1"), all);
    let sources = of(&index, "shop/back-1").sources;
    assert_eq!(sources.iter().filter(|s| s.kind == "RequestAuthentication").count(), 3);
    // Of two for the same workloads the older counts, whole.
    requests("shop/late", 9, given(Value::Null, &["d", "a"])).apply(&mut index);
    let verdict = &index.space("shop").unwrap().settled.request_authentications["late"];
    assert!(verdict.refused.is_some() && verdict.in_force.is_none());
    assert_eq!(issuers(&index, "shop/back-1"), all);
    // It comes into force when the older one goes.
    let dirty = requests("shop/wide", 1, given(Value::Null, &["a", "b"])).delete(&mut index);
    assert!(dirty.pods.contains(&key_of("shop/back-1")));
    let now =
        ["b by shop/narrow", "c by shop/narrow", "d by shop/late", "a by shop/late", "m by weft-system/mesh"];
    assert_eq!(issuers(&index, "shop/back-1"), now);
}

#[test]
fn every_field_is_told_to_the_proxy() {
    let spec = json!({ "selector": { "matchLabels": { "app": "back" } }, "issuers": [
        { "issuer": "https://a.example", "audiences": ["shop"], "leeway": "30s", "jwks": JWKS,
          "locations": [{ "header": { "name": "X-Token", "prefix": "JWT " } }, { "cookie": "session" }, { "query": "token" }],
          "claimsToHeaders": [{ "header": "x-user", "claim": "a.b" }], "forwardToken": false },
        { "issuer": "plain", "jwksUri": "https://b.example/keys", "jwksCaBundle": null } ] });
    let mut index = index_of(shop());
    requests("shop/users", 1, spec).apply(&mut index);
    let tokens = of(&index, "shop/back-1").tokens.unwrap();
    let [first, second] = tokens.issuers.as_slice() else { panic!("{tokens:?}") };
    assert_eq!(
        (tokens.level, &*first.issuer, first.leeway_ms, first.forward),
        (1, "https://a.example", 30_000, false)
    );
    assert_eq!((first.audiences.as_slice(), &*first.policy), (&["shop".to_owned()][..], "shop/users"));
    let key = &first.keys[0];
    assert_eq!((&*key.kid, key.algorithm(), key.key.len()), ("k", TokenAlgorithm::Eddsa, 32));
    let header =
        |name: &str, prefix: &str| At::Header(v1::TokenHeader { name: name.into(), prefix: prefix.into() });
    let places =
        |issuer: &v1::TokenIssuer| issuer.locations.iter().map(|l| l.at.clone().unwrap()).collect::<Vec<_>>();
    assert_eq!(
        places(first),
        [header("x-token", "JWT "), At::Cookie("session".into()), At::Query("token".into())]
    );
    assert_eq!(
        (&*first.claim_headers[0].header, first.claim_headers[0].claim.join("|")),
        ("x-user", "a|b".into())
    );
    assert_eq!(
        (second.leeway_ms, second.forward, places(second)),
        (60_000, true, vec![header("authorization", "Bearer ")])
    );
    assert!(
        second.keys.is_empty() && second.keys_pending,
        "not fetched yet: a proxy that has some keeps them"
    );
    assert_eq!(
        (&*first.key_source, first.keys_pending, &*second.key_source),
        ("", false, "https://b.example/keys")
    );
}

#[test]
fn fetched_keys_reach_the_pods_and_a_failure_keeps_the_last_ones_and_is_said() {
    let spec = json!({ "issuers": [{ "issuer": "a", "jwksUri": "https://a.example/keys", "jwksCaBundle":
        "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n" }] });
    let mut index = index_of(shop());
    requests("shop/users", 1, spec).apply(&mut index);
    let sources: Vec<KeySource> = index.key_sources().into_iter().collect();
    assert!(sources.len() == 1 && sources[0].ca_bundle.is_some());
    let missing =
        |index: &Index| index.space("shop").unwrap().settled.request_authentications["users"].missing.clone();
    assert!(
        missing(&index)[0].contains("not fetched yet; until there are some, all tokens of it are refused")
    );
    let keys = Some(Arc::new(jwks::read(JWKS).unwrap()));
    let set = |problem: Option<&str>| KeySet {
        source: sources[0].clone(),
        keys: keys.clone(),
        problem: problem.map(str::to_owned),
    };
    let dirty = index.apply(Change::Apply(set(None)));
    assert!(dirty.pods.contains(&key_of("shop/back-1")) && dirty.leader);
    let told = of(&index, "shop/back-1").tokens.unwrap().issuers.remove(0);
    assert!(told.keys.len() == 1 && !told.keys_pending);
    assert!(missing(&index).is_empty());
    assert!(index.apply(Change::Apply(set(None))).is_empty(), "the same again");
    index.apply(Change::Apply(set(Some("answered 500"))));
    assert!(missing(&index)[0].ends_with("answered 500; the last ones that were fetched stay in force"));
    assert_eq!(of(&index, "shop/back-1").tokens.unwrap().issuers[0].keys.len(), 1);
}

#[test]
fn one_that_makes_no_sense_leaves_its_last_good_form_in_force() {
    let mut index = index_of(shop());
    requests("shop/users", 1, given(Value::Null, &["a"])).apply(&mut index);
    requests("shop/users", 1, json!({ "issuers": [{ "issuer": "b", "jwks": "{}" }] })).apply(&mut index);
    assert_eq!(issuers(&index, "shop/back-1"), ["a by shop/users"]);
    requests("shop/users", 1, given(Value::Null, &["a", "a"])).apply(&mut index);
    let verdict = &index.space("shop").unwrap().settled.request_authentications["users"];
    assert!(verdict.refused.is_some() && verdict.in_force == Some(1));
}

/// Key sets and tokens of issuers that others wrote, through the operator's compilation into a proxy's snapshot.
#[test]
fn tokens_of_issuers_in_other_languages_are_taken() {
    use weft_proxy::snapshot::Snapshot;
    use weft_proxy::token::{memory::Memory, now};
    let made: Value = serde_json::from_str(include_str!("issuers/pyjwt.json")).unwrap();
    let issuer = json!({ "issuer": made["issuer"], "audiences": ["shop"], "jwks": made["jwks"].to_string() });
    let mut index = index_of(shop());
    requests("shop/users", 1, json!({ "issuers": [issuer] })).apply(&mut index);
    let update = v1::ToProxy { version: 1, workload: Some(of(&index, "shop/back-1")), ..Default::default() };
    let (snapshot, rejections) = Snapshot::default().apply(&update);
    assert!(rejections.is_empty(), "{rejections:?}");
    let tokens = snapshot.workload.as_ref().unwrap().tokens.clone().unwrap();
    let tokens_made = made["tokens"].as_object().unwrap();
    assert_eq!(tokens_made.len(), 4);
    for (algorithm, token) in tokens_made {
        let judge = |token: &str| {
            let value = format!("Bearer {token}").parse().unwrap();
            let mut headers = http::HeaderMap::from_iter([(http::header::AUTHORIZATION, value)]);
            let mut uri = http::Uri::default();
            tokens.of_request(&mut headers, &mut uri, now(), &mut Memory::default(), |_| {}).unwrap()
        };
        let token = token.as_str().unwrap();
        let seen = judge(token);
        let good = seen.good().unwrap_or_else(|| panic!("{algorithm}: {seen:?}"));
        assert_eq!(good.claims.subject.as_deref(), Some("alice"), "{algorithm}");
        let (head, _) = token.rsplit_once('.').unwrap();
        assert_eq!(judge(&format!("{head}.AAAA")).as_str(), "signature", "{algorithm}");
    }
}
