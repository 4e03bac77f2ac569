//! Passive health of an endpoint: when it is taken out of balancing, and how it comes back. One state machine; the
//! answers of real requests are its only input. It chooses no endpoint and sends nothing.
//!
//! ```text
//!     failures or gateway errors in a row reach the limit, a connect fails, it is gone, or judged worse than its peers
//!   In ───────────────────────────────────────────────────────────▶ Out (waiting)
//!    ▲                                                                │ the ejection's time has passed
//!    │ success of a request sent after the ejection                   ▼
//!    ├──────────────────────────────────────── Out (due) ──▶ one request at a time is the probe
//!    │                                                                │ failure: out again, longer
//!    └────────────────────────────────────────────────────────────────┘
//! ```
//! - n-th ejection in a row: `base × n`, but `1 s × 2^(n-1)` after a failed connect and when it was gone, never above the maximum.
//! - The row ends when the endpoint has been back for as long as its last ejection was, and at least `base`; where it is
//!   judged beside its peers (`judge`), two intervals more, so that one whole interval was judged.
//! - Answers to requests sent before the ejection change nothing any more.
//! - At most `max_ejected_percent` of a cluster, rounded down, is out at a time; one always may, if another is left.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::clock;

pub(crate) mod judge;
#[cfg(test)]
mod table;
#[cfg(test)]
mod tests;

pub use judge::{LatencyRule, SuccessRate};

/// First ejection after a failed connect.
pub const CONNECT_EJECTION: Duration = Duration::from_secs(1);

/// When an endpoint is ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierConfig {
    /// Failures in a row until ejection; at least 1. `None`: not judged by this.
    pub consecutive_failures: Option<u32>,
    /// Gateway errors in a row until ejection; at least 1. `None`: not judged by this.
    pub consecutive_gateway_errors: Option<u32>,
    /// How often the two below are judged. `None`: there is neither.
    pub interval: Option<Duration>,
    /// By its share of successes beside its peers'.
    pub success_rate: Option<SuccessRate>,
    /// By its mean latency beside its peers'.
    pub latency: Option<LatencyRule>,
    /// Length of the first ejection.
    pub base_ejection: Duration,
    /// Longest ejection.
    pub max_ejection: Duration,
    /// Share of a cluster that may be out at a time.
    pub max_ejected_percent: u32,
}

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// No connection: refused, timed out, mTLS failed, or somebody else answered.
    Connect,
    /// It acknowledges nothing that is sent to it.
    Gone,
    /// The connection was lost.
    Reset,
    /// An answer that counts as a failure, and not as the next one: 500 and the like.
    Status,
    /// 502, 503, 504, gRPC UNAVAILABLE: what a gateway says of somebody behind it.
    Gateway,
    /// The try's time passed.
    Timeout,
}

/// Why an endpoint is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// That many failures in a row.
    Failures(u32),
    /// That many gateway errors in a row.
    GatewayErrors(u32),
    /// A failed connect.
    Connect,
    /// It acknowledged nothing any more.
    Gone,
    /// It failed more often than its peers did; both in percent.
    SuccessRate {
        /// Its own share of successes.
        own: u32,
        /// The mean of all.
        mean: u32,
    },
    /// It was slower than its peers were; both in milliseconds.
    Latency {
        /// Its own mean.
        own: u32,
        /// The median of the others' means.
        median: u32,
    },
}

impl Cause {
    /// The word for metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Failures(_) => "failures",
            Self::GatewayErrors(_) => "gateway-errors",
            Self::Connect => "connect",
            Self::Gone => "gone",
            Self::SuccessRate { .. } => "success-rate",
            Self::Latency { .. } => "latency",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failures(n) => write!(f, "{n} consecutive failures"),
            Self::GatewayErrors(n) => write!(f, "{n} consecutive gateway errors"),
            Self::Connect => f.write_str("failed to connect"),
            Self::Gone => f.write_str("acknowledges nothing any more"),
            Self::SuccessRate { own, mean } => write!(f, "success rate {own} %, of all {mean} %"),
            Self::Latency { own, median } => write!(f, "mean latency {own} ms, its peers' {median} ms"),
        }
    }
}

/// What an answer changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Taken out for this long.
    Ejected(Cause, Duration),
    /// Its probe failed: kept out for this long.
    Kept(Cause, Duration),
    /// Back in balancing.
    Returned,
}

/// In what state of the endpoint a request was sent; its answer is judged by that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// It was in balancing.
    Normal,
    /// It was out and due: this is the one that tries it. With the number of the ejection.
    Probe(u32),
    /// It was out, but nothing else was left. With the number of the ejection.
    Panic(u32),
}

/// What [`Health::admits`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    In,
    /// Out, and a probe may go.
    Due,
    Out,
}

/// An endpoint's state. Reading whether it is in costs one atomic load, and so does a success while nothing is wrong.
#[derive(Debug)]
pub(crate) struct Health {
    mark: AtomicU64,
    state: Mutex<State>,
    changes: Arc<watch::Sender<u64>>,
}

// What `mark` says besides "out until this moment".
const CLEAN: u64 = 0;
const IN: u64 = 1;
const PROBING: u64 = u64::MAX;

#[derive(Debug, Default)]
struct State {
    out: Option<Out>,
    /// In a row, while in.
    failures: u32,
    /// The last so many of those.
    gateway_errors: u32,
    /// In a row.
    ejections: u32,
    /// Ever; tells a late answer from one to this ejection.
    number: u32,
    /// Of the last ejection.
    length: Duration,
    /// Since the last ejection.
    back: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Out {
    cause: Cause,
    until: Instant,
    probing: bool,
}

impl State {
    /// The pure part: what a success does.
    fn success(&mut self, pass: Pass, config: &OutlierConfig, now: Instant) -> Option<Verdict> {
        if self.out.is_none() {
            (self.failures, self.gateway_errors) = (0, 0);
            self.forget(config, now);
            return None;
        }
        if !self.is_of_this_ejection(pass) {
            return None;
        }
        self.out = None;
        (self.failures, self.gateway_errors) = (0, 0);
        self.back = Some(now);
        Some(Verdict::Returned)
    }

    /// The pure part: what a failure does. `may` says whether the cluster allows one more ejection.
    fn failure(
        &mut self,
        pass: Pass,
        failure: Failure,
        config: &OutlierConfig,
        may: impl FnOnce() -> bool,
        now: Instant,
    ) -> Option<Verdict> {
        match (self.out, pass) {
            (Some(out), Pass::Probe(number)) if number == self.number => {
                let cause = at_once(failure).unwrap_or(out.cause);
                let length = self.eject(cause, config, now);
                Some(Verdict::Kept(cause, length))
            }
            // Back, by this very probe, whose response broke off later: as good as any other failure.
            (None, Pass::Probe(number)) if number != self.number => None,
            (Some(_), _) | (None, Pass::Panic(_)) => None,
            (None, Pass::Normal | Pass::Probe(_)) => {
                self.forget(config, now);
                self.failures = self.failures.saturating_add(1);
                // What the caller gets for all others is a 502, 503 or 504 too.
                let gateway = failure != Failure::Status;
                self.gateway_errors = if gateway { self.gateway_errors.saturating_add(1) } else { 0 };
                let reached = |count: u32, limit: Option<u32>| limit.is_some_and(|limit| count >= limit);
                let cause = if let Some(cause) = at_once(failure) {
                    cause
                } else if reached(self.failures, config.consecutive_failures) {
                    Cause::Failures(self.failures)
                } else if reached(self.gateway_errors, config.consecutive_gateway_errors) {
                    Cause::GatewayErrors(self.gateway_errors)
                } else {
                    return None;
                };
                may().then(|| Verdict::Ejected(cause, self.eject(cause, config, now)))
            }
        }
    }

    /// The pure part: what a judgement beside its peers does.
    fn judged(
        &mut self,
        cause: Cause,
        config: &OutlierConfig,
        may: impl FnOnce() -> bool,
        now: Instant,
    ) -> Option<Verdict> {
        if self.out.is_some() {
            return None;
        }
        self.forget(config, now);
        may().then(|| Verdict::Ejected(cause, self.eject(cause, config, now)))
    }

    fn neutral(&mut self, pass: Pass) {
        if matches!(pass, Pass::Probe(number) if number == self.number)
            && let Some(out) = &mut self.out
        {
            out.probing = false;
        }
    }

    fn eject(&mut self, cause: Cause, config: &OutlierConfig, now: Instant) -> Duration {
        self.ejections = self.ejections.saturating_add(1);
        self.number = self.number.wrapping_add(1);
        self.length = length(cause, self.ejections, config);
        self.out = Some(Out { cause, until: now + self.length, probing: false });
        self.length
    }

    fn forget(&mut self, config: &OutlierConfig, now: Instant) {
        let judged = config.interval.map_or(Duration::ZERO, |interval| interval.saturating_mul(2));
        let clean = self.length.max(config.base_ejection).saturating_add(judged);
        if self.back.is_some_and(|back| now.saturating_duration_since(back) >= clean) {
            self.ejections = 0;
            self.back = None;
        }
    }

    fn is_of_this_ejection(&self, pass: Pass) -> bool {
        matches!(pass, Pass::Probe(number) | Pass::Panic(number) if number == self.number)
    }

    fn mark(&self) -> u64 {
        match self.out {
            Some(Out { probing: true, .. }) => PROBING,
            // Rounded up: never due before its time.
            Some(out) => (clock::millis(out.until) + 1).clamp(IN + 1, PROBING - 1),
            None if self.failures == 0 && self.ejections == 0 => CLEAN,
            None => IN,
        }
    }
}

/// Nobody can be served there just now: one is enough.
const fn at_once(failure: Failure) -> Option<Cause> {
    match failure {
        Failure::Connect => Some(Cause::Connect),
        Failure::Gone => Some(Cause::Gone),
        _ => None,
    }
}

fn length(cause: Cause, ejections: u32, config: &OutlierConfig) -> Duration {
    let length = match cause {
        Cause::Connect | Cause::Gone => CONNECT_EJECTION.saturating_mul(1 << (ejections - 1).min(30)),
        _ => config.base_ejection.saturating_mul(ejections),
    };
    length.min(config.max_ejection)
}

impl Health {
    pub(crate) fn new(changes: Arc<watch::Sender<u64>>) -> Self {
        Self { mark: AtomicU64::new(CLEAN), state: Mutex::default(), changes }
    }

    pub(crate) fn admits(&self, now: Instant) -> Admission {
        match self.mark.load(Ordering::Acquire) {
            CLEAN | IN => Admission::In,
            PROBING => Admission::Out,
            until if until <= clock::millis(now) => Admission::Due,
            _ => Admission::Out,
        }
    }

    /// Why it is out, if it is, due or not.
    pub(crate) fn ejected(&self) -> Option<Cause> {
        if self.is_in() { None } else { self.state().out.map(|out| out.cause) }
    }

    /// The same, and how much longer.
    pub(crate) fn ejection(&self, now: Instant) -> Option<(Cause, Duration)> {
        let out = if self.is_in() { None } else { self.state().out };
        out.map(|out| (out.cause, out.until.saturating_duration_since(now)))
    }

    /// In a row.
    pub(crate) fn ejections(&self) -> u32 {
        if self.mark.load(Ordering::Acquire) == CLEAN { 0 } else { self.state().ejections }
    }

    fn is_in(&self) -> bool {
        self.mark.load(Ordering::Acquire) <= IN
    }

    /// Makes the caller the probe, if it is due and nobody else is.
    pub(crate) fn probe(&self, now: Instant) -> Option<Pass> {
        if self.admits(now) != Admission::Due {
            return None;
        }
        let mut state = self.state();
        let number = state.number;
        let out = state.out.as_mut().filter(|out| !out.probing && out.until <= now)?;
        out.probing = true;
        self.publish(&state);
        Some(Pass::Probe(number))
    }

    /// For a request that goes here whatever the state is.
    pub(crate) fn pass(&self) -> Pass {
        if self.is_in() {
            return Pass::Normal;
        }
        let state = self.state();
        if state.out.is_some() { Pass::Panic(state.number) } else { Pass::Normal }
    }

    pub(crate) fn success(&self, pass: Pass, config: &OutlierConfig, now: Instant) -> Option<Verdict> {
        if self.mark.load(Ordering::Acquire) == CLEAN {
            return None;
        }
        let mut state = self.state();
        let verdict = state.success(pass, config, now);
        self.settle(&state, verdict);
        verdict
    }

    pub(crate) fn failure(
        &self,
        pass: Pass,
        failure: Failure,
        config: &OutlierConfig,
        may: impl FnOnce() -> bool,
        now: Instant,
    ) -> Option<Verdict> {
        let mut state = self.state();
        let verdict = state.failure(pass, failure, config, may, now);
        self.settle(&state, verdict);
        verdict
    }

    /// It was judged worse than its peers.
    pub(crate) fn judged(
        &self,
        cause: Cause,
        config: &OutlierConfig,
        may: impl FnOnce() -> bool,
        now: Instant,
    ) -> Option<Verdict> {
        let mut state = self.state();
        let verdict = state.judged(cause, config, may, now);
        self.settle(&state, verdict);
        verdict
    }

    /// A request ended without telling anything of the endpoint.
    pub(crate) fn neutral(&self, pass: Pass) {
        if matches!(pass, Pass::Probe(_)) {
            let mut state = self.state();
            state.neutral(pass);
            self.publish(&state);
        }
    }

    /// Something else than this state has changed that whoever reports the endpoint's health wants to know.
    pub(crate) fn announce(&self) {
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }

    fn settle(&self, state: &State, verdict: Option<Verdict>) {
        self.publish(state);
        if verdict.is_some() {
            self.announce();
        }
    }

    fn publish(&self, state: &State) {
        self.mark.store(state.mark(), Ordering::Release);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held while an ejection is decided, so that two at once cannot exceed the cluster's share.
#[derive(Debug, Default)]
pub(crate) struct Ejecting(Mutex<()>);

impl Ejecting {
    pub(crate) fn lock(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether one more of so many endpoints may go out.
pub(crate) fn may_eject(total: usize, out: usize, percent: u32) -> bool {
    let share = total * percent.min(100) as usize / 100;
    total > 1 && out < share.max(1)
}
