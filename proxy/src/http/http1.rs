//! HTTP/1 without hyper, for what most requests are. `plain` serves clients' requests that are beyond dispute and hands every other
//! one over to hyper; `upstream` sends requests of any kind. Both run within the task of the client's connection: a request
//! wakes nobody but itself. `head` reads heads, `write` writes them, `chunks` and `transfer` are bodies.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub(crate) mod chunks;
pub(crate) mod head;
pub(crate) mod output;
pub(crate) mod plain;
pub(crate) mod upload;
pub(crate) mod upstream;
pub(crate) mod write;

/// A head may have this size, either way.
pub(crate) const MAX_HEAD: usize = 64 * 1024;

/// How long the rest of a request is read that was answered before it came.
pub(crate) const LINGER: Duration = Duration::from_secs(5);

/// What came is not HTTP/1.1 (RFC 9112).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A head, or its framing.
    #[error("malformed head")]
    Head,
    /// Larger than allowed.
    #[error("the head is too large")]
    TooLarge,
    /// A chunk, or what follows it.
    #[error("malformed chunk")]
    Chunk,
}

/// Any connection.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Whatever is read goes through one buffer for each thread, so that a connection that waits holds none. Four TLS records.
const SCRATCH: usize = 64 * 1024;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// Reads once, and has `take` make of it what is to be kept; nothing read is the end.
pub(crate) fn poll_read<IO, T>(
    io: &mut IO,
    cx: &mut Context<'_>,
    limit: usize,
    take: impl FnOnce(&[u8]) -> T,
) -> Poll<io::Result<T>>
where
    IO: AsyncRead + Unpin + ?Sized,
{
    BUFFER.with_borrow_mut(|buffer| {
        let limit = limit.min(buffer.len());
        let mut into = ReadBuf::new(&mut buffer[..limit]);
        ready!(Pin::new(io).poll_read(cx, &mut into))?;
        Poll::Ready(Ok(take(into.filled())))
    })
}
