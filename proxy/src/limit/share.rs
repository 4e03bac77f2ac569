//! A limit that all replicas of a Service share: this replica's part of it. The operator grants the part, by what each
//! replica was asked for; without the operator the last one stays. It talks to nobody itself.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::gcra::Rate;

/// The whole of a limit.
pub const WHOLE: u32 = 1_000_000;
/// Until the operator has granted anything, which takes it a fraction of a second: as if there were ten replicas.
const FIRST: u32 = WHOLE / 10;

/// So many requests of the whole limit tell enough of the load.
const ENOUGH: u32 = 50;
/// And for a slow limit, what comes in this time has to do.
const LONGEST: Duration = Duration::from_secs(10);

/// A part of a limit, in millionths.
#[derive(Debug)]
pub struct Shared {
    whole: Rate,
    share: AtomicU32,
    /// Requests since the last look, admitted or not.
    asked: AtomicU64,
    /// The moving average.
    demand: AtomicU32,
}

impl Shared {
    /// Of a limit of this rate. `last`: the same limit before an update.
    #[must_use]
    pub fn new(whole: Rate, last: Option<&Self>) -> Self {
        let share = last.map_or(FIRST, |last| last.share.load(Ordering::Relaxed));
        Self { whole, share: AtomicU32::new(share), asked: AtomicU64::new(0), demand: AtomicU32::new(0) }
    }

    /// Notes a request, and says how fast this part of the bucket fills.
    pub fn ask(&self) -> Rate {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.rate()
    }

    fn rate(&self) -> Rate {
        self.whole.part(self.share.load(Ordering::Relaxed))
    }

    /// The part that is granted now, in millionths.
    #[must_use]
    pub fn share(&self) -> u32 {
        self.share.load(Ordering::Relaxed)
    }

    /// Another part. What is in the bucket stays in it, as far as it fits: a part that grows does not bring requests that
    /// some other replica has given away already.
    pub fn grant(&self, share: u32, bucket: &AtomicU64, now: u64) {
        let before = self.rate();
        self.share.store(share.clamp(1, WHOLE), Ordering::Relaxed);
        before.carry(self.rate(), bucket, now);
    }

    /// What is asked for of late, in millionths of what the whole limit allows: a moving average over as long as the limit
    /// gives [`ENOUGH`] requests, so that chance alone does not move the parts. `elapsed`: since the last call.
    pub fn demand(&self, elapsed: Duration) -> u32 {
        let asked = self.asked.swap(0, Ordering::Relaxed);
        let now = f64::from(self.whole.millionths(asked, elapsed));
        let span = self.whole.time_of(ENOUGH).clamp(Duration::ZERO, LONGEST);
        let weight = elapsed.as_secs_f64() / (elapsed + span).as_secs_f64().max(f64::EPSILON);
        let last = f64::from(self.demand.load(Ordering::Relaxed));
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between two of its kind")]
        let average = (last + weight * (now - last)).round() as u32;
        self.demand.store(average, Ordering::Relaxed);
        average
    }
}
