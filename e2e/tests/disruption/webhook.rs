//! The webhook goes away: only injected namespaces wait, and everything recovers from cold.

use anyhow::{Result, ensure};
use serde_json::json;
use std::time::Duration;
use weft_e2e::app::{TEST_IMAGE, pod, service_account};
use weft_e2e::chart::{self, NAMESPACE};
use weft_e2e::{Client, Injection, Namespace, eventually, scenario};

fn scale_all(ns: &Namespace, deployments: &[&str], replicas: u64) -> Result<()> {
    for deployment in deployments {
        ns.cluster.kubectl(&[
            "scale",
            &format!("deploy/{deployment}"),
            "-n",
            NAMESPACE,
            &format!("--replicas={replicas}"),
        ])?;
    }
    Ok(())
}

fn await_none(ns: &Namespace, deployments: &[&str]) -> Result<()> {
    eventually("they are gone", Duration::from_secs(60), || {
        for deployment in deployments {
            let left = chart::pods(ns.cluster, deployment)?;
            ensure!(left.is_empty(), "left: {left:?}");
        }
        Ok(())
    })
}

#[test]
fn with_operator_and_webhook_down_other_namespaces_never_notice_and_both_recover_from_cold() {
    scenario("cold", Injection::Label, |ns| {
        let plain = Namespace::create(ns.cluster, "cold-plain", Injection::None)?;
        let both = ["weft-operator", "weft-webhook"];
        let replicas =
            ns.cluster.object(NAMESPACE, "deploy", "weft-webhook")?["spec"]["replicas"].as_u64().unwrap_or(1);
        scale_all(ns, &both, 0)?;
        let outcome = (|| {
            await_none(ns, &both)?;
            Client::deploy(&plain, "bystander")?;
            let list = json!({ "apiVersion": "v1", "kind": "List", "items": [service_account("late"), pod("late", TEST_IMAGE, &["/testapp", "pause"])] });
            let refused = ns.cluster.apply_refused(&ns.name, &list.to_string())?;
            ensure!(
                refused.contains("injector.weft.dev"),
                "the refusal does not name the webhook: {refused}"
            );
            Ok(())
        })();
        scale_all(ns, &both, replicas)?;
        chart::ready(ns.cluster)?;
        outcome?;
        eventually("injection works again", Duration::from_secs(30), || {
            Client::deploy(ns, "late").map(drop)
        })?;
        let stored = ns.object("pod", "late")?;
        ensure!(
            stored["metadata"]["labels"]["weft.dev/injected"] == "enabled",
            "not injected: {}",
            stored["metadata"]
        );
        Ok(())
    });
}

#[test]
fn a_killed_webhook_comes_back_by_itself_and_weft_resources_are_checked_again() {
    scenario("webhook-killed", Injection::Label, |ns| {
        for pod in chart::pods(ns.cluster, "weft-webhook")? {
            ns.cluster.kubectl(&["delete", "pod", &pod, "-n", NAMESPACE, "--grace-period=0", "--force"])?;
        }
        chart::ready(ns.cluster)?;
        eventually("injection works again", Duration::from_secs(30), || Client::deploy(ns, "late").map(drop))
    });
}
