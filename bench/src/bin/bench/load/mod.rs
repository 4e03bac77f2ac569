//! Load of two kinds. Closed: so many clients, each as fast as it is answered; that finds saturation. Open: so many requests a
//! second, whether answered or not, and a latency counts from when the request should have been sent, not from when a client
//! was free to send it (coordinated omission). Nothing here knows which subject it loads.

pub mod client;
pub mod http1;
pub mod http2;
pub mod idle;
pub mod timer;
pub mod tls;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::task::JoinSet;

use client::{Client, Target};
use timer::Timer;

/// Before anything is measured: pools fill, branches are learnt.
pub const WARM_UP: Duration = Duration::from_millis(250);
/// For what is under way when the load ends.
const PATIENCE: Duration = Duration::from_secs(3);

/// What a closed loop did.
#[derive(Clone, Debug)]
pub struct Closed {
    /// Exchanges in the steady part.
    pub done: u64,
    /// Those that failed.
    pub failed: u64,
    /// How the first of them did.
    pub failure: Option<String>,
    /// How long the steady part was.
    pub time: Duration,
    /// What the gauge said over it, see [`closed`].
    pub cpu_ns: u64,
    /// Processor time of this program over it.
    pub own_ns: u64,
}

/// Clients that each ask as fast as they are answered. `cpu` is asked at the start and the end of the steady part.
pub async fn closed(
    target: &Target,
    clients: usize,
    time: Duration,
    cpu: impl Fn() -> Result<u64>,
) -> Result<Closed> {
    let counts: Arc<Counts> = Arc::default();
    let mut workers = JoinSet::new();
    for client in target.clients(clients).await? {
        workers.spawn(hammer(client, Arc::clone(&counts)));
    }
    tokio::time::sleep(WARM_UP).await;
    let read =
        || Ok::<_, anyhow::Error>((counts.done.load(Ordering::Relaxed), cpu()?, own_ns()?, Instant::now()));
    let before = read()?;
    tokio::time::sleep(time).await;
    let after = read()?;
    counts.stop.store(true, Ordering::Relaxed);
    let ended = tokio::time::timeout(PATIENCE, async { while workers.join_next().await.is_some() {} }).await;
    let stuck = if ended.is_err() { workers.len() as u64 } else { 0 };
    Ok(Closed {
        done: after.0 - before.0,
        failed: counts.failed.load(Ordering::Relaxed) + stuck,
        failure: counts.failure.get().cloned(),
        time: after.3 - before.3,
        cpu_ns: after.1 - before.1,
        own_ns: after.2 - before.2,
    })
}

async fn hammer(mut client: Client, counts: Arc<Counts>) {
    while !counts.stop.load(Ordering::Relaxed) {
        let Err(error) = client.exchange().await else {
            counts.done.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        counts.failed.fetch_add(1, Ordering::Relaxed);
        counts.failure.get_or_init(|| format!("{error:#}"));
        if client.renew().await.is_err() {
            return;
        }
    }
}

/// Of all clients of a closed loop.
#[derive(Default)]
struct Counts {
    done: AtomicU64,
    failed: AtomicU64,
    failure: OnceLock<String>,
    stop: AtomicBool,
}

/// What an open loop found.
#[derive(Clone, Debug)]
pub struct Open {
    /// From when each should have been sent until its response's end, ascending, in ns. What was not answered when
    /// patience ended has waited until then.
    pub latencies: Vec<u64>,
    /// Those that failed.
    pub failed: u64,
    /// How the first of them did.
    pub failure: Option<String>,
    /// What the gauge said, see [`open`].
    pub cpu_ns: u64,
}

/// A request every `1/rate` s, by whichever client is free.
pub async fn open(
    target: &Target,
    clients: usize,
    rate: u32,
    time: Duration,
    cpu: impl Fn() -> Result<u64>,
) -> Result<Open> {
    let interval = Duration::from_secs(1) / rate;
    let total = u64::from(rate) * u64::try_from(time.as_millis())? / 1000;
    let mut ready = target.clients(clients).await?;
    for client in &mut ready {
        client.exchange().await.context("the first exchange of a connection")?;
    }
    let begin = Instant::now() + Duration::from_millis(20);
    let plan = Arc::new(Plan { begin, interval, total, next: AtomicU64::new(0), failure: OnceLock::new() });
    let before = cpu()?;
    let mut workers = JoinSet::new();
    for client in ready {
        workers.spawn(pace(client, Arc::clone(&plan), Timer::new()?));
    }
    let end = begin + time + PATIENCE;
    let (mut latencies, mut failed) = (Vec::new(), 0);
    while let Ok(Some(joined)) = tokio::time::timeout_at(end.into(), workers.join_next()).await {
        let (times, bad) = joined??;
        latencies.extend(times);
        failed += bad;
    }
    let cpu_ns = cpu()? - before;
    for slot in latencies.len() as u64 + failed..total {
        latencies.push(plan.moment(slot).elapsed().as_nanos() as u64);
    }
    latencies.sort_unstable();
    Ok(Open { latencies, failed, failure: plan.failure.get().cloned(), cpu_ns })
}

/// Who sends when. Each idle client has taken the next moment and waits for it, so that a moment whose turn comes while all
/// are busy is taken late, but counts from where it was.
struct Plan {
    begin: Instant,
    interval: Duration,
    total: u64,
    next: AtomicU64,
    failure: OnceLock<String>,
}

impl Plan {
    fn moment(&self, slot: u64) -> Instant {
        self.begin + Duration::from_nanos(self.interval.as_nanos() as u64 * slot)
    }
}

async fn pace(mut client: Client, plan: Arc<Plan>, mut timer: Timer) -> Result<(Vec<u64>, u64)> {
    let (mut latencies, mut failed) = (Vec::new(), 0);
    loop {
        let slot = plan.next.fetch_add(1, Ordering::Relaxed);
        if slot >= plan.total {
            return Ok((latencies, failed));
        }
        let moment = plan.moment(slot);
        timer.until(moment).await?;
        match client.exchange().await {
            Ok(()) => latencies.push(moment.elapsed().as_nanos() as u64),
            Err(error) => {
                plan.failure.get_or_init(|| format!("{error:#}"));
                failed += 1;
                client.renew().await?;
            }
        }
    }
}

/// A percentile of what is sorted, by nearest rank; 0 of nothing.
#[must_use]
pub fn percentile(sorted: &[u64], percent: f64) -> u64 {
    // 99.9 is not a binary fraction: without the difference it would be a rank too high.
    let rank = (percent / 100.0 * sorted.len() as f64 - 1e-6).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

/// Processor time of this whole program.
fn own_ns() -> Result<u64> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
    let sum = usage.user_time() + usage.system_time();
    Ok(sum.tv_sec() as u64 * 1_000_000_000 + sum.tv_usec() as u64 * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let sorted: Vec<u64> = (1..=1000).collect();
        assert_eq!(percentile(&sorted, 50.0), 500);
        assert_eq!(percentile(&sorted, 99.0), 990);
        assert_eq!(percentile(&sorted, 99.9), 999);
        assert_eq!(percentile(&sorted, 100.0), 1000);
        assert_eq!(percentile(&[7], 99.9), 7);
        assert_eq!(percentile(&[], 50.0), 0);
    }
}
