//! Kinds of destinations: headless Services, StatefulSets, Services that share a port number, plain pods, the outside.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;
use weft_e2e::{App, Client, Injection, eventually, scenario};

#[test]
fn each_pod_of_a_statefulset_is_reached_by_its_own_name_with_mtls() {
    scenario("stateful", Injection::Label, |ns| {
        App::new("store").replicas(2).stateful().deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        for pod in ["store-0", "store-1"] {
            let url = format!("http://{pod}.store.{}.svc.cluster.local:8080/", ns.name);
            eventually(&format!("{url} answers"), Duration::from_secs(20), || {
                let reply = client.get(&url)?.expect(200)?;
                ensure!(reply.pod() == pod, "{url} was answered by {}", reply.pod());
                ensure!(
                    reply.seen_identity().is_some_and(|i| i.ends_with("/sa/client")),
                    "no mTLS: {:?}",
                    reply.seen_identity()
                );
                Ok(())
            })?;
        }
        Ok(())
    });
}

#[test]
fn a_headless_service_goes_to_the_address_that_the_client_chose() {
    scenario("headless", Injection::Label, |ns| {
        App::new("back").replicas(2).headless().deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        let pods = ns.cluster.objects(&ns.name, "pods", "app=back")?;
        ensure!(pods.len() == 2, "{} pods", pods.len());
        for pod in &pods {
            let (name, address) = (
                pod["metadata"]["name"].as_str().context("no name")?,
                pod["status"]["podIP"].as_str().context("no address")?,
            );
            for reply in client.get_many(&format!("http://{address}:8080/"), 10, 1, &[])? {
                let reply = reply.expect(200)?;
                ensure!(reply.pod() == name, "{address} was answered by {}, not {name}", reply.pod());
                ensure!(
                    reply.seen_identity().is_some_and(|i| i.ends_with("/sa/client")),
                    "no mTLS: {:?}",
                    reply.seen_identity()
                );
            }
        }
        let by_name = client.get("http://back:8080/")?.expect(200)?;
        ensure!(by_name.seen_identity().is_some(), "no mTLS by name");
        Ok(())
    });
}

#[test]
fn two_tcp_services_on_one_port_number_reach_their_own_pods() {
    scenario("same-port", Injection::Label, |ns| {
        // Neither the port's name nor its number tells them apart; only the address does.
        let port = json!([{ "name": "tcp", "port": 5432, "targetPort": 2525 }]);
        for name in ["orders", "users"] {
            App::new(name).service_ports(port.clone()).apply(ns)?;
        }
        for name in ["orders", "users"] {
            App::new(name).ready(ns)?;
        }
        let client = Client::deploy(ns, "client")?;
        for _ in 0..10 {
            for name in ["orders", "users"] {
                let banner = banner(&client, &format!("{name}:5432"))?;
                ensure!(
                    banner["banner"].as_str().is_some_and(|b| b.contains(&format!("{name}-"))),
                    "{name}:5432 was answered by {banner}"
                );
            }
        }
        Ok(())
    });
}

pub fn banner(client: &Client<'_>, address: &str) -> Result<Value> {
    Ok(serde_json::from_str(client.run(&["/testapp", "banner", address, "--json"])?.trim())?)
}

#[test]
fn a_pod_without_a_proxy_is_called_in_plaintext() {
    scenario("plain-callee", Injection::Label, |ns| {
        App::new("plain").label("weft.dev/inject", "disabled").deploy(ns)?;
        App::new("meshed").deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        let reply = client.get("http://plain/")?.expect(200)?;
        ensure!(reply.seen_identity().is_none(), "{reply}");
        ensure!(
            client.run(&["/testapp", "tcp", "plain:7000", "hello"])?.contains("hello"),
            "TCP to a plain pod"
        );
        Ok(())
    });
}

#[test]
fn what_is_not_of_the_mesh_passes_unchanged() {
    scenario("outside", Injection::Label, |ns| {
        let client = Client::deploy(ns, "client")?;
        // The API server: an address outside of every pod, TLS of its own.
        let peer: Value = serde_json::from_str(
            client.run(&["/testapp", "tls", "kubernetes.default.svc:443", "--json"])?.trim(),
        )?;
        ensure!(!peer["subject"].as_str().unwrap_or_default().is_empty(), "{peer}");
        ensure!(
            peer["uris"].as_array().is_none_or(Vec::is_empty),
            "the API server shows a mesh certificate: {peer}"
        );
        Ok(())
    });
}

#[test]
fn a_workload_calls_its_own_service_and_itself() {
    scenario("hairpin", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let pod = ns.pod("app=back")?;
        let name = pod["metadata"]["name"].as_str().context("no name")?.to_owned();
        let itself = Client { namespace: ns, pod: name };
        let address = pod["status"]["podIP"].as_str().context("no address")?;
        for url in [
            "http://back/".to_owned(),
            format!("http://{address}:8080/"),
            "http://127.0.0.1:8080/".to_owned(),
        ] {
            itself.get(&url)?.expect(200).with_context(|| url.clone())?;
        }
        Ok(())
    });
}

#[test]
fn ipv6_is_captured_encrypted_and_balanced_like_ipv4() {
    scenario("ipv6", Injection::Label, |ns| {
        App::new("back").replicas(2).deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        let pod = ns.pod("app=client")?;
        let addresses = pod["status"]["podIPs"].to_string();
        if !addresses.contains("::") {
            eprintln!("the cluster has no IPv6 ({addresses}): nothing to test");
            return Ok(());
        }
        ns.apply_json(
            &json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "back6" }, "spec": {
            "selector": { "app": "back" }, "ipFamilies": ["IPv6"], "ipFamilyPolicy": "SingleStack",
            "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] } }),
        )?;
        eventually("both replicas answer over IPv6", Duration::from_secs(20), || {
            let replies = client.get_many("http://back6/", 60, 2, &[])?;
            let mut pods = std::collections::BTreeSet::new();
            for reply in &replies {
                let identity = reply.seen_identity().unwrap_or_default();
                ensure!(reply.status == 200 && identity.ends_with("/sa/client"), "{reply}");
                pods.insert(reply.pod().to_owned());
            }
            ensure!(pods.len() == 2, "answered by {pods:?}");
            Ok(())
        })?;
        let server = ns.pod("app=back")?;
        let mut v6 =
            server["status"]["podIPs"].as_array().into_iter().flatten().filter_map(|a| a["ip"].as_str());
        let v6 = v6.find(|ip| ip.contains(':')).context("no IPv6 address")?.to_owned();
        let reply = client.get(&format!("http://[{v6}]:8080/"))?.expect(200)?;
        ensure!(reply.seen_identity().is_some(), "a pod called by its IPv6 address: no mTLS: {reply}");
        Ok(())
    });
}
