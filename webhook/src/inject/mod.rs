//! Injection: a pod as it was asked for in, the pod with the proxy out. Pure: no clock, no network, no state, so that the same
//! pod always gets the same patch and an injected pod gets none. It works on the raw JSON, so that fields of newer
//! Kubernetes versions survive. It never removes, reorders or changes a container of the user, but for their TCP probes
//! (see [`probes`]).

mod containers;
mod overrides;
mod probes;
mod settings;

pub use overrides::{Overrides, Quantity};
pub use settings::{PullPolicy, Resources, Settings};

use serde_json::{Map, Value, json};
use weft_api::names;

/// Namespaces whose pods are never injected, besides Weft's own.
pub const SYSTEM_NAMESPACES: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];
/// Volume with the projected token.
const TOKEN_VOLUME: &str = "weft-token";
/// Volume with the trust bundle.
const BUNDLE_VOLUME: &str = "weft-trust-bundle";
/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It is to be this.
    Inject {
        /// The pod with the proxy.
        pod: Value,
        /// Sentences for whoever applies it.
        warnings: Vec<String>,
    },
    /// It stays as it is.
    Skip {
        /// Why.
        why: Skip,
        /// Sentences for whoever applies it.
        warnings: Vec<String>,
    },
    /// It must not be made: with the proxy it could not work, or its traffic would not be what the mesh says it is.
    Refuse(String),
}

/// Why a pod stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Skip {
    /// It is in Weft's own or a system namespace.
    SystemNamespace,
    /// It says `weft.dev/inject: disabled`.
    OptedOut,
    /// It uses its node's network, which must not be redirected.
    HostNetwork,
    /// It has the proxy already.
    AlreadyInjected,
    /// It is not for Linux.
    OtherSystem,
}

/// Judges a pod of a namespace.
#[must_use]
pub fn review(pod: &Value, namespace: &str, settings: &Settings) -> Outcome {
    if namespace == settings.namespace || SYSTEM_NAMESPACES.contains(&namespace) {
        return Outcome::Skip { why: Skip::SystemNamespace, warnings: Vec::new() };
    }
    if !pod.get("spec").is_some_and(Value::is_object) {
        return Outcome::Refuse("the pod has no spec, so the proxy cannot be added to it".into());
    }
    let mut warnings = Vec::new();
    if opted_out(pod, &mut warnings) {
        return Outcome::Skip { why: Skip::OptedOut, warnings };
    }
    if pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true)) {
        warnings.push(format!(
            "pod uses hostNetwork and is not injected: its node's traffic must not be redirected. Label it {}: {} to silence this",
            names::INJECT,
            names::DISABLED
        ));
        return Outcome::Skip { why: Skip::HostNetwork, warnings };
    }
    if pod.pointer("/spec/os/name").is_some_and(|os| os != "linux") {
        warnings.push("pod is not for Linux and is not injected: the proxy runs on Linux only".into());
        return Outcome::Skip { why: Skip::OtherSystem, warnings };
    }
    let overrides = Overrides::read(pod, settings, &mut warnings);
    if is_injected(pod) {
        return again(pod, &overrides, warnings);
    }
    if let Some(contradiction) = contradiction(pod) {
        return Outcome::Refuse(contradiction);
    }
    let mut pod = pod.clone();
    if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
        probes::rewrite(spec, &overrides.skip_inbound_ports, &mut warnings);
        containers::add(spec, settings, &overrides);
    }
    if !settings.native_sidecar && owned_by_job(&pod) {
        warnings.push(
            "this cluster has no native sidecars (Kubernetes 1.29), so the proxy keeps running when the Job's own containers end, and the Job does not complete: label its pods weft.dev/inject: disabled".into(),
        );
    }
    if settings.cni && !settings.native_sidecar && initializes(&pod) {
        warnings.push(
            "this cluster has no native sidecars (Kubernetes 1.29), so the pod's init containers run before the proxy, and with its redirection in force already they reach nothing".into(),
        );
    }
    warnings.extend(around(&pod));
    annotate(&mut pod, settings, &overrides);
    Outcome::Inject { pod, warnings }
}

/// A pod that has the proxy, seen again (reinvocation, or a copied pod): containers that came since get their probes rewritten.
fn again(pod: &Value, overrides: &Overrides, mut warnings: Vec<String>) -> Outcome {
    let mut seen = pod.clone();
    if let Some(spec) = seen.get_mut("spec").and_then(Value::as_object_mut) {
        probes::rewrite(spec, &overrides.skip_inbound_ports, &mut warnings);
    }
    if seen == *pod {
        return Outcome::Skip { why: Skip::AlreadyInjected, warnings };
    }
    Outcome::Inject { pod: seen, warnings }
}

/// The label counts before the annotation.
fn opted_out(pod: &Value, warnings: &mut Vec<String>) -> bool {
    let value = ["labels", "annotations"].iter().find_map(|kind| metadata(pod, kind, names::INJECT));
    match value {
        Some(names::DISABLED) => true,
        None | Some(names::ENABLED) => false,
        Some(other) => {
            warnings.push(format!(
                "{} is `{}`, which means nothing: write {} or {}",
                names::INJECT,
                short(other),
                names::ENABLED,
                names::DISABLED
            ));
            false
        }
    }
}

/// Injected by us: the mark and the container.
fn is_injected(pod: &Value) -> bool {
    metadata(pod, "annotations", names::INJECTION_STATUS).is_some()
        && every_container(pod).any(|c| c.get("name").and_then(Value::as_str) == Some(names::PROXY_CONTAINER))
}

/// A sentence when the pod and the proxy cannot live together.
fn contradiction(pod: &Value) -> Option<String> {
    let uid = u64::from(names::PROXY_UID);
    if pod.pointer("/spec/securityContext/runAsUser").and_then(Value::as_u64) == Some(uid) {
        return Some(format!(
            "spec.securityContext.runAsUser is {uid}, the proxy's own user, whose traffic is not captured: choose another user"
        ));
    }
    for container in every_container(pod) {
        let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
        if [names::PROXY_CONTAINER, names::INIT_CONTAINER].contains(&name) {
            return Some(format!("the container name {name} is Weft's own: rename the container"));
        }
        if container.pointer("/securityContext/runAsUser").and_then(Value::as_u64) == Some(uid) {
            return Some(format!(
                "container {name} has runAsUser {uid}, the proxy's own user, whose traffic is not captured: choose another user"
            ));
        }
        let ports = container.get("ports").and_then(Value::as_array).into_iter().flatten();
        let mut ports = ports.filter_map(|p| p.get("containerPort").and_then(Value::as_u64));
        if let Some(port) = ports.find(|port| names::PROXY_PORTS.iter().any(|own| u64::from(*own) == *port)) {
            return Some(format!(
                "container {name} declares port {port}, which the proxy listens on in the same pod: move it to another port, or label the pod {}: {}",
                names::INJECT,
                names::DISABLED
            ));
        }
    }
    let volumes = pod.pointer("/spec/volumes").and_then(Value::as_array).into_iter().flatten();
    let mut volumes = volumes.filter_map(|v| v.get("name").and_then(Value::as_str));
    volumes
        .find(|name| [TOKEN_VOLUME, BUNDLE_VOLUME].contains(name))
        .map(|name| format!("the volume name {name} is Weft's own: rename the volume"))
}

fn initializes(pod: &Value) -> bool {
    pod.pointer("/spec/initContainers")
        .and_then(Value::as_array)
        .is_some_and(|containers| !containers.is_empty())
}

/// Containers that were given the means to send past the proxy. They may need them, so this is said and not refused.
fn around(pod: &Value) -> Vec<String> {
    let own = [names::PROXY_CONTAINER, names::INIT_CONTAINER];
    let theirs =
        every_container(pod).filter(|c| !own.iter().any(|own| c.get("name").is_some_and(|name| name == own)));
    theirs.filter_map(|container| {
        let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
        let means = means(container.get("securityContext")?)?;
        Some(format!(
            "container {} {means}, by which it can change the redirection or send past the proxy: take that away, or do not count on the mesh to bound what it sends",
            short(name)
        ))
    }).take(8).collect()
}

fn means(context: &Value) -> Option<String> {
    if context.get("privileged") == Some(&Value::Bool(true)) {
        return Some("is privileged".into());
    }
    let added = context.pointer("/capabilities/add").and_then(Value::as_array).into_iter().flatten();
    let mut added = added.filter_map(Value::as_str).map(|name| name.strip_prefix("CAP_").unwrap_or(name));
    let found = added.find(|name| names::CAPABILITIES_AROUND.contains(name))?;
    Some(format!("has the capability {found}"))
}

fn owned_by_job(pod: &Value) -> bool {
    let owners = pod.pointer("/metadata/ownerReferences").and_then(Value::as_array).into_iter().flatten();
    owners.into_iter().any(|owner| owner.get("kind").and_then(Value::as_str) == Some("Job"))
}

/// Labels and annotations of an injected pod.
fn annotate(pod: &mut Value, settings: &Settings, overrides: &Overrides) {
    let Some(metadata) = object_in(pod, "metadata") else { return };
    if let Some(labels) = child(metadata, "labels") {
        labels.insert(names::INJECTED.into(), names::ENABLED.into());
    }
    let Some(annotations) = child(metadata, "annotations") else { return };
    if !annotations.keys().any(|key| key.starts_with("prometheus.io/")) {
        annotations.insert("prometheus.io/scrape".into(), "true".into());
        annotations.insert("prometheus.io/port".into(), names::METRICS_PORT.to_string().into());
        annotations.insert("prometheus.io/path".into(), "/metrics".into());
    }
    let status = json!({ "version": env!("CARGO_PKG_VERSION"), "image": settings.image, "native": settings.native_sidecar });
    annotations.insert(names::INJECTION_STATUS.into(), status.to_string().into());
    if settings.cni {
        let left_out = json!({
            "skipInboundPorts": overrides.skip_inbound_ports,
            "skipOutboundPorts": overrides.skip_outbound_ports,
            "skipOutboundCidrs": overrides.skip_outbound_cidrs,
        });
        annotations.insert(names::REDIRECTION.into(), left_out.to_string().into());
    }
}

fn metadata<'a>(pod: &'a Value, kind: &str, key: &str) -> Option<&'a str> {
    pod.get("metadata")?.get(kind)?.get(key)?.as_str()
}

fn every_container(pod: &Value) -> impl Iterator<Item = &Value> {
    ["/spec/initContainers", "/spec/containers"]
        .into_iter()
        .filter_map(|at| pod.pointer(at).and_then(Value::as_array))
        .flatten()
}

/// The object under a key, made when it is absent or null.
fn child<'a>(parent: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Map<String, Value>> {
    let value = parent.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = json!({});
    }
    value.as_object_mut()
}

fn object_in<'a>(parent: &'a mut Value, key: &str) -> Option<&'a mut Map<String, Value>> {
    child(parent.as_object_mut()?, key)
}

/// The list under a key, made when it is absent or null.
fn list<'a>(parent: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Vec<Value>> {
    let value = parent.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = json!([]);
    }
    value.as_array_mut()
}

/// A user's text, bounded for a sentence.
fn short(text: &str) -> String {
    if text.chars().count() <= 60 {
        text.to_owned()
    } else {
        text.chars().take(57).chain("...".chars()).collect()
    }
}
