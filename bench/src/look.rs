//! Looks at a running process from outside: through `/proc`, and at what it serves at its metrics address.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::unistd::{SysconfVar, sysconf};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);

/// Time on a processor of all its threads so far. Threads that have ended do not count.
///
/// # Errors
/// When there is no such process.
pub fn cpu(id: u32) -> Result<Duration> {
    let mut nanoseconds = 0;
    for task in fs::read_dir(format!("/proc/{id}/task"))? {
        // First column: time on the processor in ns (Documentation/scheduler/sched-stats.rst).
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        nanoseconds += text.split(' ').next().and_then(|time| time.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// Resident memory, in KiB.
///
/// # Errors
/// When there is no such process.
pub fn rss_kib(id: u32) -> Result<u64> {
    let statm = fs::read_to_string(format!("/proc/{id}/statm"))?;
    let pages = statm.split(' ').nth(1).context("statm has no resident pages")?.parse::<u64>()?;
    let page = sysconf(SysconfVar::PAGE_SIZE)?.and_then(|size| u64::try_from(size).ok()).unwrap_or(4096);
    Ok(pages * page / 1024)
}

/// The whole answer to a GET, head and body; `None` where there is none in time.
pub async fn fetch(address: SocketAddr, path: &str) -> Option<String> {
    let asked = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    };
    tokio::time::timeout(ANSWER, asked).await.ok()?
}
