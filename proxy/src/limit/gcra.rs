//! A token bucket in one number: the moment at which it will be full again. Drawing is a compare-and-swap, so that it needs
//! no lock, no timer and no refilling. Pure: the time is handed in.
//! Source: ITU-T Recommendation I.371 (the generic cell rate algorithm, virtual scheduling); Brandur Leach, "Rate Limiting,
//! Cells, and GCRA", 2015.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How fast a bucket fills, and how much goes in. In nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// After which one more request is allowed.
    interval: u64,
    /// In which an empty bucket fills.
    depth: u64,
}

/// What came of a wish to draw one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// Refused: when one can be drawn, if nobody else draws.
    pub wait: Option<Duration>,
    /// How many more could be drawn at once.
    pub left: u64,
    /// Until the bucket is full.
    pub full: Duration,
}

impl Rate {
    /// `requests` in each `per`, and `burst` at once.
    #[must_use]
    pub fn new(requests: u32, per: Duration, burst: u32) -> Self {
        let interval = clamp(per.as_nanos() / u128::from(requests.max(1)));
        Self {
            interval,
            depth: clamp(per.as_nanos() * u128::from(burst.max(1)) / u128::from(requests.max(1))),
        }
        .at_least_one()
    }

    /// A bucket holds at least one request, or it would never give any.
    fn at_least_one(self) -> Self {
        let interval = self.interval.max(1);
        Self { interval, depth: self.depth.max(interval) }
    }

    /// Draws one.
    pub fn draw(self, bucket: &AtomicU64, now: u64) -> Draw {
        let mut seen = bucket.load(Ordering::Relaxed);
        loop {
            let full_at = seen.max(now);
            let next = full_at.saturating_add(self.interval);
            let ahead = next - now;
            if ahead > self.depth {
                let wait = Duration::from_nanos(ahead - self.depth);
                return Draw { wait: Some(wait), left: 0, full: Duration::from_nanos(full_at - now) };
            }
            match bucket.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    let left = (self.depth - ahead) / self.interval;
                    return Draw { wait: None, left, full: Duration::from_nanos(ahead) };
                }
                Err(other) => seen = other,
            }
        }
    }
}

/// A day, some 300,000 times: sums of two stay in range.
fn clamp(nanos: u128) -> u64 {
    u64::try_from(nanos).unwrap_or(u64::MAX).min(u64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    fn rate(requests: u32, burst: u32) -> Rate {
        Rate::new(requests, Duration::from_secs(1), burst)
    }

    #[test]
    fn a_full_bucket_gives_its_burst_at_once_and_then_one_per_interval() {
        let (rate, bucket, start) = (rate(10, 3), AtomicU64::new(0), 5 * SECOND);
        let drawn: Vec<_> = (0..4).map(|_| rate.draw(&bucket, start)).collect();
        assert_eq!(drawn.iter().map(|d| d.left).collect::<Vec<_>>(), [2, 1, 0, 0]);
        assert_eq!(drawn[0].full, Duration::from_millis(100));
        assert_eq!((drawn[2].wait, drawn[3].wait), (None, Some(Duration::from_millis(100))));
        // A refusal costs nothing.
        assert!(rate.draw(&bucket, start + SECOND / 10 - 1).wait.is_some());
        assert!(rate.draw(&bucket, start + SECOND / 10).wait.is_none());
        assert!(rate.draw(&bucket, start + SECOND / 10).wait.is_some());
    }

    #[test]
    fn a_bucket_of_less_than_one_request_still_gives_one() {
        let rate = Rate::new(1, Duration::from_secs(3600), 0);
        let bucket = AtomicU64::new(0);
        assert_eq!(rate.draw(&bucket, SECOND).wait, None);
        assert_eq!(rate.draw(&bucket, SECOND).wait, Some(Duration::from_secs(3600)));
    }

    #[test]
    fn threads_together_draw_no_more_than_the_burst() {
        let (rate, bucket) = (rate(1, 1000), AtomicU64::new(0));
        let drawn: usize = std::thread::scope(|scope| {
            let draw = || (0..1000).filter(|_| rate.draw(&bucket, SECOND).wait.is_none()).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(draw)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(drawn, 1000);
    }

    proptest! {
        #[test]
        fn in_any_span_no_more_than_the_burst_and_the_rate_are_drawn(
            requests in 1u32..2000, burst in 1u32..50, steps in prop::collection::vec(0u64..20_000_000, 1..300),
        ) {
            let (rate, bucket) = (rate(requests, burst), AtomicU64::new(0));
            let (mut now, mut drawn) = (SECOND, Vec::new());
            for step in steps {
                now += step;
                let draw = rate.draw(&bucket, now);
                if draw.wait.is_none() {
                    drawn.push(now);
                }
                if let Some(wait) = draw.wait {
                    // What it says is so: one nanosecond earlier is too early.
                    let at = now + u64::try_from(wait.as_nanos()).unwrap();
                    let copy = || AtomicU64::new(bucket.load(Ordering::Relaxed));
                    prop_assert!(rate.draw(&copy(), at).wait.is_none());
                    prop_assert!(rate.draw(&copy(), at - 1).wait.is_some());
                }
            }
            for (i, from) in drawn.iter().enumerate() {
                for (n, to) in drawn[i..].iter().enumerate() {
                    let allowed = u64::from(burst) + (to - from) / (SECOND / u64::from(requests));
                    prop_assert!((n as u64) < allowed, "{} in {} ns", n + 1, to - from);
                }
            }
        }
    }
}
