//! Peak-sensitive moving average of an endpoint's latency: a slower answer counts at once and whole, faster ones bring
//! it down over the decay time. One atomic word, so that readers and writers of several threads need no lock. It
//! measures nothing itself.
//! Source: tower `load::peak_ewma` and Finagle's `PeakEwma` balancer (decay 10 s).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// After this time a latency that is not seen again weighs 1/e.
pub const DECAY: Duration = Duration::from_secs(10);

/// High half: the average in ms as `f32` bits; low half: when, in ms since the process began. Zero: nothing measured.
#[derive(Debug, Default)]
pub(crate) struct Latency(AtomicU64);

impl Latency {
    /// The average as of `now`: like tower's, it sinks while nothing is measured, so that an endpoint that was slow once
    /// is tried again. `None`: nothing was measured yet.
    pub(crate) fn get(&self, now: Instant) -> Option<Duration> {
        self.millis(now).map(|ms| Duration::from_secs_f32(ms / 1000.0))
    }

    pub(crate) fn millis(&self, now: Instant) -> Option<f32> {
        let word = self.0.load(Ordering::Relaxed);
        (word != 0).then(|| decayed(word, stamp(now)))
    }

    /// Takes in an answer.
    pub(crate) fn observe(&self, latency: Duration, now: Instant) {
        let (rtt, at) = (latency.as_secs_f32() * 1000.0, stamp(now));
        let next = |word: u64| {
            if word == 0 {
                return pack(rtt, at);
            }
            let (average, since) = unpack(word);
            if rtt >= average {
                return pack(rtt, at);
            }
            let weight = weight(at, since);
            pack(average.mul_add(weight, rtt * (1.0 - weight)), at)
        };
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| Some(next(word)));
    }

    /// Takes in only what makes it worse: a failure that took long is slow, one that came fast is not a fast answer.
    pub(crate) fn observe_peak(&self, latency: Duration, now: Instant) {
        if self.millis(now).is_some_and(|average| latency.as_secs_f32() * 1000.0 > average) {
            self.observe(latency, now);
        }
    }
}

fn stamp(now: Instant) -> u32 {
    // Wraps after 49 days; only differences are used.
    #[allow(clippy::cast_possible_truncation)]
    let ms = crate::clock::millis(now) as u32;
    ms
}

fn pack(average: f32, at: u32) -> u64 {
    // Never the zero word: 1 ns is as good as nothing.
    u64::from(average.max(1e-6).to_bits()) << 32 | u64::from(at)
}

#[allow(clippy::cast_possible_truncation)]
fn unpack(word: u64) -> (f32, u32) {
    (f32::from_bits((word >> 32) as u32), word as u32)
}

fn weight(now: u32, since: u32) -> f32 {
    // A stamp from another thread may be a little ahead of ours: then no time has passed.
    let age = now.wrapping_sub(since);
    let age = if age > u32::MAX / 2 { 0 } else { age };
    #[allow(clippy::cast_precision_loss)]
    (-(age as f32) / (DECAY.as_millis() as f32)).exp()
}

fn decayed(word: u64, now: u32) -> f32 {
    let (average, since) = unpack(word);
    average * weight(now, since)
}
