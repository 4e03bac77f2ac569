//! Choosing by weight: the running sums of endpoints' weights, and points on that line. Pure arithmetic.

use rand::Rng;

/// Shares of the endpoints of weight above 0. Made once per update of a cluster.
#[derive(Debug, Default)]
pub(crate) struct Weights {
    /// Running sums of the weights divided by their greatest common divisor; an endpoint of weight 0 has no width.
    /// Empty when all weights are equal: then one is as wide as the other.
    ends: Box<[u64]>,
    total: u64,
    /// How far apart consecutive tickets lie on the line; coprime to `total`.
    step: u64,
}

impl Weights {
    pub(crate) fn new(weights: &[u32]) -> Self {
        let gcd = weights.iter().copied().fold(0, gcd);
        if gcd == 0 {
            return Self::default();
        }
        if weights.iter().all(|&w| w == gcd) {
            return Self { total: weights.len() as u64, step: 1, ends: Box::default() };
        }
        let ends: Box<[u64]> = weights
            .iter()
            .scan(0u64, |sum, &w| {
                *sum += u64::from(w / gcd);
                Some(*sum)
            })
            .collect();
        let total = ends.last().copied().unwrap_or_default();
        Self { total, step: spread(total), ends }
    }

    /// Whether any endpoint has a weight above 0.
    pub(crate) const fn any(&self) -> bool {
        self.total > 0
    }

    /// Where `point`, below `total`, lies.
    #[allow(clippy::cast_possible_truncation)]
    fn at(&self, point: u64) -> usize {
        if self.ends.is_empty() { point as usize } else { self.ends.partition_point(|&end| end <= point) }
    }

    fn span(&self, index: usize) -> (u64, u64) {
        if self.ends.is_empty() {
            return (index as u64, 1);
        }
        let start = index.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        (start, self.ends.get(index).map_or(0, |end| end - start))
    }

    /// One, by weight. Only if [`Weights::any`].
    pub(crate) fn sample(&self, rng: &mut impl Rng) -> usize {
        self.at(rng.random_range(0..self.total))
    }

    /// Another than `first`, by weight; `None` if there is none.
    pub(crate) fn sample_other(&self, first: usize, rng: &mut impl Rng) -> Option<usize> {
        let (start, width) = self.span(first);
        let rest = self.total - width;
        if rest == 0 {
            return None;
        }
        let point = rng.random_range(0..rest);
        Some(self.at(if point >= start { point + width } else { point }))
    }

    /// The one that a ticket stands for. Of `total` tickets in a row each endpoint gets exactly its weight, evenly spread:
    /// multiples of the golden ratio fall nearly equally far apart (three-distance theorem, Sós 1958), and a step
    /// that is coprime to the total meets every point once. With equal weights: one after the other.
    pub(crate) fn ticket(&self, ticket: u64) -> usize {
        let point = u128::from(ticket % self.total) * u128::from(self.step) % u128::from(self.total);
        #[allow(clippy::cast_possible_truncation)]
        self.at(point as u64)
    }

    /// Tickets until every endpoint has had its share.
    #[cfg(test)]
    pub(crate) const fn cycle(&self) -> u64 {
        self.total
    }
}

/// A step that shares no divisor with `total` and spreads evenly: near `total` divided by the golden ratio, the one with
/// the smallest sum of partial quotients in its continued fraction, which bounds the unevenness (Niederreiter, 1978).
fn spread(total: u64) -> u64 {
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let near = ((total as f64) * 0.618_033_988_749_894_9).round() as u64;
    let candidates = near.saturating_sub(64).max(1)..=near + 64;
    candidates.filter_map(|step| Some((unevenness(total, step)?, step))).min().map_or(1, |(_, step)| step)
}

/// Sum of the partial quotients of `total / step`; `None` if they share a divisor.
const fn unevenness(total: u64, step: u64) -> Option<u64> {
    let (mut a, mut b, mut sum) = (total, step, 0);
    while b > 0 {
        sum += a / b;
        (a, b) = (b, a % b);
    }
    if a == 1 { Some(sum) } else { None }
}

const fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_cycle_of_tickets_gives_each_its_exact_share(weights in prop::collection::vec(0u32..200, 1..12), start: u64) {
            let line = Weights::new(&weights);
            prop_assume!(line.any());
            let divisor = weights.iter().copied().fold(0, gcd);
            let mut got = vec![0u32; weights.len()];
            for ticket in 0..line.cycle() {
                got[line.ticket((start >> 1) + ticket)] += 1;
            }
            // A wrap of `ticket % total` within the cycle changes nothing.
            for (got, weight) in got.iter().zip(&weights) {
                prop_assert_eq!(*got, weight / divisor);
            }
        }

        #[test]
        fn no_stretch_of_tickets_strays_far_from_the_shares(weights in prop::collection::vec(1u32..100, 2..10), from in 0u64..1000, length in 1u64..500) {
            let line = Weights::new(&weights);
            let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
            let mut got = vec![0f64; weights.len()];
            for ticket in from..from + length {
                got[line.ticket(ticket)] += 1.0;
            }
            for (got, weight) in got.iter().zip(&weights) {
                let due = length as f64 * f64::from(*weight) / total;
                prop_assert!((got - due).abs() <= 8.0, "{got} instead of {due} of {length}");
            }
        }

        #[test]
        fn another_is_never_the_first(weights in prop::collection::vec(0u32..5, 1..6), seed: u64) {
            let line = Weights::new(&weights);
            prop_assume!(line.any());
            let mut rng: rand::rngs::SmallRng = rand::SeedableRng::seed_from_u64(seed);
            let first = line.sample(&mut rng);
            prop_assert!(weights[first] > 0);
            match line.sample_other(first, &mut rng) {
                Some(other) => prop_assert!(other != first && weights[other] > 0),
                None => prop_assert_eq!(weights.iter().filter(|&&w| w > 0).count(), 1),
            }
        }
    }

    #[test]
    fn equal_weights_come_one_after_the_other() {
        let line = Weights::new(&[100, 100, 100]);
        assert_eq!((0..6).map(|t| line.ticket(t)).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn unequal_weights_are_interleaved() {
        let line = Weights::new(&[300, 100]);
        let order: Vec<_> = (0..8).map(|t| line.ticket(t)).collect();
        assert_eq!(order.iter().filter(|&&i| i == 1).count(), 2);
        assert!(order.windows(2).all(|w| w != [1, 1]));
    }
}
