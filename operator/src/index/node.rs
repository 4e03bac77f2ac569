//! What the index keeps of a Node: where it is. Reads its labels and nothing else.

use k8s_openapi::api::core::v1 as core;
use kube::core::PartialObjectMeta;

use super::entry::{Entry, mark_pod};
use super::{Dirty, Index, Key, Pod};

/// Source: kubernetes.io, "Well-Known Labels, Annotations and Taints".
const ZONE: &str = "topology.kubernetes.io/zone";
const REGION: &str = "topology.kubernetes.io/region";

/// A Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name; the namespace part is empty.
    pub key: Key,
    /// Label `topology.kubernetes.io/zone`, empty when there is none.
    pub zone: String,
    /// Label `topology.kubernetes.io/region`, empty when there is none.
    pub region: String,
}

impl Node {
    /// What the index needs of the object.
    #[must_use]
    pub fn read(object: PartialObjectMeta<core::Node>) -> Option<Self> {
        let mut labels = object.metadata.labels.unwrap_or_default();
        Some(Self {
            key: Key::new("", object.metadata.name?),
            zone: labels.remove(ZONE).unwrap_or_default(),
            region: labels.remove(REGION).unwrap_or_default(),
        })
    }
}

impl Entry for Node {
    fn key(&self) -> Key {
        self.key.clone()
    }
    fn keys(index: &Index) -> Vec<Key> {
        index.nodes.keys().map(|name| Key::new("", name)).collect()
    }
    fn put(index: &mut Index, key: &Key, entry: Option<Self>, dirty: &mut Dirty) {
        if index.nodes.get(&key.name) == entry.as_ref() {
            return;
        }
        match entry {
            Some(entry) => index.nodes.insert(key.name.clone(), entry),
            None => index.nodes.remove(&key.name),
        };
        // A node changes its place hardly ever; but its pods may have been listed before it.
        for pod in index.by_node.get(&key.name).into_iter().flatten().filter_map(|key| index.pod(key)) {
            dirty.pods.insert(pod.key.clone());
            mark_pod(index, pod, dirty);
        }
    }
}

impl Index {
    /// Zone and region of a pod's node, empty where they are not known.
    #[must_use]
    pub fn place_of(&self, pod: &Pod) -> (&str, &str) {
        let node = pod.node.as_ref().and_then(|name| self.nodes.get(name));
        node.map_or(("", ""), |node| (&node.zone, &node.region))
    }

    /// Keeps which pods a node has, when one of them was `before` and is `now`.
    pub(super) fn move_pod(&mut self, key: &Key, before: Option<&Pod>, now: Option<&Pod>) {
        let node = |pod: Option<&Pod>| pod.and_then(|pod| pod.node.clone());
        let (before, now) = (node(before), node(now));
        if before == now {
            return;
        }
        if let Some(name) = before
            && let Some(pods) = self.by_node.get_mut(&name)
        {
            pods.remove(key);
            if pods.is_empty() {
                self.by_node.remove(&name);
            }
        }
        if let Some(name) = now {
            self.by_node.entry(name).or_default().insert(key.clone());
        }
    }
}
