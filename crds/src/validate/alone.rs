//! What can be said of one resource by itself, beyond its schema and CEL rules.

use super::Problem;
use super::texts::{is_label_key, regex};
use crate::mesh_service::{External, ExternalPort};
use crate::{MeshService, PeerAuthentication, TrafficPolicy};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::collections::BTreeMap;
use std::net::IpAddr;

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
    let labels = subsets.chain(weights).chain(failover).flat_map(|(field, labels)| bad_keys(field, labels));
    labels.chain(spec.target.external.iter().flat_map(external)).collect()
}

/// Addresses that are neither IP addresses nor names, and bundles that are no certificates.
fn external(external: &External) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (i, endpoint) in external.endpoints.iter().enumerate() {
        if endpoint.address.parse::<IpAddr>().is_err() && !is_host(&endpoint.address) {
            problems.push(Problem {
                field: format!("spec.target.external.endpoints[{i}].address"),
                message: format!(
                    "`{}` is neither an IP address nor a full name in lower case, such as db.example.com: leave out schemes and ports",
                    endpoint.address.chars().take(80).collect::<String>()
                ),
            });
        }
    }
    let address_only =
        |port: &&ExternalPort| port.tls.as_ref().is_some_and(|t| t.sni.as_ref().is_some_and(|n| !is_host(n)));
    for port in external.ports.iter().filter(address_only) {
        problems.push(Problem {
            field: "spec.target.external.ports".into(),
            message: format!(
                "tls.sni of port {} is not a name in lower case, such as api.example.com",
                port.port
            ),
        });
    }
    for port in &external.ports {
        let Some(bundle) = port.tls.as_ref().and_then(|tls| tls.ca_bundle.as_deref()) else { continue };
        if certificates(bundle).is_none() {
            problems.push(Problem {
                field: "spec.target.external.ports".into(),
                message: format!(
                    "tls.caBundle of port {} is not a list of certificates in PEM: paste each from -----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----, and nothing secret",
                    port.port
                ),
            });
        }
    }
    problems
}

/// The certificates (DER) of a bundle; `None` when it holds none, or anything else.
#[must_use]
pub fn certificates(pem: &str) -> Option<Vec<Vec<u8>>> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let all: Vec<Vec<u8>> = all.ok()?.into_iter().map(|der| der.to_vec()).collect();
    (!all.is_empty() && !pem.contains("PRIVATE KEY")).then_some(all)
}

/// A name of a host, whole, in lower case.
fn is_host(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    name.len() <= 253 && name.split('.').all(|l| !l.is_empty() && l.len() <= 63 && l.bytes().all(fits))
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

    #[test]
    fn the_endpoints_of_an_external_service_are_addresses_or_names() {
        let problems = |address: &str, bundle: &str| {
            let spec = json!({"target": {"external": {"hosts": ["a.example"],
                "ports": [{"port": 80, "protocol": "Http1", "tls": {"sni": "a.example", "caBundle": bundle}}],
                "endpoints": [{"address": address}]}}});
            mesh_service(&MeshService::new("m", serde_json::from_value(spec).unwrap()))
        };
        let bundle = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        for good in ["192.0.2.1", "2001:db8::1", "db.example.com", "localhost"] {
            assert_eq!(problems(good, bundle), [], "{good}");
        }
        for bad in ["https://db", "db:80", "Db", "a..b", "[::1]", ""] {
            assert_eq!(problems(bad, bundle)[0].field, "spec.target.external.endpoints[0].address", "{bad}");
        }
        let key = "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n";
        for bad in ["", "no", "-----BEGIN CERTIFICATE-----\n!", key, &format!("{bundle}{key}")] {
            assert!(problems("192.0.2.1", bad)[0].message.contains("is not a list of certificates"), "{bad}");
        }
    }
}
