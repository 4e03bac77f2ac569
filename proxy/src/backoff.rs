//! How long to wait before the next attempt: doubling, bounded, with jitter so that proxies do not return in step.

use std::time::Duration;

use rand::Rng;

/// Doubles from `first` to `most`.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts at `first`.
    #[must_use]
    pub fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, next: first }
    }

    /// The wait before the next attempt: between half and all of the present step.
    pub fn wait(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.most);
        step.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// After a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_bound_and_start_again_after_a_success() {
        let (first, most) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut backoff = Backoff::new(first, most);
        let mut step = first;
        for _ in 0..20 {
            let wait = backoff.wait();
            assert!(wait >= step / 2 && wait <= step, "{wait:?} of {step:?}");
            step = (step * 2).min(most);
        }
        assert_eq!(step, most);
        backoff.reset();
        assert!(backoff.wait() <= first);
    }
}
