//! Which endpoint of a cluster a request goes to. A choice and a counter; it neither connects nor waits.
//!
//! Candidates, the first group that is not empty:
//! 1. in balancing, of weight above 0, not tried yet for this request;
//! 2. the same of weight 0;
//! 3. ejected, its time over, nobody probing it: this request is the probe;
//! 4. in balancing, but tried already;
//! 5. ejected: when everything is, better to try than to refuse ("panic"), untried ones first.
//!
//! A first try that comes across an endpoint of group 3 becomes its probe even while group 1 is not empty; a retry does not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;
use weft_api::Reason;

use crate::outlier::{self, Admission, Failure, OutlierConfig, Pass, Verdict, may_eject};
use crate::snapshot::{Balancer, Cluster, Endpoint};

#[cfg(test)]
mod tests;
pub(crate) mod weights;

/// How a request ended, as far as it tells something of the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The response's head came, or the connection was made.
    Success {
        /// After so long.
        latency: Duration,
    },
    /// The endpoint failed.
    Failure(Failure),
    /// Nothing was learned: the client left, or the fault is ours.
    Neutral,
}

/// A request under way to an endpoint; counted until dropped.
#[derive(Debug)]
#[must_use = "dropping a load ends the request"]
pub struct Load {
    /// Where it goes.
    pub endpoint: Arc<Endpoint>,
    cluster: Arc<Cluster>,
    pass: Pass,
    started: Instant,
    settled: bool,
}

impl Load {
    fn new(cluster: &Arc<Cluster>, endpoint: &Arc<Endpoint>, pass: Pass, now: Instant) -> Self {
        endpoint.live.in_flight.fetch_add(1, Ordering::Relaxed);
        Self {
            endpoint: Arc::clone(endpoint),
            cluster: Arc::clone(cluster),
            pass,
            started: now,
            settled: false,
        }
    }

    /// The cluster that it was chosen from.
    #[must_use]
    pub const fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// When it was chosen.
    #[must_use]
    pub const fn started(&self) -> Instant {
        self.started
    }

    /// Feeds what is known now; the request stays counted until the load is dropped. May be called again when more is
    /// known, e.g. when a response breaks off. Says whether the endpoint was ejected or came back by it.
    pub fn report(&mut self, outcome: Outcome) -> Option<Verdict> {
        let (now, live) = (Instant::now(), &self.endpoint.live);
        self.settled = true;
        match outcome {
            Outcome::Success { latency } => live.latency.observe(latency, now),
            Outcome::Failure(_) => {
                live.latency.observe_peak(now.saturating_duration_since(self.started), now)
            }
            Outcome::Neutral => {}
        }
        let Some(config) = &self.cluster.outlier else { return None };
        if config.interval.is_some() {
            match outcome {
                Outcome::Success { latency } => live.tally.success(latency),
                Outcome::Failure(_) => live.tally.failure(),
                Outcome::Neutral => {}
            }
        }
        match outcome {
            Outcome::Success { .. } => live.health.success(self.pass, config, now),
            Outcome::Neutral => {
                live.health.neutral(self.pass);
                None
            }
            Outcome::Failure(failure) => {
                let _deciding = self.cluster.live.ejecting.lock();
                let may = || may_one_more(&self.cluster, config, now);
                live.health.failure(self.pass, failure, config, may, now)
            }
        }
    }

    /// [`Load::report`], and the end of the request.
    pub fn finish(mut self, outcome: Outcome) -> Option<Verdict> {
        self.report(outcome)
    }
}

/// Whether the cluster's share allows one more ejection.
fn may_one_more(cluster: &Cluster, config: &OutlierConfig, now: Instant) -> bool {
    let all = &cluster.endpoints;
    let out = all.iter().filter(|e| e.live.health.admits(now) != Admission::In).count();
    may_eject(all.len(), out, config.max_ejected_percent)
}

/// The endpoint acknowledges nothing any more, as a request says that still waits for it.
pub(crate) fn gone(cluster: &Cluster, endpoint: &Endpoint, now: Instant) -> Option<Verdict> {
    let config = cluster.outlier.as_ref()?;
    let _deciding = cluster.live.ejecting.lock();
    let may = || may_one_more(cluster, config, now);
    endpoint.live.health.failure(Pass::Normal, Failure::Gone, config, may, now)
}

/// The endpoint could be connected after all, by an attempt that was given up, and for which it may have been ejected.
pub(crate) fn reached(cluster: &Cluster, endpoint: &Endpoint, now: Instant) -> Option<Verdict> {
    let config = cluster.outlier.as_ref()?;
    let health = &endpoint.live.health;
    if health.ejected() != Some(outlier::Cause::Connect) {
        return None;
    }
    health.success(health.pass(), config, now)
}

/// Whether there is an endpoint in balancing that this request has not been to.
pub(crate) fn another(cluster: &Cluster, tried: &[SocketAddr], here: SocketAddr, now: Instant) -> bool {
    let mut others = cluster.endpoints.iter().filter(|other| other.addr != here && other.weight > 0);
    others.any(|other| !tried.contains(&other.addr) && other.live.health.admits(now) == Admission::In)
}

/// Judges a cluster's endpoints beside each other, if that is to be done now; whom it ejected. One branch for a cluster
/// without such a rule; otherwise the time of its endpoints, once an interval.
pub fn judge(cluster: &Cluster, now: Instant) -> Vec<(Arc<Endpoint>, Verdict)> {
    let Some((config, interval)) = cluster.outlier.as_ref().and_then(|o| Some((o, o.interval?))) else {
        return Vec::new();
    };
    if !cluster.live.window.is_due(interval, now) {
        return Vec::new();
    }
    let all = &cluster.endpoints;
    let counts = cluster.live.window.turn(all.iter().map(|endpoint| &endpoint.live));
    let in_balancing = |endpoint: &Endpoint| endpoint.live.health.admits(now) == Admission::In;
    let peers: Vec<_> =
        all.iter().zip(counts).map(|(endpoint, counts)| in_balancing(endpoint).then_some(counts)).collect();
    let _deciding = cluster.live.ejecting.lock();
    let eject = |(index, cause)| {
        let endpoint: &Arc<Endpoint> = all.get(index)?;
        let may = || may_one_more(cluster, config, now);
        Some((Arc::clone(endpoint), endpoint.live.health.judged(cause, config, may, now)?))
    };
    outlier::judge::judge(&peers, config).into_iter().filter_map(eject).collect()
}

impl Drop for Load {
    fn drop(&mut self) {
        if !self.settled {
            self.endpoint.live.health.neutral(self.pass);
        }
        self.endpoint.live.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Chooses. `tried` are the endpoints that this request has been to already.
///
/// # Errors
/// [`Reason::NoHealthyEndpoint`] when the cluster has no endpoint at all.
pub fn pick(
    cluster: &Arc<Cluster>,
    tried: &[SocketAddr],
    now: Instant,
    rng: &mut impl Rng,
) -> Result<Load, Reason> {
    let choice = Choice { cluster, tried, now };
    let (index, pass) =
        choice.quick(rng).or_else(|| choice.thorough(rng)).ok_or(Reason::NoHealthyEndpoint)?;
    let endpoint = cluster.endpoints.get(index).ok_or(Reason::NoHealthyEndpoint)?;
    Ok(Load::new(cluster, endpoint, pass, now))
}

/// For a destination that is one endpoint by its own address. Its failures count as any other's, and do not stop it.
pub fn pinned(cluster: &Arc<Cluster>, endpoint: &Arc<Endpoint>, now: Instant) -> Load {
    Load::new(cluster, endpoint, endpoint.live.health.pass(), now)
}

struct Choice<'a> {
    cluster: &'a Arc<Cluster>,
    tried: &'a [SocketAddr],
    now: Instant,
}

/// How often RoundRobin draws a ticket until it looks at the whole list instead.
const TICKETS: usize = 8;

impl Choice<'_> {
    /// Looks at one or two endpoints only, which is right as long as those are in group 1. Gives up otherwise; what it
    /// chooses is distributed as if it had drawn again until it met such ones.
    fn quick(&self, rng: &mut impl Rng) -> Option<(usize, Pass)> {
        let weights = &self.cluster.weights;
        if !weights.any() {
            return None;
        }
        match self.cluster.balancer {
            Balancer::Random => self.admit(weights.sample(rng)),
            Balancer::RoundRobin => {
                let turn = &self.cluster.live.turn;
                (0..TICKETS).find_map(|_| self.admit(weights.ticket(turn.fetch_add(1, Ordering::Relaxed))))
            }
            Balancer::LeastRequest | Balancer::PeakEwma => {
                let first = weights.sample(rng);
                let admitted = self.admit(first)?;
                if admitted.1 != Pass::Normal {
                    return Some(admitted);
                }
                let Some(second) = weights.sample_other(first, rng) else { return Some(admitted) };
                match self.admit(second)? {
                    probe @ (_, Pass::Probe(_)) => Some(probe),
                    _ => Some((self.better(first, second), Pass::Normal)),
                }
            }
        }
    }

    fn admit(&self, index: usize) -> Option<(usize, Pass)> {
        let endpoint = self.cluster.endpoints.get(index)?;
        if self.tried.contains(&endpoint.addr) {
            return None;
        }
        match self.admission(endpoint) {
            Admission::In => Some((index, Pass::Normal)),
            Admission::Due if self.tried.is_empty() => Some((index, endpoint.live.health.probe(self.now)?)),
            Admission::Due | Admission::Out => None,
        }
    }

    fn admission(&self, endpoint: &Endpoint) -> Admission {
        match self.cluster.outlier {
            Some(_) => endpoint.live.health.admits(self.now),
            None => Admission::In,
        }
    }

    /// Looks at all of them, group by group.
    fn thorough(&self, rng: &mut impl Rng) -> Option<(usize, Pass)> {
        let mut groups: [Vec<usize>; 6] = Default::default();
        for (index, endpoint) in self.cluster.endpoints.iter().enumerate() {
            let tried = self.tried.contains(&endpoint.addr);
            let group = match self.admission(endpoint) {
                Admission::In if !tried && endpoint.weight > 0 => 0,
                Admission::In if !tried => 1,
                Admission::Due if !tried => 2,
                Admission::In => 3,
                _ if !tried => 4,
                _ => 5,
            };
            groups[group].push(index);
        }
        let [fresh, spare, due, again, out_fresh, out] = groups;
        let probe = |due: &[usize]| {
            due.iter().find_map(|&i| Some((i, self.cluster.endpoints.get(i)?.live.health.probe(self.now)?)))
        };
        // A first try looks after what is due, as it would have in the quick way.
        if self.tried.is_empty()
            && let Some(probe) = probe(&due)
        {
            return Some(probe);
        }
        if let Some(index) = self.among(&fresh, rng).or_else(|| self.among(&spare, rng)) {
            return Some((index, Pass::Normal));
        }
        if let Some(probe) = probe(&due) {
            return Some(probe);
        }
        if let Some(index) = self.among(&again, rng) {
            return Some((index, Pass::Normal));
        }
        // What is due but being probed by another is out all the same.
        let index = [&due, &out_fresh, &out].into_iter().find_map(|group| self.among(group, rng))?;
        Some((index, self.cluster.endpoints.get(index)?.live.health.pass()))
    }

    /// The balancer's choice among some.
    fn among(&self, some: &[usize], rng: &mut impl Rng) -> Option<usize> {
        let weights: Vec<u32> = some.iter().map(|&i| self.endpoint_weight(i)).collect();
        let line = weights::Weights::new(&weights);
        let live = &self.cluster.live;
        let at = |place: usize| some.get(place).copied();
        if !line.any() {
            // All of weight 0: alike.
            return if some.is_empty() { None } else { at(rng.random_range(0..some.len())) };
        }
        match self.cluster.balancer {
            Balancer::Random => at(line.sample(rng)),
            Balancer::RoundRobin => at(line.ticket(live.turn_of_rest.fetch_add(1, Ordering::Relaxed))),
            Balancer::LeastRequest | Balancer::PeakEwma => {
                let first = line.sample(rng);
                match line.sample_other(first, rng) {
                    Some(second) => Some(self.better(at(first)?, at(second)?)),
                    None => at(first),
                }
            }
        }
    }

    fn endpoint_weight(&self, index: usize) -> u32 {
        self.cluster.endpoints.get(index).map_or(0, |endpoint| endpoint.weight)
    }

    /// The less loaded of two, both drawn by weight; the first one when they are as good as equal, so that idle endpoints
    /// share by weight.
    fn better(&self, first: usize, second: usize) -> usize {
        let (Some(a), Some(b)) = (self.cluster.endpoints.get(first), self.cluster.endpoints.get(second))
        else {
            return first;
        };
        let keep_first = if self.cluster.balancer == Balancer::PeakEwma {
            let (of_a, of_b) = (a.live.latency.millis(self.now), b.live.latency.millis(self.now));
            // What was never measured is taken to be as fast as the other: only requests in flight count then.
            let (of_a, of_b) = (of_a.or(of_b).unwrap_or(0.0), of_b.or(of_a).unwrap_or(0.0));
            cost(of_a, a) <= cost(of_b, b) * NOISE
        } else {
            busy(a) <= busy(b)
        };
        if keep_first { first } else { second }
    }
}

/// Differences of latency below this (added to all) and costs within this factor are noise: no reason to prefer one.
const NOISE_MS: f32 = 1.0;
const NOISE: f32 = 1.25;

/// Expected wait: latency times the requests that are there, this one included. More weight carries more requests at the
/// same cost. Source: Finagle's and tower's PeakEwma, `cost = ewma × (pending + 1)`.
fn cost(latency_ms: f32, endpoint: &Endpoint) -> f32 {
    (latency_ms + NOISE_MS) * (busy(endpoint) + 1.0)
}

/// Requests in flight, relative to the usual weight of 100.
#[allow(clippy::cast_precision_loss)]
fn busy(endpoint: &Endpoint) -> f32 {
    endpoint.live.in_flight() as f32 * 100.0 / endpoint.weight.max(1) as f32
}
