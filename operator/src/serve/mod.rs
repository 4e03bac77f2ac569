//! The gRPC port: signing, configuration, and what replicas tell each other. TLS 1.3 with a certificate that renews while
//! it serves; a client's certificate is optional here and demanded by the services that need one.

mod accept;
mod decisions;
pub mod fleet;
pub mod limits;
mod pace;
pub mod peer;
mod peers;
pub mod refusals;
pub mod review;
mod session;
mod sign;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use weft_api::audit::Audit;
use weft_api::v1::AppliedReply;
use weft_api::v1::identity_server::IdentityServer;
use weft_api::v1::peers_server::PeersServer;

pub(crate) use pace::Pace;
pub use session::{MAX_ADDRESSES, Refusal, Session, bundle_source};
pub(crate) use sign::OF_A_POD;

use crate::ca::Authority;
use crate::ca::serving::Serving;
use crate::keys::Missed;
use crate::metrics::Metrics;
use crate::store::Store;
use fleet::Fleet;
use limits::Limits;
use refusals::Refusals;
use review::Reviewer;

/// A client that does not answer a ping in time is gone.
const PING_EVERY: Duration = Duration::from_secs(15);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests that one connection may have open.
const MAX_STREAMS: u32 = 32;

/// What the services share.
pub struct Shared {
    /// The index.
    pub store: Arc<Store>,
    /// The connected proxies.
    pub fleet: Arc<Fleet>,
    /// What they are asked for under limits that they share.
    pub limits: Arc<Limits>,
    /// Keys of issuers that they lack.
    pub missed: Arc<Missed>,
    /// Certificates that were refused to pods.
    pub refusals: Refusals,
    /// Signs.
    pub authority: Arc<Authority>,
    /// The operator's own certificate.
    pub serving: Arc<Serving>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// What auditors are told.
    pub audit: Audit,
    /// Kubernetes Events of that.
    pub events: weft_events::Sink,
    /// Weft's own namespace.
    pub namespace: String,
    /// Ends all streams.
    pub stop: CancellationToken,
    /// Owns the streams.
    pub tasks: TaskTracker,
}

impl Shared {
    /// What this replica's proxies acknowledged, and by which roots it serves.
    #[must_use]
    pub fn applied(&self) -> AppliedReply {
        AppliedReply { roots_epoch: self.authority.roots().epoch, ..self.fleet.sum() }
    }
}

/// Serves until told to stop.
///
/// # Errors
/// When the HTTP/2 server fails.
pub async fn run(
    shared: Arc<Shared>,
    reviewer: Arc<impl Reviewer>,
    listener: TcpListener,
) -> Result<(), tonic::transport::Error> {
    let incoming = accept::incoming(listener, Arc::clone(&shared));
    let identity = IdentityServer::new(sign::Signer::new(Arc::clone(&shared), reviewer))
        .max_decoding_message_size(64 << 10);
    let config = wire::Config::new(stream::Streams::new(Arc::clone(&shared)));
    let peers = PeersServer::new(peers::Replicas::new(Arc::clone(&shared)));
    Server::builder()
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(16 << 10)
        .add_service(identity)
        .add_service(config)
        .add_service(peers)
        .serve_with_incoming_shutdown(incoming, shared.stop.clone().cancelled_owned())
        .await
}
