//! Sets of small numbers as bits: what fits in one respect, to be intersected with what fits in the others.

use std::ops::Range;

/// A set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    /// Without any, and room for numbers below `len`.
    pub(super) fn none(len: usize) -> Self {
        Self(vec![0; len.div_ceil(64)])
    }

    /// The positions that hold.
    pub(super) fn of(which: impl ExactSizeIterator<Item = bool>) -> Self {
        let mut bits = Self::none(which.len());
        which.enumerate().filter(|(_, holds)| *holds).for_each(|(at, _)| bits.set(at));
        bits
    }

    /// Puts one in that there is room for.
    pub(super) fn set(&mut self, at: usize) {
        if let Some(word) = self.0.get_mut(at / 64) {
            *word |= 1 << (at % 64);
        }
    }

    pub(super) fn has(&self, at: usize) -> bool {
        self.0.get(at / 64).is_some_and(|word| word & 1 << (at % 64) != 0)
    }

    /// Becomes the same as another one, in the memory that it has.
    pub(super) fn become_like(&mut self, other: &Self) {
        self.0.clear();
        self.0.extend_from_slice(&other.0);
    }

    pub(super) fn intersect(&mut self, other: &Self) {
        for (word, other) in self.0.iter_mut().zip(&other.0) {
            *word &= other;
        }
    }

    pub(super) fn unite(&mut self, other: &Self) {
        for (word, other) in self.0.iter_mut().zip(&other.0) {
            *word |= other;
        }
    }

    pub(super) fn retain(&mut self, keep: impl Fn(usize) -> bool) {
        for (number, word) in self.0.iter_mut().enumerate() {
            let mut left = *word;
            while left != 0 {
                let bit = left.trailing_zeros() as usize;
                left &= left - 1;
                if !keep(number * 64 + bit) {
                    *word &= !(1 << bit);
                }
            }
        }
    }

    /// Those within a range, in order.
    pub(super) fn within(&self, range: Range<usize>) -> impl Iterator<Item = usize> + '_ {
        let words = range.start / 64..range.end.div_ceil(64).min(self.0.len());
        words.flat_map(move |number| {
            let mut left = self.0[number];
            let first = range.start.saturating_sub(number * 64);
            if first > 0 {
                left &= u64::MAX << first;
            }
            let end = range.end - number * 64;
            if end < 64 {
                left &= (1 << end) - 1;
            }
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros() as usize)?;
                left &= left - 1;
                Some(number * 64 + bit)
            })
        })
    }
}

/// Those who ask for one value: a list while it is shorter than a set would be. So that it costs a word for every 64 that there
/// are at the most to put them all into a set, however many ask for the same.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Members {
    Few(Vec<u32>),
    Many(Bits),
}

impl Default for Members {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Members {
    /// `room`: numbers are below it.
    pub(super) fn push(&mut self, number: usize, room: usize) {
        match self {
            Self::Few(few) if few.len() < room.div_ceil(64) => {
                few.push(u32::try_from(number).unwrap_or(u32::MAX));
            }
            Self::Few(few) => {
                let mut many = Bits::none(room);
                few.iter().for_each(|number| many.set(*number as usize));
                many.set(number);
                *self = Self::Many(many);
            }
            Self::Many(many) => many.set(number),
        }
    }

    pub(super) fn put_into(&self, bits: &mut Bits) {
        match self {
            Self::Few(few) => few.iter().for_each(|number| bits.set(*number as usize)),
            Self::Many(many) => bits.unite(many),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn few_and_many_members_are_the_same(given in prop::collection::vec(0usize..200, 0..40), before in prop::collection::btree_set(0usize..200, 0..40)) {
            let mut members = Members::default();
            given.iter().for_each(|number| members.push(*number, 200));
            let mut into = Bits::of((0..200).map(|n| before.contains(&n)));
            members.put_into(&mut into);
            prop_assert!((0..200).all(|n| into.has(n) == (before.contains(&n) || given.contains(&n))));
            prop_assert_eq!(matches!(members, Members::Few(_)), given.len() <= 4);
        }

        #[test]
        fn bits_are_a_set(a in prop::collection::btree_set(0usize..200, 0..40), b in prop::collection::btree_set(0usize..200, 0..40), from in 0usize..210, more in 0usize..210) {
            let of = |set: &BTreeSet<usize>| Bits::of((0..200).map(|n| set.contains(&n)));
            let (mut both, mut kept) = (of(&a), of(&a));
            both.intersect(&of(&b));
            kept.retain(|n| b.contains(&n));
            prop_assert_eq!(&both, &kept);
            let to = from + more;
            let within: Vec<usize> = both.within(from..to).collect();
            let wanted: Vec<usize> = a.intersection(&b).copied().filter(|n| (from..to).contains(n)).collect();
            prop_assert_eq!(within, wanted);
            prop_assert!((0..220).all(|n| both.has(n) == (a.contains(&n) && b.contains(&n))));
        }
    }
}
