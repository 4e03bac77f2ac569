//! What a change may affect. It may name too much, never too little: whoever compiles compares with what was before.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;

use weft_crds::mesh_service::Target;

use super::Key;
use super::space::Settled;
use crate::compile;

/// What a change may affect.
#[derive(Debug, Default)]
pub struct Dirty {
    /// Services to be compiled anew.
    pub services: HashSet<Key>,
    /// Pods whose own configuration may have changed, or the service made of them.
    pub pods: HashSet<Key>,
    /// Addresses that may be something else now.
    pub ips: HashSet<IpAddr>,
    /// Something changed that concerns only the leader: a namespace, a policy's verdict.
    pub leader: bool,
    /// Namespaces whose external services came or went.
    pub external: HashSet<String>,
    /// Other trust domains came, went or have another bundle.
    pub federation: bool,
    /// Namespaces to be settled.
    pub(super) unsettled: BTreeSet<String>,
    /// Services whose pods and addresses are affected too.
    pub(super) reshaped: BTreeSet<Key>,
}

impl Dirty {
    /// Nothing is affected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
            && self.pods.is_empty()
            && self.ips.is_empty()
            && self.external.is_empty()
            && !self.leader
            && !self.federation
    }

    /// Marks the services whose policies came to something else.
    pub(super) fn compare(&mut self, namespace: &str, before: &Settled, now: &Settled) {
        if before == now {
            return;
        }
        self.leader = true;
        self.federation |= before.federated != now.federated;
        let mut mark = |name: &String| {
            self.services.insert(Key::new(namespace, name));
        };
        let governed: Vec<&String> = differing(&before.governed, &now.governed).collect();
        governed.iter().copied().for_each(&mut mark);
        let described: Vec<&String> = differing(&before.described, &now.described).collect();
        described.iter().copied().for_each(&mut mark);
        differing(&before.remembered_services, &now.remembered_services).for_each(&mut mark);
        let subsets = differing(&before.remembered_subsets, &now.remembered_subsets);
        subsets.map(|(service, _)| service).for_each(&mut mark);
        let external = |key: &&&String| Target::external_of(key).is_some();
        if described.iter().any(|key| external(&key)) {
            self.external.insert(namespace.to_owned());
        }
        // The description says which protocol a port speaks, which the callee's proxy wants to know too.
        self.reshaped.extend(described.into_iter().map(|name| Key::new(namespace, name)));
        // Rate limits are kept by the callee's proxy.
        let limits = |settled: &Settled, service: &String| {
            let governing = settled.governed.get(service).into_iter().flatten();
            governing.into_iter().any(|governing| compile::limits::any(&governing.policy.spec))
        };
        let limited = governed.into_iter().filter(|service| limits(before, service) || limits(now, service));
        self.reshaped.extend(limited.map(|name| Key::new(namespace, name)));
        // Whoever sent to a changed service before, or does now.
        for splitters in [&before.splitters, &now.splitters] {
            for (service, from) in splitters {
                if self.services.contains(&Key::new(namespace, service)) {
                    self.services.extend(from.iter().map(|name| Key::new(namespace, name)));
                }
            }
        }
    }
}

/// Keys of entries that are in one of the maps only, or differ.
fn differing<'a, K: Ord, V: PartialEq>(
    a: &'a BTreeMap<K, V>,
    b: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = &'a K> {
    let changed = a.iter().filter(|(key, value)| b.get(key) != Some(value)).map(|(key, _)| key);
    let added = b.keys().filter(|key| !a.contains_key(key));
    changed.chain(added)
}
