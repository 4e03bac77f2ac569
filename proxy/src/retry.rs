//! Retries: whether a failed try may be followed by another, when, and the budget that all requests to a service share.
//! Pure decisions and counters; it sends nothing and never sleeps.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::Method;
use rand::Rng;
use tokio::time::Instant;

use crate::clock;

mod codes;
#[cfg(test)]
mod tests;

pub use codes::{GrpcCodes, StatusCodes};

/// Kept of a request's body where no policy says otherwise, in bytes.
pub const MAX_BODY: usize = 64 * 1024;

/// When and how often a route tries again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries beyond the first.
    pub attempts: u32,
    /// Until the response's head, of each try.
    pub per_try_timeout: Option<Duration>,
    /// The endpoint could not be reached.
    pub on_connect_failure: bool,
    /// The connection was lost, or the try's time passed, before the response's head.
    pub on_reset: bool,
    /// 502, 503 and 504.
    pub on_gateway_error: bool,
    /// Every 5xx.
    pub on_5xx: bool,
    /// gRPC status UNAVAILABLE in a response without messages.
    pub on_grpc_unavailable: bool,
    /// Also requests that may have had an effect.
    pub non_idempotent: bool,
    /// Bound of the wait before the first retry; doubled for each further one.
    pub backoff_base: Duration,
    /// Bound of every wait.
    pub backoff_max: Duration,
    /// Retries per 100 requests to the service.
    pub budget_percent: u32,
    /// Retries per second that are allowed besides.
    pub budget_min_per_second: u32,
    /// These statuses, whatever the conditions above.
    pub statuses: StatusCodes,
    /// These gRPC statuses, while no message of the response has come.
    pub grpc_statuses: GrpcCodes,
    /// Kept of a request's body to send it again, in bytes.
    pub max_body: usize,
}

impl RetryPolicy {
    /// Whether the gRPC status of a response without messages may lead to another try.
    #[must_use]
    pub const fn asks_for_grpc_status(&self) -> bool {
        self.attempts > 0 && (self.on_grpc_unavailable || !self.grpc_statuses.is_empty())
    }

    /// Whether this gRPC status is worth another try.
    #[must_use]
    pub const fn wants_grpc(&self, status: u16) -> bool {
        status == GRPC_UNAVAILABLE && self.on_grpc_unavailable || self.grpc_statuses.contains(status)
    }
}

/// Source: grpc/grpc doc/statuscodes.md.
pub const GRPC_UNAVAILABLE: u16 = 14;

impl Default for RetryPolicy {
    /// Holds where no policy says otherwise: two more tries, 25 ms to 250 ms apart, after failed connects and resets,
    /// within 20 % and 10 per second.
    fn default() -> Self {
        Self {
            attempts: 2,
            per_try_timeout: None,
            on_connect_failure: true,
            on_reset: true,
            on_gateway_error: false,
            on_5xx: false,
            on_grpc_unavailable: false,
            non_idempotent: false,
            backoff_base: Duration::from_millis(25),
            backoff_max: Duration::from_millis(250),
            budget_percent: 20,
            budget_min_per_second: 10,
            statuses: StatusCodes::default(),
            grpc_statuses: GrpcCodes::default(),
            max_body: MAX_BODY,
        }
    }
}

/// How a try failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// No connection: nothing reached the application.
    Connect,
    /// The peer said that it did not look at the request (HTTP/2 REFUSED_STREAM, a GOAWAY below the stream), or a pooled
    /// connection was gone before anything was written.
    Untouched,
    /// The connection was lost before the response's head.
    Reset,
    /// The per-try timeout passed.
    PerTryTimeout,
    /// A response with this status.
    Status(u16),
    /// A gRPC response with this status and without messages.
    Grpc(u16),
}

/// What a server asks of those who would try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushback {
    /// Not before this time.
    After(Duration),
    /// Not at all.
    Never,
}

/// A failed try.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// 1 for the first.
    pub number: u32,
    /// The request's.
    pub method: &'a Method,
    /// How it failed.
    pub failed: Failed,
    /// Whether the request can be sent again from its beginning: its body is empty or was kept.
    pub replayable: bool,
    /// What the server asked for.
    pub pushback: Option<Pushback>,
    /// Until the request's deadline.
    pub left: Option<Duration>,
}

/// The wait before the next try, or `None`: the failure stands. A wait that the server asked for is kept, or nothing is
/// tried; so is the deadline. The budget is asked by the caller, last.
#[must_use]
pub fn decide(policy: &RetryPolicy, attempt: &Attempt<'_>, rng: &mut impl Rng) -> Option<Duration> {
    let again = attempt.number <= policy.attempts
        && attempt.replayable
        && wanted(policy, attempt.failed)
        && (policy.non_idempotent || is_harmless(attempt));
    if !again {
        return None;
    }
    let drawn = backoff(policy, attempt.number, rng);
    let wait = match attempt.pushback {
        None => drawn,
        Some(Pushback::After(asked)) if asked <= policy.backoff_max => drawn.max(asked),
        Some(_) => return None,
    };
    attempt.left.is_none_or(|left| wait < left).then_some(wait)
}

/// Whether the policy names such a failure.
pub(crate) fn wanted(policy: &RetryPolicy, failed: Failed) -> bool {
    match failed {
        Failed::Connect => policy.on_connect_failure,
        Failed::Untouched | Failed::Reset => policy.on_reset,
        // The proxy itself resets the try; to the client it would be a 504.
        Failed::PerTryTimeout => policy.on_reset || policy.on_gateway_error || policy.on_5xx,
        Failed::Status(status) if policy.statuses.contains(status) => true,
        Failed::Status(502..=504) => policy.on_gateway_error || policy.on_5xx,
        Failed::Status(500..=599) => policy.on_5xx,
        Failed::Status(_) => false,
        Failed::Grpc(status) => policy.wants_grpc(status),
    }
}

/// Idempotent by RFC 9110 section 9.2.2, or nothing of it reached the application.
fn is_harmless(attempt: &Attempt<'_>) -> bool {
    matches!(attempt.failed, Failed::Connect | Failed::Untouched) || attempt.method.is_idempotent()
}

/// Exponential with full jitter: evenly between nothing and the bound, so that many clients spread out.
/// Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
fn backoff(policy: &RetryPolicy, number: u32, rng: &mut impl Rng) -> Duration {
    let factor = 1 << (number.max(1) - 1).min(20);
    let bound = policy.backoff_base.saturating_mul(factor).min(policy.backoff_max);
    bound.mul_f64(rng.random_range(0.0..=1.0))
}

/// How long a request's deposit counts.
pub const BUDGET_WINDOW: Duration = Duration::from_secs(10);
const SLOTS: usize = 10;

/// Bounds the retries of all requests to a service together: each request deposits a share of a retry, each retry
/// withdraws a whole one; deposits of the last ten seconds count. Besides, a few per second are always allowed, so that
/// a service with little traffic is retried too. A deposit is one atomic operation.
/// Source: Finagle's `RetryBudget` and linkerd's `TpsBudget`; unlike theirs, the floor is a bucket of one second, so
/// that it allows no burst of ten times its rate.
#[derive(Debug, Default)]
pub struct Budget {
    // Each slot: the second that it is of in the high half, hundredths of a retry in the low half.
    deposits: [AtomicU64; SLOTS],
    spent: Mutex<Spent>,
}

#[derive(Clone, Debug, Default)]
struct Spent {
    // Second and retries withdrawn from the deposits.
    slots: [(u64, u64); SLOTS],
    // When the floor was last filled, and what of it is used, in thousandths of a retry.
    floor_at: u64,
    floor_used: u64,
}

impl Budget {
    /// A request that is not a retry.
    pub fn deposit(&self, policy: &RetryPolicy, now: Instant) {
        let second = clock::millis(now) / 1000;
        let slot = &self.deposits[slot_of(second)];
        let add = u64::from(policy.budget_percent);
        let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            let (at, sum) = (word >> 32, word & 0xffff_ffff);
            let sum = if at == second & 0xffff_ffff { (sum + add).min(0xffff_ffff) } else { add };
            Some((second & 0xffff_ffff) << 32 | sum)
        });
    }

    /// Whether one retry may go; it is then paid for.
    #[must_use]
    pub fn withdraw(&self, policy: &RetryPolicy, now: Instant) -> bool {
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        self.pay(&mut spent, policy, now)
    }

    /// Whether one would be allowed now, without paying for it.
    #[must_use]
    pub fn would_allow(&self, policy: &RetryPolicy, now: Instant) -> bool {
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.pay(&mut spent, policy, now)
    }

    fn pay(&self, spent: &mut Spent, policy: &RetryPolicy, now: Instant) -> bool {
        let millis = clock::millis(now);
        let second = millis / 1000;

        let floor = u64::from(policy.budget_min_per_second) * 1000;
        let filled =
            millis.saturating_sub(spent.floor_at).saturating_mul(u64::from(policy.budget_min_per_second));
        spent.floor_used = spent.floor_used.saturating_sub(filled);
        spent.floor_at = millis;
        if spent.floor_used + 1000 <= floor {
            spent.floor_used += 1000;
            return true;
        }

        let recent = |at: u64| second.saturating_sub(at) < SLOTS as u64;
        let withdrawn: u64 = spent.slots.iter().filter(|(at, _)| recent(*at)).map(|(_, n)| n).sum();
        if self.deposited(second) < (withdrawn + 1) * 100 {
            return false;
        }
        let slot = &mut spent.slots[slot_of(second)];
        *slot = if slot.0 == second { (second, slot.1 + 1) } else { (second, 1) };
        true
    }

    // Hundredths of a retry in the window.
    fn deposited(&self, second: u64) -> u64 {
        let sum = |word: u64| {
            let age = (second & 0xffff_ffff).wrapping_sub(word >> 32);
            if age < SLOTS as u64 { word & 0xffff_ffff } else { 0 }
        };
        self.deposits.iter().map(|slot| sum(slot.load(Ordering::Relaxed))).sum()
    }
}

#[allow(clippy::cast_possible_truncation)]
const fn slot_of(second: u64) -> usize {
    (second % SLOTS as u64) as usize
}
