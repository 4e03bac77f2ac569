//! A stranger calls the webhook. API servers show it no certificate, so that it cannot tell who asks; what it answers changes
//! nothing, is counted, and is told to auditors; what it has written of him are a few Kubernetes Events, however often he asks.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weft_e2e::{Injection, chart, eventually, scenario};

use super::ground::{Attacker, SOON};

const REVIEWS: &str = "weft_webhook_reviews_total";

fn url(path: &str) -> String {
    format!("https://weft-webhook.{}.svc{path}", chart::NAMESPACE)
}

fn ask(attacker: &Attacker<'_>, path: &str, body: &[u8]) -> Result<(String, String)> {
    attacker.put("/tmp/review", body)?;
    let said = attacker.run(&format!(
        "curl -s -k -m 10 -H 'content-type: application/json' --data-binary @/tmp/review -w '\\n%{{http_code}}' {}",
        url(path)
    ))?;
    let (body, status) = said.rsplit_once('\n').unwrap_or_default();
    Ok((status.trim().to_owned(), body.to_owned()))
}

#[test]
fn a_stranger_at_the_webhook_changes_nothing_and_is_counted_and_told_of() {
    scenario("webhook-stranger", Injection::Label, |ns| {
        let attacker = Attacker::deploy(ns)?;
        let count = |labels: &[&str]| attacker.count_of("weft-webhook", REVIEWS, labels);
        let malformed = count(&["outcome=\"Malformed\""])?;
        for (path, body, expected) in [
            ("/mutate/pods", b"no review".to_vec(), "400"),
            ("/validate", b"{}".to_vec(), "400"),
            ("/validate", vec![b'['; 100_000], "400"),
        ] {
            let (status, said) = ask(&attacker, path, &body)?;
            ensure!(status == expected, "{path}: {status} {said}");
        }
        ensure!(count(&["outcome=\"Malformed\""])? >= malformed + 3, "they are not counted");
        // Nothing else is there. Without a body: curl may take the answer that does not wait for one for a broken stream.
        let said = attacker
            .run(&format!("curl -s -k -m 10 -o /dev/null -w '%{{http_code}}' {}", url("/metrics")))?;
        ensure!(said == "404", "/metrics: {said}");

        // A review as the API server sends them, with a name to find it by.
        let policy = json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": { "name": "planted", "namespace": ns.name }, "spec": { "action": "Allow" } });
        let review = json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
            "uid": "stranger", "operation": "CREATE", "namespace": ns.name, "name": "planted",
            "kind": { "group": "weft.dev", "version": "v1alpha1", "kind": "AuthorizationPolicy" },
            "resource": { "group": "weft.dev", "version": "v1alpha1", "resource": "authorizationpolicies" },
            "userInfo": { "username": "stranger-who-says-admin" }, "object": policy } });
        let of_kind = ["kind=\"AuthorizationPolicy\""];
        let before = count(&of_kind)?;
        let (status, said) = ask(&attacker, "/validate", review.to_string().as_bytes())?;
        ensure!(status == "200", "{status} {said}");
        let answer: Value = serde_json::from_str(&said)?;
        ensure!(answer["response"]["allowed"] == true && answer["response"]["patch"].is_null(), "{said}");
        ensure!(count(&of_kind)? > before, "it is not counted");
        let all = ns.cluster.objects(&ns.name, "authorizationpolicies", "")?;
        ensure!(all.is_empty(), "the stranger has made {all:?}");
        eventually("auditors are told of it", SOON, || {
            let mut told = String::new();
            for pod in chart::pods(ns.cluster, "weft-webhook")? {
                told += &ns.cluster.logs(chart::NAMESPACE, &pod, "webhook", 2000);
            }
            let words = ["\"log\":\"audit\"", "stranger-who-says-admin", &ns.name];
            ensure!(told.lines().any(|line| words.iter().all(|word| line.contains(word))), "no event of it");
            Ok(())
        })
    });
}

#[test]
fn a_stranger_who_floods_the_webhook_has_few_events_written() {
    scenario("webhook-flood", Injection::Label, |ns| {
        let attacker = Attacker::deploy(ns)?;
        let told = |result: &str| {
            let label = format!("result=\"{result}\"");
            attacker.count_of("weft-webhook", "weft_webhook_audit_kubernetes_events_total", &[&label])
        };
        let before = told("Dropped")?;
        let begin = std::time::Instant::now();
        // Each refused, and each another one.
        let review = format!(
            r#"{{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{{"uid":"s","operation":"CREATE","namespace":"{}","name":"made-up-'$i'","kind":{{"group":"weft.dev","version":"v1alpha1","kind":"AuthorizationPolicy"}},"userInfo":{{"username":"stranger"}},"object":{{"spec":{{"action":"Nonsense"}}}}}}}}"#,
            ns.name
        );
        let url = url("/validate");
        let said = attacker.run(&format!(
            "i=0; while [ $i -lt 300 ]; do i=$((i+1)); curl -s -k -m 10 -o /dev/null -w '%{{http_code}}\\n' -H 'content-type: application/json' -d '{review}' {url}; done"
        ))?;
        let answered = said.lines().filter(|line| line.trim() == "200").count();
        ensure!(answered == 300, "{answered} of 300 were answered: {said}");
        eventually("what is beyond the bound is counted", SOON, || {
            let dropped = told("Dropped")? - before;
            ensure!(dropped >= 150, "{dropped} dropped");
            Ok(())
        })?;
        let all = ns.cluster.objects(&ns.name, "events", "")?;
        let made_up = |event: &&Value| event["reason"] == "AdmissionDenied";
        let written = all.iter().filter(made_up).count() as u64;
        // Of each replica so many at once, and one more in four seconds.
        let replicas = chart::pods(ns.cluster, "weft-webhook")?.len() as u64;
        let bound = replicas * (30 + begin.elapsed().as_secs() / 4 + 1);
        ensure!((1..=bound).contains(&written), "{written} Events, at most {bound} by {replicas} replicas");
        // Who really asks is still answered.
        ns.apply_json(&json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": { "name": "real" }, "spec": { "action": "Allow" } }))?;
        Ok(())
    });
}
