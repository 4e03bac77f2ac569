//! What pods may call outside of the cluster: the mesh's policy, and what a namespace or a pod says in its place. Words and
//! precedence only; proxies enforce it.

use std::collections::BTreeMap;
use std::str::FromStr;

use weft_api::{names, v1};

use super::{Index, Pod};

/// What becomes of connections to what is neither of the cluster nor registered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutboundPolicy {
    /// They are passed on.
    #[default]
    AllowAny,
    /// They are refused.
    RegisteredOnly,
}

impl FromStr for OutboundPolicy {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            names::ALLOW_ANY => Ok(Self::AllowAny),
            names::REGISTERED_ONLY => Ok(Self::RegisteredOnly),
            _ => Err(format!("write {} or {}", names::ALLOW_ANY, names::REGISTERED_ONLY)),
        }
    }
}

impl From<OutboundPolicy> for v1::OutboundPolicy {
    fn from(policy: OutboundPolicy) -> Self {
        match policy {
            OutboundPolicy::AllowAny => Self::AllowAny,
            OutboundPolicy::RegisteredOnly => Self::RegisteredOnly,
        }
    }
}

/// What an object says in its annotation; a value that means nothing counts as none, and the webhook warns of it.
pub(super) fn annotated(annotations: Option<&BTreeMap<String, String>>) -> Option<OutboundPolicy> {
    annotations?.get(names::OUTBOUND_POLICY)?.trim().parse().ok()
}

impl Index {
    /// The policy of a pod: its own, its namespace's, or the mesh's.
    #[must_use]
    pub fn outbound_policy_of(&self, pod: &Pod) -> OutboundPolicy {
        let of_namespace = || self.namespaces.get(&pod.key.namespace)?.outbound;
        pod.outbound.or_else(of_namespace).unwrap_or(self.outbound_policy)
    }
}
