//! A request that has changed its protocol lasts as long as its connection. Looks again, whenever the configuration changes and when
//! its token expires, whether the own workload would still let it in. It ends nothing itself.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, Request, Uri};
use tokio::time::sleep;
use weft_api::{Identity, Reason};

use super::inbound::{Disowned, Peer};
use crate::authorize::{Asked, Authorization};
use crate::error::Error;
use crate::snapshot::{MtlsMode, Workload};
use crate::tcp::End;
use crate::tls::Abroad;
use crate::token::{self, Flaw, Verified};
use crate::worker::Worker;

/// The clock is looked at this often: it may be set.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(30);

/// What was asked for, and by whom.
pub(super) struct Recheck {
    worker: Rc<Worker>,
    /// Callers from outside of the mesh have none.
    caller: Option<Arc<Identity>>,
    /// Of another trust domain: what it has shown.
    abroad: Option<Rc<Abroad>>,
    client: IpAddr,
    port: u16,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    /// As it was good when the request came; none once it has expired.
    token: Option<Arc<Verified>>,
}

impl Recheck {
    pub(super) fn new<B>(
        worker: &Rc<Worker>,
        peer: &Peer,
        client: IpAddr,
        port: u16,
        request: &Request<B>,
        token: Option<Arc<Verified>>,
    ) -> Self {
        let (caller, abroad) = match peer {
            Peer::Mesh { party, abroad, .. } => (party.identity.clone(), abroad.clone()),
            Peer::Outside => (None, None),
        };
        Self {
            worker: Rc::clone(worker),
            caller,
            abroad,
            client,
            port,
            method: request.method().clone(),
            uri: request.uri().clone(),
            headers: request.headers().clone(),
            token,
        }
    }

    /// Waits until it would not be let in any more.
    pub(super) async fn forbidden(mut self) -> End {
        let worker = Rc::clone(&self.worker);
        let (store, tls) = (&worker.proxy.store, &worker.proxy.tls);
        let (mut changed, mut bundles) = (store.changed(), tls.changed());
        loop {
            if self.abroad.as_ref().is_some_and(|abroad| !abroad.is_trusted(tls)) {
                return End { error: Error::new(Reason::ClientCertificate, Disowned), authorization: None };
            }
            // From then on it is as if there had been none: whether one is needed is the policies' matter.
            let expired = self.token.take_if(|token| token.until <= token::now()).is_some();
            let workload = store.load().workload.clone();
            if let Some(mut end) = self.end(workload.as_deref()) {
                if expired && end.authorization.is_some() {
                    end.error = Flaw::Expired.error();
                }
                return end;
            }
            drop(workload);
            tokio::select! {
                changed = changed.changed() => if changed.is_err() {
                    return std::future::pending().await;
                },
                changed = bundles.changed(), if self.abroad.is_some() => if changed.is_err() {
                    return std::future::pending().await;
                },
                () = expiry(self.token.as_deref()) => {}
            }
        }
    }

    fn end(&self, workload: Option<&Workload>) -> Option<End> {
        let mode = workload.map_or(MtlsMode::Strict, |own| own.mtls_for(self.port));
        if self.caller.is_none() && mode == MtlsMode::Strict {
            return Some(End { error: Reason::MtlsRequired.into(), authorization: None });
        }
        let policies = workload
            .and_then(|own| own.authorization.as_ref())
            .or_else(|| self.abroad.is_some().then(Authorization::of_strangers))?;
        let claims = self.token.as_ref().map(|token| &token.claims);
        let asked = Asked { method: &self.method, uri: &self.uri, headers: &self.headers, claims };
        let admitted = policies.admit(self.caller.as_deref(), self.client, self.port);
        let verdict = admitted.request(&asked).verdict;
        let error = verdict.refused.as_ref()?.error();
        Some(End { error, authorization: verdict.noted() })
    }
}

/// Waits until a token has expired.
async fn expiry(token: Option<&Verified>) {
    let Some(token) = token else { return std::future::pending().await };
    while let Ok(left @ 1..) = u64::try_from(token.until.saturating_sub(token::now())) {
        sleep(Duration::from_secs(left).min(LOOK_AT_CLOCK)).await;
    }
}
