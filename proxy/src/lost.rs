//! Notices peers that are gone without a word: the node lost its power, packets are dropped. A request that waits for its
//! response asks the kernel, now and then, whether the peer's kernel acknowledges anything. That tells a dead peer from a
//! slow application, which nobody can tell by waiting. It decides nothing about the request, and closes nothing.
//!
//! - A request that is answered within [`LOOK`] × 2 costs a place in a list, no timer and no system call.
//! - The sign: bytes are unacknowledged, and nothing was heard for [`SILENCE`] and a whole retransmission timeout.
//! - When all was acknowledged, something has to be sent first. A proxy of the mesh is *nudged*: whoever has the stream sends what
//!   changes nothing. Elsewhere, and after [`NUDGES`], keep-alive probes that are not answered are the sign, begun after
//!   [`ASK_AGE`] looks; the kernel sends none before a second.
//! - A sign that is there at two looks in a row is believed; one lost packet gives at most one.
//!
//! A peer that takes no more bytes (its window is zero) acknowledges all the same, and is not lost.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::os::fd::{BorrowedFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::task::AtomicWaker;
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
/// Looks between two nudges, and how many a request gets: then the kernel's probes alone look after it.
const NUDGE_EVERY: u64 = 5;
const NUDGES: u64 = 8;
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
    nudge: Option<Nudge>,
}

/// How whoever has the stream is asked to send something that changes nothing.
#[derive(Debug, Default)]
struct Nudge {
    wanted: AtomicBool,
    reader: AtomicWaker,
    // The look when it was asked last, from 1.
    at: AtomicU64,
}

impl Socket {
    /// `nudged`: whoever has the stream can send something that changes nothing, and looks here when it reads.
    pub(crate) fn new(fd: RawFd, nudged: bool) -> Self {
        let nudge = nudged.then(Nudge::default);
        Self(Arc::new(Inner { fd: AtomicI32::new(fd), asking: AtomicU32::new(0), nudge }))
    }

    /// Whether something is to be sent now.
    pub(crate) fn is_nudged(&self) -> bool {
        let wanted = |nudge: &Nudge| {
            nudge.wanted.load(Ordering::Relaxed) && nudge.wanted.swap(false, Ordering::Relaxed)
        };
        self.0.nudge.as_ref().is_some_and(wanted)
    }

    /// Who waits for bytes, and is to look again.
    pub(crate) fn reads(&self, reader: &Waker) {
        if let Some(nudge) = &self.0.nudge {
            nudge.reader.register(reader);
        }
    }

    /// Asks for something to be sent, if that was not just done.
    fn nudge(&self, look: u64) {
        let Some(nudge) = &self.0.nudge else { return };
        let last = nudge.at.load(Ordering::Relaxed);
        if last == 0 || look >= last + NUDGE_EVERY {
            nudge.at.store(look, Ordering::Relaxed);
            nudge.wanted.store(true, Ordering::Relaxed);
            nudge.reader.wake();
        }
    }

    /// Since something was sent for no other purpose.
    fn since_nudge(&self, look: u64) -> Duration {
        let at = self.0.nudge.as_ref().map_or(0, |nudge| nudge.at.load(Ordering::Relaxed));
        if at == 0 {
            Duration::MAX
        } else {
            LOOK * u32::try_from(look.saturating_sub(at)).unwrap_or(u32::MAX)
        }
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

    /// The pure part. What was sent just now cannot be acknowledged yet.
    fn is_sign(self, since_nudge: Duration) -> bool {
        self.probes > 0 || self.unacked > 0 && self.last_ack.min(since_nudge) >= SILENCE.max(self.rto)
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
            let reading = one.socket.reading();
            let since_nudge = one.socket.since_nudge(now);
            let sign = reading.is_some_and(|reading| reading.is_sign(since_nudge));
            one.signs = if sign { one.signs + 1 } else { 0 };
            // All that was sent is acknowledged, perhaps by a node that has died since.
            if (age - OLD) / NUDGE_EVERY < NUDGES && reading.is_some_and(|reading| reading.unacked == 0) {
                one.socket.nudge(now);
            }
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
            assert_eq!(reading.is_sign(Duration::MAX), sign, "{name}");
        }
        // A nudge to a peer that is far away: its acknowledgement is still under way.
        let nudged = reading(1, 0, 10_000, 450);
        assert!(!nudged.is_sign(ms(400)) && nudged.is_sign(ms(500)));
        assert!(!reading(1, 0, 10_000, 204).is_sign(ms(200)));
    }

    #[test]
    fn a_connection_is_nudged_every_half_second_and_only_where_that_can_be_done() {
        let (plain, tls) = (Socket::new(-1, false), Socket::new(-1, true));
        assert_eq!((plain.since_nudge(9), tls.since_nudge(9)), (Duration::MAX, Duration::MAX));
        let nudged = |socket: &Socket, look| {
            socket.nudge(look);
            socket.is_nudged()
        };
        assert!(!nudged(&plain, 3));
        let looks: Vec<_> = (3..16).filter(|look| nudged(&tls, *look)).collect();
        assert_eq!(looks, [3, 8, 13]);
        assert_eq!(tls.since_nudge(16), ms(300));
    }

    #[tokio::test]
    async fn a_slow_peer_is_waited_for_and_the_kernel_asks_for_it_only_meanwhile() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (_peer, _) = listener.accept().await.unwrap();
        stream.write_all(b"x").await.unwrap();
        let socket = Socket::new(stream.as_raw_fd(), false);
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
        assert_eq!((reading.unacked, reading.is_sign(Duration::MAX)), (0, false));
        socket.closed();
        assert_eq!(socket.reading(), None);
    }
}
