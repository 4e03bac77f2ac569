//! What exists in the cluster, as far as Weft cares: lean structs, indexed by namespace and by address.
//! Fed by hand or by `watch`, one change at a time; each change says what it may affect ([`Dirty`]), so that nothing is
//! ever worked out for the whole cluster. It does no I/O and knows no time.

mod dirty;
mod entry;
mod federation;
mod few;
mod key;
mod key_set;
mod node;
mod outbound;
mod pod;
pub mod policy;
pub mod resources;
mod service;
mod settle;
pub mod space;
#[cfg(test)]
#[allow(missing_docs)]
pub mod testing;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use weft_api::{Identity, TrustDomain};

pub use dirty::Dirty;
pub use entry::{Change, Entry};
pub use federation::{Federated, Wanted};
pub use few::Few;
pub use key::{BadServiceId, Key, ServiceId};
pub use key_set::{KeySet, KeySets, KeySource};
pub use node::Node;
pub use outbound::OutboundPolicy;
pub use pod::{Namespace, Pod, Probe, ProbeKind, selects};
pub use service::{Service, ServicePort, Slice, SliceEndpoint, TargetPort};
pub use space::Space;

/// Everything that is known.
pub struct Index {
    /// Whose PeerAuthentications, RequestAuthentications and AuthorizationPolicies without selector govern the whole mesh.
    pub own_namespace: String,
    /// The trust domain of every identity.
    pub trust_domain: TrustDomain,
    /// Of pods that do not say otherwise, and whose namespaces do not either.
    pub outbound_policy: OutboundPolicy,
    /// Namespaces.
    pub namespaces: BTreeMap<String, Namespace>,
    nodes: BTreeMap<String, Node>,
    spaces: HashMap<String, Space>,
    /// Keys of issuers that were fetched.
    pub key_sets: KeySets,
    by_service_ip: HashMap<IpAddr, Few<Key>>,
    /// Services that have an endpoint at the address, and in how many slices.
    by_endpoint_ip: HashMap<IpAddr, Few<Key>>,
    by_pod_ip: HashMap<IpAddr, Few<Key>>,
    /// Pods of each node, known or not.
    by_node: HashMap<String, BTreeSet<Key>>,
    version: u64,
    /// The version at which something last changed that the service is compiled from.
    service_versions: HashMap<Key, u64>,
}

impl Index {
    /// An empty index.
    #[must_use]
    pub fn new(own_namespace: &str, trust_domain: TrustDomain) -> Self {
        Self {
            own_namespace: own_namespace.to_owned(),
            trust_domain,
            outbound_policy: OutboundPolicy::default(),
            namespaces: BTreeMap::new(),
            nodes: BTreeMap::new(),
            spaces: HashMap::new(),
            key_sets: KeySets::default(),
            by_service_ip: HashMap::new(),
            by_endpoint_ip: HashMap::new(),
            by_pod_ip: HashMap::new(),
            by_node: HashMap::new(),
            version: 0,
            service_versions: HashMap::new(),
        }
    }

    /// Applies one change, whole, and says what it may affect.
    pub fn apply<E: Entry>(&mut self, change: Change<E>) -> Dirty {
        let mut dirty = Dirty::default();
        match change {
            Change::Apply(entry) => E::put(self, &entry.key(), Some(entry), &mut dirty),
            Change::Delete(key) => E::put(self, &key, None, &mut dirty),
            Change::Reset(entries) => {
                let mut gone: BTreeSet<Key> = E::keys(self).into_iter().collect();
                for entry in entries {
                    let key = entry.key();
                    gone.remove(&key);
                    E::put(self, &key, Some(entry), &mut dirty);
                }
                for key in gone {
                    E::put(self, &key, None, &mut dirty);
                }
            }
        }
        self.finish(&mut dirty);
        dirty
    }

    /// Settles the namespaces whose policies may have come to something else, follows the dependencies, counts versions.
    fn finish(&mut self, dirty: &mut Dirty) {
        for namespace in std::mem::take(&mut dirty.unsettled) {
            let Some(space) = self.spaces.get_mut(&namespace) else { continue };
            let home = federation::Home { namespace: &self.own_namespace, trust_domain: &self.trust_domain };
            let before = settle::settle(space, &self.key_sets, &home);
            dirty.compare(&namespace, &before, &space.settled);
            if space.is_empty() {
                self.spaces.remove(&namespace);
            }
        }
        for service in std::mem::take(&mut dirty.reshaped) {
            self.mark_endpoints(&service, dirty);
        }
        let direct: Vec<Key> = dirty.services.iter().cloned().collect();
        for service in direct {
            if let Some(space) = self.spaces.get(&service.namespace)
                && let Some(splitters) = space.settled.splitters.get(&service.name)
            {
                dirty.services.extend(splitters.iter().map(|name| Key::new(&service.namespace, name)));
            }
        }
        if dirty.is_empty() {
            return;
        }
        self.version += 1;
        for service in &dirty.services {
            if self.service(service).is_some() {
                self.service_versions.insert(service.clone(), self.version);
            } else {
                self.service_versions.remove(service);
            }
        }
    }

    /// Marks the pods and addresses behind a Service.
    fn mark_endpoints(&self, service: &Key, dirty: &mut Dirty) {
        let Some(space) = self.spaces.get(&service.namespace) else { return };
        for endpoint in space.slices_of(&service.name).flat_map(|s| &s.endpoints) {
            dirty.ips.insert(endpoint.ip);
            if let Some(pod) = &endpoint.pod {
                dirty.pods.insert(Key::new(&service.namespace, pod));
            }
        }
    }

    /// Nothing is held, in any of the maps.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.namespaces.is_empty()
            && self.spaces.is_empty()
            && self.key_sets.is_empty()
            && self.by_service_ip.is_empty()
            && self.by_endpoint_ip.is_empty()
            && self.by_pod_ip.is_empty()
            && self.nodes.is_empty()
            && self.by_node.is_empty()
            && self.service_versions.is_empty()
    }

    /// Grows with every change that affects anything.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// The version at which something last changed that the service is compiled from.
    #[must_use]
    pub fn service_version(&self, service: &Key) -> u64 {
        self.service_versions.get(service).copied().unwrap_or_default()
    }

    /// A namespace's contents.
    #[must_use]
    pub fn space(&self, namespace: &str) -> Option<&Space> {
        self.spaces.get(namespace)
    }

    /// All namespaces with contents.
    pub fn spaces(&self) -> impl Iterator<Item = (&String, &Space)> {
        self.spaces.iter()
    }

    /// A Service.
    #[must_use]
    pub fn service(&self, key: &Key) -> Option<&Arc<Service>> {
        self.spaces.get(&key.namespace)?.services.get(&key.name)
    }

    /// A pod.
    #[must_use]
    pub fn pod(&self, key: &Key) -> Option<&Arc<Pod>> {
        self.spaces.get(&key.namespace)?.pods.get(&key.name)
    }

    /// The Services that the address stands for: as a cluster IP (one at most), or as an external or load balancer IP.
    pub fn services_at(&self, ip: IpAddr) -> impl Iterator<Item = &Arc<Service>> {
        self.by_service_ip.get(&ip).into_iter().flat_map(Few::iter).filter_map(|key| self.service(key))
    }

    /// The Services that have an endpoint at the address.
    pub fn services_of_endpoint(&self, ip: IpAddr) -> impl Iterator<Item = &Arc<Service>> {
        self.by_endpoint_ip.get(&ip).into_iter().flat_map(Few::iter).filter_map(|key| self.service(key))
    }

    /// The running pods that have the address; more than one only on a node's address.
    pub fn pods_at(&self, ip: IpAddr) -> impl Iterator<Item = &Arc<Pod>> {
        self.by_pod_ip
            .get(&ip)
            .into_iter()
            .flat_map(Few::iter)
            .filter_map(|key| self.pod(key))
            .filter(|pod| !pod.ended)
    }

    /// The identity of a pod's workload.
    #[must_use]
    pub fn identity(&self, pod: &Pod) -> Identity {
        Identity {
            trust_domain: self.trust_domain.clone(),
            namespace: pod.key.namespace.clone(),
            service_account: pod.service_account.clone(),
        }
    }

    /// Namespaces that need the trust bundle: injected, or with pods in the mesh, or Weft's own.
    #[must_use]
    pub fn bundle_namespaces(&self) -> BTreeSet<String> {
        self.namespaces
            .values()
            .filter(|n| !n.terminating)
            .filter(|n| {
                n.injected()
                    || n.key.name == self.own_namespace
                    || self.spaces.get(&n.key.name).is_some_and(|s| s.mesh_pods > 0)
            })
            .map(|n| n.key.name.clone())
            .collect()
    }

    /// Pods in which a proxy may run, ready or not.
    #[must_use]
    pub fn proxies(&self) -> u32 {
        let pods = self.spaces.values().flat_map(|space| space.pods.values());
        let running = pods.filter(|pod| pod.mesh && !pod.ended && !pod.ips.is_empty());
        u32::try_from(running.count()).unwrap_or(u32::MAX)
    }

    /// Whether a pod reads the cluster's trust bundle from a volume.
    #[must_use]
    pub fn bundle_is_read(&self) -> bool {
        self.spaces.values().flat_map(|space| space.pods.values()).any(|pod| pod.reads_bundle && !pod.ended)
    }

    /// How many of each kind are held.
    #[must_use]
    pub fn sizes(&self) -> [(&'static str, usize); 11] {
        let sum = |f: fn(&Space) -> usize| self.spaces.values().map(f).sum();
        [
            ("namespaces", self.namespaces.len()),
            ("nodes", self.nodes.len()),
            ("services", sum(|s| s.services.len())),
            ("endpointslices", sum(|s| s.slices.len())),
            ("pods", sum(|s| s.pods.len())),
            ("meshservices", sum(|s| s.mesh_services.len())),
            ("trafficpolicies", sum(|s| s.policies.len())),
            ("peerauthentications", sum(|s| s.peer_authentications.len())),
            ("authorizationpolicies", sum(|s| s.authorization_policies.len())),
            ("requestauthentications", sum(|s| s.request_authentications.len())),
            ("trustdomains", sum(|s| s.trust_domains.len())),
        ]
    }
}
