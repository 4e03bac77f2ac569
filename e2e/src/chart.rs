//! Weft itself in the cluster, by its chart and helm, as a user installs it.

use crate::cluster::{Cluster, name};
use crate::retry::eventually;
use anyhow::{Result, bail};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Release namespace.
pub const NAMESPACE: &str = "weft-system";
/// Release name.
pub const RELEASE: &str = "weft";

/// The chart of this repository.
#[must_use]
pub fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../charts/weft")
}

/// Installs or upgrades once per process; the same error for everybody when that fails. With `E2E_INSTALLED=1` what is
/// installed counts as it is.
pub fn ensure_installed(cluster: &Cluster) -> Result<()> {
    if std::env::var_os("E2E_INSTALLED").is_some() {
        return Ok(());
    }
    static INSTALLED: OnceLock<Result<Duration, String>> = OnceLock::new();
    match INSTALLED.get_or_init(|| install(cluster).map_err(|error| format!("{error:#}"))) {
        Ok(_) => Ok(()),
        Err(error) => bail!("{error}"),
    }
}

/// `helm upgrade --install`, waiting until everything is ready. How long it took.
pub fn install(cluster: &Cluster) -> Result<Duration> {
    install_with(cluster, &[])
}

/// The same with more arguments, such as `--set=leafLifetime=60s`.
pub fn install_with(cluster: &Cluster, more: &[&str]) -> Result<Duration> {
    let began = Instant::now();
    let chart = path().to_string_lossy().into_owned();
    let mut args = vec![
        "upgrade",
        "--install",
        RELEASE,
        &chart,
        "-n",
        NAMESPACE,
        "--create-namespace",
        "--wait",
        "--timeout=180s",
    ];
    if cluster.objects("", "nodes", "")?.len() == 1 {
        args.push("--set=profile=one-node");
    }
    args.extend(more);
    cluster.helm(&args)?;
    ready(cluster)?;
    Ok(began.elapsed())
}

/// Whether a release is there.
pub fn is_installed(cluster: &Cluster) -> Result<bool> {
    Ok(cluster.helm(&["list", "-n", NAMESPACE, "-q"])?.lines().any(|line| line == RELEASE))
}

/// `helm uninstall`. Helm leaves the release's namespace: see [`delete_namespace`].
pub fn uninstall(cluster: &Cluster) -> Result<()> {
    cluster.helm(&["uninstall", RELEASE, "-n", NAMESPACE, "--wait", "--timeout=180s"]).map(drop)
}

/// Deletes the release's namespace.
pub fn delete_namespace(cluster: &Cluster) -> Result<()> {
    let args = ["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=90s"];
    cluster.kubectl_ended(&args, None, Duration::from_secs(100))?.success().map(drop)
}

/// Waits until the operator's and the webhook's pods of the current revision are all that is left, and ready.
pub fn ready(cluster: &Cluster) -> Result<()> {
    for deployment in ["deploy/weft-operator", "deploy/weft-webhook"] {
        cluster.rollout(NAMESPACE, deployment)?;
    }
    // Admission works once the operator has patched caBundle.
    eventually("the webhooks know their certificate authority", Duration::from_secs(60), || {
        for (kind, name) in [
            ("mutatingwebhookconfiguration", "weft-injector"),
            ("validatingwebhookconfiguration", "weft-validator"),
        ] {
            let configuration = cluster.object("", kind, name)?;
            let webhooks = configuration["webhooks"].as_array().cloned().unwrap_or_default();
            if webhooks.is_empty()
                || webhooks
                    .iter()
                    .any(|w| w["clientConfig"]["caBundle"].as_str().unwrap_or_default().is_empty())
            {
                bail!("{name} has no caBundle yet");
            }
        }
        Ok(())
    })
}

/// Names of the operator's or webhook's pods.
pub fn pods(cluster: &Cluster, component: &str) -> Result<Vec<String>> {
    let pods = cluster.objects(NAMESPACE, "pods", "")?;
    Ok(pods.iter().map(name).filter(|n| n.starts_with(component)).collect())
}
