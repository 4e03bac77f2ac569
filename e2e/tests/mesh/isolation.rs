//! A namespace that only its own pods may call, by one policy; and the ports of a proxy, which are nobody's to call.

use anyhow::{Context, ensure};
use serde_json::json;
use std::time::Duration;
use weft_api::Reason;
use weft_e2e::{App, Client, Injection, Namespace, eventually, scenario};

use crate::strictness::{outsider, peer_authentication};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn one_policy_lets_only_the_own_namespace_in() {
    scenario("isolation", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        let other = Namespace::create(ns.cluster, "isolation-other", Injection::Label)?;
        let (own, foreign) = (Client::deploy(ns, "client")?, Client::deploy(&other, "client")?);
        let url = format!("http://server.{}/", ns.name);
        eventually("without a policy everybody gets in", SOON, || foreign.get(&url)?.expect(200).map(drop))?;

        ns.apply_json(&peer_authentication("Strict"))?;
        ns.apply_json(&json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": { "name": "own-namespace" },
            "spec": { "action": "Allow", "rules": [{ "from": [{ "namespaces": [ns.name] }] }] } }))?;
        eventually("other namespaces are refused", SOON, || {
            foreign.get(&url)?.expect_reason(403, Reason::PolicyDenied).map(drop)
        })?;
        // The same ServiceAccount name elsewhere is another identity.
        own.get(&url)?.expect(200)?;
        let plain = outsider(ns)?;
        eventually("who has no identity is refused, in the namespace too", SOON, || {
            let said = plain.shell(&format!("curl -s -m 5 -o /dev/null -w '%{{http_code}}' {url}"))?;
            ensure!(said.stdout.trim() == "403", "{} {}", said.stdout, said.stderr);
            Ok(())
        })
    });
}

#[test]
fn the_ports_of_a_proxy_lead_nowhere_from_outside_of_its_pod() {
    scenario("own-ports", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        let server = ns.pod("app=server")?;
        let ip = server["status"]["podIP"].as_str().context("the server has no address")?;
        let plain = outsider(ns)?;
        // In front of the application, and so of its policies.
        for port in [15000, 15001, 15006] {
            let said = plain.shell(&format!("curl -s -m 5 -i http://{ip}:{port}/config"))?;
            ensure!(said.stdout.is_empty() && !said.status.success(), "port {port} answers: {}", said.stdout);
        }
        for (port, path, wanted) in [
            (15020, "metrics", "200"),
            (15029, "ready", "200"),
            (15020, "config", "404"),
            (15029, "log", "404"),
        ] {
            let said = plain
                .shell(&format!("curl -s -m 5 -o /dev/null -w '%{{http_code}}' http://{ip}:{port}/{path}"))?;
            ensure!(said.stdout.trim() == wanted, "{port}/{path}: {} {}", said.stdout, said.stderr);
        }
        // By mTLS from within the mesh no more than without.
        let client = Client::deploy(ns, "client")?;
        for port in [15000, 15001, 15006] {
            let reply = client.get(&format!("http://{ip}:{port}/"))?;
            ensure!(reply.status != 200, "port {port} answers a proxy");
        }
        // What was refused is counted where it was refused.
        let metrics = plain.shell(&format!("curl -s -m 5 http://{ip}:15020/metrics"))?.stdout;
        let refused = metrics
            .lines()
            .find(|line| line.starts_with("weft_refusals_total") && line.contains("bad-request"));
        ensure!(refused.is_some_and(|line| line.contains("inbound")), "{metrics}");
        Ok(())
    });
}
