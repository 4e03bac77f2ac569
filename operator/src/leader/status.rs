//! Writes what became of each resource into its status. Looks once a second; writes only what differs, and each object at most
//! once a second. Whoever else tells of resources looks at the same moment ([`Tell`], [`Changes`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject};
use serde_json::{Map, Value, json};
use tokio::time::{MissedTickBehavior, interval};
use weft_api::v1::AppliedReply;
use weft_crds::MeshServiceSpec;

use super::Leader;
use super::changes::Changes;
use super::conditions::{self, AppliedBy};
use super::ejections::{self, EjectedBy};
use super::events::Events;
use super::replicas::Replicas;
use super::tell::{Tell, refusals};
use crate::compile::endpoint_states;
use crate::index::policy::{Resource, Spec};
use crate::index::resources::View;
use crate::index::space::Space;
use crate::index::{Index, Key};

const LOOK: Duration = Duration::from_secs(1);
/// The watch brings what was written; until then it is not written again.
const SETTLE: Duration = Duration::from_secs(5);

/// A status to be written.
struct Write {
    kind: &'static str,
    api: fn() -> ApiResource,
    key: Key,
    status: Value,
}

/// Keeps every status right for ever.
pub async fn keep(leader: Leader, events: Events) {
    let mut replicas = Replicas::default();
    let mut writer = Writer { leader: leader.clone(), written: HashMap::new() };
    let mut tell = Tell::new(leader.clone(), events);
    let mut changes = Changes::default();
    // The index and what proxies said at a look after which nothing was left to be written.
    let mut at_rest: Option<(u64, AppliedReply)> = None;
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        tell.look();
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
        tell.now(now_ejected, now_refused).await;
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
        let kind = (write.api)();
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
    let all = index.spaces().flat_map(|(_, space)| space.resources().map(move |view| (space, view)));
    all.filter_map(|(space, view)| one(space, &view, applied, ejected, now)).collect()
}

fn one(space: &Space, view: &View<'_>, applied: &AppliedBy, ejected: &EjectedBy, now: &str) -> Option<Write> {
    let applied = applied.get(&(view.kind.to_owned(), view.key.clone()));
    let (list, text) = conditions::conditions(view.generation, view.verdict?, applied);
    // Of one kind more is said.
    let described = (view.kind == MeshServiceSpec::KIND).then(|| space.mesh_services.get(&view.key.name));
    let more = described.flatten().map(|tracked| mesh_service(space, &tracked.now, ejected));
    let status =
        conditions::status(view.generation, &list, &text, more.unwrap_or_default(), view.status, now)?;
    Some(Write { kind: view.kind, api: view.api, key: view.key.clone(), status })
}

/// Endpoints of the Service that a MeshService describes.
fn mesh_service(
    space: &Space,
    resource: &Resource<MeshServiceSpec>,
    ejected: &EjectedBy,
) -> Map<String, Value> {
    let Ok(spec) = &resource.spec else { return Map::new() };
    let name = &*spec.target.key(&resource.key.name);
    let ejected = ejected.get(&Key::new(&resource.key.namespace, name));
    let hosts = ejected.into_iter().flat_map(BTreeMap::keys);
    let hosts = hosts.filter_map(|at| at.parse::<SocketAddr>().ok()).map(|at| at.ip());
    if let Some(external) = &spec.target.external {
        let (total, gone) = (external.endpoints.len().max(1), hosts.collect::<BTreeSet<IpAddr>>().len());
        return endpoints(total.saturating_sub(gone), total, 0, gone);
    }
    let states = space.services.get(name).map(|s| endpoint_states(space, s)).unwrap_or_default();
    let ready =
        |ip: &IpAddr| space.slices_of(name).any(|s| s.endpoints.iter().any(|e| e.ip == *ip && e.ready));
    let gone = hosts.filter(ready).collect::<BTreeSet<IpAddr>>().len();
    endpoints(states.ready.saturating_sub(gone), states.total, states.in_mesh, gone)
}

fn endpoints(ready: usize, total: usize, in_mesh: usize, ejected: usize) -> Map<String, Value> {
    let fields = [
        ("endpoints", json!(format!("{ready}/{total}"))),
        ("inMesh", json!(in_mesh)),
        ("ejected", json!(ejected)),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
