//! `Identity.Sign`: a certificate for whoever holds the token of a living pod. Checks token, pod, request; in this order,
//! each refusal with a sentence for the caller, a line in the log, and a count.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::{Request, Response, Status};
use weft_api::audit::{Event, Kind, Outcome};
use weft_api::v1::identity_server::Identity as Service;
use weft_api::v1::{SignRequest, SignResponse};
use weft_api::{Identity, names};

use super::Shared;
use super::pace::Pace;
use super::review::{BoundPod, ReviewError, Reviewer};
use crate::ca::{public_key, serving};
use crate::metrics::Refused;

/// Requests at a time; each asks the API server once or twice.
const AT_A_TIME: usize = 64;
/// How long a request waits for its turn.
const QUEUE: Duration = Duration::from_secs(5);
/// How long the API server may take.
const REVIEW: Duration = Duration::from_secs(10);
/// Certificates of one pod: so many at once, and then one in that time. A proxy with the shortest lifetime asks every 40 s.
pub const OF_A_POD: (u32, Duration) = (10, Duration::from_secs(10));
/// Refused tokens of one address; beyond that the API server is not asked for it.
const BAD_TOKENS: (u32, Duration) = (64, Duration::from_millis(500));
/// Tokens are 1 to 2 KiB.
const MAX_TOKEN: usize = 16 << 10;

/// The service.
pub struct Signer<R> {
    shared: Arc<Shared>,
    reviewer: Arc<R>,
    turns: Semaphore,
    /// By uid.
    pods: Pace<String>,
    bad_tokens: Pace<IpAddr>,
}

type Refusal = (Refused, Status);

impl<R: Reviewer> Signer<R> {
    pub fn new(shared: Arc<Shared>, reviewer: Arc<R>) -> Self {
        Self {
            shared,
            reviewer,
            turns: Semaphore::new(AT_A_TIME),
            pods: Pace::new(OF_A_POD.0, OF_A_POD.1),
            bad_tokens: Pace::new(BAD_TOKENS.0, BAD_TOKENS.1),
        }
    }

    async fn decide(
        &self,
        request: SignRequest,
        from: Option<IpAddr>,
        known: &mut Option<BoundPod>,
    ) -> Result<SignResponse, Refusal> {
        let _turn = timeout(QUEUE, self.turns.acquire()).await.map_err(|_| {
            (
                Refused::Busy,
                Status::resource_exhausted("too many certificates are asked for at once; try again"),
            )
        })?;
        if request.token.is_empty() || request.token.len() > MAX_TOKEN {
            return Err((Refused::Token, Status::unauthenticated("the token is missing or too long")));
        }
        // The cheap check first, so that nobody makes us ask the API server with rubbish.
        let key = public_key(&request.csr_der)
            .map_err(|e| (Refused::Request, Status::invalid_argument(e.to_string())))?;
        if let Some(from) = from {
            let room = self.bad_tokens.room(&from, Instant::now());
            room.map_err(|wait| too_often("bad tokens come from this address", wait))?;
        }
        let pod = &*known.insert(self.review(&request.token, from).await?);
        self.pods
            .take(pod.uid.clone(), Instant::now())
            .map_err(|wait| too_often("certificates are asked for by this pod", wait))?;
        self.check_pod(pod).await?;

        let identity = Identity {
            trust_domain: self.shared.serving.identity().trust_domain.clone(),
            namespace: pod.key.namespace.clone(),
            service_account: pod.service_account.clone(),
        };
        let dns_names = self.dns_names(pod);
        // Before signing: a bundle that is a moment too old is taken for what it is, one that is too new is not.
        let roots = self.shared.authority.roots();
        let issued = self.shared.authority.issue(&key, &identity, &dns_names).map_err(|error| {
            tracing::error!(error = %error, pod = %pod.key, "cannot sign");
            (Refused::Unavailable, Status::unavailable(error.to_string()))
        })?;
        let not_after = issued.not_after.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let response = SignResponse {
            chain_der: issued.chain.iter().map(|c| c.to_vec().into()).collect(),
            roots_der: roots.bundle_wire(),
            roots_epoch: roots.epoch,
            not_after_unix_s: i64::try_from(not_after).unwrap_or(i64::MAX),
            identity: identity.to_string(),
        };
        Ok(response)
    }

    async fn review(&self, token: &str, from: Option<IpAddr>) -> Result<BoundPod, Refusal> {
        let reviewed = self.in_time(self.reviewer.review(token)).await;
        if let (Err((Refused::Token, _)), Some(from)) = (&reviewed, from) {
            // One more than there is room for changes nothing.
            let _ = self.bad_tokens.take(from, Instant::now());
        }
        reviewed
    }

    async fn in_time<T>(&self, asked: impl Future<Output = Result<T, ReviewError>>) -> Result<T, Refusal> {
        let unavailable = || {
            (
                Refused::Unavailable,
                Status::unavailable("the API server cannot be asked about the token; try again"),
            )
        };
        match timeout(REVIEW, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(ReviewError::Api(error))) => {
                tracing::error!(error = %error, "cannot ask the API server about a token or pod");
                Err(unavailable())
            }
            Ok(Err(error)) => Err((Refused::Token, Status::unauthenticated(error.to_string()))),
            Err(_) => Err(unavailable()),
        }
    }

    /// The pod must exist, with the uid and ServiceAccount of the token. One that is not in the index yet is asked for.
    async fn check_pod(&self, bound: &BoundPod) -> Result<(), Refusal> {
        let known = self.shared.store.view(|view| {
            let pod = view.index.pod(&bound.key)?;
            Some(BoundPod {
                key: pod.key.clone(),
                uid: pod.uid.clone(),
                service_account: pod.service_account.clone(),
            })
        });
        if known.as_ref() == Some(bound) {
            return Ok(());
        }
        let live = self.in_time(self.reviewer.pod(&bound.key)).await?;
        let refuse = |why: &str| {
            Err((Refused::Pod, Status::permission_denied(format!("pod {} of the token {why}", bound.key))))
        };
        match live {
            None => refuse("does not exist"),
            Some(pod) if pod.uid != bound.uid => refuse("has another uid: it was replaced"),
            Some(pod) if pod.service_account != bound.service_account => refuse("has another ServiceAccount"),
            Some(_) => Ok(()),
        }
    }

    fn dns_names(&self, pod: &BoundPod) -> Vec<String> {
        let own = pod.key.namespace == self.shared.namespace;
        let account = pod.service_account.as_str();
        if own && matches!(account, names::OPERATOR | names::WEBHOOK) {
            serving::dns_names(account, &self.shared.namespace)
        } else {
            Vec::new()
        }
    }
}

/// What auditors hear. `pod`: whose token it was, once that is believed.
fn issuance(result: Result<&str, Refused>, pod: Option<&BoundPod>, client: Option<IpAddr>) -> Event {
    let mut event = match result {
        Ok(identity) => {
            let mut event = Event::now(Kind::Issuance, Outcome::Issued);
            identity.clone_into(&mut event.who.identity);
            event
        }
        Err(reason) => {
            let mut event = Event::now(Kind::Issuance, Outcome::Refused);
            event.reason = reason.as_str();
            event
        }
    };
    event.who.pod = pod.map(|pod| pod.key.to_string()).unwrap_or_default();
    event.who.address = client;
    event.what.kind = "certificate".into();
    event.what.object_uid = pod.map(|pod| pod.uid.clone()).unwrap_or_default();
    event
}

fn too_often(what: &str, wait: Duration) -> Refusal {
    let seconds = wait.as_secs_f64().ceil();
    (Refused::Rate, Status::resource_exhausted(format!("too many {what}; try again in {seconds} s")))
}

#[tonic::async_trait]
impl<R: Reviewer> Service for Signer<R> {
    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let address = request.remote_addr();
        let from = address.map(|a| a.to_string()).unwrap_or_default();
        let client = address.map(|a| a.ip().to_canonical());
        let mut pod = None;
        let decided = self.decide(request.into_inner(), client, &mut pod).await;
        let told = decided.as_ref().map(|response| response.identity.as_str()).map_err(|(reason, _)| *reason);
        self.shared.audit.event(issuance(told, pod.as_ref(), client));
        if let (Err((reason, status)), Some(pod)) = (&decided, &pod)
            && matches!(reason, Refused::Pod | Refused::Rate)
        {
            self.shared.refusals.tell(pod, status.message());
        }
        let pod = pod.map(|pod| pod.key.to_string()).unwrap_or_default();
        match decided {
            Ok(response) => {
                self.shared.metrics.issued.inc();
                tracing::info!(pod, identity = response.identity, from, "signed a certificate");
                Ok(Response::new(response))
            }
            Err((reason, status)) => {
                self.shared.metrics.refuse(reason);
                tracing::warn!(from, pod, why = status.message(), code = ?status.code(), "refused a certificate");
                Err(status)
            }
        }
    }
}
