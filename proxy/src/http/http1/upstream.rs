//! A connection to an upstream, for one exchange after the other: writes a request, reads its response, both at once and in
//! whatever task asks for it. Whether it goes back to the pool, and what a failure means, is decided elsewhere.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Method, Response, StatusCode, Uri};
use hyper::body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::chunks::{Chunks, Step};
use super::head::{self, Answered, Framing, Read};
use super::output::{Output, Taken, Unwritten};
use super::{MAX_HEAD, Malformed, write};
use crate::connect::Counted;
use crate::forward::Abort;
use crate::http::body::{BodyError, Outgoing};
use crate::http::incoming::{Broken, Incoming};
use crate::lost::Socket;

/// From this size on, what is left of a body is read to where it stays.
const LARGE: u64 = 16 * 1024;
/// So much of it at once: as [`crate::buffers::BUFFER`], for the same reason.
const PIECE: usize = crate::buffers::BUFFER;

/// See the module. Clones are the same connection.
#[derive(Clone)]
pub(crate) struct Connection(Rc<RefCell<Inner>>);

/// The body of one response.
#[derive(Debug)]
pub struct Reply {
    connection: Connection,
    // A reader that has outlived its exchange gets nothing of the next one's.
    turn: u32,
}

struct Inner {
    io: Counted,
    unread: BytesMut,
    output: Output,
    // Of the request, as far as it was not taken.
    body: Option<Outgoing>,
    sent: bool,
    reading: Reading,
    keep: bool,
    turn: u32,
}

enum Reading {
    Nothing,
    Sized(u64),
    Chunked(Chunks),
    Close,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    /// By the upstream, before the end of the head.
    #[error("the connection was closed before the response")]
    Closed,
    /// The connection broke.
    #[error("the connection broke before the response")]
    Io(#[from] io::Error),
    /// The response cannot be read.
    #[error("the response is not HTTP/1.1")]
    Malformed(#[from] Malformed),
    /// The request broke off.
    #[error("the request's body broke off")]
    Body(#[from] BodyError),
    /// The request ended before its time.
    #[error("the request's body is shorter than its head says")]
    Short,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

impl Connection {
    pub(crate) fn new(io: Counted) -> Self {
        Self(Rc::new(RefCell::new(Inner {
            io,
            unread: BytesMut::new(),
            output: Output::none(),
            body: None,
            sent: true,
            reading: Reading::Nothing,
            keep: true,
            turn: 0,
        })))
    }

    /// Sends a request; the response's head. Another exchange must not be under way.
    pub(crate) async fn send(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: Outgoing,
    ) -> Result<Response<Incoming>, Failed> {
        let turn = self.0.borrow_mut().begin(method, uri, headers, body);
        let (head, ()) = poll_fn(|cx| self.0.borrow_mut().poll_response(cx, method)).await?.into_parts();
        let reply = Reply { connection: self.clone(), turn };
        Ok(Response::from_parts(head, Incoming::Reply(reply)))
    }

    /// Whether the last exchange has left it as it was.
    pub(crate) fn is_reusable(&self) -> bool {
        let inner = self.0.borrow();
        inner.keep && inner.sent && inner.unread.is_empty() && matches!(inner.reading, Reading::Nothing)
    }

    /// Whether the upstream has said nothing while it was idle, neither goodbye nor anything that nobody asked for: as far as
    /// that was noticed already, without a system call.
    pub(crate) fn is_quiet(&self) -> bool {
        let mut byte = [0];
        let mut byte = ReadBuf::new(&mut byte);
        let mut cx = Context::from_waker(Waker::noop());
        Pin::new(&mut self.0.borrow_mut().io).poll_read(&mut cx, &mut byte).is_pending()
    }

    /// Its socket, while it lives.
    pub(crate) fn socket(&self) -> RawFd {
        self.0.borrow().io.socket()
    }

    pub(crate) fn watched(&self) -> Option<Socket> {
        self.0.borrow().io.watched()
    }
}

impl Inner {
    fn begin(&mut self, method: &Method, uri: &Uri, headers: &HeaderMap, body: Outgoing) -> u32 {
        let exact = if body.is_end_stream() { Some(0) } else { body.size_hint().exact() };
        let mut text = BytesMut::new();
        let length = write::request(&mut text, method, uri, headers, exact);
        let trailers = if length == write::Length::Chunked { write::listed(headers) } else { Vec::new() };
        let body = (!body.is_end_stream()).then_some(body);
        self.output = Output::new(text, body.is_some().then_some(length), trailers);
        self.body = body;
        (self.sent, self.keep, self.reading) = (false, false, Reading::Nothing);
        self.turn = self.turn.wrapping_add(1);
        self.turn
    }

    /// Writes what there is of the request.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        while !self.sent {
            let taken = match &mut self.body {
                Some(body) => self.output.take(body, cx).map_err(|unwritten| match unwritten {
                    Unwritten::Body(e) => Failed::Body(e),
                    Unwritten::Short => Failed::Short,
                })?,
                None => Taken::All,
            };
            if taken == Taken::All {
                self.body = None;
            }
            ready!(self.output.poll_write(&mut self.io, cx))?;
            match taken {
                Taken::All => {
                    self.sent = true;
                    self.output = Output::none();
                }
                Taken::Some => {}
                Taken::Nothing => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_response(&mut self, cx: &mut Context<'_>, method: &Method) -> Poll<Result<Response<()>, Failed>> {
        let failed = match self.poll_send(cx) {
            Poll::Ready(Err(e)) => Some(e),
            _ => None,
        };
        match (self.poll_head(cx, method), failed) {
            // Some answer before they have read it all, and close.
            (Poll::Ready(Ok(answered)), None | Some(Failed::Io(_))) => {
                let Answered { response, framing, keep } = answered;
                self.keep = keep;
                self.reading = match framing {
                    Framing::Sized(0) => Reading::Nothing,
                    Framing::Sized(size) => Reading::Sized(size),
                    Framing::Chunked => Reading::Chunked(Chunks::new()),
                    Framing::Close => Reading::Close,
                };
                self.over();
                Poll::Ready(Ok(response))
            }
            (_, Some(failed)) => Poll::Ready(Err(failed)),
            (head, None) => head.map_ok(|answered| answered.response),
        }
    }

    fn poll_head(&mut self, cx: &mut Context<'_>, method: &Method) -> Poll<Result<Answered, Failed>> {
        if !self.unread.is_empty()
            && let Some(answered) = self.parse(method)?
        {
            return Poll::Ready(Ok(answered));
        }
        loop {
            let unread = &mut self.unread;
            let read = ready!(super::poll_read(&mut self.io, cx, usize::MAX, |read| {
                if read.is_empty() {
                    return Err(Failed::Closed);
                }
                // Most often it is all there, and the head need not be kept.
                let found = if unread.is_empty() { head::response(read, method)? } else { Read::More };
                let length = if let Read::Whole(_, length) = found { length } else { 0 };
                if unread.is_empty() {
                    // Of just that size: as a body it needs nothing more (see `poll_piece`).
                    *unread = BytesMut::from(&read[length..]);
                } else {
                    unread.extend_from_slice(&read[length..]);
                }
                Ok(found)
            }))??;
            let answered = match read {
                Read::Whole(answered, _) if !is_interim(&answered) => Some(answered),
                _ => self.parse(method)?,
            };
            if let Some(answered) = answered {
                return Poll::Ready(Ok(answered));
            }
        }
    }

    /// A head in what was read.
    fn parse(&mut self, method: &Method) -> Result<Option<Answered>, Failed> {
        while !self.unread.is_empty() {
            match head::response(&self.unread, method)? {
                Read::Whole(answered, length) => {
                    self.unread.advance(length);
                    if !is_interim(&answered) {
                        return Ok(Some(answered));
                    }
                }
                _ if self.unread.len() > MAX_HEAD => return Err(Malformed::TooLarge.into()),
                _ => break,
            }
        }
        Ok(None)
    }

    /// Sees whether the exchange is.
    fn over(&mut self) {
        if matches!(self.reading, Reading::Nothing) {
            // What goes on behind an answer is worth nothing.
            self.keep &= self.sent && self.unread.is_empty();
            // Idle connections hold no buffer.
            if self.unread.is_empty() {
                self.unread = BytesMut::new();
            }
        }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if !self.sent
            && let Poll::Ready(Err(failed)) = self.poll_send(cx)
        {
            // The response may still come whole; another request cannot follow half of one.
            self.keep = false;
            if let Failed::Body(e) = failed {
                return Poll::Ready(Some(Err(Broken::Request(Box::new(e)))));
            }
        }
        let next = ready!(self.poll_data(cx)).transpose();
        if matches!(next, Some(Err(_))) {
            (self.reading, self.keep) = (Reading::Nothing, false);
        }
        self.over();
        Poll::Ready(next)
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, Broken>> {
        loop {
            match &mut self.reading {
                Reading::Nothing => return Poll::Ready(Ok(None)),
                Reading::Sized(left) => {
                    let data = ready!(poll_piece(&mut self.io, &mut self.unread, *left, cx))?;
                    if data.is_empty() {
                        return Poll::Ready(Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()));
                    }
                    *left -= data.len() as u64;
                    if *left == 0 {
                        self.reading = Reading::Nothing;
                    }
                    return Poll::Ready(Ok(Some(Frame::data(data))));
                }
                Reading::Close => {
                    let data = ready!(poll_piece(&mut self.io, &mut self.unread, u64::MAX, cx))?;
                    if data.is_empty() {
                        self.reading = Reading::Nothing;
                        return Poll::Ready(Ok(None));
                    }
                    return Poll::Ready(Ok(Some(Frame::data(data))));
                }
                Reading::Chunked(chunks) => match chunks.step(&mut self.unread)? {
                    Step::Data(data) => return Poll::Ready(Ok(Some(Frame::data(data)))),
                    Step::End(trailers) => {
                        self.reading = Reading::Nothing;
                        return Poll::Ready(Ok(trailers.map(Frame::trailers)));
                    }
                    Step::More => {
                        let unread = &mut self.unread;
                        let read = ready!(super::poll_read(&mut self.io, cx, usize::MAX, |read| {
                            unread.extend_from_slice(read);
                            read.len()
                        }))?;
                        if read == 0 {
                            return Poll::Ready(Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()));
                        }
                    }
                },
            }
        }
    }
}

/// The next bytes of a body of which so many are left; none: the end.
fn poll_piece(
    io: &mut Counted,
    unread: &mut BytesMut,
    left: u64,
    cx: &mut Context<'_>,
) -> Poll<io::Result<Bytes>> {
    let most = usize::try_from(left).unwrap_or(usize::MAX);
    if unread.is_empty() {
        if left < LARGE {
            return super::poll_read(io, cx, most, Bytes::copy_from_slice);
        }
        unread.reserve(PIECE.min(most));
        ready!(poll_read_buf(Pin::new(io), cx, unread))?;
    }
    let n = most.min(unread.len());
    // A full buffer is given away; of another one the room is used again.
    let piece = if n == unread.capacity() { std::mem::take(unread) } else { unread.split_to(n) };
    Poll::Ready(Ok(piece.freeze()))
}

/// RFC 9110 section 15.2: of no consequence, but for the one that changes the protocol.
fn is_interim(answered: &Answered) -> bool {
    let status = answered.response.status();
    status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS
}

impl Reply {
    fn with<T>(&self, ended: T, f: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.connection.0.borrow_mut();
        if inner.turn == self.turn { f(&mut inner) } else { ended }
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        self.with(Poll::Ready(None), |inner| inner.poll_body(cx))
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.with(true, |inner| matches!(inner.reading, Reading::Nothing))
    }

    pub(crate) fn size(&self) -> SizeHint {
        self.with(SizeHint::with_exact(0), |inner| match inner.reading {
            Reading::Nothing => SizeHint::with_exact(0),
            Reading::Sized(left) => SizeHint::with_exact(left),
            Reading::Chunked(_) | Reading::Close => SizeHint::new(),
        })
    }

    /// The connection itself, after a response that has changed the protocol.
    pub(crate) fn upgraded(self) -> Upgraded {
        Upgraded(self.connection)
    }
}

/// A connection that is HTTP no more.
pub(crate) struct Upgraded(Connection);

impl Abort for Upgraded {
    fn abort(&mut self) {
        self.0.0.borrow_mut().io.abort();
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.0.borrow_mut();
        if inner.unread.is_empty() {
            return Pin::new(&mut inner.io).poll_read(cx, buf);
        }
        let n = inner.unread.len().min(buf.remaining());
        buf.put_slice(&inner.unread.split_to(n));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.0.borrow_mut().io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.0.borrow_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.0.borrow_mut().io).poll_shutdown(cx)
    }
}
