//! What a worker does when there is no room: too many connections, no more files, or little memory. New work is refused
//! with `overloaded` and counted, never queued where nobody looks, and the process goes on. Clients of HTTP are told so,
//! within bounds. What is under way is not touched.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use weft_api::Reason;

use crate::detect::{self, First};
use crate::error::Error;
use crate::http::reply;
use crate::memory;
use crate::record::Direction;
use crate::worker::Worker;

/// How long a client that is to be refused has to say what it speaks, and to read the answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Refusals under way at the same time; beyond, connections are reset.
const REFUSALS: usize = 64;
/// Connections that are taken to be closed in a row, when there are no files left.
const CLOSED_AT_ONCE: usize = 64;
/// It is said in the log once within this time, whatever the number.
const SAY_AGAIN: Duration = Duration::from_secs(1);
/// How often memory is looked at: one read of /proc.
const LOOK_AT_MEMORY: Duration = Duration::from_millis(250);

/// Why there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Want {
    /// `maxConnections` of the proxy is reached.
    #[error("connections")]
    Connections,
    /// The limit of open files is reached.
    #[error("files")]
    Files,
    /// The process is near its limit of memory.
    #[error("memory")]
    Memory,
}

/// The state of one worker.
pub struct Shed {
    memory_short: Cell<bool>,
    refusing: Rc<Cell<usize>>,
    // Given up to be able to accept, and so to close, a connection when there are no files left.
    reserve: RefCell<Option<File>>,
    said: Cell<Option<Instant>>,
}

impl Default for Shed {
    fn default() -> Self {
        Self {
            memory_short: Cell::new(false),
            refusing: Rc::default(),
            reserve: RefCell::new(spare()),
            said: Cell::new(None),
        }
    }
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

impl Shed {
    /// Whether a new request may begin.
    pub(crate) fn admit(&self) -> Result<(), Error> {
        if self.memory_short.get() { Err(Error::own(Reason::Overloaded, Want::Memory)) } else { Ok(()) }
    }

    /// Whether a new connection may, as far as memory goes.
    pub(crate) const fn memory_is_short(&self) -> bool {
        self.memory_short.get()
    }

    fn is_time_to_say(&self) -> bool {
        let now = Instant::now();
        let due = self.said.get().is_none_or(|last| now.duration_since(last) >= SAY_AGAIN);
        if due {
            self.said.set(Some(now));
        }
        due
    }
}

/// Whether a failure of the system is for want of files or of the kernel's memory, and so the proxy's own.
#[must_use]
pub fn is_out_of_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

impl Worker {
    /// Refuses a connection that was accepted.
    pub(crate) fn refuse(self: &Rc<Self>, stream: TcpStream, direction: Direction, want: Want) {
        self.count(direction, want);
        if self.shed.refusing.get() >= REFUSALS {
            return reset(stream);
        }
        let place = Place::take(&self.shed.refusing);
        self.spawn(async move {
            tell(stream).await;
            drop(place);
        });
    }

    /// No connection can be accepted for want of files: closes idle ones to upstreams, and takes the waiting ones only
    /// to close them, so that their clients do not wait for nothing.
    pub(crate) fn out_of_files(&self, listener: &TcpListener, direction: Direction) {
        self.pool.shed();
        for _ in 0..CLOSED_AT_ONCE {
            drop(self.shed.reserve.borrow_mut().take());
            let waiting = listener.accept().now_or_never();
            let Some(Ok((stream, _))) = waiting else { break };
            reset(stream);
            self.count(direction, Want::Files);
        }
        let mut reserve = self.shed.reserve.borrow_mut();
        if reserve.is_none() {
            *reserve = spare();
        }
    }

    /// A connection could not be opened for want of files: those that are idle make room for the next.
    pub(crate) fn make_room_after(&self, error: &Error) {
        if error.reason() == Reason::Overloaded {
            self.pool.shed();
        }
    }

    /// Looks at memory for as long as the worker runs.
    pub(crate) async fn look_at_memory(&self) {
        let Some(limit) = self.proxy.memory_limit else { return };
        let mut tick = tokio::time::interval(LOOK_AT_MEMORY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let Some(resident) = memory::resident() else { continue };
            let was = self.shed.memory_short.get();
            let short = memory::is_short(limit, resident, was);
            if short {
                // What is freed stays with the allocator otherwise, and the process as large as it was.
                self.pool.shed();
                memory::give_back();
            }
            if short != was {
                self.shed.memory_short.set(short);
                self.proxy.metrics.memory_short(short);
                tracing::warn!(limit, resident, short, "memory is short, or not any more");
            }
        }
    }

    fn count(&self, direction: Direction, want: Want) {
        self.proxy.metrics.refusal(direction, Reason::Overloaded);
        if self.shed.is_time_to_say() {
            let direction = direction.as_str();
            tracing::warn!(direction, reason = Reason::Overloaded.as_str(), detail = %want, "connections refused");
        }
    }
}

struct Place(Rc<Cell<usize>>);

impl Place {
    fn take(of: &Rc<Cell<usize>>) -> Self {
        of.set(of.get() + 1);
        Self(Rc::clone(of))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

fn reset(stream: TcpStream) {
    // Its port is free at once, and the client knows. Where that fails, the client has gone already.
    let _ = stream.set_zero_linger();
}

async fn tell(mut stream: TcpStream) {
    let mut head = BytesMut::new();
    let first = timeout(PATIENCE, detect::first(&mut stream, &mut head)).await;
    let answer = match first {
        Ok(Ok(First::Http1)) => reply::raw(Reason::Overloaded),
        Ok(Ok(First::Http2)) => reply::raw_http2(Reason::Overloaded),
        // There is nothing that all others would understand.
        _ => return reset(stream),
    };
    let told = async {
        stream.write_all(&answer).await?;
        stream.shutdown().await?;
        // Closed with unread bytes, the answer might be lost (RFC 9112 section 9.6).
        let mut rest = [0; 4096];
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = timeout(PATIENCE, told).await;
}
