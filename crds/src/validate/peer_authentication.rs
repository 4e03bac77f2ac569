//! PeerAuthentications beside each other: which workloads each governs, and whether one hides another.

use crate::PeerAuthentication;
use crate::peer_authentication::Selector;
use std::collections::BTreeMap;

/// The workloads that a PeerAuthentication governs, from the widest to the narrowest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// All of the mesh.
    Mesh,
    /// All of a namespace.
    Namespace(String),
    /// Pods of a namespace with these labels.
    Workloads(String, BTreeMap<String, String>),
}

/// How two PeerAuthentications are in each other's way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shadow {
    /// Both govern exactly the same: only one could count. A reason to refuse.
    Same(String),
    /// They differ for some workloads. A reason to warn.
    Partly(String),
}

/// What a PeerAuthentication governs; `root` is Weft's own namespace.
#[must_use]
pub fn scope(resource: &PeerAuthentication, root: &str) -> Scope {
    scope_of(resource.metadata.namespace.as_deref(), resource.spec.selector.as_ref(), root)
}

/// What a resource of a namespace governs by its selector.
#[must_use]
pub fn scope_of(namespace: Option<&str>, selector: Option<&Selector>, root: &str) -> Scope {
    let namespace = namespace.unwrap_or_default().to_owned();
    match selector {
        Some(selector) => Scope::Workloads(namespace, selector.match_labels.clone()),
        None if namespace == root => Scope::Mesh,
        None => Scope::Namespace(namespace),
    }
}

/// How `resource` stands to another, existing one.
#[must_use]
pub fn shadow(resource: &PeerAuthentication, other: &PeerAuthentication, root: &str) -> Option<Shadow> {
    let meta = |p: &PeerAuthentication| (p.metadata.namespace.clone(), p.metadata.name.clone());
    if meta(resource) == meta(other) {
        return None;
    }
    let name = format!(
        "{}/{}",
        other.metadata.namespace.as_deref().unwrap_or_default(),
        other.metadata.name.as_deref().unwrap_or_default()
    );
    let (ours, theirs) = (scope(resource, root), scope(other, root));
    let differ =
        resource.spec.mtls != other.spec.mtls || resource.spec.port_level_mtls != other.spec.port_level_mtls;
    match (&ours, &theirs) {
        (a, b) if a == b => Some(Shadow::Same(format!(
            "PeerAuthentication {name} already governs {}: change that one, or give this one another selector",
            words(a)
        ))),
        (Scope::Workloads(a, ours), Scope::Workloads(b, theirs))
            if a == b && differ && compatible(ours, theirs) =>
        {
            Some(Shadow::Partly(format!(
                "PeerAuthentication {name} may select some of the same pods and says something else; for a pod that both select, the older one counts"
            )))
        }
        (Scope::Mesh, Scope::Workloads(..) | Scope::Namespace(_))
        | (Scope::Namespace(_), Scope::Workloads(..))
            if differ && covers(&ours, &theirs) =>
        {
            Some(Shadow::Partly(format!(
                "PeerAuthentication {name} is narrower and says something else, so this one has no effect on {}",
                words(&theirs)
            )))
        }
        _ => None,
    }
}

fn covers(wide: &Scope, narrow: &Scope) -> bool {
    match (wide, narrow) {
        (Scope::Mesh, _) => true,
        (Scope::Namespace(a), Scope::Namespace(b) | Scope::Workloads(b, _)) => a == b,
        _ => false,
    }
}

/// Whether a pod could carry both sets of labels.
fn compatible(a: &BTreeMap<String, String>, b: &BTreeMap<String, String>) -> bool {
    a.iter().all(|(key, value)| b.get(key).is_none_or(|other| other == value))
}

fn words(scope: &Scope) -> String {
    match scope {
        Scope::Mesh => "the whole mesh".into(),
        Scope::Namespace(namespace) => format!("all of namespace {namespace}"),
        Scope::Workloads(namespace, labels) => {
            let labels: Vec<_> = labels.iter().take(4).map(|(k, v)| format!("{k}={v}")).collect();
            format!("the pods with {} in namespace {namespace}", labels.join(","))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn auth(namespace: &str, name: &str, selector: Value, mode: &str) -> PeerAuthentication {
        let mut spec = json!({"mtls": {"mode": mode}});
        if !selector.is_null() {
            spec["selector"] = json!({"matchLabels": selector});
        }
        serde_json::from_value(json!({"apiVersion": "weft.dev/v1alpha1", "kind": "PeerAuthentication",
            "metadata": {"name": name, "namespace": namespace}, "spec": spec}))
        .unwrap()
    }

    fn judged(a: &PeerAuthentication, b: &PeerAuthentication) -> &'static str {
        match shadow(a, b, "weft-system") {
            None => "apart",
            Some(Shadow::Same(_)) => "same",
            Some(Shadow::Partly(_)) => "partly",
        }
    }

    #[test]
    fn a_second_one_for_the_same_workloads_is_refused() {
        for (namespace, selector) in
            [("weft-system", Value::Null), ("shop", Value::Null), ("shop", json!({"app": "a"}))]
        {
            let first = auth(namespace, "first", selector.clone(), "Strict");
            assert_eq!(judged(&auth(namespace, "second", selector.clone(), "Strict"), &first), "same");
            assert_eq!(
                judged(&auth(namespace, "first", selector, "Disable"), &first),
                "apart",
                "an update of itself"
            );
        }
    }

    #[test]
    fn a_wide_one_beside_a_narrow_one_that_differs_is_a_warning() {
        let narrow = auth("shop", "narrow", json!({"app": "a"}), "Disable");
        assert_eq!(judged(&auth("shop", "wide", Value::Null, "Strict"), &narrow), "partly");
        assert_eq!(judged(&auth("weft-system", "wide", Value::Null, "Strict"), &narrow), "partly");
        assert_eq!(judged(&auth("shop", "wide", Value::Null, "Disable"), &narrow), "apart", "says the same");
        assert_eq!(
            judged(&narrow, &auth("shop", "wide", Value::Null, "Strict")),
            "apart",
            "the narrow one works fully"
        );
        assert_eq!(
            judged(&auth("bank", "wide", Value::Null, "Strict"), &narrow),
            "apart",
            "another namespace"
        );
    }

    #[test]
    fn selectors_that_may_meet_in_a_pod_are_a_warning() {
        let a = auth("shop", "a", json!({"app": "a"}), "Strict");
        assert_eq!(judged(&auth("shop", "b", json!({"tier": "web"}), "Disable"), &a), "partly");
        assert_eq!(judged(&auth("shop", "b", json!({"app": "b"}), "Disable"), &a), "apart");
        assert_eq!(judged(&auth("bank", "b", json!({"tier": "web"}), "Disable"), &a), "apart");
    }
}
