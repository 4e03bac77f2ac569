//! MeshService `balancer`: by key, slow start, failover, locality, panic.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use weft_api::Reason;
use weft_e2e::statistics::expect_share;
use weft_e2e::traffic::Reply;
use weft_e2e::{App, Client, Injection, Namespace, eventually, scenario};

use super::resilience::toggle;

const SOON: Duration = Duration::from_secs(15);

fn balanced(service: &str, spec: Value) -> Value {
    let mut spec = json!({ "balancer": spec });
    spec["target"] = json!({ "service": service });
    json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "MeshService", "metadata": { "name": service }, "spec": spec })
}

fn pods(replies: &[Reply]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for reply in replies.iter().filter(|r| r.status == 200) {
        *counts.entry(reply.pod().to_owned()).or_default() += 1;
    }
    counts
}

/// Who answers requests of each of these users, ten times each; an error if it is not always the same pod.
fn homes(client: &Client<'_>, users: u32) -> Result<Vec<String>> {
    let mut homes = Vec::new();
    for user in 0..users {
        let counts = pods(&client.get_many("http://back/", 10, 2, &["-H", &format!("x-user:u{user}")])?);
        ensure!(counts.len() == 1, "user {user}: {counts:?}");
        homes.extend(counts.into_keys());
    }
    Ok(homes)
}

#[test]
fn a_user_keeps_to_one_pod_from_every_client() {
    scenario("hash", Injection::Label, |ns| {
        App::new("back").replicas(3).deploy(ns)?;
        let (one, two) = (Client::deploy(ns, "one")?, Client::deploy(ns, "two")?);
        for policy in ["Maglev", "RingHash"] {
            ns.apply_json(&balanced("back", json!({ "policy": policy, "hash": { "header": "X-User" } })))?;
            let of_one = eventually("each user has one pod", SOON, || homes(&one, 8))?;
            let of_two = eventually("for the other client too", SOON, || homes(&two, 8))?;
            ensure!(of_one == of_two, "{policy}: {of_one:?} and {of_two:?}");
            ensure!(of_one.iter().collect::<BTreeSet<_>>().len() > 1, "{policy}: all at {of_one:?}");
        }
        // The query decides now, and every user's requests without it are spread.
        ns.apply_json(&balanced(
            "back",
            json!({ "policy": "RingHash", "hash": { "query": "user", "ringPoints": 512 } }),
        ))?;
        eventually("spread without, kept with the parameter", SOON, || {
            let without = pods(&one.get_many("http://back/", 60, 2, &["-H", "x-user:u1"])?);
            let with = pods(&one.get_many("http://back/?user=7", 20, 2, &[])?);
            ensure!(without.len() == 3 && with.len() == 1, "{without:?} {with:?}");
            Ok(())
        })?;
        // One pod of the application is one source.
        ns.apply_json(&balanced("back", json!({ "policy": "SourceIpHash" })))?;
        eventually("one pod for all that a client sends", SOON, || {
            let counts = pods(&one.get_many("http://back/", 30, 3, &["--new-connections"])?);
            ensure!(counts.len() == 1, "{counts:?}");
            Ok(())
        })
    });
}

#[test]
fn a_cookie_is_issued_and_brings_its_client_back() {
    scenario("cookie", Injection::Label, |ns| {
        App::new("back").replicas(3).deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        let hash = json!({ "cookie": { "name": "weft-session", "ttl": "1h" } });
        ns.apply_json(&balanced("back", json!({ "policy": "Maglev", "hash": hash })))?;
        let issued = |reply: &Reply| reply.headers.get("set-cookie").cloned();
        eventually("a cookie comes", SOON, || {
            issued(&client.get("http://back/")?).context("no cookie").map(drop)
        })?;
        for _ in 0..4 {
            let first = client.get("http://back/")?.expect(200)?;
            let cookie = issued(&first).context("no cookie")?;
            ensure!(cookie.contains("Max-Age=3600") && cookie.contains("HttpOnly"), "{cookie}");
            let pair = cookie.split(';').next().unwrap_or_default();
            let again = client.get_many("http://back/", 10, 1, &["-H", &format!("cookie:{pair}")])?;
            ensure!(
                again.iter().all(|r| r.pod() == first.pod() && issued(r).is_none()),
                "{:?}",
                pods(&again)
            );
        }
        Ok(())
    });
}

#[test]
fn a_new_pod_starts_slowly() {
    scenario("slow-start", Injection::Label, |ns| {
        let app = App::new("back").replicas(2);
        app.deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        ns.apply_json(&balanced(
            "back",
            json!({ "policy": "Random", "slowStart": { "window": "24h", "aggression": 1 } }),
        ))?;
        eventually("the first pods have their share", SOON, || {
            let counts = pods(&client.get_many("http://back/", 300, 2, &[])?);
            ensure!(counts.len() == 2 && counts.values().all(|n| *n > 100), "{counts:?}");
            Ok(())
        })?;
        let first: BTreeSet<String> = ns.cluster.ready_pods(&ns.name, "app=back")?.into_iter().collect();
        ns.cluster.kubectl(&["scale", "deploy/back", "-n", &ns.name, "--replicas=3"])?;
        ns.cluster.await_pods(&ns.name, "app=back", 3)?;
        eventually("the third has a tenth of a share", Duration::from_secs(30), || {
            let counts = pods(&client.get_many("http://back/", 1000, 4, &[])?);
            ensure!(counts.len() == 3, "{counts:?}");
            let new = counts.iter().find(|(pod, _)| !first.contains(*pod)).map_or(0, |(_, n)| *n);
            expect_share("the new pod", new, 1000, 0.1 / 2.1)
        })
    });
}

#[test]
fn the_next_priority_takes_over() {
    scenario("failover", Injection::Label, |ns| {
        let client = super::policy::two_versions(ns)?;
        let versions = |replies: &[Reply]| -> BTreeSet<String> {
            replies.iter().filter(|r| r.status == 200).map(|r| r.version().to_owned()).collect()
        };
        let all_at = |version: &str, replies: &[Reply]| {
            let got = versions(replies);
            ensure!(got.len() == 1 && got.contains(version), "answers of {got:?}, not of {version} alone");
            Ok(())
        };
        let mut described = super::policy::versions("back");
        described["spec"]["balancer"] = json!({ "failover": [{ "labels": { "version": "v2" } }] });
        ns.apply_json(&described)?;
        eventually("v2 first", SOON, || all_at("v2", &client.get_many("http://back/", 100, 2, &[])?))?;
        ns.cluster.kubectl(&["scale", "deploy/back-v2", "-n", &ns.name, "--replicas=0"])?;
        eventually("then v1", Duration::from_secs(30), || {
            all_at("v1", &client.get_many("http://back/", 100, 2, &[])?)
        })
    });
}

#[test]
fn below_the_panic_threshold_the_ejected_are_used() {
    scenario("panic", Injection::Label, |ns| {
        App::new("back").replicas(3).deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        let spec = |threshold: u32| {
            let mut object = balanced("back", json!({ "policy": "RoundRobin", "panicThreshold": threshold }));
            object["spec"]["health"] = json!({ "outlier": { "consecutiveFailures": 2, "ejectionTime": "1h", "maxEjectionTime": "1h", "maxEjectedPercent": 100 } });
            object
        };
        ns.apply_json(&spec(0))?;
        let sick = ns.cluster.ready_pods(&ns.name, "app=back")?.swap_remove(0);
        toggle(ns, &sick, true)?;
        let failures = |client: &Client<'_>| -> Result<usize> {
            Ok(client.get_many("http://back/", 90, 1, &[])?.iter().filter(|r| r.status != 200).count())
        };
        eventually("it is ejected", SOON, || {
            let failures = failures(&client)?;
            ensure!(failures == 0, "{failures} failures");
            Ok(())
        })?;
        // Two of three are healthy, which is below the threshold.
        ns.apply_json(&spec(100))?;
        eventually("it is used all the same", SOON, || {
            let failures = failures(&client)?;
            ensure!((25..=35).contains(&failures), "{failures} failures of 90");
            Ok(())
        })
    });
}

/// A Service whose slice the test writes, with a zone for each pod.
fn placed(ns: &Namespace, name: &str, places: &[(&Value, &str)]) -> Result<()> {
    ns.apply_json(&json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
        "spec": { "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] } }))?;
    let endpoints: Vec<Value> = places
        .iter()
        .map(|(pod, zone)| {
            json!({ "addresses": [pod["status"]["podIP"]], "conditions": { "ready": true }, "zone": zone,
                "targetRef": { "kind": "Pod", "name": pod["metadata"]["name"], "namespace": ns.name } })
        })
        .collect();
    ns.apply_json(
        &json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": name, "labels": { "kubernetes.io/service-name": name } },
        "endpoints": endpoints, "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }] }),
    )
    .map(drop)
}

/// A node's zone, until dropped. The cluster's only node has none otherwise.
struct ZoneLabel<'a>(&'a Namespace, &'a str);

impl<'a> ZoneLabel<'a> {
    fn set(ns: &'a Namespace, node: &'a str) -> Result<Self> {
        ns.cluster.kubectl(&["label", "node", node, "topology.kubernetes.io/zone=here", "--overwrite"])?;
        Ok(Self(ns, node))
    }
}

impl Drop for ZoneLabel<'_> {
    fn drop(&mut self) {
        // The cluster may be gone.
        let _ = self.0.cluster.kubectl(&["label", "node", self.1, "topology.kubernetes.io/zone-"]);
    }
}

#[test]
fn the_own_zone_comes_first_and_may_be_all_that_there_is() {
    scenario("locality", Injection::Label, |ns| {
        App::new("back").replicas(2).deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        let pod = ns.pod("app=client")?;
        let node = pod["spec"]["nodeName"].as_str().context("no node")?;
        let _label = ZoneLabel::set(ns, node)?;
        let backs = ns.cluster.objects(&ns.name, "pods", "app=back")?;
        let [near, far] = &backs[..] else { anyhow::bail!("{} pods", backs.len()) };
        let name = |pod: &Value| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        placed(ns, "placed", &[(near, "here"), (far, "there")])?;
        ns.apply_json(&balanced("placed", json!({ "locality": { "mode": "Prefer" } })))?;
        let only = |expected: &str| -> Result<()> {
            let counts = pods(&client.get_many("http://placed/", 40, 2, &[])?);
            ensure!(counts.len() == 1 && counts.contains_key(expected), "{counts:?}, not {expected}");
            Ok(())
        };
        eventually("the own zone", SOON, || only(&name(near)))?;
        placed(ns, "placed", &[(far, "there")])?;
        eventually("the other when nothing else is there", SOON, || only(&name(far)))?;
        ns.apply_json(&balanced("placed", json!({ "locality": { "mode": "Strict", "within": "Zone" } })))?;
        eventually("nothing beyond the boundary", SOON, || {
            client.get("http://placed/")?.expect_reason(503, Reason::NoHealthyEndpoint).map(drop)
        })?;
        placed(ns, "placed", &[(near, "here"), (far, "there")])?;
        eventually("what is within it", SOON, || only(&name(near)))
    });
}
