//! TrafficPolicy: how long a request may take, which failures are tried again, where copies go, and tries beside slow ones.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;
use weft_api::Reason;
use weft_e2e::statistics::{binomial_bounds, expect_share};
use weft_e2e::{App, Client, Injection, Namespace, eventually, scenario};

use super::policy::policy;
use super::resilience::toggle;

const SOON: Duration = Duration::from_secs(15);

/// A service whose endpoints are asked in turn, and never ejected.
fn in_turn(service: &str) -> Value {
    json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "MeshService", "metadata": { "name": service },
        "spec": { "target": { "service": service }, "balancer": { "policy": "RoundRobin" },
            "health": { "outlier": { "consecutiveFailures": 0 } } } })
}

/// What `grpc` of the test application prints.
fn grpc(client: &Client<'_>, more: &[&str]) -> Result<Value> {
    let mut command = vec!["/testapp", "grpc", "back:9000", "--json"];
    command.extend(more);
    let printed = client.run(&command)?;
    Ok(serde_json::from_str(printed.trim())?)
}

fn grpc_policy(rules: Value) -> Value {
    let mut policy = policy("back", rules);
    policy["spec"]["targetRefs"][0]["port"] = 9000.into();
    policy
}

#[test]
fn listed_statuses_are_retried() {
    scenario("retry-codes", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        ns.apply_json(&in_turn("back"))?;
        let failures = || -> Result<u64> {
            let replies = client.get_many("http://back/fail?share=0.3&status=429", 300, 4, &[])?;
            Ok(replies.iter().filter(|r| r.status != 200).count() as u64)
        };
        let retry = |code: u16| {
            policy(
                "back",
                json!([{ "retry": { "attempts": 6, "statusCodes": [code], "backoff": "1ms", "maxBackoff": "2ms",
                "budget": { "percent": 100, "minPerSecond": 1000 } } }]),
            )
        };
        ns.apply_json(&retry(425))?;
        expect_share("failures that nobody listed", failures()?, 300, 0.3)?;
        ns.apply_json(&retry(429))?;
        eventually("429 is retried", SOON, || {
            let failed = failures()?;
            ensure!(failed <= binomial_bounds(300, 0.0003).1, "{failed} of 300 failed with retries");
            Ok(())
        })
    });
}

#[test]
fn a_body_beyond_the_bound_is_not_sent_again() {
    scenario("retry-body", Injection::Label, |ns| {
        App::new("back").replicas(2).deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        ns.apply_json(&in_turn("back"))?;
        ns.apply_json(&policy("back", json!([{ "retry": { "attempts": 1, "retryOn": ["GatewayError"], "nonIdempotent": true, "maxBodyBytes": 100,
            "backoff": "1ms", "budget": { "percent": 100, "minPerSecond": 1000 } } }])))?;
        let sick = ns.cluster.ready_pods(&ns.name, "app=back")?.swap_remove(0);
        toggle(ns, &sick, true)?;
        let failed = |size: usize| -> Result<usize> {
            let body = "x".repeat(size);
            let replies = client.get_many("http://back/", 40, 1, &["-d", &body])?;
            Ok(replies.iter().filter(|r| r.status != 200).count())
        };
        eventually("a short body is sent again", SOON, || {
            let failed = failed(100)?;
            ensure!(failed == 0, "{failed} of 40 failed");
            Ok(())
        })?;
        let failed = failed(101)?;
        ensure!(failed >= 10, "only {failed} of 40 failed, although half of them go to a sick replica first");
        Ok(())
    });
}

#[test]
fn grpc_statuses_are_retried_also_in_trailers() {
    scenario("retry-grpc", Injection::Label, |ns| {
        App::new("back").replicas(2).deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        ns.apply_json(&in_turn("back"))?;
        let sick = ns.cluster.ready_pods(&ns.name, "app=back")?.swap_remove(0);
        toggle(ns, &sick, true)?;
        // One stream with one message each: the replica sends its head, and then fails.
        let failures = |more: &[&str]| -> Result<usize> {
            let mut failed = 0;
            for _ in 0..6 {
                failed +=
                    usize::from(grpc(&client, more)?["errors"].as_object().is_some_and(|e| !e.is_empty()));
            }
            Ok(failed)
        };
        eventually("half of the calls fail", SOON, || {
            ensure!(failures(&["-n", "1"])? == 3 && failures(&["-n", "1", "--stream"])? == 3, "not half");
            Ok(())
        })?;
        ns.apply_json(&grpc_policy(json!([{ "retry": { "attempts": 1, "grpcStatuses": ["Unavailable", "ResourceExhausted"], "nonIdempotent": true,
            "backoff": "1ms", "budget": { "percent": 100, "minPerSecond": 1000 } } }])))?;
        eventually("no call fails", SOON, || {
            let (unary, streams) = (failures(&["-n", "1"])?, failures(&["-n", "1", "--stream"])?);
            ensure!(unary == 0 && streams == 0, "of 6 each {unary} calls and {streams} streams failed");
            Ok(())
        })?;
        // Another status is none of its business.
        let denied = grpc(&client, &["-n", "1", "--code", "7"])?;
        ensure!(denied["errors"].to_string().contains("PermissionDenied"), "{denied}");
        let without = grpc_policy(json!([{ "retry": { "grpcStatuses": ["Unavailable"] } }]));
        let refused = ns.apply_refused(&without.to_string())?;
        ensure!(refused.contains("nonIdempotent: true"), "{refused}");
        Ok(())
    });
}

#[test]
fn the_deadline_of_a_grpc_call_is_kept_by_the_rule_and_told() {
    scenario("grpc-deadline", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        let pod = ns.cluster.ready_pods(&ns.name, "app=back")?.swap_remove(0);
        let slow = "http://127.0.0.1:8080/toggle?delay=2s";
        ns.cluster.exec(&ns.name, &pod, "app", &["/testapp", "get", slow])?;
        let calls = grpc(&client, &["-n", "1", "--timeout", "10s"])?;
        ensure!(calls["errors"].as_object().is_some_and(serde_json::Map::is_empty), "{calls}");
        ns.apply_json(&grpc_policy(json!([{ "timeout": "300ms" }])))?;
        eventually("the rule's timeout is the call's deadline", SOON, || {
            let calls = grpc(&client, &["-n", "1", "--timeout", "10s"])?;
            ensure!(calls["errors"].to_string().contains("DeadlineExceeded"), "{calls}");
            ensure!(calls["reasons"][Reason::RequestTimeout.as_str()] == 1, "{calls}");
            Ok(())
        })
    });
}

#[test]
fn silence_ends_a_request_with_its_reason() {
    scenario("idle-timeout", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        client.get("http://back/delay/1s")?.expect(200)?;
        ns.apply_json(&policy("back", json!([{ "idleTimeout": "500ms" }])))?;
        eventually("the idle timeout is in force", SOON, || {
            client.get("http://back/delay/3s")?.expect_reason(504, Reason::IdleTimeout)
        })?;
        // Three times as long in all, and never silent.
        client.get("http://back/stream?n=15&interval=100ms")?.expect(200)?;
        Ok(())
    });
}

fn served(ns: &Namespace, service: &str) -> Result<u64> {
    let pod = ns.cluster.ready_pods(&ns.name, &format!("app={service}"))?.swap_remove(0);
    let printed =
        ns.cluster.exec(&ns.name, &pod, "app", &["/testapp", "get", "http://127.0.0.1:8080/", "--json"])?;
    let line = printed.lines().next().context("nothing printed")?;
    let reply: Value = serde_json::from_str(line)?;
    // This one too is counted.
    reply["body"]["count"].as_u64().with_context(|| format!("no count in {reply}"))
}

#[test]
fn copies_go_to_another_service_and_their_answers_nowhere() {
    scenario("mirror", Injection::Label, |ns| {
        App::new("back").apply(ns)?;
        App::new("next").deploy(ns)?;
        App::new("back").ready(ns)?;
        let client = Client::deploy(ns, "client")?;
        client.get("http://back/")?.expect(200)?;
        ns.apply_json(&policy("back", json!([{ "mirror": { "service": "next" } }])))?;
        eventually("the copies arrive", SOON, || {
            let before = served(ns, "next")?;
            let replies = client.get_many("http://back/", 50, 2, &["-d", "hello"])?;
            ensure!(replies.iter().all(|r| r.status == 200 && r.pod().starts_with("back")), "{}", replies[0]);
            ensure!(replies.iter().all(|r| r.seen_header("weft-mirror").is_none()), "{}", replies[0]);
            std::thread::sleep(Duration::from_millis(300));
            let copies = served(ns, "next")? - before - 1;
            ensure!(copies == 50, "{copies} copies of 50 requests");
            Ok(())
        })?;
        // A copy that fails is nobody's failure.
        let pod = ns.cluster.ready_pods(&ns.name, "app=next")?.swap_remove(0);
        toggle(ns, &pod, true)?;
        let replies = client.get_many("http://back/", 50, 2, &[])?;
        ensure!(replies.iter().all(|r| r.status == 200), "requests failed with their copies");
        toggle(ns, &pod, false)?;
        ns.apply_json(&policy("back", json!([{ "mirror": { "service": "next", "percent": 20 } }])))?;
        eventually("a fifth is copied", SOON, || {
            let before = served(ns, "next")?;
            client.get_many("http://back/", 500, 4, &[])?;
            std::thread::sleep(Duration::from_millis(300));
            expect_share("copies", served(ns, "next")? - before - 1, 500, 0.2)
        })
    });
}

#[test]
fn a_slow_replica_is_hidden_by_a_second_try() {
    scenario("hedge", Injection::Label, |ns| {
        App::new("back").replicas(2).deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        ns.apply_json(&in_turn("back"))?;
        let slow = ns.cluster.ready_pods(&ns.name, "app=back")?.swap_remove(0);
        let toggle = "http://127.0.0.1:8080/toggle?delay=3s";
        ns.cluster.exec(&ns.name, &slow, "app", &["/testapp", "get", toggle])?;
        let slowest = |more: &[&str]| -> Result<f64> {
            let replies = client.get_many("http://back/", 10, 1, more)?;
            ensure!(replies.iter().all(|r| r.status == 200), "{}", replies[0]);
            Ok(replies.iter().map(|r| r.ms).fold(0.0, f64::max))
        };
        eventually("one of two takes long", SOON, || {
            let ms = slowest(&[])?;
            ensure!(ms > 2_900.0, "the slowest took {ms} ms");
            Ok(())
        })?;
        ns.apply_json(&policy(
            "back",
            json!([{ "hedge": { "delay": "100ms" }, "retry": { "budget": { "percent": 100, "minPerSecond": 100 } } }]),
        ))?;
        eventually("none takes long", SOON, || {
            let ms = slowest(&[])?;
            ensure!(ms < 2_000.0, "the slowest took {ms} ms");
            Ok(())
        })?;
        let ms = slowest(&["-X", "POST"])?;
        ensure!(ms > 2_900.0, "a POST was hedged: the slowest took {ms} ms");
        Ok(())
    });
}
