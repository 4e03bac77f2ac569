//! From the results of checks to healthy and unhealthy: so many in a row. Pure, but for the word that the data path reads.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rand::Rng;

/// How endpoints are checked, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveCheck {
    /// What they are asked.
    pub kind: Kind,
    /// Instead of the endpoint's.
    pub port: Option<u16>,
    /// From the end of one check to the beginning of the next.
    pub interval: Duration,
    /// Of one check.
    pub timeout: Duration,
    /// Failures in a row, at least 1.
    pub unhealthy_threshold: u32,
    /// Successes in a row, at least 1.
    pub healthy_threshold: u32,
    /// Of the interval, at most 100.
    pub jitter_percent: u32,
    /// "namespace/pod" of the callers that may check.
    pub checkers: Vec<String>,
    /// How many of them check one endpoint.
    pub max_checkers: usize,
}

/// What endpoints are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A GET.
    Http {
        /// Path and query.
        path: http::uri::PathAndQuery,
        /// Statuses that pass; none: 200 to 399.
        expected: Vec<u16>,
        /// The Host header, unless it is the endpoint's address.
        host: Option<http::HeaderValue>,
    },
    /// grpc.health.v1.Health/Check of this service.
    Grpc(String),
    /// A connection.
    Tcp,
}

impl ActiveCheck {
    /// Until the next check.
    pub(crate) fn wait(&self, rng: &mut impl Rng) -> Duration {
        let jitter = f64::from(self.jitter_percent.min(100)) / 100.0;
        self.interval.mul_f64(1.0 + jitter * rng.random_range(-1.0..=1.0))
    }
}

/// What is believed of an endpoint, and how many results in a row speak against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    unhealthy: bool,
    against: u32,
}

impl Standing {
    pub(crate) const fn new(unhealthy: bool) -> Self {
        Self { unhealthy, against: 0 }
    }

    /// Takes a result; whether the endpoint is healthy now, if that is new.
    pub(crate) fn take(&mut self, passed: bool, check: &ActiveCheck) -> Option<bool> {
        if passed != self.unhealthy {
            self.against = 0;
            return None;
        }
        self.against += 1;
        let enough = if passed { check.healthy_threshold } else { check.unhealthy_threshold };
        if self.against < enough {
            return None;
        }
        *self = Self::new(!passed);
        Some(passed)
    }
}

/// What this proxy's own checks say of an endpoint. Reading it costs one atomic load.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    state: AtomicU8,
    why: Mutex<String>,
}

const HEALTHY: u8 = 1;
const UNHEALTHY: u8 = 2;

impl Checked {
    pub(crate) fn set(&self, unhealthy: bool, why: &str) {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = why.to_owned();
        self.state.store(if unhealthy { UNHEALTHY } else { HEALTHY }, Ordering::Relaxed);
    }

    /// It is not checked here any more.
    pub(crate) fn forget(&self) {
        self.state.store(0, Ordering::Relaxed);
    }

    /// `None`: it is not checked here.
    pub(crate) fn is_unhealthy(&self) -> Option<bool> {
        match self.state.load(Ordering::Relaxed) {
            HEALTHY => Some(false),
            UNHEALTHY => Some(true),
            _ => None,
        }
    }

    pub(crate) fn why(&self) -> String {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng as _;

    pub(crate) fn check() -> ActiveCheck {
        ActiveCheck {
            kind: Kind::Tcp,
            port: None,
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            unhealthy_threshold: 3,
            healthy_threshold: 2,
            jitter_percent: 10,
            checkers: Vec::new(),
            max_checkers: 3,
        }
    }

    #[test]
    fn so_many_in_a_row_and_none_fewer() {
        // What came (+ passed, - failed), and what it was taken for then (h, u), where that is new.
        for (results, news) in [
            ("--+--+--+++", "           "),
            ("---", "  u"),
            ("------", "  u   "),
            ("---+-+-++", "  u     h"),
            ("---++---", "  u h  u"),
            ("+++---++", "     u h"),
        ] {
            let mut standing = Standing::new(false);
            let said: String = results
                .chars()
                .map(|result| match standing.take(result == '+', &check()) {
                    Some(true) => 'h',
                    Some(false) => 'u',
                    None => ' ',
                })
                .collect();
            assert_eq!(said, news, "{results}");
        }
    }

    #[test]
    fn whoever_takes_over_begins_with_what_was_known() {
        let mut standing = Standing::new(true);
        assert_eq!(standing.take(false, &check()), None);
        assert_eq!(standing.take(true, &check()), None);
        assert_eq!(standing.take(true, &check()), Some(true));
    }

    proptest! {
        #[test]
        fn a_wait_is_within_its_jitter(seed: u64, jitter in 0u32..=150) {
            let check = ActiveCheck { jitter_percent: jitter, ..check() };
            let wait = check.wait(&mut rand::rngs::SmallRng::seed_from_u64(seed)).as_secs_f64();
            let most = f64::from(jitter.min(100)) / 10.0;
            prop_assert!((10.0 - most - 1e-6..=10.0 + most + 1e-6).contains(&wait), "{wait}");
        }

        #[test]
        fn it_changes_only_after_enough_in_a_row(results in prop::collection::vec(any::<bool>(), 0..100), bad in 1u32..5, good in 1u32..5) {
            let check = ActiveCheck { unhealthy_threshold: bad, healthy_threshold: good, ..check() };
            let (mut standing, mut healthy) = (Standing::new(false), true);
            for (i, passed) in results.iter().enumerate() {
                if let Some(now) = standing.take(*passed, &check) {
                    prop_assert_eq!(now, !healthy);
                    healthy = now;
                    let needed = if now { good } else { bad } as usize;
                    prop_assert!(results[i + 1 - needed..=i].iter().all(|result| *result == now));
                }
            }
        }
    }
}
