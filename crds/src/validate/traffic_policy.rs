//! TrafficPolicies beside each other and beside MeshServices: who governs a port, and do the subsets exist?

use super::Problem;
use super::targets::{describing, target_service};
use crate::mesh_service::Target;
use crate::traffic_policy::{TargetKind, TargetRef};
use crate::{MeshService, TrafficPolicy};
use std::borrow::Borrow;

/// A Service that a policy needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRef {
    /// The field that names it.
    pub field: String,
    /// Its name, in the policy's namespace.
    pub name: String,
    /// The port, where the policy names one.
    pub port: Option<u16>,
}

/// A sentence when the policy claims a Service port that the other, existing one governs already.
#[must_use]
pub fn conflict<M: Borrow<MeshService>>(
    policy: &TrafficPolicy,
    other: &TrafficPolicy,
    mesh_services: &[M],
) -> Option<Problem> {
    let namespace = policy.metadata.namespace.as_deref();
    if namespace != other.metadata.namespace.as_deref() || policy.metadata.name == other.metadata.name {
        return None;
    }
    policy.spec.target_refs.iter().enumerate().find_map(|(i, ours)| {
        let theirs = other.spec.target_refs.iter().find(|theirs| overlap(namespace, ours, theirs, mesh_services))?;
        let port = ours.port.or(theirs.port).map_or_else(String::new, |port| format!("port {port} of "));
        let service = target_service(namespace, ours, mesh_services)
            .filter(|key| Target::external_of(key).is_none())
            .map_or_else(|| format!("MeshService {}", ours.name), |service| format!("Service {service}"));
        Some(Problem {
            field: format!("spec.targetRefs[{i}]"),
            message: format!(
                "{port}{service} is already governed by TrafficPolicy {}: put these rules into that one, or name a port that it does not govern",
                other.metadata.name.as_deref().unwrap_or_default(),
            ),
        })
    })
}

fn overlap<M: Borrow<MeshService>>(
    namespace: Option<&str>,
    a: &TargetRef,
    b: &TargetRef,
    mesh_services: &[M],
) -> bool {
    let ports_meet = a.port.is_none() || b.port.is_none() || a.port == b.port;
    let same_name = a.kind == b.kind && a.name == b.name;
    let same_service =
        || match (target_service(namespace, a, mesh_services), target_service(namespace, b, mesh_services)) {
            (Some(a), Some(b)) => a == b,
            _ => false,
        };
    ports_meet && (same_name || same_service())
}

/// MeshServices and subsets that the policy names and that do not exist.
#[must_use]
pub fn unresolved<M: Borrow<MeshService>>(policy: &TrafficPolicy, mesh_services: &[M]) -> Vec<Problem> {
    let namespace = policy.metadata.namespace.as_deref();
    let mut problems = Vec::new();
    let mut targets = Vec::new();
    for (i, target) in policy.spec.target_refs.iter().enumerate() {
        match target_service(namespace, target, mesh_services) {
            Some(key) if Target::external_of(&key).is_some() => {
                problems.extend(within_cluster_only(policy, &target.name));
            }
            Some(service) if !targets.contains(&service) => targets.push(service),
            Some(_) => {}
            None => problems.push(Problem {
                field: format!("spec.targetRefs[{i}].name"),
                message: format!(
                    "MeshService {} does not exist in this namespace: create it first",
                    target.name
                ),
            }),
        }
    }
    for (r, rule) in policy.spec.rules.iter().enumerate() {
        for destination in rule.destinations() {
            let Some(subset) = destination.subset else { continue };
            let field = format!("spec.rules[{r}].{}.subset", destination.field);
            let services =
                destination.service.map_or_else(|| targets.clone(), |service| vec![service.as_str().into()]);
            problems.extend(services.into_iter().filter_map(|service| {
                missing_subset(subset, &service, describing(namespace, &service, mesh_services))
                    .map(|message| Problem { field: field.clone(), message })
            }));
        }
    }
    problems
}

/// What rules may not say of an external service: it has no pods that could be subsets, or keep a limit.
#[must_use]
pub fn within_cluster_only(policy: &TrafficPolicy, mesh_service: &str) -> Vec<Problem> {
    let says = |field: String| Problem {
        message: format!(
            "MeshService {mesh_service} is an external service, without pods, subsets and Services beside it: leave this out, or target a Service in a policy of its own"
        ),
        field,
    };
    let rules = policy.spec.rules.iter().enumerate();
    rules
        .flat_map(|(r, rule)| {
            let split = (!rule.split.is_empty()).then(|| says(format!("spec.rules[{r}].split")));
            let limit = rule.rate_limit.as_ref().map(|_| says(format!("spec.rules[{r}].rateLimit")));
            let mirror = rule.mirror.as_ref().map(|_| says(format!("spec.rules[{r}].mirror")));
            split.into_iter().chain(limit).chain(mirror)
        })
        .collect()
}

fn missing_subset(subset: &str, service: &str, mesh_service: Option<&MeshService>) -> Option<String> {
    let Some(mesh_service) = mesh_service else {
        return Some(format!(
            "subset {subset} does not exist, because no MeshService describes Service {service}: create it first, with a subset of that name"
        ));
    };
    if mesh_service.spec.subsets.iter().any(|s| s.name == subset) {
        return None;
    }
    let name = mesh_service.metadata.name.as_deref().unwrap_or_default();
    let known: Vec<_> = mesh_service.spec.subsets.iter().map(|s| s.name.as_str()).take(8).collect();
    let has = if known.is_empty() {
        "it has no subsets".to_owned()
    } else {
        format!("it has {}", known.join(", "))
    };
    Some(format!(
        "subset {subset} does not exist in MeshService {name}, which describes Service {service} ({has}): create it first in its spec.subsets"
    ))
}

/// Every Service that the policy needs, with the field that names it.
#[must_use]
pub fn service_refs<M: Borrow<MeshService>>(policy: &TrafficPolicy, mesh_services: &[M]) -> Vec<ServiceRef> {
    let namespace = policy.metadata.namespace.as_deref();
    let targets = policy.spec.target_refs.iter().enumerate().filter_map(|(i, target)| {
        let field = format!(
            "spec.targetRefs[{i}].{}",
            if target.kind == TargetKind::Service { "name" } else { "kind" }
        );
        let name = target_service(namespace, target, mesh_services)?.into_owned();
        if Target::external_of(&name).is_some() {
            return None;
        }
        Some(ServiceRef { field, name, port: target.port })
    });
    let backends = policy.spec.rules.iter().enumerate().flat_map(|(r, rule)| {
        rule.destinations().filter_map(move |destination| {
            let name = destination.service.cloned()?;
            let field = format!("spec.rules[{r}].{}.service", destination.field);
            Some(ServiceRef { field, name, port: None })
        })
    });
    targets.chain(backends).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn policy(name: &str, targets: Value, split: Value) -> TrafficPolicy {
        serde_json::from_value(json!({"apiVersion": "weft.dev/v1alpha1", "kind": "TrafficPolicy",
            "metadata": {"name": name, "namespace": "shop"}, "spec": {"targetRefs": targets, "rules": [{"split": split}]}}))
        .unwrap()
    }

    fn mesh(name: &str, service: &str, subsets: &[&str]) -> MeshService {
        let subsets: Vec<_> = subsets.iter().map(|s| json!({"name": s, "labels": {"v": s}})).collect();
        serde_json::from_value(json!({"apiVersion": "weft.dev/v1alpha1", "kind": "MeshService",
            "metadata": {"name": name, "namespace": "shop"}, "spec": {"target": {"service": service}, "subsets": subsets}}))
        .unwrap()
    }

    #[test]
    fn two_policies_for_one_port_are_a_conflict_whatever_they_call_it() {
        let meshes = [mesh("back-mesh", "back", &[])];
        let service = |port: Value| json!([{"kind": "Service", "name": "back", "port": port}]);
        let via_mesh = json!([{"kind": "MeshService", "name": "back-mesh"}]);
        for (ours, theirs) in [
            (service(json!(80)), service(json!(80))),
            (service(Value::Null), service(json!(80))),
            (service(json!(80)), via_mesh.clone()),
            (via_mesh.clone(), via_mesh.clone()),
            (
                json!([{"kind": "MeshService", "name": "unknown"}]),
                json!([{"kind": "MeshService", "name": "unknown"}]),
            ),
        ] {
            let problem = conflict(&policy("a", ours, json!([])), &policy("b", theirs, json!([])), &meshes);
            assert!(problem.is_some_and(|p| p.message.contains("TrafficPolicy b")));
        }
    }

    #[test]
    fn policies_for_other_ports_services_or_namespaces_live_side_by_side() {
        let none: [MeshService; 0] = [];
        let back = |port: u16| json!([{"kind": "Service", "name": "back", "port": port}]);
        let ours = policy("a", back(80), json!([]));
        assert_eq!(conflict(&ours, &policy("b", back(81), json!([])), &none), None);
        assert_eq!(
            conflict(&ours, &policy("b", json!([{"kind": "Service", "name": "front"}]), json!([])), &none),
            None
        );
        assert_eq!(conflict(&ours, &ours, &none), None, "with itself");
        let mut elsewhere = policy("b", back(80), json!([]));
        elsewhere.metadata.namespace = Some("other".into());
        assert_eq!(conflict(&ours, &elsewhere, &none), None);
    }

    #[test]
    fn a_subset_that_does_not_exist_is_named_with_those_that_do() {
        let meshes = [mesh("back-mesh", "back", &["v1", "v2"])];
        let target = json!([{"kind": "Service", "name": "back"}]);
        let ours = policy("a", target, json!([{"subset": "v1", "weight": 1}, {"subset": "v3", "weight": 1}]));
        let problems = unresolved(&ours, &meshes);
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].field, "spec.rules[0].split[1].subset");
        assert!(
            problems[0].message.contains("it has v1, v2") && problems[0].message.contains("create it first")
        );
    }

    #[test]
    fn a_subset_of_another_service_is_looked_for_there() {
        let meshes = [mesh("back-mesh", "back", &["v1"]), mesh("other-mesh", "other", &["green"])];
        let target = json!([{"kind": "MeshService", "name": "back-mesh"}]);
        let good = policy("a", target.clone(), json!([{"service": "other", "subset": "green", "weight": 1}]));
        assert_eq!(unresolved(&good, &meshes), []);
        let bad = policy("a", target, json!([{"service": "third", "subset": "green", "weight": 1}]));
        assert!(unresolved(&bad, &meshes)[0].message.contains("no MeshService describes Service third"));
    }

    #[test]
    fn a_mirror_is_looked_for_like_a_split() {
        let meshes = [mesh("back-mesh", "back", &["v1"])];
        let mut ours = policy("a", json!([{"kind": "Service", "name": "back"}]), json!([]));
        ours.spec.rules[0].mirror =
            serde_json::from_value(json!({"service": "next", "subset": "v2"})).unwrap();
        assert_eq!(unresolved(&ours, &meshes)[0].field, "spec.rules[0].mirror.subset");
        assert_eq!(service_refs(&ours, &meshes)[1].field, "spec.rules[0].mirror.service");
        ours.spec.rules[0].mirror = serde_json::from_value(json!({"subset": "v1"})).unwrap();
        assert_eq!(unresolved(&ours, &meshes), []);
    }

    #[test]
    fn an_external_service_takes_no_split_limit_or_mirror() {
        let mut ours = policy(
            "a",
            json!([{"kind": "MeshService", "name": "api"}]),
            json!([{"subset": "v1", "weight": 1}]),
        );
        ours.spec.rules[0].mirror = serde_json::from_value(json!({"service": "next"})).unwrap();
        ours.spec.rules[0].rate_limit = serde_json::from_value(json!({"requests": 1, "per": "1s"})).unwrap();
        let fields: Vec<_> =
            within_cluster_only(&ours, "api").into_iter().map(|problem| problem.field).collect();
        assert_eq!(fields, ["spec.rules[0].split", "spec.rules[0].rateLimit", "spec.rules[0].mirror"]);
    }

    #[test]
    fn a_mesh_service_that_does_not_exist_is_unresolved() {
        let none: [MeshService; 0] = [];
        let ours = policy("a", json!([{"kind": "MeshService", "name": "gone"}]), json!([]));
        assert!(unresolved(&ours, &none)[0].message.contains("MeshService gone does not exist"));
    }

    #[test]
    fn every_service_that_a_policy_needs_is_listed() {
        let meshes = [mesh("back-mesh", "back", &[])];
        let targets = json!([{"kind": "MeshService", "name": "back-mesh", "port": 80}, {"kind": "Service", "name": "front"}]);
        let refs = service_refs(&policy("a", targets, json!([{"service": "green", "weight": 1}])), &meshes);
        let names: Vec<_> = refs.iter().map(|r| (r.name.as_str(), r.port)).collect();
        assert_eq!(names, [("back", Some(80)), ("front", None), ("green", None)]);
    }
}
