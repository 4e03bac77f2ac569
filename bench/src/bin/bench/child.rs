//! A proxy under test as a process: started on its own core, looked at through `/proc`, and ended in any case: when this is
//! dropped, and by the kernel when this program ends however it may.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::net::TcpStream;
use weft_bench::look;

/// How long a subject may take until it listens.
const PATIENCE: Duration = Duration::from_secs(15);

/// A running subject.
pub struct Process {
    child: Child,
}

/// The core of the proxies, and that of clients and origin; `None` where the machine has only one.
#[must_use]
pub fn cores() -> Option<(usize, usize)> {
    (count() > 1).then_some((1, 0))
}

/// How many this program may use, before it stayed on one.
#[must_use]
pub fn count() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Keeps this program (clients and origin) on its core.
pub fn stay() -> Result<()> {
    if let Some((_, own)) = cores() {
        sched_setaffinity(Pid::from_raw(0), &only(own)?)?;
    }
    Ok(())
}

impl Process {
    /// Starts it; its errors go to the log, and so does what it says, unless that is an access log, which nobody reads.
    pub fn start(mut command: Command, log: &Path, quiet: bool) -> Result<Self> {
        let file = fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let output = if quiet { Stdio::null() } else { file.try_clone()?.into() };
        command.stdin(Stdio::null()).stdout(output).stderr(file);
        let core = cores().map(|(proxies, _)| only(proxies)).transpose()?;
        // SAFETY: both are system calls that are safe after a fork (signal-safety(7)): no lock, no allocation.
        unsafe {
            command.pre_exec(move || {
                set_pdeathsig(Signal::SIGKILL)?;
                if let Some(core) = &core {
                    sched_setaffinity(Pid::from_raw(0), core)?;
                }
                Ok(())
            });
        }
        let program = command.get_program().to_owned();
        let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { child })
    }

    /// Waits until somebody accepts at an address.
    pub async fn listens(&mut self, address: SocketAddr) -> Result<()> {
        let begin = Instant::now();
        while TcpStream::connect(address).await.is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended with {status} at once");
            }
            if begin.elapsed() > PATIENCE {
                bail!("it does not listen on {address} after {PATIENCE:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Time on a processor of all its threads so far, in nanoseconds. Threads that have ended do not count; no subject
    /// ends threads under load.
    pub fn cpu_ns(&self) -> Result<u64> {
        Ok(u64::try_from(look::cpu(self.child.id())?.as_nanos())?)
    }

    /// Resident memory, in KiB.
    pub fn rss_kib(&self) -> Result<u64> {
        look::rss_kib(self.child.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing that it holds is worth a proper end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn only(core: usize) -> Result<CpuSet> {
    let mut set = CpuSet::new();
    set.set(core)?;
    Ok(set)
}
