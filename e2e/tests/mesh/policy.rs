//! TrafficPolicy: where requests go, for how long, and how often they are tried.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use weft_api::Reason;
use weft_e2e::statistics::{binomial_bounds, expect_share};
use weft_e2e::{App, Client, Injection, Namespace, eventually, scenario};

const SOON: Duration = Duration::from_secs(10);

/// A MeshService with the subsets `v1` and `v2`.
pub fn versions(service: &str) -> Value {
    json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "MeshService", "metadata": { "name": service }, "spec": {
        "target": { "service": service },
        "subsets": [{ "name": "v1", "labels": { "version": "v1" } }, { "name": "v2", "labels": { "version": "v2" } }] } })
}

/// A TrafficPolicy for port 80 of a Service.
pub fn policy(service: &str, rules: Value) -> Value {
    json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": { "name": service }, "spec": {
        "targetRefs": [{ "kind": "Service", "name": service, "port": 80 }], "rules": rules } })
}

/// `back` in two versions, its subsets, and a client.
pub fn two_versions(ns: &Namespace) -> Result<Client<'_>> {
    App::new("back").apply(ns)?;
    App::new("back").version("v2").without_service().deploy(ns)?;
    App::new("back").ready(ns)?;
    ns.apply_json(&versions("back"))?;
    Client::deploy(ns, "client")
}

#[test]
fn a_split_is_kept_within_what_chance_allows() {
    scenario("weights", Injection::Label, |ns| {
        let client = two_versions(ns)?;
        for (v1, v2) in [(90, 10), (1, 3)] {
            ns.apply_json(&policy(
                "back",
                json!([{ "split": [{ "subset": "v1", "weight": v1 }, { "subset": "v2", "weight": v2 }] }]),
            ))?;
            let share = f64::from(v2) / f64::from(v1 + v2);
            eventually("the split holds", SOON, || {
                let replies = client.get_many("http://back/", 1000, 4, &[])?;
                ensure!(replies.iter().all(|r| r.status == 200), "failures under a split");
                let to_v2 = replies.iter().filter(|r| r.version() == "v2").count() as u64;
                expect_share(&format!("{v1}/{v2} to v2"), to_v2, 1000, share)
            })?;
        }
        ns.apply_json(&policy(
            "back",
            json!([{ "split": [{ "subset": "v1", "weight": 0 }, { "subset": "v2", "weight": 1 }] }]),
        ))?;
        eventually("weight 0 gets nothing", SOON, || {
            let replies = client.get_many("http://back/", 200, 4, &[])?;
            ensure!(replies.iter().all(|r| r.version() == "v2"), "v1 with weight 0 was called");
            Ok(())
        })
    });
}

#[test]
fn rules_match_by_path_header_and_method_and_the_first_counts() {
    scenario("match", Injection::Label, |ns| {
        let client = two_versions(ns)?;
        let v2 = json!([{ "subset": "v2", "weight": 1 }]);
        ns.apply_json(&policy("back", json!([
            { "match": [{ "path": { "exact": "/exact" } }, { "path": { "prefix": "/new" } }, { "path": { "regex": "/item/[0-9]+" } }], "split": v2 },
            { "match": [{ "headers": [{ "name": "X-Canary", "exact": "yes" }] }], "split": v2 },
            { "match": [{ "method": "DELETE" }], "split": v2 },
            { "split": [{ "subset": "v1", "weight": 1 }] }
        ])))?;
        eventually("the policy is in force", SOON, || {
            let reply = client.get("http://back/exact")?;
            ensure!(reply.version() == "v2", "{reply}");
            Ok(())
        })?;
        let cases: [(&str, &[&str], &str); 12] = [
            ("/exact", &[], "v2"),
            ("/exact?query=1", &[], "v2"),
            ("/exact/more", &[], "v1"),
            ("/new", &[], "v2"),
            ("/new/thing", &[], "v2"),
            ("/newer", &[], "v1"),
            ("/item/42", &[], "v2"),
            ("/item/42x", &[], "v1"),
            ("/", &["-H", "x-canary: yes"], "v2"),
            ("/", &["-H", "x-canary: no"], "v1"),
            ("/", &["-X", "DELETE"], "v2"),
            ("/", &[], "v1"),
        ];
        for (path, more, expected) in cases {
            let reply = client.get_with(&format!("http://back{path}"), more)?.expect(200)?;
            ensure!(
                reply.version() == expected,
                "{path} {more:?} went to {}, not {expected}",
                reply.version()
            );
        }
        Ok(())
    });
}

#[test]
fn a_timeout_ends_a_slow_request_with_its_reason_in_time() {
    scenario("timeout", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        client.get("http://back/delay/700ms")?.expect(200)?;
        ns.apply_json(&policy("back", json!([{ "timeout": "300ms" }])))?;
        eventually("the timeout is in force", SOON, || client.get("http://back/delay/2s")?.expect(504))?;
        let reply = client.get("http://back/delay/2s")?.expect_reason(504, Reason::RequestTimeout)?;
        ensure!((280.0..900.0).contains(&reply.ms), "answered after {} ms", reply.ms);
        client.get("http://back/delay/50ms")?.expect(200)?;
        Ok(())
    });
}

#[test]
fn failed_requests_are_retried_and_posts_only_when_that_is_asked_for() {
    scenario("retry", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        // Ejection would take the only replica out; the failures here are of the requests, not of the replica.
        ns.apply_json(&json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "MeshService", "metadata": { "name": "back" },
            "spec": { "target": { "service": "back" }, "health": { "outlier": { "consecutiveFailures": 0 } } } }))?;
        let failures = |more: &[&str]| -> Result<u64> {
            Ok(client
                .get_many("http://back/fail?share=0.3", 300, 4, more)?
                .iter()
                .filter(|r| r.status != 200)
                .count() as u64)
        };
        expect_share("failures without a policy", failures(&[])?, 300, 0.3)?;

        let retry = |non_idempotent: bool| {
            policy(
                "back",
                json!([{ "retry": { "attempts": 6, "retryOn": ["ServerError"], "backoff": "1ms", "maxBackoff": "2ms",
                "nonIdempotent": non_idempotent, "budget": { "percent": 100, "minPerSecond": 1000 } } }]),
            )
        };
        ns.apply_json(&retry(false))?;
        // Seven tries in a row fail with 0.3^7 = 0.0002.
        eventually("GETs are retried", SOON, || {
            let failed = failures(&[])?;
            ensure!(failed <= binomial_bounds(300, 0.0003).1, "{failed} of 300 GETs failed with retries");
            Ok(())
        })?;
        expect_share("failures of POST", failures(&["-X", "POST"])?, 300, 0.3)?;
        ns.apply_json(&retry(true))?;
        eventually("POSTs are retried when the policy says so", SOON, || {
            let failed = failures(&["-X", "POST"])?;
            ensure!(failed <= binomial_bounds(300, 0.0003).1, "{failed} of 300 POSTs failed with retries");
            Ok(())
        })
    });
}

#[test]
fn retries_stop_where_the_budget_ends() {
    scenario("budget", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        ns.apply_json(&json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "MeshService", "metadata": { "name": "back" },
            "spec": { "target": { "service": "back" }, "health": { "outlier": { "consecutiveFailures": 0 } } } }))?;
        ns.apply_json(&policy("back", json!([{ "retry": { "attempts": 10, "retryOn": ["ServerError"], "backoff": "1ms", "maxBackoff": "1ms",
            "budget": { "percent": 10, "minPerSecond": 1 } } }])))?;
        std::thread::sleep(Duration::from_secs(2));
        let before = count(&client)?;
        let began = Instant::now();
        let replies = client.get_many("http://back/status/503", 500, 4, &[])?;
        ensure!(replies.iter().all(|r| r.status == 503), "not all failed");
        let tries = count(&client)? - before - 1;
        let allowed = 500 + 50 + 10 * (began.elapsed().as_secs() + 2);
        ensure!(
            (501..=allowed).contains(&tries),
            "{tries} tries of 500 requests; the budget of 10 % allows at most {allowed}"
        );
        Ok(())
    });
}

/// Requests that the only replica of `back` has served so far.
fn count(client: &Client<'_>) -> Result<u64> {
    let reply = client.get("http://back/")?.expect(200)?;
    let count = reply.body["count"].as_u64();
    count.ok_or_else(|| anyhow::anyhow!("the application does not tell its `count`: {reply}"))
}

#[test]
fn each_try_has_its_own_timeout() {
    scenario("per-try", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        ns.apply_json(&policy(
            "back",
            json!([{ "retry": { "attempts": 1, "perTryTimeout": "200ms", "retryOn": ["GatewayError"] } }]),
        ))?;
        eventually("the timeout is in force", SOON, || client.get("http://back/delay/3s")?.expect(504))?;
        let reply = client.get("http://back/delay/3s")?.expect_reason(504, Reason::PerTryTimeout)?;
        ensure!((380.0..1500.0).contains(&reply.ms), "two tries of 200 ms took {} ms", reply.ms);
        Ok(())
    });
}

#[test]
fn a_split_may_send_to_another_service() {
    scenario("split-service", Injection::Label, |ns| {
        App::new("back").apply(ns)?;
        App::new("other").deploy(ns)?;
        App::new("back").ready(ns)?;
        let client = Client::deploy(ns, "client")?;
        ns.apply_json(&policy("back", json!([{ "split": [{ "service": "other", "weight": 1 }] }])))?;
        eventually("requests go to the other service", SOON, || {
            let reply = client.get("http://back/")?.expect(200)?;
            ensure!(reply.pod().starts_with("other"), "{reply}");
            Ok(())
        })
    });
}
