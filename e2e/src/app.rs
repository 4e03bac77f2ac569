//! Applications to test with: a server (Deployment or StatefulSet, with its Service) and a client pod, both the test image.
//! Builders of manifests; the YAML that users would write, as JSON.

use crate::command::{Ended, Running};
use crate::namespace::Namespace;
use anyhow::Result;
use serde_json::{Value, json};

/// Image of the test application; no shell inside.
pub const TEST_IMAGE: &str = "localhost/weft-testapp:dev";
/// Image with curl, busybox and openssl.
pub const CURL_IMAGE: &str = "localhost/weft-curl:dev";

/// Which object owns the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Deployment.
    Deployment,
    /// StatefulSet with a headless Service.
    StatefulSet,
}

/// A server application. Its pods carry the labels `app: <name>` and `version: <version>`, and its ServiceAccount is `<name>`.
#[derive(Clone, Debug)]
pub struct App {
    name: String,
    version: String,
    replicas: u32,
    owner: Owner,
    headless: bool,
    service: bool,
    service_account: String,
    labels: Value,
    annotations: Value,
    arguments: Vec<String>,
    service_ports: Value,
    probes: Value,
    init_containers: Vec<Value>,
    grace: u32,
}

impl App {
    /// One replica, version `v1`, with a Service for HTTP (80), gRPC (9000), raw TCP (7000) and a banner (2525).
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: "v1".to_owned(),
            replicas: 1,
            owner: Owner::Deployment,
            headless: false,
            service: true,
            service_account: name.to_owned(),
            labels: json!({}),
            annotations: json!({}),
            arguments: Vec::new(),
            service_ports: json!([
                { "name": "http", "port": 80, "targetPort": 8080 },
                { "name": "grpc", "port": 9000, "targetPort": 9000 },
                { "name": "tcp-echo", "port": 7000, "targetPort": 7000 },
                { "name": "tcp-banner", "port": 2525, "targetPort": 2525 },
                { "name": "tls", "port": 8443, "targetPort": 8443 }
            ]),
            probes: json!({ "readinessProbe": { "httpGet": { "path": "/healthz", "port": 8080 }, "periodSeconds": 1 } }),
            init_containers: Vec::new(),
            grace: 5,
        }
    }

    /// The version label and what the application says of itself.
    #[must_use]
    pub fn version(mut self, version: &str) -> Self {
        version.clone_into(&mut self.version);
        self
    }

    /// How many pods.
    #[must_use]
    pub fn replicas(mut self, replicas: u32) -> Self {
        self.replicas = replicas;
        self
    }

    /// A StatefulSet behind a headless Service.
    #[must_use]
    pub fn stateful(mut self) -> Self {
        self.owner = Owner::StatefulSet;
        self.headless = true;
        self
    }

    /// A Service without a cluster IP.
    #[must_use]
    pub fn headless(mut self) -> Self {
        self.headless = true;
        self
    }

    /// No Service.
    #[must_use]
    pub fn without_service(mut self) -> Self {
        self.service = false;
        self
    }

    /// Another ServiceAccount than the application's name.
    #[must_use]
    pub fn service_account(mut self, account: &str) -> Self {
        account.clone_into(&mut self.service_account);
        self
    }

    /// One more pod label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels[key] = value.into();
        self
    }

    /// One more pod annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations[key] = value.into();
        self
    }

    /// One more argument of the application.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// The Service's ports instead of the usual ones.
    #[must_use]
    pub fn service_ports(mut self, ports: Value) -> Self {
        self.service_ports = ports;
        self
    }

    /// Probes of the container instead of the usual readiness probe.
    #[must_use]
    pub fn probes(mut self, probes: Value) -> Self {
        self.probes = probes;
        self
    }

    /// One more init container.
    #[must_use]
    pub fn init_container(mut self, container: Value) -> Self {
        self.init_containers.push(container);
        self
    }

    /// Seconds between the request to stop and the kill.
    #[must_use]
    pub fn grace(mut self, seconds: u32) -> Self {
        self.grace = seconds;
        self
    }

    /// Name of the Deployment or StatefulSet: the application's name, with the version unless that is `v1`.
    #[must_use]
    pub fn workload(&self) -> String {
        if self.version == "v1" { self.name.clone() } else { format!("{}-{}", self.name, self.version) }
    }

    /// `deploy/<name>` or `sts/<name>`.
    #[must_use]
    pub fn resource(&self) -> String {
        let kind = if self.owner == Owner::Deployment { "deploy" } else { "sts" };
        format!("{kind}/{}", self.workload())
    }

    /// The labels that select the pods of this version, as kubectl takes them.
    #[must_use]
    pub fn selector(&self) -> String {
        format!("app={},version={}", self.name, self.version)
    }

    /// All objects as one list.
    #[must_use]
    pub fn manifest(&self) -> Value {
        let mut items = vec![service_account(&self.service_account), self.owner_object()];
        if self.service {
            items.push(self.service_object());
        }
        json!({ "apiVersion": "v1", "kind": "List", "items": items })
    }

    fn owner_object(&self) -> Value {
        let labels = json!({ "app": self.name, "version": self.version });
        let mut pod_labels = labels.clone();
        merge(&mut pod_labels, &self.labels);
        let kind = if self.owner == Owner::Deployment { "Deployment" } else { "StatefulSet" };
        let mut object = json!({
            "apiVersion": "apps/v1", "kind": kind,
            "metadata": { "name": self.workload() },
            "spec": {
                "replicas": self.replicas,
                "selector": { "matchLabels": labels },
                "template": {
                    "metadata": { "labels": pod_labels, "annotations": self.annotations },
                    "spec": {
                        "serviceAccountName": self.service_account,
                        "terminationGracePeriodSeconds": self.grace,
                        "initContainers": self.init_containers,
                        "containers": [self.container()]
                    }
                }
            }
        });
        if self.owner == Owner::StatefulSet {
            object["spec"]["serviceName"] = self.name.clone().into();
            object["spec"]["podManagementPolicy"] = "Parallel".into();
        }
        object
    }

    fn container(&self) -> Value {
        let mut command: Vec<_> = [
            "/testapp",
            "serve",
            "--http=:8080",
            "--grpc=:9000",
            "--tcp=:7000",
            "--banner=:2525",
            "--tls=:8443",
        ]
        .map(str::to_owned)
        .into();
        command.extend(self.arguments.iter().cloned());
        let mut container = json!({
            "name": "app", "image": TEST_IMAGE, "imagePullPolicy": "IfNotPresent",
            "command": command,
            "env": [
                { "name": "VERSION", "value": self.version },
                { "name": "POD_NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }
            ],
            "ports": [{ "containerPort": 8080 }, { "containerPort": 9000 }, { "containerPort": 7000 }, { "containerPort": 2525 }, { "containerPort": 8443 }],
            "resources": { "requests": { "cpu": "5m", "memory": "8Mi" } }
        });
        merge(&mut container, &self.probes);
        container
    }

    fn service_object(&self) -> Value {
        let mut spec = json!({ "selector": { "app": self.name }, "ports": self.service_ports });
        if self.headless {
            spec["clusterIP"] = "None".into();
        }
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": self.name }, "spec": spec })
    }

    /// Applies everything, without waiting.
    pub fn apply(&self, namespace: &Namespace) -> Result<()> {
        namespace.apply_json(&self.manifest()).map(drop)
    }

    /// Applies everything and waits until all pods are ready.
    pub fn deploy(&self, namespace: &Namespace) -> Result<()> {
        self.apply(namespace)?;
        self.ready(namespace)
    }

    /// Waits until all pods are ready.
    pub fn ready(&self, namespace: &Namespace) -> Result<()> {
        namespace.cluster.rollout(&namespace.name, &self.resource())?;
        namespace.expect_injected(&self.selector())
    }
}

fn merge(into: &mut Value, from: &Value) {
    for (key, value) in from.as_object().into_iter().flatten() {
        into[key] = value.clone();
    }
}

/// A ServiceAccount.
#[must_use]
pub fn service_account(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name } })
}

/// A pod of one container `app`, under the ServiceAccount of the same name as the pod.
#[must_use]
pub fn pod(name: &str, image: &str, command: &[&str]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": name } },
        "spec": {
            "serviceAccountName": name,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "app", "image": image, "imagePullPolicy": "IfNotPresent", "command": command,
                "resources": { "requests": { "cpu": "5m", "memory": "8Mi" } }
            }]
        }
    })
}

/// A pod from which a test calls others.
#[derive(Clone, Debug)]
pub struct Client<'a> {
    /// Where it runs.
    pub namespace: &'a Namespace,
    /// The pod's name.
    pub pod: String,
}

impl<'a> Client<'a> {
    /// A pod of the test image that only waits for commands.
    pub fn deploy(namespace: &'a Namespace, name: &str) -> Result<Self> {
        Self::deploy_pod(namespace, name, pod(name, TEST_IMAGE, &["/testapp", "pause"]))
    }

    /// A pod with curl, busybox and openssl.
    pub fn deploy_shell(namespace: &'a Namespace, name: &str) -> Result<Self> {
        Self::deploy_pod(namespace, name, pod(name, CURL_IMAGE, &["/bin/sh", "-c", "exec sleep 100000"]))
    }

    /// Any pod whose container is called `app`, with its ServiceAccount.
    pub fn deploy_pod(namespace: &'a Namespace, name: &str, pod: Value) -> Result<Self> {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": [service_account(name), pod] });
        namespace.apply_json(&list)?;
        namespace.cluster.wait(&namespace.name, &format!("pod/{name}"), "condition=Ready")?;
        namespace.expect_injected(&format!("app={name}"))?;
        Ok(Self { namespace, pod: name.to_owned() })
    }

    /// Runs a command in it; its standard output.
    pub fn run(&self, command: &[&str]) -> Result<String> {
        self.namespace.cluster.exec(&self.namespace.name, &self.pod, "app", command)
    }

    /// Runs a command in it, whatever the outcome.
    pub fn run_ended(&self, command: &[&str]) -> Result<Ended> {
        self.namespace.cluster.exec_ended(&self.namespace.name, &self.pod, "app", command, None)
    }

    /// Starts a command in it.
    pub fn start(&self, command: &[&str]) -> Result<Running> {
        self.namespace.cluster.exec_start(&self.namespace.name, &self.pod, "app", command, None)
    }

    /// Runs a shell script (pods with a shell only), whatever the outcome.
    pub fn shell(&self, script: &str) -> Result<Ended> {
        self.run_ended(&["/bin/sh", "-c", script])
    }
}
