//! Judges the endpoints of a cluster beside each other, once an interval, by what was counted of each since the last time:
//! by share of successes, and by mean latency. The judgement is pure; what it needs is counted in atomics, and only where
//! a rule asks for it. It ejects nothing itself.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::{Cause, OutlierConfig};
use crate::clock;
use crate::snapshot::EndpointLive;

/// By share of successes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuccessRate {
    /// Requests that an endpoint must have had.
    pub min_requests: u32,
    /// Endpoints with so many that there must be.
    pub min_hosts: u32,
    /// Thousandths of a standard deviation below the mean.
    pub stdev_factor_thousandths: u32,
}

/// By mean latency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatencyRule {
    /// Successes that an endpoint must have had.
    pub min_requests: u32,
    /// Thousandths of the others' median.
    pub factor_thousandths: u32,
}

/// Nobody is ejected for a share of successes that is less than so many percentage points below the mean: where all are
/// nearly the same, the standard deviation is next to nothing.
const LEAST_GAP: f64 = 5.0;
/// Added to every latency: smaller differences are noise.
const NOISE_MS: f64 = 1.0;
/// A median of fewer than so many others says nothing.
const LEAST_PEERS: usize = 2;

/// What an endpoint did, ever; wraps around.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    successes: AtomicU32,
    failures: AtomicU32,
    // Of successes.
    micros: AtomicU64,
}

/// A reading of a tally, or the difference of two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) successes: u32,
    pub(crate) failures: u32,
    pub(crate) micros: u64,
}

impl Tally {
    pub(crate) fn success(&self, latency: Duration) {
        self.successes.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(u64::try_from(latency.as_micros()).unwrap_or(0), Ordering::Relaxed);
    }

    pub(crate) fn failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> Counts {
        Counts {
            successes: self.successes.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            micros: self.micros.load(Ordering::Relaxed),
        }
    }
}

impl Counts {
    const fn since(self, before: Self) -> Self {
        Self {
            successes: self.successes.wrapping_sub(before.successes),
            failures: self.failures.wrapping_sub(before.failures),
            micros: self.micros.wrapping_sub(before.micros),
        }
    }

    const fn requests(self) -> u32 {
        self.successes.saturating_add(self.failures)
    }

    fn percent(self) -> f64 {
        f64::from(self.successes) * 100.0 / f64::from(self.requests().max(1))
    }

    #[allow(clippy::cast_precision_loss)]
    fn mean_ms(self) -> f64 {
        self.micros as f64 / 1000.0 / f64::from(self.successes.max(1))
    }
}

/// Which of the endpoints are to be ejected and why, the worst first. `None`: out already, so that it is no peer.
pub(crate) fn judge(counts: &[Option<Counts>], config: &OutlierConfig) -> Vec<(usize, Cause)> {
    let mut worst: Vec<(usize, Cause)> = Vec::new();
    if let Some(rule) = &config.success_rate {
        worst = by_success_rate(counts, rule);
    }
    if let Some(rule) = &config.latency {
        for found in by_latency(counts, rule) {
            if !worst.iter().any(|(index, _)| *index == found.0) {
                worst.push(found);
            }
        }
    }
    worst
}

fn of_enough(
    counts: &[Option<Counts>],
    enough: impl Fn(Counts) -> bool,
    measure: impl Fn(Counts) -> f64,
) -> Vec<(usize, f64)> {
    let counts = counts.iter().enumerate().filter_map(|(index, counts)| Some((index, (*counts)?)));
    counts.filter(|(_, counts)| enough(*counts)).map(|(index, counts)| (index, measure(counts))).collect()
}

#[allow(clippy::cast_precision_loss)]
fn by_success_rate(counts: &[Option<Counts>], rule: &SuccessRate) -> Vec<(usize, Cause)> {
    let mut rates = of_enough(counts, |c| c.requests() >= rule.min_requests.max(1), Counts::percent);
    if rates.is_empty() || rates.len() < rule.min_hosts as usize {
        return Vec::new();
    }
    let n = rates.len() as f64;
    let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / n;
    let variance = rates.iter().map(|(_, rate)| (rate - mean).powi(2)).sum::<f64>() / n;
    let gap = (variance.sqrt() * f64::from(rule.stdev_factor_thousandths) / 1000.0).max(LEAST_GAP);
    rates.retain(|(_, rate)| *rate < mean - gap);
    rates.sort_by(|a, b| a.1.total_cmp(&b.1));
    let cause = |rate: f64| Cause::SuccessRate { own: whole(rate), mean: whole(mean) };
    rates.into_iter().map(|(index, rate)| (index, cause(rate))).collect()
}

fn by_latency(counts: &[Option<Counts>], rule: &LatencyRule) -> Vec<(usize, Cause)> {
    let mut means = of_enough(counts, |c| c.successes >= rule.min_requests.max(1), Counts::mean_ms);
    if means.len() <= LEAST_PEERS {
        return Vec::new();
    }
    means.sort_by(|a, b| b.1.total_cmp(&a.1));
    let factor = f64::from(rule.factor_thousandths) / 1000.0;
    let slow = means.iter().enumerate().filter_map(|(place, &(index, own))| {
        let median = median_without(&means, place);
        let slow = own + NOISE_MS > factor * (median + NOISE_MS);
        slow.then(|| (index, Cause::Latency { own: whole(own), median: whole(median) }))
    });
    slow.collect()
}

/// The median of a sorted list without one of its places; there are at least two others.
fn median_without(sorted: &[(usize, f64)], place: usize) -> f64 {
    let others = sorted.len() - 1;
    let at = |n: usize| sorted.get(if n < place { n } else { n + 1 }).map_or(0.0, |(_, value)| *value);
    if others % 2 == 1 { at(others / 2) } else { f64::midpoint(at(others / 2 - 1), at(others / 2)) }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(value: f64) -> u32 {
    value.round().clamp(0.0, f64::from(u32::MAX)) as u32
}

/// When a cluster is judged next, and what its endpoints had done the last time. A subset has its own.
#[derive(Debug, Default)]
pub(crate) struct Window {
    next: AtomicU64,
    before: Mutex<HashMap<usize, (Weak<EndpointLive>, Counts)>>,
}

impl Window {
    /// Whether the caller has to judge now: one of them, once an interval.
    pub(crate) fn is_due(&self, interval: Duration, now: Instant) -> bool {
        let millis = clock::millis(now);
        let next = self.next.load(Ordering::Relaxed);
        let length = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX).max(1);
        millis >= next
            && self
                .next
                .compare_exchange(next, millis.saturating_add(length), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// What each has done since the last call; nothing for one that was not there then.
    pub(crate) fn turn<'a>(&self, all: impl Iterator<Item = &'a Arc<EndpointLive>>) -> Vec<Counts> {
        let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = HashMap::with_capacity(before.len());
        let since = all.map(|live| {
            let (key, counts) = (Arc::as_ptr(live) as usize, live.tally.read());
            now.insert(key, (Arc::downgrade(live), counts));
            // The weak reference keeps the address from being another endpoint's.
            before.get(&key).map_or_else(Counts::default, |(_, last)| counts.since(*last))
        });
        let since = since.collect();
        *before = now;
        since
    }
}
