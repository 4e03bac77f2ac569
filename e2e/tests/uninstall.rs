//! `helm uninstall` leaves nothing of Weft in the cluster. Runs last and alone.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;
use weft_e2e::app::{TEST_IMAGE, pod, service_account};
use weft_e2e::{Client, Cluster, Injection, chart, eventually, scenario};

/// Everything of any kind whose name or labels speak of Weft, as `kind namespace/name`.
fn traces(cluster: &Cluster) -> Result<Vec<String>> {
    let kinds = cluster.kubectl(&["api-resources", "--verbs=list", "-o", "name"])?;
    // Events are a log of what was, not a thing that was left.
    let kinds: Vec<_> = kinds
        .lines()
        .filter(|kind| !kind.starts_with("events") && !kind.starts_with("componentstatuses"))
        .collect();
    let list: Value = serde_json::from_str(&cluster.kubectl(&[
        "get",
        &kinds.join(","),
        "-A",
        "-o",
        "json",
        "--ignore-not-found",
    ])?)?;
    let mut found = Vec::new();
    for object in list["items"].as_array().into_iter().flatten() {
        let metadata = &object["metadata"];
        let namespace = metadata["namespace"].as_str().unwrap_or_default();
        // Made by the tests; or by `helm install --create-namespace`, which Helm never takes back.
        let name = metadata["name"].as_str().unwrap_or_default();
        let own = object["kind"] == "Namespace" && (name == chart::NAMESPACE || name.starts_with("e2e-"));
        if own || namespace.starts_with("e2e-") {
            continue;
        }
        let labels = metadata["labels"].to_string();
        let annotations = metadata["annotations"]
            .as_object()
            .map(|a| a.keys().cloned().collect::<Vec<_>>().join(" "))
            .unwrap_or_default();
        let named =
            metadata["name"].as_str().is_some_and(|n| n.starts_with("weft") || n.ends_with("weft.dev"));
        if named
            || labels.contains("weft.dev/")
            || labels.contains("\"weft") && !labels.contains("weft-e2e")
            || annotations.contains("weft.dev/")
        {
            found.push(format!(
                "{} {namespace}/{}",
                object["kind"].as_str().unwrap_or(""),
                metadata["name"].as_str().unwrap_or("")
            ));
        }
    }
    Ok(found)
}

#[test]
fn uninstalling_leaves_nothing_and_running_pods_are_not_touched() {
    scenario("uninstall", Injection::Annotation, |ns| {
        let plain_name = {
            let client = Client::deploy(ns, "client")?;
            client.run(&["/testapp", "version"])?;
            ns.name.clone()
        };
        ns.apply_json(&json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "PeerAuthentication", "metadata": { "name": "strict" },
            "spec": { "mtls": { "mode": "Permissive" } } }))?;
        ensure!(!traces(ns.cluster)?.is_empty(), "the search for traces finds nothing even now");
        chart::uninstall(ns.cluster)?;
        eventually("no trace is left", Duration::from_secs(30), || {
            let left = traces(ns.cluster)?;
            ensure!(left.is_empty(), "left: {left:#?}");
            Ok(())
        })?;
        // What the operator wrote into the user's namespaces is gone too; what the user wrote stays.
        let namespace = ns.cluster.object("", "namespace", &plain_name)?;
        ensure!(
            namespace["metadata"]["labels"]["weft.dev/inject-by-annotation"].is_null(),
            "label left: {}",
            namespace["metadata"]["labels"]
        );
        ensure!(
            namespace["metadata"]["annotations"]["weft.dev/inject"] == "enabled",
            "the user's own annotation is gone"
        );
        let maps = ns.cluster.objects(&plain_name, "configmaps", "")?;
        ensure!(
            maps.iter().all(|m| m["metadata"]["name"] != "weft-trust-bundle"),
            "the trust bundle is left"
        );
        ensure!(ns.object("pod", "client")?["status"]["phase"] == "Running", "a running pod was touched");
        // And pods are made as before, without Weft.
        chart::delete_namespace(ns.cluster)?;
        let later = pod("later", TEST_IMAGE, &["/testapp", "pause"]);
        ns.apply_json(
            &json!({ "apiVersion": "v1", "kind": "List", "items": [service_account("later"), later] }),
        )?;
        ns.cluster.wait(&ns.name, "pod/later", "condition=Ready")
    });
}
