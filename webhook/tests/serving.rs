//! The whole server over real sockets: an operator that signs, the certificate it gives, and a client that trusts its root.

// clippy.toml lets tests unwrap; this says that their helper functions are tests too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair, SanType,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde_json::{Value, json};
use std::io::Write as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use weft_api::audit::{Audit, Component};
use weft_api::lines::sink::Sink;
use weft_api::v1::identity_server::{Identity, IdentityServer};
use weft_api::v1::{SignRequest, SignResponse};
use weft_events::sums;
use weft_events::write::Reporter;
use weft_webhook::inject;
use weft_webhook::judge::Known;
use weft_webhook::metrics::Metrics;
use weft_webhook::server::{self, Webhook};
use weft_webhook::serving::{self, Certificate, Renewal};
use weft_webhook::stores::Stores;
use weft_webhook::told;

/// A root that signs as the operator does.
struct Authority {
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { root, issuer: Issuer::new(params, key) }
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut store = RootCertStore::empty();
        store.add(self.root.clone()).unwrap();
        Arc::new(store)
    }
}

fn names(dns: &[&str], account: &str) -> Vec<SanType> {
    let uri = format!("spiffe://cluster.local/ns/weft-system/sa/{account}");
    let dns = dns.iter().map(|name| SanType::DnsName((*name).try_into().unwrap()));
    dns.chain([SanType::URI(uri.as_str().try_into().unwrap())]).collect()
}

/// Signs what has the right token, after failing a number of times.
struct Signer {
    authority: Arc<Authority>,
    failures: AtomicU32,
    life: time::Duration,
}

#[tonic::async_trait]
impl Identity for Signer {
    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let request = request.into_inner();
        if request.token != "token-of-the-webhook" {
            return Err(Status::unauthenticated("the token is not valid"));
        }
        if self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
            return Err(Status::unavailable("not yet"));
        }
        let der = CertificateSigningRequestDer::from(request.csr_der.to_vec());
        let mut csr = CertificateSigningRequestParams::from_der(&der).unwrap();
        csr.params.subject_alt_names =
            names(&["weft-webhook", "weft-webhook.weft-system.svc"], "weft-webhook");
        csr.params.not_after = time::OffsetDateTime::now_utc() + self.life;
        let leaf = csr.signed_by(&self.authority.issuer).unwrap();
        Ok(Response::new(SignResponse {
            chain_der: vec![leaf.der().to_vec().into()],
            roots_der: vec![self.authority.root.to_vec().into()],
            not_after_unix_s: csr.params.not_after.unix_timestamp(),
            identity: "spiffe://cluster.local/ns/weft-system/sa/weft-webhook".into(),
            roots_epoch: 0,
        }))
    }
}

/// An operator on loopback whose certificate is for `localhost` and this ServiceAccount.
async fn operator(authority: Arc<Authority>, account: &str, failures: u32, life: time::Duration) -> u16 {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = names(&["localhost"], account);
    let leaf = params.signed_by(&key, &authority.issuer).unwrap();
    let mut tls = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let incoming = futures::stream::unfold((listener, acceptor), |(listener, acceptor)| async move {
        let (stream, _) = listener.accept().await.unwrap();
        let stream = acceptor.accept(stream).await;
        Some((stream, (listener, acceptor)))
    });
    let signer = Signer { authority, failures: AtomicU32::new(failures), life };
    let server = tonic::transport::Server::builder().add_service(IdentityServer::new(signer));
    tokio::spawn(async move { server.serve_with_incoming(incoming).await.unwrap() });
    port
}

struct Running {
    port: u16,
    certificate: Arc<Certificate>,
    metrics: Arc<Metrics>,
    audit: Audit,
    /// What auditors were told.
    told: Sink,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<()>,
    _bundle: watch::Sender<Option<Arc<RootCertStore>>>,
    _token: tempfile::NamedTempFile,
}

async fn webhook(operator: u16, roots: Arc<RootCertStore>, token: &str, known: Known) -> Running {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "{token}").unwrap();
    let (certificate, metrics) = (Arc::new(Certificate::default()), Arc::new(Metrics::default()));
    let (sender, bundle) = watch::channel(None);
    let renewal = Renewal {
        address: format!("localhost:{operator}").parse().unwrap(),
        trust_domain: "cluster.local".parse().unwrap(),
        namespace: "weft-system".into(),
        token_path: file.path().into(),
    };
    tokio::spawn(serving::renew(renewal, certificate.clone(), bundle, metrics.clone()));
    sender.send_replace(Some(roots));
    let told = Sink::default();
    let audit = Audit::to(Component::Webhook, told.clone(), || {});
    let (settings, stores) = (settings(), Stores::fixed(known));
    let webhook = Webhook { settings, stores, metrics: metrics.clone(), audit: audit.clone() };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tls, stop) = (server::tls(certificate.clone()).unwrap(), CancellationToken::new());
    let served = tokio::spawn(server::serve(
        listener,
        tls,
        server::router(Arc::new(webhook)),
        metrics.clone(),
        stop.clone(),
    ));
    Running { port, certificate, metrics, audit, told, stop, served, _bundle: sender, _token: file }
}

fn settings() -> inject::Settings {
    inject::Settings {
        namespace: "weft-system".into(),
        image: "weft-proxy:test".into(),
        pull_policy: inject::PullPolicy::IfNotPresent,
        operator_address: "weft-operator.weft-system.svc.cluster.local:15010".into(),
        trust_domain: "cluster.local".into(),
        native_sidecar: true,
        cni: false,
        resources: inject::Resources::default(),
        log: "info".into(),
        access_log: true,
        tracing: None,
        sampling: "1".to_owned(),
        audit: true,
        workers: 1,
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never: {what}");
}

/// One that has its certificate, and whose roots that is by.
async fn certified(known: Known) -> (Running, Arc<RootCertStore>) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let authority = Arc::new(Authority::new());
    let roots = authority.roots();
    let operator = operator(authority, "weft-operator", 0, hour()).await;
    let running = webhook(operator, roots.clone(), "token-of-the-webhook", known).await;
    until("a certificate", || running.certificate.is_valid()).await;
    (running, roots)
}

/// One request as the API server makes it; the code and the body.
async fn send(running: &Running, roots: &Arc<RootCertStore>, head: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let config = ClientConfig::builder().with_root_certificates(roots.clone()).with_no_client_auth();
    let tcp = TcpStream::connect(("127.0.0.1", running.port)).await.unwrap();
    let name = ServerName::try_from("weft-webhook.weft-system.svc").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
    let head =
        format!("{head} HTTP/1.1\r\nhost: w\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server may answer and close before it has read all of a body that is too long.
    let _ = stream.write_all(body).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let code = text.split(' ').nth(1).unwrap_or_default().parse().unwrap_or(0);
    let body = answer
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .map(|at| answer[at + 4..].to_vec())
        .unwrap_or_default();
    (code, body)
}

fn review(kind: &str, namespace: &str, operation: &str, object: &Value) -> Vec<u8> {
    serde_json::to_vec(&json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "u-1", "kind": {"group": "", "version": "v1", "kind": kind}, "namespace": namespace, "operation": operation,
        "object": object, "resource": {"group": "", "version": "v1", "resource": "x"}, "userInfo": {}, "dryRun": false}}))
    .unwrap()
}

fn hour() -> time::Duration {
    time::Duration::hours(1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_review_over_tls_gets_a_patch_that_injects() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let authority = Arc::new(Authority::new());
    let roots = authority.roots();
    let operator = operator(authority, "weft-operator", 2, hour()).await;
    let running = webhook(operator, roots.clone(), "token-of-the-webhook", Known::default()).await;
    until("a certificate, after two failures", || running.certificate.is_valid()).await;

    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "app", "image": "x"}]}});
    let (code, body) =
        send(&running, &roots, "POST /mutate/pods", &review("Pod", "shop", "CREATE", &pod)).await;
    assert_eq!(code, 200);
    let answer: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&answer["response"]["uid"], &answer["response"]["allowed"]), (&json!("u-1"), &json!(true)));
    let patch = base64::Engine::decode(
        &base64::engine::general_purpose::STANDARD,
        answer["response"]["patch"].as_str().unwrap(),
    );
    let patch: json_patch::Patch = serde_json::from_slice(&patch.unwrap()).unwrap();
    let mut patched = pod;
    json_patch::patch(&mut patched, &patch).unwrap();
    assert_eq!(patched["spec"]["initContainers"][1]["name"], "weft-proxy");
    let text = running.metrics.text();
    assert!(text.contains(r#"weft_webhook_reviews_total{kind="Pod",outcome="Injected"} 1"#), "{text}");
    assert!(text.contains(r#"weft_webhook_certificate_renewals_total{outcome="Failure"} 2"#), "{text}");

    running.stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), running.served).await.expect("the server ends").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_review_gets_a_code_and_a_sentence() {
    let (running, roots) = certified(Known::default()).await;

    let long = vec![b' '; 4 << 20];
    for (head, body, code, word) in [
        ("POST /mutate/pods", &b"not json"[..], 400, "not an AdmissionReview"),
        ("POST /validate", b"{}", 400, "admissionReviewVersions"),
        ("POST /validate", &long, 413, "larger than"),
        ("GET /validate", b"", 405, ""),
        ("POST /", b"", 404, "/mutate/pods"),
    ] {
        let (found, text) = send(&running, &roots, head, body).await;
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(found == code && text.contains(word), "{head}: {found} {text}");
    }
    let pod = json!({"metadata": {"name": "p"}, "spec": {"hostNetwork": true}});
    let (_, body) = send(&running, &roots, "POST /mutate/pods", &review("Pod", "shop", "CREATE", &pod)).await;
    let answer: Value = serde_json::from_slice(&body).unwrap();
    assert!(
        answer["response"]["patch"].is_null()
            && answer["response"]["warnings"][0].as_str().unwrap().contains("hostNetwork")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_is_judged_beside_what_exists() {
    let policy = |name: &str| {
        json!({"apiVersion": "weft.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"targetRefs": [{"kind": "Service", "name": "back"}], "rules": [{"timeout": "1s"}]}})
    };
    let known = Known {
        traffic_policies: vec![Arc::new(serde_json::from_value(policy("first")).unwrap())],
        ..Known::default()
    };
    let (running, roots) = certified(known).await;
    let (code, body) = send(
        &running,
        &roots,
        "POST /validate",
        &review("TrafficPolicy", "shop", "CREATE", &policy("second")),
    )
    .await;
    let answer: Value = serde_json::from_slice(&body).unwrap();
    let response = &answer["response"];
    assert_eq!((code, &response["allowed"], &response["status"]["code"]), (200, &json!(false), &json!(422)));
    assert!(
        response["status"]["message"].as_str().unwrap().contains("already governed by TrafficPolicy first"),
        "{response}"
    );
    assert!(
        response["warnings"][0].as_str().unwrap().contains("Service back does not exist yet"),
        "{response}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_is_renewed_before_it_ends() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let authority = Arc::new(Authority::new());
    let roots = authority.roots();
    let operator = operator(authority, "weft-operator", 0, time::Duration::seconds(3)).await;
    let running = webhook(operator, roots, "token-of-the-webhook", Known::default()).await;
    let renewed =
        || running.metrics.text().contains(r#"weft_webhook_certificate_renewals_total{outcome="Success"} 3"#);
    until("three certificates", renewed).await;
    assert!(running.certificate.is_valid());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_certificate_comes_from_an_impostor_or_with_a_wrong_token() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let authority = Arc::new(Authority::new());
    let roots = authority.roots();
    for (signed_by, account, token) in [
        (authority.clone(), "somebody-else", "token-of-the-webhook"),
        (Arc::new(Authority::new()), "weft-operator", "token-of-the-webhook"),
        (authority.clone(), "weft-operator", "stolen"),
    ] {
        let operator = operator(signed_by, account, 0, hour()).await;
        let running = webhook(operator, roots.clone(), token, Known::default()).await;
        let failed = || running.metrics.text().contains(r#"renewals_total{outcome="Failure"}"#);
        until("a failure", failed).await;
        assert!(!running.certificate.is_valid());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn auditors_are_told_of_every_admission_and_of_no_secret() {
    let (running, roots) = certified(Known::default()).await;

    let user =
        json!({"username": "ann", "uid": "planted", "groups": ["planted"], "extra": {"token": ["planted"]}});
    let asked = async |path: &str, kind: &str, dry_run: bool, object: Value| {
        let mut review: Value = serde_json::from_slice(&review(kind, "shop", "CREATE", &object)).unwrap();
        review["request"]["userInfo"] = user.clone();
        review["request"]["dryRun"] = dry_run.into();
        send(&running, &roots, path, &serde_json::to_vec(&review).unwrap()).await
    };
    let spec = json!({"containers": [{"name": "app", "image": "x", "env": [{"name": "PASSWORD", "value": "planted"}]}]});
    let pod =
        json!({"metadata": {"name": "p", "annotations": {"weft.dev/workers": "planted"}}, "spec": spec});
    asked("POST /mutate/pods", "Pod", false, pod).await;
    let policy = json!({"apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "a", "annotations": {"note": "planted"}},
        "spec": {"action": "Allow", "rules": [{"from": [{"identities": ["spiffe://planted!"]}],
            "when": [{"header": "authorization", "exact": "planted"}]}]}});
    let (_, answer) = asked("POST /validate", "AuthorizationPolicy", true, policy).await;
    assert!(String::from_utf8_lossy(&answer).contains("\"allowed\":false"), "the user is told why");
    send(&running, &roots, "POST /validate", b"{\"planted\": 1}").await;

    running.audit.flush(Duration::from_secs(20));
    let told = running.told.text().unwrap();
    let events = running.told.lines().unwrap();
    let who = json!({"user": "ann"});
    let brief: Vec<_> = events
        .iter()
        .map(|e| (e["result"].as_str().unwrap(), e["reason"].as_str().unwrap_or_default(), &e["what"]))
        .collect();
    let what = |kind: &str, name: &str, operation: &str| json!({"kind": kind, "namespace": "shop", "name": name, "operation": operation, "uid": "u-1"});
    assert_eq!(
        brief,
        [
            ("allowed", "injected", &what("Pod", "p", "CREATE")),
            ("denied", "invalid", &what("AuthorizationPolicy", "a", "CREATE, dry run")),
            ("denied", "malformed", &json!({})),
        ]
    );
    assert_eq!((&events[0]["who"], &events[1]["who"]), (&who, &who));
    assert!(
        events
            .iter()
            .all(|e| e["log"] == "audit" && e["event"] == "admission" && e["component"] == "webhook")
    );
    assert!(!told.contains("planted"), "a secret is told: {told}");
}

/// An API server on loopback that takes every Event, and what it was sent: method, path and body.
async fn takes_events() -> (kube::Client, Arc<Mutex<Vec<(String, String, Value)>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&seen);
    let take = async move |method: axum::http::Method, uri: axum::http::Uri, body: String| {
        let body = serde_json::from_str(&body).unwrap();
        let mut all = into.lock().unwrap();
        all.push((method.to_string(), uri.path().to_owned(), body));
        axum::Json(
            json!({ "metadata": { "name": format!("weft-webhook-{}", all.len()) }, "eventTime": null }),
        )
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let router = axum::Router::new().fallback(take);
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (kube::Client::try_from(kube::Config::new(uri)).unwrap(), seen)
}

fn with_events(running: &Running, client: kube::Client) {
    let reporter =
        Reporter { controller: "weft.dev/weft-webhook", name: "weft-webhook", instance: "w-1".into() };
    tokio::spawn(told::to_events(&running.audit, running.metrics.clone()).run(client, reporter));
}

fn told_by_events(running: &Running, result: &str) -> u64 {
    let text = running.metrics.text();
    let line = format!("weft_webhook_audit_kubernetes_events_total{{result=\"{result}\"}} ");
    text.lines().find_map(|text| text.strip_prefix(&line)).map_or(0, |count| count.parse().unwrap())
}

fn changed_by_ann(kind: &str, namespace: &str, name: &str, spec: &Value) -> Value {
    let object = json!({"apiVersion": "weft.dev/v1alpha1", "kind": kind, "metadata": {"name": name, "annotations": {"note": "planted"}},
        "spec": spec});
    let mut review: Value = serde_json::from_slice(&review(kind, namespace, "CREATE", &object)).unwrap();
    review["request"]["userInfo"] = json!({"username": "ann", "groups": ["planted"]});
    review
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_and_changes_are_kubernetes_events_with_the_user_and_no_secret_and_a_dry_run_is_none() {
    let (running, roots) = certified(Known::default()).await;
    let (client, seen) = takes_events().await;
    with_events(&running, client);
    let send = async |review: &Value| {
        let body = serde_json::to_vec(review).unwrap();
        assert_eq!(send(&running, &roots, "POST /validate", &body).await.0, 200);
    };
    let bad = json!({"action": "Allow", "rules": [{"from": [{"identities": ["spiffe://planted!"]}]}]});
    let refused = changed_by_ann("AuthorizationPolicy", "shop", "a", &bad);
    let mut dry = changed_by_ann("AuthorizationPolicy", "shop", "dry", &bad);
    dry["request"]["dryRun"] = true.into();
    send(&dry).await;
    for _ in 0..12 {
        send(&refused).await;
    }
    send(&changed_by_ann("AuthorizationPolicy", "shop", "b", &json!({"action": "Allow"}))).await;
    until("all is told", || told_by_events(&running, "Written") == 13).await;
    let seen = seen.lock().unwrap().clone();
    let of = |name: &str| -> Vec<&(String, String, Value)> {
        seen.iter().filter(|(_, _, event)| event["regarding"]["name"] == name).collect()
    };
    let [(method, path, event)] = of("a")[..] else { panic!("{seen:?}") };
    assert_eq!((&**method, &**path), ("POST", "/apis/events.k8s.io/v1/namespaces/shop/events"));
    assert_eq!((&event["reason"], &event["type"]), (&json!("AdmissionDenied"), &json!("Warning")));
    let note = event["note"].as_str().unwrap();
    assert!(note.starts_with("CREATE by ann was denied (invalid)"), "{note}");
    assert_eq!(of("b")[0].2["reason"], "AdmissionAllowed");
    assert!(of("dry").is_empty(), "a dry run has an effect");
    assert!(!format!("{seen:?}").contains("planted"), "a secret is told: {seen:?}");
    // Twelve of a kind are one Event that counts them, at once or when it is written again.
    let counts = seen.iter().filter_map(|(_, _, event)| event["series"]["count"].as_u64());
    assert_eq!(counts.max(), Some(12));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_floods_the_webhook_has_a_bounded_number_of_events_written_and_the_rest_counted() {
    let (running, roots) = certified(Known::default()).await;
    let (client, seen) = takes_events().await;
    let begin = std::time::Instant::now();
    with_events(&running, client);
    let bad = json!({"action": "Allow", "rules": [{"from": [{"identities": ["no"]}]}]});
    for n in 0..150 {
        let made_up =
            changed_by_ann("AuthorizationPolicy", &format!("made-up-{}", n % 50), &n.to_string(), &bad);
        let (code, _) =
            send(&running, &roots, "POST /validate", &serde_json::to_vec(&made_up).unwrap()).await;
        assert_eq!(code, 200, "who asks is answered whatever becomes of the Events");
    }
    let all = || told_by_events(&running, "Written") + told_by_events(&running, "Dropped");
    until("each is written or counted", || all() == 150).await;
    let refilled = begin.elapsed().as_secs_f64() / sums::OF_ALL.1.as_secs_f64();
    let written = u32::try_from(seen.lock().unwrap().len()).unwrap();
    assert!(written >= 1 && f64::from(written) <= f64::from(sums::OF_ALL.0) + refilled, "{written} Events");
}
