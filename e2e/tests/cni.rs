//! The mesh with a CNI plugin in place of init containers: namespaces that enforce Pod Security `restricted`, what becomes of pods
//! that the plugin missed, and that nothing of it stays on a node. It changes how Weft is installed, so it runs alone.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;
use weft_api::names;
use weft_e2e::app::{TEST_IMAGE, pod, service_account};
use weft_e2e::{Client, Cluster, Injection, Namespace, chart, eventually, machine, scenario};

/// Where nodes keep CNI plugins and their configuration: those of the tests' own cluster (`e2e/cluster/node.sh`), others.
const FOLDERS: [(&str, &str); 2] = [("/run/cni/bin", "/run/cni/net.d"), ("/opt/cni/bin", "/etc/cni/net.d")];

/// A node, seen through the process that holds a container of a pod there.
struct Node {
    root: PathBuf,
    bin: &'static str,
    conf: &'static str,
}

impl Node {
    fn of(pod: &Value, program: &str) -> Result<Self> {
        let pid = machine::process(pod, program)?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).context("no parent")?;
        let root = PathBuf::from(format!("/proc/{}/root", parent.trim()));
        let there = |folder: &str| root.join(folder.trim_start_matches('/')).is_dir();
        let found = FOLDERS.into_iter().find(|(bin, conf)| there(bin) && there(conf));
        let (bin, conf) = found.context(
            "the node has no folders of CNI that are its own: start the cluster anew (make cluster-down)",
        )?;
        Ok(Self { root, bin, conf })
    }

    fn folder(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// What of the plugin is there.
    fn traces(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for folder in [self.folder(self.bin), self.folder(self.conf)] {
            for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let text = if name.contains("conf") {
                    std::fs::read_to_string(entry.path())?
                } else {
                    String::new()
                };
                if name.contains("weft-cni") || name.contains("weft-new") || text.contains("weft-cni") {
                    found.push(name);
                }
            }
        }
        Ok(found)
    }
}

/// Weft with the plugin, and without again when this goes.
struct Plugged(&'static Cluster);

impl Plugged {
    fn install(cluster: &'static Cluster) -> Result<Self> {
        let operators = cluster.objects(chart::NAMESPACE, "pods", "app.kubernetes.io/name=weft-operator")?;
        let node = Node::of(operators.first().context("no operator")?, "/weft-operator")?;
        let plugged = Self(cluster);
        let folders = [format!("--set=cni.binDir={}", node.bin), format!("--set=cni.confDir={}", node.conf)];
        chart::install_with(cluster, &["--set=cni.enabled=true", &folders[0], &folders[1]])?;
        cluster.rollout(chart::NAMESPACE, "daemonset/weft-cni")?;
        // The API server may still speak to one that knows nothing of the plugin, until that has ended.
        eventually("the old webhook has gone", Duration::from_secs(60), || {
            let pods = cluster.objects(chart::NAMESPACE, "pods", "app.kubernetes.io/name=weft-webhook")?;
            let going = pods.iter().filter(|pod| !pod["metadata"]["deletionTimestamp"].is_null()).count();
            ensure!(going == 0, "{going} pods are on their way out");
            Ok(())
        })?;
        Ok(plugged)
    }
}

impl Drop for Plugged {
    fn drop(&mut self) {
        if let Err(error) = chart::install_with(self.0, &["--set=cni.enabled=false"]) {
            eprintln!("Weft could not be installed without the plugin again: {error:#}");
        }
    }
}

/// What `restricted` wants of a container.
fn restricted(mut pod: Value) -> Value {
    pod["spec"]["containers"][0]["securityContext"] = json!({
        "runAsUser": 10001, "runAsNonRoot": true, "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"] }, "seccompProfile": { "type": "RuntimeDefault" },
    });
    pod
}

/// A namespace whose pods are injected, and refused unless they satisfy `restricted`.
fn restrict(ns: &Namespace) -> Result<()> {
    let label = "pod-security.kubernetes.io/enforce=restricted";
    ns.cluster.kubectl(&["label", "namespace", &ns.name, label]).map(drop)
}

fn server(ns: &Namespace) -> Result<()> {
    let mut server = restricted(pod("server", TEST_IMAGE, &["/testapp", "serve", "--http=:8080"]));
    server["spec"]["containers"][0]["readinessProbe"] =
        json!({ "httpGet": { "path": "/healthz", "port": 8080 }, "periodSeconds": 1 });
    let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "server" },
        "spec": { "selector": { "app": "server" }, "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] } });
    Client::deploy_pod(ns, "server", server)?;
    ns.apply_json(&service).map(drop)
}

#[test]
fn a_namespace_that_enforces_restricted_is_in_the_mesh_and_a_pod_without_rules_never_gets_ready() {
    scenario("cni", Injection::Label, |ns| {
        restrict(ns)?;
        ns.apply_json(&service_account("early"))?;
        let refused =
            ns.apply_refused(&restricted(pod("early", TEST_IMAGE, &["/testapp", "pause"])).to_string())?;
        ensure!(refused.contains("NET_ADMIN"), "with an init container it cannot be: {refused}");

        let plugged = Plugged::install(ns.cluster)?;
        server(ns)?;
        let client =
            Client::deploy_pod(ns, "client", restricted(pod("client", TEST_IMAGE, &["/testapp", "pause"])))?;
        let injected = ns.object("pod", "client")?;
        ensure!(!injected["spec"].to_string().contains(names::INIT_CONTAINER), "{}", injected["spec"]);
        let reply = eventually("a request goes through the mesh", Duration::from_secs(20), || {
            client.get("http://server/")?.expect(200)
        })?;
        let identity = format!("/ns/{}/sa/client", ns.name);
        let seen = reply.seen_identity().unwrap_or_default();
        ensure!(seen.ends_with(&identity), "the server saw `{seen}`, so this was no mTLS");

        missed(ns, &injected)?;
        let node = Node::of(&injected, "/weft-proxy")?;
        put_back(&node)?;

        ensure!(node.traces()?.len() == 2, "on the node: {:?}", node.traces()?);
        drop(plugged);
        eventually("nothing of the plugin is left on the node", Duration::from_secs(60), || {
            let left = node.traces()?;
            ensure!(left.is_empty(), "left: {left:?}");
            Ok(())
        })?;
        // Pods that run keep their rules.
        client.get("http://server/")?.expect(200).map(drop)
    });
}

/// A pod that has its proxy and not its rules, as if the plugin had not been there when it was made: a copy of an injected one, without
/// the annotation that the plugin goes by. The webhook takes it for injected, as it is.
fn missed(ns: &Namespace, injected: &Value) -> Result<()> {
    let mut copy = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "missed" }, "spec": injected["spec"] });
    for kind in ["labels", "annotations"] {
        copy["metadata"][kind] = injected["metadata"][kind].clone();
    }
    copy["metadata"]["labels"]["app"] = "missed".into();
    for path in ["/metadata/annotations", "/spec"] {
        let part = copy.pointer_mut(path).and_then(Value::as_object_mut).context("an object")?;
        part.remove(names::REDIRECTION);
        part.remove("kubectl.kubernetes.io/last-applied-configuration");
        part.remove("nodeName");
    }
    ns.apply_json(
        &json!({ "apiVersion": "v1", "kind": "List", "items": [service_account("missed"), copy] }),
    )?;
    eventually("its proxy says why it is not ready", Duration::from_secs(60), || {
        let log = ns.cluster.logs(&ns.name, "missed", names::PROXY_CONTAINER, 50);
        ensure!(log.contains("redirection rules are missing"), "{log}");
        let events = ns.cluster.kubectl(&[
            "get",
            "events",
            "-n",
            &ns.name,
            "--field-selector=involvedObject.name=missed",
        ])?;
        ensure!(events.contains("Startup probe failed") && events.contains("503"), "{events}");
        Ok(())
    })?;
    let stays = ns.object("pod", "missed")?;
    let started =
        |list: &str| stays["status"][list].as_array().into_iter().flatten().any(|c| c["started"] == true);
    ensure!(!started("initContainerStatuses"), "the proxy counts as started: {}", stays["status"]);
    ensure!(!started("containerStatuses"), "the application has started: {}", stays["status"]);
    ns.delete("pod", "missed")
}

/// Another one writes the network's configuration anew, as network software does when it starts.
fn put_back(node: &Node) -> Result<()> {
    let folder = node.folder(node.conf);
    let list = std::fs::read_dir(&folder)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .min()
        .context("no list")?;
    let mut text: Value = serde_json::from_str(&std::fs::read_to_string(&list)?)?;
    let plugins = text["plugins"].as_array_mut().context("no plugins")?;
    plugins.retain(|plugin| plugin["type"] != "weft-cni");
    std::fs::write(&list, text.to_string())?;
    eventually("the plugin is chained again", Duration::from_secs(20), || {
        ensure!(std::fs::read_to_string(&list)?.contains("weft-cni"), "{} is without it", list.display());
        Ok(())
    })
}
