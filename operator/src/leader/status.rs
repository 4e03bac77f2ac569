//! Writes what became of each resource into its status, and Events of what happened to endpoints. Looks once a second;
//! writes only what differs, and each object at most once a second.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject};
use serde_json::{Map, Value, json};
use tokio::time::{MissedTickBehavior, interval};
use weft_api::v1::AppliedReply;
use weft_crds::{
    AuthorizationPolicy, MeshService, PeerAuthentication, RequestAuthentication, TrafficPolicy, TrustDomain,
};

use super::Leader;
use super::changes::Changes;
use super::conditions::{self, AppliedBy};
use super::ejections::{self, EjectedBy, Happened, Quota};
use super::events::{About, Events};
use super::replicas::Replicas;
use crate::compile::endpoint_states;
use crate::index::policy::{Resource, Spec, Tracked};
use crate::index::space::{Refusal, Space, Verdict};
use crate::index::{Index, Key};

const LOOK: Duration = Duration::from_secs(1);
/// The watch brings what was written; until then it is not written again.
const SETTLE: Duration = Duration::from_secs(5);
/// Of one look; more is a storm, and the next look says the rest of it in sums.
const MAX_EVENTS: usize = 50;
/// Of ejections and returns, for every look after a burst of [`MAX_EVENTS`].
const EVENTS_EACH_LOOK: usize = 2;
const API_VERSION: &str = "weft.dev/v1alpha1";

/// A status to be written.
struct Write {
    kind: &'static str,
    key: Key,
    status: Value,
}

/// Keeps every status right for ever.
pub async fn keep(leader: Leader, events: Events) {
    let mut replicas = Replicas::default();
    let mut writer = Writer { leader: leader.clone(), written: HashMap::new() };
    let mut ejected: Option<EjectedBy> = None;
    let mut quota = Quota::new(MAX_EVENTS, EVENTS_EACH_LOOK);
    let mut refused: Option<BTreeMap<(&'static str, Key), Refusal>> = None;
    let mut changes = Changes::default();
    // The index and what proxies said at a look after which nothing was left to be written.
    let mut at_rest: Option<(u64, AppliedReply)> = None;
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        quota.look();
        let reply = replicas.applied(&leader.shared, &leader.settings).await;
        let version = leader.shared.store.view(|view| view.index.version());
        if at_rest.as_ref().is_some_and(|(then, said)| (*then, said) == (version, &reply)) {
            continue;
        }
        let applied = conditions::by_resource(&reply);
        let now_ejected = ejections::by_service(&reply.ejected);
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let (writes, now_refused) = leader
            .shared
            .store
            .view(|view| (plan(view.index, &applied, &now_ejected, &now), refusals(view.index)));
        if leader.shared.audit.is_on() {
            let seen = leader.shared.store.view(|view| changes.look(view.index));
            seen.into_iter().for_each(|event| leader.audit(event));
        }
        at_rest = writes.is_empty().then_some((version, reply));
        for write in writes {
            writer.write(write).await;
        }
        // A new leader knows not what was told already: the first look is the beginning.
        if let Some(before) = &ejected {
            tell_ejections(&leader, &events, &mut quota, before, &now_ejected).await;
        }
        if let Some(before) = &refused {
            tell_refusals(&leader, &events, before, &now_refused).await;
        }
        ejected = Some(now_ejected);
        refused = Some(now_refused);
    }
}

struct Writer {
    leader: Leader,
    /// What was written last, and when.
    written: HashMap<(&'static str, Key), (Instant, Value)>,
}

impl Writer {
    async fn write(&mut self, write: Write) {
        let place = (write.kind, write.key.clone());
        if let Some((at, last)) = self.written.get(&place)
            && at.elapsed() < SETTLE
            && same_but_times(last, &write.status)
        {
            return;
        }
        let kind = match write.kind {
            MeshServiceKind::KIND => ApiResource::erase::<MeshService>(&()),
            PolicyKind::KIND => ApiResource::erase::<TrafficPolicy>(&()),
            AuthorizationKind::KIND => ApiResource::erase::<AuthorizationPolicy>(&()),
            RequestKind::KIND => ApiResource::erase::<RequestAuthentication>(&()),
            DomainKind::KIND => ApiResource::erase::<TrustDomain>(&()),
            _ => ApiResource::erase::<PeerAuthentication>(&()),
        };
        let client = self.leader.writer.clone();
        let api: Api<DynamicObject> = Api::namespaced_with(client, &write.key.namespace, &kind);
        let patch = Patch::Merge(json!({ "status": write.status }));
        match api.patch_status(&write.key.name, &PatchParams::default(), &patch).await {
            Ok(_) => {
                self.leader.shared.metrics.status_writes.inc();
                self.written.retain(|_, (at, _)| at.elapsed() < SETTLE);
                self.written.insert(place, (Instant::now(), write.status));
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => {
                tracing::warn!(error = %error, kind = write.kind, key = %write.key, "cannot write a status; trying again");
            }
        }
    }
}

type MeshServiceKind = weft_crds::MeshServiceSpec;
type PolicyKind = weft_crds::TrafficPolicySpec;
type AuthenticationKind = weft_crds::PeerAuthenticationSpec;
type AuthorizationKind = weft_crds::AuthorizationPolicySpec;
type RequestKind = weft_crds::RequestAuthenticationSpec;
type DomainKind = weft_crds::TrustDomainSpec;

fn same_but_times(a: &Value, b: &Value) -> bool {
    let strip = |status: &Value| {
        let mut status = status.clone();
        for condition in status["conditions"].as_array_mut().into_iter().flatten() {
            condition["lastTransitionTime"] = Value::Null;
        }
        status
    };
    strip(a) == strip(b)
}

/// Every status that says something else than it should.
fn plan(index: &Index, applied: &AppliedBy, ejected: &EjectedBy, now: &str) -> Vec<Write> {
    let mut writes = Vec::new();
    for (namespace, space) in index.spaces() {
        let settled = &space.settled;
        for (name, tracked) in &space.mesh_services {
            let more = mesh_service(space, &tracked.now, ejected);
            writes.extend(one(tracked, settled.mesh_services.get(name), applied, more, now));
        }
        for (name, tracked) in &space.policies {
            writes.extend(one(tracked, settled.policies.get(name), applied, Map::new(), now));
        }
        for (name, tracked) in &space.peer_authentications {
            writes.extend(one(tracked, settled.peer_authentications.get(name), applied, Map::new(), now));
        }
        for (name, tracked) in &space.authorization_policies {
            let verdict = settled.authorization_policies.get(name);
            writes.extend(one(tracked, verdict, applied, Map::new(), now));
        }
        for (name, tracked) in &space.request_authentications {
            let verdict = settled.request_authentications.get(name);
            writes.extend(one(tracked, verdict, applied, Map::new(), now));
        }
        for (name, tracked) in &space.trust_domains {
            writes.extend(one(tracked, settled.trust_domains.get(name), applied, Map::new(), now));
        }
        debug_assert!(!namespace.is_empty());
    }
    writes
}

fn one<S: Spec>(
    tracked: &Tracked<S>,
    verdict: Option<&Verdict>,
    applied: &AppliedBy,
    more: Map<String, Value>,
    now: &str,
) -> Option<Write> {
    let resource = &tracked.now;
    let applied = applied.get(&(S::KIND.to_owned(), resource.key.clone()));
    let (list, text) = conditions::conditions(resource.generation, verdict?, applied);
    let status = conditions::status(resource.generation, &list, &text, more, &resource.status, now)?;
    Some(Write { kind: S::KIND, key: resource.key.clone(), status })
}

/// Endpoints of the Service that a MeshService describes.
fn mesh_service(
    space: &Space,
    resource: &Resource<MeshServiceKind>,
    ejected: &EjectedBy,
) -> Map<String, Value> {
    let mut more = Map::new();
    let Ok(spec) = &resource.spec else { return more };
    let name = &*spec.target.key(&resource.key.name);
    if let Some(external) = &spec.target.external {
        let total = external.endpoints.len().max(1);
        let key = Key::new(&resource.key.namespace, name);
        let hosts: std::collections::BTreeSet<_> = ejected
            .get(&key)
            .into_iter()
            .flat_map(BTreeMap::keys)
            .filter_map(|at| at.parse::<std::net::SocketAddr>().ok())
            .map(|at| at.ip())
            .collect();
        more.insert("endpoints".into(), json!(format!("{}/{total}", total.saturating_sub(hosts.len()))));
        more.insert("inMesh".into(), json!(0));
        more.insert("ejected".into(), json!(hosts.len()));
        return more;
    }
    let states = space.services.get(name).map(|s| endpoint_states(space, s)).unwrap_or_default();
    let key = Key::new(&resource.key.namespace, name);
    let hosts: std::collections::BTreeSet<_> = ejected
        .get(&key)
        .into_iter()
        .flat_map(BTreeMap::keys)
        .filter_map(|at| at.parse::<std::net::SocketAddr>().ok())
        .map(|at| at.ip())
        .filter(|ip| space.slices_of(name).any(|s| s.endpoints.iter().any(|e| e.ip == *ip && e.ready)))
        .collect();
    let ready = states.ready.saturating_sub(hosts.len());
    more.insert("endpoints".into(), json!(format!("{ready}/{}", states.total)));
    more.insert("inMesh".into(), json!(states.in_mesh));
    more.insert("ejected".into(), json!(hosts.len()));
    more
}

fn refusals(index: &Index) -> BTreeMap<(&'static str, Key), Refusal> {
    let mut all = BTreeMap::new();
    for (namespace, space) in index.spaces() {
        let settled = &space.settled;
        let kinds = [
            (MeshServiceKind::KIND, &settled.mesh_services),
            (PolicyKind::KIND, &settled.policies),
            (AuthenticationKind::KIND, &settled.peer_authentications),
            (AuthorizationKind::KIND, &settled.authorization_policies),
            (RequestKind::KIND, &settled.request_authentications),
            (DomainKind::KIND, &settled.trust_domains),
        ];
        for (kind, verdicts) in kinds {
            for (name, verdict) in verdicts {
                if let Some(refusal) = &verdict.refused {
                    all.insert((kind, Key::new(namespace, name)), refusal.clone());
                }
            }
        }
    }
    all
}

async fn tell_refusals(
    leader: &Leader,
    events: &Events,
    before: &BTreeMap<(&'static str, Key), Refusal>,
    now: &BTreeMap<(&'static str, Key), Refusal>,
) {
    let new = now.iter().filter(|(place, refusal)| before.get(place) != Some(refusal));
    for ((kind, key), refusal) in new.take(MAX_EVENTS) {
        let uid = leader.shared.store.view(|view| {
            let space = view.index.space(&key.namespace)?;
            match *kind {
                MeshServiceKind::KIND => space.mesh_services.get(&key.name).map(|t| t.now.uid.clone()),
                PolicyKind::KIND => space.policies.get(&key.name).map(|t| t.now.uid.clone()),
                AuthorizationKind::KIND => {
                    space.authorization_policies.get(&key.name).map(|t| t.now.uid.clone())
                }
                RequestKind::KIND => space.request_authentications.get(&key.name).map(|t| t.now.uid.clone()),
                DomainKind::KIND => space.trust_domains.get(&key.name).map(|t| t.now.uid.clone()),
                _ => space.peer_authentications.get(&key.name).map(|t| t.now.uid.clone()),
            }
        });
        let about = About { version: API_VERSION, kind, key: key.clone(), uid: uid.unwrap_or_default() };
        let (reason, note) = match refusal {
            Refusal::Invalid(why) => ("Invalid", why),
            Refusal::Conflicted(why) => ("Conflicted", why),
        };
        events.write(&about, true, reason, "Compile", note).await;
    }
}

async fn tell_ejections(
    leader: &Leader,
    events: &Events,
    quota: &mut Quota,
    before: &EjectedBy,
    now: &EjectedBy,
) {
    let all = ejections::compare(before, now);
    let count = all.len();
    for (told, happened) in all.into_iter().enumerate() {
        if !quota.take() {
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
        let Some((about, pod)) = leader.shared.store.view(|view| regarding(view.index, service, endpoint))
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
                events.write(&about, true, "EndpointEjected", "Eject", &note).await;
            }
            Happened::Returned(..) => {
                let note = format!(
                    "endpoint {endpoint}{pod} of Service {} is back: no proxy holds it ejected any more",
                    service.name
                );
                tracing::info!(service = %service, endpoint, "endpoint back");
                events.write(&about, false, "EndpointReturned", "Return", &note).await;
            }
        }
    }
}

/// The MeshService that describes the Service, or else the Service itself; and the endpoint's pod, for the sentence.
fn regarding(index: &Index, service: &Key, endpoint: &str) -> Option<(About, String)> {
    let space = index.space(&service.namespace)?;
    let at: Option<std::net::SocketAddr> = endpoint.parse().ok();
    let pod = at.and_then(|at| index.pods_at(at.ip()).next()).map(|p| format!(" (pod {})", p.key.name));
    let described = space.described(&service.name).and_then(|d| space.mesh_services.get(&d.key.name));
    let about = match described {
        Some(tracked) => About {
            version: API_VERSION,
            kind: MeshServiceKind::KIND,
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
