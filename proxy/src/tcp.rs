//! Opaque connections: chooses and opens the upstream, copies, records. Shared by both paths. It never looks at bytes.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use weft_api::Reason;

use crate::authorize::Verdict;
use crate::balance::{self, Load, Outcome, hash};
use crate::breaker::Permit;
use crate::connect::{self, Counted};
use crate::error::{Error, Side};
use crate::forward::{self, Abort, Broken, Counts};
use crate::outlier;
use crate::prefixed::Prefixed;
use crate::record::{Direction, Party, TcpRecord};
use crate::snapshot::Target;
use crate::tls::{Abroad, Alpn};
use crate::worker::{Rest, Worker};

/// Endpoints that are tried for one connection.
const MAX_TRIES: usize = 3;
/// For destinations that have no configuration: outside of the mesh, and the own application.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// An opaque connection; recorded when it is dropped.
pub(crate) struct Opaque {
    worker: Rc<Worker>,
    started: Instant,
    counts: Rc<Counts>,
    pub(crate) record: TcpRecord,
}

/// Why an open connection is broken off.
pub(crate) struct End {
    pub(crate) error: Error,
    /// By the policies of the own workload.
    pub(crate) authorization: Option<Box<Verdict>>,
}

/// Bundles have changed.
#[derive(Debug, thiserror::Error)]
#[error("nobody vouches any more for the upstream, which is of another trust domain")]
struct Disowned;

/// An open upstream, counted until dropped.
pub(crate) struct Opened {
    pub(crate) io: Prefixed<Counted>,
    addr: SocketAddr,
    mtls: bool,
    destination: Party,
    /// It is of another trust domain.
    abroad: Option<Abroad>,
    held: Held,
}

/// What an endpoint counts it by, until dropped.
#[derive(Default)]
struct Held {
    _load: Option<Load>,
    _permits: Option<[Permit; 2]>,
}

impl Opaque {
    pub(crate) fn begin(
        worker: &Rc<Worker>,
        direction: Direction,
        client: SocketAddr,
        original: SocketAddr,
    ) -> Self {
        let record = TcpRecord {
            direction,
            reason: None,
            detail: None,
            duration: Duration::ZERO,
            sent_bytes: 0,
            received_bytes: 0,
            mtls: false,
            sni: None,
            source: Party::default(),
            destination: Party::default(),
            service: Arc::default(),
            client,
            original,
            upstream: None,
            authorization: None,
        };
        Self { worker: Rc::clone(worker), started: Instant::now(), counts: Rc::default(), record }
    }

    /// Ends it with a reason.
    pub(crate) fn refuse(mut self, error: &Error) {
        self.break_off(error);
    }

    /// Opens the upstream; what is left is to copy.
    pub(crate) async fn dial<C>(
        self,
        client: C,
        dial: impl Future<Output = Result<Opened, Error>>,
    ) -> Option<Rest<'static>>
    where
        C: AsyncRead + AsyncWrite + Abort + Unpin + 'static,
    {
        match dial.await {
            Ok(opened) => Some(self.run(client, opened)),
            Err(error) => {
                self.refuse(&error);
                None
            }
        }
    }

    /// Notes what the policies say of it.
    pub(crate) fn note(&mut self, verdict: Verdict) {
        self.record.authorization = verdict.noted();
        self.worker.proxy.decided_tcp(&self.record);
    }

    fn break_off(&mut self, error: &Error) {
        self.record.reason = Some(error.reason());
        self.record.detail = error.detail();
    }

    fn cut(&mut self, end: End) {
        self.break_off(&end.error);
        if end.authorization.is_some() {
            self.record.authorization = end.authorization;
            self.worker.proxy.decided_tcp(&self.record);
        }
    }

    /// Copies until both sides have ended.
    pub(crate) fn run<C>(self, client: C, opened: Opened) -> Rest<'static>
    where
        C: AsyncRead + AsyncWrite + Abort + Unpin + 'static,
    {
        let Some(abroad) = opened.abroad else {
            return Box::pin(self.run_until(client, opened, std::future::pending()));
        };
        let proxy = Arc::clone(&self.worker.proxy);
        let opened = Opened { abroad: None, ..opened };
        let disowned = async move {
            abroad.disowned(&proxy.tls).await;
            End { error: Error::new(Reason::TlsHandshake, Disowned), authorization: None }
        };
        Box::pin(self.run_until(client, opened, disowned))
    }

    /// The same, or until there is a reason to break it off.
    pub(crate) fn run_until<C>(
        mut self,
        mut client: C,
        opened: Opened,
        end: impl Future<Output = End>,
    ) -> impl Future<Output = ()>
    where
        C: AsyncRead + AsyncWrite + Abort + Unpin,
    {
        let Opened { mut io, addr, mtls, destination, held, .. } = opened;
        self.record.upstream = Some(addr);
        if self.record.direction == Direction::Outbound {
            self.record.mtls = mtls;
            self.record.destination = destination;
        }
        async move {
            let _held = held;
            let counts = Rc::clone(&self.counts);
            tokio::select! {
                copied = forward::copy(&mut client, &mut io, &counts) => {
                    if let Some(Broken::Upstream(e)) = copied.broken {
                        self.break_off(&Error::new(Reason::UpstreamReset, e));
                    }
                }
                end = end => {
                    self.cut(end);
                    client.abort();
                    io.abort();
                }
            }
        }
    }
}

impl Drop for Opaque {
    fn drop(&mut self) {
        if self.worker.cuts_off() {
            self.record.reason.get_or_insert(Reason::Draining);
        }
        self.record.duration = self.started.elapsed();
        self.record.sent_bytes = self.counts.sent();
        self.record.received_bytes = self.counts.received();
        self.worker.proxy.record_tcp(&self.record);
    }
}

impl Opened {
    /// `bytes` were read from it already.
    pub(crate) fn with_prefix(mut self, bytes: Bytes) -> Self {
        self.io = Prefixed::new(bytes, self.io.into_inner());
        self
    }
}

/// Opens the upstream of a service, or of one of its endpoints; another endpoint when one cannot be reached.
pub(crate) async fn dial(worker: &Rc<Worker>, client: SocketAddr, target: &Target) -> Result<Opened, Error> {
    let (service, pinned) = match target {
        Target::Service(service) => (service, None),
        Target::Pinned(service, endpoint) => (service, Some(endpoint)),
        Target::External => return Err(Reason::NoHealthyEndpoint.into()),
    };
    let cluster = &service.default_cluster;
    let key = cluster.hash.as_ref().and_then(|on| hash::key_of_connection(on, client.ip()));
    let mut tried = Vec::new();
    loop {
        let now = Instant::now();
        let mut load = match pinned {
            Some(endpoint) => balance::pinned(cluster, endpoint, now),
            None => worker.with_rng(|rng| balance::pick(cluster, key, &tried, now, rng))?,
        };
        let permits = [cluster.breaker.request()?, cluster.breaker.connection()?];
        let endpoint = Arc::clone(&load.endpoint);
        let identity = endpoint.identity.as_deref().filter(|_| !worker.proxy.is_own(endpoint.addr));
        // Nothing was sent yet: another endpoint is as good, if one takes longer than is usual.
        let more = tried.len() + 1 < MAX_TRIES && pinned.is_none();
        let limit = if more && balance::another(cluster, &tried, endpoint.addr, now) {
            cluster.connect_timeout.min(cluster.live.usual.patience())
        } else {
            cluster.connect_timeout
        };
        let connecting = async {
            match &cluster.tls {
                Some(originate) => originate.open(endpoint.addr, Alpn::Tcp, limit).await,
                None => connect::open(&worker.proxy.tls, endpoint.addr, identity, Alpn::Tcp, limit).await,
            }
        };
        match Box::pin(connecting).await {
            Ok(stream) => {
                let own = &worker.proxy.identity;
                let abroad = identity.and_then(|peer| Abroad::of(own, peer, stream.session()?, false));
                cluster.live.usual.observe(now.elapsed());
                worker.report(&service.key, &mut load, Outcome::Success { latency: now.elapsed() });
                return Ok(Opened {
                    io: Prefixed::new(Bytes::new(), Counted::new(&worker.proxy, stream)),
                    addr: endpoint.addr,
                    mtls: identity.is_some(),
                    destination: Party {
                        namespace: Arc::clone(&service.namespace),
                        workload: Arc::clone(&endpoint.workload),
                        identity: endpoint.identity.clone(),
                    },
                    abroad,
                    held: Held { _load: Some(load), _permits: Some(permits) },
                });
            }
            Err(error) => {
                worker.make_room_after(&error);
                let failed = match error.side() {
                    Side::Upstream => Outcome::Failure(outlier::Failure::Connect),
                    Side::Client | Side::Proxy => Outcome::Neutral,
                };
                worker.report(&service.key, &mut load, failed);
                tried.push(endpoint.addr);
                let others = cluster.endpoints.iter().any(|other| !tried.contains(&other.addr));
                if pinned.is_some() || tried.len() >= MAX_TRIES || !others || error.side() != Side::Upstream {
                    return Err(error);
                }
            }
        }
    }
}

/// Opens a plain connection to an address: outside of the mesh, or the own application.
pub(crate) async fn dial_plain(worker: &Rc<Worker>, addr: SocketAddr) -> Result<Opened, Error> {
    let stream = connect::open(&worker.proxy.tls, addr, None, Alpn::Tcp, CONNECT_TIMEOUT).await?;
    Ok(Opened {
        io: Prefixed::new(Bytes::new(), Counted::new(&worker.proxy, stream)),
        addr,
        mtls: false,
        destination: Party::default(),
        abroad: None,
        held: Held::default(),
    })
}
