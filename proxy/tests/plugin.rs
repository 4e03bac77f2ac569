//! The CNI plugin in a real kernel: the program as a container runtime starts it, and a network namespace that it is to enter from
//! outside. Needs root; says so and passes where it is not.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the report")]

use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

mod netns;

use netns::pod_and_peer;

/// A runtime's node: the plugin by its name, and a pod's namespace by a path.
struct Node {
    _dir: tempfile::TempDir,
    plugin: PathBuf,
    netns: String,
}

impl Node {
    fn new(pod: &netns::Namespace) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let plugin = dir.path().join("weft-cni");
        symlink(env!("CARGO_BIN_EXE_weft-proxy"), &plugin).unwrap();
        Self { _dir: dir, plugin, netns: format!("/proc/{}/task/{}/ns/net", std::process::id(), pod.tid()) }
    }

    fn call(&self, command: &str, config: &Value) -> Output {
        let mut child = Command::new(&self.plugin)
            .env_clear()
            .envs([
                ("CNI_COMMAND", command),
                ("CNI_CONTAINERID", "c1"),
                ("CNI_IFNAME", "eth0"),
                ("CNI_NETNS", &self.netns),
                ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=front-1"),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }
}

fn config(annotations: &Value) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "net", "type": "weft-cni",
        "runtimeConfig": { "io.kubernetes.cri.pod-annotations": annotations },
        "prevResult": { "cniVersion": "1.0.0", "interfaces": [{ "name": "eth0" }], "ips": [{ "address": "10.77.0.1/24" }] },
    })
}

fn rules(pod: &netns::Namespace) -> String {
    let (tell, told) = std::sync::mpsc::channel();
    pod.run(move || {
        let out = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
        tell.send(String::from_utf8(out.stdout).unwrap()).unwrap();
    });
    told.recv().unwrap()
}

#[test]
fn an_injected_pod_gets_its_rules_from_outside_and_the_result_is_passed_on() {
    let Some((pod, _peer)) = pod_and_peer() else { return };
    let node = Node::new(&pod);
    let injected = config(
        &json!({ "weft.dev/redirection": r#"{"skipInboundPorts":[9100],"skipOutboundPorts":[],"skipOutboundCidrs":["10.9.0.0/16"]}"# }),
    );

    let check = node.call("CHECK", &injected);
    let why: Value = serde_json::from_slice(&check.stdout).unwrap();
    assert!(!check.status.success() && why["code"] == 100, "nothing is there yet: {why}");

    let add = node.call("ADD", &injected);
    let result: Value = serde_json::from_slice(&add.stdout).unwrap();
    assert!(add.status.success(), "{result}");
    assert_eq!(result, injected["prevResult"]);
    let now = rules(&pod);
    for rule in [
        "redirect to :15001",
        "redirect to :15006",
        "tcp dport 9100 return",
        "10.9.0.0/16 return",
        "skuid 2102",
    ] {
        assert!(now.contains(rule), "{rule} is not in {now}");
    }
    assert!(node.call("CHECK", &injected).status.success());
    assert!(node.call("ADD", &injected).status.success(), "again is no error");
    assert_eq!(rules(&pod), now);
    let del = node.call("DEL", &injected);
    assert!(del.status.success() && del.stdout.is_empty());
}

#[test]
fn other_pods_are_left_alone_and_an_error_makes_no_pod() {
    let Some((pod, _peer)) = pod_and_peer() else { return };
    let mut node = Node::new(&pod);
    for none in [json!(null), json!({ "app": "x" })] {
        assert!(node.call("ADD", &config(&none)).status.success());
    }
    assert_eq!(rules(&pod), "");
    let version = node.call("VERSION", &json!({ "cniVersion": "1.1.0" }));
    let version: Value = serde_json::from_slice(&version.stdout).unwrap();
    assert!(version["supportedVersions"].as_array().unwrap().contains(&json!("1.1.0")), "{version}");

    "/proc/1/ns/nonexistent".clone_into(&mut node.netns);
    let add = node.call("ADD", &config(&json!({ "weft.dev/redirection": "{}" })));
    let why: Value = serde_json::from_slice(&add.stdout).unwrap();
    assert!(!add.status.success() && why["msg"].as_str().unwrap().contains("nonexistent"), "{why}");
}
