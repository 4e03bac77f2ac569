//! Open HTTP connections to upstreams, of one worker. A connection is lent for one exchange (HTTP/1) or shared by many
//! (HTTP/2). It only keeps and counts them: `client` opens them and sends on them.
//!
//! A host here is an endpoint of one service. What is kept for it goes when the endpoint leaves the configuration
//! (nobody else holds its live state then), when its identity changes, or when it was idle for too long.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, RawFd};
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Duration;

use fnv::FnvBuildHasher;
use tokio::sync::Notify;
use tokio::time::Instant;
use weft_api::Identity;

use super::http1::upstream::Connection;
use super::http2;
use crate::error::Error;
use crate::lost::Socket;
use crate::originate::Originate;
use crate::proxy::Proxy;
use crate::snapshot::{Cluster, ClusterLive, Endpoint, EndpointLive};

/// Connections kept per host, beyond which one that becomes idle is closed.
const MAX_IDLE: usize = 256;
/// Requests at the same time on an HTTP/2 connection, beyond which another is opened.
pub(super) const MAX_STREAMS: u32 = 100;
/// Applications of the own pod: patience for a connection, and for an idle one.
const APP_CONNECT: Duration = Duration::from_secs(5);
const APP_IDLE: Duration = Duration::from_secs(30);

/// Where a request goes.
#[derive(Clone, Debug)]
pub enum Destination {
    /// An endpoint of a service.
    Endpoint {
        /// Its cluster, for limits.
        cluster: Arc<Cluster>,
        /// The endpoint.
        endpoint: Arc<Endpoint>,
        /// It is the own pod: no mTLS.
        own: bool,
    },
    /// The own pod's application.
    App(SocketAddr),
}

impl Destination {
    /// An endpoint as this proxy reaches it.
    pub(crate) fn of(proxy: &Proxy, cluster: &Arc<Cluster>, endpoint: &Arc<Endpoint>) -> Self {
        let own = proxy.is_own(endpoint.addr);
        Self::Endpoint { cluster: Arc::clone(cluster), endpoint: Arc::clone(endpoint), own }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        match self {
            Self::Endpoint { endpoint, .. } => endpoint.addr,
            Self::App(addr) => *addr,
        }
    }

    pub(crate) fn identity(&self) -> Option<&Identity> {
        match self {
            Self::Endpoint { endpoint, own: false, .. } => endpoint.identity.as_deref(),
            _ => None,
        }
    }

    pub(crate) fn originate(&self) -> Option<&Originate> {
        match self {
            Self::Endpoint { cluster, .. } => cluster.tls.as_deref(),
            Self::App(_) => None,
        }
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        match self {
            Self::Endpoint { cluster, .. } => cluster.connect_timeout,
            Self::App(_) => APP_CONNECT,
        }
    }

    fn idle_timeout(&self) -> Duration {
        match self {
            Self::Endpoint { cluster, .. } => cluster.idle_timeout,
            Self::App(_) => APP_IDLE,
        }
    }

    fn max_requests(&self) -> u32 {
        match self {
            Self::Endpoint { cluster, .. } => cluster.max_requests_per_connection.unwrap_or(u32::MAX),
            Self::App(_) => u32::MAX,
        }
    }

    fn key(&self) -> Key {
        match self {
            Self::Endpoint { endpoint, .. } => Key::Endpoint(Arc::as_ptr(&endpoint.live) as usize),
            Self::App(addr) => Key::App(*addr),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    // Address of its live state, which is not used again while the host holds a weak reference to it.
    Endpoint(usize),
    App(SocketAddr),
}

/// See the module.
#[derive(Default)]
pub struct Pool {
    hosts: RefCell<HashMap<Key, Rc<Host>, FnvBuildHasher>>,
    /// A connection has become idle, or has closed.
    pub(crate) freed: Arc<Notify>,
}

/// Connections to one host.
pub(crate) struct Host {
    live: Option<Weak<EndpointLive>>,
    cluster: Option<Arc<ClusterLive>>,
    identity: Option<Identity>,
    // Of another trust domain: with which own certificate, and by which bundles, its connections were made.
    abroad: Option<u64>,
    // The one used last at the end.
    http1: RefCell<Vec<Idle>>,
    http2: RefCell<Vec<Rc<Shared>>>,
    /// Held by whoever dials for HTTP/2, so that others wait for that one connection.
    pub(crate) dialling: tokio::sync::Mutex<()>,
    /// How the last dial that others waited for has failed, and how many dials there were.
    pub(crate) dialled: RefCell<(u64, Option<Error>)>,
    // Another has taken its place, or it is not needed any more.
    retired: Cell<bool>,
}

/// An HTTP/1 connection, lent for one exchange.
pub(crate) struct Lent {
    connection: Http1,
    host: Rc<Host>,
}

struct Http1 {
    connection: Connection,
    requests_left: u32,
    idle_timeout: Duration,
}

struct Idle {
    connection: Http1,
    since: Instant,
}

/// An HTTP/2 connection.
pub(crate) struct Shared {
    pub(crate) connection: http2::upstream::Connection,
    pub(crate) watched: Option<Socket>,
    requests_left: Cell<u32>,
    idle_timeout: Duration,
    idle_since: Cell<Instant>,
}

/// One request on an HTTP/2 connection, counted until dropped.
pub(crate) struct Stream(pub(crate) Rc<Shared>);

impl Pool {
    /// The host of a destination. Empties it first if somebody else is expected there now, or if it is of another trust domain
    /// and bundles have changed, or the own certificate: over there what it was shown is looked at again when our roots
    /// change, and an old root goes once every certificate of its was renewed.
    pub(crate) fn host(&self, proxy: &Proxy, to: &Destination) -> Rc<Host> {
        let key = to.key();
        let mut hosts = self.hosts.borrow_mut();
        if let Some(host) = hosts.get(&key)
            && host.identity.as_ref() == to.identity()
            && host.abroad.is_none_or(|made| made == proxy.tls.generation())
        {
            return Rc::clone(host);
        }
        let host = Rc::new(Host::of(proxy, to));
        if let Some(former) = hosts.insert(key, Rc::clone(&host)) {
            former.retired.set(true);
        }
        host
    }

    /// Closes what is not needed any more.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        self.hosts.borrow_mut().retain(|_, host| {
            if host.gone() {
                host.retired.set(true);
                return false;
            }
            host.http1.borrow_mut().retain(|idle| idle.usable(now));
            host.http2
                .borrow_mut()
                .retain(|shared| shared.usable(now) || shared.connection.streams.get() > 0);
            let empty = host.http1.borrow().is_empty() && host.http2.borrow().is_empty();
            // An app's host has nothing else to be kept for.
            !(empty && Rc::strong_count(host) == 1)
        });
    }

    /// Closes every connection that nothing is under way on.
    pub(crate) fn shed(&self) {
        for host in self.hosts.borrow().values() {
            host.http1.borrow_mut().clear();
            host.http2.borrow_mut().retain(|shared| shared.connection.streams.get() > 0);
        }
        self.freed.notify_waiters();
    }

    /// Closes one idle connection of a cluster, so that another may be opened within its limit.
    pub(crate) fn evict(&self, of: &Arc<ClusterLive>) -> bool {
        self.hosts.borrow().values().any(|host| {
            host.cluster.as_ref().is_some_and(|cluster| Arc::ptr_eq(cluster, of))
                && (host.evict_http1() || host.evict_http2())
        })
    }

    /// Takes a connection back after an exchange that has left it usable.
    pub(crate) fn give_back(&self, lent: Lent) {
        let Lent { connection, host } = lent;
        if connection.requests_left > 0 && connection.connection.is_reusable() && !host.retired.get() {
            let mut idle = host.http1.borrow_mut();
            if idle.len() < MAX_IDLE {
                idle.push(Idle { connection, since: Instant::now() });
            }
        }
        self.freed.notify_waiters();
    }
}

impl Host {
    fn of(proxy: &Proxy, to: &Destination) -> Self {
        let (live, cluster) = match to {
            Destination::Endpoint { endpoint, cluster, .. } => {
                (Some(Arc::downgrade(&endpoint.live)), Some(Arc::clone(&cluster.live)))
            }
            Destination::App(_) => (None, None),
        };
        Self {
            live,
            cluster,
            identity: to.identity().cloned(),
            abroad: to
                .identity()
                .filter(|identity| identity.trust_domain != proxy.identity.trust_domain)
                .map(|_| proxy.tls.generation()),
            http1: RefCell::default(),
            http2: RefCell::default(),
            dialling: tokio::sync::Mutex::default(),
            dialled: RefCell::default(),
            retired: Cell::new(false),
        }
    }

    fn gone(&self) -> bool {
        self.live.as_ref().is_some_and(|live| live.strong_count() == 0)
    }

    /// An idle HTTP/1 connection. `certain`: also asks the kernel whether the peer has closed it, for requests that
    /// must not be sent twice.
    pub(crate) fn idle_http1(self: &Rc<Self>, certain: bool) -> Option<Lent> {
        let now = Instant::now();
        let mut idle = self.http1.borrow_mut();
        while let Some(candidate) = idle.pop() {
            if candidate.usable(now) && !(certain && has_input(candidate.connection.connection.socket())) {
                return Some(Lent { connection: candidate.connection, host: Rc::clone(self) });
            }
        }
        None
    }

    pub(crate) fn opened_http1(self: &Rc<Self>, connection: Connection, to: &Destination) -> Lent {
        let (requests_left, idle_timeout) = (to.max_requests(), to.idle_timeout());
        let connection = Http1 { connection, requests_left, idle_timeout };
        Lent { connection, host: Rc::clone(self) }
    }

    /// An HTTP/2 connection with room for another request; without `room`, any that works.
    pub(crate) fn shared_http2(&self, room: bool) -> Option<Stream> {
        let now = Instant::now();
        let mut connections = self.http2.borrow_mut();
        connections.retain(|shared| shared.usable(now) || shared.connection.streams.get() > 0);
        let usable = connections.iter().filter(|shared| shared.usable(now));
        let least = usable.min_by_key(|shared| shared.connection.streams.get())?;
        (!room || least.connection.streams.get() < MAX_STREAMS).then(|| Stream::on(least))
    }

    pub(crate) fn opened_http2(
        &self,
        connection: http2::upstream::Connection,
        watched: Option<Socket>,
        to: &Destination,
    ) -> Stream {
        let shared = Rc::new(Shared {
            connection,
            watched,
            requests_left: Cell::new(to.max_requests()),
            idle_timeout: to.idle_timeout(),
            idle_since: Cell::new(Instant::now()),
        });
        self.http2.borrow_mut().push(Rc::clone(&shared));
        Stream::on(&shared)
    }

    /// The peer is gone: no connection that was open before is trusted.
    pub(crate) fn clear(&self) {
        self.http1.borrow_mut().clear();
        for shared in self.http2.borrow_mut().drain(..) {
            shared.requests_left.set(0);
        }
    }

    /// A peer that said it is going away, or broke off: no further request goes there.
    pub(crate) fn retire(&self, gone: &Rc<Shared>) {
        gone.requests_left.set(0);
        self.http2.borrow_mut().retain(|shared| !Rc::ptr_eq(shared, gone));
    }

    fn evict_http1(&self) -> bool {
        let mut idle = self.http1.borrow_mut();
        !idle.is_empty() && {
            drop(idle.remove(0));
            true
        }
    }

    fn evict_http2(&self) -> bool {
        let mut connections = self.http2.borrow_mut();
        let before = connections.len();
        if let Some(at) = connections.iter().position(|shared| shared.connection.streams.get() == 0) {
            connections.swap_remove(at);
        }
        connections.len() < before
    }
}

impl Lent {
    /// For one more request, which is counted.
    pub(crate) fn connection(&mut self) -> &Connection {
        self.connection.requests_left = self.connection.requests_left.saturating_sub(1);
        &self.connection.connection
    }

    /// For whoever waits on it.
    pub(crate) fn watched(&self) -> Option<Socket> {
        self.connection.connection.watched()
    }
}

impl Idle {
    fn usable(&self, now: Instant) -> bool {
        let connection = &self.connection;
        now.duration_since(self.since) < connection.idle_timeout && connection.connection.is_quiet()
    }
}

impl Shared {
    fn usable(&self, now: Instant) -> bool {
        let idle = self.connection.streams.get() == 0
            && now.duration_since(self.idle_since.get()) >= self.idle_timeout;
        !idle && self.requests_left.get() > 0 && !self.connection.is_closed()
    }
}

impl Stream {
    fn on(shared: &Rc<Shared>) -> Self {
        shared.connection.streams.set(shared.connection.streams.get() + 1);
        shared.requests_left.set(shared.requests_left.get().saturating_sub(1));
        Self(Rc::clone(shared))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let streams = &self.0.connection.streams;
        streams.set(streams.get().saturating_sub(1));
        self.0.idle_since.set(Instant::now());
    }
}

/// Whether there is anything to read on an idle connection: the peer's end, or bytes that nobody asked for.
fn has_input(socket: RawFd) -> bool {
    // SAFETY: the caller holds the connection that the socket belongs to.
    let socket = unsafe { BorrowedFd::borrow_raw(socket) };
    let mut byte = [std::mem::MaybeUninit::uninit()];
    let seen = socket2::SockRef::from(&socket).recv_with_flags(
        &mut byte,
        nix::sys::socket::MsgFlags::MSG_PEEK.bits() | nix::sys::socket::MsgFlags::MSG_DONTWAIT.bits(),
    );
    !matches!(seen, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
}
