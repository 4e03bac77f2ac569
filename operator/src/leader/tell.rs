//! Kubernetes Events of what happened to resources and endpoints: one that is refused, an endpoint that is ejected or comes back.
//! Each is written once, by the leader, and no more of them than [`Quota`] allows; what was so before this replica led is not told.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use weft_crds::{API_VERSION, MeshServiceSpec};

use super::Leader;
use super::ejections::{self, EjectedBy, Happened, Quota};
use super::events::{About, Events};
use crate::index::policy::Spec;
use crate::index::space::{Refusal, Space};
use crate::index::{Index, Key};

/// Of one look; more is a storm, and the next look says the rest of it in sums.
const MAX_EVENTS: usize = 50;
/// Of ejections and returns, for every look after a burst of [`MAX_EVENTS`].
const EVENTS_EACH_LOOK: usize = 2;

/// Why resources are refused, and their uids, by kind and key.
pub(super) type Refused = BTreeMap<(&'static str, Key), (String, Refusal)>;

/// What was told.
pub(super) struct Tell {
    leader: Leader,
    events: Events,
    quota: Quota,
    /// A new leader knows not what was told already: the first look is the beginning.
    before: Option<(EjectedBy, Refused)>,
}

impl Tell {
    /// Nothing was told yet.
    pub(super) const fn new(leader: Leader, events: Events) -> Self {
        Self { leader, events, quota: Quota::new(MAX_EVENTS, EVENTS_EACH_LOOK), before: None }
    }

    /// Another look begins.
    pub(super) fn look(&mut self) {
        self.quota.look();
    }

    /// Tells what is other than at the last call.
    pub(super) async fn now(&mut self, ejected: EjectedBy, refused: Refused) {
        if let Some((ejected_before, refused_before)) = self.before.take() {
            self.ejections(&ejected_before, &ejected).await;
            self.refusals(&refused_before, &refused).await;
        }
        self.before = Some((ejected, refused));
    }

    async fn refusals(&self, before: &Refused, now: &Refused) {
        let new = now.iter().filter(|(place, (_, why))| before.get(*place).is_none_or(|(_, old)| old != why));
        for ((kind, key), (uid, refusal)) in new.take(MAX_EVENTS) {
            let about = About { version: API_VERSION, kind, key: key.clone(), uid: uid.clone() };
            let (reason, note) = match refusal {
                Refusal::Invalid(why) => ("Invalid", why),
                Refusal::Conflicted(why) => ("Conflicted", why),
            };
            self.events.write(&about, true, reason, "Compile", note).await;
        }
    }

    async fn ejections(&mut self, before: &EjectedBy, now: &EjectedBy) {
        let all = ejections::compare(before, now);
        let count = all.len();
        for (told, happened) in all.into_iter().enumerate() {
            if !self.quota.take() {
                tracing::warn!(
                    left_out = count - told,
                    "too many ejections and returns to write an Event of each"
                );
                return;
            }
            let (service, endpoint) = match &happened {
                Happened::Ejected(service, endpoint, _) | Happened::Returned(service, endpoint) => {
                    (*service, *endpoint)
                }
            };
            let Some((about, pod)) =
                self.leader.shared.store.view(|view| regarding(view.index, service, endpoint))
            else {
                continue;
            };
            match happened {
                Happened::Ejected(_, _, ejected) => {
                    let by = match ejected.proxies {
                        1 => "a proxy".to_owned(),
                        many => format!("{many} proxies"),
                    };
                    let note = format!(
                        "endpoint {endpoint}{pod} of Service {} was ejected by {by}: {}",
                        service.name, ejected.cause
                    );
                    tracing::info!(service = %service, endpoint, cause = ejected.cause, "endpoint ejected");
                    self.events.write(&about, true, "EndpointEjected", "Eject", &note).await;
                }
                Happened::Returned(..) => {
                    let note = format!(
                        "endpoint {endpoint}{pod} of Service {} is back: no proxy holds it ejected any more",
                        service.name
                    );
                    tracing::info!(service = %service, endpoint, "endpoint back");
                    self.events.write(&about, false, "EndpointReturned", "Return", &note).await;
                }
            }
        }
    }
}

/// Every resource that is refused.
pub(super) fn refusals(index: &Index) -> Refused {
    let all = index.spaces().flat_map(|(_, space)| Space::resources(space));
    all.filter_map(|view| {
        let refusal = view.verdict?.refused.clone()?;
        Some(((view.kind, view.key.clone()), (view.uid.to_owned(), refusal)))
    })
    .collect()
}

/// The MeshService that describes the Service, or else the Service itself; and the endpoint's pod, for the sentence.
fn regarding(index: &Index, service: &Key, endpoint: &str) -> Option<(About, String)> {
    let space = index.space(&service.namespace)?;
    let at: Option<SocketAddr> = endpoint.parse().ok();
    let pod = at.and_then(|at| index.pods_at(at.ip()).next()).map(|p| format!(" (pod {})", p.key.name));
    let described = space.described(&service.name).and_then(|d| space.mesh_services.get(&d.key.name));
    let about = match described {
        Some(tracked) => About {
            version: API_VERSION,
            kind: MeshServiceSpec::KIND,
            key: tracked.now.key.clone(),
            uid: tracked.now.uid.clone(),
        },
        None => {
            let found = space.services.get(&service.name)?;
            About { version: "v1", kind: "Service", key: service.clone(), uid: found.uid.clone() }
        }
    };
    Some((about, pod.unwrap_or_default()))
}
