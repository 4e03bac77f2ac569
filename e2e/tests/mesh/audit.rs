//! What auditors are told by proxy, webhook and operator: decisions, admissions, certificates, changes; and nothing secret.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;
use weft_api::Reason;
use weft_e2e::cluster::name;
use weft_e2e::{App, Client, Injection, Namespace, chart, eventually, scenario};

const SOON: Duration = Duration::from_secs(15);
const PLANTED: &str = "planted-secret-value";

/// The audit events in the log of a container.
fn events(ns: &Namespace, namespace: &str, pod: &str, container: &str) -> Vec<Value> {
    let log = ns.cluster.logs(namespace, pod, container, 20_000);
    let all = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    all.filter(|event| event["log"] == "audit").collect()
}

/// Those of all replicas of one of Weft's own parts that are about this namespace.
fn told_by(ns: &Namespace, part: &str) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for pod in chart::pods(ns.cluster, &format!("weft-{part}"))? {
        all.extend(events(ns, chart::NAMESPACE, &pod, part));
    }
    all.retain(|event| event.to_string().contains(&ns.name));
    Ok(all)
}

fn find(all: &[Value], parts: &[(&str, Value)]) -> Result<Value> {
    let fits = |event: &&Value| parts.iter().all(|(path, value)| event.pointer(path) == Some(value));
    all.iter()
        .find(fits)
        .cloned()
        .with_context(|| format!("none of {} events has {parts:?}: {all:?}", all.len()))
}

fn no_secret(all: &[Value]) -> Result<()> {
    for event in all {
        let text = event.to_string();
        // What a token of a ServiceAccount begins with.
        for secret in [PLANTED, "eyJ", "PRIVATE KEY"] {
            ensure!(!text.contains(secret), "{secret} is in {text}");
        }
    }
    Ok(())
}

#[test]
fn decisions_admissions_certificates_and_changes_are_told_and_no_secret_with_them() {
    scenario("audit", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        let (front, other) = (Client::deploy(ns, "front")?, Client::deploy(ns, "other")?);
        let front_id = format!("spiffe://cluster.local/ns/{}/sa/front", ns.name);
        let policy = json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": { "name": "server", "annotations": { "note": PLANTED } },
            "spec": { "action": "Allow", "audit": true, "selector": { "matchLabels": { "app": "server" } },
                "rules": [{ "name": "front", "from": [{ "identities": [front_id] }],
                    "when": [{ "header": "x-key", "exact": PLANTED }] }] } });
        ns.apply_json(&policy)?;
        let key = format!("x-key: {PLANTED}");
        let secrets = [
            "-H",
            &key,
            "-H",
            "authorization: Bearer planted-secret-value",
            "-H",
            "cookie: a=planted-secret-value",
        ];
        let url = format!("http://server/private?token={PLANTED}");
        eventually("others are refused", SOON, || {
            other.get_with(&url, &secrets)?.expect_reason(403, Reason::PolicyDenied).map(drop)
        })?;
        front.get_with(&url, &secrets)?.expect(200)?;

        let pod = name(&ns.pod("app=server")?);
        let decisions = eventually("the proxy tells of both", SOON, || {
            let all = events(ns, &ns.name, &pod, "weft-proxy");
            let allowed =
                find(&all, &[("/result", "allowed".into()), ("/who/identity", front_id.clone().into())])?;
            ensure!(
                allowed["policies"][0]["rule"] == "front" && allowed["what"]["path"] == "/private",
                "{allowed}"
            );
            let denied = find(&all, &[("/result", "denied".into()), ("/reason", "policy-denied".into())])?;
            ensure!(
                denied["who"]["identity"].as_str().is_some_and(|id| id.ends_with("/sa/other")),
                "{denied}"
            );
            Ok(all)
        })?;
        no_secret(&decisions)?;

        let admissions = told_by(ns, "webhook")?;
        find(
            &admissions,
            &[("/what/kind", "Pod".into()), ("/result", "allowed".into()), ("/reason", "injected".into())],
        )?;
        let applied = find(
            &admissions,
            &[("/what/kind", "AuthorizationPolicy".into()), ("/what/operation", "CREATE".into())],
        )?;
        ensure!(applied["who"]["user"].as_str().is_some_and(|user| !user.is_empty()), "by whom? {applied}");
        let mut refused = policy.clone();
        refused["spec"]["rules"][0]["from"][0]["ipBlocks"] = json!([PLANTED]);
        ns.apply_refused(&refused.to_string())?;
        let admissions = eventually("the refusal is told", SOON, || {
            let all = told_by(ns, "webhook")?;
            find(&all, &[("/what/kind", "AuthorizationPolicy".into()), ("/result", "denied".into())])?;
            Ok(all)
        })?;
        no_secret(&admissions)?;

        in_kubernetes_events(
            ns,
            &[
                ("CertificateIssued", "Pod", "/sa/front"),
                ("Accepted", "AuthorizationPolicy", "generation 1"),
                ("AdmissionAllowed", "AuthorizationPolicy", "CREATE by "),
                ("AdmissionDenied", "AuthorizationPolicy", "UPDATE by "),
                ("Allowed", "AuthorizationPolicy", "/sa/front was allowed by rule front"),
                ("Denied", "AuthorizationPolicy", "/sa/other was denied"),
            ],
        )?;
        ns.delete("authorizationpolicy", "server")?;
        let told = eventually("the operator tells of certificates and changes", SOON, || {
            let all = told_by(ns, "operator")?;
            find(
                &all,
                &[
                    ("/event", "issuance".into()),
                    ("/result", "issued".into()),
                    ("/who/identity", front_id.clone().into()),
                ],
            )?;
            for result in ["accepted", "removed"] {
                find(
                    &all,
                    &[
                        ("/event", "configuration".into()),
                        ("/result", result.into()),
                        ("/what/name", "server".into()),
                    ],
                )?;
            }
            Ok(all)
        })?;
        no_secret(&told)?;
        in_kubernetes_events(ns, &[("Removed", "AuthorizationPolicy", "no longer in force")])
    });
}

/// The same, as `kubectl get events` shows it: of each a reason, the kind of the object, and a part of the text.
fn in_kubernetes_events(ns: &Namespace, wanted: &[(&str, &str, &str)]) -> Result<()> {
    let found = eventually("Kubernetes Events tell of all of it", SOON * 2, || {
        let all = ns.cluster.objects(&ns.name, "events", "")?;
        for (reason, kind, text) in wanted {
            let fits = |event: &&Value| {
                event["reason"] == *reason
                    && event["involvedObject"]["kind"] == *kind
                    && event["message"].as_str().is_some_and(|message| message.contains(text))
            };
            all.iter().find(fits).with_context(|| format!("no {reason} of a {kind}: {all:?}"))?;
        }
        Ok(all)
    })?;
    no_secret(&found)
}

#[test]
fn refusals_that_go_on_are_one_event_that_counts_them() {
    scenario("audit-sums", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        let front = Client::deploy(ns, "front")?;
        ns.apply_json(&json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": { "name": "nobody" },
            "spec": { "action": "Deny", "audit": true, "selector": { "matchLabels": { "app": "server" } },
                "rules": [{ "from": [{ "identities": ["*/sa/front"] }] }] } }))?;
        eventually("front is refused", SOON, || {
            front.get("http://server/")?.expect_reason(403, Reason::PolicyDenied).map(drop)
        })?;
        for _ in 0..20 {
            front.get("http://server/")?.expect_reason(403, Reason::PolicyDenied)?;
        }
        eventually("few Events count them", Duration::from_secs(60), || {
            let mut all = ns.cluster.objects(&ns.name, "events", "")?;
            all.retain(|event| event["reason"] == "Denied" && event["involvedObject"]["name"] == "nobody");
            // One of each replica of the operator that the proxy was connected to.
            ensure!((1..=2).contains(&all.len()), "{} Events: {all:?}", all.len());
            let count = |event: &Value| event["series"]["count"].as_u64().unwrap_or(1);
            let sum: u64 = all.iter().map(count).sum();
            ensure!(sum >= 21, "{sum} of 21: {all:?}");
            let uid =
                ns.cluster.object(&ns.name, "authorizationpolicy", "nobody")?["metadata"]["uid"].clone();
            ensure!(
                all.iter().all(|event| event["involvedObject"]["uid"] == uid),
                "describe does not show them"
            );
            Ok(())
        })
    });
}
