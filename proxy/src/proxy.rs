//! What all workers of the data path share: configuration, certificates, where to record. Built once at start; nothing
//! in it is locked by a request.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use weft_api::audit::Audit;
use weft_api::{Identity, Reason};

use crate::access_log::AccessLog;
use crate::audit;
use crate::interception::Interception;
use crate::metrics::Metrics;
use crate::original_dst::OriginalDst;
use crate::record::{Direction, Party, RequestRecord, TcpRecord};
use crate::snapshot::Snapshot;
use crate::store::SnapshotStore;
use crate::tls::Tls;
use crate::trace::Traces;

/// See the module.
pub struct Proxy {
    /// Configuration.
    pub store: Arc<SnapshotStore>,
    /// Own certificate and trust bundle.
    pub tls: Arc<Tls>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// One line per request and connection.
    pub access_log: AccessLog,
    /// Spans of requests.
    pub traces: Traces,
    /// What auditors are told.
    pub audit: Audit,
    /// Who this workload is.
    pub identity: Arc<Identity>,
    /// Addresses of the own pod: an endpoint of these is the own application, called without mTLS.
    pub pod_ips: Vec<IpAddr>,
    /// Connections at the same time, in and out together.
    pub max_connections: usize,
    /// Where redirected connections were going.
    pub original_dst: OriginalDst,
    /// Whether connections are redirected at all.
    pub interception: Arc<Interception>,
    /// How clients are told to leave.
    pub leaving: Leaving,
    /// Bytes that the process may hold; near it, new work is refused. `None`: without bound.
    pub memory_limit: Option<u64>,
}

/// How a proxy that drains gets rid of its clients' connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Leaving {
    /// In a pod: those from outside at once, those of the own application never, because it may still need them.
    #[default]
    Pod,
    /// By itself: no listener accepts any more, and connections of both ways are closed with their next response. Those
    /// without a request have this long to make one, so that none is closed while a request is on its way.
    Gently(Duration),
}

impl Proxy {
    /// The own pod as one end of a request.
    #[must_use]
    pub fn party(&self, snapshot: &Snapshot) -> Party {
        let identity = Some(Arc::clone(&self.identity));
        snapshot.workload.as_ref().map_or_else(
            || Party { identity: identity.clone(), ..peer_party(&self.identity, &self.identity) },
            |own| Party {
                namespace: Arc::clone(&own.namespace),
                workload: Arc::clone(&own.name),
                identity: identity.clone(),
            },
        )
    }

    /// Whether an address is the own pod's.
    #[must_use]
    pub fn is_own(&self, addr: SocketAddr) -> bool {
        self.pod_ips.contains(&addr.ip())
    }

    /// The end of a request.
    pub fn record(&self, record: &RequestRecord) {
        self.metrics.request(record);
        self.access_log.request(record);
    }

    /// The policies have decided on a request.
    pub fn decided(&self, record: &RequestRecord) {
        if record.authorization.is_some()
            && self.audit.is_on()
            && let Some(event) = audit::request(record)
        {
            self.audit.event(event);
        }
    }

    /// The policies have decided on an opaque connection.
    pub fn decided_tcp(&self, record: &TcpRecord) {
        if record.authorization.is_some()
            && self.audit.is_on()
            && let Some(event) = audit::connection(record)
        {
            self.audit.event(event);
        }
    }

    /// The end of an opaque connection.
    pub fn record_tcp(&self, record: &TcpRecord) {
        self.metrics.tcp(record);
        self.access_log.tcp(record);
    }

    /// A connection refused before it was known what it is.
    pub fn refuse(&self, direction: Direction, reason: Reason, peer: SocketAddr, detail: Option<&str>) {
        self.metrics.refusal(direction, reason);
        tracing::info!(
            direction = direction.as_str(),
            reason = reason.as_str(),
            %peer,
            detail = detail.unwrap_or_default(),
            "connection refused"
        );
    }
}

/// A client known by its certificate only. Of another trust domain than the `own` one, its namespace bears that domain's name: it
/// is none of ours, whatever it is called.
#[must_use]
pub fn peer_party(identity: &Identity, own: &Identity) -> Party {
    let namespace = if identity.trust_domain == own.trust_domain {
        identity.namespace.as_str().into()
    } else {
        format!("{}/{}", identity.trust_domain, identity.namespace).into()
    };
    Party { namespace, workload: identity.service_account.as_str().into(), identity: None }
}
