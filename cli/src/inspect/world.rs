//! A namespace as read, and the answers about it. Pure. The rules of precedence are those of the operator: the narrowest
//! PeerAuthentication counts alone, AuthorizationPolicies count together; of two equals the older counts; one MeshService
//! describes a Service.

use super::Fact;
use crate::mesh_pod;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt;
use std::collections::BTreeMap;
use weft_crds::mesh_service::Target;
use weft_crds::peer_authentication::{MtlsMode, Selector};
use weft_crds::validate::{self, Scope, older};
use weft_crds::{AuthorizationPolicy, MeshService, PeerAuthentication, RequestAuthentication, TrafficPolicy};

/// What exists.
pub struct World {
    pub root: String,
    pub namespace: String,
    pub pods: Vec<Pod>,
    pub services: Vec<Service>,
    pub mesh_services: Vec<MeshService>,
    pub traffic_policies: Vec<TrafficPolicy>,
    /// Of this namespace and of Weft's own.
    pub peer_authentications: Vec<PeerAuthentication>,
    /// Of this namespace and of Weft's own.
    pub authorization_policies: Vec<AuthorizationPolicy>,
    /// Of this namespace and of Weft's own.
    pub request_authentications: Vec<RequestAuthentication>,
}

type Labels = BTreeMap<String, String>;

fn fact(aspect: &str, name: impl Into<String>, detail: impl Into<String>) -> Fact {
    Fact { aspect: aspect.to_owned(), name: name.into(), detail: detail.into() }
}

fn carries(pod: &Pod, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| pod.labels().get(key) == Some(value))
}

fn full_name(resource: &impl kube::ResourceExt) -> String {
    format!("{}/{}", resource.namespace().unwrap_or_default(), resource.name_any())
}

fn words(labels: &Labels) -> String {
    labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
}

fn modes(policy: &PeerAuthentication) -> String {
    let mode = |m: MtlsMode| format!("{m:?}");
    let ports: Vec<String> = policy
        .spec
        .port_level_mtls
        .iter()
        .map(|(port, m)| format!("port {port}: {}", mode(m.mode)))
        .collect();
    let general = mode(policy.spec.mtls.mode);
    if ports.is_empty() { general } else { format!("{general}; {}", ports.join(", ")) }
}

fn effect(policy: &AuthorizationPolicy) -> String {
    let spec = &policy.spec;
    let dry = if spec.dry_run == Some(true) { ", in dry run" } else { "" };
    format!("{:?}, {} rule(s){dry}", spec.action, spec.rules.len())
}

fn issuers(resource: &RequestAuthentication) -> String {
    let names: Vec<&str> = resource.spec.issuers.iter().map(|issuer| issuer.issuer.as_str()).collect();
    format!("tokens of {}", names.join(", "))
}

impl World {
    pub fn pod(&self, name: &str) -> Option<&Pod> {
        self.pods.iter().find(|p| p.name_any() == name && p.namespace().as_deref() == Some(&self.namespace))
    }

    pub fn about_pod(&self, name: &str) -> Option<Vec<Fact>> {
        let pod = self.pod(name)?;
        let mut facts = Vec::new();
        if mesh_pod::is_injected(pod) {
            let version = mesh_pod::proxy_version(pod).unwrap_or("unknown");
            let readiness = if mesh_pod::proxy_ready(pod) { "ready" } else { "NOT ready" };
            facts.push(fact("mesh", "injected", format!("proxy {version}, {readiness}")));
            let account = format!("ns/{}/sa/{}", self.namespace, mesh_pod::service_account(pod));
            facts.push(fact("identity", account, "from its ServiceAccount"));
        } else {
            facts.push(fact(
                "mesh",
                "outside",
                "no proxy: no policy has an effect on what it sends or takes",
            ));
        }
        match self.governing(pod) {
            Some(policy) => facts.push(fact("peer authentication", full_name(policy), modes(policy))),
            None => facts.push(fact("peer authentication", "-", "Permissive (the default)")),
        }
        let policies = self.authorization_policies.iter().filter(|policy| self.authorizes(policy, pod));
        let policies: Vec<Fact> =
            policies.map(|policy| fact("authorization policy", full_name(policy), effect(policy))).collect();
        if policies.is_empty() {
            facts.push(fact("authorization policy", "-", "none: whoever is let in may ask for anything"));
        }
        facts.extend(policies);
        let trusting = self.request_authentications.iter().filter(|resource| self.trusts(resource, pod));
        facts.extend(trusting.map(|r| fact("request authentication", full_name(r), issuers(r))));
        for service in self.services.iter().filter(|s| selects(s, pod)) {
            let service_name = service.name_any();
            facts.push(fact("service", &service_name, ports(service)));
            if let Some(mesh) = self.describing(&service_name) {
                let subsets: Vec<&str> = mesh
                    .spec
                    .subsets
                    .iter()
                    .filter(|s| carries(pod, &s.labels))
                    .map(|s| s.name.as_str())
                    .collect();
                let detail = match subsets.as_slice() {
                    [] => "in none of its subsets".to_owned(),
                    subsets => format!("in subset {}", subsets.join(", ")),
                };
                facts.push(fact("mesh service", mesh.name_any(), detail));
            }
            facts.extend(self.policies_for(&service_name));
        }
        Some(facts)
    }

    pub fn about_service(&self, name: &str) -> Option<Vec<Fact>> {
        let service = self.services.iter().find(|s| s.name_any() == name)?;
        let mut facts = vec![fact("ports", name, ports(service))];
        match self.describing(name) {
            Some(mesh) => facts.push(fact("mesh service", mesh.name_any(), balancing(mesh))),
            None => facts.push(fact("mesh service", "-", "defaults")),
        }
        let chosen = self.describing(name).map(ResourceExt::name_any);
        for other in self.mesh_services.iter().filter(|m| m.spec.target.service.as_deref() == Some(name)) {
            if Some(other.name_any()) != chosen {
                facts.push(fact(
                    "mesh service",
                    other.name_any(),
                    "ignored: an older one describes this Service",
                ));
            }
        }
        facts.extend(self.policies_for(name));
        facts.extend(self.pods_of(service).map(|pod| self.endpoint(name, pod)));
        Some(facts)
    }

    pub fn about_mesh_service(&self, name: &str) -> Option<Vec<Fact>> {
        let mesh = self.mesh_services.iter().find(|m| m.name_any() == name)?;
        let target = &*mesh.spec.target.key(name);
        let mut facts = vec![self.service_fact(target)];
        if let Some(chosen) = self.describing(target).filter(|chosen| chosen.name_any() != name) {
            facts.push(fact(
                "ignored",
                name,
                format!("{} is older and describes the same Service", chosen.name_any()),
            ));
        }
        facts.push(fact("balancing", name, balancing(mesh)));
        let pods: Vec<&Pod> =
            self.services.iter().filter(|s| s.name_any() == target).flat_map(|s| self.pods_of(s)).collect();
        for subset in &mesh.spec.subsets {
            let names: Vec<String> =
                pods.iter().filter(|p| carries(p, &subset.labels)).map(|p| p.name_any()).collect();
            let names = if names.is_empty() { "no pod".to_owned() } else { names.join(", ") };
            facts.push(fact("subset", &subset.name, format!("{}: {names}", words(&subset.labels))));
        }
        facts.extend(self.policies_for(target));
        Some(facts)
    }

    pub fn about_traffic_policy(&self, name: &str) -> Option<Vec<Fact>> {
        let policy = self.traffic_policies.iter().find(|p| p.name_any() == name)?;
        let mut facts = Vec::new();
        for target in &policy.spec.target_refs {
            let Some(service) = validate::target_service(Some(&self.namespace), target, &self.mesh_services)
            else {
                facts.push(fact("target", &target.name, "this MeshService does not exist"));
                continue;
            };
            let service = &*service;
            let mut found = self.service_fact(service);
            found.aspect = "target".into();
            if let Some(port) = target.port {
                found.detail = format!("port {port} of: {}", found.detail);
            }
            facts.push(found);
            let targeted = self.services.iter().filter(|s| s.name_any() == service);
            facts.extend(targeted.flat_map(|s| self.pods_of(s)).map(|pod| self.endpoint(service, pod)));
        }
        for other in self.traffic_policies.iter().filter(|o| older(&o.metadata, &policy.metadata).is_lt()) {
            if let Some(problem) = validate::conflict(policy, other, &self.mesh_services) {
                facts.push(fact("conflict", other.name_any(), problem.message));
            }
        }
        facts.extend(
            validate::unresolved(policy, &self.mesh_services)
                .into_iter()
                .map(|problem| fact("unresolved", problem.field, problem.message)),
        );
        facts.push(fact(
            "enforced by",
            "clients",
            "the proxies of all pods in the mesh that call these Services",
        ));
        Some(facts)
    }

    pub fn about_peer_authentication(&self, name: &str) -> Option<Vec<Fact>> {
        let policy = self
            .peer_authentications
            .iter()
            .find(|p| p.name_any() == name && p.namespace().as_deref() == Some(&self.namespace))?;
        let scope = match validate::scope(policy, &self.root) {
            Scope::Mesh => "the whole mesh".to_owned(),
            Scope::Namespace(namespace) => format!("all of namespace {namespace}"),
            Scope::Workloads(_, labels) => format!("pods with {}", words(&labels)),
        };
        let mut facts = vec![fact("governs", scope, modes(policy))];
        for pod in self.pods.iter().filter(|pod| self.reaches(policy, pod)) {
            // Of other namespaces their own policies are not known here.
            let foreign = pod.namespace().as_deref() != Some(&self.namespace);
            let detail = match self.governing(pod) {
                _ if !mesh_pod::is_injected(pod) => continue,
                _ if foreign => "unless a policy of its own namespace is narrower".to_owned(),
                Some(chosen) if chosen.name_any() == name && chosen.namespace() == policy.namespace() => {
                    "in force".to_owned()
                }
                Some(chosen) => format!("no effect: {} is narrower or older", full_name(chosen)),
                None => continue,
            };
            facts.push(fact("pod", mesh_pod::full_name(pod), detail));
        }
        Some(facts)
    }

    pub fn about_authorization_policy(&self, name: &str) -> Option<Vec<Fact>> {
        let own = |p: &&AuthorizationPolicy| p.namespace().as_deref() == Some(&self.namespace);
        let policy = self.authorization_policies.iter().filter(own).find(|p| p.name_any() == name)?;
        let selector = policy.spec.selector.as_ref();
        let scope = match validate::scope_of(policy.namespace().as_deref(), selector, &self.root) {
            Scope::Mesh => "the whole mesh".to_owned(),
            Scope::Namespace(namespace) => format!("all of namespace {namespace}"),
            Scope::Workloads(_, labels) => format!("pods with {}", words(&labels)),
        };
        let mut facts = vec![fact("governs", scope, effect(policy))];
        for (position, rule) in policy.spec.rules.iter().enumerate() {
            let name = rule.name.clone().unwrap_or_else(|| position.to_string());
            let parts = [("from", rule.from.len()), ("to", rule.to.len()), ("when", rule.when.len())];
            let parts: Vec<String> =
                parts.iter().filter(|(_, n)| *n > 0).map(|(part, n)| format!("{part}: {n}")).collect();
            let detail = if parts.is_empty() { "fits everything".to_owned() } else { parts.join(", ") };
            facts.push(fact("rule", name, detail));
        }
        let pods = self.pods.iter().filter(|pod| mesh_pod::is_injected(pod) && self.authorizes(policy, pod));
        let before = facts.len();
        facts.extend(pods.map(|pod| fact("pod", mesh_pod::full_name(pod), "enforced by its proxy")));
        if facts.len() == before {
            facts.push(fact("pod", "-", "it selects no pod of the mesh"));
        }
        Some(facts)
    }

    pub fn about_request_authentication(&self, name: &str) -> Option<Vec<Fact>> {
        let own = |r: &&RequestAuthentication| r.namespace().as_deref() == Some(&self.namespace);
        let resource = self.request_authentications.iter().filter(own).find(|r| r.name_any() == name)?;
        let selector = resource.spec.selector.as_ref();
        let scope = match validate::scope_of(resource.namespace().as_deref(), selector, &self.root) {
            Scope::Mesh => "the whole mesh".to_owned(),
            Scope::Namespace(namespace) => format!("all of namespace {namespace}"),
            Scope::Workloads(_, labels) => format!("pods with {}", words(&labels)),
        };
        let mut facts = vec![fact("governs", scope, issuers(resource))];
        for issuer in &resource.spec.issuers {
            let keys = issuer
                .jwks_uri
                .as_deref()
                .map_or_else(|| "keys given".to_owned(), |uri| format!("keys from {uri}"));
            let audiences = match issuer.audiences.as_slice() {
                [] => "any audience".to_owned(),
                given => format!("audiences {}", given.join(", ")),
            };
            facts.push(fact("issuer", &issuer.issuer, format!("{keys}; {audiences}")));
        }
        let pods = self.pods.iter().filter(|pod| mesh_pod::is_injected(pod) && self.trusts(resource, pod));
        let before = facts.len();
        facts.extend(pods.map(|pod| fact("pod", mesh_pod::full_name(pod), "enforced by its proxy")));
        if facts.len() == before {
            facts.push(fact("pod", "-", "it selects no pod of the mesh"));
        }
        Some(facts)
    }

    /// Whether a RequestAuthentication counts for a pod.
    fn trusts(&self, resource: &RequestAuthentication, pod: &Pod) -> bool {
        self.within(&resource.namespace().unwrap_or_default(), resource.spec.selector.as_ref(), pod)
    }

    /// Whether an AuthorizationPolicy counts for a pod.
    fn authorizes(&self, policy: &AuthorizationPolicy, pod: &Pod) -> bool {
        self.within(&policy.namespace().unwrap_or_default(), policy.spec.selector.as_ref(), pod)
    }

    /// Whether a PeerAuthentication's scope has the pod in it.
    fn reaches(&self, policy: &PeerAuthentication, pod: &Pod) -> bool {
        self.within(&policy.namespace().unwrap_or_default(), policy.spec.selector.as_ref(), pod)
    }

    fn within(&self, of: &str, selector: Option<&Selector>, pod: &Pod) -> bool {
        let namespace = pod.namespace().unwrap_or_default();
        match validate::scope_of(Some(of), selector, &self.root) {
            Scope::Mesh => true,
            Scope::Namespace(n) => n == namespace,
            Scope::Workloads(n, labels) => n == namespace && carries(pod, &labels),
        }
    }

    /// The one that counts for a pod.
    fn governing(&self, pod: &Pod) -> Option<&PeerAuthentication> {
        let narrowness = |policy: &PeerAuthentication| match validate::scope(policy, &self.root) {
            Scope::Workloads(..) => 0,
            Scope::Namespace(_) => 1,
            Scope::Mesh => 2,
        };
        self.peer_authentications
            .iter()
            .filter(|policy| self.reaches(policy, pod))
            .min_by(|a, b| narrowness(a).cmp(&narrowness(b)).then_with(|| older(&a.metadata, &b.metadata)))
    }

    /// The MeshService that counts for a Service.
    fn describing(&self, service: &str) -> Option<&MeshService> {
        let candidates = self.mesh_services.iter().filter(|m| m.spec.target.key(&m.name_any()) == service);
        candidates.min_by(|a, b| older(&a.metadata, &b.metadata))
    }

    fn policies_for(&self, service: &str) -> Vec<Fact> {
        let mut facts = Vec::new();
        for policy in &self.traffic_policies {
            for target in &policy.spec.target_refs {
                if validate::target_service(Some(&self.namespace), target, &self.mesh_services)
                    .is_some_and(|key| key == service)
                {
                    let ports =
                        target.port.map_or_else(|| "all ports".to_owned(), |port| format!("port {port}"));
                    let detail = format!("{ports} of {service}, {} rule(s)", policy.spec.rules.len());
                    facts.push(fact("traffic policy", policy.name_any(), detail));
                }
            }
        }
        facts
    }

    fn service_fact(&self, name: &str) -> Fact {
        if let Some(mesh_service) = Target::external_of(name) {
            return self.external_fact(mesh_service);
        }
        match self.services.iter().find(|s| s.name_any() == name) {
            Some(service) => fact("service", name, ports(service)),
            None => fact("service", name, "this Service does not exist"),
        }
    }

    fn external_fact(&self, name: &str) -> Fact {
        let mesh = self.mesh_services.iter().find(|m| m.name_any() == name);
        let Some(external) = mesh.and_then(|m| m.spec.target.external.as_ref()) else {
            return fact("external service", name, "this MeshService does not exist");
        };
        let hosts: Vec<&str> = external.hosts.iter().map(|host| host.0.as_str()).collect();
        let ports = external.ports.iter().map(|port| {
            let tls = if port.tls.is_some() { ", TLS by the proxy" } else { "" };
            format!("{} ({:?}{tls})", port.port, port.protocol)
        });
        let at = match external.endpoints.as_slice() {
            [] => "the host, resolved by each proxy".to_owned(),
            given => given.iter().map(|e| e.address.as_str()).collect::<Vec<_>>().join(", "),
        };
        fact(
            "external service",
            name,
            format!("{}; ports {}; at {at}", hosts.join(", "), ports.collect::<Vec<_>>().join(", ")),
        )
    }

    fn pods_of<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = &'a Pod> {
        self.pods.iter().filter(|pod| selects(service, pod))
    }

    fn endpoint(&self, service: &str, pod: &Pod) -> Fact {
        let mesh = if mesh_pod::is_injected(pod) { "in the mesh" } else { "outside the mesh" };
        let subsets: Vec<&str> = self
            .describing(service)
            .into_iter()
            .flat_map(|m| &m.spec.subsets)
            .filter(|s| carries(pod, &s.labels))
            .map(|s| s.name.as_str())
            .collect();
        let subsets =
            if subsets.is_empty() { String::new() } else { format!(", subset {}", subsets.join(", ")) };
        fact("pod", pod.name_any(), format!("{mesh}{subsets}"))
    }
}

fn selects(service: &Service, pod: &Pod) -> bool {
    let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
    pod.namespace() == service.namespace()
        && selector.is_some_and(|wanted| !wanted.is_empty() && carries(pod, wanted))
}

fn ports(service: &Service) -> String {
    let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    let ports: Vec<String> = ports
        .map(|p| match p.app_protocol.as_deref().or(p.name.as_deref()) {
            Some(word) => format!("{}/{word}", p.port),
            None => p.port.to_string(),
        })
        .collect();
    if ports.is_empty() { "no port".to_owned() } else { format!("ports {}", ports.join(", ")) }
}

fn balancing(mesh: &MeshService) -> String {
    let policy = mesh.spec.balancer.as_ref().map(|b| b.policy).unwrap_or_default();
    let breaker =
        if mesh.spec.circuit_breaker.is_some() { "own breaker limits" } else { "default breaker limits" };
    let outlier = mesh.spec.health.as_ref().and_then(|h| h.outlier.as_ref());
    let outlier = match outlier.and_then(|o| o.consecutive_failures) {
        Some(0) => "no ejection".to_owned(),
        Some(n) => format!("ejection after {n} failures"),
        None => "default ejection".to_owned(),
    };
    format!("{policy:?}, {breaker}, {outlier}")
}

#[cfg(test)]
#[path = "world_tests.rs"]
mod tests;
