//! Sends a body on a stream: one piece of it is taken when the stream has room for it, and waits here until then. A body that
//! breaks off resets the stream, for the reason that it gives. It keeps nothing of what was sent.

use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderValue};
use hyper::body::Body;

use crate::error::find;

/// See the module. Ready when there is nothing more to do, whatever has become of it.
pub(super) struct Pipe<B> {
    body: B,
    to: SendStream<Bytes>,
    // Taken, and not sent for want of room; whether it is the last of it.
    waiting: Option<(Bytes, bool)>,
    // The stream would wake whoever waits here.
    listening: bool,
    begun: bool,
}

/// The stream is over, or its connection.
struct Over;

impl From<h2::Error> for Over {
    fn from(_: h2::Error) -> Self {
        Self
    }
}

impl<B> Pipe<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + 'static,
{
    pub(super) const fn new(body: B, to: SendStream<Bytes>) -> Self {
        Self { body, to, waiting: None, listening: true, begun: false }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Over>> {
        loop {
            if let Some((data, last)) = self.waiting.take() {
                if !self.has_room(cx)? {
                    self.waiting = Some((data, last));
                    return Poll::Pending;
                }
                self.to.send_data(data, last)?;
                if last {
                    return Poll::Ready(Ok(()));
                }
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        let last = self.body.is_end_stream();
                        // The first piece goes with the head, in the same write: a stream has no room before its head is
                        // written. h2 holds it as it would be held here, until the peer's window lets it go.
                        let first = !std::mem::replace(&mut self.begun, true);
                        if first || data.is_empty() {
                            self.to.send_data(data, last)?;
                            if last {
                                return Poll::Ready(Ok(()));
                            }
                            continue;
                        }
                        self.listen_no_more()?;
                        // A byte: what is in hand is asked for when it is sent, and a stream that has nothing to send keeps
                        // no part of the connection's window from the others.
                        self.to.reserve_capacity(1);
                        self.waiting = Some((data, last));
                    }
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            self.to.reserve_capacity(0);
                            self.to.send_trailers(trailers)?;
                            return Poll::Ready(Ok(()));
                        }
                    }
                },
                Some(Err(e)) => {
                    self.to.send_reset(reason(&e));
                    return Poll::Ready(Err(Over));
                }
                None => {
                    self.to.send_data(Bytes::new(), true)?;
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    /// h2 tells whoever waits for room of the room that was just asked for, which would be this very task, in vain.
    fn listen_no_more(&mut self) -> Result<(), Over> {
        if self.listening {
            self.listening = false;
            if self.to.poll_reset(&mut Context::from_waker(Waker::noop())).is_ready() {
                return Err(Over);
            }
        }
        Ok(())
    }

    fn has_room(&mut self, cx: &mut Context<'_>) -> Result<bool, Over> {
        while self.to.capacity() == 0 {
            match self.to.poll_capacity(cx) {
                Poll::Ready(Some(changed)) => {
                    changed?;
                }
                Poll::Ready(None) => return Err(Over),
                Poll::Pending => return Ok(false),
            }
        }
        Ok(true)
    }
}

impl<B> Future for Pipe<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + 'static,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.poll_send(cx) {
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => {
                self.listening = true;
                // The peer may not want it any more.
                self.to.poll_reset(cx).map(|_| ())
            }
        }
    }
}

/// Why a stream is reset: as the one was that its body comes from.
fn reason(error: &(dyn std::error::Error + 'static)) -> Reason {
    find::<h2::Error>(error).and_then(h2::Error::reason).unwrap_or(Reason::INTERNAL_ERROR)
}

/// States the length of a body that is known and was not stated.
pub(super) fn state_length(headers: &mut HeaderMap, length: u64) {
    if !headers.contains_key(CONTENT_LENGTH) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
}
