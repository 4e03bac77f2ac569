//! A small operator over real sockets: signs, and hands each configuration stream to the test.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tonic::{Request, Response, Status, Streaming};
use weft_api::v1::config_server::{Config, ConfigServer};
use weft_api::v1::from_proxy::Message;
use weft_api::v1::identity_server::IdentityServer;
use weft_api::v1::{self, FromProxy, SignRequest, SignResponse, ToProxy};

use super::{Ca, Pair, identity};
use crate::settings::Settings;
use crate::tls::peer_identity;

/// A token that it takes.
pub const TOKEN: &str = "good-token";

/// The operator. It dies, connections and all, when dropped.
pub struct Operator {
    pub address: SocketAddr,
    pub ca: Arc<Ca>,
    pub shared: Arc<Shared>,
    streams: mpsc::UnboundedReceiver<Session>,
    runtime: Option<tokio::runtime::Runtime>,
}

pub struct Shared {
    ca: Arc<Ca>,
    streams: mpsc::UnboundedSender<Session>,
    pub life: Mutex<Duration>,
    pub signs_for: Mutex<String>,
    pub asked: AtomicU32,
}

/// One configuration stream, seen from the operator.
pub struct Session {
    pub peer: weft_api::Identity,
    from: Streaming<FromProxy>,
    to: mpsc::Sender<Result<ToProxy, Status>>,
    version: u64,
}

impl Session {
    pub async fn next(&mut self) -> Message {
        let message = timeout(Duration::from_secs(10), self.from.message()).await.expect("a message in time");
        message.unwrap().expect("the stream goes on").message.unwrap()
    }

    pub async fn hello(&mut self) -> v1::Hello {
        match self.next().await {
            Message::Hello(hello) => hello,
            other => panic!("{other:?} instead of a hello"),
        }
    }

    pub async fn subscribe(&mut self) -> v1::Subscribe {
        match self.next().await {
            Message::Subscribe(mut subscribe) => {
                subscribe.add.sort();
                subscribe.drop.sort();
                subscribe
            }
            other => panic!("{other:?} instead of a subscription"),
        }
    }

    pub async fn ack(&mut self) -> v1::Ack {
        match self.next().await {
            Message::Ack(ack) => ack,
            other => panic!("{other:?} instead of an acknowledgement"),
        }
    }

    /// Sends an update and returns its acknowledgement, which must come next.
    pub async fn send(&mut self, mut update: ToProxy) -> v1::Ack {
        self.version += 1;
        update.version = self.version;
        self.to.send(Ok(update)).await.unwrap();
        let ack = self.ack().await;
        assert_eq!(ack.version, self.version);
        ack
    }

    /// Sends a message as it is.
    pub async fn say(&self, message: ToProxy) {
        self.to.send(Ok(message)).await.unwrap();
    }

    /// Sends an update, whose acknowledgement may come later.
    pub async fn say_next(&mut self, mut update: ToProxy) {
        self.version += 1;
        update.version = self.version;
        self.say(update).await;
    }

    /// Ends the stream with an error.
    pub async fn fail(self, status: Status) {
        self.to.send(Err(status)).await.unwrap();
    }

    /// Nothing comes for a while.
    pub async fn is_silent(&mut self) -> bool {
        timeout(Duration::from_millis(300), self.from.message()).await.is_err()
    }
}

impl Operator {
    pub fn start() -> Self {
        Self::start_as(
            Arc::new(Ca::new("weft root")),
            &identity("weft-system", "weft-operator").to_string(),
            "localhost",
            0,
        )
    }

    pub fn start_as(ca: Arc<Ca>, uri: &str, dns: &str, port: u16) -> Self {
        let certificate = ca.issue(&[uri], &[dns], Duration::from_secs(3600));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (streams, received) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            ca: Arc::clone(&ca),
            streams,
            life: Mutex::new(Duration::from_secs(3600)),
            signs_for: Mutex::new(identity("shop", "front").to_string()),
            asked: AtomicU32::new(0),
        });
        let (bound, address) = std::sync::mpsc::channel();
        runtime.spawn(serve(Arc::clone(&shared), server_config(&ca, certificate), port, bound));
        let address = address.recv().unwrap();
        Self { address, ca, shared, streams: received, runtime: Some(runtime) }
    }

    /// The next stream that a proxy opens.
    pub async fn session(&mut self) -> Session {
        timeout(Duration::from_secs(15), self.streams.recv()).await.expect("a stream in time").unwrap()
    }

    /// Dies; another one of the same root may come at the same address.
    pub fn kill(mut self) -> (Arc<Ca>, u16) {
        self.runtime.take().unwrap().shutdown_background();
        (Arc::clone(&self.ca), self.address.port())
    }

    pub fn restart((ca, port): (Arc<Ca>, u16)) -> Self {
        Self::start_as(ca, &identity("weft-system", "weft-operator").to_string(), "localhost", port)
    }

    /// The settings of shop/front, with token and bundle in `dir`.
    pub fn settings(&self, dir: &TempDir) -> Settings {
        std::fs::write(dir.path().join("token"), TOKEN).unwrap();
        std::fs::write(dir.path().join("roots.pem"), self.ca.root_pem()).unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        Settings::parse(|name| {
            Some(match name {
                "WEFT_POD_NAME" => "front-1".to_owned(),
                "WEFT_POD_NAMESPACE" => "shop".to_owned(),
                "WEFT_POD_IPS" => "127.0.0.1".to_owned(),
                "WEFT_SERVICE_ACCOUNT" => "front".to_owned(),
                "WEFT_OPERATOR_ADDRESS" => format!("localhost:{}", self.address.port()),
                "WEFT_OPERATOR_NAMESPACE" => "weft-system".to_owned(),
                "WEFT_TOKEN_FILE" => at("token"),
                "WEFT_BUNDLE_FILE" => at("roots.pem"),
                "WEFT_OUTBOUND_PORT" | "WEFT_INBOUND_PORT" | "WEFT_ADMIN_PORT" | "WEFT_METRICS_PORT"
                | "WEFT_CHECK_PORT" => "0".to_owned(),
                _ => return None,
            })
        })
        .unwrap()
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn server_config(ca: &Ca, (chain, key): Pair) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.root()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier.allow_unauthenticated().build().unwrap())
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

async fn serve(
    shared: Arc<Shared>,
    config: Arc<ServerConfig>,
    port: u16,
    bound: std::sync::mpsc::Sender<SocketAddr>,
) {
    // The one before it may still be letting go of the port.
    let listener = loop {
        match TcpListener::bind(("127.0.0.1", port)).await {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    bound.send(listener.local_addr().unwrap()).unwrap();
    let (accepted, incoming) = mpsc::channel::<std::io::Result<_>>(16);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (config, accepted) = (Arc::clone(&config), accepted.clone());
            tokio::spawn(async move {
                if let Ok(stream) = TlsAcceptor::from(config).accept(stream).await {
                    let _ = accepted.send(Ok(stream)).await;
                }
            });
        }
    });
    tonic::transport::Server::builder()
        .add_service(IdentityServer::new(Handler(Arc::clone(&shared))))
        .add_service(ConfigServer::new(Handler(shared)))
        .serve_with_incoming(ReceiverStream::new(incoming))
        .await
        .unwrap();
}

struct Handler(Arc<Shared>);

#[tonic::async_trait]
impl v1::identity_server::Identity for Handler {
    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let request = request.into_inner();
        self.0.asked.fetch_add(1, Ordering::Relaxed);
        if request.token != TOKEN {
            return Err(Status::unauthenticated("the token is not for audience weft"));
        }
        let der = request.csr_der.to_vec().into();
        let csr = rcgen::CertificateSigningRequestParams::from_der(&der)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let (life, uri) = (*self.0.life.lock().unwrap(), self.0.signs_for.lock().unwrap().clone());
        let chain =
            self.0.ca.sign(&csr.public_key, &[&uri], &[], SystemTime::now() - Duration::from_secs(1), life);
        let bytes = |der: &CertificateDer<'_>| bytes::Bytes::copy_from_slice(der);
        Ok(Response::new(SignResponse {
            chain_der: chain.iter().map(bytes).collect(),
            roots_der: vec![bytes(&self.0.ca.root())],
            not_after_unix_s: 0,
            identity: uri,
            roots_epoch: 0,
        }))
    }
}

#[tonic::async_trait]
impl Config for Handler {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<ToProxy, Status>> + Send>>;

    async fn stream(
        &self,
        request: Request<Streaming<FromProxy>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let tls = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>();
        let chain = tls
            .and_then(TlsConnectInfo::peer_certs)
            .ok_or_else(|| Status::unauthenticated("no certificate"))?;
        let peer = peer_identity(&chain).map_err(|e| Status::unauthenticated(e.to_string()))?;
        let (to, updates) = mpsc::channel(16);
        let session = Session { peer, from: request.into_inner(), to, version: 0 };
        self.0.streams.send(session).map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(updates))))
    }
}
