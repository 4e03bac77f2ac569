//! Stands between an HTTP/1 client's socket and hyper. It bounds the time that a request's head may take once it has
//! begun (hyper's own limit also runs while a connection is idle, which would close kept-alive connections), it notices
//! what hyper hides of a head's framing, it keeps the end of a client's side from hyper, which would take the client for gone,
//! and it puts the reason into the bare responses that hyper gives to what it cannot parse. It changes nothing else.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};
use weft_api::Reason;

use super::framing::Requests;
use super::reply;
use crate::sock_diag;

/// From a head's first byte to its end.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// A client that has ended its side is asked after so soon, and then so often.
const FIRST_LOOK: Duration = Duration::from_millis(50);
const NEXT_LOOK: Duration = Duration::from_millis(500);
/// What has not come of a body so long after its client's side has ended does not come.
const TRUNCATED: Duration = Duration::from_secs(10);

/// The ends of the connection of a client in the own network namespace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    /// The client's own address.
    pub(crate) client: SocketAddr,
    /// Where it connected to, as it sees it.
    pub(crate) called: SocketAddr,
    /// The same where nothing is redirected.
    pub(crate) accepted: SocketAddr,
}

impl Ends {
    /// Whether the client still has its socket. If nobody can say, it has not.
    fn held(&self) -> bool {
        [self.called, self.accepted].into_iter().any(|to| sock_diag::held(self.client, to).unwrap_or(false))
    }
}

/// Where a connection stands, told by the server to the guard, and what the guard has seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Phase(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    at: AtomicU8,
    /// Requests handled, and the one whose head gave its body two lengths; 0: none has.
    handled: AtomicU64,
    disputed: AtomicU64,
    whole: AtomicBool,
    ends: Option<Ends>,
}

const IDLE: u8 = 0;
const HEAD: u8 = 1;
const REQUEST: u8 = 2;
const UPGRADED: u8 = 3;

impl Phase {
    /// Of a client that may end its side and wait for its answer.
    pub(crate) fn of(ends: Ends) -> Self {
        Self(Arc::new(Shared { ends: Some(ends), ..Shared::default() }))
    }

    /// The ends of the client's connection, where they are known.
    pub(crate) fn ends(&self) -> Option<Ends> {
        self.0.ends
    }

    /// A request is being handled; `whole`: it has no body. True: its head gave its body two lengths.
    pub(crate) fn request(&self, whole: bool) -> bool {
        self.0.whole.store(whole, Ordering::Relaxed);
        self.0.at.store(REQUEST, Ordering::Relaxed);
        let number = self.0.handled.fetch_add(1, Ordering::Relaxed) + 1;
        self.0.disputed.load(Ordering::Relaxed) == number
    }

    /// Its body has come to its end.
    pub(crate) fn whole(&self) {
        self.0.whole.store(true, Ordering::Relaxed);
    }

    /// Its response has ended: the next head may come.
    pub(crate) fn idle(&self) {
        let _ = self.0.at.compare_exchange(REQUEST, IDLE, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// There are no heads any more.
    pub(crate) fn upgraded(&self) {
        self.0.at.store(UPGRADED, Ordering::Relaxed);
    }

    fn is(&self, phase: u8) -> bool {
        self.0.at.load(Ordering::Relaxed) == phase
    }
}

/// The client's side has ended within a request.
#[derive(Debug)]
pub(crate) struct Ended {
    since: Instant,
    look: Pin<Box<Sleep>>,
}

impl Ended {
    /// Just now.
    pub(crate) fn now() -> Self {
        Self { since: Instant::now(), look: Box::pin(sleep(FIRST_LOOK)) }
    }

    /// Ready when there is nobody any more to answer, or nothing: the rest of a body that is not `whole` does not come. RFC 9112
    /// section 9.6 has no word on it, TCP allows it (RFC 9293 section 3.6), and scripts do it.
    pub(crate) fn poll(&mut self, ends: Ends, whole: bool, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            std::task::ready!(self.look.as_mut().poll(cx));
            if !whole && self.since.elapsed() >= TRUNCATED || !ends.held() {
                return Poll::Ready(());
            }
            self.look.as_mut().reset(Instant::now() + NEXT_LOOK);
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Guard<IO> {
    io: IO,
    phase: Phase,
    requests: Requests,
    timer: Option<Pin<Box<Sleep>>>,
    ended: Option<Box<Ended>>,
    // What is still to be written in place of hyper's words, and how many of those it stands for.
    instead: Option<(Vec<u8>, usize)>,
}

impl<IO> Guard<IO> {
    pub(crate) fn new(io: IO, phase: Phase) -> Self {
        let requests = Requests::after(phase.0.handled.load(Ordering::Relaxed));
        Self { io, phase, requests, timer: None, ended: None, instead: None }
    }
}

impl<IO> Guard<IO> {
    fn look_at(&mut self, read: &[u8]) {
        if self.phase.is(IDLE) {
            self.phase.0.at.store(HEAD, Ordering::Relaxed);
            // Of an earlier head.
            self.timer = None;
            if self.requests.is_lost() {
                self.requests = Requests::after(self.phase.0.handled.load(Ordering::Relaxed));
            }
        }
        if !self.phase.is(UPGRADED)
            && let Some(disputed) = self.requests.take(read)
        {
            // The first one ends the connection.
            let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
            let _ = self.phase.0.disputed.compare_exchange(0, disputed, success, failure);
        }
    }
}

impl<IO> Guard<IO> {
    /// Lets hyper know of the end only then.
    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (Some(ended), Some(ends)) = (&mut self.ended, self.phase.0.ends) else {
            return Poll::Ready(Ok(()));
        };
        if self.phase.is(REQUEST) {
            std::task::ready!(ended.poll(ends, self.phase.0.whole.load(Ordering::Relaxed), cx));
        }
        Poll::Ready(Ok(()))
    }
}

/// What hyper says by itself (without a Date, which `server` switches off), and what it is about.
const BARE: [(&[u8], Reason); 3] = [
    (b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", Reason::BadRequest),
    (
        b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        Reason::HeadersTooLarge,
    ),
    (b"HTTP/1.1 414 URI Too Long\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", Reason::HeadersTooLarge),
];

impl<IO: AsyncRead + Unpin> AsyncRead for Guard<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ended.is_some() {
            return self.poll_ended(cx);
        }
        let before = buf.filled().len();
        match Pin::new(&mut self.io).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {
                let read = buf.filled().get(before..).unwrap_or_default();
                if !read.is_empty() {
                    self.look_at(read);
                } else if buf.remaining() > 0 && self.phase.is(REQUEST) && self.phase.0.ends.is_some() {
                    self.ended = Some(Box::new(Ended::now()));
                    return self.poll_ended(cx);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Pending if self.phase.is(HEAD) => {
                let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(HEAD_TIMEOUT)));
                match timer.as_mut().poll(cx) {
                    Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                    Poll::Pending => Poll::Pending,
                }
            }
            other => {
                if self.timer.is_some() {
                    self.timer = None;
                }
                other
            }
        }
    }
}

impl<IO: AsyncWrite + Unpin> Guard<IO> {
    /// Writes the better words instead of hyper's; says that hyper's were written once that is done.
    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        while let Some((words, stands_for)) = &mut self.instead {
            if words.is_empty() {
                let written = *stands_for;
                self.instead = None;
                return Poll::Ready(Ok(written));
            }
            match std::task::ready!(Pin::new(&mut self.io).poll_write(cx, words))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => drop(words.drain(..n)),
            }
        }
        Poll::Ready(Ok(0))
    }

    // Only between requests can hyper speak for itself.
    fn replaces(&mut self, bytes: &[u8]) -> bool {
        if self.instead.is_none()
            && self.phase.is(HEAD)
            && let Some((bare, reason)) = BARE.iter().find(|(bare, _)| *bare == bytes)
        {
            self.instead = Some((reply::raw(*reason), bare.len()));
        }
        self.instead.is_some()
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Guard<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.replaces(buf) {
            return self.poll_instead(cx);
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [only] = bufs
            && self.replaces(only)
        {
            return self.poll_instead(cx);
        }
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
