//! How a limit that all replicas of a Service share is divided among them. Pure; `leader/limits` moves the numbers.
//!
//! Every request has the same chance, whichever replica it reaches: above the limit the parts are in proportion to what
//! the replicas are asked for. Below it each has what it is asked for, and what is left is divided evenly.

use std::collections::BTreeMap;

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

/// Divides each limit among the replicas that keep it, by limit, replica and demand.
pub fn divide_all<R>(demands: impl IntoIterator<Item = (String, R, u32)>) -> Vec<(String, R, u32)> {
    let mut by_limit: BTreeMap<String, Vec<(R, f64)>> = BTreeMap::new();
    for (limit, replica, demand) in demands {
        by_limit.entry(limit).or_default().push((replica, f64::from(demand)));
    }
    let mut granted = Vec::new();
    for (limit, replicas) in by_limit {
        let demands: Vec<f64> = replicas.iter().map(|(_, demand)| *demand).collect();
        let parts = divide(&demands);
        granted.extend(
            replicas.into_iter().zip(parts).map(|((replica, _), part)| (limit.clone(), replica, part)),
        );
    }
    granted
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

    #[test]
    fn each_limit_is_divided_among_those_that_keep_it() {
        let demands = [("l", "a", 1_000_000), ("m", "b", 5), ("l", "b", 1_000_000)];
        let granted = divide_all(demands.map(|(limit, replica, demand)| (limit.to_owned(), replica, demand)));
        let l = |replica| ("l".to_owned(), replica, 500_000);
        assert_eq!(granted, [l("a"), l("b"), ("m".to_owned(), "b", WHOLE)]);
    }

    proptest! {
        #[test]
        fn the_parts_are_never_more_than_the_whole_nor_much_less(demands in prop::collection::vec(0u32..=u32::MAX, 1..100)) {
            let demands: Vec<f64> = demands.into_iter().map(f64::from).collect();
            let sum: u32 = divide(&demands).iter().sum();
            let replicas = u32::try_from(demands.len()).unwrap();
            prop_assert!(sum <= WHOLE + replicas && sum >= WHOLE - replicas, "{}", sum);
        }
    }
}
