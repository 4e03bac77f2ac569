//! Tests of `serve` (sign): no cluster, nothing but what they make themselves.

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::CertificateDer;
use tonic::{Code, Status};
use weft_api::v1::identity_client::IdentityClient;
use weft_api::v1::{SignRequest, SignResponse};

use super::Operator;
use crate::index::testing::{key_of, pod};
use crate::metrics::{Refused, Why};
use crate::serve::peer;
use crate::serve::review::BoundPod;

fn bound(key: &str, uid: &str, account: &str) -> BoundPod {
    BoundPod { key: key_of(key), uid: uid.into(), service_account: account.into() }
}

fn csr() -> Vec<u8> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
}

async fn sign(operator: &Operator, token: &str, csr_der: Vec<u8>) -> Result<SignResponse, Status> {
    let request = SignRequest { csr_der: csr_der.into(), token: token.into() };
    IdentityClient::new(operator.anonymous().await).sign(request).await.map(tonic::Response::into_inner)
}

fn knows(operator: &Operator, token: &str, pod: BoundPod) {
    operator.answers.tokens.lock().unwrap().insert(token.into(), pod);
}

fn refusals(operator: &Operator, reason: Refused) -> u64 {
    operator.shared.metrics.refused.get_or_create(&Why { reason }).get()
}

#[tokio::test]
async fn the_holder_of_a_living_pods_token_gets_its_identity_and_nothing_more() {
    let operator = Operator::start(vec![pod("shop/back-1", "back", "10.0.0.1")]).await;
    knows(&operator, "good", bound("shop/back-1", "uid-back-1", "back"));
    let response = sign(&operator, "good", csr()).await.unwrap();
    assert_eq!(response.identity, "spiffe://cluster.local/ns/shop/sa/back");
    assert_eq!(response.roots_der, vec![operator.shared.authority.root().der.to_vec()]);
    let leaf = CertificateDer::from(response.chain_der[0].to_vec());
    assert_eq!(peer::read(&leaf).unwrap().identity.to_string(), response.identity);
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    let names = parsed.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names.len(), 1, "no DNS name for an ordinary workload");
    assert_eq!(operator.shared.metrics.issued.get(), 1);
    let told: serde_json::Value = serde_json::from_str(operator.told().trim()).unwrap();
    assert_eq!((&told["event"], &told["result"]), (&"issuance".into(), &"issued".into()));
    let who =
        serde_json::json!({"identity": response.identity, "pod": "shop/back-1", "address": "127.0.0.1"});
    assert_eq!(told["who"], who);
}

/// A request for an administrator's identity, the API server's names and the rights of an authority.
#[tokio::test]
async fn what_a_request_asks_for_beside_its_key_is_ignored() {
    let operator = Operator::start(vec![pod("shop/back-1", "back", "10.0.0.1")]).await;
    knows(&operator, "good", bound("shop/back-1", "uid-back-1", "back"));
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::new(vec!["kubernetes.default.svc".to_owned()]).unwrap();
    let other = "spiffe://cluster.local/ns/weft-system/sa/weft-operator";
    params.subject_alt_names.push(rcgen::SanType::URI(other.try_into().unwrap()));
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:masters");
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let request = params.serialize_request(&key).unwrap().der().to_vec();
    let response = sign(&operator, "good", request).await.unwrap();
    assert_eq!(response.identity, "spiffe://cluster.local/ns/shop/sa/back");
    let leaf = response.chain_der[0].to_vec();
    assert_eq!(
        peer::read(&CertificateDer::from(leaf.clone())).unwrap().identity.to_string(),
        response.identity
    );
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    assert_eq!(parsed.public_key().subject_public_key.data.as_ref(), rcgen::PublicKeyData::der_bytes(&key));
    assert_eq!(parsed.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);
    assert!(!parsed.is_ca() && !parsed.key_usage().unwrap().unwrap().value.key_cert_sign());
    let text = String::from_utf8_lossy(&leaf).into_owned();
    for word in ["weft-operator", "kubernetes.default.svc", "system:masters"] {
        assert!(!text.contains(word), "{word} is in the certificate");
    }
}

/// Whoever holds a token of a living pod has its identity, at the pace of one pod; with the pod it ends.
#[tokio::test]
async fn a_token_is_good_for_as_long_as_its_pod_and_for_no_more_than_its_share() {
    let objects = vec![pod("shop/back-1", "back", "10.0.0.1")];
    let operator = Operator::start(objects).await;
    knows(&operator, "seen-twice", bound("shop/back-1", "uid-back-1", "back"));
    assert_eq!(
        sign(&operator, "seen-twice", csr()).await.unwrap().identity,
        "spiffe://cluster.local/ns/shop/sa/back"
    );
    assert_eq!(
        sign(&operator, "seen-twice", csr()).await.unwrap().identity,
        "spiffe://cluster.local/ns/shop/sa/back"
    );
    operator.shared.store.apply(crate::index::Change::<crate::index::Pod>::Delete(key_of("shop/back-1")));
    let refused = sign(&operator, "seen-twice", csr()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("does not exist"), "{refused}");
    assert_eq!(refusals(&operator, Refused::Pod), 1);
    // Another one of the same name, such as of a StatefulSet, is not the same pod.
    let live = bound("shop/back-1", "uid-of-the-next", "back");
    operator.answers.pods.lock().unwrap().insert(key_of("shop/back-1"), live);
    let refused = sign(&operator, "seen-twice", csr()).await.unwrap_err();
    assert!(refused.message().contains("another uid"), "{refused}");
    assert_eq!(operator.shared.metrics.issued.get(), 2);
}

#[tokio::test]
async fn only_wefts_own_accounts_get_dns_names() {
    let operator = Operator::start(vec![
        pod("weft-system/hook-1", "weft-webhook", "10.0.0.1"),
        pod("shop/hook-1", "weft-webhook", "10.0.0.2"),
    ])
    .await;
    knows(&operator, "own", bound("weft-system/hook-1", "uid-hook-1", "weft-webhook"));
    knows(&operator, "foreign", bound("shop/hook-1", "uid-hook-1", "weft-webhook"));
    let names = async |token| {
        let response = sign(&operator, token, csr()).await.unwrap();
        let der = response.chain_der[0].to_vec();
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        parsed.subject_alternative_name().unwrap().unwrap().value.general_names.len()
    };
    assert_eq!(names("own").await, 5);
    assert_eq!(names("foreign").await, 1);
}

#[tokio::test]
async fn a_pod_that_the_index_does_not_know_yet_is_asked_for() {
    let operator = Operator::start(Vec::new()).await;
    let new = bound("shop/new", "u", "front");
    knows(&operator, "t", new.clone());
    let refused = sign(&operator, "t", csr()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    operator.answers.pods.lock().unwrap().insert(key_of("shop/new"), new);
    sign(&operator, "t", csr()).await.unwrap();
}

#[tokio::test]
async fn wrong_tokens_pods_and_requests_are_refused_with_a_sentence() {
    let operator = Operator::start(vec![pod("shop/back-1", "back", "10.0.0.1")]).await;
    knows(&operator, "replaced", bound("shop/back-1", "old-uid", "back"));
    knows(&operator, "other-account", bound("shop/back-1", "uid-back-1", "admin"));
    knows(&operator, "good", bound("shop/back-1", "uid-back-1", "back"));
    let live = bound("shop/back-1", "uid-back-1", "back");
    operator.answers.pods.lock().unwrap().insert(key_of("shop/back-1"), live);

    let cases: [(&str, Vec<u8>, Code, &str); 6] = [
        ("stolen", csr(), Code::Unauthenticated, "not valid"),
        ("", csr(), Code::Unauthenticated, "missing"),
        ("replaced", csr(), Code::PermissionDenied, "another uid"),
        ("other-account", csr(), Code::PermissionDenied, "another ServiceAccount"),
        ("good", b"rubbish".to_vec(), Code::InvalidArgument, "cannot be read"),
        (
            "good",
            {
                let mut der = csr();
                let n = der.len() - 3;
                der[n] ^= 0xff;
                der
            },
            Code::InvalidArgument,
            "certificate request",
        ),
    ];
    for (token, csr, code, words) in cases {
        let refused = sign(&operator, token, csr).await.unwrap_err();
        assert_eq!(refused.code(), code, "{token}: {refused}");
        assert!(refused.message().contains(words), "{token}: {}", refused.message());
    }
    let told = operator.told();
    let words: Vec<_> =
        told.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()).collect();
    let words: Vec<_> = words.iter().map(|event| event["reason"].as_str().unwrap_or_default()).collect();
    assert_eq!(words, ["token", "token", "pod", "pod", "request", "request"]);
    assert!(told.contains("\"pod\":\"shop/back-1\""), "the pod whose token was believed is named: {told}");
    for secret in ["stolen", "good", "other-account\"", "rubbish"] {
        assert!(!told.contains(secret), "{secret} is in {told}");
    }
    assert_eq!(refusals(&operator, Refused::Token), 2);
    assert_eq!(refusals(&operator, Refused::Pod), 2);
    assert_eq!(refusals(&operator, Refused::Request), 2);
}

#[tokio::test]
async fn a_pod_that_asks_without_end_is_slowed_down_and_others_are_not() {
    let objects = vec![pod("shop/back-1", "back", "10.0.0.1"), pod("shop/front-1", "front", "10.0.0.2")];
    let mut operator = Operator::start(objects).await;
    knows(&operator, "mad", bound("shop/back-1", "uid-back-1", "back"));
    knows(&operator, "calm", bound("shop/front-1", "uid-front-1", "front"));
    for _ in 0..10 {
        sign(&operator, "mad", csr()).await.unwrap();
    }
    let refused = sign(&operator, "mad", csr()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("try again in"), "{refused}");
    assert_eq!(refusals(&operator, Refused::Rate), 1);
    sign(&operator, "calm", csr()).await.unwrap();
    let told = operator.refused.try_recv().unwrap();
    assert_eq!((told.pod.key.to_string(), told.why.contains("try again in")), ("shop/back-1".into(), true));
    sign(&operator, "nobody", csr()).await.unwrap_err();
    assert!(operator.refused.try_recv().is_err(), "of a token that nobody believes there is no pod");
}

#[tokio::test]
async fn whoever_tries_tokens_is_refused_before_the_api_server_is_asked() {
    let operator = Operator::start(vec![pod("shop/back-1", "back", "10.0.0.1")]).await;
    knows(&operator, "good", bound("shop/back-1", "uid-back-1", "back"));
    let channel = operator.anonymous().await;
    let mut refused = 0;
    // More than one after each half second, so that it comes to an end.
    for n in 0..10_000 {
        let request = SignRequest { csr_der: csr().into(), token: format!("guess-{n}") };
        let status = IdentityClient::new(channel.clone()).sign(request).await.unwrap_err();
        if status.code() == Code::ResourceExhausted {
            refused = n;
            break;
        }
        assert_eq!(status.code(), Code::Unauthenticated);
    }
    assert!(refused >= 64, "the first tries are answered: {refused}");
    assert_eq!(refusals(&operator, Refused::Token), refused);
    assert_eq!(refusals(&operator, Refused::Rate), 1);
}
