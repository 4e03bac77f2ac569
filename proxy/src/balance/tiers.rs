//! Tiers: endpoints that stand in for each other alike. Without failover and locality a cluster is one tier. A tier gets as
//! much as its healthy share can carry, the next one what is left. Parted when a snapshot is applied; the shares are worked
//! out from the endpoints' health now and then. It chooses no endpoint.
//! Source: Envoy's priority levels and their overprovisioning factor.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use tokio::time::Instant;

use super::table::Table;
use super::weights::Weights;
use crate::clock;

/// A tier is taken to carry its traffic while its healthy share times this is the whole: it may lose 28 % of its endpoints
/// before anything spills over.
const OVERPROVISIONED: f64 = 1.4;
/// Shares are worked out anew after this, in milliseconds; until then a request that meets nobody healthy looks further itself.
const REFRESH: u64 = 10;
/// The whole, in units of a share.
const WHOLE: f32 = 65_536.0;
/// Of an endpoint that locality leaves out.
const OUTSIDE: u8 = u8::MAX;

/// Where a proxy or an endpoint is. Empty: unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place<'a> {
    pub(crate) zone: &'a str,
    pub(crate) region: &'a str,
}

/// What nearness to the caller means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Locality {
    /// Its zone, then its region, then everywhere.
    Prefer,
    /// Its zone and nothing else.
    Zone,
    /// Its zone, then its region and nothing else.
    Region,
}

impl Locality {
    /// How far an endpoint is from the caller: 0 is nearest. `None`: too far. Where the caller does not know its own place,
    /// all are alike.
    pub(crate) fn distance(self, here: Place<'_>, there: Place<'_>) -> Option<u8> {
        let same = |a: &str, b: &str| !a.is_empty() && a == b;
        let limit = match self {
            Self::Prefer if here == Place::default() => return Some(0),
            Self::Zone if here.zone.is_empty() => return Some(0),
            Self::Region if here.region.is_empty() => return Some(0),
            Self::Prefer => 2,
            Self::Region => 1,
            Self::Zone => 0,
        };
        let distance = match () {
            () if same(here.zone, there.zone) => 0,
            () if same(here.region, there.region) => 1,
            () => 2,
        };
        (distance <= limit).then_some(distance)
    }
}

/// One tier.
#[derive(Debug)]
pub(crate) struct Tier {
    /// Places in the cluster's list; `None`: all of it, in its order.
    members: Option<Box<[usize]>>,
    len: usize,
    pub(crate) line: Weights,
    pub(crate) table: Option<std::sync::Arc<Table>>,
}

impl Tier {
    /// The endpoint at a place of `line` or `table`, as its place in the cluster's list.
    pub(crate) fn at(&self, place: usize) -> usize {
        self.members.as_ref().map_or(place, |members| members.get(place).copied().unwrap_or(usize::MAX))
    }
}

/// All tiers of a cluster, the best one first. None when locality leaves nothing.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    tiers: Box<[Tier]>,
    /// By place in the cluster's list; empty when there is one tier of all.
    tier_of: Box<[u8]>,
    /// Only where there is something to decide: several tiers, or a panic threshold.
    shares: Option<Shares>,
}

/// What each tier gets; written by whoever finds it old.
#[derive(Debug)]
struct Shares {
    panic_percent: u32,
    at: AtomicU64,
    panic: AtomicBool,
    /// Running sums; the last one is [`WHOLE`].
    ends: Box<[AtomicU32]>,
}

/// What [`Plan::draw`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Drawn {
    pub(crate) tier: usize,
    /// Too few are healthy: health does not count.
    pub(crate) panic: bool,
}

impl Plan {
    /// `ranks`: of each endpoint its tier's order, `None` for those left out. `make` makes a tier of places in the list.
    pub(crate) fn new(
        ranks: &[Option<(u32, u8)>],
        weights: &[u32],
        panic_percent: u32,
        mut table: impl FnMut(&[usize]) -> Option<std::sync::Arc<Table>>,
    ) -> Self {
        let mut by_rank: BTreeMap<(u32, u8), Vec<usize>> = BTreeMap::new();
        for (place, rank) in ranks.iter().enumerate() {
            if let Some(rank) = rank {
                by_rank.entry(*rank).or_default().push(place);
            }
        }
        let mut tier_of = vec![OUTSIDE; ranks.len()];
        let mut tiers = Vec::new();
        for members in by_rank.into_values() {
            for &place in &members {
                tier_of[place] = u8::try_from(tiers.len()).unwrap_or(OUTSIDE - 1);
            }
            let of: Vec<u32> = members.iter().map(|&place| weights[place]).collect();
            let (line, table, len) = (Weights::new(&of), table(&members), members.len());
            tiers.push(Tier { members: (len < ranks.len()).then(|| members.into()), len, line, table });
        }
        if tier_of.iter().all(|tier| *tier == 0) {
            tier_of.clear();
        }
        let shares = (tiers.len() > 1 || panic_percent > 0).then(|| Shares {
            panic_percent,
            at: AtomicU64::new(0),
            panic: AtomicBool::new(false),
            ends: tiers.iter().map(|_| AtomicU32::new(0)).collect(),
        });
        Self { tiers: tiers.into(), tier_of: tier_of.into(), shares }
    }

    /// All endpoints alike.
    #[cfg(test)]
    pub(crate) fn flat(weights: &[u32]) -> Self {
        Self::new(&vec![Some((0, 0)); weights.len()], weights, 0, |_| None)
    }

    pub(crate) fn tier(&self, tier: usize) -> Option<&Tier> {
        self.tiers.get(tier)
    }

    pub(crate) fn tables(&self) -> impl Iterator<Item = &std::sync::Arc<Table>> {
        self.tiers.iter().filter_map(|tier| tier.table.as_ref())
    }

    pub(crate) const fn is_one(&self) -> bool {
        self.tiers.len() == 1
    }

    /// The tier of an endpoint; `None`: it is left out.
    pub(crate) fn tier_of(&self, place: usize) -> Option<usize> {
        match self.tier_of.get(place) {
            None => Some(0),
            Some(&OUTSIDE) => None,
            Some(&tier) => Some(tier.into()),
        }
    }

    /// Where a request goes: `point` from 0 to below 1, at random or from its key. `healthy` and `weight` are of an endpoint.
    pub(crate) fn draw(
        &self,
        point: impl FnOnce() -> f32,
        now: Instant,
        healthy: impl Fn(usize) -> bool,
        weight: impl Fn(usize) -> u32,
    ) -> Drawn {
        let Some(shares) = &self.shares else { return Drawn { tier: 0, panic: false } };
        let at = clock::millis(now);
        if at.saturating_sub(shares.at.load(Ordering::Relaxed)) >= REFRESH {
            shares.at.store(at, Ordering::Relaxed);
            shares.refresh(&self.tiers, healthy, weight);
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let point = (point() * WHOLE) as u32;
        // Another thread may be writing: then it is the first one, and whoever picks looks further.
        let tier = shares.ends.iter().position(|end| point < end.load(Ordering::Relaxed)).unwrap_or(0);
        Drawn { tier, panic: shares.panic.load(Ordering::Relaxed) }
    }

    /// For a reader: what each tier gets, of 1. Empty when there is one only.
    pub(crate) fn loads(&self) -> Vec<f32> {
        let Some(shares) = self.shares.as_ref().filter(|shares| shares.ends.len() > 1) else {
            return Vec::new();
        };
        let mut before = 0;
        #[allow(clippy::cast_precision_loss)]
        let load = |end: &AtomicU32| {
            let end = end.load(Ordering::Relaxed);
            (end - std::mem::replace(&mut before, end)) as f32 / WHOLE
        };
        shares.ends.iter().map(load).collect()
    }
}

impl Shares {
    fn refresh(&self, tiers: &[Tier], healthy: impl Fn(usize) -> bool, weight: impl Fn(usize) -> u32) {
        let (healthy, weight) = (&healthy, &weight);
        let carried = tiers.iter().map(move |tier| {
            let places = (0..tier.len).map(|place| tier.at(place));
            places.fold(Carried::default(), |sum, place| {
                let weight = u64::from(weight(place));
                Carried {
                    all: sum.all + weight,
                    healthy: sum.healthy + if healthy(place) { weight } else { 0 },
                }
            })
        });
        let mut sum = 0.0;
        for (end, load) in self.ends.iter().zip(loads(carried.clone())) {
            sum += load;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            end.store((sum * f64::from(WHOLE)).round() as u32, Ordering::Relaxed);
        }
        self.panic.store(is_panic(carried, self.panic_percent), Ordering::Relaxed);
    }
}

/// The weights of a tier.
#[derive(Clone, Copy, Debug, Default)]
struct Carried {
    healthy: u64,
    all: u64,
}

impl Carried {
    #[allow(clippy::cast_precision_loss)]
    fn health(self) -> f64 {
        if self.all == 0 { 0.0 } else { self.healthy as f64 / self.all as f64 }
    }

    /// What it can carry of what is left.
    fn load(self, left: &mut f64) -> f64 {
        let load = (self.health() * OVERPROVISIONED).min(*left);
        *left -= load;
        load
    }
}

/// What each tier gets, of 1. Where all of them together cannot carry the whole, they share it by what they can; where
/// nobody is healthy, by weight. Goes through them twice, and needs no memory.
#[allow(clippy::cast_precision_loss)]
fn loads(tiers: impl Iterator<Item = Carried> + Clone) -> impl Iterator<Item = f64> {
    let mut left = 1.0;
    let sum: f64 = tiers.clone().map(|tier| tier.load(&mut left)).sum();
    let all = tiers.clone().map(|tier| tier.all).sum::<u64>() as f64;
    let mut left = 1.0;
    tiers.enumerate().map(move |(i, tier)| match () {
        () if sum > 0.0 => tier.load(&mut left) / sum,
        () if all > 0.0 => tier.all as f64 / all,
        () => f64::from(u8::from(i == 0)),
    })
}

/// No tier is as healthy as the threshold asks for.
fn is_panic(mut tiers: impl Iterator<Item = Carried>, percent: u32) -> bool {
    tiers.all(|tier| tier.health() * 100.0 < f64::from(percent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn percent(tiers: &[(u64, u64)]) -> Vec<u32> {
        let tiers: Vec<_> = tiers.iter().map(|&(healthy, all)| Carried { healthy, all }).collect();
        loads(tiers.into_iter()).map(|load| (load * 100.0).round() as u32).collect()
    }

    #[test]
    fn the_first_tier_has_all_until_more_than_its_reserve_is_lost() {
        for (first, expected) in
            [(10, [100, 0]), (8, [100, 0]), (7, [98, 2]), (5, [70, 30]), (1, [14, 86]), (0, [0, 100])]
        {
            assert_eq!(percent(&[(first, 10), (10, 10)]), expected, "{first} of 10");
        }
    }

    #[test]
    fn what_all_together_cannot_carry_is_shared_by_what_they_can() {
        assert_eq!(percent(&[(1, 4), (1, 4)]), [50, 50]);
        assert_eq!(percent(&[(2, 5), (1, 5), (0, 3)]), [67, 33, 0]);
        assert_eq!(percent(&[(0, 3), (0, 1)]), [75, 25]);
        // Nothing but weight 0.
        assert_eq!(percent(&[(0, 0), (0, 0)]), [100, 0]);
        assert_eq!(percent(&[(0, 0), (5, 5)]), [0, 100]);
    }

    #[test]
    fn panic_begins_when_no_tier_reaches_the_threshold() {
        let panic = |tiers: &[(u64, u64)], percent| {
            let tiers: Vec<_> = tiers.iter().map(|&(healthy, all)| Carried { healthy, all }).collect();
            is_panic(tiers.into_iter(), percent)
        };
        assert!(!panic(&[(5, 10)], 50));
        assert!(panic(&[(4, 10)], 50));
        assert!(!panic(&[(0, 10), (5, 10)], 50));
        assert!(panic(&[(0, 10), (4, 10)], 50));
        assert!(!panic(&[(0, 10)], 0));
        assert!(panic(&[(99, 100)], 100));
    }

    #[test]
    fn nearness_is_zone_then_region_then_anywhere() {
        let place = |zone, region| Place { zone, region };
        let here = place("a", "r");
        let table = [
            (place("a", "r"), [Some(0), Some(0), Some(0)]),
            (place("a", ""), [Some(0), Some(0), Some(0)]),
            (place("b", "r"), [Some(1), None, Some(1)]),
            (place("b", "s"), [Some(2), None, None]),
            (place("", ""), [Some(2), None, None]),
        ];
        for (there, expected) in table {
            let got = [Locality::Prefer, Locality::Zone, Locality::Region].map(|l| l.distance(here, there));
            assert_eq!(got, expected, "{there:?}");
            for locality in [Locality::Prefer, Locality::Zone, Locality::Region] {
                assert_eq!(
                    locality.distance(Place::default(), there),
                    Some(0),
                    "an unknown place of one's own"
                );
            }
        }
        assert_eq!(Locality::Region.distance(place("a", ""), place("b", "r")), Some(0));
    }

    #[test]
    fn endpoints_are_parted_by_rank_and_some_left_out() {
        let ranks = [Some((1, 0)), Some((0, 2)), None, Some((0, 0)), Some((0, 2))];
        let plan = Plan::new(&ranks, &[100; 5], 0, |_| None);
        assert_eq!(
            (0..5).map(|i| plan.tier_of(i)).collect::<Vec<_>>(),
            [Some(2), Some(1), None, Some(0), Some(1)]
        );
        assert_eq!(plan.tier(1).map(|t| (t.at(0), t.at(1), t.len)), Some((1, 4, 2)));
        assert!(plan.tier(3).is_none());
        let flat = Plan::flat(&[100; 3]);
        assert!(flat.is_one() && flat.shares.is_none());
        assert_eq!(flat.tier(0).map(|t| t.at(2)), Some(2));
        assert!(Plan::new(&[None, None], &[1, 1], 0, |_| None).tier(0).is_none());
    }

    proptest! {
        #[test]
        fn loads_are_the_whole_and_follow_the_order(tiers in prop::collection::vec((0u64..1000, 0u64..1000), 1..6)) {
            let tiers: Vec<_> = tiers.iter().map(|&(a, b)| Carried { healthy: a.min(b), all: a.max(b) }).collect();
            let loads: Vec<f64> = loads(tiers.iter().copied()).collect();
            prop_assert!((loads.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            prop_assert!(loads.iter().all(|load| (0.0..=1.0 + 1e-9).contains(load)));
            // Whoever gets something leaves something only when it is not whole itself.
            for (i, tier) in tiers.iter().enumerate() {
                if tier.health() * OVERPROVISIONED >= 1.0 {
                    prop_assert!(loads[i + 1..].iter().all(|load| *load < 1e-9));
                }
            }
        }
    }
}
