//! A client's connection as the one request on it and its body's reader share it. It reads what is asked of it, and notices that
//! the client has left; what is a request, `plain` decides.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};

use super::Io;
use crate::http::guard::{Ended, Ends};

/// What a client may send ahead of the answer to what it has asked.
const AHEAD: usize = 64 * 1024;

/// A connection, and what of it was read and not taken.
pub(crate) struct Client {
    pub(crate) io: Box<dyn Io>,
    pub(crate) unread: BytesMut,
    // Bytes of the request's body that were not taken.
    body: u64,
    // Somebody may still take them: the reader of this number.
    held: bool,
    turn: u32,
    ends: Option<Ends>,
    ended: Option<Box<Ended>>,
    // Of the connection's task, for when the body is not held any more.
    waiting: Option<Waker>,
}

/// The body of a plain request.
#[derive(Debug)]
pub struct Upload {
    shared: Rc<Shared>,
    // A reader that has outlived its request gets nothing of the next one's.
    turn: u32,
}

#[derive(Debug)]
pub(crate) struct Shared(RefCell<Client>);

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("body", &self.body).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn new(io: Box<dyn Io>, ends: Option<Ends>) -> Rc<Self> {
        let unread = BytesMut::new();
        let client = Client { io, unread, body: 0, held: false, turn: 0, ends, ended: None, waiting: None };
        Rc::new(Self(RefCell::new(client)))
    }

    /// A request with a body of this size has begun.
    pub(crate) fn begin(self: &Rc<Self>, length: u64) -> Upload {
        let mut client = self.0.borrow_mut();
        (client.body, client.held, client.turn) = (length, true, client.turn.wrapping_add(1));
        Upload { shared: Rc::clone(self), turn: client.turn }
    }

    /// With the connection. It must not be used inside.
    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut Client) -> T) -> T {
        f(&mut self.0.borrow_mut())
    }

    /// Ready when there is nobody any more to answer.
    pub(crate) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.with(|client| client.poll_gone(cx))
    }

    /// Whether all of the request's body was read.
    pub(crate) fn is_whole(&self) -> bool {
        self.0.borrow().body == 0
    }

    /// Reads what nobody else wants of the body; false: it does not come.
    pub(crate) fn poll_whole(&self, cx: &mut Context<'_>) -> Poll<bool> {
        self.with(|client| {
            while client.body > 0 {
                if client.held {
                    client.waiting = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                if ready!(client.poll_body(cx)).is_err() {
                    return Poll::Ready(false);
                }
            }
            Poll::Ready(true)
        })
    }
}

impl Client {
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let (Some(ended), Some(ends)) = (&mut self.ended, self.ends) {
                return ended.poll(ends, self.body == 0, cx);
            }
            // Whoever reads the body notices it.
            if self.body > 0 || self.unread.len() >= AHEAD {
                return Poll::Pending;
            }
            let unread = &mut self.unread;
            let read = ready!(super::poll_read(&mut *self.io, cx, AHEAD, |read| {
                unread.extend_from_slice(read);
                read.len()
            }));
            match read {
                Ok(0) if self.ends.is_some() => self.ended = Some(Box::new(Ended::now())),
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let left = usize::try_from(self.body).unwrap_or(usize::MAX);
        let data = if !self.unread.is_empty() {
            let n = left.min(self.unread.len());
            let data = self.unread.split_to(n).freeze();
            if self.unread.is_empty() {
                self.unread = BytesMut::new();
            }
            data
        } else if self.ended.is_some() {
            Bytes::new()
        } else {
            ready!(super::poll_read(&mut *self.io, cx, left, Bytes::copy_from_slice))?
        };
        if !data.is_empty() {
            self.body -= data.len() as u64;
            return Poll::Ready(Ok(data));
        }
        if let Some(ends) = self.ends {
            ready!(self.ended.get_or_insert_with(|| Box::new(Ended::now())).poll(ends, false, cx));
        }
        Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()))
    }
}

impl Upload {
    /// Bytes that are still to be taken.
    pub(crate) fn left(&self) -> u64 {
        let client = self.shared.0.borrow();
        if client.turn == self.turn { client.body } else { 0 }
    }

    /// The next ones.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let mut client = self.shared.0.borrow_mut();
        if client.body == 0 || client.turn != self.turn {
            return Poll::Ready(None);
        }
        let read = ready!(client.poll_body(cx));
        if client.body == 0
            && let Some(waiting) = client.waiting.take()
        {
            waiting.wake();
        }
        Poll::Ready(Some(read))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let mut client = self.shared.0.borrow_mut();
        if client.turn != self.turn {
            return;
        }
        client.held = false;
        if let Some(waiting) = client.waiting.take() {
            waiting.wake();
        }
    }
}
