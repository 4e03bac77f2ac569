//! How often somebody may ask: a burst, and then so many in a time (GCRA: of each asker one moment is kept, that at which all
//! that was used would be there again). Bounded in memory. It knows nothing of who asks or for what.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Askers that are kept; those who are not full again. Beyond that a new one is refused.
const MOST: usize = 16_384;

/// See the module.
#[derive(Debug)]
pub struct Pace<K> {
    burst: u32,
    each: Duration,
    full: Mutex<HashMap<K, Instant>>,
}

impl<K: Eq + Hash> Pace<K> {
    /// `burst` at once, and one more after `each`.
    pub fn new(burst: u32, each: Duration) -> Self {
        Self { burst, each, full: Mutex::default() }
    }

    /// Takes one. `Err`: there is none; after that time there is.
    pub fn take(&self, key: K, now: Instant) -> Result<(), Duration> {
        let mut full = self.full.lock().unwrap_or_else(PoisonError::into_inner);
        let then = self.after_one(full.get(&key), now)?;
        if full.len() >= MOST && !full.contains_key(&key) {
            full.retain(|_, at| *at > now);
            if full.len() >= MOST {
                return Err(self.each);
            }
        }
        full.insert(key, then);
        Ok(())
    }

    /// Whether there is one, without taking it.
    pub fn room(&self, key: &K, now: Instant) -> Result<(), Duration> {
        let full = self.full.lock().unwrap_or_else(PoisonError::into_inner);
        self.after_one(full.get(key), now).map(drop)
    }

    fn after_one(&self, full: Option<&Instant>, now: Instant) -> Result<Instant, Duration> {
        let then = full.copied().map_or(now, |at| at.max(now)) + self.each;
        let latest = now + self.each * self.burst;
        if then > latest { Err(then - latest) } else { Ok(then) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_burst_and_then_one_after_each_time() {
        let (pace, now) = (Pace::new(3, SECOND * 10), Instant::now());
        for _ in 0..3 {
            assert_eq!(pace.take("a", now), Ok(()));
        }
        assert_eq!(pace.take("a", now), Err(SECOND * 10));
        assert_eq!(pace.take("a", now + SECOND * 4), Err(SECOND * 6), "what was refused does not count");
        assert_eq!(pace.room(&"a", now + SECOND * 10), Ok(()));
        assert_eq!(pace.take("a", now + SECOND * 10), Ok(()));
        assert!(pace.room(&"a", now + SECOND * 10).is_err());
        assert_eq!(pace.take("b", now), Ok(()), "another one has its own");
    }

    #[test]
    fn askers_are_forgotten_when_they_are_full_again_and_more_than_fit_are_refused() {
        let (pace, now) = (Pace::new(2, SECOND), Instant::now());
        for key in 0..MOST {
            assert_eq!(pace.take(key, now), Ok(()));
        }
        assert_eq!(pace.take(MOST, now), Err(SECOND));
        assert_eq!(pace.take(0, now), Ok(()), "who is known has what is left");
        assert_eq!(pace.take(MOST, now + SECOND), Ok(()));
        assert!(pace.full.lock().unwrap().len() <= 2);
    }

    proptest! {
        /// In no span of time more than a burst and what the span brings.
        #[test]
        fn never_more_than_promised(pauses in proptest::collection::vec(0u64..3000, 1..200), burst in 1u32..8) {
            let pace = Pace::new(burst, SECOND);
            let mut now = Instant::now();
            let mut taken = Vec::new();
            for pause in pauses {
                now += Duration::from_millis(pause);
                prop_assert_eq!(pace.room(&(), now), pace.take((), now).map(|()| taken.push(now)));
            }
            for (i, from) in taken.iter().enumerate() {
                for (j, to) in taken.iter().enumerate().skip(i) {
                    let most = u64::from(burst) + (*to - *from).as_secs();
                    prop_assert!((j - i + 1) as u64 <= most);
                }
            }
        }
    }
}
