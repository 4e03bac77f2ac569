//! Bad resources are refused when they are applied, by a sentence that names the field and the remedy.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weft_e2e::{App, Injection, scenario};

fn resource(kind: &str, name: &str, spec: &Value) -> String {
    json!({ "apiVersion": "weft.dev/v1alpha1", "kind": kind, "metadata": { "name": name }, "spec": spec })
        .to_string()
}

fn rules(rules: &Value) -> Value {
    json!({ "targetRefs": [{ "kind": "Service", "name": "back" }], "rules": rules })
}

fn mesh_service(more: &Value) -> Value {
    let mut spec = json!({ "target": { "service": "back" } });
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    spec
}

#[test]
fn what_a_schema_can_see_is_refused_with_field_and_remedy() {
    scenario("refused", Injection::None, |ns| {
        App::new("back").replicas(0).apply(ns)?;
        let cases: Vec<(&str, Value, &[&str])> = vec![
            (
                "TrafficPolicy",
                rules(&json!([{ "split": [{ "subset": "v1", "weight": 0 }] }])),
                &["split", "above 0"],
            ),
            (
                "TrafficPolicy",
                rules(&json!([{ "split": [{ "weight": 1 }, { "weight": 2 }] }])),
                &["split", "merge"],
            ),
            (
                "TrafficPolicy",
                rules(&json!([{ "split": [{ "weight": -1 }] }])),
                &["weight", "greater than or equal to 0"],
            ),
            ("TrafficPolicy", rules(&json!([{ "match": [{}] }])), &["match", "leave match out"]),
            (
                "TrafficPolicy",
                rules(&json!([{ "match": [{ "path": { "exact": "/a", "prefix": "/b" } }] }])),
                &["path", "exactly one"],
            ),
            (
                "TrafficPolicy",
                rules(&json!([{ "match": [{ "path": { "prefix": "a" } }] }])),
                &["path.prefix", "begin with '/'"],
            ),
            (
                "TrafficPolicy",
                rules(&json!([{ "match": [{ "method": "get" }] }])),
                &["method", "capital letters"],
            ),
            (
                "TrafficPolicy",
                rules(&json!([{ "match": [{ "headers": [{ "name": "x:y", "exact": "1" }] }] }])),
                &["headers", "without colon"],
            ),
            ("TrafficPolicy", rules(&json!([{ "timeout": "soon" }])), &["timeout"]),
            ("TrafficPolicy", rules(&json!([{ "timeout": "0s" }])), &["timeout", "longer than zero"]),
            (
                "TrafficPolicy",
                rules(&json!([{ "timeout": "1s", "retry": { "perTryTimeout": "2s" } }])),
                &["perTryTimeout", "raise timeout"],
            ),
            (
                "TrafficPolicy",
                rules(&json!([{ "retry": { "attempts": 11 } }])),
                &["attempts", "less than or equal to 10"],
            ),
            (
                "TrafficPolicy",
                rules(&json!([{ "retry": { "retryOn": ["Sometimes"] } }])),
                &["retryOn", "ConnectFailure"],
            ),
            (
                "TrafficPolicy",
                rules(&json!([{ "rewrite": { "path": { "prefix": "/a" } } }])),
                &["replaces the prefix that matched", "path.full"],
            ),
            (
                "TrafficPolicy",
                rules(&json!([{ "headers": { "request": { "set": [{ "name": "Host", "value": "a" }] } } }])),
                &["rewrite.host"],
            ),
            (
                "TrafficPolicy",
                rules(&json!([{ "redirect": { "host": "a" }, "timeout": "1s" }])),
                &["sends the request nowhere", "timeout"],
            ),
            (
                "TrafficPolicy",
                rules(&json!([{ "cors": { "allowOrigins": ["*"], "allowCredentials": true } }])),
                &["allowCredentials", "name the origins"],
            ),
            ("TrafficPolicy", rules(&json!([{ "surprise": 1 }])), &["surprise"]),
            (
                "MeshService",
                mesh_service(&json!({ "circuitBreaker": { "maxConnections": 0 } })),
                &["maxConnections", "greater than or equal to 1"],
            ),
            (
                "MeshService",
                mesh_service(&json!({ "balancer": { "policy": "Fastest" } })),
                &["balancer.policy", "PeakEwma"],
            ),
            (
                "MeshService",
                mesh_service(&json!({ "subsets": [{ "name": "V 1", "labels": { "a": "b" } }] })),
                &["subsets", "lower-case"],
            ),
            (
                "MeshService",
                mesh_service(&json!({ "health": { "outlier": { "ejectionTime": "1h" } } })),
                &["maxEjectionTime", "raise"],
            ),
            ("PeerAuthentication", json!({ "mtls": { "mode": "Sometimes" } }), &["mtls.mode", "Strict"]),
            (
                "PeerAuthentication",
                json!({ "mtls": { "mode": "Strict" }, "portLevelMtls": { "80": { "mode": "Disable" } } }),
                &["portLevelMtls", "selector"],
            ),
            ("AuthorizationPolicy", json!({ "action": "Deny" }), &["does nothing", "add rules"]),
            (
                "AuthorizationPolicy",
                json!({ "action": "Allow", "rules": [{ "to": [{ "paths": [{ "exact": "admin" }] }] }] }),
                &["must begin with '/'"],
            ),
            (
                "AuthorizationPolicy",
                json!({ "action": "Allow", "rules": [{ "from": [{ "identities": ["spiffe://cluster.local/ns/shop*"] }] }] }),
                &["identities[0]", "whole segments"],
            ),
            (
                "PeerAuthentication",
                json!({ "selector": { "matchLabels": { "a": "b" } }, "mtls": { "mode": "Strict" }, "portLevelMtls": { "http": { "mode": "Disable" } } }),
                &["portLevelMtls", "port numbers"],
            ),
        ];
        for (kind, spec, words) in cases {
            refused_with(ns, &resource(kind, "subject", &spec), words)?;
        }
        Ok(())
    });
}

fn refused_with(ns: &weft_e2e::Namespace, manifest: &str, words: &[&str]) -> Result<()> {
    let said = ns.apply_refused(manifest)?;
    for word in words {
        ensure!(said.contains(word), "the refusal does not say `{word}`: {said}\n{manifest}");
    }
    Ok(())
}

#[test]
fn what_only_the_cluster_knows_is_refused_by_the_webhook() {
    scenario("refused-cross", Injection::None, |ns| {
        App::new("back").replicas(0).apply(ns)?;
        ns.apply(&resource(
            "MeshService",
            "back",
            &mesh_service(&json!({ "subsets": [{ "name": "v1", "labels": { "version": "v1" } }] })),
        ))?;

        let to_nowhere = rules(&json!([{ "split": [{ "subset": "v9", "weight": 1 }] }]));
        refused_with(ns, &resource("TrafficPolicy", "nowhere", &to_nowhere), &["v9", "subset"])?;

        ns.apply(&resource("TrafficPolicy", "first", &rules(&json!([{ "timeout": "1s" }]))))?;
        refused_with(
            ns,
            &resource("TrafficPolicy", "second", &rules(&json!([{ "timeout": "2s" }]))),
            &["first", "back"],
        )?;

        refused_with(ns, &resource("MeshService", "again", &mesh_service(&json!({}))), &["back"])?;

        let bad_pattern = rules(&json!([{ "match": [{ "path": { "regex": "/(" } }] }]));
        refused_with(ns, &resource("TrafficPolicy", "first", &bad_pattern), &["regex"])?;

        let regex = json!({ "pattern": "/(a)", "substitution": "/$2" });
        let bad_group = rules(&json!([{ "rewrite": { "path": { "regex": regex } } }]));
        refused_with(ns, &resource("TrafficPolicy", "first", &bad_group), &["substitution", "group $2"])?;

        ns.apply(&resource("PeerAuthentication", "one", &json!({ "mtls": { "mode": "Strict" } })))?;
        refused_with(
            ns,
            &resource("PeerAuthentication", "two", &json!({ "mtls": { "mode": "Permissive" } })),
            &["one"],
        )?;
        Ok(())
    });
}

#[test]
fn kubectl_explain_reads_like_a_manual() {
    scenario("explain", Injection::None, |ns| {
        for (field, words) in [
            ("meshservice", &["FIELDS", "spec"][..]),
            ("meshservice.spec.balancer.policy", &["PeakEwma", "LeastRequest"]),
            ("meshservice.spec.circuitBreaker.maxConnections", &["Default: 1024"]),
            ("trafficpolicy.spec.rules.timeout", &["Default"]),
            ("trafficpolicy.spec.rules.retry.attempts", &["Default: 2"]),
            ("peerauthentication.spec.mtls.mode", &["Strict"]),
            ("authorizationpolicy.spec.action", &["refused"]),
        ] {
            let text = ns.cluster.kubectl(&["explain", field])?;
            for word in words {
                ensure!(text.contains(word), "`kubectl explain {field}` does not say `{word}`:\n{text}");
            }
        }
        Ok(())
    });
}

#[test]
fn lists_show_what_matters() {
    scenario("columns", Injection::None, |ns| {
        App::new("back").replicas(0).apply(ns)?;
        ns.apply(&resource("MeshService", "back", &mesh_service(&json!({}))))?;
        let table = ns.cluster.kubectl(&["get", "msvc", "-n", &ns.name])?.to_lowercase();
        ensure!(table.contains("back") && table.contains("accepted") && table.contains("applied"), "{table}");
        Ok(())
    });
}
