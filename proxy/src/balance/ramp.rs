//! Slow start: how much of its share an endpoint that has come new gets by its age. Pure. It knows no endpoint.
//! Source: Envoy's slow start mode, `weight × max(10 %, (age / window)^(1 / aggression))`.

use std::time::Duration;

use tokio::time::Instant;

/// What a new endpoint gets at the very least: it has to be seen to work.
const LEAST: f32 = 0.1;

/// How new endpoints come to their share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowStart {
    /// After this age an endpoint has its whole share.
    pub window: Duration,
    /// 1: evenly; the higher, the more of it comes early.
    pub aggression: u32,
}

impl SlowStart {
    /// From 0.1 to 1. `since`: when it came; `None`: it was always there.
    pub(crate) fn share(&self, since: Option<Instant>, now: Instant) -> f32 {
        let Some(since) = since else { return 1.0 };
        let age = now.saturating_duration_since(since);
        if age >= self.window {
            return 1.0;
        }
        let part = age.as_secs_f32() / self.window.as_secs_f32();
        #[allow(clippy::cast_precision_loss)]
        let part = if self.aggression <= 1 { part } else { part.powf(1.0 / self.aggression as f32) };
        part.clamp(LEAST, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_grows_with_age_and_is_whole_at_the_end() {
        let now = Instant::now();
        let at = |aggression, secs| {
            let slow = SlowStart { window: Duration::from_secs(100), aggression };
            slow.share(Some(now), now + Duration::from_secs(secs))
        };
        for (aggression, secs, share) in [
            (1, 0, 0.1),
            (1, 5, 0.1),
            (1, 50, 0.5),
            (1, 99, 0.99),
            (1, 100, 1.0),
            (2, 25, 0.5),
            (2, 100, 1.0),
            (10, 1, 0.63),
        ] {
            assert!(
                (at(aggression, secs) - share).abs() < 0.01,
                "{aggression} {secs}: {}",
                at(aggression, secs)
            );
        }
    }

    #[test]
    fn what_was_always_there_has_its_whole_share() {
        let slow = SlowStart { window: Duration::from_secs(100), aggression: 1 };
        assert!((slow.share(None, Instant::now()) - 1.0).abs() < f32::EPSILON);
    }
}
