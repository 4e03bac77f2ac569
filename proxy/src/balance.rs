//! Which endpoint of a cluster a request goes to. A choice and a counter; it neither connects nor waits.
//!
//! A tier is drawn first (`tiers`; without failover and locality there is one). Candidates, the first group that is not empty:
//! 1. in balancing, of weight above 0, not tried yet for this request;
//! 2. the same of weight 0;
//! 3. ejected, its time over, nobody probing it: this request is the probe;
//! 4. in balancing, but tried already;
//! 5. ejected: when everything is, better to try than to refuse ("panic"), untried ones first.
//!
//! Within a group those of the drawn tier come first, then those of the other tiers in their order. A key (`hash`) takes
//! the place of chance where the balancer hashes (`table`). While fewer are healthy than the panic threshold asks for,
//! health does not count.
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
use crate::snapshot::{Cluster, Endpoint};

use choice::Choice;

mod choice;
pub(crate) mod hash;
pub(crate) mod ramp;
pub(crate) mod strain;
pub(crate) mod table;
#[cfg(test)]
mod tests;
pub(crate) mod tiers;
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
    /// It answered that it takes no more for now (429, gRPC RESOURCE_EXHAUSTED): not ill, but nobody to send more to.
    Refused,
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
        self.report_at(outcome, Instant::now())
    }

    /// The same, at a time of the caller's.
    pub(crate) fn report_at(&mut self, outcome: Outcome, now: Instant) -> Option<Verdict> {
        let live = &self.endpoint.live;
        self.settled = true;
        match outcome {
            Outcome::Success { latency } => {
                live.latency.observe(latency, now);
                live.strain.served(now);
            }
            Outcome::Failure(_) => {
                live.latency.observe_peak(now.saturating_duration_since(self.started), now);
                live.strain.refused(now);
            }
            Outcome::Refused => live.strain.refused(now),
            Outcome::Neutral => {}
        }
        let Some(config) = &self.cluster.outlier else { return None };
        if config.interval.is_some() {
            match outcome {
                Outcome::Success { latency } => live.tally.success(latency),
                Outcome::Failure(_) => live.tally.failure(),
                Outcome::Refused | Outcome::Neutral => {}
            }
        }
        match outcome {
            Outcome::Success { .. } | Outcome::Refused => live.health.success(self.pass, config, now),
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

    /// Nobody waits for it any longer: it would have taken at least this long. That is no failure.
    pub fn outlasted(&self) {
        let (now, latency) = (Instant::now(), &self.endpoint.live.latency);
        let elapsed = now.saturating_duration_since(self.started);
        match latency.millis(now) {
            Some(_) => latency.observe_peak(elapsed, now),
            None => latency.observe(elapsed, now),
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
    let out = all.iter().filter(|e| cluster.admission(e, now) != Admission::In).count();
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
    let within_reach =
        cluster.endpoints.iter().enumerate().filter(|(i, _)| cluster.plan.tier_of(*i).is_some());
    let mut others =
        within_reach.map(|(_, other)| other).filter(|other| other.addr != here && other.weight > 0);
    others.any(|other| !tried.contains(&other.addr) && cluster.admission(other, now) == Admission::In)
}

/// Judges a cluster's endpoints beside each other, if that is to be done now; whom it ejected. For a cluster
/// with such a rule ([`Cluster::is_judged`]); costs the time of its endpoints, once an interval.
pub fn judge(cluster: &Cluster, now: Instant) -> Vec<(Arc<Endpoint>, Verdict)> {
    let Some((config, interval)) = cluster.outlier.as_ref().and_then(|o| Some((o, o.interval?))) else {
        return Vec::new();
    };
    if !cluster.live.window.is_due(interval, now) {
        return Vec::new();
    }
    let all = &cluster.endpoints;
    let counts = cluster.live.window.turn(all.iter().map(|endpoint| &endpoint.live));
    let in_balancing = |endpoint: &Endpoint| cluster.admission(endpoint, now) == Admission::In;
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

/// Chooses. `key`: what the request is hashed by, from [`hash::key`]; without one, RingHash and Maglev choose at random. `tried`
/// are the endpoints that this request has been to already.
///
/// # Errors
/// [`Reason::NoHealthyEndpoint`] when the cluster has no endpoint at all, or none within the reach that its locality sets.
pub fn pick(
    cluster: &Arc<Cluster>,
    key: Option<u64>,
    tried: &[SocketAddr],
    now: Instant,
    rng: &mut impl Rng,
) -> Result<Load, Reason> {
    let choice = Choice::new(cluster, key, tried, now, rng);
    let (index, pass) =
        choice.quick(rng).or_else(|| choice.thorough(rng)).ok_or(Reason::NoHealthyEndpoint)?;
    let endpoint = cluster.endpoints.get(index).ok_or(Reason::NoHealthyEndpoint)?;
    Ok(Load::new(cluster, endpoint, pass, now))
}

/// For a destination that is one endpoint by its own address. Its failures count as any other's, and do not stop it.
pub fn pinned(cluster: &Arc<Cluster>, endpoint: &Arc<Endpoint>, now: Instant) -> Load {
    Load::new(cluster, endpoint, endpoint.live.health.pass(), now)
}
