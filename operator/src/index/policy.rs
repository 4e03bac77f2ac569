//! What the index keeps of Weft's own resources: the spec as it is now, and the last one that made sense.
//! A spec that cannot be read is a sentence for the status, never an error of the watch.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::{ApiResource, DynamicObject};
use serde::de::DeserializeOwned;
use serde_json::Value;
use weft_crds::{
    AuthorizationPolicy, AuthorizationPolicySpec, MeshService, MeshServiceSpec, PeerAuthentication,
    PeerAuthenticationSpec, RequestAuthentication, RequestAuthenticationSpec, TrafficPolicy,
    TrafficPolicySpec, TrustDomain, TrustDomainSpec, validate,
};

use super::Key;

/// A resource as it was last seen.
#[derive(Clone, Debug)]
pub struct Resource<S> {
    /// Namespace and name.
    pub key: Key,
    /// Its uid: another one is another resource, whose last good spec does not count.
    pub uid: String,
    /// Generation of the spec.
    pub generation: i64,
    /// Creation, in seconds since 1970: of two that conflict the older counts.
    pub created: i64,
    /// The spec, or why it makes no sense.
    pub spec: Result<Arc<S>, String>,
    /// The status as stored, for the leader: it writes only what differs.
    pub status: Value,
}

/// A spec with its generation.
#[derive(Clone, Debug)]
pub struct InForce<S> {
    /// Namespace and name of its resource.
    pub key: Key,
    /// Generation of the spec.
    pub generation: i64,
    /// The spec.
    pub spec: Arc<S>,
}

impl<S: PartialEq> PartialEq for InForce<S> {
    fn eq(&self, other: &Self) -> bool {
        self.generation == other.generation
            && self.key == other.key
            && (Arc::ptr_eq(&self.spec, &other.spec) || self.spec == other.spec)
    }
}

/// A spec that can be checked by itself, beyond what the API server checks.
pub trait Spec: DeserializeOwned + PartialEq {
    /// The kind of its resource.
    const KIND: &'static str;
    /// How the API server is asked for it.
    fn api() -> ApiResource;
    /// Why it makes no sense, in one sentence.
    ///
    /// # Errors
    /// That sentence.
    fn check(&self) -> Result<(), String>;
}

impl Spec for MeshServiceSpec {
    const KIND: &'static str = "MeshService";
    fn api() -> ApiResource {
        ApiResource::erase::<MeshService>(&())
    }
    fn check(&self) -> Result<(), String> {
        let mut seen = std::collections::HashSet::new();
        if let Some(twice) = self.subsets.iter().find(|s| !seen.insert(&s.name)) {
            return Err(format!("subset {} is named twice: names of subsets must be unique", twice.name));
        }
        sentence(&validate::mesh_service(&MeshService::new("", self.clone())))
    }
}

impl Spec for PeerAuthenticationSpec {
    const KIND: &'static str = "PeerAuthentication";
    fn api() -> ApiResource {
        ApiResource::erase::<PeerAuthentication>(&())
    }
    fn check(&self) -> Result<(), String> {
        if let Some(bad) = self.port_level_mtls.keys().find(|p| p.parse::<u16>().map_or(true, |n| n == 0)) {
            return Err(format!("portLevelMtls names `{bad}`, which is not a port number"));
        }
        sentence(&validate::peer_authentication(&PeerAuthentication::new("", self.clone())))
    }
}

impl Spec for AuthorizationPolicySpec {
    const KIND: &'static str = "AuthorizationPolicy";
    fn api() -> ApiResource {
        ApiResource::erase::<AuthorizationPolicy>(&())
    }
    fn check(&self) -> Result<(), String> {
        sentence(&validate::authorization_policy(&AuthorizationPolicy::new("", self.clone())))
    }
}

impl Spec for RequestAuthenticationSpec {
    const KIND: &'static str = "RequestAuthentication";
    fn api() -> ApiResource {
        ApiResource::erase::<RequestAuthentication>(&())
    }
    fn check(&self) -> Result<(), String> {
        let mut seen = std::collections::HashSet::new();
        if let Some(twice) = self.issuers.iter().find(|issuer| !seen.insert(&issuer.issuer)) {
            return Err(format!("issuer {} is named twice: say all of it in one entry", twice.issuer));
        }
        sentence(&validate::request_authentication(&RequestAuthentication::new("", self.clone())))
    }
}

impl Spec for TrafficPolicySpec {
    const KIND: &'static str = "TrafficPolicy";
    fn api() -> ApiResource {
        ApiResource::erase::<TrafficPolicy>(&())
    }
    fn check(&self) -> Result<(), String> {
        sentence(&validate::traffic_policy(&TrafficPolicy::new("", self.clone())))
    }
}

impl Spec for TrustDomainSpec {
    const KIND: &'static str = "TrustDomain";
    fn api() -> ApiResource {
        ApiResource::erase::<TrustDomain>(&())
    }
    fn check(&self) -> Result<(), String> {
        sentence(&validate::trust_domain(&TrustDomain::new("", self.clone())))
    }
}

fn sentence(problems: &[validate::Problem]) -> Result<(), String> {
    if problems.is_empty() {
        return Ok(());
    }
    Err(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
}

impl<S: Spec> Resource<S> {
    /// Reads the object. Only one without a name is nothing.
    #[must_use]
    pub fn read(object: DynamicObject) -> Option<Self> {
        let meta = object.metadata;
        let mut data = object.data;
        let spec = data.get_mut("spec").map(Value::take).unwrap_or_default();
        let spec = serde_json::from_value::<S>(spec)
            .map_err(|e| format!("the spec cannot be read: {e}"))
            .and_then(|spec| spec.check().map(|()| Arc::new(spec)));
        Some(Self {
            key: Key::new(meta.namespace?, meta.name?),
            uid: meta.uid.unwrap_or_default(),
            generation: meta.generation.unwrap_or_default(),
            created: meta.creation_timestamp.map_or(0, |Time(t)| t.as_second()),
            spec,
            status: data.get_mut("status").map(Value::take).unwrap_or_default(),
        })
    }

    /// Same as far as configuration goes; the status does not count.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        self.uid == other.uid
            && self.generation == other.generation
            && self.created == other.created
            && self.spec == other.spec
    }

    /// The spec with its generation, if it makes sense.
    #[must_use]
    pub fn in_force(&self) -> Option<InForce<S>> {
        let spec = self.spec.as_ref().ok()?;
        Some(InForce { key: self.key.clone(), generation: self.generation, spec: Arc::clone(spec) })
    }

    /// The order in which conflicts are decided.
    #[must_use]
    pub fn age(&self) -> (i64, &str) {
        (self.created, &self.key.name)
    }
}

/// A resource with the last spec of it that could be put in force.
#[derive(Clone, Debug)]
pub struct Tracked<S> {
    /// As it is now.
    pub now: Resource<S>,
    /// What counts while `now` does not.
    pub good: Option<InForce<S>>,
}

impl<S: Spec> Tracked<S> {
    /// A new state of the resource; the last good spec is carried over while it is the same resource.
    #[must_use]
    pub fn new(now: Resource<S>, before: Option<Self>) -> Self {
        let good = before.filter(|b| b.now.uid == now.uid).and_then(|b| b.good);
        Self { now, good }
    }
}
