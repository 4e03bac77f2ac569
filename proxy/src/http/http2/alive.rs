//! Asks an upstream for a sign of life while requests are under way and nothing is heard of it. It says that there was none,
//! and ends nothing.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use crate::through::write_through;

/// A peer that was silent for all of one of these is asked.
const LOOK: Duration = Duration::from_secs(10);
/// For its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// See the module. A connection without a request costs no timer.
pub(super) struct Alive {
    pings: PingPong,
    // Requests under way.
    busy: Rc<Cell<u32>>,
    heard: Rc<Cell<bool>>,
    timer: Option<Pin<Box<Sleep>>>,
    asked: bool,
}

impl Alive {
    pub(super) const fn new(pings: PingPong, busy: Rc<Cell<u32>>, heard: Rc<Cell<bool>>) -> Self {
        Self { pings, busy, heard, timer: None, asked: false }
    }

    /// Ready when there was no sign of life. To be asked whenever something happens on the connection.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.timer.is_none() && self.busy.get() == 0 {
                return Poll::Pending;
            }
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(LOOK)));
            if self.asked && self.pings.poll_pong(cx).is_ready() {
                self.asked = false;
                timer.as_mut().reset(Instant::now() + LOOK);
            }
            ready!(timer.as_mut().poll(cx));
            if self.asked {
                return Poll::Ready(());
            }
            if self.busy.get() == 0 {
                self.timer = None;
            } else if self.heard.replace(false) {
                timer.as_mut().reset(Instant::now() + LOOK);
            } else {
                // Fails only when one is under way.
                self.asked = self.pings.send_ping(Ping::opaque()).is_ok();
                timer.as_mut().reset(Instant::now() + PATIENCE);
            }
        }
    }
}

/// A connection that notes when something was read.
pub(super) struct Heard<IO> {
    io: IO,
    heard: Rc<Cell<bool>>,
}

impl<IO> Heard<IO> {
    pub(super) const fn new(io: IO, heard: Rc<Cell<bool>>) -> Self {
        Self { io, heard }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Heard<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        self.heard.set(true);
        Poll::Ready(read)
    }
}

write_through!(Heard<IO>, io, IO);

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::time::timeout;

    /// How long until a connection with so many requests is given up, if that is within ten minutes.
    async fn given_up(busy: u32, answers: bool) -> Option<u64> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let heard = Rc::new(Cell::new(false));
        let (_sender, mut connection) =
            h2::client::handshake(Heard::new(near, Rc::clone(&heard))).await.unwrap();
        let mut alive = Alive::new(connection.ping_pong().unwrap(), Rc::new(Cell::new(busy)), heard);
        let begun = Instant::now();
        let waiting = poll_fn(|cx| {
            let dead = alive.poll(cx);
            let _ = Pin::new(&mut connection).poll(cx);
            dead
        });
        let peer = async {
            if answers {
                let mut peer = h2::server::handshake(far).await.unwrap();
                while peer.accept().await.is_some() {}
            } else {
                std::future::pending::<()>().await;
                drop(far);
            }
        };
        let both = async {
            tokio::select! {
                () = waiting => begun.elapsed().as_secs(),
                () = peer => unreachable!("the peer stays"),
            }
        };
        timeout(Duration::from_secs(600), both).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_is_silent_is_asked_and_given_up_without_an_answer() {
        assert_eq!(given_up(1, false).await, Some((LOOK + PATIENCE).as_secs()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_answers_is_waited_for() {
        assert_eq!(given_up(1, true).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_asked_without_a_request() {
        assert_eq!(given_up(0, false).await, None);
    }
}
