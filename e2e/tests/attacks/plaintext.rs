//! Going down to plain text or to an older TLS, and addresses that belong to somebody else by now.

use anyhow::ensure;
use serde_json::{Value, json};
use std::time::Duration;
use weft_api::Reason;
use weft_e2e::{App, Client, Injection, eventually, scenario};

use super::ground::{Attacker, SOON, Signer, address, get, id, leaf, served, statuses};

#[test]
fn under_strict_nothing_but_mtls_of_the_mesh_reaches_the_application() {
    scenario("downgrade", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        let attacker = Attacker::deploy(ns)?;
        let server = ns.pod("app=server")?;
        let ip = address(&server)?;
        ns.apply_json(&json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "PeerAuthentication", "metadata": { "name": "default" },
            "spec": { "mtls": { "mode": "Strict" } } }))?;
        let me = id(&ns.name, "front");
        let claimed = format!(
            "GET / HTTP/1.1\r\nhost: server\r\nweft-client-identity: {me}\r\nconnection: close\r\n\r\n"
        );
        eventually("strict is in force", SOON, || {
            let answer = attacker.plain((ip, 8080), &claimed)?;
            ensure!(statuses(&answer) == ["403"], "{answer}");
            Ok(())
        })?;
        let good = Signer::of_the_mesh(ns.cluster)?.sign(&leaf(&me)?)?;
        let before = served(&attacker.mtls((ip, 8080), Some(&good), get("/"))?)?;
        let requests = "weft_requests_total";
        let reason = format!("reason=\"{}\"", Reason::MtlsRequired);
        let counted = attacker.count(ip, requests, &[&reason])?;
        for path in ["/", "/healthz/../", "/healthz/x", "//healthz"] {
            let answer = attacker.plain((ip, 8080), get(path))?;
            let said = format!("weft-reason: {}", Reason::MtlsRequired);
            ensure!(statuses(&answer) == ["403"] && answer.contains(&said), "{path}: {answer}");
        }
        attacker.counted(ip, requests, &[&reason], counted + 4)?;

        // What the refusals of connections are counted as is one of these; each attempt is one more.
        let refused = || {
            let all = attacker.count(ip, "weft_refusals_total", &["direction=\"inbound\""])?;
            Ok::<u64, anyhow::Error>(all + attacker.count(ip, "weft_tcp_connections_total", &[&reason])?)
        };
        for (what, options) in [
            ("TLS 1.2 with a good certificate", "-tls1_2 -alpn weft/http1"),
            ("TLS of its own, without our protocol", "-tls1_3"),
            ("TLS of its own, with HTTP's protocol", "-tls1_3 -alpn http/1.1"),
        ] {
            let counted = refused()?;
            let said = attacker.tls((ip, 8080), Some(&good), options, get("/"))?;
            ensure!(!said.contains("HTTP/1.1"), "{what}: {said}");
            eventually("it is counted", SOON, || {
                ensure!(refused()? > counted, "{what}: {} as before", refused()?);
                Ok(())
            })?;
        }
        let counted = refused()?;
        let said = attacker.plain((ip, 7000), "anybody there\n")?;
        ensure!(!said.contains("anybody"), "plain TCP was echoed: {said}");
        eventually("it is counted", SOON, || {
            ensure!(refused()? > counted, "plain TCP: {} as before", refused()?);
            Ok(())
        })?;
        let after = served(&attacker.mtls((ip, 8080), Some(&good), get("/"))?)?;
        ensure!(after == before + 1, "{} requests reached the application", after - before - 1);
        Ok(())
    });
}

/// A Service without selector and a hand-made EndpointSlice: it says `target` and the address of another pod.
fn lying_service(name: &str, target: &Value, address: &Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
          "spec": { "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] } },
        { "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
          "metadata": { "name": format!("{name}-1"), "labels": { "kubernetes.io/service-name": name } },
          "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
          "endpoints": [{ "addresses": [address], "conditions": { "ready": true },
            "targetRef": { "kind": "Pod", "name": target["metadata"]["name"], "namespace": target["metadata"]["namespace"], "uid": target["metadata"]["uid"] } }] }
    ] })
}

#[test]
fn an_endpoint_whose_address_now_belongs_to_another_workload_is_refused() {
    scenario("stolen-ip", Injection::Label, |ns| {
        App::new("right").deploy(ns)?;
        App::new("thief").deploy(ns)?;
        let (client, attacker) = (Client::deploy(ns, "client")?, Attacker::deploy(ns)?);
        let (right, thief) = (ns.pod("app=right")?, ns.pod("app=thief")?);
        ns.apply_json(&lying_service("honest", &right, &right["status"]["podIP"]))?;
        ns.apply_json(&lying_service("stolen", &right, &thief["status"]["podIP"]))?;
        eventually("the honest one works", Duration::from_secs(15), || {
            client.get("http://honest/")?.expect(200)
        })?;
        for _ in 0..5 {
            client.get("http://stolen/")?.expect_reason(503, Reason::PeerIdentityMismatch)?;
        }
        let caller = ns.pod("app=client")?;
        let reason = format!("reason=\"{}\"", Reason::PeerIdentityMismatch);
        attacker.counted(address(&caller)?, "weft_requests_total", &[&reason], 5)
    });
}
