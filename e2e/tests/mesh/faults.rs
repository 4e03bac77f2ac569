//! Things that die while they are used.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::time::Duration;
use weft_e2e::app::{CURL_IMAGE, pod};
use weft_e2e::{App, Client, Injection, Namespace, eventually, scenario};

#[test]
fn a_rolling_update_under_load_loses_no_request() {
    scenario("rolling", Injection::Label, |ns| {
        let app = App::new("back").replicas(2).grace(20);
        app.deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        client.get("http://back/")?.expect(200)?;
        let load = client.load("http://back/", 100, Duration::from_secs(25), &["-c", "8"])?;
        std::thread::sleep(Duration::from_secs(1));
        ns.cluster.kubectl(&["rollout", "restart", "deploy/back", "-n", &ns.name])?;
        app.ready(ns)?;
        let seen = load.finish()?;
        seen.expect_no_failure(2400)?;
        ensure!(
            seen.pods.len() == 4,
            "requests went to {} pods, not to two old and two new ones",
            seen.pods.len()
        );
        Ok(())
    });
}

#[test]
fn an_endpoint_killed_under_load_costs_at_most_what_was_in_flight_and_nothing_that_is_safe_to_repeat() {
    scenario("endpoint-killed", Injection::Label, |ns| {
        let app = App::new("back").replicas(3);
        app.deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        client.get("http://back/")?.expect(200)?;
        let gets = client.load("http://back/", 100, Duration::from_secs(12), &["-c", "4"])?;
        let posts = client.load("http://back/", 50, Duration::from_secs(12), &["-c", "4", "-X", "POST"])?;
        std::thread::sleep(Duration::from_secs(2));
        let victim = ns.cluster.ready_pods(&ns.name, "app=back")?.swap_remove(0);
        ns.cluster.kubectl(&["delete", "pod", &victim, "-n", &ns.name, "--grace-period=0", "--force"])?;
        gets.finish()?.expect_no_failure(1100)?;
        let posts = posts.finish()?;
        ensure!(
            posts.sent >= 550 && posts.failed() <= 4,
            "{} of {} POSTs over 4 connections failed: {}",
            posts.failed(),
            posts.sent,
            posts.summary()
        );
        Ok(())
    });
}

#[test]
fn an_endpoint_that_dies_without_notice_is_avoided_at_once() {
    scenario("endpoint-crash", Injection::Label, |ns| {
        // The container ends and restarts; the EndpointSlice lags behind.
        let app = App::new("back").replicas(2);
        app.deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        let load = client.load("http://back/", 100, Duration::from_secs(10), &["-c", "4"])?;
        std::thread::sleep(Duration::from_secs(2));
        let victim = ns.cluster.ready_pods(&ns.name, "app=back")?.swap_remove(0);
        let crash = ns.cluster.exec_ended(
            &ns.name,
            &victim,
            "app",
            &["/testapp", "get", "http://127.0.0.1:8080/exit"],
            None,
        )?;
        let seen = load.finish()?;
        ensure!(
            seen.failed() == 0 && seen.sent >= 900,
            "{} of {} failed: {} (exit said {})",
            seen.failed(),
            seen.sent,
            seen.summary(),
            crash.stdout
        );
        let restarts = ns.object("pod", &victim)?["status"]["containerStatuses"][0]["restartCount"].clone();
        ensure!(restarts == 1, "the application was to crash once, restarts: {restarts}");
        Ok(())
    });
}

/// A client that sees the processes of its whole pod and may signal them.
fn client_with_power(ns: &Namespace) -> Result<Client<'_>> {
    let mut client = pod("client", CURL_IMAGE, &["/bin/sh", "-c", "exec sleep 100000"]);
    client["spec"]["shareProcessNamespace"] = true.into();
    client["spec"]["containers"][0]["securityContext"] = json!({ "runAsUser": 0 });
    Client::deploy_pod(ns, "client", client)
}

#[test]
fn a_pod_recovers_when_its_proxy_is_killed_and_the_application_stays() {
    scenario("proxy-killed", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let client = client_with_power(ns)?;
        let status = || {
            client.run(&["curl", "-s", "-m", "3", "-o", "/dev/null", "-w", "%{http_code}", "http://back/"])
        };
        ensure!(status()? == "200", "before");
        let killed = client.shell("kill -9 $(pidof weft-proxy)")?;
        ensure!(killed.status.success(), "kill: {}", killed.stderr);
        eventually("calls work again", Duration::from_secs(30), || {
            let status = status()?;
            ensure!(status == "200", "status {status}");
            Ok(())
        })?;
        let pod = ns.object("pod", "client")?;
        let restarts = |list: &str, name: &str| {
            let all = pod["status"][list].as_array().cloned().unwrap_or_default();
            all.iter().find(|c| c["name"] == name).and_then(|c| c["restartCount"].as_u64())
        };
        ensure!(
            restarts("initContainerStatuses", "weft-proxy") == Some(1),
            "the proxy was to restart once: {}",
            pod["status"]
        );
        ensure!(
            restarts("containerStatuses", "app") == Some(0),
            "the application restarted: {}",
            pod["status"]
        );
        Ok(())
    });
}

#[test]
fn without_its_proxy_a_pod_sends_nothing_in_plaintext() {
    scenario("proxy-stopped", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let client = client_with_power(ns)?;
        ensure!(client.run(&["curl", "-s", "-m", "3", "http://back/"])?.contains("sa/client"), "before");
        // Stopped, not ended: kubelet does not restart it, and nothing may slip past.
        let said = client.shell("kill -STOP $(pidof weft-proxy); curl -s -m 2 http://back/; echo \" exit $?\"; kill -CONT $(pidof weft-proxy)")?;
        ensure!(said.stdout.contains("exit 28"), "with the proxy stopped curl got: {}", said.stdout);
        eventually("it goes on", Duration::from_secs(20), || {
            let body = client.run(&["curl", "-s", "-m", "3", "http://back/"])?;
            ensure!(body.contains("sa/client"), "{body}");
            Ok(())
        })
    });
}

#[test]
fn requests_after_a_backend_closed_an_idle_connection_do_not_fail() {
    scenario("keepalive-race", Injection::Label, |ns| {
        App::new("back").argument("--idle-timeout=1s").deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        // About one request a second per connection: right when the backend closes.
        let seen = client
            .load("http://back/", 20, Duration::from_secs(12), &["-c", "20"])?
            .finish()
            .context("load")?;
        seen.expect_no_failure(200)
    });
}
