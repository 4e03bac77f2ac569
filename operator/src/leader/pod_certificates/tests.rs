//! The signer against an API server that answers what the test says, and keeps what is written.

use std::sync::Mutex;

use kube::client::Body;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_api::audit::{Audit, Component};
use weft_api::lines::sink::Sink;
use x509_parser::pem::parse_x509_pem;

use super::*;
use crate::ca::serving::Serving;
use crate::ca::{Authority, Root};
use crate::index::testing::{OWN, index};
use crate::metrics::{Metrics, Why};
use crate::serve::fleet::Fleet;
use crate::serve::peer;
use crate::serve::refusals::Refusals;
use crate::store::Store;

const HOUR: Duration = Duration::from_secs(3600);

/// What was written to the status of requests.
type Writes = Arc<Mutex<Vec<Value>>>;

/// Answers with this pod, or with 404, or (`Err`) that it cannot.
fn api_server(pod: Result<Option<Value>, ()>, writes: Writes) -> Client {
    let answer = move |request: http::Request<Body>| {
        let (pod, writes) = (pod.clone(), Arc::clone(&writes));
        async move {
            let (parts, body) = request.into_parts();
            let failure = |code: u16| {
                (
                    code,
                    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": if code == 404 { "NotFound" } else { "InternalError" },
                "message": "no", "code": code }),
                )
            };
            let (code, object) = if parts.method == http::Method::PATCH {
                let bytes = body.collect_bytes().await?;
                writes.lock().unwrap().push(serde_json::from_slice(&bytes)?);
                (200, object(json!({})))
            } else {
                match pod {
                    Ok(Some(pod)) => (200, pod),
                    Ok(None) => failure(404),
                    Err(()) => failure(500),
                }
            };
            let body = Body::from(serde_json::to_vec(&object)?);
            Ok::<_, tower::BoxError>(http::Response::builder().status(code).body(body)?)
        }
    };
    Client::new(tower::service_fn(answer), "default")
}

fn signer(pod: Result<Option<Value>, ()>) -> (Signer, Writes, Sink) {
    let domain: weft_api::TrustDomain = "cluster.local".parse().unwrap();
    let metrics = Arc::new(Metrics::default());
    let authority = Arc::new(Authority::new(Root::generate(&domain, HOUR * 1000).unwrap(), HOUR * 12));
    let serving = Serving::new(Arc::clone(&authority), domain, OWN).unwrap();
    let (told, writes) = (Sink::default(), Writes::default());
    let shared = Arc::new(Shared {
        store: Arc::new(Store::new(index(), Arc::clone(&metrics))),
        fleet: Arc::new(Fleet::default()),
        limits: Arc::default(),
        missed: Arc::default(),
        refusals: Refusals::new().0,
        authority,
        serving: Arc::new(serving),
        metrics,
        audit: Audit::to(Component::Operator, told.clone(), || {}),
        events: weft_events::Sink::off(),
        namespace: OWN.into(),
        stop: CancellationToken::new(),
        tasks: TaskTracker::new(),
    });
    let client = api_server(pod, Arc::clone(&writes));
    (Signer { client, shared, pods: Pace::new(OF_A_POD.0, OF_A_POD.1) }, writes, told)
}

fn pod(signer: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": "shop", "name": "batch-1", "uid": "u1" },
        "spec": { "serviceAccountName": "batch", "nodeName": "n1", "containers": [], "volumes": [
            { "name": "mesh", "projected": { "sources": [{ "podCertificate": { "signerName": signer, "keyType": "ECDSAP256" } }] } } ] },
        "status": { "phase": "Pending" },
    })
}

fn object(status: Value) -> Value {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let stub = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
    json!({
        "apiVersion": "certificates.k8s.io/v1beta1", "kind": "PodCertificateRequest",
        "metadata": { "namespace": "shop", "name": "req-x", "uid": "r1", "resourceVersion": "7" },
        "spec": { "signerName": names::SIGNER, "podName": "batch-1", "podUID": "u1", "serviceAccountName": "batch", "nodeName": "n1",
            "maxExpirationSeconds": 86400, "stubPKCS10Request": k8s_openapi::ByteString(stub) },
        "status": status,
    })
}

fn request() -> Request {
    serde_json::from_value(object(json!({}))).unwrap()
}

#[tokio::test]
async fn the_pod_that_asks_gets_its_accounts_identity_with_times_that_kubernetes_takes() {
    let (signer, writes, told) = signer(Ok(Some(pod(names::SIGNER))));
    assert_eq!(signer.settle(&request()).await, None);
    let written = writes.lock().unwrap().remove(0);
    assert_eq!(written["metadata"], json!({ "uid": "r1", "resourceVersion": "7" }));
    let status = &written["status"];
    assert_eq!(status["conditions"][0]["type"], "Issued");
    let (_, pem) = parse_x509_pem(status["certificateChain"].as_str().unwrap().as_bytes()).unwrap();
    let leaf = pem.parse_x509().unwrap();
    let identity = "spiffe://cluster.local/ns/shop/sa/batch";
    assert_eq!(peer::read(&pem.contents.clone().into()).unwrap().identity.to_string(), identity);
    assert!(!leaf.is_ca());
    let seconds = |field: &str| {
        let text = status[field].as_str().unwrap();
        chrono::DateTime::parse_from_rfc3339(text).unwrap().timestamp()
    };
    let (from, to) = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
    assert_eq!(
        (seconds("notBefore"), seconds("notAfter")),
        (from, to),
        "as in the certificate, to the second"
    );
    let now = chrono::Utc::now().timestamp();
    assert!((from - now).abs() < 5 * 60 && (3600..=86_400).contains(&(to - from)));
    assert!((from + 600..to - 600).contains(&seconds("beginRefreshAt")));
    assert_eq!(signer.shared.metrics.issued.get(), 1);
    signer.shared.audit.flush(Duration::from_secs(20));
    let event: Value = serde_json::from_str(told.text().unwrap().trim()).unwrap();
    assert_eq!((&event["event"], &event["result"]), (&json!("issuance"), &json!("issued")));
    assert_eq!(event["who"], json!({ "identity": identity, "pod": "shop/batch-1" }));
    assert_eq!(event["what"]["name"], "req-x");
}

/// Somebody who may create requests asks in the name of a pod that never asked, or of one that is no more.
#[tokio::test]
async fn in_anothers_name_there_is_a_denial_and_no_certificate() {
    for (pod, reason) in [(Some(pod("other.dev/signer")), "NotRequestedByPod"), (None, "PodMismatch")] {
        let (signer, writes, told) = signer(Ok(pod));
        assert_eq!(signer.settle(&request()).await, None);
        let written = writes.lock().unwrap().remove(0);
        let status = written["status"].as_object().unwrap();
        assert_eq!(status.keys().collect::<Vec<_>>(), ["conditions"], "nothing else may be set");
        assert_eq!(
            (&status["conditions"][0]["type"], &status["conditions"][0]["reason"]),
            (&"Denied".into(), &reason.into())
        );
        assert_eq!(signer.shared.metrics.refused.get_or_create(&Why { reason: Refused::Pod }).get(), 1);
        assert_eq!(signer.shared.metrics.issued.get(), 0);
        signer.shared.audit.flush(Duration::from_secs(20));
        let event: Value = serde_json::from_str(told.text().unwrap().trim()).unwrap();
        assert_eq!((&event["result"], &event["reason"]), (&json!("refused"), &json!("pod")));
        assert!(event["who"]["pod"].is_null(), "what is not believed is not said");
    }
}

/// A denial is for good, so nothing is denied for want of an answer.
#[tokio::test]
async fn without_an_answer_of_the_api_server_a_request_stays_open() {
    let (signer, writes, _) = signer(Err(()));
    assert_eq!(signer.settle(&request()).await, Some(RETRY));
    assert!(writes.lock().unwrap().is_empty());
}

#[tokio::test]
async fn beyond_its_share_a_pod_waits() {
    let (signer, writes, _) = signer(Ok(Some(pod(names::SIGNER))));
    for _ in 0..OF_A_POD.0 {
        assert_eq!(signer.settle(&request()).await, None);
    }
    assert!(signer.settle(&request()).await.is_some());
    assert_eq!(writes.lock().unwrap().len(), OF_A_POD.0 as usize);
}

#[test]
fn what_is_settled_or_anothers_is_left_alone_and_what_waits_is_looked_at_in_time() {
    let mut open = Open::default();
    let settled = object(json!({ "conditions": [{ "type": "Denied", "status": "True" }] }));
    open.note(serde_json::from_value(settled).unwrap());
    let mut other = request();
    other.spec.signer_name = "other.dev/signer".into();
    open.note(other);
    assert!(open.waiting.is_empty());
    open.note(request());
    let now = Instant::now();
    let due = open.due(now, 8);
    assert_eq!(due.len(), 1);
    open.note(request());
    assert!(open.due(now, 8).is_empty(), "it is being looked at");
    open.again(&due[0].0, now + RETRY);
    assert!(open.due(now, 8).is_empty() && open.pause(now) == RETRY);
    assert_eq!(open.due(now + RETRY, 8).len(), 1);
    open.forget(&due[0].0);
    assert!(open.waiting.is_empty());
}
