//! What can be said of one resource by itself, beyond its schema and CEL rules.

use super::Problem;
use super::texts::{is_label_key, regex};
use crate::{MeshService, PeerAuthentication, TrafficPolicy};
use std::collections::BTreeMap;

/// Problems of a MeshService by itself: label keys.
#[must_use]
pub fn mesh_service(resource: &MeshService) -> Vec<Problem> {
    let spec = &resource.spec;
    let subsets =
        spec.subsets.iter().enumerate().map(|(i, s)| (format!("spec.subsets[{i}].labels"), &s.labels));
    let weights = spec.balancer.iter().flat_map(|b| b.weights.iter().enumerate());
    let weights = weights.map(|(i, w)| (format!("spec.balancer.weights[{i}].labels"), &w.labels));
    let failover = spec.balancer.iter().flat_map(|b| b.failover.iter().enumerate());
    let failover = failover.map(|(i, p)| (format!("spec.balancer.failover[{i}].labels"), &p.labels));
    subsets.chain(weights).chain(failover).flat_map(|(field, labels)| bad_keys(field, labels)).collect()
}

/// Problems of a PeerAuthentication by itself: label keys.
#[must_use]
pub fn peer_authentication(resource: &PeerAuthentication) -> Vec<Problem> {
    match &resource.spec.selector {
        Some(selector) => bad_keys("spec.selector.matchLabels".into(), &selector.match_labels),
        None => Vec::new(),
    }
}

/// Problems of a TrafficPolicy by itself: regular expressions.
#[must_use]
pub fn traffic_policy(resource: &TrafficPolicy) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut check = |field: String, pattern: Option<&str>| {
        if let Some(Err(message)) = pattern.map(regex) {
            problems.push(Problem { field, message });
        }
    };
    for (r, rule) in resource.spec.rules.iter().enumerate() {
        for (m, matching) in rule.matches.iter().enumerate() {
            let at = format!("spec.rules[{r}].match[{m}]");
            check(format!("{at}.path.regex"), matching.path.as_ref().and_then(|p| p.regex.as_deref()));
            for (h, header) in matching.headers.iter().enumerate() {
                check(format!("{at}.headers[{h}].regex"), header.regex.as_deref());
            }
        }
    }
    problems
}

fn bad_keys(field: String, labels: &BTreeMap<String, String>) -> Vec<Problem> {
    labels
        .keys()
        .filter(|key| !is_label_key(key))
        .map(|key| Problem {
            field: field.clone(),
            message: format!(
                "`{}` is not a label key: use letters, digits, dashes, dots and underscores, at most 63 of them, after an optional domain and slash",
                key.chars().take(80).collect::<String>()
            ),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn policy(spec: serde_json::Value) -> TrafficPolicy {
        TrafficPolicy::new("p", serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn the_field_of_a_bad_expression_is_named() {
        let bad = policy(json!({"targetRefs": [{"kind": "Service", "name": "a"}], "rules": [
            {"match": [{"path": {"regex": "/ok"}}]},
            {"match": [{"method": "GET"}, {"path": {"regex": "("}, "headers": [{"name": "x", "regex": "[" }]}]},
        ]}));
        let fields: Vec<_> = traffic_policy(&bad).into_iter().map(|p| p.field).collect();
        assert_eq!(fields, ["spec.rules[1].match[1].path.regex", "spec.rules[1].match[1].headers[0].regex"]);
    }

    #[test]
    fn a_bad_label_key_of_a_priority_is_named() {
        let spec = json!({"target": {"service": "a"}, "balancer": {"failover": [{"labels": {"a b": "c"}}]}});
        let problems = mesh_service(&MeshService::new("m", serde_json::from_value(spec).unwrap()));
        assert_eq!(
            problems.iter().map(|p| &*p.field).collect::<Vec<_>>(),
            ["spec.balancer.failover[0].labels"]
        );
    }

    #[test]
    fn a_bad_label_key_is_named() {
        let bad = MeshService::new(
            "m",
            serde_json::from_value(json!({"target": {"service": "a"}, "subsets": [{"name": "v1", "labels": {"a b": "c", "ok": "d"}}]}))
                .unwrap(),
        );
        let problems = mesh_service(&bad);
        assert_eq!(problems.len(), 1);
        assert!(
            problems[0].to_string().starts_with("spec.subsets[0].labels: `a b` is not a label key"),
            "{}",
            problems[0]
        );
    }
}
