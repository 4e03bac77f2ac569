//! Milliseconds, or nanoseconds, since about the process's beginning, so that a moment fits into an atomic.

use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::Instant;

// A day back, so that no moment of a test with its own paused clock lies before it.
static BEGIN: LazyLock<std::time::Instant> = LazyLock::new(|| {
    let now = std::time::Instant::now();
    now.checked_sub(Duration::from_secs(86_400)).unwrap_or(now)
});

#[allow(clippy::cast_possible_truncation)]
pub(crate) fn millis(now: Instant) -> u64 {
    now.into_std().saturating_duration_since(*BEGIN).as_millis() as u64
}

/// Finer, for what is counted by the million per second. Lasts for centuries.
#[allow(clippy::cast_possible_truncation)]
pub(crate) fn nanos(now: Instant) -> u64 {
    now.into_std().saturating_duration_since(*BEGIN).as_nanos() as u64
}
