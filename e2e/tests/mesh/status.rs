//! What resources say about themselves.

use super::policy::{policy, two_versions, versions};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::time::Duration;
use weft_e2e::cluster::condition;
use weft_e2e::{App, Client, Injection, Namespace, eventually, scenario};

const SOON: Duration = Duration::from_secs(10);

pub fn condition_is(
    ns: &Namespace,
    kind: &str,
    name: &str,
    which: &str,
    status: &str,
    words: &[&str],
) -> Result<()> {
    let object = ns.object(kind, name)?;
    let found =
        condition(&object, which).with_context(|| format!("no condition {which}: {}", object["status"]))?;
    ensure!(found["status"] == status, "{which} is {found}");
    ensure!(
        found["observedGeneration"] == object["metadata"]["generation"],
        "{which} speaks of another generation: {found}"
    );
    for word in words {
        ensure!(
            found["message"].as_str().is_some_and(|m| m.contains(word)),
            "{which} does not say `{word}`: {found}"
        );
    }
    Ok(())
}

#[test]
fn the_status_says_on_how_many_proxies_a_policy_is_in_force() {
    scenario("applied", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let (one, two) = (Client::deploy(ns, "one")?, Client::deploy(ns, "two")?);
        one.get("http://back/")?.expect(200)?;
        two.get("http://back/")?.expect(200)?;
        ns.apply_json(&policy("back", json!([{ "timeout": "5s" }])))?;
        eventually("the status counts both callers", SOON, || {
            condition_is(ns, "trafficpolicy", "back", "Accepted", "True", &[])?;
            condition_is(ns, "trafficpolicy", "back", "ResolvedRefs", "True", &[])?;
            condition_is(ns, "trafficpolicy", "back", "Programmed", "True", &["2 of 2"])?;
            let status = ns.object("trafficpolicy", "back")?["status"].clone();
            ensure!(status["applied"] == "2/2", "{status}");
            Ok(())
        })
    });
}

#[test]
fn a_policy_for_a_service_that_does_not_exist_says_so_and_works_once_it_does() {
    scenario("unresolved", Injection::Label, |ns| {
        ns.apply_json(&policy("back", json!([{ "timeout": "200ms" }])))?;
        eventually("the missing Service is named", SOON, || {
            condition_is(ns, "trafficpolicy", "back", "ResolvedRefs", "False", &["back"])
        })?;
        App::new("back").deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        eventually("resolved", SOON, || {
            condition_is(ns, "trafficpolicy", "back", "ResolvedRefs", "True", &[])
        })?;
        client.get("http://back/delay/2s")?.expect(504).map(drop)
    });
}

#[test]
fn a_policy_whose_subset_vanished_keeps_its_last_good_behaviour_and_says_so() {
    scenario("vanished", Injection::Label, |ns| {
        let client = two_versions(ns)?;
        ns.apply_json(&policy("back", json!([{ "split": [{ "subset": "v2", "weight": 1 }] }])))?;
        let all_to_v2 = || -> Result<()> {
            for reply in client.get_many("http://back/", 30, 2, &[])? {
                ensure!(reply.status == 200 && reply.version() == "v2", "{reply}");
            }
            Ok(())
        };
        eventually("all go to v2", SOON, all_to_v2)?;
        ns.delete("meshservice", "back")?;
        eventually("the status names the subset", SOON, || {
            condition_is(ns, "trafficpolicy", "back", "ResolvedRefs", "False", &["v2"])
        })?;
        all_to_v2().context("after the subset vanished")?;
        ns.apply_json(&versions("back"))?;
        eventually("well again", SOON, || {
            condition_is(ns, "trafficpolicy", "back", "ResolvedRefs", "True", &[])
        })?;
        all_to_v2()
    });
}

#[test]
fn a_mesh_service_counts_its_endpoints() {
    scenario("endpoints", Injection::Label, |ns| {
        App::new("back").replicas(2).deploy(ns)?;
        App::new("back")
            .version("plain")
            .label("weft.dev/inject", "disabled")
            .without_service()
            .deploy(ns)?;
        ns.apply_json(&versions("back"))?;
        eventually("three endpoints, two of them in the mesh", SOON, || {
            let status = ns.object("meshservice", "back")?["status"].clone();
            ensure!(status["endpoints"] == "3/3" && status["inMesh"] == 2, "{status}");
            Ok(())
        })
    });
}

#[test]
fn the_proxy_shows_its_configuration_and_its_metrics() {
    scenario("observe", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        for reply in client.get_many("http://back/", 20, 1, &[])? {
            reply.expect(200)?;
        }
        let config = client.run(&["/testapp", "get", "http://127.0.0.1:15000/config"])?;
        ensure!(
            config.contains(&format!("{}/back:80", ns.name)),
            "the admin API does not show the service: {config}"
        );
        let metrics = client.run(&["/testapp", "get", "http://127.0.0.1:15020/metrics"])?;
        let line =
            metrics.lines().find(|l| l.contains("requests_total") && l.contains("back") && l.contains("200"));
        let line = line.with_context(|| format!("no request counter: {metrics}"))?;
        ensure!(line.ends_with(" 20") || line.ends_with(" 20.0"), "{line}");
        let log = ns.cluster.logs(&ns.name, "client", "weft-proxy", 40);
        let entry = log
            .lines()
            .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
            .find(|e| e.to_string().contains("back"));
        ensure!(entry.is_some(), "no JSON access log: {log}");
        Ok(())
    });
}

#[test]
fn a_policy_whose_service_was_deleted_keeps_its_last_good_behaviour_and_says_so() {
    scenario("deleted", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        ns.apply_json(&policy("back", json!([{ "timeout": "300ms" }])))?;
        eventually("the policy is enforced", SOON, || client.get("http://back/delay/2s")?.expect(504))?;
        let service = ns.object("service", "back")?;
        let address = service["spec"]["clusterIP"].as_str().context("no cluster IP")?.to_owned();
        ns.delete("service", "back")?;
        eventually("the status names the Service", SOON, || {
            condition_is(ns, "trafficpolicy", "back", "ResolvedRefs", "False", &["back"])
        })?;
        // The name is gone with the Service; who still has the address is served as before.
        client.get(&format!("http://{address}/delay/2s"))?.expect(504)?;
        let reply = client.get(&format!("http://{address}/"))?.expect(200)?;
        ensure!(reply.seen_identity().is_some(), "no mTLS any more: {reply}");
        Ok(())
    });
}
