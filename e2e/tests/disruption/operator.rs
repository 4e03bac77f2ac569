//! The operator goes away: running traffic never notices.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;
use weft_e2e::chart::{self, NAMESPACE};
use weft_e2e::{App, Client, Cluster, Injection, Namespace, eventually, scenario};

fn timeout_policy(ns: &Namespace, timeout: &str) -> Result<()> {
    let policy: Value = json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": { "name": "back" }, "spec": {
        "targetRefs": [{ "kind": "Service", "name": "back" }], "rules": [{ "timeout": timeout }] } });
    ns.apply_json(&policy).map(drop)
}

fn scale(cluster: &Cluster, deployment: &str, replicas: u64) -> Result<()> {
    cluster.kubectl(&["scale", deployment, "-n", NAMESPACE, &format!("--replicas={replicas}")]).map(drop)
}

fn replicas(cluster: &Cluster, deployment: &str) -> Result<u64> {
    cluster.object(NAMESPACE, "deploy", deployment)?["spec"]["replicas"].as_u64().context("no replicas")
}

#[test]
fn killing_and_restarting_the_operator_under_load_fails_no_request_and_policies_apply_again() {
    scenario("operator-killed", Injection::Label, |ns| {
        App::new("back").replicas(2).deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        client.get("http://back/")?.expect(200)?;
        let load = client.load("http://back/", 100, Duration::from_secs(20), &["-c", "4"])?;
        std::thread::sleep(Duration::from_secs(1));
        for pod in chart::pods(ns.cluster, "weft-operator")? {
            ns.cluster.kubectl(&["delete", "pod", &pod, "-n", NAMESPACE, "--grace-period=0", "--force"])?;
        }
        chart::ready(ns.cluster)?;
        timeout_policy(ns, "200ms")?;
        eventually("a policy applied afterwards is enforced", Duration::from_secs(20), || {
            client.get("http://back/delay/1s")?.expect(504)
        })?;
        load.finish()?.expect_no_failure(1900)
    });
}

#[test]
fn with_no_operator_at_all_endpoints_known_are_served_and_the_last_configuration_holds() {
    scenario("operator-gone", Injection::Label, |ns| {
        App::new("back").replicas(2).deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        timeout_policy(ns, "300ms")?;
        eventually("the policy is enforced", Duration::from_secs(10), || {
            client.get("http://back/delay/1s")?.expect(504)
        })?;
        let before = replicas(ns.cluster, "weft-operator")?;
        scale(ns.cluster, "deploy/weft-operator", 0)?;
        let outcome = (|| {
            eventually("the operator is gone", Duration::from_secs(60), || {
                let left = chart::pods(ns.cluster, "weft-operator")?;
                ensure!(left.is_empty(), "left: {left:?}");
                Ok(())
            })?;
            client
                .load("http://back/", 100, Duration::from_secs(8), &["-c", "4", "--new-connections"])?
                .finish()?
                .expect_no_failure(750)?;
            client.get("http://back/delay/1s")?.expect(504).context("the policy was lost")?;
            // A proxy restart without operator: the pod waits and says so; it does not let anything out.
            Ok(())
        })();
        scale(ns.cluster, "deploy/weft-operator", before)?;
        chart::ready(ns.cluster)?;
        outcome
    });
}

#[test]
fn deleting_the_ca_secret_changes_nothing_and_it_is_restored() {
    scenario("ca-deleted", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        let root = |cluster: &Cluster| -> Result<Value> {
            Ok(cluster.object(NAMESPACE, "secret", "weft-ca")?["data"]["tls.crt"].clone())
        };
        let before = root(ns.cluster)?;
        let load =
            client.load("http://back/", 50, Duration::from_secs(8), &["-c", "2", "--new-connections"])?;
        ns.cluster.kubectl(&["delete", "secret", "weft-ca", "-n", NAMESPACE])?;
        eventually("the same root is back", Duration::from_secs(20), || {
            ensure!(root(ns.cluster)? == before, "another root");
            Ok(())
        })?;
        load.finish()?.expect_no_failure(380)?;
        Client::deploy(ns, "newcomer")?.get("http://back/")?.expect(200).map(drop)
    });
}
