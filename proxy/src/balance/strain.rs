//! How much of its work an endpoint refuses lately: 429 and 503 and their like, and every failure. What refuses is done fast
//! and has nothing in flight, and must not look idle for it. One atomic word, as in `ewma`. It chooses nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock;

/// Each answer counts for so much of the share, the ones before it for the rest.
const GAIN: f32 = 0.2;
/// After this time a share of which nothing new is seen weighs 1/e, so that the endpoint is tried again.
const DECAY: Duration = Duration::from_secs(10);
/// Up to here it is as good as nothing: one refusal alone does not matter.
const FORGIVEN: f32 = 0.25;
/// Nobody is taken to refuse more than this.
const MOST: f32 = 0.99;

/// High half: the share as `f32` bits; low half: when, in ms since the process began. Zero: nothing was refused.
#[derive(Debug, Default)]
pub(crate) struct Strain(AtomicU64);

impl Strain {
    /// It did what it was asked for. Costs one load while nothing is wrong.
    pub(crate) fn served(&self, now: Instant) {
        if self.0.load(Ordering::Relaxed) != 0 {
            self.learn(0.0, now);
        }
    }

    /// It refused, or failed.
    pub(crate) fn refused(&self, now: Instant) {
        self.learn(1.0, now);
    }

    fn learn(&self, answer: f32, now: Instant) {
        let at = stamp(now);
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            let share = share(word, at);
            let next = GAIN.mul_add(answer - share, share);
            Some(if next < 0.01 { 0 } else { u64::from(next.to_bits()) << 32 | u64::from(at) })
        });
    }

    /// How many tries it takes to be served there: 1 where little is refused, up to 100.
    pub(crate) fn tries(&self, now: Instant) -> f32 {
        match self.0.load(Ordering::Relaxed) {
            0 => 1.0,
            word => {
                let share = share(word, stamp(now));
                if share <= FORGIVEN { 1.0 } else { 1.0 / (1.0 - share.min(MOST)) }
            }
        }
    }
}

#[allow(clippy::cast_possible_truncation)]
fn stamp(now: Instant) -> u32 {
    // Wraps after 49 days; only differences are used.
    clock::millis(now) as u32
}

#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
fn share(word: u64, now: u32) -> f32 {
    let age = now.wrapping_sub(word as u32);
    // A stamp of another thread may be a little ahead of ours.
    let age = if age > u32::MAX / 2 { 0 } else { age };
    f32::from_bits((word >> 32) as u32) * (-(age as f32) / (DECAY.as_millis() as f32)).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_refusal_is_forgiven_and_a_row_of_them_is_not() {
        let (strain, now) = (Strain::default(), Instant::now());
        strain.refused(now);
        assert!((strain.tries(now) - 1.0).abs() < 1e-6);
        for _ in 0..3 {
            strain.refused(now);
        }
        assert!(strain.tries(now) > 2.0);
        for _ in 0..100 {
            strain.refused(now);
        }
        assert!((90.0..=100.5).contains(&strain.tries(now)), "{}", strain.tries(now));
    }

    #[test]
    fn half_refused_takes_two_tries() {
        let (strain, now) = (Strain::default(), Instant::now());
        let mut sum = 0.0;
        for _ in 0..100 {
            strain.refused(now);
            sum += strain.tries(now);
            strain.served(now);
            sum += strain.tries(now);
        }
        assert!((1.7..2.3).contains(&(sum / 200.0)), "{}", sum / 200.0);
    }

    #[test]
    fn it_is_forgotten_when_served_and_with_time() {
        let (strain, now) = (Strain::default(), Instant::now());
        for _ in 0..50 {
            strain.refused(now);
        }
        let later = now + Duration::from_secs(20);
        assert!((strain.tries(later) - 1.0).abs() < 1e-6);
        for _ in 0..30 {
            strain.served(now);
        }
        assert_eq!(strain.0.load(Ordering::Relaxed), 0);
    }
}
