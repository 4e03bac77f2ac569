//! What applications speak, through two proxies: nothing about it changes.

use super::services::banner;
use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;
use weft_e2e::{App, Client, Injection, eventually, scenario};

fn parse(printed: &str) -> Result<Value> {
    Ok(serde_json::from_str(printed.trim())?)
}

#[test]
fn a_server_that_speaks_first_is_heard_without_delay() {
    scenario("server-first", Injection::Label, |ns| {
        // Once declared as TCP, and once with nothing that says so: then detection must not wait for the client to speak.
        let ports = json!([
            { "name": "http", "port": 80, "targetPort": 8080 },
            { "name": "tcp-declared", "port": 2525, "targetPort": 2525 },
            { "name": "unknown", "port": 2526, "targetPort": 2525 }
        ]);
        App::new("mail").service_ports(ports).deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        for address in ["mail:2525", "mail:2526"] {
            // The first contact also asks the operator.
            let first = banner(&client, address)?;
            ensure!(first["ms"].as_f64().is_some_and(|ms| ms < 600.0), "{address}: first contact: {first}");
            for _ in 0..5 {
                let heard = banner(&client, address)?;
                ensure!(heard["banner"].as_str().is_some_and(|b| b.starts_with("220")), "{address}: {heard}");
                ensure!(
                    heard["ms"].as_f64().is_some_and(|ms| ms < 200.0),
                    "{address}: the banner took {heard}"
                );
            }
        }
        Ok(())
    });
}

#[test]
fn grpc_is_balanced_per_request_over_one_connection() {
    scenario("grpc", Injection::Label, |ns| {
        App::new("back").replicas(3).deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        // In turn, so that each call's endpoint is known: 300 calls, 100 for each, over the client's one connection.
        ns.apply_json(
            &json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "MeshService", "metadata": { "name": "back" },
            "spec": { "target": { "service": "back" }, "balancer": { "policy": "RoundRobin" } } }),
        )?;
        eventually("in turn", Duration::from_secs(10), || {
            let shares = client.grpc("back:9000", 300)?;
            ensure!(shares.errors.is_empty(), "errors: {:?}", shares.errors);
            let even = shares.pods.len() == 3 && shares.pods.values().all(|n| (98..=102).contains(n));
            ensure!(even, "by pod: {:?}", shares.pods);
            Ok(())
        })?;
        let health = client.run(&["/testapp", "grpc-health", "back:9000"])?;
        ensure!(health.contains("SERVING"), "{health}");
        Ok(())
    });
}

#[test]
fn a_refusal_of_the_mesh_is_a_grpc_status_to_grpc_clients() {
    scenario("grpc-refusal", Injection::Label, |ns| {
        App::new("back").replicas(0).apply(ns)?;
        let client = Client::deploy(ns, "client")?;
        let shares = client.grpc("back:9000", 1)?;
        let error = shares.errors.keys().next().cloned().unwrap_or_default();
        ensure!(
            error.to_lowercase().contains("unavailable") && error.contains("no-healthy-endpoint"),
            "a gRPC client saw `{error}`"
        );
        Ok(())
    });
}

#[test]
fn websockets_pass() {
    scenario("websocket", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        let said = parse(&client.run(&[
            "/testapp",
            "ws",
            "ws://back/ws",
            "--text",
            "hello",
            "-n",
            "50",
            "--json",
        ])?)?;
        ensure!(said["echoed"] == 50, "{said}");
        Ok(())
    });
}

#[test]
fn the_applications_own_tls_passes_untouched() {
    scenario("own-tls", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        let peer = parse(&client.run(&["/testapp", "tls", "back:8443", "--json"])?)?;
        ensure!(
            peer["uris"].as_array().is_none_or(Vec::is_empty),
            "the mesh answered in the application's place: {peer}"
        );
        ensure!(!peer["subject"].as_str().unwrap_or_default().is_empty(), "{peer}");
        Ok(())
    });
}

#[test]
fn large_and_streamed_bodies_arrive_whole() {
    scenario("bodies", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let client = Client::deploy_shell(ns, "client")?;
        let size = client.run(&[
            "curl",
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code} %{size_download}",
            "http://back/bytes/20000000",
        ])?;
        ensure!(size == "200 20000000", "20 MB: {size}");
        let uploaded = client.shell("head -c 5000000 /dev/zero | curl -s -o /dev/null -w '%{http_code} %{size_upload}' --data-binary @- http://back/")?;
        ensure!(uploaded.stdout == "200 5000000", "5 MB up: {} {}", uploaded.stdout, uploaded.stderr);
        // A stream must arrive while it is sent, not at its end.
        let first = client.run(&[
            "curl",
            "-s",
            "-N",
            "-o",
            "/dev/null",
            "-w",
            "%{time_starttransfer} %{time_total}",
            "http://back/stream",
        ])?;
        let mut times = first.split(' ').filter_map(|t| t.parse::<f64>().ok());
        let (first, total) = (times.next().unwrap_or(9.0), times.next().unwrap_or(0.0));
        ensure!(first < total / 2.0, "the first byte after {first} s of {total} s");
        Ok(())
    });
}

#[test]
fn http2_with_prior_knowledge_passes() {
    scenario("h2c", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let client = Client::deploy_shell(ns, "client")?;
        let got = client.run(&[
            "curl",
            "-s",
            "--http2-prior-knowledge",
            "-w",
            "\n%{http_version} %{http_code}",
            "http://back/",
        ])?;
        ensure!(got.ends_with("2 200") && got.contains("sa/client"), "{got}");
        Ok(())
    });
}

#[test]
fn a_client_that_ends_its_side_is_answered_and_what_is_no_http_is_refused() {
    scenario("raw", Injection::Label, |ns| {
        // The Service's port is called `http`.
        App::new("back").deploy(ns)?;
        let client = Client::deploy_shell(ns, "client")?;
        // nc ends its side when its input ends, and waits for the answer.
        let late = client
            .shell("printf 'GET /delay/2s HTTP/1.1\\r\\nhost: back\\r\\n\\r\\n' | timeout 20 nc $BACK_SERVICE_HOST 80")?;
        ensure!(late.stdout.starts_with("HTTP/1.1 200"), "{} {}", late.stdout, late.stderr);
        let spoofing =
            "printf 'GE(T / HTTP/1.1\\r\\nhost: back\\r\\nweft-client-identity: spiffe://evil\\r\\n\\r\\n'";
        let refused = client.shell(&format!("{spoofing} | timeout 20 nc $BACK_SERVICE_HOST 80"))?;
        let stated =
            refused.stdout.starts_with("HTTP/1.1 400") && refused.stdout.contains("weft-reason: bad-request");
        ensure!(stated, "{} {}", refused.stdout, refused.stderr);
        Ok(())
    });
}
