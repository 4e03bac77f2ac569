//! One proxy's subscription: what it was sent, what it acknowledged, what it has to be sent next. No I/O and no time:
//! `stream` moves the bytes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use prost::Message;
use weft_api::v1::{self, Source};
use weft_crds::mesh_service::Target as Described;

use super::fleet::Standing;
use super::wire::Update as Outgoing;
use crate::ca::Roots;
use crate::compile::{self, Encoded, Target};
use crate::index::{Key, ServiceId};
use crate::store::{Topic, View};

/// Addresses that one stream may hold.
pub const MAX_ADDRESSES: usize = 10_000;
/// Messages that may wait for their acknowledgement; what is older counts as never acknowledged.
const MAX_OUTSTANDING: usize = 1_024;
/// Longest rejection that is kept, in characters.
const MAX_REJECTION: usize = 300;
/// A message is cut into several beyond this size; gRPC clients take 4 MiB.
const MESSAGE_SIZE: usize = 1 << 20;

/// Why a stream is ended.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// A text that is no address.
    #[error("`{0}` is not an address of the form ip:port or [ip]:port")]
    Address(String),
    /// Too many addresses.
    #[error("more than {MAX_ADDRESSES} addresses of the mesh on one stream")]
    TooMany,
}

struct Held {
    at: SocketAddr,
    sent: v1::Address,
    service: Option<ServiceId>,
}

/// A resource that was sent and may be rejected by itself.
struct Sent {
    version: u64,
    standing: Standing,
}

/// One proxy's subscription.
pub struct Session {
    pod: Key,
    version: u64,
    workload: Option<v1::Workload>,
    addresses: HashMap<String, Held>,
    services: HashMap<ServiceId, (Arc<Encoded>, usize)>,
    /// External services, which no address leads to: they are there for whoever calls them.
    external: BTreeSet<ServiceId>,
    /// By "workload" or key of the service.
    sent: HashMap<String, Sent>,
    /// Other trust domains, as they were told; `None`: nothing was said of them yet.
    federation: Option<v1::Federation>,
    outstanding: VecDeque<(u64, Vec<String>)>,
    topics: HashMap<Topic, usize>,
    joined: Vec<Topic>,
    left: Vec<Topic>,
    news: News,
}

/// What the fleet has to be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// What is in force, or was rejected.
    pub applied: bool,
    /// Which services with active checks there are.
    pub services: bool,
}

const WORKLOAD: &str = "workload";
/// As proxies name other trust domains in a rejection.
const FEDERATION: &str = "federation";
/// As proxies name the trust bundle in a rejection.
const ROOTS: &str = "roots";

/// By which acknowledgements of a trust bundle are counted.
#[must_use]
pub fn bundle_source(roots: &Roots) -> Source {
    Source { kind: "TrustBundle".into(), name: roots.bundle_id(), ..Source::default() }
}

impl Session {
    /// For a pod.
    #[must_use]
    pub fn new(pod: Key) -> Self {
        let mut session = Self {
            pod: pod.clone(),
            version: 0,
            workload: None,
            addresses: HashMap::new(),
            services: HashMap::new(),
            external: BTreeSet::new(),
            sent: HashMap::new(),
            federation: None,
            outstanding: VecDeque::new(),
            topics: HashMap::new(),
            joined: Vec::new(),
            left: Vec::new(),
            news: News::default(),
        };
        session.join(Topic::External(pod.namespace.clone()));
        session.join(Topic::External(String::new()));
        session.join(Topic::Federation);
        session.join(Topic::Pod(pod));
        session
    }

    /// Topics that were joined and left since the last call. Whoever registers the joined ones has to
    /// [`Session::refresh`] them once more: they may have changed in between.
    #[must_use]
    pub fn topics(&mut self) -> (Vec<Topic>, Vec<Topic>) {
        let still = |topics: &HashMap<Topic, usize>, topic: &Topic| topics.contains_key(topic);
        let mut joined = std::mem::take(&mut self.joined);
        joined.retain(|topic| still(&self.topics, topic));
        let mut left = std::mem::take(&mut self.left);
        left.retain(|topic| !still(&self.topics, topic));
        (joined, left)
    }

    /// Whose subscription it is.
    #[must_use]
    pub const fn pod(&self) -> &Key {
        &self.pod
    }

    /// A message with the whole trust bundle. It is acknowledged like a resource of Kubernetes.
    pub fn roots(&mut self, roots: &Roots) -> Outgoing {
        self.version += 1;
        self.note_sent(vec![(ROOTS.to_owned(), [bundle_source(roots)].into())]);
        Outgoing {
            version: self.version,
            roots_der: roots.bundle_wire(),
            roots_epoch: roots.epoch,
            ..Outgoing::default()
        }
    }

    /// Whether the pod keeps a rate limit of that id together with others.
    #[must_use]
    pub fn keeps_limit(&self, id: &str) -> bool {
        self.workload.as_ref().is_some_and(|workload| compile::limits::keeps(workload, id))
    }

    /// Whether the pod takes tokens by keys that are fetched there.
    #[must_use]
    pub fn takes_keys_of(&self, source: &str) -> bool {
        let tokens = self.workload.as_ref().and_then(|workload| workload.tokens.as_ref());
        !source.is_empty()
            && tokens.is_some_and(|tokens| tokens.issuers.iter().any(|issuer| issuer.key_source == source))
    }

    /// Every topic that is joined.
    pub fn all_topics(&self) -> impl Iterator<Item = &Topic> {
        self.topics.keys()
    }

    /// How many addresses are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.addresses.len()
    }

    /// No address is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// Adds and drops addresses. Every added one is answered, also one that is held already.
    ///
    /// # Errors
    /// When the stream has to be ended.
    pub fn subscribe(
        &mut self,
        view: &View<'_>,
        subscribe: &v1::Subscribe,
    ) -> Result<Vec<Outgoing>, Refusal> {
        let mut update = Update::default();
        for text in &subscribe.drop {
            if let Some(held) = self.addresses.remove(text) {
                self.part(Topic::Ip(held.at.ip().to_canonical()));
                self.release(held.service, &mut update);
            }
        }
        for text in &subscribe.add {
            let at: SocketAddr =
                text.parse().map_err(|_| Refusal::Address(text.chars().take(80).collect()))?;
            if !self.addresses.contains_key(text) && self.addresses.len() >= MAX_ADDRESSES {
                // Whatever is not of the mesh is answered, and will never change here; it is not kept.
                if compile::target(view.index, at) != Target::External {
                    return Err(Refusal::TooMany);
                }
                update.addresses.push(compile::address(view.index, text, at));
                continue;
            }
            if !self.addresses.contains_key(text) {
                self.join(Topic::Ip(at.ip().to_canonical()));
            }
            self.look_up(view, text, at, true, &mut update);
        }
        Ok(self.finish(update))
    }

    /// Looks at topics that may have changed.
    pub fn refresh(&mut self, view: &View<'_>, topics: &HashSet<Topic>) -> Vec<Outgoing> {
        let mut update = Update::default();
        if topics.contains(&Topic::Pod(self.pod.clone())) {
            self.refresh_workload(view, &mut update);
        }
        if topics.contains(&Topic::Federation) {
            let (federation, sources) = compile::federation(view.index);
            // Once in any case: what the proxy holds may be of before.
            if self.federation.as_ref() != Some(&federation) || self.of_federation() != Some(&*sources) {
                self.federation = Some(federation.clone());
                update.federation = Some((federation, sources));
            }
        }
        self.refresh_external(view, topics, &mut update);
        let affected: Vec<(String, SocketAddr)> = self
            .addresses
            .iter()
            .filter(|(_, held)| {
                let by_service = held.service.as_ref().is_some_and(|id| topics.contains(&topic_of(id)));
                by_service || topics.contains(&Topic::Ip(held.at.ip().to_canonical()))
            })
            .map(|(text, held)| (text.clone(), held.at))
            .collect();
        for (text, at) in affected {
            self.look_up(view, &text, at, false, &mut update);
        }
        self.finish(update)
    }

    fn of_federation(&self) -> Option<&[Source]> {
        self.sent.get(FEDERATION).map(|sent| &*sent.standing.sources)
    }

    fn refresh_workload(&mut self, view: &View<'_>, update: &mut Update) {
        // A pod that is gone from the index keeps its last configuration: its proxy is still draining.
        let Some(pod) = view.index.pod(&self.pod) else { return };
        let workload = compile::workload(view.index, pod);
        if self.workload.as_ref() != Some(&workload) {
            self.workload = Some(workload.clone());
            update.workload = Some(workload);
        }
    }

    fn refresh_external(&mut self, view: &View<'_>, topics: &HashSet<Topic>, update: &mut Update) {
        let concerned = |topic: &Topic| match topic {
            Topic::External(_) => true,
            Topic::Service(key) => Described::external_of(&key.name).is_some(),
            Topic::Pod(_) | Topic::Ip(_) | Topic::Federation => false,
        };
        if !topics.iter().any(concerned) {
            return;
        }
        let mut now = BTreeSet::new();
        for id in compile::external_for(view.index, &self.pod.namespace) {
            let Some(compiled) = view.service(&id) else { continue };
            self.hold(&id, compiled, self.external.contains(&id), update);
            now.insert(id);
        }
        for gone in std::mem::replace(&mut self.external, now) {
            if !self.external.contains(&gone) {
                self.release(Some(gone), update);
            }
        }
    }

    fn look_up(&mut self, view: &View<'_>, text: &str, at: SocketAddr, always: bool, update: &mut Update) {
        let mut target = compile::target(view.index, at);
        let mut service = match &target {
            Target::Service(id) | Target::Pinned(id, _) => view.service(id).map(|s| (id.clone(), s)),
            Target::External => None,
        };
        if service.is_none() {
            target = Target::External;
        }
        let before = self.addresses.get(text).and_then(|held| held.service.clone());
        if service.is_none() && !always && matches!(before, Some(ServiceId::Service(..))) && nobodys(view, at)
        {
            // Its Service was deleted. What the proxy has stays in force: told "external", it would send plaintext for as
            // long as the node still routes the address.
            return;
        }
        if let Some((id, compiled)) = service.take() {
            self.hold(&id, compiled, before.as_ref() == Some(&id), update);
        }
        let address = compile::wire(text, &target);
        let id = match target {
            Target::Service(id) | Target::Pinned(id, _) => Some(id),
            Target::External => None,
        };
        if before != id {
            self.release(before, update);
        }
        let changed = self.addresses.get(text).is_none_or(|held| held.sent != address);
        if changed || always {
            update.addresses.push(address.clone());
        }
        self.addresses.insert(text.to_owned(), Held { at, sent: address, service: id });
    }

    /// Notes that an address leads to the service, and sends it if it is new or other than before.
    fn hold(&mut self, id: &ServiceId, compiled: Arc<Encoded>, held: bool, update: &mut Update) {
        if let Some((known, count)) = self.services.get_mut(id) {
            *count += usize::from(!held);
            if Arc::ptr_eq(known, &compiled) || **known == *compiled {
                return;
            }
            self.news.services |= known.checking != compiled.checking;
            *known = Arc::clone(&compiled);
        } else {
            self.news.services |= !compiled.checking.is_empty();
            self.services.insert(id.clone(), (Arc::clone(&compiled), 1));
            self.join(topic_of(id));
        }
        update.removed.remove(&compiled.key);
        update.services.insert(compiled.key.clone(), compiled);
    }

    fn release(&mut self, id: Option<ServiceId>, update: &mut Update) {
        let Some(id) = id else { return };
        let Some((service, count)) = self.services.get_mut(&id) else { return };
        *count -= 1;
        if *count == 0 {
            let key = service.key.clone();
            self.news = News { applied: true, services: self.news.services || !service.checking.is_empty() };
            update.services.remove(&key);
            self.sent.remove(&key);
            update.removed.insert(key);
            self.services.remove(&id);
            self.part(topic_of(&id));
        }
    }

    fn join(&mut self, topic: Topic) {
        let count = self.topics.entry(topic.clone()).or_default();
        *count += 1;
        if *count == 1 {
            self.joined.push(topic);
        }
    }

    fn part(&mut self, topic: Topic) {
        if let Some(count) = self.topics.get_mut(&topic) {
            *count -= 1;
            if *count == 0 {
                self.topics.remove(&topic);
                self.left.push(topic);
            }
        }
    }

    /// Numbers the messages: services first, so that no address comes before what it names.
    fn finish(&mut self, update: Update) -> Vec<Outgoing> {
        let mut parts: Vec<Part> = Vec::new();
        let mut part = Part::default();
        if let Some(workload) = update.workload {
            part.shaped.push((WORKLOAD.to_owned(), workload.sources.as_slice().into()));
            part.message.workload = Some(workload);
        }
        if let Some((federation, sources)) = update.federation {
            part.make_room(federation.encoded_len(), &mut parts);
            part.shaped.push((FEDERATION.to_owned(), sources.into()));
            part.message.federation = Some(federation);
        }
        for service in update.services.into_values() {
            part.make_room(service.bytes.len(), &mut parts);
            part.shaped.push((service.key.clone(), Arc::clone(&service.sources)));
            part.message.services.push(service.bytes.clone());
        }
        for address in update.addresses {
            part.make_room(address.encoded_len(), &mut parts);
            part.message.addresses.push(address);
        }
        part.message.removed_services = update.removed.into_iter().collect();
        parts.push(part);
        parts.retain(|part| part.message != Outgoing::default());
        parts
            .into_iter()
            .map(|mut part| {
                self.version += 1;
                part.message.version = self.version;
                self.note_sent(part.shaped);
                part.message
            })
            .collect()
    }

    /// Of the message of this version.
    fn note_sent(&mut self, shaped: Vec<(String, Arc<[Source]>)>) {
        let version = self.version;
        let mut resources = Vec::new();
        for (resource, sources) in shaped {
            // Other endpoints under the same policies: what was in force still is.
            let same = self.sent.get(&resource).map(|s| &s.standing).filter(|s| s.sources == sources);
            self.news.applied |= same.is_none_or(|standing| !standing.rejection.is_empty());
            let applied = same.is_some_and(|standing| standing.applied);
            let standing = Standing { sources, applied, rejection: "".into() };
            self.sent.insert(resource.clone(), Sent { version, standing });
            resources.push(resource);
        }
        if self.outstanding.len() == MAX_OUTSTANDING {
            self.outstanding.pop_front();
        }
        self.outstanding.push_back((version, resources));
    }

    /// What [`Session::report`] and [`Session::checking`] say otherwise than at the last call of this.
    #[must_use]
    pub const fn news(&mut self) -> News {
        std::mem::replace(&mut self.news, News { applied: false, services: false })
    }

    /// Takes an acknowledgement of a message, and of all before it: a proxy may apply several as one, and say what it
    /// rejected of them together. Says how many resources were rejected.
    pub fn acknowledge(&mut self, ack: &v1::Ack) -> usize {
        let mut rejected = 0;
        while let Some((version, resources)) = self.outstanding.pop_front_if(|(v, _)| *v <= ack.version) {
            for resource in resources {
                let Some(sent) = self.sent.get_mut(&resource).filter(|s| s.version == version) else {
                    continue;
                };
                let standing = &mut sent.standing;
                let rejection = ack.rejections.iter().find(|r| r.resource == resource);
                match rejection {
                    Some(rejection) => {
                        rejected += 1;
                        standing.rejection = rejection.message.chars().take(MAX_REJECTION).collect();
                        standing.applied = false;
                        self.news.applied = true;
                    }
                    None => self.news.applied |= !std::mem::replace(&mut standing.applied, true),
                }
            }
        }
        rejected
    }

    /// Services with active checks that it calls.
    #[must_use]
    pub fn checking(&self) -> BTreeSet<String> {
        self.services.values().flat_map(|(service, _)| service.checking.iter().cloned()).collect()
    }

    /// For everything that this proxy was sent, whether it has it in force.
    #[must_use]
    pub fn report(&self) -> Vec<Standing> {
        self.sent.values().map(|sent| sent.standing.clone()).collect()
    }
}

/// A message, and what of it may be rejected by itself, with its sources.
#[derive(Default)]
struct Part {
    message: Outgoing,
    shaped: Vec<(String, Arc<[Source]>)>,
    size: usize,
}

impl Part {
    /// Begins another message when this one would become too large.
    fn make_room(&mut self, length: usize, full: &mut Vec<Self>) {
        if self.size > 0 && self.size + length > MESSAGE_SIZE {
            full.push(std::mem::take(self));
        }
        self.size += length;
    }
}

#[derive(Default)]
struct Update {
    workload: Option<v1::Workload>,
    federation: Option<(v1::Federation, Vec<Source>)>,
    services: BTreeMap<String, Arc<Encoded>>,
    addresses: Vec<v1::Address>,
    removed: BTreeSet<String>,
}

/// Whether no Service and no pod has the address.
fn nobodys(view: &View<'_>, at: SocketAddr) -> bool {
    let ip = at.ip().to_canonical();
    view.index.services_at(ip).next().is_none() && view.index.pods_at(ip).next().is_none()
}

fn topic_of(id: &ServiceId) -> Topic {
    match id {
        ServiceId::Service(key, _) => Topic::Service(key.clone()),
        ServiceId::Pod(key, _) => Topic::Pod(key.clone()),
    }
}
