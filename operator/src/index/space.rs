//! One namespace: what is in it, and what its policies come to. Policies only ever act within their namespace, so
//! everything that has to be worked out anew when one changes is in here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use weft_crds::{
    AuthorizationPolicySpec, MeshServiceSpec, PeerAuthenticationSpec, RequestAuthenticationSpec,
    TrafficPolicySpec, TrustDomainSpec,
};

use super::policy::{InForce, Tracked};
use super::{Federated, Few, Pod, Service, Slice};

/// Labels of pods.
pub type Labels = BTreeMap<String, String>;

/// The contents of a namespace, by name.
#[derive(Default)]
pub struct Space {
    /// Services.
    pub services: BTreeMap<String, Arc<Service>>,
    /// EndpointSlices.
    pub slices: BTreeMap<String, Arc<Slice>>,
    /// Names of slices by Service.
    pub slices_of: HashMap<String, BTreeSet<String>>,
    /// Services by the pods that their slices name, and in how many places.
    pub services_of_pod: HashMap<String, Few<String>>,
    /// Pods.
    pub pods: BTreeMap<String, Arc<Pod>>,
    /// MeshServices.
    pub mesh_services: BTreeMap<String, Tracked<MeshServiceSpec>>,
    /// TrafficPolicies.
    pub policies: BTreeMap<String, Tracked<TrafficPolicySpec>>,
    /// PeerAuthentications.
    pub peer_authentications: BTreeMap<String, Tracked<PeerAuthenticationSpec>>,
    /// AuthorizationPolicies.
    pub authorization_policies: BTreeMap<String, Tracked<AuthorizationPolicySpec>>,
    /// RequestAuthentications.
    pub request_authentications: BTreeMap<String, Tracked<RequestAuthenticationSpec>>,
    /// TrustDomains; they count in Weft's own namespace.
    pub trust_domains: BTreeMap<String, Tracked<TrustDomainSpec>>,
    /// What the policies come to.
    pub settled: Settled,
    /// Pods that are in the mesh or ask to be: the namespace needs the trust bundle.
    pub mesh_pods: usize,
}

/// What the MeshServices and TrafficPolicies of a namespace come to. Made by [`super::settle`].
#[derive(Default, PartialEq)]
pub struct Settled {
    /// The MeshService that describes a Service.
    pub described: BTreeMap<String, InForce<MeshServiceSpec>>,
    /// The TrafficPolicies that govern ports of a Service, at most one for each port.
    pub governed: BTreeMap<String, Vec<Governing>>,
    /// Services whose policies send to this Service.
    pub splitters: BTreeMap<String, BTreeSet<String>>,
    /// The last state of Services that policies send to; kept when the Service is gone.
    pub remembered_services: BTreeMap<String, Arc<Service>>,
    /// The last state of subsets that policies send to; kept when the subset is gone.
    pub remembered_subsets: BTreeMap<(String, String), Labels>,
    /// What to say of each MeshService.
    pub mesh_services: BTreeMap<String, Verdict>,
    /// What to say of each TrafficPolicy.
    pub policies: BTreeMap<String, Verdict>,
    /// What to say of each PeerAuthentication.
    pub peer_authentications: BTreeMap<String, Verdict>,
    /// What to say of each AuthorizationPolicy.
    pub authorization_policies: BTreeMap<String, Verdict>,
    /// What to say of each RequestAuthentication.
    pub request_authentications: BTreeMap<String, Verdict>,
    /// What to say of each TrustDomain.
    pub trust_domains: BTreeMap<String, Verdict>,
    /// The trust domains in force, the oldest first.
    pub federated: Vec<Federated>,
}

/// A policy in force for one port of a Service, or for all.
#[derive(Clone, Debug, PartialEq)]
pub struct Governing {
    /// The port; `None`: all.
    pub port: Option<u16>,
    /// The policy.
    pub policy: InForce<TrafficPolicySpec>,
}

/// What to say of a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Why it is not accepted, if it is not.
    pub refused: Option<Refusal>,
    /// What it names that does not exist, in sentences.
    pub missing: Vec<String>,
    /// The generation in force, if any is.
    pub in_force: Option<i64>,
}

/// Why a resource is not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It makes no sense.
    Invalid(String),
    /// An older one says something about the same.
    Conflicted(String),
}

impl Space {
    /// Nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.slices.is_empty() && self.pods.is_empty() && self.unruled()
    }

    /// Nothing is in it that [`super::settle`] would look at.
    #[must_use]
    pub fn unruled(&self) -> bool {
        self.resources().next().is_none()
    }

    /// The slices of a Service, by name.
    pub fn slices_of<'a>(&'a self, service: &str) -> impl Iterator<Item = &'a Arc<Slice>> {
        self.slices_of.get(service).into_iter().flatten().filter_map(|name| self.slices.get(name))
    }

    /// The policy that governs a port of a Service.
    #[must_use]
    pub fn governing(&self, service: &str, port: u16) -> Option<&InForce<TrafficPolicySpec>> {
        let candidates = self.settled.governed.get(service)?;
        candidates.iter().find(|g| g.port.is_none_or(|p| p == port)).map(|g| &g.policy)
    }

    /// The MeshService that describes a Service.
    #[must_use]
    pub fn described(&self, service: &str) -> Option<&InForce<MeshServiceSpec>> {
        self.settled.described.get(service)
    }

    /// The Service of that name, or the last state of it that a policy still sends to.
    #[must_use]
    pub fn service_or_remembered(&self, name: &str) -> Option<&Arc<Service>> {
        self.services.get(name).or_else(|| self.settled.remembered_services.get(name))
    }

    /// Labels of a subset, or the last state of it that a policy still sends to.
    #[must_use]
    pub fn subset(&self, service: &str, subset: &str) -> Option<&Labels> {
        let live = self.described(service).and_then(|m| m.spec.subsets.iter().find(|s| s.name == subset));
        live.map(|s| &s.labels)
            .or_else(|| self.settled.remembered_subsets.get(&(service.to_owned(), subset.to_owned())))
    }
}
