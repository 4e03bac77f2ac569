//! `Peers.Applied`: the leader asks the other replicas what their proxies acknowledged. For the operator's own identity only.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use weft_api::v1::peers_server::Peers;
use weft_api::v1::{AppliedReply, AppliedRequest};

use super::Shared;
use super::peer::peer;

/// The service.
pub struct Replicas {
    shared: Arc<Shared>,
}

impl Replicas {
    pub const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

#[tonic::async_trait]
impl Peers for Replicas {
    async fn applied(&self, request: Request<AppliedRequest>) -> Result<Response<AppliedReply>, Status> {
        let caller = peer(&request)?.identity;
        if caller != *self.shared.serving.identity() {
            tracing::warn!(%caller, "refused Peers.Applied");
            return Err(Status::permission_denied("only the operator may ask this"));
        }
        Ok(Response::new(self.shared.fleet.sum()))
    }
}
