//! Reads ahead of a TLS session. The session asks its socket for 4 KiB at a time, which is right for a request and four
//! system calls for each record of bulk data. When it turns out that more is there, it is read in one large piece. The
//! buffer is held only while there are bytes in it. It looks at nothing.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use crate::buffers;
use crate::through::write_through;

/// A socket below a TLS session.
#[derive(Debug)]
pub struct Ahead<IO> {
    io: IO,
    // Bytes `from..to` were read and not asked for yet.
    buffer: Option<Box<[u8]>>,
    from: usize,
    to: usize,
    // All that the last read had room for came: there is more.
    more: bool,
}

impl<IO> Ahead<IO> {
    /// Nothing was read yet.
    pub const fn new(io: IO) -> Self {
        Self { io, buffer: None, from: 0, to: 0, more: false }
    }

    fn hand_out(&mut self, to: &mut ReadBuf<'_>) {
        let waiting = self.buffer.as_deref().and_then(|b| b.get(self.from..self.to)).unwrap_or_default();
        let n = waiting.len().min(to.remaining());
        to.put_slice(&waiting[..n]);
        self.from += n;
        if self.from >= self.to {
            buffers::give_back(&mut self.buffer);
        }
    }
}

impl<IO> Drop for Ahead<IO> {
    fn drop(&mut self) {
        buffers::give_back(&mut self.buffer);
    }
}

impl<IO: AsRawFd> AsRawFd for Ahead<IO> {
    fn as_raw_fd(&self) -> RawFd {
        self.io.as_raw_fd()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Ahead<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.from < this.to {
            this.hand_out(buf);
            return Poll::Ready(Ok(()));
        }
        if !this.more {
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            this.more = buf.remaining() == 0;
            return Poll::Ready(Ok(()));
        }
        let mut space = ReadBuf::new(this.buffer.get_or_insert_with(buffers::take));
        let read = Pin::new(&mut this.io).poll_read(cx, &mut space);
        (this.from, this.to) = (0, space.filled().len());
        if let Poll::Ready(Ok(())) = read
            && this.to > 0
        {
            // Little has come: next time, straight to where it is wanted.
            this.more = this.to > buf.remaining();
            this.hand_out(buf);
        } else {
            this.more = false;
            buffers::give_back(&mut this.buffer);
        }
        read
    }
}

write_through!(Ahead<IO>, io, IO);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn an_idle_socket_holds_no_buffer() {
        let (mut far, near) = tokio::io::duplex(1 << 20);
        let mut ahead = Ahead::new(near);
        let mut small = [0; 4096];
        far.write_all(&[1; 100]).await.unwrap();
        assert_eq!(ahead.read(&mut small).await.unwrap(), 100);
        far.write_all(&[2; 30_000]).await.unwrap();
        let mut left = 30_000;
        while left > 0 {
            left -= ahead.read(&mut small).await.unwrap();
        }
        assert!(ahead.buffer.is_none());
        far.write_all(b"x").await.unwrap();
        assert_eq!(ahead.read(&mut small).await.unwrap(), 1);
        assert!(ahead.buffer.is_none() && !ahead.more);
        drop(far);
        assert_eq!(ahead.read(&mut small).await.unwrap(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn every_byte_comes_once_and_in_order(
            pieces in prop::collection::vec(1usize..100_000, 1..12),
            room in 1usize..9000,
            pipe in 1000usize..200_000,
        ) {
            let all: Vec<u8> = (0..pieces.iter().sum::<usize>()).map(|n| (n * 7 % 251) as u8).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let got = runtime.block_on(async {
                let (mut far, near) = tokio::io::duplex(pipe);
                let writing = async {
                    let mut rest = &*all;
                    for size in pieces {
                        let (piece, after) = rest.split_at(size);
                        far.write_all(piece).await.unwrap();
                        rest = after;
                    }
                    drop(far);
                };
                let reading = async {
                    let (mut ahead, mut got, mut space) = (Ahead::new(near), Vec::new(), vec![0; room]);
                    loop {
                        match ahead.read(&mut space).await.unwrap() {
                            0 => return got,
                            n => got.extend_from_slice(&space[..n]),
                        }
                    }
                };
                tokio::join!(writing, reading).1
            });
            prop_assert!(got == all);
        }
    }
}
