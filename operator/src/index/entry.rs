//! How each kind of object goes into the index: one `put` a kind, which keeps the reverse indexes right and marks what is
//! affected. An object that says the same as before affects nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;
use std::ops::Bound;
use std::sync::Arc;

use weft_crds::peer_authentication::Selector;
use weft_crds::{
    AuthorizationPolicySpec, MeshServiceSpec, PeerAuthenticationSpec, RequestAuthenticationSpec,
    TrafficPolicySpec, TrustDomainSpec,
};

use super::policy::{Resource, Spec, Tracked};
use super::space::Space;
use super::{Dirty, Few, Index, Key, Namespace, Pod, Service, Slice, selects};

/// One change of the cluster.
#[derive(Debug)]
pub enum Change<E> {
    /// It is new, or other than before.
    Apply(E),
    /// It is gone.
    Delete(Key),
    /// These are all; what else there was is gone.
    Reset(Vec<E>),
}

/// A kind of object in the index.
pub trait Entry: Sized {
    /// Its key.
    fn key(&self) -> Key;
    /// Keys of all that the index holds.
    fn keys(index: &Index) -> Vec<Key>;
    /// Puts it in, or takes it out.
    fn put(index: &mut Index, key: &Key, entry: Option<Self>, dirty: &mut Dirty);
}

impl Entry for Namespace {
    fn key(&self) -> Key {
        self.key.clone()
    }
    fn keys(index: &Index) -> Vec<Key> {
        index.namespaces.keys().map(|name| Key::new("", name)).collect()
    }
    fn put(index: &mut Index, key: &Key, entry: Option<Self>, dirty: &mut Dirty) {
        if index.namespaces.get(&key.name) == entry.as_ref() {
            return;
        }
        dirty.leader = true;
        let outbound = |namespace: Option<&Self>| namespace.and_then(|n| n.outbound);
        if outbound(index.namespaces.get(&key.name)) != outbound(entry.as_ref()) {
            let pods = index.spaces.get(&key.name).into_iter().flat_map(|space| space.pods.values());
            dirty.pods.extend(pods.filter(|pod| pod.mesh).map(|pod| pod.key.clone()));
        }
        match entry {
            Some(entry) => index.namespaces.insert(key.name.clone(), entry),
            None => index.namespaces.remove(&key.name),
        };
    }
}

impl Entry for Service {
    fn key(&self) -> Key {
        self.key.clone()
    }
    fn keys(index: &Index) -> Vec<Key> {
        keys(index, |s| s.services.keys())
    }
    fn put(index: &mut Index, key: &Key, entry: Option<Self>, dirty: &mut Dirty) {
        let before = index.service(key).cloned();
        if before.as_deref() == entry.as_ref() {
            return;
        }
        dirty.services.insert(key.clone());
        dirty.reshaped.insert(key.clone());
        for ip in before.iter().flat_map(|s| s.ips()) {
            remove_from(&mut index.by_service_ip, ip, key);
            dirty.ips.insert(*ip);
        }
        for ip in entry.iter().flat_map(|s| s.ips()) {
            index.by_service_ip.entry(*ip).or_default().add(key.clone());
            dirty.ips.insert(*ip);
        }
        let space = index.spaces.entry(key.namespace.clone()).or_default();
        match entry {
            Some(entry) => space.services.insert(key.name.clone(), Arc::new(entry)),
            None => space.services.remove(&key.name),
        };
        settle_later(space, key, dirty);
    }
}

impl Entry for Slice {
    fn key(&self) -> Key {
        self.key.clone()
    }
    fn keys(index: &Index) -> Vec<Key> {
        keys(index, |s| s.slices.keys())
    }
    fn put(index: &mut Index, key: &Key, entry: Option<Self>, dirty: &mut Dirty) {
        let space = index.spaces.entry(key.namespace.clone()).or_default();
        let before = space.slices.get(&key.name).cloned();
        if before.as_deref() == entry.as_ref() {
            tidy_later(space, key, dirty);
            return;
        }
        if let Some(before) = &before {
            let service = Key::new(&key.namespace, &before.service);
            if let Some(names) = space.slices_of.get_mut(&before.service) {
                names.remove(&key.name);
                if names.is_empty() {
                    space.slices_of.remove(&before.service);
                }
            }
            for endpoint in &before.endpoints {
                remove_from(&mut index.by_endpoint_ip, &endpoint.ip, &service);
                if let Some(pod) = &endpoint.pod {
                    remove_from(&mut space.services_of_pod, pod, &before.service);
                }
            }
        }
        if let Some(entry) = &entry {
            let service = Key::new(&key.namespace, &entry.service);
            space.slices_of.entry(entry.service.clone()).or_default().insert(key.name.clone());
            for endpoint in &entry.endpoints {
                index.by_endpoint_ip.entry(endpoint.ip).or_default().add(service.clone());
                if let Some(pod) = &endpoint.pod {
                    space.services_of_pod.entry(pod.clone()).or_default().add(entry.service.clone());
                }
            }
        }
        mark_slice(before.as_deref(), entry.as_ref(), key, dirty);
        match entry {
            Some(entry) => space.slices.insert(key.name.clone(), Arc::new(entry)),
            None => space.slices.remove(&key.name),
        };
        tidy_later(space, key, dirty);
    }
}

/// Only endpoints that came, went or changed are affected, unless the ports are others.
fn mark_slice(before: Option<&Slice>, now: Option<&Slice>, key: &Key, dirty: &mut Dirty) {
    for slice in before.into_iter().chain(now) {
        dirty.services.insert(Key::new(&key.namespace, &slice.service));
    }
    let same_shape = match (before, now) {
        (Some(a), Some(b)) => a.ports == b.ports && a.service == b.service,
        _ => false,
    };
    let sides = [(before, now), (now, before)];
    for (one, other) in sides {
        let kept: HashSet<_> = match other {
            Some(other) if same_shape => {
                other.endpoints.iter().map(|e| (e.ip, e.ready, e.pod.as_deref())).collect()
            }
            _ => HashSet::new(),
        };
        for endpoint in one.iter().flat_map(|s| &s.endpoints) {
            if !kept.contains(&(endpoint.ip, endpoint.ready, endpoint.pod.as_deref())) {
                dirty.ips.insert(endpoint.ip);
                if let Some(pod) = &endpoint.pod {
                    dirty.pods.insert(Key::new(&key.namespace, pod));
                }
            }
        }
    }
}

impl Entry for Pod {
    fn key(&self) -> Key {
        self.key.clone()
    }
    fn keys(index: &Index) -> Vec<Key> {
        keys(index, |s| s.pods.keys())
    }
    fn put(index: &mut Index, key: &Key, entry: Option<Self>, dirty: &mut Dirty) {
        let before = index.pod(key).cloned();
        if before.as_deref() == entry.as_ref() {
            return;
        }
        let bundled = |pod: &Pod| usize::from((pod.mesh || pod.opted_in) && !pod.ended);
        dirty.pods.insert(key.clone());
        for ip in before.iter().flat_map(|p| &p.ips) {
            remove_from(&mut index.by_pod_ip, ip, key);
        }
        for ip in entry.iter().flat_map(|p| &p.ips) {
            index.by_pod_ip.entry(*ip).or_default().add(key.clone());
        }
        index.move_pod(key, before.as_deref(), entry.as_ref());
        for pod in before.as_deref().into_iter().chain(&entry) {
            dirty.ips.extend(&pod.ips);
            mark_pod(index, pod, dirty);
        }
        let space = index.spaces.entry(key.namespace.clone()).or_default();
        let count = entry.as_ref().map_or(0, bundled);
        let was = before.as_deref().map_or(0, bundled);
        dirty.leader |= (space.mesh_pods == 0) != (space.mesh_pods + count - was == 0);
        space.mesh_pods = space.mesh_pods + count - was;
        match entry {
            Some(mut entry) => {
                share_labels(&space.pods, &mut entry);
                space.pods.insert(key.name.clone(), Arc::new(entry))
            }
            None => space.pods.remove(&key.name),
        };
        tidy_later(space, key, dirty);
    }
}

/// Pods of one workload stand beside each other by name, and mostly have the same labels.
fn share_labels(pods: &BTreeMap<String, Arc<Pod>>, pod: &mut Pod) {
    let name = pod.key.name.as_str();
    let before = pods.range::<str, _>((Bound::Unbounded, Bound::Excluded(name))).next_back();
    let after = pods.range::<str, _>((Bound::Included(name), Bound::Unbounded)).next();
    if let Some((_, neighbour)) =
        before.into_iter().chain(after).find(|(_, other)| other.labels == pod.labels)
    {
        pod.labels = Arc::clone(&neighbour.labels);
    }
}

/// Services that have the pod, or an address of it, as an endpoint.
pub(super) fn mark_pod(index: &Index, pod: &Pod, dirty: &mut Dirty) {
    for services in pod.ips.iter().filter_map(|ip| index.by_endpoint_ip.get(ip)) {
        dirty.services.extend(services.iter().cloned());
    }
    let space = index.spaces.get(&pod.key.namespace);
    if let Some(services) = space.and_then(|s| s.services_of_pod.get(&pod.key.name)) {
        dirty.services.extend(services.iter().map(|name| Key::new(&pod.key.namespace, name)));
    }
    // Services that are gone but still sent to have no slices: their pods are those that they selected.
    let gone = |space: &Space, name: &String| !space.services.contains_key(name);
    for (name, service) in space.into_iter().flat_map(|s| &s.settled.remembered_services) {
        let selected = !service.selector.is_empty() && selects(&service.selector, &pod.labels);
        if selected && space.is_some_and(|space| gone(space, name)) {
            dirty.services.insert(Key::new(&pod.key.namespace, name));
        }
    }
}

impl Entry for Resource<MeshServiceSpec> {
    fn key(&self) -> Key {
        self.key.clone()
    }
    fn keys(index: &Index) -> Vec<Key> {
        keys(index, |s| s.mesh_services.keys())
    }
    fn put(index: &mut Index, key: &Key, entry: Option<Self>, dirty: &mut Dirty) {
        let space = index.spaces.entry(key.namespace.clone()).or_default();
        put_resource(&mut space.mesh_services, key, entry, dirty);
    }
}

impl Entry for Resource<TrafficPolicySpec> {
    fn key(&self) -> Key {
        self.key.clone()
    }
    fn keys(index: &Index) -> Vec<Key> {
        keys(index, |s| s.policies.keys())
    }
    fn put(index: &mut Index, key: &Key, entry: Option<Self>, dirty: &mut Dirty) {
        let space = index.spaces.entry(key.namespace.clone()).or_default();
        put_resource(&mut space.policies, key, entry, dirty);
    }
}

impl Entry for Resource<PeerAuthenticationSpec> {
    fn key(&self) -> Key {
        self.key.clone()
    }
    fn keys(index: &Index) -> Vec<Key> {
        keys(index, |s| s.peer_authentications.keys())
    }
    fn put(index: &mut Index, key: &Key, entry: Option<Self>, dirty: &mut Dirty) {
        let space = index.spaces.entry(key.namespace.clone()).or_default();
        let mut specs: Vec<Arc<PeerAuthenticationSpec>> = Vec::new();
        let note = |tracked: Option<&Tracked<PeerAuthenticationSpec>>, specs: &mut Vec<_>| {
            if let Some(tracked) = tracked {
                specs.extend(tracked.now.spec.iter().cloned());
                specs.extend(tracked.good.iter().map(|g| Arc::clone(&g.spec)));
            }
        };
        note(space.peer_authentications.get(&key.name), &mut specs);
        if !put_resource(&mut space.peer_authentications, key, entry, dirty) {
            return;
        }
        note(space.peer_authentications.get(&key.name), &mut specs);
        let everywhere = key.namespace == index.own_namespace && specs.iter().any(|s| s.selector.is_none());
        let touched: Vec<Arc<Pod>> = if everywhere {
            index.spaces.values().flat_map(|s| s.pods.values()).filter(|p| p.mesh).cloned().collect()
        } else {
            let chosen = |pod: &Pod| {
                specs
                    .iter()
                    .any(|s| s.selector.as_ref().is_none_or(|sel| selects(&sel.match_labels, &pod.labels)))
            };
            let pods = index.spaces.get(&key.namespace).into_iter().flat_map(|s| s.pods.values());
            pods.filter(|p| p.mesh && chosen(p)).cloned().collect()
        };
        for pod in touched {
            dirty.pods.insert(pod.key.clone());
            mark_pod(index, &pod, dirty);
            let space = index.spaces.get(&pod.key.namespace);
            for (name, service) in space.iter().flat_map(|s| &s.settled.remembered_services) {
                if selects(&service.selector, &pod.labels) {
                    dirty.services.insert(Key::new(&pod.key.namespace, name));
                }
            }
        }
    }
}

impl Entry for Resource<AuthorizationPolicySpec> {
    fn key(&self) -> Key {
        self.key.clone()
    }
    fn keys(index: &Index) -> Vec<Key> {
        keys(index, |s| s.authorization_policies.keys())
    }
    fn put(index: &mut Index, key: &Key, entry: Option<Self>, dirty: &mut Dirty) {
        let space = index.spaces.entry(key.namespace.clone()).or_default();
        let before = space.authorization_policies.get(&key.name).cloned();
        if !put_resource(&mut space.authorization_policies, key, entry, dirty) {
            return;
        }
        let now = space.authorization_policies.get(&key.name).cloned();
        let specs = [before, now].into_iter().flatten().flat_map(|tracked| {
            let good = tracked.good.map(|good| good.spec);
            tracked.now.spec.ok().into_iter().chain(good)
        });
        let specs: Vec<Arc<AuthorizationPolicySpec>> = specs.collect();
        let selectors: Vec<_> = specs.iter().map(|spec| spec.selector.as_ref()).collect();
        dirty.pods.extend(index.selected(&key.namespace, &selectors));
    }
}

impl Entry for Resource<RequestAuthenticationSpec> {
    fn key(&self) -> Key {
        self.key.clone()
    }
    fn keys(index: &Index) -> Vec<Key> {
        keys(index, |s| s.request_authentications.keys())
    }
    fn put(index: &mut Index, key: &Key, entry: Option<Self>, dirty: &mut Dirty) {
        let space = index.spaces.entry(key.namespace.clone()).or_default();
        let before = space.request_authentications.get(&key.name).cloned();
        if !put_resource(&mut space.request_authentications, key, entry, dirty) {
            return;
        }
        // Of two that are in conflict, the one that does not change may come into force, or go out of it.
        let specs = space.request_authentications.values().chain(&before).flat_map(|tracked| {
            let good = tracked.good.as_ref().map(|good| &good.spec);
            tracked.now.spec.as_ref().ok().into_iter().chain(good)
        });
        let specs: Vec<Arc<RequestAuthenticationSpec>> = specs.cloned().collect();
        let selectors: Vec<_> = specs.iter().map(|spec| spec.selector.as_ref()).collect();
        dirty.pods.extend(index.selected(&key.namespace, &selectors));
    }
}

impl Entry for Resource<TrustDomainSpec> {
    fn key(&self) -> Key {
        self.key.clone()
    }
    fn keys(index: &Index) -> Vec<Key> {
        keys(index, |s| s.trust_domains.keys())
    }
    fn put(index: &mut Index, key: &Key, entry: Option<Self>, dirty: &mut Dirty) {
        let space = index.spaces.entry(key.namespace.clone()).or_default();
        // The leader notes there what it has fetched.
        let fetched = |space: &Space| {
            space.trust_domains.get(&key.name).map(|tracked| tracked.now.status["bundle"].clone())
        };
        let before = fetched(space);
        put_resource(&mut space.trust_domains, key, entry, dirty);
        if before != fetched(space) {
            dirty.unsettled.insert(key.namespace.clone());
        }
    }
}

impl Index {
    /// Pods that resources of a namespace select. Only those are asked and enforce it: nothing changes for those who call them.
    pub(super) fn selected(&self, namespace: &str, selectors: &[Option<&Selector>]) -> Vec<Key> {
        let everywhere = namespace == self.own_namespace && selectors.iter().any(Option::is_none);
        let spaces = self.spaces.iter().filter(|(name, _)| everywhere || **name == namespace);
        let chosen = |pod: &Pod| {
            selectors.iter().any(|selector| match selector {
                Some(selector) => {
                    pod.key.namespace == namespace && selects(&selector.match_labels, &pod.labels)
                }
                None => true,
            })
        };
        let pods = spaces.flat_map(|(_, space)| space.pods.values());
        pods.filter(|pod| pod.mesh && chosen(pod)).map(|pod| pod.key.clone()).collect()
    }
}

/// True when it makes a difference to configuration; a status alone makes none.
fn put_resource<S: Spec>(
    all: &mut BTreeMap<String, Tracked<S>>,
    key: &Key,
    entry: Option<Resource<S>>,
    dirty: &mut Dirty,
) -> bool {
    let before = all.remove(&key.name);
    let same = match (&before, &entry) {
        (Some(before), Some(entry)) => before.now.same(entry),
        (None, None) => true,
        _ => false,
    };
    if let Some(entry) = entry {
        all.insert(key.name.clone(), Tracked::new(entry, before));
    }
    if !same {
        dirty.leader = true;
        dirty.unsettled.insert(key.namespace.clone());
    }
    !same
}

fn keys<'a, I: Iterator<Item = &'a String>>(index: &'a Index, names: impl Fn(&'a Space) -> I) -> Vec<Key> {
    let all = index.spaces.iter();
    all.flat_map(|(namespace, space)| names(space).map(move |name| Key::new(namespace, name))).collect()
}

fn remove_from<A: Eq + Hash, B: Ord>(map: &mut HashMap<A, Few<B>>, at: &A, what: &B) {
    let Some(members) = map.get_mut(at) else { return };
    members.remove(what);
    if members.is_empty() {
        map.remove(at);
    }
}

/// A Service may be what a policy was missing. Namespaces without policies need no settling.
fn settle_later(space: &Space, key: &Key, dirty: &mut Dirty) {
    if !space.unruled() {
        dirty.unsettled.insert(key.namespace.clone());
    }
    tidy_later(space, key, dirty);
}

/// Settling removes namespaces that have become empty.
fn tidy_later(space: &Space, key: &Key, dirty: &mut Dirty) {
    if space.is_empty() {
        dirty.unsettled.insert(key.namespace.clone());
    }
}
