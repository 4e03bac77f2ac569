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
    /// What it would have gained since it was full, in millionths of a request.
    pub spilled: u64,
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

    /// So many millionths of it. In time a part of a bucket is as deep as the whole.
    #[must_use]
    pub fn part(self, millionths: u32) -> Self {
        let interval = u128::from(self.interval) * 1_000_000 / u128::from(millionths.max(1));
        Self { interval: clamp(interval), depth: self.depth }.at_least_one()
    }

    /// In which it gives so many requests.
    #[must_use]
    pub fn time_of(self, requests: u32) -> Duration {
        Duration::from_nanos(self.interval.saturating_mul(requests.into()))
    }

    /// How many millionths of this rate so many requests are.
    #[must_use]
    pub fn millionths(self, requests: u64, elapsed: Duration) -> u32 {
        let wanted = u128::from(requests) * u128::from(self.interval) * 1_000_000;
        u32::try_from(wanted / elapsed.as_nanos().max(1)).unwrap_or(u32::MAX)
    }

    /// Leaves as many requests in a bucket as there were, now that it fills at another rate, or as many as fit. Returns what
    /// was lost because it did not, or since the bucket was full, in millionths of a request.
    pub fn carry(self, other: Self, bucket: &AtomicU64, now: u64) -> u64 {
        let fits = |full_at: u64| {
            let debt = full_at.max(now) - now;
            let held = u128::from(self.depth.saturating_sub(debt)) * u128::from(other.interval)
                / u128::from(self.interval);
            clamp(held).min(other.depth)
        };
        let carried = |full_at: u64| Some(now.saturating_add(other.depth - fits(full_at)));
        // Always `Some`, so it always succeeds in the end.
        let (Ok(before) | Err(before)) = bucket.fetch_update(Ordering::Relaxed, Ordering::Relaxed, carried);
        let held = self.requests(self.depth.saturating_sub(before.max(now) - now));
        self.since_full(before, now) + held.saturating_sub(other.requests(fits(before)))
    }

    /// What the bucket would have gained since it was full, in millionths of a request; from now on anew.
    pub fn spill(self, bucket: &AtomicU64, now: u64) -> u64 {
        self.since_full(bucket.fetch_max(now, Ordering::Relaxed), now)
    }

    /// Takes out of the bucket what is beyond so much, both in millionths of a request. Returns how much.
    pub fn keep(self, kept: u64, bucket: &AtomicU64, now: u64) -> u64 {
        let kept = clamp(u128::from(kept) * u128::from(self.interval) / 1_000_000);
        let least = now.saturating_add(self.depth.saturating_sub(kept));
        let before = bucket.fetch_max(least, Ordering::Relaxed);
        self.requests(least.saturating_sub(before.max(now)))
    }

    /// What a bucket lacks to be full, in millionths of a request.
    pub fn room(self, bucket: &AtomicU64, now: u64) -> u64 {
        self.requests(bucket.load(Ordering::Relaxed).saturating_sub(now))
    }

    /// In millionths. What was never drawn from was never full of anything.
    fn since_full(self, full_at: u64, now: u64) -> u64 {
        if full_at == 0 { 0 } else { self.requests(now.saturating_sub(full_at)) }
    }

    /// What so many nanoseconds give, in millionths of a request.
    fn requests(self, nanos: u64) -> u64 {
        clamp(u128::from(nanos) * 1_000_000 / u128::from(self.interval))
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
                return Draw {
                    wait: Some(wait),
                    left: 0,
                    full: Duration::from_nanos(full_at - now),
                    spilled: 0,
                };
            }
            match bucket.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    let left = (self.depth - ahead) / self.interval;
                    let spilled = self.since_full(seen, now);
                    return Draw { wait: None, left, full: Duration::from_nanos(ahead), spilled };
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

    #[test]
    fn a_part_that_grows_brings_nothing_that_was_not_there_and_one_that_shrinks_loses_what_does_not_fit() {
        let (whole, bucket) = (rate(1000, 100), AtomicU64::new(0));
        let drawn = |rate: Rate, now| (0..1000).filter(|_| rate.draw(&bucket, now).wait.is_none()).count();
        let (tenth, half) = (whole.part(100_000), whole.part(500_000));
        assert_eq!(drawn(tenth, SECOND), 10);
        tenth.carry(half, &bucket, SECOND);
        assert_eq!(drawn(half, SECOND), 0);
        // 500 in a second, of which the bucket holds 50.
        assert_eq!(drawn(half, SECOND + SECOND / 50), 10);
        let later = 3 * SECOND;
        half.carry(tenth, &bucket, later);
        assert_eq!(drawn(tenth, later), 10);
        // Full as it is, a small part is not filled by growing.
        let full = 9 * SECOND;
        tenth.carry(half, &bucket, full);
        assert_eq!(drawn(half, full), 10);
        assert_eq!(whole.part(1).draw(&AtomicU64::new(0), SECOND).wait, None);
    }

    #[test]
    fn demand_is_told_in_millionths_of_the_rate() {
        let whole = rate(1000, 10);
        assert_eq!(whole.millionths(500, Duration::from_millis(500)), 1_000_000);
        assert_eq!(whole.millionths(0, Duration::ZERO), 0);
        assert_eq!(whole.millionths(u64::MAX, Duration::ZERO), u32::MAX);
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
