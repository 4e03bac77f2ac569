//! The buckets of one limit: a single one, or one for each value of a key. Their number is fixed, so that no client can
//! make it grow; nothing in it is locked. It decides nothing about requests.
//!
//! Each key has eight places, by its hash. A key that is new takes the place whose bucket is fullest. One that is full is as
//! good as new, so that nothing is lost. When none of the eight is full, the newcomer goes on with that bucket as it is,
//! debt and all: keys beyond the bound share buckets, and together they never get more than all buckets give.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// Values of a key that have a bucket of their own at a time.
pub const MAX_KEYS: usize = 8192;
/// Places where a key may be.
const WAYS: usize = 8;

/// See the module.
#[derive(Debug)]
pub struct Buckets {
    places: Box<[Place]>,
    // Random, so that nobody can choose keys that fall on each other.
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Place {
    /// Hash of the key that was here last; 0: none. Two keys of one hash share a bucket, one pair in 2⁶⁴.
    key: AtomicU64,
    /// See [`super::gcra`].
    bucket: AtomicU64,
}

impl Buckets {
    /// One bucket, full.
    #[must_use]
    pub fn one() -> Self {
        Self::with(1)
    }

    /// A bucket for each key, full.
    #[must_use]
    pub fn by_key() -> Self {
        Self::with(MAX_KEYS)
    }

    fn with(places: usize) -> Self {
        Self { places: (0..places).map(|_| Place::default()).collect(), hasher: RandomState::new() }
    }

    /// The bucket, where there is one for all.
    #[must_use]
    pub fn only(&self) -> &AtomicU64 {
        &self.places[0].bucket
    }

    /// For making a key of several parts.
    #[must_use]
    pub fn hasher(&self) -> impl std::hash::Hasher + use<> {
        self.hasher.build_hasher()
    }

    /// The bucket of a key, by the hash that [`Buckets::hasher`] made.
    #[must_use]
    pub fn of(&self, hash: u64) -> &AtomicU64 {
        let sets = self.places.len() / WAYS;
        if sets == 0 {
            return self.only();
        }
        #[allow(clippy::cast_possible_truncation, reason = "any bits of a hash will do")]
        let set = &self.places[hash as usize % sets * WAYS..][..WAYS];
        // The bits that chose the set are the same for all in it; 0 is nobody.
        let key = hash | 1 << 63;
        let mut fullest = &set[0];
        for place in set {
            if place.key.load(Ordering::Relaxed) == key {
                return &place.bucket;
            }
            if place.bucket.load(Ordering::Relaxed) < fullest.bucket.load(Ordering::Relaxed) {
                fullest = place;
            }
        }
        // Of two that take it at once the later keeps it, and both are counted in it.
        fullest.key.store(key, Ordering::Relaxed);
        &fullest.bucket
    }
}

#[cfg(test)]
mod tests {
    use super::super::gcra::Rate;
    use super::*;
    use std::hash::Hasher;
    use std::time::Duration;

    const NOW: u64 = 1_000_000_000;

    fn hash(buckets: &Buckets, key: u32) -> u64 {
        let mut hasher = buckets.hasher();
        hasher.write_u32(key);
        hasher.finish()
    }

    /// How many of these keys get one, asked in turn.
    fn admitted(buckets: &Buckets, rate: Rate, keys: std::ops::Range<u32>) -> usize {
        keys.filter(|key| rate.draw(buckets.of(hash(buckets, *key)), NOW).wait.is_none()).count()
    }

    #[test]
    fn each_key_has_its_own_bucket() {
        let (buckets, rate) = (Buckets::by_key(), Rate::new(1, Duration::from_secs(1), 1));
        assert_eq!(admitted(&buckets, rate, 0..100), 100);
        assert_eq!(admitted(&buckets, rate, 0..100), 0);
    }

    #[test]
    fn keys_without_end_get_no_more_than_all_buckets_give_and_take_no_more_memory() {
        let (buckets, rate) = (Buckets::by_key(), Rate::new(1, Duration::from_secs(1), 2));
        assert!(admitted(&buckets, rate, 0..200_000) <= 2 * MAX_KEYS);
        assert_eq!(buckets.places.len(), MAX_KEYS);
    }

    #[test]
    fn a_key_that_was_forgotten_while_its_bucket_was_full_has_lost_nothing() {
        let (buckets, rate) = (Buckets::by_key(), Rate::new(1, Duration::from_secs(1), 1));
        admitted(&buckets, rate, 0..8192);
        // A second later all are full again, and any of them may be taken over.
        let later = NOW + 1_000_000_000;
        for key in 100_000..100_100 {
            assert!(rate.draw(buckets.of(hash(&buckets, key)), later).wait.is_none());
        }
    }
}
