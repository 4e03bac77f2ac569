//! Copies opaque bytes both ways until both have ended, each side's end passed on by itself (half-close). A buffer is
//! held only while there are bytes in it, so that idle connections cost none. Between plain sockets, large amounts are moved
//! within the kernel ([`splice`]). It looks at nothing that it copies.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::buffers;

mod splice;

use splice::Tube;

/// A read of so much says that more is to come, which is better moved than copied. Chosen by reasoning: messages of 16 KiB and
/// bulk were measured, nothing between.
const MUCH: usize = 32 * 1024;
/// The most that a TLS record holds (RFC 8446 section 5.1).
const RECORD: usize = 16 * 1024;
/// And when so little has come at once, it is copied again.
const LITTLE: usize = 8 * 1024;

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

    /// The socket, if its bytes are those of the stream, and none were read ahead.
    fn socket(&self) -> Option<&TcpStream> {
        None
    }
}

impl Abort for TcpStream {
    fn abort(&mut self) {
        // A reset instead of an end (socket(7), SO_LINGER). Where that fails, the connection is gone already.
        let _ = self.set_zero_linger();
    }

    fn socket(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

// TLS has an end of its own (close_notify), and without it the other side takes the stream for truncated.
impl<IO> Abort for tokio_rustls::server::TlsStream<IO> {}
impl<IO> Abort for hyper_util::rt::TokioIo<IO> {}

impl<IO: Abort> Abort for Box<IO> {
    fn abort(&mut self) {
        (**self).abort();
    }

    fn socket(&self) -> Option<&TcpStream> {
        (**self).socket()
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
    // Much comes at once.
    much: bool,
    // In use while bytes are in it, or may be soon.
    tube: Option<Tube>,
    // The reading has failed, after what is being written.
    failed: Option<io::Error>,
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
        Self {
            state: State::Copying,
            buffer: None,
            from: 0,
            to: 0,
            unflushed: false,
            much: false,
            tube: None,
            failed: None,
            count,
        }
    }

    fn poll<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<Result<(), Failed>>
    where
        R: AsyncRead + Abort + Unpin,
        W: AsyncWrite + Abort + Unpin,
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
            if self.much
                && let (Some(from), Some(to)) = (reader.socket(), writer.socket())
                && let Some(tube) = self.tube.take().or_else(Tube::take)
            {
                ready!(self.poll_move(cx, tube, from, to))?;
                continue;
            }
            let buffer = self.buffer.get_or_insert_with(buffers::take);
            let mut space = ReadBuf::new(buffer);
            match poll_fill(cx, reader, &mut space, &mut self.failed) {
                Poll::Ready(Ok(())) => {
                    (self.from, self.to) = (0, space.filled().len());
                    self.much = self.to >= MUCH;
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

    /// Moves bytes past this process until little or nothing comes at once. Ready: the copying goes on.
    fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        mut tube: Tube,
        from: &TcpStream,
        to: &TcpStream,
    ) -> Poll<Result<(), Failed>> {
        self.give_back();
        loop {
            while tube.held() > 0 {
                match tube.poll_drain(cx, to) {
                    Poll::Ready(Ok(0)) => {
                        return Poll::Ready(Err(Failed::Writing(io::ErrorKind::WriteZero.into())));
                    }
                    Poll::Ready(Ok(n)) => self.count.set(self.count.get() + n as u64),
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(Failed::Writing(e))),
                    Poll::Pending => {
                        self.tube = Some(tube);
                        return Poll::Pending;
                    }
                }
            }
            if !self.much {
                return Poll::Ready(Ok(()));
            }
            match tube.poll_fill(cx, from) {
                Poll::Ready(Ok(0)) => {
                    self.state = State::Closing;
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Ok(n)) => self.much = n > LITTLE,
                Poll::Ready(Err(e)) => return Poll::Ready(Err(Failed::Reading(e))),
                // An empty pipe goes to whoever has something for it.
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn give_back(&mut self) {
        buffers::give_back(&mut self.buffer);
    }
}

impl Drop for Pipe<'_> {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Reads once; of TLS, which gives a record at a time, as many as there are: one write of all of them costs the kernel, and the
/// reader that is woken, less than one of each.
fn poll_fill<R>(
    cx: &mut Context<'_>,
    reader: &mut R,
    space: &mut ReadBuf<'_>,
    failed: &mut Option<io::Error>,
) -> Poll<io::Result<()>>
where
    R: AsyncRead + Abort + Unpin,
{
    // What came before it is passed on first.
    if let Some(e) = failed.take() {
        return Poll::Ready(Err(e));
    }
    ready!(Pin::new(&mut *reader).poll_read(cx, space))?;
    let mut before = 0;
    while space.filled().len() - before >= LITTLE && space.remaining() >= RECORD && reader.socket().is_none()
    {
        before = space.filled().len();
        match Pin::new(&mut *reader).poll_read(cx, space) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(e)) => {
                *failed = Some(e);
                break;
            }
            Poll::Pending => break,
        }
    }
    Poll::Ready(Ok(()))
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
        assert!(buffers::spare() > 0);
        assert_eq!(counts.sent(), 1);
    }

    /// A socket, and the other end of it.
    async fn sockets() -> (TcpStream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(addr), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn between_sockets_much_and_little_arrive_whole_both_ways_with_the_ends() {
        let ((client, mut near), (server, mut far)) = (sockets().await, sockets().await);
        // Sizes on both sides of the marks, so that moving and copying take turns.
        let sizes = [100, 300_000, 5, 40_000, 70_000, 9_000, 1_500_000, 1, 64 * 1024, 7];
        let blob: Vec<u8> = (0..sizes.iter().sum::<usize>()).map(|n| (n * 31 % 253) as u8).collect();
        let exchange = |io: TcpStream, blob: Vec<u8>| async move {
            let (mut read, mut write) = io.into_split();
            let wanted = blob.clone();
            let writing = async move {
                let mut rest = &*blob;
                for size in sizes {
                    let (piece, after) = rest.split_at(size);
                    write.write_all(piece).await.unwrap();
                    tokio::task::yield_now().await;
                    rest = after;
                }
                write.shutdown().await.unwrap();
            };
            let mut got = Vec::new();
            let (_, read) = tokio::join!(writing, read.read_to_end(&mut got));
            read.unwrap();
            assert!(got == wanted, "{} of {} bytes, or others", got.len(), wanted.len());
        };
        let counts = Counts::default();
        let (copied, (), ()) = tokio::join!(
            copy(&mut near, &mut far, &counts),
            exchange(client, blob.clone()),
            exchange(server, blob.clone())
        );
        assert_eq!((copied.sent, copied.received), (blob.len() as u64, blob.len() as u64));
        assert!(copied.broken.is_none());
    }

    #[tokio::test]
    async fn a_reader_that_stops_holds_the_writer_back_and_its_reset_is_the_upstreams() {
        let ((mut client, mut near), (server, mut far)) = (sockets().await, sockets().await);
        let counts = Counts::default();
        let flood = async {
            let chunk = vec![7; 1 << 20];
            // Far more than the sockets and a pipe hold.
            let all = async { while client.write_all(&chunk).await.is_ok() {} };
            assert!(tokio::time::timeout(std::time::Duration::from_millis(300), all).await.is_err());
            let passed = counts.sent();
            server.set_zero_linger().unwrap();
            drop(server);
            passed
        };
        let (copied, passed) = tokio::join!(copy(&mut near, &mut far, &counts), flood);
        assert!(passed > 0, "nothing went through");
        assert!(matches!(copied.broken, Some(Broken::Upstream(_))), "{copied:?}");
    }

    /// Gives records of bytes, then an error, then, as a socket does, nothing but its end.
    struct Records(u8);

    impl AsyncRead for Records {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.0 += 1;
            match self.0 {
                1..=5 => buf.put_slice(&[self.0; RECORD]),
                6 => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                _ => {}
            }
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Records {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl Abort for Records {}

    #[tokio::test]
    async fn what_came_before_a_failure_is_passed_on_and_the_failure_is_not_taken_for_an_end() {
        let (mut near, mut far) = duplex(1 << 20);
        let counts = Counts::default();
        let copied = copy(&mut Records(0), &mut near, &counts).await;
        assert_eq!(copied.sent, 5 * RECORD as u64);
        assert!(matches!(copied.broken, Some(Broken::Client(_))), "{copied:?}");
        drop(near);
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert!(
            got.len() == 5 * RECORD && got.chunks(RECORD).zip(1..).all(|(record, n)| record == [n; RECORD])
        );
    }
}
