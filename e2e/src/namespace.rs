//! A namespace of its own for each test, and what to print when the test fails.

use crate::chart;
use crate::cluster::{Cluster, name};
use crate::retry::eventually;
use anyhow::{Context, Result, ensure};
use rand::Rng;
use serde_json::{Value, json};
use std::time::Duration;
use weft_api::names;

/// How a namespace asks for injection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injection {
    /// It does not.
    None,
    /// By label `weft.dev/inject`.
    Label,
    /// By annotation `weft.dev/inject`.
    Annotation,
}

/// A namespace that goes when this is dropped, unless `KEEP=1`.
#[derive(Debug)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub cluster: &'static Cluster,
    adopted: bool,
    injection: Injection,
}

/// Installs the chart when needed, makes a namespace, runs the test in it. On failure prints the state of the namespace and the
/// recent logs of its proxies and of the operator, then panics with the error.
pub fn scenario(prefix: &str, injection: Injection, test: impl FnOnce(&Namespace) -> Result<()>) {
    let cluster = Cluster::get();
    if let Err(error) = chart::ensure_installed(cluster) {
        panic!("the chart could not be installed: {error:#}");
    }
    let namespace = match Namespace::create(cluster, prefix, injection) {
        Ok(namespace) => namespace,
        Err(error) => panic!("no namespace for the test: {error:#}"),
    };
    if let Err(error) = test(&namespace) {
        eprintln!("{}", namespace.diagnosis());
        panic!("{prefix}: {error:#}");
    }
}

impl Namespace {
    /// Makes a namespace with a unique name that begins with `prefix`.
    pub fn create(cluster: &'static Cluster, prefix: &str, injection: Injection) -> Result<Self> {
        let suffix: u32 = rand::rng().random_range(0x1_0000..0xf_ffff);
        let name = format!("e2e-{prefix}-{suffix:x}");
        Self::create_named(cluster, &name, injection)
    }

    /// Makes a namespace of this name.
    pub fn create_named(cluster: &'static Cluster, name: &str, injection: Injection) -> Result<Self> {
        let mut metadata = json!({ "name": name, "labels": { "weft-e2e": "true" } });
        match injection {
            Injection::None => {}
            Injection::Label => metadata["labels"][names::INJECT] = names::ENABLED.into(),
            Injection::Annotation => metadata["annotations"] = json!({ names::INJECT: names::ENABLED }),
        }
        cluster.apply(
            "default",
            &json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": metadata }).to_string(),
        )?;
        let namespace = Self { name: name.to_owned(), cluster, adopted: false, injection };
        if injection == Injection::Annotation {
            namespace.await_mirror()?;
        }
        Ok(namespace)
    }

    /// A namespace that somebody else made; it is not deleted when this is dropped.
    #[must_use]
    pub fn adopt(cluster: &'static Cluster, name: &str) -> Self {
        Self { name: name.to_owned(), cluster, adopted: true, injection: Injection::Annotation }
    }

    /// Refuses pods without a proxy where they ought to have one: a test of the mesh must not pass by going around it.
    pub fn expect_injected(&self, selector: &str) -> Result<()> {
        if self.injection == Injection::None {
            return Ok(());
        }
        for pod in self.cluster.objects(&self.name, "pods", selector)? {
            let declined = pod["metadata"]["labels"][names::INJECT] == names::DISABLED;
            let containers = ["initContainers", "containers"].map(|list| pod["spec"][list].as_array());
            let proxy =
                containers.into_iter().flatten().flatten().any(|c| c["name"] == names::PROXY_CONTAINER);
            ensure!(proxy || declined, "pod {} has no proxy", name(&pod));
        }
        Ok(())
    }

    /// Waits until an annotated namespace is in force: the webhook selects by label, which the operator adds a moment later.
    pub fn await_mirror(&self) -> Result<()> {
        eventually("the operator labels the annotated namespace", Duration::from_secs(10), || {
            let object = self.cluster.object("", "namespace", &self.name)?;
            ensure!(
                object["metadata"]["labels"][names::INJECT_MIRROR] == names::ENABLED,
                "labels: {}",
                object["metadata"]["labels"]
            );
            Ok(())
        })
    }

    /// Applies manifests here.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        self.cluster.apply(&self.name, manifests)
    }

    /// Applies one object given as JSON.
    pub fn apply_json(&self, object: &Value) -> Result<String> {
        self.apply(&object.to_string())
    }

    /// Applies manifests that must be refused; what kubectl said.
    pub fn apply_refused(&self, manifests: &str) -> Result<String> {
        self.cluster.apply_refused(&self.name, manifests)
    }

    /// Deletes objects here and waits until they are gone.
    pub fn delete(&self, kind: &str, name: &str) -> Result<()> {
        self.cluster
            .kubectl_ended(
                &["delete", kind, name, "-n", &self.name, "--timeout=60s"],
                None,
                Duration::from_secs(70),
            )?
            .success()
            .map(drop)
    }

    /// One object of this namespace.
    pub fn object(&self, kind: &str, name: &str) -> Result<Value> {
        self.cluster.object(&self.name, kind, name)
    }

    /// One pod that carries these labels.
    pub fn pod(&self, selector: &str) -> Result<Value> {
        self.cluster
            .objects(&self.name, "pods", selector)?
            .into_iter()
            .next()
            .with_context(|| format!("no pod {selector}"))
    }

    /// What somebody needs to see who finds the test failed.
    #[must_use]
    pub fn diagnosis(&self) -> String {
        let cluster = self.cluster;
        let mut text = format!("---- namespace {} ----\n", self.name);
        for args in [
            &["get", "pods,svc,endpointslices", "-o", "wide", "-n", &self.name][..],
            &["get", "msvc,tpol,pauth", "-o", "yaml", "-n", &self.name],
            &["get", "events", "-n", &self.name, "--field-selector=type=Warning"],
        ] {
            text += &cluster.kubectl(args).unwrap_or_else(|error| format!("{error:#}\n"));
        }
        for pod in cluster.objects(&self.name, "pods", "").unwrap_or_default() {
            let pod = name(&pod);
            for (container, lines) in [(names::INIT_CONTAINER, 5), (names::PROXY_CONTAINER, 25), ("app", 10)]
            {
                let log = cluster.logs(&self.name, &pod, container, lines);
                if !log.is_empty() {
                    text += &format!("---- {pod} {container} ----\n{log}");
                }
            }
        }
        for pod in cluster.objects(chart::NAMESPACE, "pods", "").unwrap_or_default() {
            let pod = name(&pod);
            let log = cluster
                .kubectl(&["logs", "-n", chart::NAMESPACE, &pod, "--tail=25", "--all-containers"])
                .unwrap_or_default();
            text += &format!("---- {pod} ----\n{log}");
        }
        text
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.adopted {
            return;
        }
        if std::env::var_os("KEEP").is_some() {
            eprintln!("kept namespace {}", self.name);
            return;
        }
        // Not awaited: the API server finishes it, and a unique name is never used twice.
        drop(self.cluster.kubectl(&[
            "delete",
            "namespace",
            &self.name,
            "--wait=false",
            "--ignore-not-found",
        ]));
    }
}
