//! Serves a client's plain requests, one after the other, until there is one that is not plain or the proxy drains: then the
//! connection, with all that was read of it and not served, is hyper's. Bounded like hyper and the guard around it: a head's size
//! and time, what is read ahead, one request at a time. It handles nothing.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use http::header::CONNECTION;
use http::{HeaderValue, Method, Response};
use hyper::body::Body;
use tokio::io::AsyncWriteExt;
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use weft_api::Reason;

use super::head::{self, Plain, Read};
use super::output::{Output, Taken};
use super::upload::{Client, Shared};
use super::write::{self, Length};
use super::{Io, LINGER, MAX_HEAD};
use crate::error::Error;
use crate::http::client::Wire;
use crate::http::exchange::Served;
use crate::http::guard::HEAD_TIMEOUT;
use crate::http::incoming::Incoming;
use crate::http::reply;
use crate::http::server::{Handler, Leave};
use crate::prefixed::Prefixed;

/// What is left to hyper.
pub(crate) type Rest = Prefixed<Box<dyn Io>>;

/// Why no plain request follows.
enum Stop {
    /// What follows is not plain, or it is time to leave.
    Other,
    /// The client is done.
    End,
    /// A head took too long.
    Late,
}

/// Serves as long as requests are plain. `None`: the connection has ended.
pub(crate) async fn serve<H: Handler>(
    io: Box<dyn Io>,
    handler: &Rc<H>,
    leave: Option<Leave<'_>>,
) -> Result<Option<Rest>, Error> {
    let shared = Shared::new(io, handler.phase().ends());
    let leaving = leave.map(|leave| leave.drain.cancelled());
    let mut leaving = pin!(leaving);
    loop {
        // What is large is handled by plain functions: this future has the size of all that it holds over any `await`, and each
        // connection has one.
        let begun = next(&shared, leaving.as_mut()).await.map(|plain| begin(&shared, handler, plain));
        let (mut handling, answering) = match begun {
            Ok(begun) => begun,
            Err(Stop::Other) => return Ok(Some(shared.with(Client::rest))),
            Err(Stop::End) => {
                close(&shared).await;
                return Ok(None);
            }
            Err(Stop::Late) => return Err(late(shared.with(Client::rest)).await),
        };
        let drain = leave.map(|leave| leave.drain);
        let answered = poll_fn(|cx| match handling.as_mut().poll(cx) {
            Poll::Ready(response) => Poll::Ready(Some(answering.write(response, drain))),
            Poll::Pending => shared.poll_gone(cx).map(|()| None),
        });
        let Some(answer) = answered.await else { return Ok(None) };
        drop(handling);
        if !respond(&shared, answer).await {
            return Ok(None);
        }
    }
}

/// What of a request has to be known to answer it.
struct Answering {
    method: Method,
    last: bool,
    trailers: bool,
}

/// Boxed: a connection that waits for a request shall not hold the room for it.
fn begin<H: Handler>(
    shared: &Rc<Shared>,
    handler: &Rc<H>,
    plain: Plain,
) -> (Pin<Box<impl Future<Output = Response<Served>> + use<H>>>, Answering) {
    let Plain { request, length, last, trailers } = plain;
    let answering = Answering { method: request.method().clone(), last, trailers };
    let upload = shared.begin(length);
    let request = request.map(|()| Incoming::Upload(upload));
    (Box::pin(Rc::clone(handler).handle(request, Wire::Http1)), answering)
}

/// Waits for the next request.
async fn next(
    shared: &Shared,
    mut leaving: Pin<&mut Option<WaitForCancellationFuture<'_>>>,
) -> Result<Plain, Stop> {
    let mut timer: Option<Pin<Box<Sleep>>> = None;
    poll_fn(|cx| {
        if let Poll::Ready(next) = shared.with(|client| client.poll_next(cx)) {
            return Poll::Ready(next);
        }
        // A request that is there is served all the same: the last one.
        if let Some(leaving) = leaving.as_mut().as_pin_mut()
            && leaving.poll(cx).is_ready()
        {
            return Poll::Ready(Err(Stop::Other));
        }
        if shared.with(|client| client.unread.is_empty()) {
            return Poll::Pending;
        }
        // It has begun.
        let timer = timer.get_or_insert_with(|| Box::pin(sleep(HEAD_TIMEOUT)));
        timer.as_mut().poll(cx).map(|()| Err(Stop::Late))
    })
    .await
}

impl Client {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Plain, Stop>> {
        if !self.unread.is_empty() {
            let read = head::request(&self.unread);
            if let Some(next) = self.judge(read) {
                return Poll::Ready(next);
            }
        }
        loop {
            let unread = &mut self.unread;
            let read = ready!(super::poll_read(&mut *self.io, cx, usize::MAX, |read| {
                if read.is_empty() {
                    return None;
                }
                if !unread.is_empty() {
                    unread.extend_from_slice(read);
                    return Some(head::request(unread));
                }
                // Most often it is all there, and nothing is to be kept.
                let found = head::request(read);
                let rest = if let Read::Whole(_, length) = found { &read[length..] } else { read };
                unread.extend_from_slice(rest);
                Some(match found {
                    Read::Whole(plain, _) => Read::Whole(plain, 0),
                    other => other,
                })
            }));
            match read {
                Ok(Some(read)) => {
                    if let Some(next) = self.judge(read) {
                        return Poll::Ready(next);
                    }
                }
                // Hyper knows what to say to half a head.
                Ok(None) if !self.unread.is_empty() => return Poll::Ready(Err(Stop::Other)),
                Ok(None) | Err(_) => return Poll::Ready(Err(Stop::End)),
            }
        }
    }

    fn judge(&mut self, read: Read<Plain>) -> Option<Result<Plain, Stop>> {
        match read {
            Read::Whole(plain, length) => {
                self.unread.advance(length);
                if self.unread.is_empty() {
                    self.unread = BytesMut::new();
                }
                Some(Ok(plain))
            }
            Read::Other => Some(Err(Stop::Other)),
            Read::More => (self.unread.len() > MAX_HEAD).then_some(Err(Stop::Other)),
        }
    }

    /// The connection, for whoever goes on with it.
    fn rest(&mut self) -> Rest {
        let io = std::mem::replace(&mut self.io, Box::new(tokio::io::empty()));
        Prefixed::new(std::mem::take(&mut self.unread).freeze(), io)
    }
}

/// A response on its way to the client.
struct Answer {
    output: Output,
    body: Served,
    last: bool,
}

impl Answering {
    /// The response as it goes out; a proxy that drains by now says in it that it is the connection's last.
    fn write(&self, response: Response<Served>, drain: Option<&CancellationToken>) -> Answer {
        let (mut head, body) = response.into_parts();
        let last = self.last
            || drain.is_some_and(CancellationToken::is_cancelled)
            || head.headers.get(CONNECTION).is_some_and(|value| value == "close");
        if last {
            head.headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let exact = if body.is_end_stream() { Some(0) } else { body.size_hint().exact() };
        let mut text = BytesMut::new();
        let length = write::response(&mut text, &head, &write::Answering { method: &self.method, exact });
        let chunked = length == Some(Length::Chunked);
        let trailers = if self.trailers && chunked { write::listed(&head.headers) } else { Vec::new() };
        Answer { output: Output::new(text, length, trailers), body, last }
    }
}

/// Writes a response. Whether the connection can be used again.
async fn respond(shared: &Shared, answer: Answer) -> bool {
    let Answer { mut output, mut body, last } = answer;
    let mut broken = false;
    let written = poll_fn(|cx| {
        loop {
            let taken = output.take(&mut body, cx).unwrap_or_else(|_| {
                // What came before it is still passed on.
                broken = true;
                Taken::All
            });
            match shared.with(|client| output.poll_write(&mut *client.io, cx)) {
                Poll::Ready(Ok(())) => match taken {
                    Taken::All => return Poll::Ready(true),
                    Taken::Some => {}
                    Taken::Nothing => return shared.poll_gone(cx).map(|()| false),
                },
                Poll::Ready(Err(_)) => return Poll::Ready(false),
                Poll::Pending => return shared.poll_gone(cx).map(|()| false),
            }
        }
    });
    if !written.await || broken {
        return false;
    }
    // The exchange is over.
    drop(body);
    let whole = finished(shared).await;
    if last || !whole {
        close(shared).await;
    }
    !last && whole
}

/// Whether the request came to its end. What nobody wants of it is read for a while: a connection that is closed on it is reset, and
/// the client loses the answer (RFC 9112 section 9.6).
async fn finished(shared: &Shared) -> bool {
    shared.is_whole() || timeout(LINGER, poll_fn(|cx| shared.poll_whole(cx))).await == Ok(true)
}

async fn close(shared: &Shared) {
    // The client may well be gone.
    let _ = poll_fn(|cx| shared.with(|client| Pin::new(&mut *client.io).poll_shutdown(cx))).await;
}

async fn late(mut rest: Rest) -> Error {
    // The client may well be gone.
    let _ = rest.write_all(&reply::raw(Reason::ClientTimeout)).await;
    let _ = rest.shutdown().await;
    Error::new(Reason::ClientTimeout, io::Error::from(io::ErrorKind::TimedOut))
}
