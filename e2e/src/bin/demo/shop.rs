//! The shop of the demo: manifests, and the pods to measure from.

use crate::report::Report;
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use weft_e2e::{Client, Cluster, Namespace, retry};

/// The shop's namespace.
pub const SHOP: &str = "shop";
/// The namespace outside of the mesh.
pub const STREET: &str = "street";

/// The deployed shop.
#[derive(Debug)]
pub struct Shop {
    /// Namespace `shop`.
    pub inside: Namespace,
    /// Namespace `street`.
    pub outside: Namespace,
}

impl Shop {
    /// Applies the manifests and waits until everybody is ready.
    pub fn deploy(cluster: &'static Cluster, report: &mut Report) -> Result<Self> {
        let began = Instant::now();
        // A second run starts from the same place as the first one.
        remove(cluster)?;
        let (namespace, rest) = split_namespace(&manifest("10-shop.yaml")?)?;
        cluster.apply("", &namespace)?;
        let inside = Namespace::adopt(cluster, SHOP);
        inside.await_mirror()?;
        cluster.apply("", &rest)?;
        cluster.apply("", &manifest("11-outsider.yaml")?)?;
        for workload in ["deploy/front", "deploy/back-v1", "deploy/back-v2", "deploy/visitors"] {
            cluster.rollout(SHOP, workload)?;
        }
        cluster.wait(STREET, "pod/outsider", "condition=Ready")?;
        report.progress(&format!(
            "the shop is ready after {:.1} s: visitors -> front -> back (v1 x 3, v2 x 1)",
            began.elapsed().as_secs_f64()
        ));
        let shop = Self { inside, outside: Namespace::adopt(cluster, STREET) };
        let visitor = Client::deploy(&shop.inside, "visitor")?;
        retry::eventually("the first visitor is served", Duration::from_secs(20), || {
            visitor.get("http://front/")?.expect(200)
        })?;
        Ok(shop)
    }

    /// The pod from which the demo measures, in the mesh.
    pub fn visitor(&self) -> Client<'_> {
        Client { namespace: &self.inside, pod: "visitor".to_owned() }
    }

    /// The pod outside of the mesh.
    pub fn outsider(&self) -> Client<'_> {
        Client { namespace: &self.outside, pod: "outsider".to_owned() }
    }

    /// Applies a manifest of the demo.
    pub fn apply(&self, file: &str, report: &Report) -> Result<()> {
        report.progress(&format!("    kubectl apply -f e2e/demo/{file}"));
        self.inside.cluster.apply(SHOP, &manifest(file)?).map(drop)
    }
}

/// The text of a manifest of the demo.
fn manifest(file: &str) -> Result<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("demo").join(file);
    std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// The Namespace must be known to the operator before the first pod is made, so it goes ahead of the rest.
fn split_namespace(text: &str) -> Result<(String, String)> {
    let (first, rest) = text.split_once("\n---\n").context("the manifest has one document only")?;
    Ok((first.to_owned(), rest.to_owned()))
}

/// Deletes both namespaces and waits until they are gone.
pub fn remove(cluster: &Cluster) -> Result<()> {
    let args = ["delete", "namespace", SHOP, STREET, "--ignore-not-found", "--timeout=120s"];
    cluster.kubectl_ended(&args, None, Duration::from_secs(130))?.success().map(drop)
}
