//! Fields that no scenario of its own needs: each applied with kubectl, and seen to act or at least to be in force at the caller's
//! proxy. What they do in detail is tested over real sockets in `proxy/tests`. `crds/tests/audit.rs` says which fields are in no test here.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;
use weft_api::Reason;
use weft_e2e::traffic::Reply;
use weft_e2e::{App, Client, Injection, Namespace, eventually, scenario};

use super::policy::{policy, two_versions};

const SOON: Duration = Duration::from_secs(20);

fn mesh_service(mut spec: Value) -> Value {
    spec["target"] = json!({ "service": "back" });
    json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "MeshService", "metadata": { "name": "back" }, "spec": spec })
}

fn back_and_client(ns: &Namespace) -> Result<Client<'_>> {
    App::new("back").deploy(ns)?;
    let client = Client::deploy(ns, "client")?;
    client.get("http://back/")?.expect(200)?;
    Ok(client)
}

/// What the client's proxy holds of port 80 of `back`.
fn in_force(client: &Client<'_>, ns: &Namespace) -> Result<Value> {
    let printed = client.run(&["/testapp", "get", "http://127.0.0.1:15000/clusters"])?;
    let clusters: Value = serde_json::from_str(printed.trim()).with_context(|| printed.clone())?;
    let name = format!("{}/back:80", ns.name);
    let found = clusters.as_array().into_iter().flatten().find(|cluster| cluster["cluster"] == name.as_str());
    found.cloned().with_context(|| format!("no {name} in {printed}"))
}

fn header<'a>(reply: &'a Reply, name: &str) -> &'a str {
    reply.headers.get(name).map_or("", String::as_str)
}

#[test]
fn what_a_mesh_service_says_of_connections_and_ejection_is_in_force() {
    scenario("fields-service", Injection::Label, |ns| {
        let client = back_and_client(ns)?;
        ns.apply_json(&mesh_service(json!({
            "connection": { "connectTimeout": "1500ms", "idleTimeout": "7s", "maxRequests": 5, "protocol": "Http1" },
            "circuitBreaker": { "maxRetries": 9 },
            "adaptiveConcurrency": { "minLimit": 20, "maxLimit": 400, "tolerancePercent": 50, "baselineInterval": "30s" },
            "balancer": { "policy": "Maglev", "hash": { "sourceIp": true } },
            "health": { "outlier": { "consecutiveGatewayErrors": 4, "interval": "5s",
                "successRate": { "minRequests": 20, "minHosts": 5, "stdevFactor": 1.5 } } },
        })))?;
        let held = eventually("it is in force", SOON, || {
            client.get("http://back/")?.expect(200)?;
            let held = in_force(&client, ns)?;
            ensure!(held["breaker"]["retries"]["max"] == 9, "{held}");
            Ok(held)
        })?;
        for (field, wanted) in [
            ("connect_timeout_ms", json!(1500)),
            ("idle_timeout_ms", json!(7000)),
            ("max_requests_per_connection", json!(5)),
            ("hash", json!("source-ip")),
        ] {
            ensure!(held[field] == wanted, "{field}: {held}");
        }
        let outlier = &held["outlier"];
        ensure!(outlier["consecutive_gateway_errors"] == 4 && outlier["interval_ms"] == 5000, "{outlier}");
        let rate = json!({ "min_requests": 20, "min_hosts": 5, "stdev_factor": 1.5 });
        ensure!(outlier["success_rate"] == rate, "{outlier}");
        let limit = held["adaptive_limit"].as_u64().context("no adaptive limit")?;
        ensure!((20..=400).contains(&limit), "{limit}");
        // A connection that is opened from now on carries five requests.
        let other = Client::deploy(ns, "other")?;
        other.get("http://back/")?.expect(200)?;
        let opened = || -> Result<f64> {
            let metrics = other.run(&["/testapp", "get", "http://127.0.0.1:15020/metrics"])?;
            let line = metrics.lines().find_map(|line| line.strip_prefix("weft_upstream_connects_total "));
            Ok(line.context("no such metric")?.parse()?)
        };
        let before = opened()?;
        other.get_many("http://back/", 50, 1, &[])?;
        let opened = opened()? - before;
        ensure!((9.0..=14.0).contains(&opened), "{opened} connections for 50 requests, 5 on each");
        Ok(())
    });
}

#[test]
fn active_checks_ask_by_each_protocol_what_they_are_told_to() {
    scenario("fields-checks", Injection::Label, |ns| {
        let client = back_and_client(ns)?;
        let checks = |outcome: &str| -> Result<f64> {
            let metrics = client.run(&["/testapp", "get", "http://127.0.0.1:15020/metrics"])?;
            let label = format!("outcome=\"{outcome}\"");
            let lines = metrics.lines();
            let lines = lines.filter(|l| l.starts_with("weft_health_checks_total{") && l.contains(&label));
            Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
        };
        let active = |kind: &str, what: Value| {
            let mut active = json!({ "interval": "1s", "timeout": "1s", "healthyThreshold": 1, "unhealthyThreshold": 2, "jitter": 20 });
            active[kind] = what;
            mesh_service(json!({ "health": { "active": active } }))
        };
        let passes = |what: &str, service: &Value| -> Result<()> {
            ns.apply_json(service)?;
            eventually(what, SOON, || {
                let before = (checks("passed")?, checks("failed")?);
                std::thread::sleep(Duration::from_secs(3));
                let after = (checks("passed")?, checks("failed")?);
                ensure!(after.0 > before.0 && after.1 == before.1, "{before:?}, then {after:?}");
                client.get("http://back/")?.expect(200).map(drop)
            })
        };
        let http = json!({ "path": "/status/404", "host": "check.example", "expectedStatuses": [404] });
        passes("a status that is expected", &active("http", http))?;
        let held = in_force(&client, ns)?["active"].clone();
        ensure!(held["jitter_percent"] == 20 && held["healthy_threshold"] == 1, "{held}");
        ensure!(held["kind"].to_string().contains("check.example"), "{held}");
        ns.apply_json(&active("http", json!({ "path": "/status/404" })))?;
        eventually("one that is not", SOON, || {
            let before = checks("failed")?;
            std::thread::sleep(Duration::from_secs(3));
            ensure!(checks("failed")? > before, "no check failed");
            Ok(())
        })?;
        passes("that the application accepts", &active("tcp", json!({})))?;
        let mut grpc = active("grpc", json!({ "service": "" }));
        grpc["spec"]["health"]["active"]["port"] = 9000.into();
        passes("gRPC's own question, at another port", &grpc)
    });
}

#[test]
fn rules_match_by_presence_add_headers_and_answer_with_whole_paths() {
    scenario("fields-rules", Injection::Label, |ns| {
        let client = back_and_client(ns)?;
        ns.apply_json(&policy("back", json!([
            { "match": [{ "path": { "exact": "/gone" } }],
              "redirect": { "host": "new.example", "port": 8443, "path": { "full": "/all/there" } } },
            { "match": [{ "headers": [{ "name": "x-beta", "present": true }], "query": [{ "name": "stable", "present": false }] }],
              "rewrite": { "path": { "full": "/one/path" } },
              "headers": { "request": { "add": [{ "name": "x-tag", "value": "two" }] },
                           "response": { "add": [{ "name": "x-served", "value": "again" }] } } },
            { "cors": { "allowOrigins": ["https://shop.example"], "allowMethods": ["PUT"], "allowHeaders": ["x-a"], "exposeHeaders": ["x-b"] } }
        ])))?;
        eventually("the policy is in force", SOON, || client.get("http://back/gone")?.expect(302).map(drop))?;
        let reply = client.get("http://back/gone?a=b")?.expect(302)?;
        ensure!(header(&reply, "location").starts_with("http://new.example:8443/all/there"), "{reply}");
        let beta = ["-H", "x-beta: 1", "-H", "x-tag: one"];
        let reply = client.get_with("http://back/any/where", &beta)?.expect(200)?;
        ensure!(reply.body["path"].as_str().is_some_and(|path| path.starts_with("/one/path")), "{reply}");
        ensure!(reply.seen_header("x-tag") == Some("one, two"), "{reply}");
        ensure!(header(&reply, "x-served").contains("again"), "{:?}", reply.headers);
        for (url, more) in [("http://back/any/where?stable=1", &beta[..]), ("http://back/any/where", &[])] {
            let reply = client.get_with(url, more)?.expect(200)?;
            ensure!(header(&reply, "x-served").is_empty(), "{url}: {:?}", reply.headers);
        }
        let origin = ["-H", "origin: https://shop.example"];
        let mut asked = vec!["-X", "OPTIONS", "-H", "access-control-request-method: PUT"];
        asked.extend(["-H", "access-control-request-headers: x-a"]);
        asked.extend(origin);
        let reply = client.get_with("http://back/", &asked)?.expect(204)?;
        ensure!(header(&reply, "access-control-allow-headers") == "x-a", "{:?}", reply.headers);
        let reply = client.get_with("http://back/", &origin)?.expect(200)?;
        ensure!(header(&reply, "access-control-expose-headers") == "x-b", "{:?}", reply.headers);
        Ok(())
    });
}

#[test]
fn a_fault_ends_a_call_with_its_grpc_status() {
    scenario("fields-grpc", Injection::Label, |ns| {
        let client = back_and_client(ns)?;
        let mut abort = policy("back", json!([{ "fault": { "abort": { "grpcStatus": 8 } } }]));
        abort["spec"]["targetRefs"][0]["port"] = 9000.into();
        ns.apply_json(&abort)?;
        eventually("RESOURCE_EXHAUSTED", SOON, || {
            let printed = client.run(&["/testapp", "grpc", "back:9000", "--json", "-n", "1"])?;
            let calls: Value = serde_json::from_str(printed.trim())?;
            ensure!(calls["errors"].to_string().contains("ResourceExhausted"), "{calls}");
            ensure!(calls["reasons"][Reason::FaultInjected.as_str()] == 1, "{calls}");
            Ok(())
        })
    });
}

#[test]
fn a_header_tells_callers_apart_for_a_limit() {
    scenario("fields-limit", Injection::Label, |ns| {
        let client = back_and_client(ns)?;
        let key = json!({ "type": "Header", "header": "x-user" });
        ns.apply_json(&policy("back", json!([{ "rateLimit": { "requests": 3, "per": "1h", "key": key } }])))?;
        eventually("it is in force", SOON, || {
            let reply = client.get_with("http://back/", &["-H", "x-user: nobody"])?;
            ensure!(!header(&reply, "ratelimit-policy").is_empty(), "{reply}");
            Ok(())
        })?;
        for user in ["x-user: a", "x-user: b"] {
            let replies = client.get_many("http://back/", 10, 1, &["-H", user])?;
            let served = replies.iter().filter(|reply| reply.status == 200).count();
            ensure!(served == 3, "{user}: {served} served");
        }
        Ok(())
    });
}

#[test]
fn a_rule_bounds_its_retries_and_sends_copies_to_a_subset() {
    scenario("fields-retries", Injection::Label, |ns| {
        let client = two_versions(ns)?;
        client.get("http://back/")?.expect(200)?;
        let retry = json!({ "attempts": 5, "retryOn": ["ServerError"], "backoff": "100ms", "maxBackoff": "200ms",
            "budget": { "percent": 100, "minPerSecond": 1000 } });
        ns.apply_json(&policy(
            "back",
            json!([{ "retry": retry, "circuitBreaker": { "maxRetries": 1 }, "split": [{ "subset": "v1", "weight": 1 }],
                "mirror": { "subset": "v2", "percent": 100 } }]),
        ))?;
        let counted = |metric: &str, outcome: &str| -> Result<f64> {
            let metrics = client.run(&["/testapp", "get", "http://127.0.0.1:15020/metrics"])?;
            let lines = metrics.lines();
            let lines =
                lines.filter(|l| l.starts_with(metric) && l.contains(&format!("outcome=\"{outcome}\"")));
            Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
        };
        eventually("retries beyond the bound are not sent", SOON, || {
            let replies = client.get_many("http://back/status/503", 20, 20, &[])?;
            ensure!(replies.iter().all(|reply| reply.status == 503), "{}", replies[0]);
            let refused = counted("weft_retries_total{", "breaker-open")?;
            ensure!(refused >= 10.0, "{refused} retries were not sent");
            Ok(())
        })?;
        eventually("the copies are answered", SOON, || {
            let before = counted("weft_mirrored_total{", "answered")?;
            let replies = client.get_many("http://back/", 20, 2, &[])?;
            ensure!(replies.iter().all(|reply| reply.version() == "v1"), "{}", replies[0]);
            std::thread::sleep(Duration::from_millis(300));
            let copies = counted("weft_mirrored_total{", "answered")? - before;
            ensure!(copies == 20.0, "{copies} copies of 20 requests");
            Ok(())
        })
    });
}

#[test]
fn a_hedge_asks_as_many_as_it_may() {
    scenario("fields-hedge", Injection::Label, |ns| {
        App::new("back").replicas(3).deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        let pods: BTreeSet<String> = ns.cluster.ready_pods(&ns.name, "app=back")?.into_iter().collect();
        ensure!(pods.len() == 3, "{pods:?}");
        // Two of three are slow: only a third try is answered soon.
        for slow in pods.iter().take(2) {
            let toggle = "http://127.0.0.1:8080/toggle?delay=3s";
            ns.cluster.exec(&ns.name, slow, "app", &["/testapp", "get", toggle])?;
        }
        ns.apply_json(&mesh_service(json!({ "balancer": { "policy": "RoundRobin" }, "health": { "outlier": { "consecutiveFailures": 0 } } })))?;
        ns.apply_json(&policy(
            "back",
            json!([{ "hedge": { "delay": "100ms", "maxAttempts": 3 },
            "retry": { "budget": { "percent": 100, "minPerSecond": 100 } } }]),
        ))?;
        eventually("none takes long", SOON, || {
            let replies = client.get_many("http://back/", 9, 1, &[])?;
            let ms = replies.iter().map(|reply| reply.ms).fold(0.0, f64::max);
            ensure!(replies.iter().all(|r| r.status == 200) && ms < 2_500.0, "the slowest took {ms} ms");
            Ok(())
        })
    });
}
