//! The shipped operator as a process of its own, against the API server of these measurements: started, looked at through
//! `/proc`, ended.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::time::sleep;
use weft_api::names;

use crate::look::{self, fetch};
use crate::process::free_address;

/// How long it may take to list everything, or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running operator. It is ended when this is dropped.
pub struct Operator {
    program: PathBuf,
    directory: PathBuf,
    child: Child,
    /// Its gRPC port.
    pub address: SocketAddr,
    metrics: SocketAddr,
}

/// What the process holds, in KiB.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Resident now.
    pub resident: u64,
    /// Resident at most, since its start.
    pub peak: u64,
}

impl Operator {
    /// Starts `program run`; what it needs is written into the directory.
    pub async fn start(program: &Path, api_server: SocketAddr, directory: &Path) -> Result<Self> {
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "bench",
            "clusters": [{ "name": "bench", "cluster": { "server": format!("http://{api_server}") } }],
            "users": [{ "name": "bench", "user": {} }],
            "contexts": [{ "name": "bench", "context": { "cluster": "bench", "user": "bench" } }],
        });
        fs::write(directory.join("kubeconfig"), kubeconfig.to_string())?;
        let (address, metrics) = (free_address()?, free_address()?);
        let child = spawn(program, directory, address, metrics)?;
        let mut operator =
            Self { program: program.to_owned(), directory: directory.to_owned(), child, address, metrics };
        operator.until_ready().await?;
        Ok(operator)
    }

    /// Ends it as Kubernetes does, and starts it anew on the same ports. Returns as soon as it is ready again.
    pub async fn restart(&mut self) -> Result<()> {
        self.end().await;
        self.child = spawn(&self.program, &self.directory, self.address, self.metrics)?;
        self.until_ready().await
    }

    async fn end(&mut self) {
        let _ = kill(self.pid(), Signal::SIGTERM);
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE && matches!(self.child.try_wait(), Ok(None)) {
            sleep(Duration::from_millis(10)).await;
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    async fn until_ready(&mut self) -> Result<()> {
        let begin = Instant::now();
        while !fetch(self.metrics, "/ready").await.is_some_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "the operator ended with {status}; see {}",
                    self.directory.join("operator.log").display()
                );
            }
            ensure!(begin.elapsed() < PATIENCE, "the operator is not ready after {PATIENCE:?}");
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// The value of a metric without labels.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let text = fetch(self.metrics, "/metrics").await?;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    /// The time that all its threads spent on a CPU, since its start.
    pub fn cpu(&self) -> Result<Duration> {
        look::cpu(self.child.id())
    }

    /// What it holds.
    pub fn memory(&self) -> Result<Memory> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.trim_start_matches(':').split_whitespace().next()?.parse().ok())
                .with_context(|| format!("no {name} in /proc"))
        };
        Ok(Memory { resident: field("VmRSS")?, peak: field("VmHWM")? })
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // At once: nobody is left to be told.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(program: &Path, directory: &Path, grpc: SocketAddr, metrics: SocketAddr) -> Result<Child> {
    let log = fs::File::create(directory.join("operator.log"))?;
    Command::new(program)
        .args(["run", "--namespace", "weft-system", "--pod-name", names::OPERATOR, "--log", "warn"])
        .args(["--grpc-port", &grpc.port().to_string(), "--metrics-port", &metrics.port().to_string()])
        .env("KUBECONFIG", directory.join("kubeconfig"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))
}
