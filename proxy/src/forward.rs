//! Copies opaque bytes both ways until both have ended, each side's end passed on by itself (half-close). A buffer is
//! held only while there are bytes in it, so that idle connections cost none. It looks at nothing that it copies.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Size of a buffer. Four TLS records.
const BUFFER: usize = 64 * 1024;
/// How many unused buffers a thread keeps.
const SPARE: usize = 16;

thread_local! {
    static BUFFERS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// What went through, and how it ended.
#[derive(Debug)]
pub struct Copied {
    /// From client to upstream.
    pub sent: u64,
    /// From upstream to client.
    pub received: u64,
    /// `None`: both sides closed in order.
    pub broken: Option<Broken>,
}

/// Which side broke off.
#[derive(Debug)]
pub enum Broken {
    /// The client.
    Client(io::Error),
    /// The upstream.
    Upstream(io::Error),
}

/// A stream that can be broken off so that its other end notices that something is missing.
pub trait Abort {
    /// Dropping it after this is no orderly end.
    fn abort(&mut self) {}
}

impl Abort for tokio::net::TcpStream {
    fn abort(&mut self) {
        // A reset instead of an end (socket(7), SO_LINGER). Where that fails, the connection is gone already.
        let _ = self.set_zero_linger();
    }
}

// TLS has an end of its own (close_notify), and without it the other side takes the stream for truncated.
impl<IO> Abort for tokio_rustls::server::TlsStream<IO> {}
impl<IO> Abort for hyper_util::rt::TokioIo<IO> {}

impl<IO: Abort> Abort for Box<IO> {
    fn abort(&mut self) {
        (**self).abort();
    }
}

/// Byte counts that can be read while the copying goes on, or after it was dropped.
#[derive(Debug, Default)]
pub struct Counts {
    sent: Cell<u64>,
    received: Cell<u64>,
}

impl Counts {
    /// From client to upstream.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.get()
    }

    /// From upstream to client.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.get()
    }
}

/// Copies until both sides have ended or one has failed.
pub async fn copy<C, U>(client: &mut C, upstream: &mut U, counts: &Counts) -> Copied
where
    C: AsyncRead + AsyncWrite + Abort + Unpin,
    U: AsyncRead + AsyncWrite + Abort + Unpin,
{
    let mut up = Pipe::new(&counts.sent);
    let mut down = Pipe::new(&counts.received);
    let broken = poll_fn(|cx| {
        let one = up.poll(cx, client, upstream);
        if let Poll::Ready(Err(e)) = one {
            return Poll::Ready(Some(e.of_client()));
        }
        let other = down.poll(cx, upstream, client);
        if let Poll::Ready(Err(e)) = other {
            return Poll::Ready(Some(e.of_upstream()));
        }
        if one.is_ready() && other.is_ready() { Poll::Ready(None) } else { Poll::Pending }
    })
    .await;
    if broken.is_some() {
        client.abort();
        upstream.abort();
    }
    Copied { sent: counts.sent(), received: counts.received(), broken }
}

/// One way of a connection.
struct Pipe<'a> {
    state: State,
    // Bytes `from..to` wait to be written.
    buffer: Option<Box<[u8]>>,
    from: usize,
    to: usize,
    unflushed: bool,
    count: &'a Cell<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Copying,
    Closing,
    Done,
}

enum Failed {
    Reading(io::Error),
    Writing(io::Error),
}

impl Failed {
    fn of_client(self) -> Broken {
        match self {
            Self::Reading(e) => Broken::Client(e),
            Self::Writing(e) => Broken::Upstream(e),
        }
    }

    fn of_upstream(self) -> Broken {
        match self {
            Self::Reading(e) => Broken::Upstream(e),
            Self::Writing(e) => Broken::Client(e),
        }
    }
}

impl<'a> Pipe<'a> {
    fn new(count: &'a Cell<u64>) -> Self {
        Self { state: State::Copying, buffer: None, from: 0, to: 0, unflushed: false, count }
    }

    fn poll<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<Result<(), Failed>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            match self.state {
                State::Done => return Poll::Ready(Ok(())),
                State::Closing => {
                    let closed = ready!(Pin::new(&mut *writer).poll_shutdown(cx));
                    self.state = State::Done;
                    // A peer that has closed both ways already needs no more word of it.
                    match closed {
                        Err(e) if e.kind() != io::ErrorKind::NotConnected => {
                            return Poll::Ready(Err(Failed::Writing(e)));
                        }
                        _ => continue,
                    }
                }
                State::Copying => {}
            }
            while self.from < self.to {
                let waiting =
                    self.buffer.as_deref().and_then(|b| b.get(self.from..self.to)).unwrap_or_default();
                let n = ready!(Pin::new(&mut *writer).poll_write(cx, waiting)).map_err(Failed::Writing)?;
                if n == 0 {
                    return Poll::Ready(Err(Failed::Writing(io::ErrorKind::WriteZero.into())));
                }
                self.from += n;
                self.unflushed = true;
                self.count.set(self.count.get() + n as u64);
            }
            let buffer = self.buffer.get_or_insert_with(take_buffer);
            let mut space = ReadBuf::new(buffer);
            match Pin::new(&mut *reader).poll_read(cx, &mut space) {
                Poll::Ready(Ok(())) => {
                    (self.from, self.to) = (0, space.filled().len());
                    if self.to == 0 {
                        self.give_back();
                        self.state = State::Closing;
                    }
                }
                Poll::Ready(Err(e)) => return Poll::Ready(Err(Failed::Reading(e))),
                Poll::Pending => {
                    self.give_back();
                    if self.unflushed {
                        ready!(Pin::new(&mut *writer).poll_flush(cx)).map_err(Failed::Writing)?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    fn give_back(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            BUFFERS.with_borrow_mut(|spare| {
                if spare.len() < SPARE {
                    spare.push(buffer);
                }
            });
        }
    }
}

impl Drop for Pipe<'_> {
    fn drop(&mut self) {
        self.give_back();
    }
}

fn take_buffer() -> Box<[u8]> {
    BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    impl Abort for DuplexStream {}

    #[tokio::test]
    async fn both_ways_are_copied_and_each_end_is_passed_on_by_itself() {
        let (mut client, mut near) = duplex(16);
        let (mut server, mut far) = duplex(16);
        let counts = Counts::default();
        let ends = async {
            client.write_all(b"a question longer than the pipe").await.unwrap();
            client.shutdown().await.unwrap();
            let mut asked = String::new();
            server.read_to_string(&mut asked).await.unwrap();
            // The client's side is closed, the server's is not.
            server.write_all(b"an answer").await.unwrap();
            server.shutdown().await.unwrap();
            let mut answered = String::new();
            client.read_to_string(&mut answered).await.unwrap();
            (asked, answered)
        };
        let (copied, (asked, answered)) = tokio::join!(copy(&mut near, &mut far, &counts), ends);
        assert_eq!((asked.as_str(), answered.as_str()), ("a question longer than the pipe", "an answer"));
        assert_eq!((copied.sent, copied.received), (31, 9));
        assert!(copied.broken.is_none());
    }

    #[tokio::test]
    async fn a_megabyte_each_way_arrives_whole() {
        let (client, mut near) = duplex(1000);
        let (server, mut far) = duplex(3000);
        let blob: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
        let exchange = |io: DuplexStream, blob: Vec<u8>| async move {
            let (mut read, mut write) = tokio::io::split(io);
            let writing = async {
                write.write_all(&blob).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let mut got = Vec::new();
            let (_, read) = tokio::join!(writing, read.read_to_end(&mut got));
            read.unwrap();
            assert_eq!(got, blob);
        };
        let counts = Counts::default();
        let (copied, (), ()) = tokio::join!(
            copy(&mut near, &mut far, &counts),
            exchange(client, blob.clone()),
            exchange(server, blob.clone())
        );
        assert_eq!((copied.sent, copied.received), (1_000_000, 1_000_000));
    }

    #[tokio::test]
    async fn an_idle_connection_holds_no_buffer() {
        let (mut client, mut near) = duplex(64);
        let (_server, mut far) = duplex(64);
        let counts = Counts::default();
        client.write_all(b"x").await.unwrap();
        let copying = copy(&mut near, &mut far, &counts);
        tokio::pin!(copying);
        assert!(futures::poll!(&mut copying).is_pending());
        assert!(BUFFERS.with_borrow(|spare| !spare.is_empty()));
        assert_eq!(counts.sent(), 1);
    }
}
