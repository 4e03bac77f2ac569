//! What the own pod is asked for under limits that it shares with other replicas, for the operator to divide them by; and the
//! parts and the credit that the operator grants.

use std::time::Duration;

use tokio::time::Instant;
use weft_api::v1::{self, Demand, Share};

use crate::clock;
use crate::limit::Limit;
use crate::limit::share::{Granted, Shared};
use crate::snapshot::Snapshot;

/// While there are such limits.
const EVERY: Duration = Duration::from_millis(200);
/// Also when nothing is asked for, so that the operator knows who keeps a limit.
const AT_LEAST_EVERY: Duration = Duration::from_secs(1);

/// When to say what.
pub(super) struct Demands {
    /// The next look; `None`: there is nothing to say.
    pub(super) at: Option<Instant>,
    looked: Instant,
    said: Option<Instant>,
    quiet: bool,
}

impl Demands {
    pub(super) fn new() -> Self {
        Self { at: None, looked: Instant::now(), said: None, quiet: false }
    }

    /// After an update: begins to look if there is something to look at.
    pub(super) fn follow(&mut self, snapshot: &Snapshot) {
        if self.at.is_none() && any(snapshot) {
            *self = Self { at: Some(Instant::now()), ..Self::new() };
        }
    }

    /// What was asked for since the last look.
    pub(super) fn look(&mut self, snapshot: &Snapshot) -> Option<v1::Demands> {
        let now = Instant::now();
        let elapsed = now.duration_since(self.looked);
        self.looked = now;
        let nanos = clock::nanos(now);
        let demands: Vec<Demand> = shared(snapshot, |limit, shared| Demand {
            limit: limit.id.to_string(),
            demand: if self.said.is_some() { shared.demand(elapsed) } else { 0 },
            tally: limit.tally(nanos),
        });
        self.at = (!demands.is_empty()).then(|| now + EVERY);
        let quiet = demands.iter().all(|demand| demand.demand == 0);
        let again =
            quiet && self.quiet && self.said.is_some_and(|said| now.duration_since(said) < AT_LEAST_EVERY);
        self.quiet = quiet;
        if again || demands.is_empty() {
            return None;
        }
        self.said = Some(now);
        Some(v1::Demands { demands })
    }
}

/// Puts in force what is granted.
pub(super) fn grant(snapshot: &Snapshot, shares: &[Share]) {
    if shares.is_empty() {
        return;
    }
    let now = clock::nanos(Instant::now());
    shared(snapshot, |limit, _| {
        if let Some(share) = shares.iter().find(|share| share.limit == *limit.id) {
            let (others_are_short, credit) = (share.others_are_short, share.credit);
            limit.grant(Granted { share: share.share, credit, others_are_short }, now);
        }
    });
}

fn any(snapshot: &Snapshot) -> bool {
    !shared(snapshot, |_, _| ()).is_empty()
}

/// Something for each limit that is shared.
fn shared<T>(snapshot: &Snapshot, mut each: impl FnMut(&Limit, &Shared) -> T) -> Vec<T> {
    let limits = snapshot.workload.iter().filter_map(|own| own.limits.as_ref());
    limits.flat_map(|limits| limits.all()).filter_map(|limit| Some(each(limit, limit.shared()?))).collect()
}
