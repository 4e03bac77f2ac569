//! What the proxy knows of the mesh: immutable, complete, parsed and checked from the operator's updates. A request
//! loads it once and keeps that view. Only `live` parts change under it: counters that outlive an update because they
//! are carried over by key. It does no I/O and holds nothing that has not been checked.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use weft_api::{Identity, names, v1};

use crate::adaptive::Adaptive;
use crate::authorize::Authorization;
pub use crate::balance::hash::HashOn;
use crate::balance::ramp::SlowStart;
use crate::balance::strain::Strain;
use crate::balance::tiers::{Locality, Plan};
use crate::breaker::Breaker;
use crate::checks::standing::{ActiveCheck, Checked};
use crate::egress::{Egress, Host};
use crate::ewma::Latency;
use crate::http::patience::Usual;
use crate::limit::Limits;
use crate::originate::Originate;
use crate::outlier::judge::{Tally, Window};
use crate::outlier::{Admission, Cause, Ejecting, Health, OutlierConfig};
use crate::retry::Budget;
use crate::route::Route;
use crate::route::precedence::Ranked;
use crate::token::Tokens;

mod apply;
mod parse;
#[cfg(test)]
pub(crate) mod tests;

/// All that this proxy has been told, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The own pod. `None` until the operator has told.
    pub workload: Option<Arc<Workload>>,
    /// What each known original destination is.
    pub addresses: HashMap<SocketAddr, Target>,
    /// By "namespace/name:port".
    pub services: HashMap<Arc<str>, Arc<Service>>,
    /// The external ones among them, by what tells that they are meant.
    pub egress: Arc<Egress>,
    health: HealthChanges,
}

/// What an original destination is.
#[derive(Clone, Debug)]
pub enum Target {
    /// A service, balanced over its endpoints.
    Service(Arc<Service>),
    /// One endpoint of a service, called by its own address.
    Pinned(Arc<Service>, Arc<Endpoint>),
    /// Nothing of the mesh.
    External,
}

/// Which connections a port of the own pod takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MtlsMode {
    /// Both.
    Permissive,
    /// mTLS only.
    Strict,
    /// Plaintext only.
    Disable,
}

/// What a port speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Not told: look at the first bytes.
    #[default]
    Detect,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge, gRPC too.
    Http2,
    /// The application's own TLS.
    Tls,
    /// Opaque bytes.
    Tcp,
}

/// The own pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub pod: Arc<str>,
    /// Its owner's name: the metrics label.
    pub name: Arc<str>,
    /// Who it is.
    pub identity: Arc<Identity>,
    /// For every port that `port_mtls` does not name.
    pub mtls: MtlsMode,
    /// By container port.
    pub port_mtls: HashMap<u16, MtlsMode>,
    /// By container port.
    pub port_protocol: HashMap<u16, Protocol>,
    /// Kubelet probes that pass without mTLS.
    pub probes: Vec<Probe>,
    /// Container port to "namespace/name" of a service: the metrics label.
    pub port_service: HashMap<u16, Arc<str>>,
    /// What shaped it.
    pub sources: Vec<v1::Source>,
    /// Limits on the requests to its ports. `None`: there are none.
    pub limits: Option<Arc<Limits>>,
    /// Who may ask it for what. `None`: whoever `mtls` lets in.
    pub authorization: Option<Arc<Authorization>>,
    /// Which tokens requests may bear. `None`: nobody looks at them.
    pub tokens: Option<Arc<Tokens>>,
    /// Connections to what is neither of the cluster nor registered are refused.
    pub registered_only: bool,
    /// The zone of its node, empty when unknown.
    pub zone: Arc<str>,
    /// The region of its node, empty when unknown.
    pub region: Arc<str>,
}

/// A kubelet probe that the pod declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// GET of this path and query, compared whole.
    Http(u16, String),
    /// grpc.health.v1.Health/Check of this service name.
    Grpc(u16, String),
}

/// One port of a Kubernetes Service.
#[derive(Debug)]
pub struct Service {
    /// "namespace/name:port".
    pub key: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its port, not the container's.
    pub port: u16,
    /// What it speaks.
    pub protocol: Protocol,
    /// The first that matches counts; the last one matches everything. Never empty.
    pub routes: Vec<Route>,
    /// Where the most specific match counts: the matches of all routes but the last, in the order in which they are tried.
    pub ranked: Option<Vec<Ranked>>,
    /// All that routes lead to.
    pub clusters: Vec<Arc<Cluster>>,
    /// For opaque bytes and pinned endpoints; one of `clusters`.
    pub default_cluster: Arc<Cluster>,
    /// Names of the service, for logs and explanations.
    pub hosts: Vec<String>,
    /// What shaped it.
    pub sources: Vec<v1::Source>,
    /// Outside of the cluster: the hosts that it is found by.
    pub external: Option<Vec<Host>>,
    /// Carried over updates by key.
    pub live: Arc<ServiceLive>,
    // Of the message that it was parsed from: equal ones keep the same `Arc`.
    fingerprint: u64,
    /// The message itself, where it has to be read anew when the own zone becomes known.
    message: Option<Arc<v1::Service>>,
}

/// What outlives an update of a service.
#[derive(Debug, Default)]
pub struct ServiceLive {
    /// Of all retries to the service together.
    pub budget: Budget,
    learned: AtomicU8,
}

/// Endpoints that are balanced together: a whole service or a subset.
#[derive(Debug)]
pub struct Cluster {
    /// "namespace/name:port" or "namespace/name:port/subset".
    pub name: Arc<str>,
    /// How an endpoint is chosen.
    pub balancer: Balancer,
    /// In the operator's order.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Limits on what is open towards them.
    pub breaker: Arc<Breaker>,
    /// When an endpoint is taken out. `None`: never.
    pub outlier: Option<OutlierConfig>,
    /// Until TCP and mTLS are established.
    pub connect_timeout: Duration,
    /// After which an unused connection is closed.
    pub idle_timeout: Duration,
    /// After which a connection is replaced.
    pub max_requests_per_connection: Option<u32>,
    /// TLS that the proxy speaks to the endpoints in the application's place.
    pub tls: Option<Arc<Originate>>,
    /// How endpoints are checked. `None`: not at all.
    pub active: Option<Arc<ActiveCheck>>,
    /// Carried over updates by name.
    pub live: Arc<ClusterLive>,
    /// What RingHash and Maglev look at; only with them.
    pub hash: Option<HashOn>,
    /// How new endpoints come to their share. `None`: at once.
    pub slow_start: Option<SlowStart>,
    /// What nearness means. `None`: nothing.
    pub locality: Option<Locality>,
    /// While no more than this share is healthy, in percent, health does not count.
    pub panic_threshold: u32,
    pub(crate) plan: Plan,
    /// A limit on requests under way that finds itself. Carried over updates by name.
    pub adaptive: Option<Arc<Adaptive>>,
}

/// What outlives an update of a cluster, besides its breaker.
#[derive(Debug, Default)]
pub struct ClusterLive {
    /// Tickets of RoundRobin, for each tier its own: those that share one are no longer in turn among themselves.
    turns: [AtomicU64; 4],
    /// Tickets of RoundRobin among those that are left. Not the same ones: drawing a fixed number of tickets in vain
    /// each time would lead to the same endpoint again and again.
    pub(crate) turn_of_rest: AtomicU64,
    pub(crate) ejecting: Ejecting,
    /// Where endpoints are judged beside each other.
    pub(crate) window: Window,
    /// How long connecting takes.
    pub(crate) usual: Usual,
}

impl ClusterLive {
    pub(crate) fn turn(&self, tier: usize) -> &AtomicU64 {
        &self.turns[tier % self.turns.len()]
    }
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Balancer {
    /// The better of two by latency and requests in flight.
    #[default]
    PeakEwma,
    /// The better of two by requests in flight.
    LeastRequest,
    /// In turn.
    RoundRobin,
    /// At random.
    Random,
    /// By a key: the next point on a ring.
    RingHash,
    /// By a key: a slot of a table.
    Maglev,
}

/// One address of a cluster.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its share relative to others; 0: only when nothing else is left.
    pub weight: u32,
    /// Who must answer there. `None`: not in the mesh, plaintext.
    pub identity: Option<Arc<Identity>>,
    /// The pod, for logs.
    pub pod: Arc<str>,
    /// The pod's owner: the metrics label.
    pub workload: Arc<str>,
    /// Its zone, empty when unknown.
    pub zone: Arc<str>,
    /// Its region, empty when unknown.
    pub region: Arc<str>,
    /// Lower ones come first; equal ones stand in for each other.
    pub priority: u32,
    /// Carried over updates by service, address and pod.
    pub live: Arc<EndpointLive>,
    /// What the operator says of its checks. `None`: it is not checked.
    pub check: Option<EndpointCheck>,
}

/// What the operator says of the checks of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointCheck {
    /// Who must answer at the port that is checked. `None`: plaintext.
    pub identity: Option<Arc<Identity>>,
    /// Most of its checkers find it so.
    pub unhealthy: bool,
}

/// What outlives an update of an endpoint.
#[derive(Debug)]
pub struct EndpointLive {
    pub(crate) in_flight: std::sync::atomic::AtomicU32,
    pub(crate) latency: Latency,
    pub(crate) health: Health,
    /// Counted only where endpoints are judged beside each other.
    pub(crate) tally: Tally,
    pub(crate) strain: Strain,
    /// When it came to a service that was known before. `None`: it was there from the beginning.
    pub(crate) since: Option<Instant>,
    /// What this proxy's own active checks say.
    pub(crate) checked: Checked,
}

/// Counts ejections and returns of every endpoint, for whoever reports them.
#[derive(Clone, Debug)]
pub(crate) struct HealthChanges(pub(crate) Arc<watch::Sender<u64>>);

impl Default for HealthChanges {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }
}

impl Snapshot {
    /// Changes with every ejection and return. The receiver stays valid over updates of this snapshot.
    #[must_use]
    pub fn ejection_changes(&self) -> watch::Receiver<u64> {
        self.health.0.subscribe()
    }

    /// Every endpoint that is out of balancing now, ejected or unhealthy, once per service, in order.
    #[must_use]
    pub fn ejections(&self) -> Vec<v1::Ejection> {
        self.report(|cluster, endpoint| {
            let ejected = cluster.outlier.as_ref().and_then(|_| endpoint.live.health.ejected());
            endpoint.unhealthy().or_else(|| Some(ejected?.to_string()))
        })
    }

    /// Every endpoint that is unhealthy by active checks, whoever makes them.
    #[must_use]
    pub fn unhealthy(&self) -> Vec<v1::Ejection> {
        self.report(|_, endpoint| endpoint.unhealthy())
    }

    /// Every endpoint that this proxy's own checks find unhealthy.
    #[must_use]
    pub fn checked(&self) -> Vec<v1::CheckedEndpoint> {
        let own = self.report(|_, endpoint| (endpoint.live.checked.is_unhealthy()?).then(String::new));
        let row = |e: v1::Ejection| v1::CheckedEndpoint { service: e.service, endpoint: e.endpoint };
        own.into_iter().map(row).collect()
    }

    fn report(&self, cause: impl Fn(&Cluster, &Endpoint) -> Option<String>) -> Vec<v1::Ejection> {
        let mut ejected: Vec<v1::Ejection> = self
            .services
            .values()
            .flat_map(|service| &service.clusters)
            .filter(|cluster| cluster.outlier.is_some() || cluster.active.is_some())
            .flat_map(|cluster| cluster.endpoints.iter().map(move |endpoint| (cluster, endpoint)))
            .filter_map(|(cluster, endpoint)| {
                Some(v1::Ejection {
                    service: service_of(&cluster.name).to_owned(),
                    endpoint: endpoint.addr.to_string(),
                    cause: cause(cluster, endpoint)?,
                })
            })
            .collect();
        ejected.sort_by(|a, b| (&a.service, &a.endpoint).cmp(&(&b.service, &b.endpoint)));
        ejected.dedup_by(|a, b| (&a.service, &a.endpoint) == (&b.service, &b.endpoint));
        ejected
    }

    /// Whether connections to what is neither of the cluster nor registered are refused.
    #[must_use]
    pub fn registered_only(&self) -> bool {
        self.workload.as_ref().is_some_and(|own| own.registered_only)
    }

    /// A destination that has no configuration, as a service with one endpoint, for HTTP that is passed on to it.
    #[must_use]
    pub fn unregistered(address: SocketAddr) -> Option<Arc<Service>> {
        parse::unregistered(address).map(Arc::new)
    }

    /// Limits that find themselves, by cluster.
    pub fn adaptive_limits(&self) -> impl Iterator<Item = (&str, u32)> {
        let clusters = self.services.values().flat_map(|service| &service.clusters);
        clusters.filter_map(|cluster| Some((&*cluster.name, cluster.adaptive.as_ref()?.limit())))
    }

    /// The same without these addresses. Services stay until the operator removes them.
    #[must_use]
    pub fn without(&self, addresses: &[SocketAddr]) -> Self {
        let mut rest = self.clone();
        for address in addresses {
            rest.addresses.remove(address);
        }
        rest
    }
}

/// The service's key in the name of a cluster: "namespace/name:port/subset" without the subset.
pub(crate) fn service_of(cluster: &str) -> &str {
    cluster.match_indices('/').nth(1).map_or(cluster, |(end, _)| &cluster[..end])
}

impl Workload {
    /// Which connections a container port takes.
    #[must_use]
    pub fn mtls_for(&self, port: u16) -> MtlsMode {
        self.port_mtls.get(&port).copied().unwrap_or(self.mtls)
    }

    /// What a container port speaks.
    #[must_use]
    pub fn protocol_for(&self, port: u16) -> Protocol {
        self.port_protocol.get(&port).copied().unwrap_or_default()
    }

    /// "namespace/name" of the service in front of a container port.
    #[must_use]
    pub fn service_for(&self, port: u16) -> Option<&Arc<str>> {
        self.port_service.get(&port)
    }

    /// Limits on the requests to a container port.
    #[must_use]
    pub fn limits_on(&self, port: u16) -> Option<&Arc<Limits>> {
        self.limits.as_ref().filter(|limits| limits.on(port))
    }

    /// Whether the pod declares an HTTP probe of exactly this.
    #[must_use]
    pub fn is_http_probe(&self, port: u16, path_and_query: &str) -> bool {
        self.probes
            .iter()
            .any(|probe| matches!(probe, Probe::Http(p, path) if *p == port && path == path_and_query))
    }

    /// Whether the pod declares a gRPC probe of exactly this.
    #[must_use]
    pub fn is_grpc_probe(&self, port: u16, service: &str) -> bool {
        self.probes.iter().any(|probe| matches!(probe, Probe::Grpc(p, name) if *p == port && name == service))
    }
}

impl ServiceLive {
    /// What was found on this service's connections earlier; `Detect` when nothing was.
    #[must_use]
    pub fn learned(&self) -> Protocol {
        match self.learned.load(Ordering::Relaxed) {
            1 => Protocol::Http1,
            2 => Protocol::Http2,
            3 => Protocol::Tls,
            4 => Protocol::Tcp,
            _ => Protocol::Detect,
        }
    }

    /// Remembers what was found.
    pub fn learn(&self, protocol: Protocol) {
        self.learned.store(protocol as u8, Ordering::Relaxed);
    }
}

impl Cluster {
    /// Whether its endpoints are judged beside each other.
    pub(crate) fn is_judged(&self) -> bool {
        self.outlier.as_ref().is_some_and(|outlier| outlier.interval.is_some())
    }

    /// Whether an endpoint of it takes requests now. One branch each for what a cluster does not use.
    pub(crate) fn admission(&self, endpoint: &Endpoint, now: tokio::time::Instant) -> Admission {
        if self.active.is_some() && endpoint.is_unhealthy() {
            return Admission::Out;
        }
        if self.outlier.is_some() { endpoint.live.health.admits(now) } else { Admission::In }
    }
}

impl Endpoint {
    /// By active checks: the own ones where there are any, otherwise what the others found.
    #[must_use]
    pub fn is_unhealthy(&self) -> bool {
        let told = self.check.as_ref().is_some_and(|check| check.unhealthy);
        self.check.is_some() && self.live.checked.is_unhealthy().unwrap_or(told)
    }

    /// The same, with the cause.
    #[must_use]
    pub fn unhealthy(&self) -> Option<String> {
        self.is_unhealthy().then(|| match self.live.checked.is_unhealthy() {
            Some(_) => format!("unhealthy: {}", self.live.checked.why()),
            None => format!("unhealthy: {}", names::HEARSAY),
        })
    }
}

impl EndpointLive {
    pub(crate) fn new(changes: &HealthChanges, since: Option<Instant>) -> Self {
        Self {
            in_flight: std::sync::atomic::AtomicU32::new(0),
            latency: Latency::default(),
            health: Health::new(Arc::clone(&changes.0)),
            tally: Tally::default(),
            strain: Strain::default(),
            since,
            checked: Checked::default(),
        }
    }

    /// Requests (or connections, for opaque bytes) under way.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// The moving average, if anything was measured.
    #[must_use]
    pub fn latency(&self) -> Option<Duration> {
        self.latency.get(Instant::now())
    }

    /// Why it is ejected, if it is.
    #[must_use]
    pub fn ejected(&self) -> Option<Cause> {
        self.health.ejected()
    }

    /// If it is ejected: why, and how much longer (nothing: it may be probed).
    #[must_use]
    pub fn ejection(&self, now: Instant) -> Option<(Cause, Duration)> {
        self.health.ejection(now)
    }

    /// Ejections in a row.
    #[must_use]
    pub fn ejections(&self) -> u32 {
        self.health.ejections()
    }
}
