//! Sends a body on a stream. One piece of it is in hand while the stream has no room for it; a little may wait in h2 beside that.
//! A body that breaks off resets the stream, for the reason that it gives. It keeps nothing of what was sent.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, SendStream};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderValue};
use hyper::body::Body;

use crate::error::find;

/// So many bytes of a stream are given to h2 without asking for room: messages, which are written in the same turn of the
/// connection. h2 holds them when the peer's window is shut.
const UNASKED: usize = 4096;

/// Bytes on their way, counted for as long as h2 holds them.
pub(super) struct Piece {
    bytes: Bytes,
    len: usize,
    held: Rc<Cell<usize>>,
}

impl Piece {
    fn new(bytes: Bytes, held: &Rc<Cell<usize>>) -> Self {
        let len = bytes.len();
        held.set(held.get() + len);
        Self { bytes, len, held: Rc::clone(held) }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.held.set(self.held.get() - self.len);
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

/// See the module. Ready when there is nothing more to do, whatever has become of it.
pub(super) struct Pipe<B> {
    body: B,
    to: SendStream<Piece>,
    // Taken, and not sent yet.
    waiting: Option<Bytes>,
    // Bytes that h2 holds.
    held: Rc<Cell<usize>>,
    begun: bool,
    // Whom the stream would wake for a reset or for room.
    listens: Option<Waker>,
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
    pub(super) fn new(body: B, to: SendStream<Piece>) -> Self {
        Self { body, to, waiting: None, held: Rc::default(), begun: false, listens: None }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Over>> {
        loop {
            if let Some(data) = &self.waiting
                && !self.has_room(data.len(), cx)?
            {
                return Poll::Pending;
            }
            // What follows says whether this is the last piece: asking the body whether it is over would cost a lock, of each.
            let next = Pin::new(&mut self.body).poll_frame(cx);
            let last = matches!(next, Poll::Ready(None));
            if let Some(data) = self.waiting.take().or_else(|| last.then(Bytes::new)) {
                self.send(data, last)?;
            }
            match ready!(next) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.waiting = Some(data),
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
                None => return Poll::Ready(Ok(())),
            }
        }
    }

    fn send(&mut self, data: Bytes, last: bool) -> Result<(), Over> {
        self.begun = true;
        Ok(self.to.send_data(Piece::new(data, &self.held), last)?)
    }

    /// Whether so many bytes may be given to h2 now. If not, the task is woken when they may.
    fn has_room(&mut self, len: usize, cx: &mut Context<'_>) -> Result<bool, Over> {
        // The first piece goes with the head, in the same write: a stream has no room before its head is written. h2 holds it as
        // it would be held here, until the peer's window lets it go.
        if !self.begun || self.held.get() + len <= UNASKED {
            return Ok(true);
        }
        // h2 tells whoever listens of the room that is asked for here, which would be this very task, in vain.
        if self.listens.take().is_some()
            && self.to.poll_reset(&mut Context::from_waker(Waker::noop())).is_ready()
        {
            return Err(Over);
        }
        // A byte: what is in hand is asked for when it is sent, and a stream that has nothing to send keeps no part of the
        // connection's window from the others.
        self.to.reserve_capacity(1);
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
        let waited = self.waiting.is_some();
        let held = self.held.get();
        if self.poll_send(cx).is_ready() {
            return Poll::Ready(());
        }
        // The body has woken us, and what it had was taken: the stream has not, and still listens. A stream that is reset takes
        // nothing.
        let still = !waited
            && self.held.get() > held
            && self.listens.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        if still {
            return Poll::Pending;
        }
        // The peer may not want it any more.
        self.listens = Some(cx.waker().clone());
        self.to.poll_reset(cx).map(|_| ())
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::future::poll_fn;

    use h2::{RecvStream, client, server};
    use http::{Request, Response};
    use hyper::body::Frame;
    use tokio::io::duplex;
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
    use tokio::task::{JoinHandle, LocalSet, spawn_local, yield_now};

    const MESSAGE: usize = 128;

    /// Messages as they are given to it; how many bytes were taken.
    struct Messages(UnboundedReceiver<Bytes>, Rc<Cell<usize>>);

    impl Body for Messages {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            let next = ready!(self.0.poll_recv(cx));
            self.1.set(self.1.get() + next.as_ref().map_or(0, Bytes::len));
            Poll::Ready(next.map(|message| Ok(Frame::data(message))))
        }
    }

    /// A response of messages, to a client that grants each stream so much to begin with.
    struct Piped {
        messages: UnboundedSender<Bytes>,
        taken: Rc<Cell<usize>>,
        pipe: JoinHandle<()>,
        received: RecvStream,
        grant: UnboundedSender<u32>,
    }

    impl Piped {
        async fn to_a_window_of(window: u32) -> Self {
            let (near, far) = duplex(64 * 1024);
            let (messages, given) = unbounded_channel();
            let taken = Rc::<Cell<usize>>::default();
            let body = Messages(given, Rc::clone(&taken));
            let (tell, told) = tokio::sync::oneshot::channel();
            spawn_local(async move {
                let mut connection = server::Builder::new().handshake::<_, Piece>(far).await.unwrap();
                let (_, mut respond) = connection.accept().await.unwrap().unwrap();
                let to = respond.send_response(Response::new(()), false).unwrap();
                tell.send(spawn_local(Pipe::new(body, to))).unwrap();
                while connection.accept().await.is_some() {}
            });
            let (mut sender, mut connection) =
                client::Builder::new().initial_window_size(window).handshake::<_, Bytes>(near).await.unwrap();
            let (grant, mut granted) = unbounded_channel();
            spawn_local(poll_fn(move |cx| {
                while let Poll::Ready(Some(window)) = granted.poll_recv(cx) {
                    connection.set_initial_window_size(window).unwrap();
                }
                Pin::new(&mut connection).poll(cx)
            }));
            let (response, _) = sender.send_request(Request::new(()), true).unwrap();
            let received = response.await.unwrap().into_body();
            Self { messages, taken, pipe: told.await.unwrap(), received, grant }
        }

        fn give(&self, count: usize) {
            for _ in 0..count {
                self.messages.send(Bytes::from_static(&[7; MESSAGE])).unwrap();
            }
        }

        async fn receive(&mut self, bytes: usize) {
            let mut received = 0;
            while received < bytes {
                let data = self.received.data().await.unwrap().unwrap();
                received += data.len();
                self.received.flow_control().release_capacity(data.len()).unwrap();
            }
            assert_eq!(received, bytes);
        }
    }

    async fn settled() {
        for _ in 0..100 {
            yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_stream_whose_window_is_shut_holds_little_and_goes_on_when_it_opens() {
        let local = LocalSet::new();
        local
            .run_until(async {
                let mut piped = Piped::to_a_window_of(0).await;
                let all = 1000;
                piped.give(all);
                settled().await;
                // What is in h2, and the one in hand.
                assert_eq!(piped.taken.get(), UNASKED + MESSAGE);
                piped.grant.send(64 * 1024).unwrap();
                piped.receive(all * MESSAGE).await;
                assert_eq!(piped.taken.get(), all * MESSAGE);
                // And then message by message.
                for _ in 0..100 {
                    piped.give(1);
                    piped.receive(MESSAGE).await;
                }
                drop(piped.messages);
                assert!(piped.received.data().await.is_none_or(|end| end.unwrap().is_empty()));
                piped.pipe.await.unwrap();
            })
            .await;
    }

    #[tokio::test]
    async fn a_stream_that_is_reset_between_two_messages_is_let_go_at_once() {
        let local = LocalSet::new();
        local
            .run_until(async {
                let mut piped = Piped::to_a_window_of(64 * 1024).await;
                for _ in 0..3 {
                    piped.give(1);
                    piped.receive(MESSAGE).await;
                }
                settled().await;
                drop(piped.received);
                piped.pipe.await.unwrap();
                assert!(piped.messages.is_closed());
            })
            .await;
    }
}
