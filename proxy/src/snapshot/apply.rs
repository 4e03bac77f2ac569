//! The next snapshot: the present one and an update of the operator. Pure. What cannot be understood is rejected by
//! itself and its last good version stays; live state is carried over by key, so that no update resets a counter.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;

use prost::Message as _;
use tokio::time::Instant;
use weft_api::v1;

use super::parse::{self, Invalid};
use super::{
    Cluster, ClusterLive, Endpoint, EndpointLive, HealthChanges, Service, ServiceLive, Snapshot, Target,
    Workload, service_of,
};
use crate::adaptive::{self, Adaptive};
use crate::authorize::Authorization;
use crate::balance::table::{Kind, Share, Table};
use crate::balance::tiers::Place;
use crate::breaker::{Breaker, Limits};
use crate::egress::Egress;

impl Snapshot {
    /// The snapshot after an update, and what of the update was not taken.
    #[must_use]
    pub fn apply(&self, update: &v1::ToProxy) -> (Self, Vec<v1::Rejection>) {
        let mut next = self.clone();
        let mut rejections = Vec::new();
        let mut reject = |resource: &str, invalid: Invalid| {
            rejections.push(v1::Rejection { resource: resource.to_owned(), message: invalid.to_string() });
        };

        if let Some(workload) = &update.workload {
            match parse::workload(workload) {
                Ok(mut parsed) => {
                    let last = self.workload.as_ref().and_then(|own| own.limits.as_ref());
                    // A policy that cannot be understood must not keep a new pod from its identity and mode.
                    parsed.limits = parse::limits(&workload.inbound_rules, last).unwrap_or_else(|invalid| {
                        reject("workload", invalid);
                        last.cloned()
                    });
                    let last = self.workload.as_ref().and_then(|own| own.authorization.as_ref());
                    let given = workload.authorization.as_ref();
                    parsed.authorization = parse::authorization(given, &parsed.identity, last)
                        .unwrap_or_else(|invalid| {
                            reject("workload", invalid);
                            // What was in force stays; where nothing was known, nobody can say who may ask for what.
                            match &self.workload {
                                Some(_) => last.cloned(),
                                None => Some(Arc::new(Authorization::closed())),
                            }
                        });
                    let last = self.workload.as_ref().and_then(|own| own.tokens.as_ref());
                    match parse::tokens(workload.tokens.as_ref(), last) {
                        Ok(tokens) => parsed.tokens = tokens,
                        Err(invalid) => {
                            reject("workload", invalid);
                            parsed.tokens = last.cloned();
                            // Where nothing was known, a token that should be refused must not pass for a good one.
                            if self.workload.is_none() {
                                parsed.authorization = Some(Arc::new(Authorization::closed()));
                            }
                        }
                    }
                    if self.workload.as_deref() != Some(&parsed) {
                        next.workload = Some(Arc::new(parsed));
                    }
                }
                Err(invalid) => reject("workload", invalid),
            }
        }

        let identity = next.workload.as_ref().map(|own| Arc::clone(&own.identity));
        let mut changed = HashSet::new();
        let own = |snapshot: &Self| snapshot.workload.as_ref().map(|own| Arc::clone(&own.namespace));
        let mut egress_changed = own(&next) != own(self);
        // Who has come to know where it is sees its endpoints in another order.
        let reread = if next.place() == self.place() { Vec::new() } else { self.by_place() };
        let services = reread.iter().map(|message| (&**message, true));
        let services = services.chain(update.services.iter().map(|message| (message, false)));
        let mut carried = Carried::of(services.clone().map(|(message, _)| message));
        for (message, anew) in services {
            let fingerprint = fingerprint(message);
            let last = self.services.get(message.key.as_str());
            if !anew && last.is_some_and(|last| last.fingerprint == fingerprint) {
                continue;
            }
            // Only now: most updates change no service.
            carried.fill(self, next.workload.as_ref());
            match parse::service(message, fingerprint, identity.as_deref(), &mut carried) {
                Ok(service) => {
                    changed.insert(Arc::clone(&service.key));
                    egress_changed |= service.external.is_some();
                    let before = next.services.insert(Arc::clone(&service.key), Arc::new(service));
                    egress_changed |= before.is_some_and(|before| before.external.is_some());
                }
                Err(invalid) => reject(&message.key, invalid),
            }
        }
        for key in &update.removed_services {
            let before = next.services.remove(key.as_str());
            egress_changed |= before.is_some_and(|before| before.external.is_some());
        }
        if egress_changed {
            let own = own(&next).unwrap_or_default();
            next.egress = Arc::new(Egress::of(next.services.values(), &own));
        }
        if !changed.is_empty() {
            next.retarget(&changed);
        }

        for message in &update.addresses {
            match parse::address(message, &next.services) {
                Ok((address, target)) => {
                    next.addresses.insert(address, target);
                }
                Err(invalid) => reject(&message.address, invalid),
            }
        }
        (next, rejections)
    }

    /// Where the own pod is.
    fn place(&self) -> Option<(&Arc<str>, &Arc<str>)> {
        self.workload.as_ref().map(|own| (&own.zone, &own.region))
    }

    /// The messages of services whose endpoints are ordered by nearness.
    fn by_place(&self) -> Vec<Arc<v1::Service>> {
        self.services.values().filter_map(|service| service.message.clone()).collect()
    }

    /// Points addresses to the new versions of their services. A pinned endpoint that has gone stays as it was until the
    /// operator says what its address is now.
    fn retarget(&mut self, changed: &HashSet<Arc<str>>) {
        let services = &self.services;
        for target in self.addresses.values_mut() {
            let (Target::Service(old) | Target::Pinned(old, _)) = &*target else { continue };
            if !changed.contains(&old.key) {
                continue;
            }
            let Some(new) = services.get(&old.key) else { continue };
            *target = match &*target {
                Target::Pinned(_, endpoint) => {
                    let now = new.endpoint(endpoint.addr).unwrap_or(endpoint);
                    Target::Pinned(Arc::clone(new), Arc::clone(now))
                }
                _ => Target::Service(Arc::clone(new)),
            };
        }
    }
}

impl Service {
    /// An endpoint of the default cluster.
    #[must_use]
    pub fn endpoint(&self, addr: SocketAddr) -> Option<&Arc<Endpoint>> {
        self.default_cluster.endpoints.iter().find(|endpoint| endpoint.addr == addr)
    }
}

fn fingerprint(service: &v1::Service) -> u64 {
    // The message holds no map, so equal ones have equal bytes.
    let mut hasher = DefaultHasher::new();
    hasher.write(&service.encode_to_vec());
    hasher.finish()
}

/// Of one service, by address. A subset's endpoint may differ from the whole service's, and another pod may be at the address of
/// an earlier one; mostly there is one.
type ByAddress = HashMap<SocketAddr, (Arc<Endpoint>, Vec<Arc<Endpoint>>)>;

/// Endpoints of one service: the last snapshot's, and what this update has made so far.
pub(super) struct Known {
    by_address: ByAddress,
    since: Option<Instant>,
    health: HealthChanges,
}

impl Known {
    fn at(&self, addr: SocketAddr, pod: &str) -> impl Iterator<Item = &Arc<Endpoint>> {
        let here = self.by_address.get(&addr).into_iter();
        here.flat_map(|(first, more)| std::iter::once(first).chain(more)).filter(move |e| *e.pod == *pod)
    }

    /// The endpoint of a pod that is as asked for.
    pub(super) fn same(
        &self,
        addr: SocketAddr,
        pod: &str,
        fits: impl Fn(&Endpoint) -> bool,
    ) -> Option<Arc<Endpoint>> {
        self.at(addr, pod).find(|endpoint| fits(endpoint)).cloned()
    }

    /// The live state of a pod's endpoint, new where there is none. Another pod at the address of an earlier one is another.
    pub(super) fn live(&self, addr: SocketAddr, pod: &str) -> Arc<EndpointLive> {
        self.at(addr, pod).next().map_or_else(
            || Arc::new(EndpointLive::new(&self.health, self.since)),
            |endpoint| Arc::clone(&endpoint.live),
        )
    }

    /// Notes an endpoint that was made.
    pub(super) fn add(&mut self, endpoint: &Arc<Endpoint>) {
        note(&mut self.by_address, endpoint);
    }
}

fn note(known: &mut ByAddress, endpoint: &Arc<Endpoint>) {
    match known.entry(endpoint.addr) {
        Entry::Vacant(vacant) => {
            vacant.insert((Arc::clone(endpoint), Vec::new()));
        }
        Entry::Occupied(mut there) => {
            let (first, more) = there.get_mut();
            if !Arc::ptr_eq(first, endpoint) && !more.iter().any(|other| Arc::ptr_eq(other, endpoint)) {
                more.push(Arc::clone(endpoint));
            }
        }
    }
}

/// Live state by key: of the last snapshot, and of what this update has made so far. Only of services that the update is
/// about: of what else a proxy holds nothing is looked at.
#[derive(Default)]
pub(super) struct Carried {
    filled: bool,
    /// Services whose clusters the update has.
    wanted: HashSet<Box<str>>,
    services: HashMap<Arc<str>, Arc<ServiceLive>>,
    clusters: HashMap<Arc<str>, (Arc<Breaker>, Arc<ClusterLive>)>,
    /// By service and route.
    routes: HashMap<(Arc<str>, Box<str>), Arc<Breaker>>,
    adaptive: HashMap<Arc<str>, Arc<Adaptive>>,
    endpoints: HashMap<Box<str>, ByAddress>,
    health: HealthChanges,
    workload: Option<Arc<Workload>>,
    /// When this update was taken; services that were known before it; the tables of their clusters.
    now: Option<Instant>,
    known: HashSet<Box<str>>,
    tables: HashMap<Arc<str>, Vec<Arc<Table>>>,
}

impl Carried {
    /// For these messages.
    fn of<'a>(messages: impl Iterator<Item = &'a v1::Service>) -> Self {
        let clusters = messages.flat_map(|message| &message.clusters);
        Self { wanted: clusters.map(|cluster| service_of(&cluster.name).into()).collect(), ..Self::default() }
    }

    fn fill(&mut self, last: &Snapshot, workload: Option<&Arc<Workload>>) {
        if std::mem::replace(&mut self.filled, true) {
            return;
        }
        self.health = last.health.clone();
        self.workload = workload.cloned();
        self.now = Some(Instant::now());
        for service in last.services.values() {
            self.services.insert(Arc::clone(&service.key), Arc::clone(&service.live));
            for route in &service.routes {
                if let Some(breaker) = &route.breaker {
                    let key = (Arc::clone(&service.key), (&*route.name).into());
                    self.routes.insert(key, Arc::clone(breaker));
                }
            }
            for cluster in &service.clusters {
                if self.wanted.contains(service_of(&cluster.name)) {
                    self.keep(cluster);
                }
            }
        }
    }

    fn keep(&mut self, cluster: &Cluster) {
        self.known.insert(service_of(&cluster.name).into());
        if cluster.hash.is_some() {
            let tables = cluster.plan.tables().map(Arc::clone).collect();
            self.tables.insert(Arc::clone(&cluster.name), tables);
        }
        self.clusters
            .insert(Arc::clone(&cluster.name), (Arc::clone(&cluster.breaker), Arc::clone(&cluster.live)));
        if let Some(adaptive) = &cluster.adaptive {
            self.adaptive.insert(Arc::clone(&cluster.name), Arc::clone(adaptive));
        }
        let known = self.endpoints.entry(service_of(&cluster.name).into()).or_default();
        known.reserve(cluster.endpoints.len());
        for endpoint in &cluster.endpoints {
            note(known, endpoint);
        }
    }

    pub(super) fn service(&mut self, key: &Arc<str>) -> Arc<ServiceLive> {
        Arc::clone(self.services.entry(Arc::clone(key)).or_default())
    }

    pub(super) fn cluster(&mut self, name: &Arc<str>, limits: Limits) -> (Arc<Breaker>, Arc<ClusterLive>) {
        let (breaker, live) = self
            .clusters
            .entry(Arc::clone(name))
            .or_insert_with(|| (Arc::new(Breaker::new(limits)), Arc::default()));
        if breaker.limits() != limits {
            *breaker = Arc::new(breaker.with_limits(limits));
        }
        (Arc::clone(breaker), Arc::clone(live))
    }

    pub(super) fn route(&mut self, service: &Arc<str>, route: &str, limits: Limits) -> Arc<Breaker> {
        let key = (Arc::clone(service), route.into());
        let breaker = self.routes.entry(key).or_insert_with(|| Arc::new(Breaker::new(limits)));
        if breaker.limits() != limits {
            *breaker = Arc::new(breaker.with_limits(limits));
        }
        Arc::clone(breaker)
    }

    /// Another configuration begins anew.
    pub(super) fn adaptive(&mut self, cluster: &Arc<str>, config: adaptive::Config) -> Arc<Adaptive> {
        let kept = self.adaptive.get(cluster).filter(|kept| kept.config() == config).cloned();
        let adaptive = kept.unwrap_or_else(|| Arc::new(Adaptive::new(config)));
        self.adaptive.insert(Arc::clone(cluster), Arc::clone(&adaptive));
        adaptive
    }

    /// What is known of a service's endpoints, until it is given back.
    pub(super) fn lend(&mut self, service: &str) -> Known {
        // Of a service that is new itself, nothing is newer than the rest.
        let since = self.now.filter(|_| self.known.contains(service));
        let by_address = self.endpoints.remove(service).unwrap_or_default();
        Known { by_address, since, health: self.health.clone() }
    }

    /// Takes it back, and what came to it.
    pub(super) fn give_back(&mut self, service: &str, known: Known) {
        self.endpoints.insert(service.into(), known.by_address);
    }

    /// Where the own pod is.
    pub(super) fn here(&self) -> Place<'_> {
        self.workload
            .as_deref()
            .map_or_else(Place::default, |own| Place { zone: &own.zone, region: &own.region })
    }

    /// A table of the cluster's last version that is the same.
    pub(super) fn table(&self, cluster: &str, kind: Kind, shares: &[Share]) -> Option<Arc<Table>> {
        self.tables.get(cluster)?.iter().find(|table| table.is_of(kind, shares)).cloned()
    }
}
