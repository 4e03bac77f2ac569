//! What the index keeps of a Pod and of a Namespace. Reads Kubernetes objects; decides whether a pod is in the mesh.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use weft_api::names;

use super::outbound::annotated;
use super::service::addresses;
use super::{Key, OutboundPolicy};

/// A Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub key: Key,
    /// Its uid.
    pub uid: String,
    /// Its addresses, of both families.
    pub ips: Vec<IpAddr>,
    /// Its labels, which it has in common with others of its workload.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Its ServiceAccount.
    pub service_account: String,
    /// Who owns it: Deployment, StatefulSet, DaemonSet, Job; the pod's own name when nobody does.
    pub workload: String,
    /// It runs a Weft proxy.
    pub mesh: bool,
    /// It asks for injection by its own label.
    pub opted_in: bool,
    /// Its addresses are those of its node.
    pub host_network: bool,
    /// The node that it runs on.
    pub node: Option<String>,
    /// Ready condition.
    pub ready: bool,
    /// All containers have ended; its addresses may belong to another pod.
    pub ended: bool,
    /// TCP ports of its containers: name (may be empty), number.
    pub ports: Vec<(String, u16)>,
    /// Probes and hooks by which the kubelet calls the application.
    pub probes: Vec<Probe>,
    /// Annotation `weft.dev/outbound-policy`.
    pub outbound: Option<OutboundPolicy>,
    /// A volume of it holds the cluster's trust bundle.
    pub reads_bundle: bool,
}

/// A call that the kubelet makes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    /// To which port.
    pub port: u16,
    /// What.
    pub kind: ProbeKind,
}

/// Kinds of calls that can be told apart on the wire.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeKind {
    /// GET of this path and query.
    Http(String),
    /// grpc.health.v1.Health/Check of this service.
    Grpc(String),
}

impl Pod {
    /// What the index needs of the object.
    #[must_use]
    pub fn read(object: core::Pod) -> Option<Self> {
        let meta = object.metadata;
        let key = Key::new(meta.namespace?, meta.name?);
        let labels = meta.labels.unwrap_or_default();
        let spec = object.spec.unwrap_or_default();
        let status = object.status.unwrap_or_default();

        let init = spec.init_containers.unwrap_or_default();
        let has_proxy = spec.containers.iter().chain(&init).any(|c| c.name == names::PROXY_CONTAINER);
        let labelled = |name: &str| labels.get(name).is_some_and(|v| v == names::ENABLED);
        let host_network = spec.host_network.unwrap_or(false);
        let owner =
            meta.owner_references.unwrap_or_default().into_iter().find(|o| o.controller == Some(true));
        let workload = match owner {
            Some(owner) => match labels.get("pod-template-hash") {
                Some(hash) if owner.kind == "ReplicaSet" => owner
                    .name
                    .strip_suffix(hash.as_str())
                    .and_then(|name| name.strip_suffix('-'))
                    .unwrap_or(&owner.name)
                    .to_owned(),
                _ => owner.name,
            },
            None => key.name.clone(),
        };

        let ips =
            addresses(status.pod_ips.unwrap_or_default().into_iter().map(|i| i.ip).chain(status.pod_ip));
        let app = init
            .into_iter()
            .filter(|c| c.restart_policy.as_deref() == Some("Always"))
            .chain(spec.containers)
            .filter(|c| c.name != names::PROXY_CONTAINER);
        let (mut ports, mut probes) = (Vec::new(), Vec::new());
        for container in app {
            read_container(container, &mut ports, &mut probes);
        }
        probes.sort();
        probes.dedup();

        Some(Self {
            uid: meta.uid.unwrap_or_default(),
            ips,
            service_account: spec
                .service_account_name
                .filter(|n| !n.is_empty())
                .unwrap_or_else(|| "default".into()),
            workload,
            mesh: labelled(names::INJECTED) && has_proxy && !host_network,
            opted_in: labelled(names::INJECT),
            host_network,
            node: spec.node_name.filter(|name| !name.is_empty()),
            ready: status
                .conditions
                .unwrap_or_default()
                .iter()
                .any(|c| c.type_ == "Ready" && c.status == "True"),
            ended: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            ports,
            probes,
            outbound: annotated(meta.annotations.as_ref()),
            reads_bundle: spec.volumes.iter().flatten().any(holds_bundle),
            labels: Arc::new(labels),
            key,
        })
    }

    /// The number of its container port of that name.
    #[must_use]
    pub fn named_port(&self, name: &str) -> Option<u16> {
        self.ports.iter().find(|(n, _)| n == name).map(|(_, port)| *port)
    }
}

fn holds_bundle(volume: &core::Volume) -> bool {
    let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    let mut bundles = sources.filter_map(|source| source.cluster_trust_bundle.as_ref());
    bundles.any(|bundle| {
        bundle.name.as_deref() == Some(names::CLUSTER_BUNDLE)
            || bundle.signer_name.as_deref() == Some(names::SIGNER)
    })
}

/// True when the labels hold all that the selector asks for.
#[must_use]
pub fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(name, value)| labels.get(name) == Some(value))
}

fn read_container(container: core::Container, ports: &mut Vec<(String, u16)>, probes: &mut Vec<Probe>) {
    let declared: Vec<(String, u16)> = container
        .ports
        .unwrap_or_default()
        .into_iter()
        .filter(|p| p.protocol.as_deref().unwrap_or("TCP") == "TCP")
        .filter_map(|p| Some((p.name.unwrap_or_default(), u16::try_from(p.container_port).ok()?)))
        .collect();
    // The kubelet resolves a named port within the container of the probe.
    let resolve = |port: &IntOrString| match port {
        IntOrString::Int(n) => u16::try_from(*n).ok(),
        IntOrString::String(name) => {
            declared.iter().find(|(n, _)| n == name).map(|(_, port)| *port).or_else(|| name.parse().ok())
        }
    };
    let mut http = |get: &core::HTTPGetAction| {
        let path = match get.path.as_deref() {
            None | Some("") => "/".to_owned(),
            Some(path) if path.starts_with('/') => path.to_owned(),
            Some(path) => format!("/{path}"),
        };
        if let Some(port) = resolve(&get.port) {
            probes.push(Probe { port, kind: ProbeKind::Http(path) });
        }
    };
    let declared_probes = [container.startup_probe, container.liveness_probe, container.readiness_probe];
    declared_probes.iter().flatten().filter_map(|p| p.http_get.as_ref()).for_each(&mut http);
    if let Some(hooks) = container.lifecycle {
        [hooks.post_start, hooks.pre_stop]
            .iter()
            .flatten()
            .filter_map(|h| h.http_get.as_ref())
            .for_each(&mut http);
    }
    for grpc in declared_probes.into_iter().flatten().filter_map(|p| p.grpc) {
        if let Ok(port) = u16::try_from(grpc.port) {
            probes.push(Probe { port, kind: ProbeKind::Grpc(grpc.service.unwrap_or_default()) });
        }
    }
    ports.extend(declared);
}

/// A Namespace, and whether its pods are to be injected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name; the namespace part is empty.
    pub key: Key,
    /// Label `weft.dev/inject`.
    pub label: Option<String>,
    /// Annotation `weft.dev/inject`.
    pub annotation: Option<String>,
    /// Label that mirrors the annotation.
    pub mirror: Option<String>,
    /// It is being deleted: nothing can be created in it.
    pub terminating: bool,
    /// Annotation `weft.dev/outbound-policy`.
    pub outbound: Option<OutboundPolicy>,
}

impl Namespace {
    /// What the index needs of the object.
    #[must_use]
    pub fn read(object: core::Namespace) -> Option<Self> {
        let meta = object.metadata;
        let mut labels = meta.labels.unwrap_or_default();
        Some(Self {
            key: Key::new("", meta.name?),
            outbound: annotated(meta.annotations.as_ref()),
            label: labels.remove(names::INJECT),
            mirror: labels.remove(names::INJECT_MIRROR),
            annotation: meta.annotations.and_then(|mut a| a.remove(names::INJECT)),
            terminating: meta.deletion_timestamp.is_some(),
        })
    }

    /// Its pods are injected unless they say otherwise. The label counts before the annotation.
    #[must_use]
    pub fn injected(&self) -> bool {
        self.label.as_deref().or(self.annotation.as_deref()) == Some(names::ENABLED)
    }

    /// What the mirror label should be.
    #[must_use]
    pub fn wanted_mirror(&self) -> Option<&'static str> {
        (self.label.is_none() && self.annotation.as_deref() == Some(names::ENABLED)).then_some(names::ENABLED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_pod_that_mounts_the_clusters_bundle_is_known_for_it() {
        let read = |source: Value| {
            let pod = json!({ "metadata": { "namespace": "shop", "name": "batch" }, "spec": { "containers": [],
                "volumes": [{ "name": "tmp" }, { "name": "mesh", "projected": { "sources": [source] } }] } });
            Pod::read(serde_json::from_value(pod).unwrap()).unwrap().reads_bundle
        };
        assert!(read(json!({ "clusterTrustBundle": { "name": names::CLUSTER_BUNDLE, "path": "x" } })));
        assert!(read(json!({ "clusterTrustBundle": { "signerName": names::SIGNER, "path": "x" } })));
        assert!(!read(json!({ "clusterTrustBundle": { "name": "another", "path": "x" } })));
        assert!(!read(json!({ "podCertificate": { "signerName": names::SIGNER, "keyType": "ED25519" } })));
    }
}
