//! Signs PodCertificateRequests, where the cluster serves that API: a pod without a proxy gets the identity of its
//! ServiceAccount from the kubelet, as a file. Reads the request, asks the API server for the pod as it is now, writes the
//! request's status. What cannot be decided yet stays open and is looked at again; requests of other signers are never read.

mod judge;
mod request;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject};
use kube::runtime::watcher::Event as Seen;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::sleep;
use weft_api::audit::{Event, Kind, Outcome, What};
use weft_api::{Identity, names};

use super::{Leader, served};
use crate::ca::rotation::date;
use crate::ca::{Certified, IssueError};
use crate::index::Key;
use crate::metrics::Refused;
use crate::serve::{OF_A_POD, Pace, Shared};
use crate::watch::{Patience, not_found};
use judge::{BACKDATE, Denial, SHORTEST};
use request::{Asker, Request, is_open, resource};

/// Requests at a time; each asks the API server twice.
const AT_A_TIME: usize = 16;
/// Open requests that are kept in mind; the others are found again when the watch begins anew.
const MOST: usize = 4096;
const RETRY: Duration = Duration::from_secs(5);
const PAGE: u32 = 250;

/// Signs for ever, where there is something to sign.
pub async fn keep(leader: Leader) {
    let signer = Arc::new(Signer {
        client: leader.writer.clone(),
        shared: Arc::clone(&leader.shared),
        pods: Pace::new(OF_A_POD.0, OF_A_POD.1),
    });
    loop {
        served::wait_for(&leader.writer, "podcertificaterequests").await;
        sign(&leader, &signer).await;
        sleep(RETRY).await;
    }
}

/// Follows the requests; ends when the API has gone, or when there were more than are kept in mind.
async fn sign(leader: &Leader, signer: &Arc<Signer>) {
    let api: Api<Request> = Api::all_with(leader.client.clone(), &resource());
    let only = format!("spec.signerName={}", names::SIGNER);
    let config = watcher::Config::default().fields(&only).page_size(PAGE).timeout(120);
    let mut events = std::pin::pin!(watcher(api, config).backoff(Patience::default()));
    let mut open = Open::default();
    let mut going = JoinSet::new();
    loop {
        for (key, request) in open.due(Instant::now(), AT_A_TIME - going.len().min(AT_A_TIME)) {
            let signer = Arc::clone(signer);
            going.spawn(async move { (key, signer.settle(&request).await) });
        }
        if open.overflowed && open.waiting.is_empty() {
            return;
        }
        tokio::select! {
            event = events.try_next() => match event {
                Ok(Some(Seen::Apply(request) | Seen::InitApply(request))) => open.note(request),
                Ok(Some(Seen::Delete(request))) => open.forget(&key_of(&request)),
                Ok(Some(Seen::Init | Seen::InitDone)) => {}
                Ok(None) => return,
                Err(error) if not_found(&error) => return,
                Err(error) => tracing::warn!(error = %error, "watching PodCertificateRequests failed; trying again"),
            },
            Some(ended) = going.join_next() => match ended {
                Ok((key, None)) => open.forget(&key),
                Ok((key, Some(wait))) => open.again(&key, Instant::now() + wait),
                Err(error) => tracing::error!(error = %error, "signing a PodCertificateRequest was broken off"),
            },
            () = sleep(open.pause(Instant::now())), if going.len() < AT_A_TIME => {}
        }
    }
}

fn key_of(request: &Request) -> Key {
    Key::new(request.namespace().unwrap_or_default(), request.name_any())
}

/// The open requests, each with the moment at which it is looked at; `None`: it is being looked at.
#[derive(Default)]
struct Open {
    waiting: HashMap<Key, (Arc<Request>, Option<Instant>)>,
    overflowed: bool,
}

impl Open {
    fn note(&mut self, request: Request) {
        let key = key_of(&request);
        if !is_open(&request) {
            self.waiting.remove(&key);
        } else if let Some((known, _)) = self.waiting.get_mut(&key) {
            // Only a write of its present version is taken.
            *known = Arc::new(request);
        } else if self.waiting.len() >= MOST {
            self.overflowed = true;
        } else {
            self.waiting.insert(key, (Arc::new(request), Some(Instant::now())));
        }
    }

    fn forget(&mut self, key: &Key) {
        self.waiting.remove(key);
    }

    fn again(&mut self, key: &Key, at: Instant) {
        if let Some((_, due)) = self.waiting.get_mut(key) {
            *due = Some(at);
        }
    }

    fn due(&mut self, now: Instant, most: usize) -> Vec<(Key, Arc<Request>)> {
        let ready = self.waiting.iter_mut().filter(|(_, (_, due))| due.is_some_and(|due| due <= now));
        let take = |(key, (request, due)): (&Key, &mut (Arc<Request>, Option<Instant>))| {
            *due = None;
            (key.clone(), Arc::clone(request))
        };
        ready.take(most).map(take).collect()
    }

    fn pause(&self, now: Instant) -> Duration {
        let next = self.waiting.values().filter_map(|(_, due)| *due).min();
        next.map_or(Duration::from_secs(300), |next| next.saturating_duration_since(now))
    }
}

/// Decides and writes.
struct Signer {
    client: Client,
    shared: Arc<Shared>,
    /// By uid, as for those who ask with a token.
    pods: Pace<String>,
}

/// Why there is no certificate.
enum Refusal {
    /// For good.
    Denied(Denial),
    /// Not now; again after that time.
    Later(Refused, String, Duration),
}

impl From<Denial> for Refusal {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

impl Signer {
    /// Settles a request. `Some`: it stays open, and is to be looked at again after that time.
    async fn settle(&self, request: &Request) -> Option<Duration> {
        let key = key_of(request);
        let pod = format!("{}/{}", key.namespace, request.spec.pod_name);
        let mut event = Event::now(Kind::Issuance, Outcome::Refused);
        match self.decide(request).await {
            Ok((identity, certified)) => {
                if let Some(wait) = self.write(request, &issued(&certified)).await {
                    return Some(wait);
                }
                self.shared.metrics.issued.inc();
                tracing::info!(pod, %identity, request = %key, "signed a certificate for a volume of a pod");
                event.result = Outcome::Issued;
                event.who.identity = identity.to_string();
                event.who.pod = pod;
            }
            Err(Refusal::Denied(denial)) => {
                if let Some(wait) = self.write(request, &denied(&denial)).await {
                    return Some(wait);
                }
                self.shared.metrics.refuse(denial.counts_as);
                tracing::warn!(pod, request = %key, why = denial.message, "denied a PodCertificateRequest");
                // Not the pod: that it is this one's is what was not believed.
                event.reason = denial.counts_as.as_str();
            }
            Err(Refusal::Later(reason, why, wait)) => {
                self.shared.metrics.refuse(reason);
                tracing::warn!(request = %key, why, "a PodCertificateRequest has to wait");
                return Some(wait);
            }
        }
        event.what = What {
            kind: "certificate".into(),
            namespace: key.namespace,
            name: key.name,
            operation: "PodCertificateRequest".into(),
            object_uid: request.spec.pod_uid.clone(),
            ..What::default()
        };
        self.shared.audit.event(event);
        None
    }

    async fn decide(&self, request: &Request) -> Result<(Identity, Certified), Refusal> {
        let (shared, spec) = (&self.shared, &request.spec);
        let grant = judge::grant(spec, shared.authority.lifetime())?;
        self.pods.take(spec.pod_uid.clone(), Instant::now()).map_err(|wait| {
            Refusal::Later(Refused::Rate, "too many certificates are asked for by this pod".into(), wait)
        })?;
        let namespace = request.namespace().unwrap_or_default();
        let pod = self.pod(&namespace, &spec.pod_name).await.map_err(|error| {
            Refusal::Later(Refused::Unavailable, format!("the pod cannot be asked for: {error}"), RETRY)
        })?;
        judge::agree(spec, pod.as_ref())?;
        let identity = Identity {
            trust_domain: shared.serving.identity().trust_domain.clone(),
            namespace,
            service_account: spec.service_account_name.clone(),
        };
        let certified = shared.authority.certify(&grant.key, &identity, BACKDATE, grant.life);
        match certified {
            Ok(certified) if certified.life() >= SHORTEST => Ok((identity, certified)),
            // A rotation brings one that is good for longer.
            Ok(_) => {
                Err(later("the root has less than an hour left, and Kubernetes takes no such certificate"))
            }
            Err(error @ (IssueError::RootExpired | IssueError::Make(_))) => Err(later(&error.to_string())),
        }
    }

    /// The pod as it is now, as the API server's store has it.
    async fn pod(&self, namespace: &str, name: &str) -> kube::Result<Option<Asker>> {
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &ApiResource::erase::<Pod>(&()));
        let found = api.get_opt(name).await?;
        Ok(found.map(|pod| Asker::read(&serde_json::to_value(pod).unwrap_or_default())))
    }

    /// Writes the status of exactly this request: the API server compares uid and version. `Some`: again after that time.
    async fn write(&self, request: &Request, status: &Value) -> Option<Duration> {
        let namespace = request.namespace().unwrap_or_default();
        let api: Api<Request> = Api::namespaced_with(self.client.clone(), &namespace, &resource());
        let patch = json!({
            "metadata": { "uid": request.metadata.uid, "resourceVersion": request.metadata.resource_version },
            "status": status,
        });
        match api.patch_status(&request.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => None,
            Err(kube::Error::Api(status)) if status.code == 404 => None,
            Err(error) => {
                tracing::warn!(error = %error, request = %key_of(request), "a PodCertificateRequest could not be answered; trying again");
                Some(RETRY)
            }
        }
    }
}

fn later(why: &str) -> Refusal {
    Refusal::Later(Refused::Unavailable, why.to_owned(), RETRY * 6)
}

fn condition(kind: &str, reason: &str, message: &str) -> Value {
    json!([{ "type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": date(SystemTime::now()) }])
}

fn denied(denial: &Denial) -> Value {
    json!({ "conditions": condition("Denied", denial.reason, &denial.message) })
}

/// The kubelet begins to renew at two thirds, as proxies do.
fn issued(certified: &Certified) -> Value {
    let since = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (from, to) = (since(certified.not_before), since(certified.not_after));
    let renew = UNIX_EPOCH + Duration::from_secs(from + (to - from) * 2 / 3);
    json!({
        "conditions": condition("Issued", "Signed", "signed by the mesh's root"),
        "certificateChain": certified.pem,
        "notBefore": date(certified.not_before),
        "beginRefreshAt": date(renew),
        "notAfter": date(certified.not_after),
    })
}

#[cfg(test)]
mod tests;
