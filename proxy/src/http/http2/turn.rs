//! Lets one task drive a connection and its streams, each only when it wants to be: what one of them wants of the other during a
//! turn of the task is done in the same turn, without the scheduler. It drives nothing itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use futures::task::AtomicWaker;

/// Passes over both sides in one turn, beyond which other tasks have theirs.
pub(super) const PASSES: u32 = 4;

/// The task, and whether it has its turn.
#[derive(Debug, Default)]
struct Task {
    waker: AtomicWaker,
    under_way: AtomicBool,
}

/// One side: it is woken where it would wake the task.
pub(super) struct Side {
    wanted: Arc<Wanted>,
    waker: Waker,
}

#[derive(Debug)]
struct Wanted {
    wanted: AtomicBool,
    task: Arc<Task>,
}

impl Wake for Wanted {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    // Sequentially consistent with `Turn::end`, for those who wake from another thread: either it sees what is wanted, or the
    // turn is seen to be over here.
    fn wake_by_ref(self: &Arc<Self>) {
        self.wanted.store(true, Ordering::SeqCst);
        if !self.task.under_way.load(Ordering::SeqCst) {
            self.task.waker.wake();
        }
    }
}

impl Side {
    fn of(task: &Arc<Task>) -> Self {
        let wanted = Arc::new(Wanted { wanted: AtomicBool::new(true), task: Arc::clone(task) });
        Self { waker: Waker::from(Arc::clone(&wanted)), wanted }
    }

    /// Whether it is to be driven, which is then done.
    pub(super) fn takes(&self) -> bool {
        self.wanted.wanted.swap(false, Ordering::SeqCst)
    }

    /// To be driven with.
    pub(super) fn context(&self) -> Context<'_> {
        Context::from_waker(&self.waker)
    }

    /// It is to be driven.
    pub(super) fn want(&self) {
        self.wanted.wanted.store(true, Ordering::SeqCst);
    }

    fn is_wanted(&self) -> bool {
        self.wanted.wanted.load(Ordering::SeqCst)
    }
}

/// See the module.
pub(super) struct Turn {
    task: Arc<Task>,
    /// Of the connection.
    pub(super) connection: Side,
    /// Of all streams.
    pub(super) streams: Side,
}

impl Turn {
    pub(super) fn new() -> Self {
        let task = Arc::new(Task::default());
        Self { connection: Side::of(&task), streams: Side::of(&task), task }
    }

    pub(super) fn begin(&self, cx: &Context<'_>) {
        self.task.waker.register(cx.waker());
        self.task.under_way.store(true, Ordering::SeqCst);
    }

    /// Whether a side is to be driven.
    pub(super) fn goes_on(&self) -> bool {
        self.connection.is_wanted() || self.streams.is_wanted()
    }

    pub(super) fn end(&self, cx: &Context<'_>) {
        self.task.under_way.store(false, Ordering::SeqCst);
        if self.goes_on() {
            cx.waker().wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn within_a_turn_nobody_wakes_the_task_and_after_it_everybody_does() {
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let cx = Context::from_waker(&waker);
        let woken = || count.0.load(Ordering::Relaxed);
        let turn = Turn::new();
        turn.begin(&cx);
        assert!(turn.connection.takes() && turn.streams.takes());
        turn.streams.context().waker().wake_by_ref();
        assert!(turn.goes_on() && !turn.connection.takes() && turn.streams.takes());
        turn.end(&cx);
        assert_eq!(woken(), 0);
        turn.connection.context().waker().wake_by_ref();
        assert_eq!(woken(), 1);
        turn.begin(&cx);
        assert!(turn.connection.takes() && !turn.streams.takes());
        turn.end(&cx);
        assert_eq!(woken(), 1);
    }

    #[test]
    fn what_is_left_to_be_done_at_the_end_of_a_turn_is_for_the_next_one() {
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let cx = Context::from_waker(&waker);
        let turn = Turn::new();
        turn.begin(&cx);
        assert!(turn.connection.takes());
        turn.end(&cx);
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }
}
