//! Proxies in process, and the configuration they get.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_util::sync::CancellationToken;
use weft_api::audit::{Audit, Component};
use weft_api::lines::sink::Sink;
use weft_api::{Identity, v1};
use weft_proxy::access_log::AccessLog;
use weft_proxy::checks::Checker;
use weft_proxy::decisions::Decisions;
use weft_proxy::listener::{self, Listen};
use weft_proxy::metrics::Metrics;
use weft_proxy::original_dst::OriginalDst;
use weft_proxy::proxy::{Leaving, Proxy};
use weft_proxy::record::Direction;
use weft_proxy::snapshot::Snapshot;
use weft_proxy::store::SnapshotStore;
use weft_proxy::tls::{Foreign, Tls};
use weft_proxy::trace::export::Pace;
use weft_proxy::trace::{Collector, Resource, Traces};

/// Where clients believe that they connect to.
pub const VIP: &str = "10.9.9.9:80";
/// Clients that a proxy takes.
pub const MAX_CONNECTIONS: usize = 500;
/// The service behind it.
pub const SERVICE: &str = "shop/back:80";

/// A root.
#[derive(Clone)]
pub struct Ca(Arc<CertifiedIssuer<'static, KeyPair>>);

impl Ca {
    pub fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(Arc::new(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()))
    }

    /// Signs.
    pub fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.0
    }

    pub fn root(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    /// A certificate of a server outside of the mesh.
    pub fn server(&self, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &*self.0).unwrap();
        (vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())))
    }

    pub fn workload(&self, identity: &Identity) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().as_str().try_into().unwrap())];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &*self.0).unwrap();
        (vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())))
    }
}

/// Of an account of ours, or of anybody whose whole SPIFFE id is given.
pub fn identity(account: &str) -> Identity {
    account
        .parse()
        .unwrap_or_else(|_| format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap())
}

pub fn identity_in(domain: &str, account: &str) -> Identity {
    identity(&format!("spiffe://{domain}/ns/shop/sa/{account}"))
}

/// A proxy.
pub struct Node {
    pub outbound: SocketAddr,
    pub inbound: SocketAddr,
    pub store: Arc<SnapshotStore>,
    pub metrics: Arc<Metrics>,
    pub drain: CancellationToken,
    pub exit: CancellationToken,
    pub log: Log,
    /// What the operator would be told of policies for auditors.
    pub decisions: Arc<Decisions>,
    tls: Arc<Tls>,
    to: Arc<Mutex<[SocketAddr; 2]>>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

/// The access log.
#[derive(Clone, Default)]
pub struct Log(Sink);

impl Log {
    pub fn lines(&self) -> Vec<serde_json::Value> {
        self.0.lines().unwrap()
    }

    /// Waits until a line fits.
    pub async fn find(&self, fits: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        for _ in 0..300 {
            if let Some(line) = self.lines().into_iter().find(&fits) {
                return line;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no such line in {:#?}", self.lines());
    }
}

impl Node {
    /// With a certificate for `account`.
    pub fn start(ca: &Ca, account: &str) -> Self {
        Self::start_with(ca, account, Vec::new())
    }

    pub fn start_with(ca: &Ca, account: &str, pod_ips: Vec<IpAddr>) -> Self {
        Self::start_as(ca, account, pod_ips, false, None)
    }

    /// As in a pod: on the real ports, under its own user, believing the kernel. Needs a network namespace and `init`.
    pub fn in_pod(ca: &Ca, account: &str, pod_ips: Vec<IpAddr>) -> Self {
        Self::start_as(ca, account, pod_ips, true, None)
    }

    /// Tells this collector of so many percent of new traces, in a hurry.
    pub fn traced(ca: &Ca, account: &str, collector: SocketAddr, sampling: &str) -> Self {
        Self::start_as(ca, account, Vec::new(), false, Some((collector, sampling)))
    }

    fn start_as(
        ca: &Ca,
        account: &str,
        pod_ips: Vec<IpAddr>,
        pod: bool,
        told: Option<(SocketAddr, &str)>,
    ) -> Self {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(std::env::var("WEFT_LOG").unwrap_or_else(|_| "off".into()))
            .with_test_writer()
            .try_init();
        let (chain, key) = ca.workload(&identity(account));
        let tls = Arc::new(Tls::from_der(chain, key, vec![ca.root()]).unwrap());
        let (store, metrics, log) =
            (Arc::new(SnapshotStore::new()), Arc::new(Metrics::new()), Log::default());
        let to = Arc::new(Mutex::new([VIP.parse().unwrap(); 2]));
        let stated = Arc::clone(&to);
        let traces = told.map_or_else(Traces::off, |(collector, sampling)| {
            traces(account, collector, sampling, &store, &metrics)
        });
        let (audit, decisions) =
            (Audit::to(Component::Proxy, log.0.clone(), || {}), Arc::new(Decisions::default()));
        let heard = Arc::clone(&decisions);
        audit.also(move |event| heard.hear(event));
        let proxy = Arc::new(Proxy {
            store: Arc::clone(&store),
            tls: Arc::clone(&tls),
            metrics: Arc::clone(&metrics),
            access_log: AccessLog::to(log.0.clone(), Arc::clone(&metrics)).unwrap(),
            traces,
            audit,
            identity: Arc::new(identity(account)),
            pod_ips,
            max_connections: MAX_CONNECTIONS,
            interception: Arc::default(),
            leaving: Leaving::Pod,
            memory_limit: None,
            original_dst: if pod {
                OriginalDst::Kernel
            } else {
                OriginalDst::Stated(Arc::new(move |_, direction| {
                    Ok(stated.lock().unwrap()[direction as usize])
                }))
            },
        });
        let (drain, exit) = (CancellationToken::new(), CancellationToken::new());
        let (bound, at) = std::sync::mpsc::channel();
        let (d, e) = (drain.clone(), exit.clone());
        let listen = if pod {
            Listen { outbound: 15001, inbound: 15006, workers: 2, loopback: false }
        } else {
            Listen { outbound: 0, inbound: 0, workers: 1, loopback: true }
        };
        let thread = std::thread::spawn(move || {
            if pod {
                // SAFETY: changes the credentials of this thread, and of those that it starts: the workers.
                let done = unsafe { libc::syscall(libc::SYS_setresuid, 2102, 2102, 2102) };
                assert_eq!(done, 0);
            }
            listener::serve(&proxy, listen, |at| bound.send(at).unwrap(), &d, &e)
        });
        let at = at.recv_timeout(Duration::from_secs(5)).unwrap();
        let node = Self {
            outbound: at.outbound,
            inbound: at.inbound,
            store,
            metrics,
            drain,
            exit,
            log,
            decisions,
            tls,
            to,
            thread: Some(thread),
        };
        node.configure(v1::ToProxy { workload: Some(workload(account)), ..Default::default() });
        node
    }

    /// These other trust domains vouch for their own identities, and no others do. One may be named once for each of its roots.
    pub fn federate(&self, domains: &[(&str, &Ca)]) {
        let mut foreign = Foreign::new();
        for (domain, ca) in domains {
            foreign.entry(domain.parse().unwrap()).or_default().push(ca.root());
        }
        self.tls.set_foreign(foreign).unwrap();
    }

    /// The roots of its own trust domain.
    pub fn trust(&self, cas: &[&Ca]) {
        self.tls.set_roots(cas.iter().map(|ca| ca.root()).collect::<Vec<_>>()).unwrap();
    }

    /// Where the connections that it accepts were going.
    pub fn redirect(&self, direction: Direction, to: SocketAddr) {
        self.to.lock().unwrap()[direction as usize] = to;
    }

    /// Applies an update, as the operator's stream would.
    pub fn configure(&self, update: v1::ToProxy) {
        let (next, rejections): (Snapshot, _) = self.store.load().apply(&update);
        assert!(rejections.is_empty(), "{rejections:?}");
        self.store.publish(next);
    }

    /// Changes what the operator says of the own workload.
    pub fn workload(&self, account: &str, change: impl FnOnce(&mut v1::Workload)) {
        let mut own = workload(account);
        change(&mut own);
        self.configure(v1::ToProxy { workload: Some(own), ..Default::default() });
    }

    /// Behind [`VIP`] there is this service.
    pub fn serve(&self, service: v1::Service) {
        let target = Some(v1::address::Target::Service(service.key.clone()));
        let address = v1::Address { address: VIP.into(), target };
        self.configure(v1::ToProxy {
            services: vec![service],
            addresses: vec![address],
            ..Default::default()
        });
    }

    /// What makes its active checks, under this name.
    pub fn checker(&self, own_name: &str) -> Checker {
        Checker {
            store: Arc::clone(&self.store),
            tls: Arc::clone(&self.tls),
            metrics: Arc::clone(&self.metrics),
            pod_ips: Vec::new(),
            own_name: own_name.to_owned(),
        }
    }

    /// A new certificate.
    pub fn certify(&self, ca: &Ca, account: &str, roots: Vec<CertificateDer<'static>>) {
        let (chain, key) = ca.workload(&identity(account));
        self.tls.set_identity(chain, key, roots).unwrap();
    }

    /// Whether its thread has ended.
    pub fn ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.exit.cancel();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.unwrap().unwrap();
            }
        }
    }
}

fn traces(
    account: &str,
    collector: SocketAddr,
    sampling: &str,
    store: &Arc<SnapshotStore>,
    metrics: &Arc<Metrics>,
) -> Traces {
    let resource = Resource {
        store: Arc::clone(store),
        name: "unknown".into(),
        namespace: "shop".into(),
        pod: format!("{account}-1"),
        uid: String::new(),
    };
    let pace = Pace {
        gather: Duration::from_millis(20),
        patience: Duration::from_millis(500),
        first: Duration::from_millis(10),
        most: Duration::from_millis(50),
        attempts: 3,
    };
    let endpoint = format!("http://{collector}").parse().unwrap();
    let collector = Collector { endpoint, resource, metrics: Arc::clone(metrics), pace };
    Traces::to(collector, sampling.parse().unwrap()).unwrap()
}

pub fn workload(account: &str) -> v1::Workload {
    let who = identity(account);
    v1::Workload {
        namespace: "shop".into(),
        pod: format!("{}-1", who.service_account),
        name: who.service_account.clone(),
        identity: who.to_string(),
        mtls: v1::MtlsMode::Permissive.into(),
        ..Default::default()
    }
}

/// [`SERVICE`], with one route to one cluster of these endpoints; `account`: they are in the mesh.
pub fn service(endpoints: &[SocketAddr], account: Option<&str>) -> v1::Service {
    let endpoints = endpoints
        .iter()
        .enumerate()
        .map(|(n, addr)| v1::Endpoint {
            address: addr.to_string(),
            weight: 1,
            identity: account.map(|account| identity(account).to_string()).unwrap_or_default(),
            pod: format!("back-{n}"),
            workload: "back".into(),
            ..Default::default()
        })
        .collect();
    let cluster = v1::Cluster {
        name: SERVICE.into(),
        balancer: v1::Balancer::RoundRobin.into(),
        endpoints,
        connect_timeout_ms: 1000,
        idle_timeout_ms: 30_000,
        ..Default::default()
    };
    v1::Service {
        key: SERVICE.into(),
        namespace: "shop".into(),
        name: "back".into(),
        port: 80,
        protocol: v1::Protocol::Detect.into(),
        routes: vec![v1::Route {
            name: "default".into(),
            backends: vec![v1::Backend { cluster: SERVICE.into(), weight: 1 }],
            ..Default::default()
        }],
        clusters: vec![cluster],
        default_cluster: SERVICE.into(),
        ..Default::default()
    }
}

/// A client's proxy and a server's, with mTLS between them, and the application behind.
pub struct Mesh {
    pub ca: Ca,
    pub front: Node,
    pub back: Node,
}

impl Mesh {
    pub fn to(app: SocketAddr) -> Self {
        Self::with(app, |_| {})
    }

    /// The same, and both tell a collector of traces.
    pub fn traced(
        app: SocketAddr,
        collector: SocketAddr,
        sampling: &str,
        change: impl FnOnce(&mut v1::Service),
    ) -> Self {
        let ca = Ca::new();
        let [front, back] = ["front", "back"].map(|account| Node::traced(&ca, account, collector, sampling));
        back.redirect(Direction::Inbound, app);
        let mut service = service(&[back.inbound], Some("back"));
        change(&mut service);
        front.serve(service);
        Self { ca, front, back }
    }

    /// With a change to the service.
    pub fn with(app: SocketAddr, change: impl FnOnce(&mut v1::Service)) -> Self {
        let ca = Ca::new();
        let (front, back) = (Node::start(&ca, "front"), Node::start(&ca, "back"));
        back.redirect(Direction::Inbound, app);
        let mut service = service(&[back.inbound], Some("back"));
        change(&mut service);
        front.serve(service);
        Self { ca, front, back }
    }
}

/// One proxy, and endpoints outside of the mesh.
pub fn plain(endpoints: &[SocketAddr], change: impl FnOnce(&mut v1::Service)) -> Node {
    let node = Node::start(&Ca::new(), "front");
    let mut service = service(endpoints, None);
    change(&mut service);
    node.serve(service);
    node
}
