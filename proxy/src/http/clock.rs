//! How long a request may take: the moment by which it must have ended, and how long both sides may be silent. A request
//! without bounds has no clock and pays for none. It tells the time; it ends nothing.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};
use weft_api::Reason;

/// When a request must have ended, and what is said if it has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deadline {
    pub(crate) at: Instant,
    pub(crate) reason: Reason,
}

impl Deadline {
    /// The earlier of two.
    pub(crate) fn first(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (one, other) {
            (Some(one), Some(other)) => Some(if other.at < one.at { other } else { one }),
            (one, other) => one.or(other),
        }
    }
}

/// When a byte went by last, either way. The request's body and the response tell it.
#[derive(Clone, Debug)]
pub struct Activity(Rc<Cell<Instant>>);

impl Activity {
    fn new() -> Self {
        Self(Rc::new(Cell::new(Instant::now())))
    }

    /// Just now.
    pub fn touch(&self) {
        self.0.set(Instant::now());
    }
}

#[derive(Debug)]
struct Idle {
    after: Duration,
    activity: Activity,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Clock {
    deadline: Option<Deadline>,
    idle: Option<Idle>,
    // Never later than the next bound, often earlier: it is set again when it rings, not at every byte.
    sleep: Pin<Box<Sleep>>,
}

impl Clock {
    /// `None` without a bound.
    pub(crate) fn new(deadline: Option<Deadline>, idle: Option<Duration>) -> Option<Box<Self>> {
        let idle = idle.map(|after| Idle { after, activity: Activity::new() });
        let (at, _) = next(deadline, idle.as_ref())?;
        Some(Box::new(Self { deadline, idle, sleep: Box::pin(sleep_until(at)) }))
    }

    /// Where bytes are to be told, if anybody wants to know.
    pub(crate) fn activity(&self) -> Option<&Activity> {
        self.idle.as_ref().map(|idle| &idle.activity)
    }

    /// A byte went by.
    pub(crate) fn touch(&self) {
        if let Some(activity) = self.activity() {
            activity.touch();
        }
    }

    /// For what has turned out to be a stream without an end of its own: only silence ends it.
    pub(crate) fn of_stream(mut self: Box<Self>) -> Option<Box<Self>> {
        self.deadline = None;
        let (at, _) = next(None, self.idle.as_ref())?;
        self.sleep.as_mut().reset(at);
        Some(self)
    }

    /// Ready when time is up, and why. May be asked again after that: bytes that went by meanwhile count.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        while self.sleep.as_mut().poll(cx).is_ready() {
            let Some((at, reason)) = next(self.deadline, self.idle.as_ref()) else { return Poll::Pending };
            if at <= Instant::now() {
                return Poll::Ready(reason);
            }
            self.sleep.as_mut().reset(at);
        }
        Poll::Pending
    }
}

fn next(deadline: Option<Deadline>, idle: Option<&Idle>) -> Option<(Instant, Reason)> {
    let silent =
        idle.map(|idle| Deadline { at: idle.activity.0.get() + idle.after, reason: Reason::IdleTimeout });
    Deadline::first(deadline, silent).map(|first| (first.at, first.reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::time::sleep;

    fn in_ms(ms: u64, reason: Reason) -> Option<Deadline> {
        Some(Deadline { at: Instant::now() + Duration::from_millis(ms), reason })
    }

    async fn rings(clock: &mut Clock) -> (Reason, u128) {
        let began = Instant::now();
        let reason = poll_fn(|cx| clock.poll(cx)).await;
        (reason, began.elapsed().as_millis())
    }

    #[tokio::test(start_paused = true)]
    async fn without_bounds_there_is_no_clock() {
        assert!(Clock::new(None, None).is_none());
        let stream = Clock::new(in_ms(10, Reason::RequestTimeout), None).unwrap().of_stream();
        assert!(stream.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_earlier_of_two_deadlines_counts() {
        let (rule, call) = (in_ms(30, Reason::RequestTimeout), in_ms(20, Reason::GrpcDeadline));
        for first in [Deadline::first(rule, call), Deadline::first(call, rule)] {
            let mut clock = Clock::new(first, None).unwrap();
            assert_eq!(poll_fn(|cx| clock.poll(cx)).await, Reason::GrpcDeadline);
        }
        assert_eq!(Deadline::first(None, call), call);
        assert_eq!(Deadline::first(rule, None), rule);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_counted_from_the_last_byte_and_not_from_the_last_look() {
        let mut clock = Clock::new(None, Some(Duration::from_millis(100))).unwrap();
        let activity = clock.activity().unwrap().clone();
        let bytes = async {
            for _ in 0..5 {
                sleep(Duration::from_millis(70)).await;
                activity.touch();
            }
        };
        let (rang, ()) = tokio::join!(rings(&mut clock), bytes);
        assert_eq!(rang.0, Reason::IdleTimeout);
        assert!((450..=452).contains(&rang.1), "{rang:?}");
        // A byte after that gives it time again.
        clock.touch();
        assert!((100..=102).contains(&rings(&mut clock).await.1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_holds_whatever_goes_by_except_for_streams() {
        let mut clock =
            Clock::new(in_ms(150, Reason::RequestTimeout), Some(Duration::from_millis(100))).unwrap();
        sleep(Duration::from_millis(90)).await;
        clock.touch();
        assert_eq!(rings(&mut clock).await.0, Reason::RequestTimeout);
        let clock = Clock::new(in_ms(150, Reason::RequestTimeout), Some(Duration::from_millis(200))).unwrap();
        let mut clock = clock.of_stream().unwrap();
        assert_eq!(rings(&mut clock).await.0, Reason::IdleTimeout);
    }
}
