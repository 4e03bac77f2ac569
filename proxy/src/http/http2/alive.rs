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
