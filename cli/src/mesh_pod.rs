//! What a Pod object says about its place in the mesh. Pure.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Namespace, Pod};
use kube::ResourceExt as _;
use std::collections::BTreeMap;
use weft_api::names;

/// Whether and why a pod should have a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// It has one.
    Injected,
    /// It should have one.
    Missing,
    /// It, or its namespace, does not ask for one; or it cannot have one (host network, finished).
    Outside,
}

/// The label counts before the annotation.
fn wish<'a>(
    labels: &'a BTreeMap<String, String>,
    annotations: &'a BTreeMap<String, String>,
) -> Option<&'a str> {
    labels.get(names::INJECT).or_else(|| annotations.get(names::INJECT)).map(String::as_str)
}

/// Whether the namespace asks for injection.
pub fn namespace_enabled(namespace: &Namespace) -> bool {
    wish(namespace.labels(), namespace.annotations()) == Some(names::ENABLED)
}

/// Whether a pod is in the mesh, should be, or need not be.
pub fn membership(pod: &Pod, namespace_enabled: bool) -> Membership {
    if is_injected(pod) {
        return Membership::Injected;
    }
    let finished = matches!(phase(pod), "Succeeded" | "Failed") || pod.metadata.deletion_timestamp.is_some();
    let host_network = pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false);
    let wanted = match wish(pod.labels(), pod.annotations()) {
        Some(names::ENABLED) => true,
        Some(_) => false,
        None => namespace_enabled,
    };
    if wanted && !finished && !host_network { Membership::Missing } else { Membership::Outside }
}

/// The label and the container, both: a label alone is no proxy.
pub fn is_injected(pod: &Pod) -> bool {
    pod.labels().get(names::INJECTED).is_some_and(|v| v == names::ENABLED) && proxy_container(pod).is_some()
}

/// `Running`, `Pending` ...
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Unknown")
}

/// The injected proxy: among the init containers as a native sidecar, otherwise among the containers.
pub fn proxy_container(pod: &Pod) -> Option<&Container> {
    let spec = pod.spec.as_ref()?;
    let init = spec.init_containers.as_deref().unwrap_or_default();
    init.iter().chain(&spec.containers).find(|c| c.name == names::PROXY_CONTAINER)
}

fn proxy_status(pod: &Pod) -> Option<&ContainerStatus> {
    let status = pod.status.as_ref()?;
    let init = status.init_container_statuses.as_deref().unwrap_or_default();
    let plain = status.container_statuses.as_deref().unwrap_or_default();
    init.iter().chain(plain).find(|c| c.name == names::PROXY_CONTAINER)
}

/// Whether the proxy is ready.
pub fn proxy_ready(pod: &Pod) -> bool {
    proxy_status(pod).is_some_and(|s| s.ready)
}

/// Whether the proxy's process runs, ready or not.
pub fn proxy_runs(pod: &Pod) -> bool {
    proxy_status(pod).and_then(|s| s.state.as_ref()).is_some_and(|state| state.running.is_some())
}

/// How often the proxy was started again.
pub fn proxy_restarts(pod: &Pod) -> i32 {
    proxy_status(pod).map_or(0, |s| s.restart_count)
}

/// Why the proxy is not running, in a word or two, when the kubelet says so.
pub fn proxy_trouble(pod: &Pod) -> Option<String> {
    let state = proxy_status(pod)?.state.as_ref()?;
    let waiting = state.waiting.as_ref().and_then(|w| w.reason.clone());
    waiting.or_else(|| state.terminated.as_ref().map(|t| format!("exited with {}", t.exit_code)))
}

/// By what a container of the application could change the redirection or send past the proxy, in words.
pub fn ways_around(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let own = [names::PROXY_CONTAINER, names::INIT_CONTAINER];
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    containers.filter(|container| !own.contains(&container.name.as_str())).find_map(|container| {
        let context = container.security_context.as_ref()?;
        if context.privileged == Some(true) {
            return Some(format!("container {} is privileged", container.name));
        }
        let added = context.capabilities.as_ref()?.add.as_ref()?;
        let added = added.iter().map(|name| name.strip_prefix("CAP_").unwrap_or(name));
        let found = added.into_iter().find(|name| names::CAPABILITIES_AROUND.contains(name))?;
        Some(format!("container {} has {found}", container.name))
    })
}

/// The version of the injected proxy: its image's tag.
pub fn proxy_version(pod: &Pod) -> Option<&str> {
    image_tag(proxy_container(pod)?.image.as_deref()?)
}

/// `v1` of `registry:5000/path/name:v1@sha256:…`.
pub fn image_tag(image: &str) -> Option<&str> {
    let name = image.split('@').next()?.rsplit('/').next()?;
    name.split_once(':').map(|(_, tag)| tag)
}

/// Its ServiceAccount, `default` unless named.
pub fn service_account(pod: &Pod) -> &str {
    pod.spec
        .as_ref()
        .and_then(|s| s.service_account_name.as_deref())
        .filter(|n| !n.is_empty())
        .unwrap_or("default")
}

/// `namespace/name`.
pub fn full_name(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use serde_json::json;

    /// A pod in namespace `shop`; `injected` adds what the webhook adds.
    pub fn pod(name: &str, labels: serde_json::Value, injected: bool) -> Pod {
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "shop", "labels": labels},
            "spec": {"containers": [{"name": "app", "image": "app:1"}]},
            "status": {"phase": "Running"},
        }))
        .unwrap();
        if injected {
            pod.labels_mut().insert(names::INJECTED.into(), names::ENABLED.into());
            pod.spec.as_mut().unwrap().init_containers = Some(vec![Container {
                name: names::PROXY_CONTAINER.into(),
                image: Some("ghcr.io/weft-mesh/weft-proxy:0.1.0".into()),
                ..Container::default()
            }]);
            pod.status.as_mut().unwrap().init_container_statuses = Some(vec![ContainerStatus {
                name: names::PROXY_CONTAINER.into(),
                ready: true,
                ..ContainerStatus::default()
            }]);
        }
        pod
    }

    #[test]
    fn a_pod_follows_its_own_wish_before_that_of_its_namespace() {
        let plain = pod("a", json!({}), false);
        assert_eq!(membership(&plain, true), Membership::Missing);
        assert_eq!(membership(&plain, false), Membership::Outside);
        let out = pod("a", json!({"weft.dev/inject": "disabled"}), false);
        assert_eq!(membership(&out, true), Membership::Outside);
        let own = pod("a", json!({"weft.dev/inject": "enabled"}), false);
        assert_eq!(membership(&own, false), Membership::Missing);
        assert_eq!(membership(&pod("a", json!({}), true), true), Membership::Injected);
    }

    #[test]
    fn what_lets_an_application_around_its_proxy_is_named_and_what_weft_adds_is_not() {
        let with = |container: &str, context: serde_json::Value| {
            let mut pod = pod("a", json!({}), true);
            let spec = pod.spec.as_mut().unwrap();
            let containers = spec.init_containers.iter_mut().flatten().chain(&mut spec.containers);
            for one in containers.filter(|c| c.name == container) {
                one.security_context = serde_json::from_value(context.clone()).unwrap();
            }
            ways_around(&pod)
        };
        let admin = json!({ "capabilities": { "add": ["NET_ADMIN"] } });
        assert_eq!(with("app", admin.clone()).unwrap(), "container app has NET_ADMIN");
        assert_eq!(with("app", json!({ "privileged": true })).unwrap(), "container app is privileged");
        assert_eq!(with("app", json!({ "capabilities": { "add": ["NET_BIND_SERVICE"] } })), None);
        assert_eq!(with(names::PROXY_CONTAINER, admin), None);
        assert_eq!(with("app", json!({})), None);
    }

    #[test]
    fn finished_and_host_network_pods_are_never_missing() {
        let mut done = pod("a", json!({}), false);
        done.status.as_mut().unwrap().phase = Some("Succeeded".into());
        assert_eq!(membership(&done, true), Membership::Outside);
        let mut host = pod("a", json!({}), false);
        host.spec.as_mut().unwrap().host_network = Some(true);
        assert_eq!(membership(&host, true), Membership::Outside);
    }

    #[test]
    fn a_forged_label_without_the_container_is_not_injected() {
        let forged = pod("a", json!({"weft.dev/injected": "enabled"}), false);
        assert!(!is_injected(&forged));
    }

    #[test]
    fn a_namespace_label_counts_before_its_annotation() {
        let namespace = |labels, annotations| -> Namespace {
            serde_json::from_value(
                json!({"metadata": {"name": "n", "labels": labels, "annotations": annotations}}),
            )
            .unwrap()
        };
        assert!(namespace_enabled(&namespace(json!({}), json!({"weft.dev/inject": "enabled"}))));
        assert!(!namespace_enabled(&namespace(
            json!({"weft.dev/inject": "disabled"}),
            json!({"weft.dev/inject": "enabled"})
        )));
    }

    #[test]
    fn tags_are_found_behind_ports_and_before_digests() {
        assert_eq!(image_tag("localhost:5000/weft/weft-proxy:0.1.0@sha256:abc"), Some("0.1.0"));
        assert_eq!(image_tag("localhost:5000/weft-proxy"), None);
    }
}
