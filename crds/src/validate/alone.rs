//! What can be said of one resource by itself, beyond its schema and CEL rules.

use super::Problem;
use super::texts::{is_label_key, regex, substitution};
use crate::filters::{HeaderEdits, PathSubstitution};
use crate::mesh_service::{External, ExternalPort};
use crate::traffic_policy::Match;
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
        let identity = port.tls.as_ref().and_then(|tls| tls.identity.as_deref());
        if let Some(Err(error)) = identity.map(str::parse::<weft_api::Identity>) {
            problems.push(Problem {
                field: "spec.target.external.ports".into(),
                message: format!("tls.identity of port {}: {error}", port.port),
            });
        }
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

/// Problems of a TrafficPolicy by itself: regular expressions, and headers that are changed twice.
#[must_use]
pub fn traffic_policy(resource: &TrafficPolicy) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (r, rule) in resource.spec.rules.iter().enumerate() {
        let at = format!("spec.rules[{r}]");
        for (m, matching) in rule.matches.iter().enumerate() {
            let at = format!("{at}.match[{m}]");
            problems.extend(bad_patterns(&at, matching));
            problems.extend(bad_identities(&at, matching));
        }
        let rewrite = rule.rewrite.as_ref().and_then(|rewrite| rewrite.path.as_ref()?.regex.as_ref());
        problems
            .extend(rewrite.and_then(|given| bad_substitution(&format!("{at}.rewrite.path.regex"), given)));
        let headers = rule.headers.as_ref();
        for (way, edits) in [
            ("request", headers.and_then(|headers| headers.request.as_ref())),
            ("response", headers.and_then(|headers| headers.response.as_ref())),
        ] {
            problems.extend(edits.and_then(|edits| named_twice(&format!("{at}.headers.{way}"), edits)));
        }
    }
    problems
}

fn bad_patterns(at: &str, matching: &Match) -> Vec<Problem> {
    let path = matching.path.iter().map(|path| (format!("{at}.path.regex"), &path.regex));
    let headers =
        matching.headers.iter().enumerate().map(|(i, h)| (format!("{at}.headers[{i}].regex"), &h.regex));
    let query = matching.query.iter().enumerate().map(|(i, q)| (format!("{at}.query[{i}].regex"), &q.regex));
    path.chain(headers)
        .chain(query)
        .filter_map(|(field, pattern)| {
            let message = regex(pattern.as_deref()?).err()?;
            Some(Problem { field, message })
        })
        .collect()
}

fn bad_identities(at: &str, matching: &Match) -> Vec<Problem> {
    let identities = matching.source.iter().flat_map(|source| source.identities.iter().enumerate());
    identities
        .filter_map(|(i, text)| {
            let error = text.parse::<weft_api::Identity>().err()?;
            let message = format!(
                "{error}: write the identity of a caller, for example spiffe://cluster.local/ns/shop/sa/front"
            );
            Some(Problem { field: format!("{at}.source.identities[{i}]"), message })
        })
        .collect()
}

fn bad_substitution(at: &str, given: &PathSubstitution) -> Option<Problem> {
    let (field, message) = match regex(&given.pattern) {
        Err(message) => ("pattern", message),
        Ok(()) => ("substitution", substitution(&given.pattern, &given.substitution).err()?),
    };
    Some(Problem { field: format!("{at}.{field}"), message })
}

/// A schema sees the same name twice within one list, in the same capitals; not beyond.
fn named_twice(at: &str, edits: &HeaderEdits) -> Option<Problem> {
    let set = edits.set.iter().enumerate().map(|(i, line)| (format!("{at}.set[{i}].name"), &line.name));
    let add = edits.add.iter().enumerate().map(|(i, line)| (format!("{at}.add[{i}].name"), &line.name));
    let remove = edits.remove.iter().enumerate().map(|(i, name)| (format!("{at}.remove[{i}]"), name));
    let mut seen: Vec<&String> = Vec::new();
    for (field, name) in set.chain(add).chain(remove) {
        if seen.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            let message = format!(
                "header {name} is named twice in {at} (upper and lower case are the same): change it once, in set, add or remove"
            );
            return Some(Problem { field, message });
        }
        seen.push(name);
    }
    None
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
    fn the_field_of_a_bad_rewrite_or_parameter_is_named() {
        let rewrite = |pattern: &str, substitution: &str| json!({"rewrite": {"path": {"regex": {"pattern": pattern, "substitution": substitution}}}});
        let bad = policy(json!({"targetRefs": [{"kind": "Service", "name": "a"}], "rules": [
            {"match": [{"query": [{"name": "q", "regex": "("}]}]},
            {"match": [{"source": {"identities": ["spiffe://a/ns/b/sa/c", "spiffe://a/b"]}}]},
            rewrite("/(", "/x"),
            rewrite("/([a-z]+)", "/x/$2"),
            rewrite("/([a-z]+)", "/x/$1$0$$"),
        ]}));
        let problems = traffic_policy(&bad);
        let fields: Vec<_> = problems.iter().map(|p| p.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "spec.rules[0].match[0].query[0].regex",
                "spec.rules[1].match[0].source.identities[1]",
                "spec.rules[2].rewrite.path.regex.pattern",
                "spec.rules[3].rewrite.path.regex.substitution",
            ]
        );
        assert!(problems[3].message.contains("has only 1"), "{}", problems[3]);
    }

    #[test]
    fn a_header_that_is_changed_twice_is_named() {
        let rule = json!({"headers": {"request": {"set": [{"name": "X-A", "value": "1"}], "remove": ["x-b", "x-a"]},
            "response": {"set": [{"name": "x-a", "value": "1"}], "add": [{"name": "x-b", "value": "2"}]}}});
        let bad = policy(json!({"targetRefs": [{"kind": "Service", "name": "a"}], "rules": [rule]}));
        let fields: Vec<_> = traffic_policy(&bad).into_iter().map(|p| p.field).collect();
        assert_eq!(fields, ["spec.rules[0].headers.request.remove[1]"]);
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
