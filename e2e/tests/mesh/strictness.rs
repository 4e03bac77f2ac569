//! PeerAuthentication: who may talk plaintext.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::time::Duration;
use weft_api::Reason;
use weft_e2e::app::{CURL_IMAGE, pod};
use weft_e2e::{App, Client, Injection, Namespace, eventually, scenario};

pub fn peer_authentication(mode: &str) -> Value {
    json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "PeerAuthentication", "metadata": { "name": "default" }, "spec": { "mtls": { "mode": mode } } })
}

pub fn outsider(ns: &Namespace) -> Result<Client<'_>> {
    let mut pod = pod("outsider", CURL_IMAGE, &["/bin/sh", "-c", "exec sleep 100000"]);
    pod["metadata"]["labels"]["weft.dev/inject"] = "disabled".into();
    Client::deploy_pod(ns, "outsider", pod)
}

/// Status and `weft-reason` that curl gets, or curl's exit code as an error.
fn curl(client: &Client<'_>, url: &str) -> Result<(u16, String)> {
    let ended = client.run_ended(&[
        "curl",
        "-s",
        "-m",
        "5",
        "-o",
        "/dev/null",
        "-D",
        "-",
        "-w",
        "\n%{http_code}",
        url,
    ])?;
    let status = ended.stdout.lines().last().and_then(|l| l.parse().ok()).unwrap_or(0);
    if status == 0 {
        bail!("curl ended with {} {}", ended.status, ended.stderr);
    }
    let reason = ended
        .stdout
        .lines()
        .find_map(|l| l.strip_prefix("weft-reason: "))
        .unwrap_or_default()
        .trim()
        .to_owned();
    Ok((status, reason))
}

#[test]
fn strict_refuses_a_client_outside_of_the_mesh_and_says_why_while_the_mesh_goes_on() {
    scenario("strict", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        let (client, outsider) = (Client::deploy(ns, "client")?, outsider(ns)?);
        let before = eventually("permissive", Duration::from_secs(5), || curl(&outsider, "http://server/"))?;
        ensure!(before.0 == 200, "without a policy an outsider got {before:?}");

        ns.apply_json(&peer_authentication("Strict"))?;
        eventually("strict is enforced", Duration::from_secs(10), || {
            let got = curl(&outsider, "http://server/")?;
            ensure!(got == (403, Reason::MtlsRequired.to_string()), "an outsider got {got:?}");
            Ok(())
        })?;
        client.get("http://server/")?.expect(200)?;

        let echoed = outsider.shell("echo anyone | nc -w 3 server 7000")?;
        ensure!(!echoed.stdout.contains("anyone"), "plaintext TCP was served: {}", echoed.stdout);
        let echoed = client.run(&["/testapp", "tcp", "server:7000", "through"])?;
        ensure!(echoed.contains("through"), "TCP in the mesh: {echoed}");

        let server = ns.pod("app=server")?;
        let log = ns.cluster.logs(
            &ns.name,
            server["metadata"]["name"].as_str().context("no name")?,
            "weft-proxy",
            50,
        );
        ensure!(log.contains(Reason::MtlsRequired.as_str()), "the refusal is not in the log: {log}");

        ns.delete("peerauthentication", "default")?;
        eventually("permissive again", Duration::from_secs(10), || {
            let got = curl(&outsider, "http://server/")?;
            ensure!(got.0 == 200, "an outsider got {got:?}");
            Ok(())
        })
    });
}

#[test]
fn one_port_may_be_open_while_the_others_are_strict() {
    scenario("strict-port", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        let outsider = outsider(ns)?;
        ns.apply_json(&json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "PeerAuthentication", "metadata": { "name": "server" },
            "spec": { "selector": { "matchLabels": { "app": "server" } }, "mtls": { "mode": "Strict" },
                      "portLevelMtls": { "7000": { "mode": "Permissive" } } } }))?;
        eventually("port 8080 is strict", Duration::from_secs(10), || {
            let got = curl(&outsider, "http://server/")?;
            ensure!(got.0 == 403, "an outsider got {got:?}");
            Ok(())
        })?;
        let echoed = outsider.shell("echo anyone | nc -w 3 server 7000")?;
        ensure!(echoed.stdout.contains("anyone"), "port 7000 is closed: {} {}", echoed.stdout, echoed.stderr);
        Ok(())
    });
}

#[test]
fn with_mtls_disabled_callers_in_the_mesh_send_plaintext_and_are_served() {
    scenario("disable", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        client.get("http://server/")?.expect(200)?;
        ns.apply_json(&peer_authentication("Disable"))?;
        eventually("plaintext", Duration::from_secs(10), || {
            let reply = client.get_with("http://server/", &["--new-connections"])?.expect(200)?;
            ensure!(reply.seen_identity().is_none(), "still mTLS: {:?}", reply.seen_identity());
            Ok(())
        })
    });
}

#[test]
fn the_narrower_policy_counts() {
    scenario("precedence", Injection::Label, |ns| {
        App::new("closed").deploy(ns)?;
        App::new("open").deploy(ns)?;
        let outsider = outsider(ns)?;
        ns.apply_json(&peer_authentication("Strict"))?;
        ns.apply_json(&json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "PeerAuthentication", "metadata": { "name": "open" },
            "spec": { "selector": { "matchLabels": { "app": "open" } }, "mtls": { "mode": "Permissive" } } }))?;
        eventually("both hold", Duration::from_secs(10), || {
            let got = (curl(&outsider, "http://closed/")?.0, curl(&outsider, "http://open/")?.0);
            ensure!(got == (403, 200), "an outsider got {got:?}");
            Ok(())
        })
    });
}
