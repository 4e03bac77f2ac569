//! A set for the usual case of one or two members: of ten thousand addresses nearly each is one pod's, and a tree's node for each
//! would be half of what the index holds. Members are counted, and in order.

/// See above.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Few<T>(Vec<(T, usize)>);

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Ord> Few<T> {
    /// Adds a member, once more if it is there.
    pub fn add(&mut self, member: T) {
        match self.0.binary_search_by(|(known, _)| known.cmp(&member)) {
            Ok(at) => self.0[at].1 += 1,
            Err(at) => {
                self.0.reserve_exact(1);
                self.0.insert(at, (member, 1));
            }
        }
    }

    /// Removes a member that was added; it goes when it was removed as often.
    pub fn remove(&mut self, member: &T) {
        if let Ok(at) = self.0.binary_search_by(|(known, _)| known.cmp(member)) {
            self.0[at].1 -= 1;
            if self.0[at].1 == 0 {
                self.0.remove(at);
            }
        }
    }

    /// The members, each once, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(member, _)| member)
    }

    /// There are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn it_is_a_counting_set(steps in proptest::collection::vec((any::<bool>(), 0u8..5), 0..60)) {
            let (mut few, mut map) = (Few::default(), BTreeMap::<u8, usize>::new());
            for (adds, member) in steps {
                if adds {
                    few.add(member);
                    *map.entry(member).or_default() += 1;
                } else {
                    few.remove(&member);
                    if let Some(count) = map.get_mut(&member) {
                        *count -= 1;
                    }
                    map.retain(|_, count| *count > 0);
                }
                prop_assert!(few.iter().eq(map.keys()));
                prop_assert_eq!(few.is_empty(), map.is_empty());
            }
        }
    }
}
