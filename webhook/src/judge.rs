//! Judges MeshServices, TrafficPolicies, PeerAuthentications, RequestAuthentications, AuthorizationPolicies and TrustDomains beside
//! what exists.
//! Pure: the caller says what exists.
//! What must never be is refused; what may be only early (a Service that is applied later) is a warning. An update that leaves
//! the spec alone always passes, or a stale resource could not even lose a finalizer.

use crate::review::{Answer, Request};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::sync::Arc;
use weft_crds::validate::{self, Problem, Shadow};
use weft_crds::{
    AuthorizationPolicy, MeshService, PeerAuthentication, RequestAuthentication, TrafficPolicy, TrustDomain,
};

/// Most problems that one refusal lists.
const LISTED: usize = 8;

/// What exists in the namespace of the resource; PeerAuthentications of every namespace.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// MeshServices of the namespace.
    pub mesh_services: Vec<Arc<MeshService>>,
    /// TrafficPolicies of the namespace.
    pub traffic_policies: Vec<Arc<TrafficPolicy>>,
    /// PeerAuthentications of the mesh.
    pub peer_authentications: Vec<Arc<PeerAuthentication>>,
    /// RequestAuthentications of the namespace.
    pub request_authentications: Vec<Arc<RequestAuthentication>>,
    /// TrustDomains of the namespace.
    pub trust_domains: Vec<Arc<TrustDomain>>,
    /// Services of the namespace with their ports.
    pub services: BTreeMap<String, Vec<u16>>,
    /// The mesh's own trust domain; empty: not known.
    pub trust_domain: String,
}

/// Judges a CREATE or UPDATE; `root` is Weft's own namespace.
#[must_use]
pub fn judge(request: &Request, known: &Known, root: &str) -> Answer {
    if passes_unseen(request) {
        return Answer::allow(Vec::new());
    }
    match request.kind.kind.as_str() {
        "MeshService" => judged(request, |resource| mesh_service(resource, known)),
        "TrafficPolicy" => judged(request, |resource| traffic_policy(resource, known)),
        "PeerAuthentication" => judged(request, |resource| peer_authentication(resource, known, root)),
        "RequestAuthentication" => judged(request, |resource| request_authentication(resource, known, root)),
        "AuthorizationPolicy" => judged(request, |resource| authorization_policy(resource, known)),
        "TrustDomain" => judged(request, |resource| trust_domain(resource, known, root)),
        _ => Answer::allow(Vec::new()),
    }
}

/// Whether there is nothing to judge: a deletion, a part such as status, or an update that leaves the spec alone.
#[must_use]
pub fn passes_unseen(request: &Request) -> bool {
    let same_spec =
        !request.old_object.is_null() && request.object.get("spec") == request.old_object.get("spec");
    let going = request.object.pointer("/metadata/deletionTimestamp").is_some_and(|t| !t.is_null());
    !matches!(request.operation.as_str(), "CREATE" | "UPDATE")
        || request.sub_resource.as_deref().is_some_and(|part| !part.is_empty())
        || same_spec
        || going
}

/// Problems refuse; warnings warn.
#[derive(Default)]
struct Findings {
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

fn judged<T: DeserializeOwned>(request: &Request, find: impl FnOnce(&T) -> Findings) -> Answer {
    let resource: T = match serde_json::from_value(with_namespace(request)) {
        Ok(resource) => resource,
        Err(error) => {
            return Answer::refuse(format!("it is not a {}: {error}", request.kind.kind), Vec::new());
        }
    };
    let Findings { problems, warnings } = find(&resource);
    if problems.is_empty() {
        return Answer::allow(warnings);
    }
    let listed: Vec<_> = problems.iter().take(LISTED).map(ToString::to_string).collect();
    let more = problems.len().saturating_sub(LISTED);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    Answer::refuse(format!("{}{more}", listed.join("; ")), warnings)
}

/// The object may leave its namespace out; the request never does.
fn with_namespace(request: &Request) -> serde_json::Value {
    let mut object = request.object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(serde_json::Value::as_object_mut) {
        metadata.insert("namespace".into(), request.namespace.clone().into());
    }
    object
}

fn mesh_service(resource: &MeshService, known: &Known) -> Findings {
    let mut found = Findings { problems: validate::mesh_service(resource), ..Findings::default() };
    if let Some(other) = known.mesh_services.iter().find(|other| validate::same_target(resource, other)) {
        found.problems.push(Problem {
            field: "spec.target.service".into(),
            message: format!(
                "Service {} is already described by MeshService {}: change that one",
                resource.spec.target.service.as_deref().unwrap_or_default(),
                other.metadata.name.as_deref().unwrap_or_default()
            ),
        });
    }
    for other in known.mesh_services.iter().filter(|other| other.metadata.name != resource.metadata.name) {
        if let Some((port, what)) = validate::same_external(&resource.spec.target, &other.spec.target) {
            found.problems.push(Problem {
                field: "spec.target.external".into(),
                message: format!(
                    "{what} at port {port} is already registered by MeshService {}: change that one",
                    other.metadata.name.as_deref().unwrap_or_default()
                ),
            });
        }
    }
    if let Some(service) = resource.spec.target.service.as_ref()
        && !known.services.contains_key(service)
    {
        found.warnings.push(missing_service("spec.target.service", service));
    }
    found.warnings.extend(broken_policies(resource, known));
    found
}

/// Policies that resolve now and would not with this MeshService.
fn broken_policies(resource: &MeshService, known: &Known) -> Vec<String> {
    let mut after = known.mesh_services.clone();
    after.retain(|other| other.metadata.name != resource.metadata.name);
    after.push(Arc::new(resource.clone()));
    let broken = known.traffic_policies.iter().filter(|policy| {
        validate::unresolved(policy, &known.mesh_services).is_empty()
            && !validate::unresolved(policy, &after).is_empty()
    });
    broken
        .map(|policy| {
            format!(
                "TrafficPolicy {} sends to a subset that this takes away; the proxies keep the policy's last good form until one of the two is changed",
                policy.metadata.name.as_deref().unwrap_or_default()
            )
        })
        .collect()
}

fn traffic_policy(resource: &TrafficPolicy, known: &Known) -> Findings {
    let mut found = Findings { problems: validate::traffic_policy(resource), ..Findings::default() };
    found.problems.extend(validate::unresolved(resource, &known.mesh_services));
    found.problems.extend(
        known
            .traffic_policies
            .iter()
            .filter_map(|other| validate::conflict(resource, other, &known.mesh_services)),
    );
    for needed in validate::service_refs(resource, &known.mesh_services) {
        match (known.services.get(&needed.name), needed.port) {
            (None, _) => found.warnings.push(missing_service(&needed.field, &needed.name)),
            (Some(ports), Some(port)) if !ports.contains(&port) => found.warnings.push(format!(
                "{}: Service {} has no port {port}, so this governs nothing there until it has one",
                needed.field, needed.name
            )),
            _ => {}
        }
    }
    found.warnings.dedup();
    found
}

fn peer_authentication(resource: &PeerAuthentication, known: &Known, root: &str) -> Findings {
    let mut found = Findings { problems: validate::peer_authentication(resource), ..Findings::default() };
    for other in &known.peer_authentications {
        match validate::shadow(resource, other, root) {
            Some(Shadow::Same(message)) => {
                found.problems.push(Problem { field: "spec.selector".into(), message })
            }
            Some(Shadow::Partly(message)) => found.warnings.push(message),
            None => {}
        }
    }
    found
}

fn request_authentication(resource: &RequestAuthentication, known: &Known, root: &str) -> Findings {
    let mut problems = validate::request_authentication(resource);
    let others = known.request_authentications.iter();
    problems.extend(others.filter_map(|other| validate::same_issuer(resource, other, root)));
    Findings { problems, warnings: validate::request_warnings(resource) }
}

fn authorization_policy(resource: &AuthorizationPolicy, known: &Known) -> Findings {
    let trust_domain = Some(known.trust_domain.as_str()).filter(|domain| !domain.is_empty());
    Findings {
        problems: validate::authorization_policy(resource),
        warnings: validate::authorization_warnings(resource, trust_domain),
    }
}

fn trust_domain(resource: &TrustDomain, known: &Known, root: &str) -> Findings {
    let own = Some(known.trust_domain.as_str()).filter(|domain| !domain.is_empty());
    let mut problems = validate::trust_domain(resource);
    problems.extend(validate::misplaced(resource, root, own));
    let others = known.trust_domains.iter();
    problems.extend(others.filter_map(|other| validate::same_trust_domain(resource, other)));
    Findings { problems, warnings: Vec::new() }
}

fn missing_service(field: &str, name: &str) -> String {
    format!("{field}: Service {name} does not exist yet, so this has no effect until it does")
}
