//! The gRPC port over real sockets: a tonic client with its own TLS, against the server with a hand-fed index. Only the
//! API server's answers about tokens are made up.

mod limits;
mod replicas;
mod scale;
mod session;
mod sign;
mod stream;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::{Channel, Endpoint};
use weft_api::Identity;
use weft_api::audit::{Audit, Component};
use weft_api::lines::sink::Sink;

use super::fleet::Fleet;
use super::refusals::{Refusal, Refusals};
use super::review::{BoundPod, ReviewError, Reviewer};
use super::{Shared, run};
use crate::ca::serving::Serving;
use crate::ca::{Authority, Root};
use crate::index::testing::{OWN, Object, index};
use crate::index::{Change, Key};
use crate::metrics::{InEvents, Metrics};
use crate::store::Store;

/// Knows these tokens, and these pods.
#[derive(Default)]
struct Answers {
    tokens: Mutex<HashMap<String, BoundPod>>,
    pods: Mutex<HashMap<Key, BoundPod>>,
}

impl Reviewer for Answers {
    async fn review(&self, token: &str) -> Result<BoundPod, ReviewError> {
        let known = self.tokens.lock().unwrap().get(token).cloned();
        known.ok_or_else(|| ReviewError::Invalid("unknown token".into()))
    }
    async fn pod(&self, key: &Key) -> Result<Option<BoundPod>, ReviewError> {
        Ok(self.pods.lock().unwrap().get(key).cloned())
    }
}

/// Events that are written are kept here.
fn takes_events(metrics: &Metrics) -> (Arc<Mutex<Vec<serde_json::Value>>>, weft_events::Sink) {
    let events = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&events);
    let take = move |request: http::Request<kube::client::Body>| {
        let into = Arc::clone(&into);
        async move {
            let body = request.into_body().collect_bytes().await?;
            into.lock().unwrap().push(serde_json::from_slice(&body)?);
            let answer = kube::client::Body::from(br#"{"metadata":{"name":"e"},"eventTime":null}"#.to_vec());
            Ok::<_, tower::BoxError>(http::Response::new(answer))
        }
    };
    let counted = metrics.audit_kubernetes_events.clone();
    let (sink, writer) = weft_events::Sink::new(move |fate, times| {
        counted.get_or_create(&InEvents::new(fate)).inc_by(times);
    });
    let reporter = weft_events::write::Reporter { controller: "weft.dev/x", name: "x", instance: "x".into() };
    tokio::spawn(writer.run(kube::Client::new(tower::service_fn(take), "default"), reporter));
    (events, sink)
}

/// A running server.
pub(crate) struct Operator {
    pub(crate) shared: Arc<Shared>,
    answers: Arc<Answers>,
    at: SocketAddr,
    /// What auditors were told.
    told: Sink,
    /// The Events that were written of what auditors are told.
    events: Arc<Mutex<Vec<serde_json::Value>>>,
    /// What Events would be written of.
    refused: tokio::sync::mpsc::Receiver<Refusal>,
}

impl Operator {
    pub(crate) async fn start(objects: Vec<Object>) -> Self {
        let root = Root::generate(&"cluster.local".parse().unwrap(), std::time::Duration::from_secs(86_400))
            .unwrap();
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), root, objects).await
    }

    async fn start_at(at: SocketAddr, root: Root, objects: Vec<Object>) -> Self {
        let domain: weft_api::TrustDomain = "cluster.local".parse().unwrap();
        let metrics = Arc::new(Metrics::default());
        let authority = Arc::new(Authority::new(root, Duration::from_secs(3600)));
        let serving = Serving::new(Arc::clone(&authority), domain, OWN).unwrap();
        let told = Sink::default();
        let (refusals, refused) = Refusals::new();
        let (events, sink) = takes_events(&metrics);
        let shared = Arc::new(Shared {
            store: Arc::new(Store::new(index(), Arc::clone(&metrics))),
            fleet: Arc::new(Fleet::default()),
            limits: Arc::default(),
            missed: Arc::default(),
            refusals,
            authority,
            serving: Arc::new(serving),
            metrics,
            audit: Audit::to(Component::Operator, told.clone(), || {}),
            events: sink,
            namespace: OWN.into(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let listener = TcpListener::bind(at).await.unwrap();
        let at = listener.local_addr().unwrap();
        let answers = Arc::new(Answers::default());
        tokio::spawn(run(Arc::clone(&shared), Arc::clone(&answers), listener));
        let operator = Self { shared, answers, at, told, events, refused };
        for object in objects {
            operator.apply(object);
        }
        operator
    }

    /// What auditors were told so far.
    fn told(&self) -> String {
        self.shared.audit.flush(Duration::from_secs(20));
        self.told.text().unwrap()
    }

    fn apply(&self, object: Object) {
        let store = &self.shared.store;
        match object {
            Object::Namespace(o) => store.apply(Change::Apply(o)),
            Object::Service(o) => store.apply(Change::Apply(o)),
            Object::Slice(o) => store.apply(Change::Apply(o)),
            Object::Pod(o) => store.apply(Change::Apply(o)),
            Object::Node(o) => store.apply(Change::Apply(o)),
            Object::MeshService(o) => store.apply(Change::Apply(o)),
            Object::Policy(o) => store.apply(Change::Apply(o)),
            Object::Authentication(o) => store.apply(Change::Apply(o)),
            Object::Authorization(o) => store.apply(Change::Apply(o)),
            Object::Requests(o) => store.apply(Change::Apply(o)),
            Object::TrustDomain(o) => store.apply(Change::Apply(o)),
        }
    }

    fn client(&self, identity: Option<(Vec<CertificateDer<'static>>, KeyPair)>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.shared.authority.root().der.clone()).unwrap();
        let builder =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots);
        let mut config = match identity {
            Some((chain, key)) => {
                let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
                builder.with_client_auth_cert(chain, key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    /// A certificate of this authority for a workload.
    fn certificate(&self, identity: &str) -> (Vec<CertificateDer<'static>>, KeyPair) {
        certificate_of(&self.shared.authority, identity)
    }

    /// Without a certificate.
    async fn anonymous(&self) -> Channel {
        connect(self.at, self.client(None)).await.unwrap()
    }

    /// With a workload's certificate.
    async fn connect_as(&self, identity: &str) -> Channel {
        connect(self.at, self.client(Some(self.certificate(identity)))).await.unwrap()
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

fn certificate_of(authority: &Authority, identity: &str) -> (Vec<CertificateDer<'static>>, KeyPair) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    let public = crate::ca::public_key(request.der()).unwrap();
    let identity: Identity = identity.parse().unwrap();
    (authority.issue(&public, &identity, &[]).unwrap().chain, key)
}

async fn connect(at: SocketAddr, config: ClientConfig) -> Result<Channel, tonic::transport::Error> {
    let config = Arc::new(config);
    Endpoint::from_static("http://weft-operator")
        .connect_with_connector(tower::service_fn(move |_: http::Uri| {
            let tls = TlsConnector::from(Arc::clone(&config));
            async move {
                let tcp = TcpStream::connect(at).await?;
                let name = ServerName::try_from("weft-operator.weft-system.svc.cluster.local").unwrap();
                Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, tcp).await?))
            }
        }))
        .await
}
