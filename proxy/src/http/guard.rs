//! Stands between an HTTP/1 client's socket and hyper. It bounds the time that a request's head may take once it has
//! begun (hyper's own limit also runs while a connection is idle, which would close kept-alive connections), it notices
//! what hyper hides of a head's framing, it keeps the end of a client's side from hyper, which would take the client for gone,
//! and it puts the reason into the bare responses that hyper gives to what it cannot parse. It changes nothing else.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};
use weft_api::Reason;

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
    both_lengths: AtomicBool,
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
        self.0.both_lengths.swap(false, Ordering::Relaxed)
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
    lines: Lines,
    timer: Option<Pin<Box<Sleep>>>,
    ended: Option<Box<Ended>>,
    // What is still to be written in place of hyper's words, and how many of those it stands for.
    instead: Option<(Vec<u8>, usize)>,
}

impl<IO> Guard<IO> {
    pub(crate) const fn new(io: IO, phase: Phase) -> Self {
        Self { io, phase, lines: Lines::new(), timer: None, ended: None, instead: None }
    }
}

impl<IO> Guard<IO> {
    fn look_at(&mut self, read: &[u8]) {
        if self.phase.is(IDLE) {
            self.phase.0.at.store(HEAD, Ordering::Relaxed);
            self.lines = Lines::new();
            // Of an earlier head.
            self.timer = None;
        }
        if self.phase.is(HEAD) && self.lines.take(read) {
            self.phase.0.both_lengths.store(true, Ordering::Relaxed);
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

/// Looks for a head that gives its body two lengths, the classic way to smuggle a request (RFC 9112 section 11.2): hyper
/// goes by the chunks, as it should, and hides the other. Only line beginnings, up to the first empty line.
#[derive(Debug)]
struct Lines {
    // Beginning of the line that the last bytes ended in.
    carried: [u8; LONGEST],
    length: usize,
    chunked: bool,
    sized: bool,
    begun: bool,
    ended: bool,
}

const CHUNKED: &[u8] = b"transfer-encoding:";
const SIZED: &[u8] = b"content-length:";
const LONGEST: usize = CHUNKED.len();

impl Lines {
    const fn new() -> Self {
        Self { carried: [0; LONGEST], length: 0, chunked: false, sized: false, begun: false, ended: false }
    }

    /// True as soon as both were seen.
    fn take(&mut self, mut bytes: &[u8]) -> bool {
        while !self.ended && !bytes.is_empty() {
            let Some(end) = memchr::memchr(b'\n', bytes) else {
                self.carry(bytes);
                break;
            };
            let (line, rest) = bytes.split_at(end + 1);
            if self.length == 0 {
                self.judge(line);
            } else {
                self.carry(line);
                let (carried, length) = (self.carried, std::mem::take(&mut self.length));
                self.judge(&carried[..length]);
            }
            bytes = rest;
        }
        self.chunked && self.sized
    }

    fn carry(&mut self, bytes: &[u8]) {
        let n = bytes.len().min(LONGEST - self.length);
        self.carried[self.length..self.length + n].copy_from_slice(&bytes[..n]);
        self.length += n;
    }

    fn judge(&mut self, line: &[u8]) {
        let names = |name: &[u8]| line.get(..name.len()).is_some_and(|l| l.eq_ignore_ascii_case(name));
        match line.first() {
            Some(b't' | b'T') => self.chunked |= names(CHUNKED),
            Some(b'c' | b'C') => self.sized |= names(SIZED),
            // RFC 9112 section 2.2: empty lines before the request line are none of the head's.
            Some(b'\r' | b'\n') => self.ended = self.begun,
            _ => {}
        }
        self.begun |= !matches!(line.first(), None | Some(b'\r' | b'\n'));
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

/// Whether a head that comes in pieces of this size gives its body two lengths.
#[cfg(test)]
pub(crate) fn gives_two_lengths(head: &[u8], piece: usize) -> bool {
    let mut lines = Lines::new();
    head.chunks(piece.max(1)).fold(false, |_, bytes| lines.take(bytes))
}

#[cfg(test)]
mod tests {
    use super::gives_two_lengths as both;
    use proptest::prelude::*;

    #[test]
    fn two_lengths_are_seen_however_the_bytes_come() {
        let smuggling =
            b"POST / HTTP/1.1\r\nContent-Length: 3\r\nhost: a\r\nTRANSFER-encoding: chunked\r\n\r\n";
        let reversed = b"POST / HTTP/1.1\ntransfer-encoding:chunked\ncontent-length:3\n\n";
        let late = [b"\r\n\n".as_slice(), smuggling].concat();
        for cut in 1..100 {
            assert!(both(smuggling, cut) && both(reversed, cut) && both(&late, cut), "pieces of {cut}");
        }
    }

    #[test]
    fn one_length_and_what_a_body_holds_are_fine() {
        let upload = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n10\r\ncontent-length: 3\r\n";
        let plain = b"POST / HTTP/1.1\r\ncontent-length: 3\r\nx-transfer-encoding: a\r\ntransfer-encodings: b\r\n\r\n";
        for cut in 1..100 {
            assert!(!both(upload, cut) && !both(plain, cut), "pieces of {cut}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 1usize..50) {
            let _ = both(&bytes, cut);
        }
    }
}
