//! The circuit breaker: bounds on what one cluster may have open at a time from this proxy. A permit is a unit of one
//! bound and gives it back when dropped. It never waits: what goes beyond a bound is refused at once.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use weft_api::Reason;

/// Bounds; `None` is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Connections open.
    pub connections: Option<u32>,
    /// Requests that wait for a connection.
    pub pending: Option<u32>,
    /// Requests under way.
    pub requests: Option<u32>,
    /// Retries under way.
    pub retries: Option<u32>,
}

/// The limits now in force, and the counts, which outlive an update of the limits.
#[derive(Debug)]
pub struct Breaker {
    limits: Limits,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts([AtomicU32; 4]);

#[derive(Clone, Copy)]
enum Bound {
    Connections,
    Pending,
    Requests,
    Retries,
}

impl Breaker {
    /// With nothing open.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, counts: Arc::default() }
    }

    /// The same counts under other limits. What is open beyond a lower limit stays open.
    #[must_use]
    pub fn with_limits(&self, limits: Limits) -> Self {
        Self { limits, counts: Arc::clone(&self.counts) }
    }

    /// The limits.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// One more request under way.
    ///
    /// # Errors
    /// [`Reason::BreakerOpen`] at the limit.
    pub fn request(&self) -> Result<Permit, Reason> {
        self.take(Bound::Requests, self.limits.requests).ok_or(Reason::BreakerOpen)
    }

    /// One more request that waits for a connection.
    ///
    /// # Errors
    /// [`Reason::BreakerPending`] at the limit.
    pub fn pending(&self) -> Result<Permit, Reason> {
        self.take(Bound::Pending, self.limits.pending).ok_or(Reason::BreakerPending)
    }

    /// One more connection.
    ///
    /// # Errors
    /// [`Reason::BreakerConnections`] at the limit.
    pub fn connection(&self) -> Result<Permit, Reason> {
        self.take(Bound::Connections, self.limits.connections).ok_or(Reason::BreakerConnections)
    }

    /// One more retry. None at the limit: then the failure that was to be retried stands.
    #[must_use]
    pub fn retry(&self) -> Option<Permit> {
        self.take(Bound::Retries, self.limits.retries)
    }

    /// Requests under way.
    #[must_use]
    pub fn requests(&self) -> u32 {
        self.counts.0[Bound::Requests as usize].load(Ordering::Relaxed)
    }

    /// What is open: connections, pending, requests, retries.
    #[must_use]
    pub fn open(&self) -> [u32; 4] {
        [0, 1, 2, 3].map(|bound: usize| self.counts.0[bound].load(Ordering::Relaxed))
    }

    fn take(&self, bound: Bound, limit: Option<u32>) -> Option<Permit> {
        // Add first and take back beyond the limit: never too many at a time, without a loop. Two that come at once to
        // the last place may both be refused while a third is just leaving, which only errs on the safe side.
        let count = &self.counts.0[bound as usize];
        let before = count.fetch_add(1, Ordering::Relaxed);
        let permit = Permit { counts: Arc::clone(&self.counts), bound, also: None };
        (before < limit.unwrap_or(u32::MAX)).then_some(permit)
    }
}

/// A unit of a bound; dropping it gives it back.
#[must_use = "dropping a permit gives it back"]
pub struct Permit {
    counts: Arc<Counts>,
    bound: Bound,
    also: Option<Box<Self>>,
}

impl Permit {
    /// Holds a unit of another bound as well.
    pub fn and(mut self, other: Self) -> Self {
        self.also = Some(Box::new(other));
        self
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.counts.0[self.bound as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Permit")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limited(limit: u32) -> Breaker {
        let limit = Some(limit);
        Breaker::new(Limits { connections: limit, pending: limit, requests: limit, retries: limit })
    }

    #[test]
    fn each_bound_refuses_with_its_own_reason() {
        let breaker = limited(1);
        let _held = (breaker.request(), breaker.pending(), breaker.connection(), breaker.retry());
        assert_eq!(breaker.request().err(), Some(Reason::BreakerOpen));
        assert_eq!(breaker.pending().err(), Some(Reason::BreakerPending));
        assert_eq!(breaker.connection().err(), Some(Reason::BreakerConnections));
        assert!(breaker.retry().is_none());
        assert_eq!(breaker.open(), [1, 1, 1, 1]);
    }

    #[test]
    fn a_permit_of_two_bounds_gives_both_back() {
        let (wide, narrow) = (limited(2), limited(1));
        let both = wide.request().unwrap().and(narrow.request().unwrap());
        assert_eq!((wide.requests(), narrow.requests()), (1, 1));
        assert!(narrow.request().is_err());
        drop(both);
        assert_eq!((wide.requests(), narrow.requests()), (0, 0));
    }

    #[test]
    fn new_limits_keep_the_counts_and_close_nothing() {
        let breaker = limited(3);
        let held: Vec<_> = (0..3).map(|_| breaker.request().unwrap()).collect();
        let lower = breaker.with_limits(Limits { requests: Some(2), ..Limits::default() });
        assert!(lower.request().is_err());
        assert_eq!(lower.open()[2], 3);
        drop(held);
        assert_eq!(lower.open()[2], 0);
        let _two = (lower.request().unwrap(), lower.request().unwrap());
        assert!(lower.request().is_err());
    }

    #[test]
    fn without_a_limit_nothing_is_refused() {
        let breaker = Breaker::new(Limits::default());
        let held: Vec<_> = (0..10_000).map(|_| breaker.request().unwrap()).collect();
        assert_eq!(held.len(), 10_000);
    }

    #[test]
    fn two_threads_never_hold_more_than_the_limit() {
        let breaker = limited(5);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        let held: Vec<_> = (0..4).filter_map(|_| breaker.request().ok()).collect();
                        assert!(held.len() <= 5);
                    }
                });
            }
        });
        assert_eq!(breaker.open()[2], 0);
    }

    proptest! {
        #[test]
        fn taken_and_given_back_in_any_order_the_count_is_what_is_held(limit in 1u32..6, ops in prop::collection::vec(any::<Option<u8>>(), 0..100)) {
            let breaker = limited(limit);
            let mut held = Vec::new();
            for op in ops {
                match op {
                    None => {
                        let permit = breaker.request();
                        prop_assert_eq!(permit.is_ok(), held.len() < limit as usize);
                        held.extend(permit);
                    }
                    Some(i) if !held.is_empty() => {
                        let i = usize::from(i) % held.len();
                        drop(held.swap_remove(i));
                    }
                    Some(_) => {}
                }
                prop_assert_eq!(breaker.open()[2] as usize, held.len());
            }
        }
    }
}
