//! What one request or one opaque connection came to: the single thing that the data path tells to metrics and access
//! log, at its end. Built by `inbound` and `outbound`; it never decides anything.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, Uri};
use weft_api::{Identity, Reason};

use crate::authorize::Verdict;
use crate::token::Seen;
use crate::trace::TraceId;

/// Which way a connection goes, seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// To the pod's application.
    Inbound,
    /// From the pod's application.
    Outbound,
}

impl Direction {
    /// The word in logs and labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// What a request was made in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HttpKind {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// gRPC, by its content type.
    Grpc,
}

impl HttpKind {
    /// The word in logs and labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
        }
    }
}

/// One end of a request, as far as it is known. Empty names: unknown.
#[derive(Clone, Debug, Default)]
pub struct Party {
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Owner of the pod: Deployment, StatefulSet, ...
    pub workload: Arc<str>,
    /// Proved by mTLS, or the own one.
    pub identity: Option<Arc<Identity>>,
}

/// One HTTP request, when its response has ended or it has failed.
#[derive(Clone, Debug)]
pub struct RequestRecord {
    /// Which way.
    pub direction: Direction,
    /// HTTP/1, HTTP/2 or gRPC.
    pub kind: HttpKind,
    /// As received.
    pub method: Method,
    /// As received; for the path in the log.
    pub uri: Uri,
    /// The authority that the client named.
    pub host: Option<HeaderValue>,
    /// The `x-request-id` that went to the upstream.
    pub request_id: HeaderValue,
    /// Of the response as the client saw it; 0: the client left before there was one.
    pub status: u16,
    /// From the trailers (or the head of a trailers-only response).
    pub grpc_status: Option<u16>,
    /// Set when the proxy answered, or broke off, by itself.
    pub reason: Option<Reason>,
    /// More about the reason, for the log only.
    pub detail: Option<String>,
    /// From the request's head until the response's end.
    pub duration: Duration,
    /// Bytes of the request's body.
    pub request_bytes: u64,
    /// Bytes of the response's body.
    pub response_bytes: u64,
    /// Attempts beyond the first.
    pub retries: u32,
    /// True when the other proxy was spoken to by mTLS (inbound: when the client did).
    pub mtls: bool,
    /// Who asked.
    pub source: Party,
    /// Who was asked.
    pub destination: Party,
    /// `namespace/name:port` outbound, `namespace/name` inbound; empty: none.
    pub service: Arc<str>,
    /// The route's name; empty: none.
    pub route: Arc<str>,
    /// The other end of the client's connection.
    pub client: SocketAddr,
    /// The endpoint that answered, or was tried last.
    pub upstream: Option<SocketAddr>,
    /// What the rule did in place of, or before, sending it: one word; empty: nothing.
    pub action: &'static str,
    /// What the policies of the own workload say of it, where that is worth a word.
    pub authorization: Option<Box<Verdict>>,
    /// The token that it bore, where somebody looks.
    pub token: Option<Seen>,
    /// The trace that it is of, whether that is told of or not.
    pub trace: Option<TraceId>,
}

/// One opaque connection, when it has ended.
#[derive(Clone, Debug)]
pub struct TcpRecord {
    /// Which way.
    pub direction: Direction,
    /// Set when the proxy refused it or broke it off by itself.
    pub reason: Option<Reason>,
    /// More about the reason, for the log only.
    pub detail: Option<String>,
    /// From accepting until both ways have ended.
    pub duration: Duration,
    /// Bytes from client to upstream.
    pub sent_bytes: u64,
    /// Bytes from upstream to client.
    pub received_bytes: u64,
    /// True when the other proxy was spoken to by mTLS (inbound: when the client did).
    pub mtls: bool,
    /// The server name of the application's own TLS.
    pub sni: Option<String>,
    /// Who connected.
    pub source: Party,
    /// To whom.
    pub destination: Party,
    /// `namespace/name:port` outbound, `namespace/name` inbound; empty: none (an address outside of the mesh).
    pub service: Arc<str>,
    /// The other end of the client's connection.
    pub client: SocketAddr,
    /// What the client connected to.
    pub original: SocketAddr,
    /// The endpoint connected to.
    pub upstream: Option<SocketAddr>,
    /// What the policies of the own workload say of it, where that is worth a word.
    pub authorization: Option<Box<Verdict>>,
}
