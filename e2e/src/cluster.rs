//! The cluster, through `kubectl` and `helm`. Any `KUBECONFIG`; without one, the cluster that `make cluster-up` starts.
//! Every failure shows the command and what it printed.

use crate::command::{Ended, Running, start};
use crate::retry::eventually;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A Kubernetes cluster and the clients to drive it.
#[derive(Debug)]
pub struct Cluster {
    kubectl: PathBuf,
    helm: PathBuf,
    environment: Vec<(String, String)>,
}

impl Cluster {
    /// The cluster of this process. Ends the process with an explanation when there is none.
    #[must_use]
    pub fn get() -> &'static Cluster {
        static CLUSTER: OnceLock<Cluster> = OnceLock::new();
        CLUSTER.get_or_init(|| match kubeconfig().and_then(|path| Self::connect(&path)) {
            Ok(cluster) => cluster,
            Err(error) => {
                eprintln!(
                    "no cluster to test on: {error:#}\n`make cluster-up` starts one, or set KUBECONFIG."
                );
                std::process::exit(64);
            }
        })
    }

    /// One more cluster, by the path of its kubeconfig, for tests that need two. It lives as long as the process.
    pub fn open(kubeconfig: &str) -> Result<&'static Cluster> {
        let cluster = Self::connect(kubeconfig).with_context(|| format!("the cluster of {kubeconfig}"))?;
        Ok(Box::leak(Box::new(cluster)))
    }

    fn connect(kubeconfig: &str) -> Result<Self> {
        let environment = vec![("KUBECONFIG".to_owned(), kubeconfig.to_owned())];
        let cluster = Self { kubectl: find_program("kubectl")?, helm: find_program("helm")?, environment };
        cluster.kubectl(&["get", "--raw", "/readyz"])?;
        Ok(cluster)
    }

    /// Runs kubectl; its standard output.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.kubectl_ended(args, None, PATIENCE)?.success()
    }

    /// Runs kubectl with `input` on its standard input, whatever the outcome.
    pub fn kubectl_ended(&self, args: &[&str], input: Option<&[u8]>, patience: Duration) -> Result<Ended> {
        self.start(args, input)?.wait(patience)
    }

    /// Runs another client of the cluster, whatever the outcome.
    pub fn program(&self, program: &Path, args: &[&str]) -> Result<Ended> {
        start(&program.to_path_buf(), args, &self.environment, None)?.wait(PATIENCE)
    }

    /// Starts another client of the cluster in the background.
    pub fn start_program(&self, program: &Path, args: &[&str]) -> Result<Running> {
        start(&program.to_path_buf(), args, &self.environment, None)
    }

    /// Starts kubectl in the background.
    pub fn start(&self, args: &[&str], input: Option<&[u8]>) -> Result<Running> {
        start(&self.kubectl, args, &self.environment, input.map(<[u8]>::to_vec))
    }

    /// Runs a shell script in a folder, as somebody does whose `kubectl` drives this cluster; its standard output.
    pub fn script(&self, folder: &Path, script: &str) -> Result<String> {
        let path = std::env::join_paths(
            self.kubectl
                .parent()
                .map(Path::to_path_buf)
                .into_iter()
                .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
        )?;
        let mut environment = self.environment.clone();
        environment.push(("PATH".to_owned(), path.to_string_lossy().into_owned()));
        let script = format!("set -euo pipefail; cd '{}'\n{script}", folder.display());
        start(&"/bin/bash".into(), &["-c", &script], &environment, None)?.wait(PATIENCE)?.success()
    }

    /// Runs helm; its standard output.
    pub fn helm(&self, args: &[&str]) -> Result<String> {
        start(&self.helm, args, &self.environment, None)?.wait(Duration::from_secs(300))?.success()
    }

    /// Applies manifests (YAML or JSON), as `kubectl apply -f -` does. Namespace `""`: where each says itself.
    pub fn apply(&self, namespace: &str, manifests: &str) -> Result<String> {
        self.applied(namespace, manifests)?.success().with_context(|| format!("applying\n{manifests}"))
    }

    /// Applies manifests that must be refused; what kubectl printed about it.
    pub fn apply_refused(&self, namespace: &str, manifests: &str) -> Result<String> {
        let ended = self.applied(namespace, manifests)?;
        if ended.status.success() {
            bail!("was accepted but should have been refused:\n{manifests}");
        }
        Ok(ended.stderr)
    }

    fn applied(&self, namespace: &str, manifests: &str) -> Result<Ended> {
        let mut args = vec!["apply", "-f", "-"];
        if !namespace.is_empty() {
            args.extend(["-n", namespace]);
        }
        self.kubectl_ended(&args, Some(manifests.as_bytes()), PATIENCE)
    }

    /// One object as JSON; `kind/name` or `kind name`. Namespace `""` for what has none.
    pub fn object(&self, namespace: &str, kind: &str, name: &str) -> Result<Value> {
        let mut args = vec!["get", kind, name, "-o", "json"];
        if !namespace.is_empty() {
            args.extend(["-n", namespace]);
        }
        serde_json::from_str(&self.kubectl(&args)?).context("kubectl printed no JSON")
    }

    /// The objects of a kind in a namespace that carry the labels of `selector` (may be empty).
    pub fn objects(&self, namespace: &str, kind: &str, selector: &str) -> Result<Vec<Value>> {
        let mut args = vec!["get", kind, "-o", "json"];
        if !namespace.is_empty() {
            args.extend(["-n", namespace]);
        }
        if !selector.is_empty() {
            args.extend(["-l", selector]);
        }
        let mut list: Value =
            serde_json::from_str(&self.kubectl(&args)?).context("kubectl printed no JSON")?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            _ => bail!("kubectl get {kind} printed no list"),
        }
    }

    /// Runs a command in a container of a pod; its standard output.
    pub fn exec(&self, namespace: &str, pod: &str, container: &str, command: &[&str]) -> Result<String> {
        self.exec_ended(namespace, pod, container, command, None)?.success()
    }

    /// Runs a command in a container of a pod with `input` on its standard input, whatever the outcome.
    pub fn exec_ended(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        command: &[&str],
        input: Option<&[u8]>,
    ) -> Result<Ended> {
        self.exec_start(namespace, pod, container, command, input)?.wait(Duration::from_secs(180))
    }

    /// Starts a command in a container of a pod.
    pub fn exec_start(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        command: &[&str],
        input: Option<&[u8]>,
    ) -> Result<Running> {
        let mut args = vec!["exec", "-n", namespace, pod, "-c", container];
        if input.is_some() {
            args.push("-i");
        }
        args.push("--");
        args.extend(command);
        self.start(&args, input)
    }

    /// Waits until a Deployment or StatefulSet (`deploy/name`) has all of its replicas, new and ready.
    pub fn rollout(&self, namespace: &str, workload: &str) -> Result<()> {
        let ended = self.kubectl_ended(
            &["rollout", "status", "-n", namespace, workload, "--timeout=150s"],
            None,
            Duration::from_secs(160),
        )?;
        ended.success().map(drop)
    }

    /// Waits for a condition (`condition=Ready`, `delete`, `jsonpath=…`) of objects.
    pub fn wait(&self, namespace: &str, what: &str, condition: &str) -> Result<()> {
        let condition = format!("--for={condition}");
        self.kubectl_ended(
            &["wait", "-n", namespace, what, &condition, "--timeout=120s"],
            None,
            Duration::from_secs(130),
        )?
        .success()
        .map(drop)
    }

    /// The last lines of a container's log; empty when there are none to be had.
    #[must_use]
    pub fn logs(&self, namespace: &str, pod: &str, container: &str, lines: u32) -> String {
        let tail = format!("--tail={lines}");
        self.kubectl(&["logs", "-n", namespace, pod, "-c", container, &tail]).unwrap_or_default()
    }

    /// Names of the pods that carry the labels of `selector`, are not being deleted and are ready.
    pub fn ready_pods(&self, namespace: &str, selector: &str) -> Result<Vec<String>> {
        let pods = self.objects(namespace, "pods", selector)?;
        Ok(pods
            .iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null() && is_ready(pod))
            .map(name)
            .collect())
    }

    /// Waits until exactly `count` pods with these labels exist and all are ready; their names.
    pub fn await_pods(&self, namespace: &str, selector: &str, count: usize) -> Result<Vec<String>> {
        eventually(&format!("{count} ready pods {selector} in {namespace}"), Duration::from_secs(120), || {
            let all = self.objects(namespace, "pods", selector)?;
            let ready: Vec<_> = all.iter().filter(|pod| is_ready(pod)).map(name).collect();
            if all.len() == count && ready.len() == count {
                Ok(ready)
            } else {
                bail!("{} pods, {} ready", all.len(), ready.len())
            }
        })
    }
}

/// The name of an object.
#[must_use]
pub fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready").is_some_and(|c| c["status"] == "True")
}

/// A condition in an object's status.
#[must_use]
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)
}

/// Where `make cluster-up` keeps its programs and clusters.
fn cache() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into()));
    std::env::var_os("WEFT_CACHE").map_or_else(|| home().join(".cache/weft"), PathBuf::from)
}

/// `$KUBECONFIG`, otherwise that of the cluster that `make cluster-up` starts.
fn kubeconfig() -> Result<String> {
    if let Ok(path) = std::env::var("KUBECONFIG")
        && !path.is_empty()
    {
        return Ok(path);
    }
    let name = std::env::var("CLUSTER").ok();
    let names = name.as_deref().map_or_else(|| vec!["default", "weft"], |name| vec![name]);
    let candidates: Vec<_> =
        names.iter().map(|name| cache().join("cluster").join(name).join("kubeconfig")).collect();
    let found = candidates.iter().find(|path| path.is_file());
    let found = found.with_context(|| format!("there is no {}", candidates[0].display()))?;
    Ok(found.to_string_lossy().into_owned())
}

/// The program that was built for the cluster where there is one (its version fits), otherwise the one on the PATH.
fn find_program(program: &str) -> Result<PathBuf> {
    let bin = cache().join("bin");
    let mut folders = vec![bin.clone()];
    folders.extend(std::fs::read_dir(&bin).into_iter().flatten().flatten().map(|entry| entry.path()));
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let found = folders.into_iter().map(|folder| folder.join(program)).find(|candidate| candidate.is_file());
    found.with_context(|| format!("`{program}` is neither on the PATH nor in {}", bin.display()))
}
