//! From the change of a policy until a request shows it. A client inside a pod's network asks again and again over one
//! connection through its proxy; the same clock times the API call and the first answer under the new rule.

use crate::Figures;
use crate::http::Connection;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use weft_e2e::statistics::quantile;
use weft_e2e::{App, Client, Cluster, Injection, Namespace, eventually, machine};

const CHANGES: usize = 50;
const KUBECTL_CHANGES: usize = 10;

pub fn apply_to_enforced(cluster: &'static Cluster, figures: &mut Figures) -> Result<()> {
    let ns = Namespace::create(cluster, "figures-enforced", Injection::Label)?;
    App::new("back").apply(&ns)?;
    App::new("back").version("v2").without_service().deploy(&ns)?;
    App::new("back").ready(&ns)?;
    let client = Client::deploy(&ns, "client")?;
    ns.apply_json(&json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "MeshService", "metadata": { "name": "back" }, "spec": {
        "target": { "service": "back" },
        "subsets": [{ "name": "v1", "labels": { "version": "v1" } }, { "name": "v2", "labels": { "version": "v2" } }] } }))?;
    ns.apply_json(&policy(1))?;
    eventually("the policy is in force", Duration::from_secs(20), || {
        let reply = client.get("http://back/")?.expect(200)?;
        ensure!(reply.version() == "v1", "{reply}");
        Ok(())
    })?;

    let stop = Arc::new(AtomicBool::new(false));
    let watched = watch_version(&ns, &stop)?;
    ensure!(watched.recv_timeout(Duration::from_secs(10))?.1 == 1, "the watch begins with v1");

    let (proxy, mut api) = kubectl_proxy(cluster)?;
    let path = format!("/apis/weft.dev/v1alpha1/namespaces/{}/trafficpolicies/back", ns.name);
    let (mut enforced, mut answered) = (Vec::new(), Vec::new());
    for i in 0..CHANGES {
        let version = 2 - (i as u64 % 2);
        let patch = json!({ "spec": policy(version)["spec"] }).to_string();
        let began = Instant::now();
        let (status, body) = api.request("PATCH", &path, "application/merge-patch+json", &patch)?;
        answered.push(began.elapsed());
        ensure!(status == 200, "the API server answered {status}: {body}");
        enforced.push(first_of(&watched, version)?.saturating_duration_since(began));
        // Not in step with anything periodic.
        std::thread::sleep(Duration::from_millis(150 + 37 * (i as u64 % 7)));
    }
    drop(proxy);
    let ms = |samples: &[Duration], q| quantile(samples, q).as_secs_f64() * 1000.0;
    let what = "from sending the API PATCH of a TrafficPolicy (through webhook admission) until the first request answered under the \
                new rule arrived, asking about every millisecond through the client's proxy; 50 changes";
    figures.add("apply_to_enforced_median", ms(&enforced, 0.5), "ms", what);
    figures.add("apply_to_enforced_p99", ms(&enforced, 0.99), "ms", what);
    figures.add(
        "api_patch_median",
        ms(&answered, 0.5),
        "ms",
        "the part of apply_to_enforced until the API server answered",
    );

    let mut by_kubectl = Vec::new();
    for i in 0..KUBECTL_CHANGES {
        let version = 2 - ((CHANGES + i) as u64 % 2);
        let began = Instant::now();
        ns.apply_json(&policy(version))?;
        by_kubectl.push(first_of(&watched, version)?.saturating_duration_since(began));
        std::thread::sleep(Duration::from_millis(200));
    }
    let what = "the same from the start of the process `kubectl apply`; 10 changes";
    figures.add("kubectl_apply_to_enforced_median", ms(&by_kubectl, 0.5), "ms", what);
    stop.store(true, Ordering::Relaxed);
    Ok(())
}

fn policy(version: u64) -> Value {
    json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": { "name": "back" }, "spec": {
        "targetRefs": [{ "kind": "Service", "name": "back", "port": 80 }],
        "rules": [{ "split": [{ "subset": format!("v{version}"), "weight": 1 }] }] } })
}

/// Tells each change of the version that answers, with the moment that the answer arrived.
fn watch_version(ns: &Namespace, stop: &Arc<AtomicBool>) -> Result<Receiver<(Instant, u64)>> {
    let service = ns.object("service", "back")?;
    let address =
        format!("{}:80", service["spec"]["clusterIP"].as_str().context("no cluster IP")?).parse()?;
    let (changed, changes) = channel();
    let stop = stop.clone();
    // The thread ends with `stop`, or when nobody listens any more; its error shows as a closed channel.
    machine::inside_network(&ns.object("pod", "client")?, move || {
        let mut connection = Connection::open(address, "back")?;
        let mut last = 0;
        while !stop.load(Ordering::Relaxed) {
            let (status, body) = connection.request("GET", "/", "text/plain", "")?;
            let arrived = Instant::now();
            let body: Value = serde_json::from_str(&body).with_context(|| format!("{status} {body}"))?;
            let version = if body["version"] == "v1" { 1 } else { 2 };
            if version != last {
                last = version;
                if changed.send((arrived, version)).is_err() {
                    break;
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    })?;
    Ok(changes)
}

fn first_of(changes: &Receiver<(Instant, u64)>, version: u64) -> Result<Instant> {
    loop {
        match changes.recv_timeout(Duration::from_secs(10)) {
            Ok((arrived, seen)) if seen == version => return Ok(arrived),
            Ok(_) => {}
            Err(error) => bail!("v{version} never answered: {error}"),
        }
    }
}

/// `kubectl proxy`, so that API calls are plain HTTP on loopback over one connection.
fn kubectl_proxy(cluster: &Cluster) -> Result<(weft_e2e::command::Running, Connection)> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let proxy = cluster.start(&["proxy", &format!("--port={port}")], None)?;
    let address = ([127, 0, 0, 1], port).into();
    let connection = eventually("kubectl proxy listens", Duration::from_secs(10), || {
        Connection::open(address, "localhost")
    })?;
    Ok((proxy, connection))
}
