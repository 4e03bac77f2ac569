//! AuthorizationPolicy: who may ask whom for what, from kubectl to the refusal.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use weft_api::Reason;
use weft_e2e::cluster::name;
use weft_e2e::{App, Client, Injection, Namespace, eventually, scenario};

use crate::status::condition_is;

const SOON: Duration = Duration::from_secs(15);

fn authorize(ns: &Namespace, policy: &str, spec: &Value) -> Result<String> {
    ns.apply_json(&json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": { "name": policy }, "spec": spec }))
}

fn caller(ns: &Namespace, account: &str) -> Value {
    json!([{ "identities": [format!("spiffe://cluster.local/ns/{}/sa/{account}", ns.name)] }])
}

fn log_of(ns: &Namespace, app: &str) -> Result<String> {
    let pod = ns.pod(&format!("app={app}"))?;
    Ok(ns.cluster.logs(&ns.name, &name(&pod), "weft-proxy", 200))
}

#[test]
fn only_whom_a_policy_names_gets_through_and_the_refusal_is_explained() {
    scenario("authz", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        let (front, other) = (Client::deploy(ns, "front")?, Client::deploy(ns, "other")?);
        let outsider = super::strictness::outsider(ns)?;
        front.get("http://server/")?.expect(200)?;
        other.get("http://server/")?.expect(200)?;

        let spec = json!({ "action": "Allow", "selector": { "matchLabels": { "app": "server" } },
            "rules": [{ "name": "front", "from": caller(ns, "front") }] });
        let applied = Instant::now();
        authorize(ns, "server", &spec)?;
        let refused = eventually("others are refused", SOON, || {
            other.get("http://server/")?.expect_reason(403, Reason::PolicyDenied)
        })?;
        println!("from apply to the first refusal seen: {:?} at most", applied.elapsed());
        ensure!(
            !refused.to_string().contains("AuthorizationPolicy server"),
            "the caller learns the policy: {refused}"
        );
        front.get("http://server/")?.expect(200)?;
        eventually("the status counts the one proxy", SOON, || {
            condition_is(ns, "authorizationpolicy", "server", "Accepted", "True", &[])?;
            condition_is(ns, "authorizationpolicy", "server", "Programmed", "True", &["1 of 1"])
        })?;
        let log = log_of(ns, "server")?;
        ensure!(
            log.contains("no rule of the policies that allow something fits") && log.contains("/server"),
            "the log does not name the policy: {log}"
        );

        // By the pod's own address it is the same proxy that decides.
        let pod = ns.pod("app=server")?;
        let ip = pod["status"]["podIP"].as_str().context("no address")?.to_owned();
        other.get(&format!("http://{ip}:8080/"))?.expect_reason(403, Reason::PolicyDenied)?;
        let from_outside = outsider.shell(&format!("curl -s -m 5 -o /dev/null -w '%{{http_code}}' -H 'weft-client-identity: spiffe://cluster.local/ns/{}/sa/front' http://server/", ns.name))?;
        ensure!(from_outside.stdout.contains("403"), "plaintext got {}", from_outside.stdout);
        // TCP too.
        let echoed = front.run(&["/testapp", "tcp", "server:7000", "through"])?;
        ensure!(echoed.contains("through"), "TCP of the one that may: {echoed}");
        let refused = other.run_ended(&["/testapp", "tcp", "server:7000", "through"])?;
        ensure!(!refused.stdout.contains("through"), "TCP of the one that may not: {}", refused.stdout);
        // The kubelet's probes are not asked who they are.
        std::thread::sleep(Duration::from_secs(4));
        let ready = ns.cluster.ready_pods(&ns.name, "app=server")?;
        ensure!(ready.len() == 1, "the server is not ready any more");

        ns.delete("authorizationpolicy", "server")?;
        eventually("all may again", SOON, || other.get("http://server/")?.expect(200).map(drop))
    });
}

#[test]
fn a_namespace_is_closed_by_one_policy_that_can_be_tried_first() {
    scenario("authz-default", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        authorize(ns, "default-deny", &json!({ "action": "Allow", "dryRun": true }))?;
        eventually("it is noted what would be refused", SOON, || {
            client.get("http://server/tried")?.expect(200)?;
            let log = log_of(ns, "server")?;
            ensure!(log.contains("\"dry_run\":\"no rule of the policies"), "{log}");
            Ok(())
        })?;
        authorize(ns, "default-deny", &json!({ "action": "Allow" }))?;
        eventually("nobody gets in", SOON, || {
            client.get("http://server/")?.expect_reason(403, Reason::PolicyDenied).map(drop)
        })?;
        authorize(
            ns,
            "own",
            &json!({ "action": "Allow", "rules": [{ "from": [{ "namespaces": [ns.name] }] }] }),
        )?;
        eventually("the namespace's own do", SOON, || client.get("http://server/")?.expect(200).map(drop))?;
        let secret = json!({ "action": "Deny", "rules": [{ "name": "secret", "to": [{ "paths": [{ "prefix": "/secret" }], "ports": [8080] }] }] });
        authorize(ns, "secret", &secret)?;
        eventually("what is denied stays denied", SOON, || {
            client.get("http://server/secret/x")?.expect_reason(403, Reason::PolicyDenied).map(drop)
        })?;
        client.get("http://server/")?.expect(200)?;
        let log = log_of(ns, "server")?;
        let named = format!("\"policy\":\"{}/secret\",\"policy_rule\":\"secret\"", ns.name);
        ensure!(log.contains(&named), "the log does not name the rule: {log}");
        Ok(())
    });
}

#[test]
fn every_condition_of_a_rule_counts() {
    scenario("authz-fields", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        let cannot_be = json!({ "ipBlocks": ["192.0.2.0/24"], "namespaces": [ns.name] });
        let spec = json!({ "action": "Allow", "dryRun": false, "selector": { "matchLabels": { "app": "server" } }, "rules": [
            { "name": "web",
              "from": [{ "identities": ["*/sa/client"], "namespaces": [ns.name], "ipBlocks": ["0.0.0.0/0", "::/0"] }],
              "to": [{ "hosts": ["server"], "ports": [8080], "methods": ["GET"],
                       "paths": [{ "exact": "/exact" }, { "prefix": "/below" }, { "template": "/users/{id}" }] }],
              "when": [{ "header": "x-tenant", "exact": "a" }, { "header": "x-trace", "prefix": "t-" },
                       { "header": "x-build", "regex": "[0-9]+" }, { "header": "x-debug", "present": false }] },
            { "name": "nowhere", "from": [cannot_be], "to": [{ "paths": [{ "prefix": "/nowhere" }] }] },
            { "name": "rpc", "to": [{ "services": ["grpc.testing.TestService/UnaryCall"], "ports": [9000] }] } ] });
        authorize(ns, "server", &spec)?;
        let fits = ["-H", "x-tenant: a", "-H", "x-trace: t-1", "-H", "x-build: 77"];
        eventually("what no rule fits is refused", SOON, || {
            client
                .get_with("http://server/nowhere", &fits)?
                .expect_reason(403, Reason::PolicyDenied)
                .map(drop)
        })?;
        for path in ["/exact", "/below/that", "/users/7?all=1"] {
            client.get_with(&format!("http://server{path}"), &fits)?.expect(200)?;
        }
        for path in ["/exact/x", "/belo", "/users", "/users/7/x"] {
            let reply = client.get_with(&format!("http://server{path}"), &fits)?;
            reply.expect_reason(403, Reason::PolicyDenied)?;
        }
        let but = |more: &[&'static str]| -> Result<()> {
            let all = [&fits[..], more].concat();
            client.get_with("http://server/exact", &all)?.expect_reason(403, Reason::PolicyDenied).map(drop)
        };
        but(&["-X", "POST"])?;
        but(&["-H", "host: other"])?;
        but(&["-H", "x-debug: 1"])?;
        // Which of several values the application reads, nobody knows.
        but(&["-H", "x-tenant: b"])?;
        for (at, wrong) in [(1, "x-tenant: b"), (3, "x-trace: 1"), (5, "x-build: 7a")] {
            let mut without = fits;
            without[at] = wrong;
            let reply = client.get_with("http://server/exact", &without)?;
            reply.expect_reason(403, Reason::PolicyDenied)?;
        }
        let call = || -> Result<Value> {
            let printed = client.run(&["/testapp", "grpc", "server:9000", "--json", "-n", "1"])?;
            Ok(serde_json::from_str(printed.trim())?)
        };
        let calls = call()?;
        ensure!(calls["errors"].as_object().is_some_and(serde_json::Map::is_empty), "{calls}");
        let mut other = spec.clone();
        other["rules"][2]["to"][0]["services"] = json!(["grpc.testing.TestService/EmptyCall"]);
        authorize(ns, "server", &other)?;
        eventually("another method is refused in gRPC's own way", SOON, || {
            let calls = call()?;
            ensure!(calls["errors"].to_string().contains("PermissionDenied"), "{calls}");
            ensure!(calls["reasons"][Reason::PolicyDenied.as_str()] == 1, "{calls}");
            Ok(())
        })?;
        let log = log_of(ns, "server")?;
        ensure!(log.contains("policy-denied"), "{log}");
        Ok(())
    });
}
