//! What chance allows. Pure.

use anyhow::{Result, ensure};
use std::time::Duration;

/// Standard deviations that a correct implementation leaves about once in 150,000 samples.
const SIGMAS: f64 = 4.5;

/// The counts that `n` independent trials of probability `p` may show.
#[must_use]
pub fn binomial_bounds(n: u64, p: f64) -> (u64, u64) {
    let mean = n as f64 * p;
    // Half a count of continuity, and never narrower than a few counts: the normal approximation is poor for rare events.
    let spread = (SIGMAS * (mean * (1.0 - p)).sqrt()).max(3.0) + 0.5;
    ((mean - spread).max(0.0).floor() as u64, ((mean + spread).ceil() as u64).min(n))
}

/// Refuses a count that chance does not explain.
pub fn expect_share(what: &str, count: u64, n: u64, p: f64) -> Result<()> {
    let (low, high) = binomial_bounds(n, p);
    ensure!(
        (low..=high).contains(&count),
        "{what}: {count} of {n} ({:.1} %), where {:.1} % were due; chance allows {low} to {high}",
        100.0 * count as f64 / n.max(1) as f64,
        100.0 * p
    );
    Ok(())
}

/// The value below which the share `q` (0 to 1) of the samples lies (nearest rank). Zero when there are none.
#[must_use]
pub fn quantile(samples: &[Duration], q: f64) -> Duration {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// The middle value of numbers. Zero when there are none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    #[test]
    fn fair_samples_pass_and_skewed_ones_do_not() {
        let mut rng = StdRng::seed_from_u64(7);
        for p in [0.01, 0.1, 0.5, 0.9] {
            for _ in 0..500 {
                let count = (0..1000).filter(|_| rng.random_bool(p)).count() as u64;
                expect_share("fair", count, 1000, p).unwrap();
            }
        }
        assert!(expect_share("none of ten percent", 0, 1000, 0.1).is_err());
        assert!(expect_share("half instead of ten percent", 500, 1000, 0.1).is_err());
        assert!(expect_share("twenty instead of ten percent", 200, 1000, 0.1).is_err());
    }

    #[test]
    fn quantiles_are_nearest_ranks() {
        let samples: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(quantile(&samples, 0.5), Duration::from_millis(50));
        assert_eq!(quantile(&samples, 0.99), Duration::from_millis(99));
        assert_eq!(quantile(&samples, 1.0), Duration::from_millis(100));
        assert_eq!(quantile(&[], 0.5), Duration::ZERO);
        assert!((median(&[3.0, 1.0, 2.0, 10.0]) - 2.5).abs() < 1e-9);
    }
}
