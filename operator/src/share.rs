//! How a limit that all replicas of a Service share is divided among them. Pure; `leader/limits` moves the numbers.
//!
//! Every request has the same chance, whichever replica it reaches: above the limit the parts are in proportion to what
//! the replicas are asked for. Below it each has what it is asked for, and what is left is divided evenly. What a part gains
//! while nobody asks for it is not lost: the replica spills it, and others that had to refuse get it as credit.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use weft_api::v1::Tally;

/// The whole of a limit, in millionths.
pub const WHOLE: u32 = 1_000_000;
/// Divided evenly whatever is asked for, so that the first requests at a replica pass.
const FLOOR: u32 = WHOLE / 100;
/// The parts, in the order of the demands; together they are the whole. Demands are in millionths of the limit.
#[must_use]
pub fn divide(demands: &[f64]) -> Vec<u32> {
    let replicas = demands.len() as f64;
    let total: f64 = demands.iter().sum();
    let floor = f64::from(FLOOR) / replicas;
    let rest = f64::from(WHOLE - FLOOR);
    let part = |demand: &f64| {
        let part = if total > rest { rest * demand / total } else { demand + (rest - total) / replicas };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within 0 and a million")]
        let part = (floor + part) as u32;
        part.max(1)
    };
    demands.iter().map(part).collect()
}

/// What a replica tells of a limit.
#[derive(Clone, Debug)]
pub struct Wants<R> {
    /// The limit.
    pub limit: String,
    /// Who keeps it.
    pub replica: R,
    /// Requests that came, in millionths of the limit.
    pub demand: u32,
    /// `None`: it gives nothing back, and gets no credit.
    pub tally: Option<Tally>,
}

/// What a replica is granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Of the limit, in millionths.
    pub share: u32,
    /// All the requests that it was ever given beyond that. `None`: it would not know what to do with them.
    pub credit: Option<u64>,
    /// What another replica has is not enough for it.
    pub others_are_short: bool,
}

/// What was spilled and not given to anybody yet. It holds what the last call named, and nothing else.
#[derive(Debug)]
pub struct Ledger<R> {
    limits: BTreeMap<String, Account<R>>,
}

#[derive(Debug)]
struct Account<R> {
    /// In millionths of a request.
    pot: u64,
    /// Of all of them.
    needed: u64,
    replicas: HashMap<R, Entry>,
}

/// What is known of a replica.
#[derive(Clone, Copy, Debug)]
struct Entry {
    last: Tally,
    /// All that it was ever given.
    credit: u64,
    /// Requests that its part did not give, of the last four looks or so, in thousandths.
    need: u64,
}

impl<R> Default for Ledger<R> {
    fn default() -> Self {
        Self { limits: BTreeMap::new() }
    }
}

impl<R: Eq + Hash + Clone> Ledger<R> {
    /// Divides each limit among the replicas that keep it.
    pub fn divide(&mut self, wants: Vec<Wants<R>>) -> Vec<(String, R, Part)> {
        let mut by_limit: BTreeMap<String, Vec<Wants<R>>> = BTreeMap::new();
        for one in wants {
            by_limit.entry(one.limit.clone()).or_default().push(one);
        }
        self.limits.retain(|limit, _| by_limit.contains_key(limit));
        let mut granted = Vec::new();
        for (limit, replicas) in by_limit {
            let demands: Vec<f64> = replicas.iter().map(|one| f64::from(one.demand)).collect();
            let account = self.limits.entry(limit).or_default();
            account.settle(&replicas);
            for (one, share) in replicas.into_iter().zip(divide(&demands)) {
                let entry = account.replicas.get(&one.replica);
                let part = Part {
                    share,
                    credit: entry.map(|entry| entry.credit),
                    others_are_short: account.needed > entry.map_or(0, |entry| entry.need),
                };
                granted.push((one.limit, one.replica, part));
            }
        }
        granted
    }
}

impl<R> Default for Account<R> {
    fn default() -> Self {
        Self { pot: 0, needed: 0, replicas: HashMap::new() }
    }
}

impl<R: Eq + Hash + Clone> Account<R> {
    /// Collects what was spilled, and gives it to those who had to refuse, by how much.
    fn settle(&mut self, wants: &[Wants<R>]) {
        let mut last = std::mem::take(&mut self.replicas);
        let mut room = 0_u64;
        self.needed = 0;
        for one in wants {
            let Some(tally) = one.tally else { continue };
            // A counter that has gone back is another one: that proxy has begun anew.
            let known = last
                .remove(&one.replica)
                .filter(|known| tally.spilled >= known.last.spilled && tally.beyond >= known.last.beyond);
            let known = known.unwrap_or(Entry { last: tally, credit: tally.credited, need: 0 });
            let lacked = (tally.beyond - known.last.beyond).min(u64::from(WHOLE));
            let need = known.need / 4 * 3 + lacked * 1000;
            self.pot = self.pot.saturating_add(tally.spilled - known.last.spilled);
            self.needed = self.needed.saturating_add(need);
            let under_way = known.credit.saturating_sub(tally.credited);
            room = room.saturating_add(tally.room.saturating_sub(under_way.saturating_mul(WHOLE.into())));
            let entry = Entry { last: tally, credit: known.credit, need };
            self.replicas.insert(one.replica.clone(), entry);
        }
        // All of it together is never more than one bucket of the whole limit holds.
        self.pot = self.pot.min(room);
        let whole = self.pot / u64::from(WHOLE);
        for entry in self.replicas.values_mut() {
            let fair = u128::from(whole) * u128::from(entry.need) / u128::from(self.needed.max(1));
            let given = u64::try_from(fair).unwrap_or(whole);
            self.pot -= given * u64::from(WHOLE);
            entry.credit += given;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn above_the_limit_the_parts_are_in_proportion_and_below_it_what_is_left_is_divided_evenly() {
        let near = |parts: &[u32], wanted: &[u32]| {
            parts.iter().zip(wanted).all(|(part, wanted)| part.abs_diff(*wanted) <= 1)
        };
        let over = divide(&[3_000_000.0, 1_000_000.0, 0.0]);
        assert!(near(&over, &[742_500 + 3_333, 247_500 + 3_333, 3_333]), "{over:?}");
        let under = divide(&[300_000.0, 0.0, 0.0]);
        assert!(near(&under, &[300_000 + 230_000 + 3_333, 233_333, 233_333]), "{under:?}");
        assert_eq!(divide(&[0.0]), [WHOLE]);
    }

    fn want(limit: &str, replica: &'static str, demand: u32, tally: Option<Tally>) -> Wants<&'static str> {
        Wants { limit: limit.into(), replica, demand, tally }
    }

    fn tally(beyond: u64, spilled: u64, room: u64, credited: u64) -> Option<Tally> {
        let one = u64::from(WHOLE);
        Some(Tally { beyond, spilled: spilled * one, room: room * one, credited })
    }

    #[test]
    fn each_limit_is_divided_among_those_that_keep_it() {
        let wants = [("l", "a", 1_000_000), ("m", "b", 5), ("l", "b", 1_000_000)]
            .map(|(l, r, d)| want(l, r, d, None));
        let part = |limit: &str, replica, share| {
            (limit.to_owned(), replica, Part { share, credit: None, others_are_short: false })
        };
        let mut ledger = Ledger::default();
        let wanted = [part("l", "a", 500_000), part("l", "b", 500_000), part("m", "b", WHOLE)];
        assert_eq!(ledger.divide(wants.to_vec()), wanted);
        assert_eq!(ledger.limits.len(), 2);
        ledger.divide(Vec::new());
        assert!(ledger.limits.is_empty());
    }

    /// What two replicas have been given in all, after each look.
    fn credits(looks: &[[Option<Tally>; 2]]) -> Vec<[u64; 2]> {
        let mut ledger = Ledger::default();
        let look = |[a, b]: &[Option<Tally>; 2]| {
            let granted = ledger.divide(vec![want("l", "a", 1, *a), want("l", "b", 1, *b)]);
            [0, 1].map(|i: usize| granted[i].2.credit.unwrap_or(u64::MAX))
        };
        looks.iter().map(look).collect()
    }

    #[test]
    fn what_one_replica_spills_goes_to_those_that_lack_it_and_only_once() {
        let looks = [
            // What was before is nobody's.
            [tally(100, 50, 9, 3), tally(100, 50, 9, 4)],
            [tally(100, 60, 9, 3), tally(100, 50, 9, 4)],
            [tally(100, 60, 9, 3), tally(108, 50, 9, 4)],
            [tally(100, 60, 9, 3), tally(120, 50, 9, 14)],
            // Of six: 48 lacked by one, and 20 by the other, a while ago.
            [tally(100, 62, 9, 3), tally(120, 62, 9, 14)],
            [tally(148, 62, 9, 3), tally(120, 68, 9, 28)],
        ];
        assert_eq!(credits(&looks), [[3, 4], [3, 4], [3, 14], [3, 14], [3, 28], [7, 29]]);
    }

    #[test]
    fn no_more_is_kept_than_there_is_room_for() {
        let looks = [
            [tally(0, 0, 5, 0), tally(0, 0, 5, 0)],
            // 100 spilled, room for 10, and then for what is not under way.
            [tally(0, 100, 5, 0), tally(0, 0, 5, 0)],
            [tally(0, 100, 5, 0), tally(2, 0, 5, 0)],
            [tally(0, 200, 5, 0), tally(2, 0, 5, 0)],
        ];
        assert_eq!(credits(&looks), [[0, 0], [0, 0], [0, 10], [0, 15]]);
    }

    #[test]
    fn a_proxy_that_begins_anew_and_one_of_before_are_no_source_of_credit() {
        let looks = [
            [tally(50, 50, 50, 7), None],
            [tally(1, 1, 50, 0), None],
            [tally(2, 1, 50, 0), None],
            [tally(9, 3, 50, 0), None],
        ];
        assert_eq!(credits(&looks), [[7, u64::MAX], [0, u64::MAX], [0, u64::MAX], [2, u64::MAX]]);
    }

    #[test]
    fn a_replica_is_told_whether_others_are_short_not_whether_it_is() {
        let mut ledger = Ledger::default();
        let mut told = |a: u64, b: u64| {
            let wants = vec![want("l", "a", 1, tally(a, 0, 5, 0)), want("l", "b", 1, tally(b, 0, 5, 0))];
            ledger.divide(wants).iter().map(|(_, _, part)| part.others_are_short).collect::<Vec<_>>()
        };
        assert_eq!(told(0, 0), [false, false]);
        assert_eq!(told(3, 0), [false, true]);
        assert_eq!(told(3, 1), [true, true]);
        for _ in 0..40 {
            told(3, 1);
        }
        assert_eq!(told(3, 1), [false, false]);
    }

    proptest! {
        #[test]
        fn the_parts_are_never_more_than_the_whole_nor_much_less(demands in prop::collection::vec(0u32..=u32::MAX, 1..100)) {
            let demands: Vec<f64> = demands.into_iter().map(f64::from).collect();
            let sum: u32 = divide(&demands).iter().sum();
            let replicas = u32::try_from(demands.len()).unwrap();
            prop_assert!(sum <= WHOLE + replicas && sum >= WHOLE - replicas, "{}", sum);
        }

        #[test]
        fn never_more_is_given_than_was_spilled(
            looks in prop::collection::vec((0u64..30, 0u64..30, 0u64..30, 0u64..30), 1..40),
        ) {
            let (mut ledger, mut now, mut given) = (Ledger::default(), [(0, 0); 2], [0; 2]);
            for (refused, spilled, refused_b, room) in looks {
                now = [(now[0].0 + refused, now[0].1 + spilled), (now[1].0 + refused_b, now[1].1)];
                let wants = [0, 1].map(|i| {
                    let tally = tally(now[i].0, now[i].1, room, given[i]);
                    want("l", ["a", "b"][i], 1, tally)
                });
                let granted = ledger.divide(wants.to_vec());
                for (given, (_, _, part)) in given.iter_mut().zip(&granted) {
                    prop_assert!(part.credit.unwrap() >= *given);
                    *given = part.credit.unwrap();
                }
                prop_assert!(given[0] + given[1] <= now[0].1);
            }
        }
    }
}
