//! Waiting for what becomes true, and watching what must stay true.

use anyhow::{Context, Result};
use std::time::{Duration, Instant};

/// Tries until `attempt` succeeds; after `patience` the last failure is the error, under the heading `what`.
pub fn eventually<T>(what: &str, patience: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_millis(50);
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("not within {patience:?}: {what}"));
            }
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 3 / 2).min(Duration::from_millis(500));
    }
}

/// Checks again and again for as long as `span`; the first failure is the error.
pub fn stays<T>(what: &str, span: Duration, mut check: impl FnMut() -> Result<T>) -> Result<()> {
    let end = Instant::now() + span;
    while Instant::now() < end {
        check().with_context(|| format!("did not stay so: {what}"))?;
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    #[test]
    fn the_first_success_counts_and_the_last_failure_is_told() {
        let mut tries = 0;
        let value = eventually("three", Duration::from_secs(5), || {
            tries += 1;
            if tries < 3 { bail!("only {tries}") } else { Ok(tries) }
        });
        assert_eq!(value.unwrap(), 3);
        let error =
            eventually("never", Duration::from_millis(1), || -> Result<()> { bail!("because") }).unwrap_err();
        assert!(format!("{error:#}").contains("never") && format!("{error:#}").contains("because"));
    }
}
