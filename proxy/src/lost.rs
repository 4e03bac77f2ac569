//! Notices peers that are gone without a word: the node lost its power, packets are dropped. A request that waits for its
//! response asks the kernel, now and then, whether the peer's kernel acknowledges anything. That tells a dead peer from a
//! slow application, which nobody can tell by waiting. It decides nothing about the request, and closes nothing.
//!
//! - A request that is answered within [`LOOK`] × 2 costs a place in a list, no timer and no system call.
//! - The sign: bytes are unacknowledged, and nothing was heard for [`SILENCE`] and a whole retransmission timeout. Or, when all
//!   was acknowledged before: keep-alive probes, begun after [`ASK_AGE`] looks, are not answered.
//! - A sign that is there at two looks in a row is believed; one lost packet gives at most one.
//!
//! A peer that takes no more bytes (its window is zero) acknowledges all the same, and is not lost.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::os::fd::{BorrowedFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;
use tokio::sync::Notify;

/// How often is looked, while any request waits.
const LOOK: Duration = Duration::from_millis(100);
/// Looks until a request is old enough to be asked about: 200 to 300 ms.
const OLD: u64 = 3;
/// Looks until the kernel is told to ask the peer for a sign of life.
const ASK_AGE: u64 = 4;
/// Nothing was heard for at least this long.
const SILENCE: Duration = Duration::from_millis(250);
const SIGNS: u8 = 2;
/// Between two keep-alive probes, and until the first: the least that the kernel takes.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// A connection's socket, for as long as it is open. Whoever holds the stream says when it closes; both live on the thread
/// of one worker.
#[derive(Clone, Debug)]
pub(crate) struct Socket(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    // -1 once closed.
    fd: AtomicI32,
    // Requests for which the peer is asked for signs of life.
    asking: AtomicU32,
}

impl Socket {
    pub(crate) fn new(fd: RawFd) -> Self {
        Self(Arc::new(Inner { fd: AtomicI32::new(fd), asking: AtomicU32::new(0) }))
    }

    /// To be called before the stream is dropped.
    pub(crate) fn closed(&self) {
        self.0.fd.store(-1, Ordering::Relaxed);
    }

    fn with<T>(&self, look: impl FnOnce(BorrowedFd<'_>) -> Option<T>) -> Option<T> {
        let fd = self.0.fd.load(Ordering::Relaxed);
        if fd < 0 {
            return None;
        }
        // SAFETY: the stream that owns it says `closed` before it closes, on this very thread.
        look(unsafe { BorrowedFd::borrow_raw(fd) })
    }

    fn reading(&self) -> Option<Reading> {
        self.with(Reading::of)
    }

    /// Has the kernel ask the peer for signs of life, while anybody wants it.
    fn ask(&self) {
        if self.0.asking.fetch_add(1, Ordering::Relaxed) == 0 {
            let probes = socket2::TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE);
            self.with(|fd| socket2::SockRef::from(&fd).set_tcp_keepalive(&probes).ok());
        }
    }

    fn ask_no_more(&self) {
        if self.0.asking.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.with(|fd| socket2::SockRef::from(&fd).set_keepalive(false).ok());
        }
    }
}

/// What the kernel says of a connection (`struct tcp_info`), as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    /// Segments that were sent and not acknowledged.
    unacked: u32,
    /// Probes (keep-alive, zero window) without an answer.
    probes: u8,
    /// Since anything was acknowledged.
    last_ack: Duration,
    /// The retransmission timeout, without what was added for retransmissions already made.
    rto: Duration,
}

impl Reading {
    fn of(fd: BorrowedFd<'_>) -> Option<Self> {
        use std::os::fd::AsRawFd;
        let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
        let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).ok()?;
        // SAFETY: the kernel writes at most `length` bytes there, and plain numbers of any value are valid.
        let info = unsafe {
            let done = libc::getsockopt(
                fd.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut length,
            );
            (done == 0).then(|| info.assume_init())?
        };
        let rto = u64::from(info.tcpi_rto) >> info.tcpi_backoff.min(31);
        Some(Self {
            unacked: info.tcpi_unacked,
            probes: info.tcpi_probes,
            last_ack: Duration::from_millis(info.tcpi_last_ack_recv.into()),
            rto: Duration::from_micros(rto),
        })
    }

    /// The pure part.
    fn is_sign(self) -> bool {
        self.probes > 0 || self.unacked > 0 && self.last_ack >= SILENCE.max(self.rto)
    }
}

/// The requests of one worker that wait for a response.
#[derive(Default)]
pub(crate) struct Lost {
    waiting: RefCell<Slab<Waiting>>,
    looks: Cell<u64>,
    looking: Cell<bool>,
    begun: Notify,
}

struct Waiting {
    socket: Socket,
    since: u64,
    signs: u8,
    asked: bool,
    waker: Option<Waker>,
}

impl Lost {
    /// Waits for a response. `None`: the peer is gone; the future may still be waited for.
    pub(crate) async fn watch<F: Future>(
        &self,
        socket: &Socket,
        mut response: Pin<&mut F>,
    ) -> Option<F::Output> {
        let place = self.enter(socket);
        poll_fn(|cx| match response.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if place.is_lost(cx) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    fn enter(&self, socket: &Socket) -> Place<'_> {
        if !self.looking.replace(true) {
            self.begun.notify_one();
        }
        let waiting =
            Waiting { socket: socket.clone(), since: self.looks.get(), signs: 0, asked: false, waker: None };
        Place { lost: self, key: self.waiting.borrow_mut().insert(waiting) }
    }

    /// Looks for ever, while anybody waits.
    pub(crate) async fn run(&self) {
        loop {
            self.begun.notified().await;
            while !self.waiting.borrow().is_empty() {
                tokio::time::sleep(LOOK).await;
                self.look();
            }
            self.looking.set(false);
        }
    }

    fn look(&self) {
        let now = self.looks.get() + 1;
        self.looks.set(now);
        for (_, one) in self.waiting.borrow_mut().iter_mut() {
            let age = now - one.since;
            if age < OLD || one.signs >= SIGNS {
                continue;
            }
            let sign = one.socket.reading().is_some_and(Reading::is_sign);
            one.signs = if sign { one.signs + 1 } else { 0 };
            if one.signs >= SIGNS
                && let Some(waker) = one.waker.take()
            {
                waker.wake();
            }
            if age >= ASK_AGE && !one.asked {
                one.asked = true;
                one.socket.ask();
            }
        }
    }
}

struct Place<'a> {
    lost: &'a Lost,
    key: usize,
}

impl Place<'_> {
    fn is_lost(&self, cx: &Context<'_>) -> bool {
        let mut waiting = self.lost.waiting.borrow_mut();
        let Some(own) = waiting.get_mut(self.key) else { return false };
        if own.signs < SIGNS && !own.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            own.waker = Some(cx.waker().clone());
        }
        own.signs >= SIGNS
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let own = self.lost.waiting.borrow_mut().try_remove(self.key);
        if let Some(own) = own.filter(|own| own.asked) {
            own.socket.ask_no_more();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::pin::pin;
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_peer_that_acknowledges_nothing_is_told_from_one_that_is_slow() {
        let reading = |unacked, probes, last_ack, rto| Reading {
            unacked,
            probes,
            last_ack: ms(last_ack),
            rto: ms(rto),
        };
        for (name, reading, sign) in [
            ("all acknowledged: a slow application", reading(0, 0, 60_000, 200), false),
            ("idle before, just written", reading(1, 0, 10, 200), false),
            ("not acknowledged for long", reading(1, 0, 260, 204), true),
            ("far away: not a retransmission timeout yet", reading(1, 0, 300, 450), false),
            ("far away, and longer than that", reading(1, 0, 451, 450), true),
            ("a probe without an answer", reading(0, 1, 10_000, 200), true),
        ] {
            assert_eq!(reading.is_sign(), sign, "{name}");
        }
    }

    #[tokio::test]
    async fn a_slow_peer_is_waited_for_and_the_kernel_asks_for_it_only_meanwhile() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (_peer, _) = listener.accept().await.unwrap();
        stream.write_all(b"x").await.unwrap();
        let socket = Socket::new(stream.as_raw_fd());
        let lost = Lost::default();
        let asked = || socket2::SockRef::from(&stream).keepalive().unwrap();
        let answer = async {
            tokio::time::sleep(ms(700)).await;
            assert!(asked());
            7
        };
        let mut answer = pin!(answer);
        tokio::select! {
            got = lost.watch(&socket, answer.as_mut()) => assert_eq!(got, Some(7)),
            () = lost.run() => unreachable!("it looks for ever"),
        }
        assert!(!asked());
        assert!(lost.waiting.borrow().is_empty());
        let reading = socket.reading().unwrap();
        assert_eq!((reading.unacked, reading.is_sign()), (0, false));
        socket.closed();
        assert_eq!(socket.reading(), None);
    }
}
