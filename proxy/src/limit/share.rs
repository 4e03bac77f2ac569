//! A limit that all replicas of a Service share: this replica's part of it. The operator grants the part, by what each
//! replica was asked for. What the part gains while nobody asks for it is spilled; the operator gives that as credit to
//! replicas that had to refuse. Without the operator the last part stays. It talks to nobody itself.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use weft_api::v1::Tally;

use super::gcra::{Draw, Rate};

/// The whole of a limit, and of a request.
pub const WHOLE: u32 = 1_000_000;
/// Until the operator has granted anything, which takes it a fraction of a second: as if there were ten replicas.
const FIRST: u32 = WHOLE / 10;

/// So many requests of the whole limit tell enough of the load.
const ENOUGH: u32 = 20;
/// And for a slow limit, what comes in this time has to do.
const LONGEST: Duration = Duration::from_secs(10);

/// A part of a limit, in millionths.
#[derive(Debug)]
pub struct Shared {
    whole: Rate,
    share: AtomicU32,
    /// The moving average.
    demand: AtomicU32,
    others_are_short: AtomicBool,
    counts: Counts,
}

/// What the operator grants.
#[derive(Clone, Copy, Debug, Default)]
pub struct Granted {
    /// The part, in millionths.
    pub share: u32,
    /// All that was ever given beyond the part; `None`: no more than before.
    pub credit: Option<u64>,
    /// Others have to refuse.
    pub others_are_short: bool,
}

/// All but `credit` and those of the last look only grow.
#[derive(Debug, Default)]
struct Counts {
    /// Requests, admitted or not.
    asked: AtomicU64,
    /// Those that the part did not give: admitted on credit, or refused.
    beyond: AtomicU64,
    /// In millionths of a request.
    spilled: AtomicU64,
    /// Requests that may be admitted beyond the bucket.
    credit: AtomicU64,
    /// All that it ever was given so, as the operator counts.
    credited: AtomicU64,
    asked_before: AtomicU64,
    /// At the last tally: asked, beyond.
    last: [AtomicU64; 2],
    /// What was beyond of late: of the last four calls or so, in thousandths.
    recent: AtomicU64,
}

impl Shared {
    /// Of a limit of this rate. `last`: the same limit before an update.
    #[must_use]
    pub fn new(whole: Rate, last: Option<&Self>) -> Self {
        let share = last.map_or(FIRST, Self::share);
        let counts = last.map_or_else(Counts::default, |last| last.counts.carried());
        Self {
            whole,
            share: AtomicU32::new(share),
            demand: AtomicU32::new(0),
            others_are_short: AtomicBool::new(false),
            counts,
        }
    }

    /// Draws one from this part of the bucket, or from what was given beyond it.
    pub fn draw(&self, bucket: &AtomicU64, now: u64) -> Draw {
        self.counts.asked.fetch_add(1, Ordering::Relaxed);
        let draw = self.rate().draw(bucket, now);
        if draw.spilled > 0 {
            self.counts.spilled.fetch_add(draw.spilled, Ordering::Relaxed);
        }
        if draw.wait.is_none() {
            return draw;
        }
        self.counts.beyond.fetch_add(1, Ordering::Relaxed);
        let one_less = |credit: u64| credit.checked_sub(1);
        match self.counts.credit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less) {
            Ok(credit) => Draw { wait: None, left: credit - 1, ..draw },
            Err(_) => draw,
        }
    }

    fn rate(&self) -> Rate {
        self.whole.part(self.share())
    }

    /// The part that is granted now, in millionths.
    #[must_use]
    pub fn share(&self) -> u32 {
        self.share.load(Ordering::Relaxed)
    }

    /// Another part. What is in the bucket stays in it, as far as it fits: a part that grows does not bring requests that
    /// some other replica has given away already.
    pub fn grant(&self, granted: Granted, bucket: &AtomicU64, now: u64) {
        let before = self.rate();
        self.share.store(granted.share.clamp(1, WHOLE), Ordering::Relaxed);
        self.others_are_short.store(granted.others_are_short, Ordering::Relaxed);
        let lost = before.carry(self.rate(), bucket, now);
        self.counts.spilled.fetch_add(lost, Ordering::Relaxed);
        if let Some(credit) = granted.credit {
            let last = self.counts.credited.swap(credit, Ordering::Relaxed);
            self.counts.credit.fetch_add(credit.saturating_sub(last), Ordering::Relaxed);
        }
    }

    /// What has become of the part. Credit that is more than was used of late goes back; while other replicas are short, so
    /// does what is in the bucket beyond twice what came since the last call.
    pub fn tally(&self, bucket: &AtomicU64, now: u64) -> Tally {
        let (rate, counts) = (self.rate(), &self.counts);
        let (_, asked) = since(&counts.asked, &counts.last[0]);
        let (beyond, beyond_since) = since(&counts.beyond, &counts.last[1]);
        let mut spilled = rate.spill(bucket, now);
        let recent = counts.recent.load(Ordering::Relaxed) / 4 * 3 + beyond_since.saturating_mul(1000);
        counts.recent.store(recent, Ordering::Relaxed);
        let useful = recent.div_ceil(1000);
        let credit = counts.credit.fetch_min(useful, Ordering::Relaxed);
        spilled += credit.saturating_sub(useful).saturating_mul(WHOLE.into());
        if self.others_are_short.load(Ordering::Relaxed) {
            let kept = asked.saturating_mul(2).saturating_add(1).saturating_mul(WHOLE.into());
            spilled += rate.keep(kept, bucket, now);
        }
        let spilled = counts.spilled.fetch_add(spilled, Ordering::Relaxed).saturating_add(spilled);
        let credit = counts.credit.load(Ordering::Relaxed).saturating_mul(WHOLE.into());
        Tally {
            beyond,
            spilled,
            room: rate.room(bucket, now).saturating_sub(credit),
            credited: counts.credited.load(Ordering::Relaxed),
        }
    }

    /// What is asked for of late, in millionths of what the whole limit allows: a moving average over as long as the limit
    /// gives [`ENOUGH`] requests, so that chance alone does not move the parts. `elapsed`: since the last call.
    pub fn demand(&self, elapsed: Duration) -> u32 {
        let (_, asked) = since(&self.counts.asked, &self.counts.asked_before);
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

impl Counts {
    /// For the same limit after an update.
    fn carried(&self) -> Self {
        let of = |count: &AtomicU64| AtomicU64::new(count.load(Ordering::Relaxed));
        Self {
            asked: of(&self.asked),
            beyond: of(&self.beyond),
            spilled: of(&self.spilled),
            credit: of(&self.credit),
            credited: of(&self.credited),
            asked_before: of(&self.asked_before),
            last: [of(&self.last[0]), of(&self.last[1])],
            recent: of(&self.recent),
        }
    }
}

/// A count, and by how much it has grown since it was looked at last.
fn since(count: &AtomicU64, last: &AtomicU64) -> (u64, u64) {
    let now = count.load(Ordering::Relaxed);
    (now, now.saturating_sub(last.swap(now, Ordering::Relaxed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const ONE: u64 = 1_000_000;

    fn part(requests: u32, burst: u32, share: u32) -> (Shared, AtomicU64) {
        let (shared, bucket) =
            (Shared::new(Rate::new(requests, Duration::from_secs(1), burst), None), AtomicU64::new(0));
        shared.grant(Granted { share, ..Granted::default() }, &bucket, SECOND);
        (shared, bucket)
    }

    fn granted(share: u32, credit: Option<u64>) -> Granted {
        Granted { share, credit, others_are_short: false }
    }

    fn admitted(shared: &Shared, bucket: &AtomicU64, tries: u32, now: u64) -> u32 {
        (0..tries).map(|_| u32::from(shared.draw(bucket, now).wait.is_none())).sum()
    }

    #[test]
    fn what_a_part_gains_in_vain_is_spilled_and_counted_once() {
        let (shared, bucket) = part(100, 20, WHOLE / 2);
        // Half of a bucket of twenty. A part begins as a tenth, and what was in it then is all that there is.
        assert_eq!((shared.tally(&bucket, SECOND).room, shared.tally(&bucket, SECOND).spilled), (8 * ONE, 0));
        assert_eq!(admitted(&shared, &bucket, 20, SECOND), 2);
        let empty = shared.tally(&bucket, SECOND);
        assert_eq!((empty.beyond, empty.room, empty.spilled), (18, 10 * ONE, 0));
        // It is full after 0.2 s, and gains 40 more in the rest of the second.
        let later = 2 * SECOND;
        assert_eq!(shared.tally(&bucket, later).spilled, 40 * ONE);
        assert_eq!(shared.tally(&bucket, later).spilled, 40 * ONE);
        assert_eq!(admitted(&shared, &bucket, 1, later + SECOND), 1);
        assert_eq!(shared.tally(&bucket, later + SECOND).spilled, 90 * ONE);
    }

    #[test]
    fn a_part_that_shrinks_spills_what_does_not_fit() {
        let (shared, bucket) = part(100, 20, WHOLE);
        let at = 9 * SECOND;
        let before = shared.tally(&bucket, at).spilled;
        shared.grant(granted(WHOLE / 4, None), &bucket, at);
        assert_eq!(shared.tally(&bucket, at).spilled - before, 15 * ONE);
        assert_eq!(admitted(&shared, &bucket, 20, at), 5);
    }

    #[test]
    fn while_others_are_short_it_keeps_what_it_is_asked_for_and_one_more() {
        let (shared, bucket) = part(100, 20, WHOLE);
        let at = 9 * SECOND;
        let before = shared.tally(&bucket, at).spilled;
        assert_eq!(admitted(&shared, &bucket, 3, at), 3);
        let short = Granted { others_are_short: true, ..granted(WHOLE, None) };
        shared.grant(short, &bucket, at);
        // Of seventeen, twice the three and one.
        assert_eq!(shared.tally(&bucket, at).spilled - before, 10 * ONE);
        assert_eq!(admitted(&shared, &bucket, 20, at), 7);
    }

    #[test]
    fn credit_is_used_once_told_twice_or_not_and_what_is_not_used_goes_back() {
        let (shared, bucket) = part(10, 10, WHOLE / 10);
        // One is in the part, four are beyond it.
        admitted(&shared, &bucket, 5, SECOND);
        assert_eq!(shared.tally(&bucket, SECOND).beyond, 4);
        for _ in 0..2 {
            shared.grant(granted(WHOLE / 10, Some(7)), &bucket, SECOND);
        }
        // 4 × ¾ of the seven are useful.
        let next = shared.tally(&bucket, SECOND);
        assert_eq!((next.credited, next.spilled), (7, 4 * ONE));
        assert_eq!(admitted(&shared, &bucket, 9, SECOND), 3);
        // An operator that knows nothing of credit changes none.
        shared.grant(granted(WHOLE / 10, None), &bucket, SECOND);
        shared.grant(granted(WHOLE / 10, Some(8)), &bucket, SECOND);
        assert_eq!(admitted(&shared, &bucket, 5, SECOND), 1);
        // Also after an update of the limit.
        let next = Shared::new(Rate::new(10, Duration::from_secs(1), 5), Some(&shared));
        assert_eq!(next.tally(&bucket, SECOND).credited, 8);
        next.grant(granted(WHOLE / 10, Some(9)), &bucket, SECOND);
        assert_eq!(admitted(&next, &bucket, 5, SECOND), 1);
    }
}
