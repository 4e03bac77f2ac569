//! Many proxies, as the operator sees them: each signs, connects, subscribes, acknowledges and comes back in the way and with
//! the patience of `weft-proxy`, on connections of its own. What it is told it does not put in force: that is other machines'
//! work, whose time must not count here.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;
use weft_api::v1::from_proxy::Message;
use weft_api::v1::identity_client::IdentityClient;
use weft_api::v1::{Ack, Address, FromProxy, Hello, SignRequest, Subscribe};

use super::cluster::Cluster;
use super::objects::uid;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);
const OPERATOR: &str = "weft-operator.weft-system.svc";
const STREAM: &str = "/weft.v1.Config/Stream";

/// `ToProxy` with what is inside left as it came: reading it whole is the proxy's work, not the operator's.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Update {
    /// To be acknowledged; 0: not.
    #[prost(uint64, tag = "1")]
    pub version: u64,
    /// How the own pod is called.
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub workload: Option<Bytes>,
    /// What addresses are.
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub addresses: Vec<Bytes>,
    /// Services, new or changed.
    #[prost(bytes = "bytes", repeated, tag = "4")]
    pub services: Vec<Bytes>,
    /// Keys of services that are gone.
    #[prost(string, repeated, tag = "5")]
    pub removed_services: Vec<String>,
}

/// Certificates that are asked for at the same time.
const AT_A_TIME: usize = 16;

/// What a proxy tells the measurement.
#[derive(Debug)]
pub enum Told {
    /// It has everything that it subscribed to, and has acknowledged it.
    Complete {
        /// Which proxy.
        proxy: usize,
        /// When its last acknowledgement went out.
        at: Instant,
    },
    /// It was sent something after it had everything.
    Update {
        /// Which proxy.
        proxy: usize,
        /// When its acknowledgement went out.
        at: Instant,
        /// What.
        update: Update,
    },
    /// It lost its stream, or did not get one.
    Lost {
        /// Which proxy.
        proxy: usize,
        /// Why.
        why: String,
    },
}

/// All proxies. They end when this is dropped.
pub struct Proxies {
    _tasks: JoinSet<()>,
    told: mpsc::UnboundedReceiver<Told>,
}

/// What they have in common.
struct Common {
    cluster: Arc<Cluster>,
    operator: SocketAddr,
    roots: Arc<RootCertStore>,
    told: mpsc::UnboundedSender<Told>,
}

impl Proxies {
    /// Starts all proxies of a cluster at once.
    pub fn start(
        cluster: &Arc<Cluster>,
        operator: SocketAddr,
        root: CertificateDer<'static>,
    ) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(root)?;
        let (tell, told) = mpsc::unbounded_channel();
        let common =
            Arc::new(Common { cluster: Arc::clone(cluster), operator, roots: Arc::new(roots), told: tell });
        let mut tasks = JoinSet::new();
        for number in 0..cluster.proxies.len() {
            let proxy = Proxy { common: Arc::clone(&common), number, tls: Mutex::new(None) };
            tasks.spawn(proxy.run());
        }
        Ok(Self { _tasks: tasks, told })
    }

    /// The next thing that one of them tells; `None` when nothing came for so long.
    pub async fn next(&mut self, within: Duration) -> Option<Told> {
        timeout(within, self.told.recv()).await.ok()?
    }
}

/// Has so many certificates signed, for each of the proxies in turn, a few at a time and each on a connection of its own, as
/// `weft-proxy` asks for one.
///
/// # Errors
/// That of the first that is not signed.
pub async fn issue(
    cluster: &Arc<Cluster>,
    operator: SocketAddr,
    root: CertificateDer<'static>,
    count: usize,
) -> Result<()> {
    let mut roots = RootCertStore::empty();
    roots.add(root)?;
    // Nobody streams, so nobody tells.
    let (told, _) = mpsc::unbounded_channel();
    let common = Arc::new(Common { cluster: Arc::clone(cluster), operator, roots: Arc::new(roots), told });
    let all = (0..count).map(|turn| {
        let number = turn % cluster.proxies.len();
        let proxy = Proxy { common: Arc::clone(&common), number, tls: Mutex::new(None) };
        async move { proxy.sign().await.map(drop) }
    });
    futures::stream::iter(all).buffer_unordered(AT_A_TIME).try_collect().await
}

struct Proxy {
    common: Arc<Common>,
    number: usize,
    /// With its certificate, once it has one.
    tls: Mutex<Option<Arc<ClientConfig>>>,
}

impl Proxy {
    async fn run(self) {
        let mut pause = FIRST_RETRY;
        loop {
            let Err(error) = self.stream(&mut pause).await;
            let told = Told::Lost { proxy: self.number, why: format!("{error:#}") };
            if self.common.told.send(told).is_err() {
                return;
            }
            let jitter = rand::random_range(0.5..1.0);
            sleep(pause.mul_f64(jitter)).await;
            pause = (pause * 2).min(LAST_RETRY);
        }
    }

    async fn stream(&self, pause: &mut Duration) -> Result<std::convert::Infallible> {
        let certified = self.tls.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let tls = match certified {
            Some(tls) => tls,
            None => {
                let tls = self.sign().await?;
                *self.tls.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&tls));
                tls
            }
        };
        let own = &self.common.cluster.proxies[self.number];
        let (say, said) = mpsc::channel(32);
        let hello = Hello { namespace: own.namespace.clone(), pod: own.pod.clone(), version: "bench".into() };
        tell(&say, Message::Hello(hello)).await?;
        let services = &self.common.cluster.services;
        let add: Vec<String> = own.calls.iter().map(|service| services[*service].address()).collect();
        let mut missing: HashSet<String> = add.iter().cloned().collect();
        tell(&say, Message::Subscribe(Subscribe { add, drop: Vec::new() })).await?;

        let mut client = tonic::client::Grpc::new(self.connect(tls).await?);
        client.ready().await?;
        let codec = ProstCodec::<FromProxy, Update>::default();
        let request = tonic::Request::new(ReceiverStream::new(said));
        let mut updates = client
            .streaming(request, http::uri::PathAndQuery::from_static(STREAM), codec)
            .await?
            .into_inner();
        let (mut complete, mut workload) = (false, false);
        loop {
            let update = updates.message().await?.context("the operator closed the stream")?;
            *pause = FIRST_RETRY;
            if update.version == 0 {
                continue;
            }
            tell(&say, Message::Ack(Ack { version: update.version, rejections: Vec::new() })).await?;
            let (proxy, at) = (self.number, Instant::now());
            if complete {
                let _ = self.common.told.send(Told::Update { proxy, at, update });
                continue;
            }
            workload |= update.workload.is_some();
            for address in &update.addresses {
                missing.remove(&Address::decode(address.clone())?.address);
            }
            if workload && missing.is_empty() {
                complete = true;
                let _ = self.common.told.send(Told::Complete { proxy, at });
            }
        }
    }

    /// Asks for a certificate, on a connection of its own as `weft-proxy` does.
    async fn sign(&self) -> Result<Arc<ClientConfig>> {
        let own = &self.common.cluster.proxies[self.number];
        let anonymous = self.tls_with(None)?;
        let key = KeyPair::generate()?;
        let request = CertificateParams::default().serialize_request(&key)?;
        let token = format!("{}/{}/{}/{}", own.namespace, own.pod, uid(&own.pod), own.account);
        let request = SignRequest { csr_der: request.der().to_vec().into(), token };
        let mut client = IdentityClient::new(self.connect(anonymous).await?);
        let signed = client.sign(request).await?.into_inner();
        let chain = signed.chain_der.iter().map(|der| der.to_vec().into()).collect();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        self.tls_with(Some((chain, key)))
    }

    fn tls_with(
        &self,
        certificate: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    ) -> Result<Arc<ClientConfig>> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(Arc::clone(&self.common.roots));
        let mut config = match certificate {
            Some((chain, key)) => config.with_client_auth_cert(chain, key)?,
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Arc::new(config))
    }

    async fn connect(&self, tls: Arc<ClientConfig>) -> Result<Channel> {
        let tcp = timeout(CONNECT_TIMEOUT, TcpStream::connect(self.common.operator)).await;
        let tcp = tcp.context("connecting took too long")?.context("connecting")?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(OPERATOR)?;
        let shaken = timeout(HANDSHAKE_TIMEOUT, TlsConnector::from(tls).connect(name, tcp)).await;
        let mut only = Some(shaken.context("the handshake took too long")?.context("the handshake")?);
        let connector = tower::service_fn(move |_: http::Uri| {
            let stream = only.take().map(TokioIo::new);
            async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
        });
        let endpoint = Endpoint::from_static("http://weft-operator")
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true)
            .buffer_size(16);
        Ok(endpoint.connect_with_connector(connector).await?)
    }
}

async fn tell(say: &mpsc::Sender<FromProxy>, message: Message) -> Result<()> {
    say.send(FromProxy { message: Some(message) }).await.map_err(|_| anyhow!("the operator does not listen"))
}
