//! Which pods get a proxy, and what having one costs the application: nothing.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;
use weft_api::names;
use weft_e2e::app::{TEST_IMAGE, pod, service_account};
use weft_e2e::{App, Client, Injection, Namespace, eventually, scenario};

fn is_injected(pod: &Value) -> bool {
    let containers = pod["spec"]["initContainers"]
        .as_array()
        .into_iter()
        .chain(pod["spec"]["containers"].as_array())
        .flatten();
    containers.into_iter().any(|c| c["name"] == names::PROXY_CONTAINER)
}

/// Makes a pod that only waits; what the API server stored.
fn made(ns: &Namespace, labels: Value, change: impl FnOnce(&mut Value)) -> Result<Value> {
    let mut object = pod("subject", TEST_IMAGE, &["/testapp", "pause"]);
    for (key, value) in labels.as_object().into_iter().flatten() {
        object["metadata"]["labels"][key] = value.clone();
    }
    change(&mut object);
    ns.apply_json(
        &json!({ "apiVersion": "v1", "kind": "List", "items": [service_account("subject"), object] }),
    )?;
    ns.object("pod", "subject")
}

fn injected_and_ready(ns: &Namespace, labels: Value) -> Result<()> {
    let stored = made(ns, labels, |_| ())?;
    ensure!(is_injected(&stored), "no proxy in {}", stored["spec"]);
    ns.cluster.wait(&ns.name, "pod/subject", "condition=Ready")
}

#[test]
fn a_pod_in_a_labelled_namespace_gets_a_proxy_that_starts_first() {
    scenario("inject-label", Injection::Label, |ns| {
        let stored = made(ns, json!({}), |pod| {
            pod["spec"]["initContainers"] =
                json!([{ "name": "own", "image": TEST_IMAGE, "command": ["/testapp", "version"] }]);
        })?;
        let order: Vec<_> = stored["spec"]["initContainers"]
            .as_array()
            .context("no init containers")?
            .iter()
            .map(|c| c["name"].as_str().unwrap_or(""))
            .collect();
        let place = |name: &str| order.iter().position(|n| *n == name);
        ensure!(
            place(names::PROXY_CONTAINER).is_some() && place(names::PROXY_CONTAINER) < place("own"),
            "order {order:?}"
        );
        let proxy = stored["spec"]["initContainers"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|c| c["name"] == names::PROXY_CONTAINER);
        let proxy = proxy.context("no proxy")?;
        ensure!(proxy["restartPolicy"] == "Always", "the proxy is no native sidecar: {proxy}");
        ensure!(
            proxy["securityContext"]["runAsUser"] == names::PROXY_UID,
            "runs as {}",
            proxy["securityContext"]
        );
        ensure!(
            stored["metadata"]["labels"][names::INJECTED] == names::ENABLED,
            "labels {}",
            stored["metadata"]["labels"]
        );
        Ok(())
    });
}

#[test]
fn a_pod_in_an_annotated_namespace_gets_a_proxy() {
    scenario("inject-annotation", Injection::Annotation, |ns| injected_and_ready(ns, json!({})));
}

#[test]
fn a_pod_that_asks_gets_a_proxy_in_a_namespace_that_does_not() {
    scenario("inject-pod", Injection::None, |ns| {
        injected_and_ready(ns, json!({ names::INJECT: names::ENABLED }))
    });
}

#[test]
fn a_pod_that_declines_gets_no_proxy_in_an_injected_namespace() {
    scenario("inject-declined", Injection::Label, |ns| {
        let stored = made(ns, json!({ names::INJECT: names::DISABLED }), |_| ())?;
        ensure!(!is_injected(&stored), "was injected: {}", stored["spec"]);
        ns.cluster.wait(&ns.name, "pod/subject", "condition=Ready")
    });
}

#[test]
fn a_pod_that_declines_by_annotation_gets_no_proxy() {
    scenario("inject-declined-a", Injection::Annotation, |ns| {
        let stored = made(ns, json!({}), |pod| {
            pod["metadata"]["annotations"] = json!({ names::INJECT: names::DISABLED })
        })?;
        ensure!(!is_injected(&stored), "was injected: {}", stored["spec"]);
        Ok(())
    });
}

#[test]
fn a_namespace_that_does_not_ask_is_left_alone() {
    scenario("inject-none", Injection::None, |ns| {
        let stored = made(ns, json!({}), |_| ())?;
        ensure!(
            !is_injected(&stored) && stored["metadata"]["annotations"][names::INJECTION_STATUS].is_null(),
            "was touched: {stored}"
        );
        Ok(())
    });
}

#[test]
fn switching_the_annotation_off_switches_injection_off() {
    scenario("inject-off", Injection::Annotation, |ns| {
        ns.cluster.kubectl(&[
            "annotate",
            "namespace",
            &ns.name,
            "--overwrite",
            "weft.dev/inject=disabled",
        ])?;
        eventually("the mirror label goes", Duration::from_secs(10), || {
            let namespace = ns.cluster.object("", "namespace", &ns.name)?;
            ensure!(
                namespace["metadata"]["labels"][names::INJECT_MIRROR] != names::ENABLED,
                "still {}",
                namespace["metadata"]["labels"]
            );
            Ok(())
        })?;
        let stored = made(ns, json!({}), |_| ())?;
        ensure!(!is_injected(&stored), "was injected");
        Ok(())
    });
}

#[test]
fn a_pod_on_the_hosts_network_is_never_injected_and_the_user_is_told() {
    scenario("inject-hostnet", Injection::Label, |ns| {
        let mut object = pod("subject", TEST_IMAGE, &["/testapp", "pause"]);
        object["spec"]["hostNetwork"] = true.into();
        let list =
            json!({ "apiVersion": "v1", "kind": "List", "items": [service_account("subject"), object] });
        let ended = ns.cluster.kubectl_ended(
            &["apply", "-n", &ns.name, "-f", "-"],
            Some(list.to_string().as_bytes()),
            Duration::from_secs(30),
        )?;
        ensure!(
            ended.stderr.contains("Warning") && ended.stderr.contains("hostNetwork"),
            "no warning: {}",
            ended.stderr
        );
        ended.success()?;
        ensure!(!is_injected(&ns.object("pod", "subject")?), "was injected");
        Ok(())
    });
}

#[test]
fn a_job_completes_and_keeps_its_exit_code() {
    scenario("job", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        let job = |name: &str, command: Value| {
            json!({ "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": name }, "spec": { "backoffLimit": 0, "template": { "spec": {
                "restartPolicy": "Never",
                "containers": [{ "name": "app", "image": TEST_IMAGE, "imagePullPolicy": "IfNotPresent", "command": command }]
            } } } })
        };
        ns.apply_json(&job("good", json!(["/testapp", "get", "http://server/"])))?;
        ns.apply_json(&job("bad", json!(["/testapp", "get", "http://server/status/500"])))?;
        ns.cluster.wait(&ns.name, "job/good", "condition=Complete")?;
        ns.cluster.wait(&ns.name, "job/bad", "condition=Failed")?;
        let exit_code = |name: &str| -> Result<Value> {
            let pod = ns.pod(&format!("job-name={name}"))?;
            ensure!(is_injected(&pod), "{name} was not injected");
            Ok(pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"].clone())
        };
        ensure!(
            exit_code("good")? == 0 && exit_code("bad")? == 1,
            "exit codes {} and {}",
            exit_code("good")?,
            exit_code("bad")?
        );
        Ok(())
    });
}

#[test]
fn an_init_container_calls_the_mesh() {
    scenario("init-call", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        ns.apply_json(&json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "PeerAuthentication", "metadata": { "name": "strict" },
            "spec": { "mtls": { "mode": "Strict" } } }))?;
        let mut client = pod("client", TEST_IMAGE, &["/testapp", "pause"]);
        client["spec"]["restartPolicy"] = "Never".into();
        client["spec"]["initContainers"] = json!([{ "name": "first", "image": TEST_IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["/testapp", "get", "http://server/"] }]);
        Client::deploy_pod(ns, "client", client)?;
        let said = ns.cluster.logs(&ns.name, "client", "first", 20);
        ensure!(said.contains("sa/client"), "the init container's call was not made by the mesh: {said}");
        Ok(())
    });
}

#[test]
fn the_applications_very_first_call_succeeds() {
    scenario("first-call", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        // Each is a pod whose only act is one call, made the moment that it starts; restartPolicy Never: no second chance.
        for i in 0..5 {
            let name = format!("caller-{i}");
            let mut caller = pod(&name, TEST_IMAGE, &["/testapp", "get", "http://server/"]);
            caller["spec"]["restartPolicy"] = "Never".into();
            ns.apply_json(
                &json!({ "apiVersion": "v1", "kind": "List", "items": [service_account(&name), caller] }),
            )?;
        }
        for i in 0..5 {
            let name = format!("caller-{i}");
            eventually("the caller ends", Duration::from_secs(90), || {
                let phase = ns.object("pod", &name)?["status"]["phase"].clone();
                ensure!(phase == "Succeeded" || phase == "Failed", "phase {phase}");
                Ok(())
            })?;
            let said = ns.cluster.logs(&ns.name, &name, "app", 20);
            ensure!(ns.object("pod", &name)?["status"]["phase"] == "Succeeded", "{name} failed: {said}");
            ensure!(said.contains(&format!("sa/{name}")), "the call did not pass the mesh: {said}");
        }
        Ok(())
    });
}

#[test]
fn a_pod_overrides_the_proxys_settings_and_is_warned_of_values_that_mean_nothing() {
    scenario("overrides", Injection::Label, |ns| {
        let mut object = pod("subject", TEST_IMAGE, &["/testapp", "sleep"]);
        object["metadata"]["annotations"] = json!({
            "weft.dev/proxy-memory-request": "48Mi", "weft.dev/log-level": "debug", "weft.dev/skip-outbound-ports": "3306",
            "weft.dev/skip-inbound-ports": "many"
        });
        let list =
            json!({ "apiVersion": "v1", "kind": "List", "items": [service_account("subject"), object] });
        let input = list.to_string();
        let args = ["apply", "-n", &ns.name, "-f", "-"];
        let ended = ns.cluster.kubectl_ended(&args, Some(input.as_bytes()), Duration::from_secs(30))?;
        ensure!(ended.stderr.contains("weft.dev/skip-inbound-ports"), "no warning: {}", ended.stderr);
        ended.success()?;
        let stored = ns.object("pod", "subject")?;
        let containers = stored["spec"]["initContainers"].as_array().context("no init containers")?;
        let find = |name: &str| containers.iter().find(|c| c["name"] == name).context(name.to_owned());
        let (proxy, init) = (find(names::PROXY_CONTAINER)?, find(names::INIT_CONTAINER)?);
        ensure!(proxy["resources"]["requests"]["memory"] == "48Mi", "{}", proxy["resources"]);
        ensure!(proxy["env"].to_string().contains("debug"), "{}", proxy["env"]);
        ensure!(init.to_string().contains("3306"), "{init}");
        ns.cluster.wait(&ns.name, "pod/subject", "condition=Ready")
    });
}

#[test]
fn a_skipped_port_is_reached_without_the_proxy_even_under_strict() {
    scenario("skipped-port", Injection::Label, |ns| {
        App::new("server").annotation("weft.dev/skip-inbound-ports", "7000").deploy(ns)?;
        ns.apply_json(&crate::strictness::peer_authentication("Strict"))?;
        let outsider = crate::strictness::outsider(ns)?;
        eventually("strict is in force", Duration::from_secs(10), || {
            let url = "http://server/";
            let code =
                outsider.run(&["curl", "-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", url])?;
            ensure!(code == "403", "an outsider got {code}");
            Ok(())
        })?;
        let echoed = outsider.shell("echo open | nc -w 3 server 7000")?;
        ensure!(echoed.stdout.contains("open"), "the skipped port is closed: {}", echoed.stderr);
        Ok(())
    });
}

#[test]
fn a_pod_that_would_evade_the_proxy_is_refused_with_the_reason() {
    scenario("evade", Injection::Label, |ns| {
        ns.apply_json(&service_account("subject"))?;
        let mut object = pod("subject", TEST_IMAGE, &["/testapp", "sleep"]);
        object["spec"]["containers"][0]["securityContext"] = json!({ "runAsUser": names::PROXY_UID });
        let said = ns.apply_refused(&object.to_string())?;
        ensure!(said.contains("2102"), "the refusal does not name the user: {said}");
        Ok(())
    });
}
