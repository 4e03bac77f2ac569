//! The `weft` command against a real mesh: it finds what is there, and says what happened to a request.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;
use weft_api::names;
use weft_e2e::command::Ended;
use weft_e2e::{App, Client, Cluster, Injection, Namespace, eventually, scenario};

fn weft(cluster: &Cluster, args: &[&str]) -> Result<Ended> {
    cluster.program(Path::new(env!("CARGO_BIN_EXE_weft")), args)
}

fn weft_json(ns: &Namespace, args: &[&str]) -> Result<Value> {
    let args = [args, &["-n", &ns.name, "-o", "json"]].concat();
    let text = weft(ns.cluster, &args)?.success()?;
    serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
}

/// A service, its client, and a first request from one to the other.
fn called<'a>(ns: &'a Namespace) -> Result<Client<'a>> {
    App::new("back").deploy(ns)?;
    let client = Client::deploy(ns, "client")?;
    client.run(&["/testapp", "get", "http://back/"])?;
    Ok(client)
}

#[test]
fn a_healthy_mesh_is_found_healthy_and_its_namespaces_are_named() {
    scenario("cli-check", Injection::Annotation, |ns| {
        called(ns)?;
        let text = weft(ns.cluster, &["check", "--wait", "30s"])?.success()?;
        ensure!(text.contains(&format!("ok    namespace {}: 2 proxies, all ready", ns.name)), "{text}");
        ensure!(text.contains("0 failures"), "{text}");
        Ok(())
    });
}

#[test]
fn without_weft_in_the_namespace_named_the_check_fails_with_a_remedy() {
    let ended = weft(Cluster::get(), &["check", "--weft-namespace", "default"]).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stdout);
    assert!(
        ended.stdout.contains("FAIL  operator") && ended.stdout.contains("-> helm install"),
        "{}",
        ended.stdout
    );
}

#[test]
fn proxies_destinations_policies_and_log_levels_are_shown() {
    scenario("cli-show", Injection::Label, |ns| {
        called(ns)?;
        let proxies = weft_json(ns, &["status"])?;
        let client =
            proxies.as_array().into_iter().flatten().find(|p| p["pod"] == "client").context("no client")?;
        ensure!(client["ready"] == true && client["connected"] == true, "{client}");
        ensure!(
            client["identity"].as_str().is_some_and(|i| i.ends_with(&format!("/ns/{}/sa/client", ns.name))),
            "{client}"
        );
        ensure!(
            client["certificate_not_after_unix_s"].as_i64().is_some_and(|end| end > 1_700_000_000),
            "{client}"
        );

        let clusters = weft(ns.cluster, &["clusters", "client", "-n", &ns.name])?.success()?;
        ensure!(
            clusters.contains(&format!("{}/back:80", ns.name)) && clusters.contains("mtls  in use"),
            "{clusters}"
        );
        let config = weft_json(ns, &["config", "client"])?;
        ensure!(config["workload"]["namespace"] == ns.name.as_str(), "{config}");

        ns.apply_json(&json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "PeerAuthentication", "metadata": { "name": "strict" },
            "spec": { "mtls": { "mode": "Strict" } } }))?;
        let facts = weft_json(ns, &["inspect", "client"])?;
        let strict = json!({ "aspect": "peer authentication", "name": format!("{}/strict", ns.name), "detail": "Strict" });
        ensure!(facts.as_array().is_some_and(|f| f.contains(&strict)), "{facts}");

        for (filter, shown) in [("debug", "debug"), ("info", "info")] {
            weft(ns.cluster, &["log", "client", filter, "-n", &ns.name])?.success()?;
            let now = weft(ns.cluster, &["log", "client", "-n", &ns.name])?.success()?;
            ensure!(now.trim() == shown, "{now}");
        }
        let refused = weft(ns.cluster, &["log", "client", "x=y=z", "-n", &ns.name])?;
        ensure!(!refused.status.success() && refused.stderr.contains("x=y=z"), "{}", refused.stderr);
        Ok(())
    });
}

#[test]
fn a_refused_request_is_explained_by_its_id() {
    scenario("cli-explain", Injection::Label, |ns| {
        let client = called(ns)?;
        ns.apply_json(
            &json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "MeshService", "metadata": { "name": "back" },
            "spec": { "target": { "service": "back" }, "circuitBreaker": { "maxConcurrentRequests": 1 } } }),
        )?;
        let id = eventually("a refusal with a request id", Duration::from_secs(15), || {
            let replies = client.get_many("http://back/delay/500ms", 4, 4, &[])?;
            let refused =
                replies.iter().find(|r| r.reason() == "breaker-open").context("none was refused")?;
            refused.headers.get(names::REQUEST_ID_HEADER).cloned().context("the refusal has no request id")
        })?;
        let trail =
            eventually("the log has it", Duration::from_secs(10), || weft_json(ns, &["explain", &id]))?;
        let verdict = trail["verdict"].as_str().unwrap_or_default();
        ensure!(verdict.contains("/client (outbound to ") && verdict.contains("breaker-open"), "{trail}");
        ensure!(trail["remedy"].as_str().is_some_and(|r| r.contains("maxConcurrentRequests")), "{trail}");
        let unknown = weft(ns.cluster, &["explain", "no-such-id", "-n", &ns.name])?;
        ensure!(unknown.status.code() == Some(1), "{}", unknown.stdout);
        Ok(())
    });
}

#[test]
fn the_flow_between_two_workloads_is_measured() {
    scenario("cli-top", Injection::Label, |ns| {
        let client = called(ns)?;
        let load = client.start(&[
            "/testapp",
            "load",
            "http://back/",
            "--rps",
            "50",
            "--duration",
            "8s",
            "--json",
        ])?;
        let flows = weft_json(ns, &["top", "--for", "3s"])?;
        let flow = flows.as_array().and_then(|f| f.first()).context("no flow")?;
        ensure!(
            flow["from"] == format!("{}/client", ns.name) && flow["to"] == format!("{}/back", ns.name),
            "{flow}"
        );
        let rate = flow["per_second"].as_f64().unwrap_or_default();
        ensure!((35.0..65.0).contains(&rate), "50 requests per second were seen as {flow}");
        ensure!(flow["success"] == 1.0 && flow["mtls"] == 1.0 && flow["p99_s"].is_number(), "{flow}");
        drop(load);
        Ok(())
    });
}

#[test]
fn who_would_be_refused_under_strict_is_named_before_it_is_switched_on() {
    scenario("cli-plaintext", Injection::Label, |ns| {
        let client = called(ns)?;
        let nobody = weft(ns.cluster, &["plaintext", "-n", &ns.name])?.success()?;
        ensure!(nobody.contains("2 proxies") && nobody.contains("nobody in plaintext"), "{nobody}");
        let mut pod = weft_e2e::app::pod("outsider", weft_e2e::app::TEST_IMAGE, &["/testapp", "pause"]);
        pod["metadata"]["labels"]["weft.dev/inject"] = "disabled".into();
        let outsider = Client::deploy_pod(ns, "outsider", pod)?;
        outsider.get("http://back/")?.expect(200)?;
        client.get("http://back/")?.expect(200)?;
        let ended = weft(ns.cluster, &["plaintext", "-n", &ns.name, "-o", "json"])?;
        ensure!(ended.status.code() == Some(1), "somebody would be refused: {}", ended.stdout);
        let report: Value = serde_json::from_str(&ended.stdout)?;
        let callers = report["callers"].as_array().context("no callers")?;
        ensure!(callers.len() == 1, "just the one outside of the mesh: {report}");
        let named = format!("{}/outsider", ns.name);
        ensure!(callers[0]["caller"] == named.as_str() && callers[0]["port"] == 8080, "{report}");
        let table = weft(ns.cluster, &["plaintext", "-n", &ns.name])?.stdout;
        ensure!(table.contains(&named) && table.contains("bring it into the mesh"), "{table}");
        // It is true: this one, and only this one, is refused.
        ns.apply_json(&json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "PeerAuthentication", "metadata": { "name": "strict" },
            "spec": { "mtls": { "mode": "Strict" } } }))?;
        eventually("the outsider is refused", Duration::from_secs(15), || {
            outsider.get("http://back/")?.expect(403).map(drop)
        })?;
        client.get("http://back/")?.expect(200).map(drop)
    });
}
