//! MeshService: balancing, breakers, ejection.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use weft_api::Reason;
use weft_e2e::statistics::expect_share;
use weft_e2e::traffic::Reply;
use weft_e2e::{App, Client, Injection, eventually, scenario};

fn mesh_service(spec: Value) -> Value {
    let mut object = json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "MeshService", "metadata": { "name": "back" }, "spec": spec });
    object["spec"]["target"] = json!({ "service": "back" });
    object
}

fn by_pod(replies: &[Reply]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for reply in replies.iter().filter(|r| r.status == 200) {
        *counts.entry(reply.pod().to_owned()).or_default() += 1;
    }
    counts
}

#[test]
fn requests_of_one_connection_are_balanced_over_all_replicas() {
    scenario("balance", Injection::Label, |ns| {
        App::new("back").replicas(3).deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        // PeakEwma, the default, prefers the faster replica; all of them must be used nevertheless.
        let counts = eventually("all replicas are used", Duration::from_secs(10), || {
            let counts = by_pod(&client.get_many("http://back/", 600, 2, &[])?);
            ensure!(counts.len() == 3 && counts.values().all(|n| *n >= 30), "by pod: {counts:?}");
            Ok(counts)
        })?;
        ensure!(counts.values().sum::<u64>() == 600, "failures: {counts:?}");
        ns.apply_json(&mesh_service(json!({ "balancer": { "policy": "RoundRobin" } })))?;
        eventually("in turn", Duration::from_secs(10), || {
            let counts = by_pod(&client.get_many("http://back/", 300, 1, &[])?);
            ensure!(counts.values().all(|n| (98..=102).contains(n)), "by pod: {counts:?}");
            Ok(())
        })?;
        ns.apply_json(&mesh_service(json!({ "balancer": { "policy": "Random" } })))?;
        eventually("at random", Duration::from_secs(10), || {
            for (pod, n) in by_pod(&client.get_many("http://back/", 900, 2, &[])?) {
                ensure!(n != 300, "exactly a third: still in turn");
                expect_share(&pod, n, 900, 1.0 / 3.0)?;
            }
            Ok(())
        })
    });
}

#[test]
fn endpoint_weights_are_honoured() {
    scenario("endpoint-weights", Injection::Label, |ns| {
        let client = super::policy::two_versions(ns)?;
        ns.apply_json(&mesh_service(json!({ "balancer": { "policy": "Random", "weights": [{ "labels": { "version": "v2" }, "weight": 25 }] } })))?;
        eventually("v2 gets a fifth", Duration::from_secs(10), || {
            let replies = client.get_many("http://back/", 1000, 4, &[])?;
            let v2 = replies.iter().filter(|r| r.version() == "v2").count() as u64;
            expect_share("v2 with weight 25 beside 100", v2, 1000, 0.2)
        })
    });
}

#[test]
fn a_rule_has_a_breaker_of_its_own() {
    scenario("rule-breaker", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        ns.apply_json(&super::policy::policy(
            "back",
            json!([{ "match": [{ "path": { "prefix": "/delay" } }], "circuitBreaker": { "maxConcurrentRequests": 2 } }]),
        ))?;
        eventually("two of the rule pass, the others are refused", Duration::from_secs(15), || {
            let replies = client.get_many("http://back/delay/1s", 10, 10, &[])?;
            let open = |r: &&Reply| r.status == 503 && r.reason() == Reason::BreakerOpen.as_str();
            let refused = replies.iter().filter(open).count();
            ensure!(refused == 8, "{refused} refused");
            Ok(())
        })?;
        let others = client.get_many("http://back/", 50, 10, &[])?;
        ensure!(others.iter().all(|r| r.status == 200), "the service's other requests are bounded too");
        Ok(())
    });
}

#[test]
fn a_rule_bounds_how_many_of_its_requests_wait_for_a_connection() {
    scenario("rule-pending", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        ns.apply_json(&mesh_service(json!({ "circuitBreaker": { "maxConnections": 1 } })))?;
        ns.apply_json(&super::policy::policy(
            "back",
            json!([{ "match": [{ "path": { "prefix": "/delay" } }], "circuitBreaker": { "maxPendingRequests": 2 } }]),
        ))?;
        eventually(
            "one is served, two wait for its connection, the others are refused",
            Duration::from_secs(20),
            || {
                let replies = client.get_many("http://back/delay/500ms", 10, 10, &[])?;
                let pending = |r: &&Reply| r.status == 503 && r.reason() == Reason::BreakerPending.as_str();
                let refused = replies.iter().filter(pending).count();
                let served = replies.iter().filter(|r| r.status == 200).count();
                ensure!(
                    (7..=8).contains(&refused) && served + refused == 10,
                    "{served} served, {refused} refused"
                );
                Ok(())
            },
        )?;
        let others = client.get_many("http://back/", 20, 5, &[])?;
        ensure!(others.iter().all(|r| r.status == 200), "the service's other requests are bounded too");
        Ok(())
    });
}

#[test]
fn adaptive_concurrency_refuses_what_is_beyond_its_limit_and_shows_it() {
    scenario("adaptive", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        ns.apply_json(&mesh_service(json!({ "adaptiveConcurrency": { "minLimit": 2, "maxLimit": 4 } })))?;
        eventually("no more than the limit pass", Duration::from_secs(20), || {
            let replies = client.get_many("http://back/delay/1s", 12, 12, &[])?;
            let served = replies.iter().filter(|r| r.status == 200).count();
            let refused = replies.iter().filter(|r| r.reason() == Reason::AdaptiveLimit.as_str()).count();
            ensure!(
                (2..=4).contains(&served) && served + refused == 12,
                "{served} served, {refused} refused"
            );
            Ok(())
        })
    });
}

#[test]
fn a_breaker_refuses_what_goes_beyond_and_says_why() {
    scenario("breaker", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        ns.apply_json(&mesh_service(json!({ "circuitBreaker": { "maxConcurrentRequests": 2 } })))?;
        eventually("two pass, the others are refused at once", Duration::from_secs(15), || {
            let replies = client.get_many("http://back/delay/1s", 10, 10, &[])?;
            let served = replies.iter().filter(|r| r.status == 200).count();
            let refused: Vec<_> = replies
                .iter()
                .filter(|r| r.status == 503 && r.reason() == Reason::BreakerOpen.as_str())
                .collect();
            ensure!(
                served == 2 && refused.len() == 8,
                "{served} served, {} refused: {}",
                refused.len(),
                replies[0]
            );
            ensure!(refused.iter().all(|r| r.ms < 500.0), "a refusal took long: {}", refused[0]);
            Ok(())
        })?;
        client.get("http://back/delay/10ms")?.expect(200).context("the breaker did not close again")?;
        Ok(())
    });
}

#[test]
fn a_bound_on_connections_is_kept() {
    scenario("breaker-conns", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        ns.apply_json(&mesh_service(json!({ "circuitBreaker": { "maxConnections": 2 } })))?;
        eventually("two TCP connections are open, the third is closed", Duration::from_secs(15), || {
            let held: Value = serde_json::from_str(&client.run(&[
                "/testapp",
                "conns",
                "back:7000",
                "5",
                "--hold",
                "500ms",
                "--json",
            ])?)?;
            ensure!(held["open"] == 2, "{held}");
            Ok(())
        })
    });
}

#[test]
fn a_failing_replica_is_ejected_and_comes_back_when_it_is_well() {
    scenario("ejection", Injection::Label, |ns| {
        let app = App::new("back").replicas(3);
        app.deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        ns.apply_json(&mesh_service(json!({ "balancer": { "policy": "RoundRobin" },
            "health": { "outlier": { "consecutiveFailures": 3, "ejectionTime": "3s", "maxEjectionTime": "3s" } } })))?;
        eventually("in turn", Duration::from_secs(10), || {
            let counts = by_pod(&client.get_many("http://back/", 90, 1, &[])?);
            ensure!(
                counts.len() == 3 && counts.values().all(|n| (28..=32).contains(n)),
                "by pod: {counts:?}"
            );
            Ok(())
        })?;
        let sick = ns.cluster.ready_pods(&ns.name, "app=back")?.swap_remove(0);
        toggle(ns, &sick, true)?;
        let replies = client.get_many("http://back/", 60, 1, &[])?;
        let failures = replies.iter().filter(|r| r.status != 200).count();
        ensure!(failures == 3, "{failures} failures until the ejection, not 3");
        let after = client.get_many("http://back/", 60, 1, &[])?;
        ensure!(
            by_pod(&after).len() == 2 && after.iter().all(|r| r.status == 200),
            "ejected, yet: {:?}",
            by_pod(&after)
        );
        eventually("the status counts the ejected endpoint", Duration::from_secs(3), || {
            let status = ns.object("meshservice", "back")?["status"].clone();
            ensure!(status["ejected"] == 1, "{status}");
            Ok(())
        })?;
        toggle(ns, &sick, false)?;
        eventually("it is back", Duration::from_secs(20), || {
            let counts = by_pod(&client.get_many("http://back/", 90, 1, &[])?);
            ensure!(counts.get(&sick).is_some_and(|n| *n >= 28), "by pod: {counts:?}");
            Ok(())
        })?;
        eventually("the status knows it", Duration::from_secs(20), || {
            let status = ns.object("meshservice", "back")?["status"].clone();
            ensure!(status["ejected"].as_u64().unwrap_or(0) == 0, "{status}");
            Ok(())
        })
    });
}

/// Lets one replica fail everything, or stop failing, by a call from inside it.
pub fn toggle(ns: &weft_e2e::Namespace, pod: &str, fail: bool) -> Result<()> {
    let url = format!("http://127.0.0.1:8080/toggle?fail={fail}");
    ns.cluster.exec(&ns.name, pod, "app", &["/testapp", "get", &url]).map(drop)
}

#[test]
fn no_endpoint_at_all_is_said_so() {
    scenario("no-endpoint", Injection::Label, |ns| {
        App::new("back").replicas(0).apply(ns)?;
        let client = Client::deploy(ns, "client")?;
        client.get("http://back/")?.expect_reason(503, Reason::NoHealthyEndpoint)?;
        ns.cluster.kubectl(&["scale", "deploy/back", "-n", &ns.name, "--replicas=1"])?;
        App::new("back").ready(ns)?;
        eventually("the new endpoint is used", Duration::from_secs(5), || {
            client.get("http://back/")?.expect(200)
        })
        .map(drop)
    });
}
