//! `Peers`: the leader asks the other replicas what their proxies acknowledged and are asked for, and grants parts of limits;
//! all ask each other what their proxies' checks found. For the operator's own identity only.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use weft_api::v1::peers_server::Peers;
use weft_api::v1::{AppliedReply, AppliedRequest, ChecksReply, ChecksRequest, LimitsReply, LimitsRequest};

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

    fn only_operators<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let caller = peer(request)?.identity;
        if caller == *self.shared.serving.identity() {
            return Ok(());
        }
        tracing::warn!(%caller, "refused a question that only replicas may ask");
        Err(Status::permission_denied("only the operator may ask this"))
    }
}

#[tonic::async_trait]
impl Peers for Replicas {
    async fn applied(&self, request: Request<AppliedRequest>) -> Result<Response<AppliedReply>, Status> {
        self.only_operators(&request)?;
        Ok(Response::new(self.shared.applied()))
    }

    async fn limits(&self, request: Request<LimitsRequest>) -> Result<Response<LimitsReply>, Status> {
        self.only_operators(&request)?;
        self.shared.limits.grant(&request.into_inner().grants);
        Ok(Response::new(LimitsReply { wanted: self.shared.limits.wanted() }))
    }

    async fn checks(&self, request: Request<ChecksRequest>) -> Result<Response<ChecksReply>, Status> {
        self.only_operators(&request)?;
        Ok(Response::new(self.shared.fleet.checks()))
    }
}
