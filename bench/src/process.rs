//! A proxy as a process of its own: started with a configuration file, looked at through `/proc` and its metrics, ended.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::look::{self, fetch};

/// How long a proxy may take to be ready, or to end.
const PATIENCE: Duration = Duration::from_secs(15);

/// A running proxy. It is ended when this is dropped.
pub struct Weft {
    child: Child,
    metrics: SocketAddr,
}

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Resident memory, in KiB.
    pub rss_kib: u64,
    /// Open file descriptors.
    pub descriptors: usize,
}

impl Weft {
    /// Starts `program --config config` and waits until it is ready. `metrics` is the address that the file names.
    pub async fn start(program: &Path, config: &Path, metrics: SocketAddr, log: &Path) -> Result<Self> {
        let log = fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let child = Command::new(program)
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| {
                format!("cannot start {}; build it with `make build-static`", program.display())
            })?;
        let mut weft = Self { child, metrics };
        let begin = Instant::now();
        while fetch(weft.metrics, "/ready").await.is_none_or(|answer| !answer.starts_with("HTTP/1.1 200")) {
            if let Some(status) = weft.child.try_wait()? {
                bail!("the proxy of {} ended with {status}", config.display());
            }
            if begin.elapsed() > PATIENCE {
                bail!("the proxy of {} is not ready after {PATIENCE:?}", config.display());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(weft)
    }

    /// Whether it still runs.
    pub fn lives(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it holds now.
    pub fn usage(&self) -> Result<Usage> {
        Ok(Usage {
            rss_kib: look::rss_kib(self.child.id())?,
            descriptors: fs::read_dir(format!("/proc/{}/fd", self.child.id()))?.count(),
        })
    }

    /// The sum of a metric over all its labels; `None` where it is not shown.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let text = fetch(self.metrics, "/metrics").await?;
        let values = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with(['{', ' ']).then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
        });
        values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
    }
}

impl Drop for Weft {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address of loopback that nobody listens on just now.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
