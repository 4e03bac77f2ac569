//! Sets of statuses as a policy names them: plain bits, so that asking costs nothing and a policy stays a value. They know
//! nothing of what a status means.

use std::fmt;

/// The first status of HTTP that can be in a set, and the one after the last.
const FIRST: u16 = 400;
const END: u16 = 600;

/// Statuses of HTTP from 400 to 599.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct StatusCodes([u64; 4]);

impl StatusCodes {
    /// The set of these; `None` when one of them is no status from 400 to 599.
    #[must_use]
    pub fn of(statuses: &[u32]) -> Option<Self> {
        let mut set = Self::default();
        for status in statuses {
            let at = u16::try_from(*status).ok().filter(|s| (FIRST..END).contains(s))? - FIRST;
            *set.0.get_mut(usize::from(at / 64))? |= 1 << (at % 64);
        }
        Some(set)
    }

    /// Whether it is one of them.
    #[must_use]
    pub const fn contains(self, status: u16) -> bool {
        if status < FIRST || status >= END {
            return false;
        }
        let at = status - FIRST;
        self.0[(at / 64) as usize] & (1 << (at % 64)) != 0
    }

    /// In order.
    pub fn iter(self) -> impl Iterator<Item = u16> {
        (FIRST..END).filter(move |status| self.contains(*status))
    }
}

/// Statuses of gRPC from 1 to 16 (grpc/grpc doc/statuscodes.md); 0 is success.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct GrpcCodes(u32);

impl GrpcCodes {
    /// The set of these; `None` when one of them is no status of a failure.
    #[must_use]
    pub fn of(statuses: &[u32]) -> Option<Self> {
        let bit = |status: &u32| (1..=16).contains(status).then(|| 1 << status);
        statuses.iter().try_fold(0, |set, status| Some(set | bit(status)?)).map(Self)
    }

    /// Whether it is one of them.
    #[must_use]
    pub const fn contains(self, status: u16) -> bool {
        status <= 16 && self.0 & (1 << status) != 0
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// In order.
    pub fn iter(self) -> impl Iterator<Item = u16> {
        (1..=16).filter(move |status| self.contains(*status))
    }
}

impl fmt::Debug for StatusCodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl fmt::Debug for GrpcCodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_set_holds_what_was_put_in_and_nothing_else(
            statuses in prop::collection::btree_set(400u32..600, 0..20), grpc in prop::collection::btree_set(1u32..=16, 0..17), other: u16,
        ) {
            let list: Vec<u32> = statuses.iter().copied().collect();
            let set = StatusCodes::of(&list).unwrap();
            prop_assert_eq!(set.iter().map(u32::from).collect::<BTreeSet<_>>(), statuses.clone());
            prop_assert_eq!(set.contains(other), statuses.contains(&u32::from(other)));
            let list: Vec<u32> = grpc.iter().copied().collect();
            let set = GrpcCodes::of(&list).unwrap();
            prop_assert_eq!(set.iter().map(u32::from).collect::<BTreeSet<_>>(), grpc.clone());
            prop_assert_eq!(set.contains(other), grpc.contains(&u32::from(other)));
            prop_assert_eq!(set.is_empty(), grpc.is_empty());
        }
    }

    #[test]
    fn what_is_no_failure_is_in_no_set() {
        for bad in [0, 200, 399, 600, 65_536 + 429, u32::MAX] {
            assert_eq!(StatusCodes::of(&[429, bad]), None, "{bad}");
        }
        for bad in [0, 17, u32::MAX] {
            assert_eq!(GrpcCodes::of(&[14, bad]), None, "{bad}");
        }
    }
}
