//! How many requests a cluster takes at a time before they begin to wait for each other, found out from how long they take.
//! A limit that follows it keeps the queue in the caller's hands, where what is too much is refused at once instead of
//! being served too late. It holds no request; `outbound` asks it, and tells it how long each took.
//! Source: the gradient controller of Envoy's adaptive concurrency filter; Netflix, "Performance Under Load", 2018.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

#[cfg(test)]
mod tests;

/// Bounds of the limit, and how it is found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// Always allowed, and all that is allowed while the baseline is measured.
    pub min: u32,
    /// Never more.
    pub max: u32,
    /// Requests may take longer than the baseline by this share of it.
    pub tolerance: f64,
    /// How often the baseline is measured anew.
    pub baseline_every: Duration,
}

/// The limit of one cluster.
#[derive(Debug)]
pub struct Adaptive {
    limit: AtomicU32,
    gradient: Mutex<Gradient>,
}

impl Adaptive {
    /// Before anything is known.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let gradient = Gradient::new(config);
        Self { limit: AtomicU32::new(gradient.limit()), gradient: Mutex::new(gradient) }
    }

    /// How it is configured.
    #[must_use]
    pub fn config(&self) -> Config {
        self.gradient.lock().unwrap_or_else(std::sync::PoisonError::into_inner).config
    }

    /// Requests under way that are allowed now.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    /// A request got its answer, or was given up after as long. `in_flight`: requests under way, itself counted.
    pub fn sample(&self, began: Instant, now: Instant, in_flight: u32, rng: &mut impl Rng) {
        // Another worker is at it: one sample more or less makes no difference, waiting would.
        let Ok(mut gradient) = self.gradient.try_lock() else { return };
        gradient.sample(began, now, in_flight, rng);
        self.limit.store(gradient.limit(), Ordering::Relaxed);
    }
}

/// Answers are looked at together for this long.
const WINDOW: Duration = Duration::from_millis(100);
/// So many in a window at least; fewer are looked at together with those of the next.
const ENOUGH: usize = 20;
/// More than these in a window tell nothing new.
const MOST: usize = 512;
/// The baseline is the median of so many, ...
const BASELINE: usize = 100;
/// ... or, after this time, of those few that there are.
const BASELINE_TIME: Duration = Duration::from_secs(1);
const BASELINE_FEW: usize = 5;
/// In a window the limit at most halves or doubles.
const STEP: (f64, f64) = (0.5, 2.0);
/// Windows in a row in which requests take far too long, and the limit is as low as that makes it, after which the baseline is
/// in doubt.
const STUCK: u32 = 5;
const HARDLY_LOWER: f64 = 0.8;

/// The state of [`Adaptive`]. Pure: times and chance are handed in.
#[derive(Debug)]
struct Gradient {
    config: Config,
    /// As a fraction, so that small steps add up.
    limit: f64,
    /// Median time to an answer while hardly anything is under way. `None`: never measured.
    baseline: Option<Duration>,
    phase: Phase,
    times: Vec<Duration>,
    /// Most requests under way since the window began.
    busiest: u32,
    stuck: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// Little is let through, to see how long a request takes by itself. Only requests that began after this moment
    /// count: those before had company. `None`: as soon as there is one.
    Baseline(Option<Instant>),
    /// The limit follows the times.
    Following { window_ends: Instant, baseline_due: Instant },
}

impl Gradient {
    fn new(config: Config) -> Self {
        Self {
            limit: f64::from(config.min),
            config,
            baseline: None,
            phase: Phase::Baseline(None),
            times: Vec::with_capacity(BASELINE),
            busiest: 0,
            stuck: 0,
        }
    }

    fn limit(&self) -> u32 {
        match self.phase {
            Phase::Baseline(_) => self.config.min,
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within the bounds")]
            Phase::Following { .. } => self.limit as u32,
        }
    }

    fn sample(&mut self, began: Instant, now: Instant, in_flight: u32, rng: &mut impl Rng) {
        self.busiest = self.busiest.max(in_flight);
        match self.phase {
            Phase::Baseline(since) => {
                let since = since.unwrap_or(began);
                self.phase = Phase::Baseline(Some(since));
                if began >= since {
                    self.times.push(now.duration_since(began));
                }
                let time_is_up =
                    now.duration_since(since) >= BASELINE_TIME && self.times.len() >= BASELINE_FEW;
                if self.times.len() >= BASELINE || time_is_up {
                    self.baseline = Some(median(&mut self.times));
                    // Not all callers at the same moment.
                    let due = now + self.config.baseline_every.mul_f64(rng.random_range(0.9..1.1));
                    self.begin(Phase::Following { window_ends: now + WINDOW, baseline_due: due });
                }
            }
            Phase::Following { window_ends, baseline_due } => {
                if self.times.len() < MOST {
                    self.times.push(now.duration_since(began));
                }
                if now < window_ends || self.times.len() < ENOUGH {
                    return;
                }
                self.follow();
                let in_doubt = self.stuck >= STUCK;
                if in_doubt || now >= baseline_due {
                    self.stuck = 0;
                    self.begin(Phase::Baseline(Some(now)));
                } else {
                    self.begin(Phase::Following { window_ends: now + WINDOW, baseline_due });
                }
            }
        }
    }

    fn begin(&mut self, phase: Phase) {
        self.phase = phase;
        self.times.clear();
        self.busiest = 0;
    }

    /// The limit after a window.
    fn follow(&mut self) {
        let Some(baseline) = self.baseline else { return };
        let time = median(&mut self.times).as_secs_f64().max(1e-9);
        let gradient = (baseline.as_secs_f64() * (1.0 + self.config.tolerance) / time).clamp(STEP.0, STEP.1);
        // The root: a little more than what seems right, so that a limit that is too low is found out. At rest a queue
        // of about as many remains.
        let wanted = self.limit * gradient + self.limit.sqrt();
        // What is not used says nothing about more.
        let before = self.limit;
        let unused = f64::from(self.busiest) < self.limit / 2.0;
        if wanted < self.limit || !unused {
            self.limit = wanted.clamp(f64::from(self.config.min), f64::from(self.config.max));
        }
        let lowest = gradient <= STEP.0 && self.limit > before * HARDLY_LOWER;
        self.stuck = if lowest { self.stuck + 1 } else { 0 };
    }
}

/// The middle one. Of none it is nothing.
fn median(times: &mut [Duration]) -> Duration {
    let middle = times.len() / 2;
    if times.is_empty() { Duration::ZERO } else { *times.select_nth_unstable(middle).1 }
}
