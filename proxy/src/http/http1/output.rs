//! What is to be written of one message: its head and its body's frames, small ones together and large ones as they are, one system
//! call for what is there. It takes no more of a body before all of that is written.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderName;
use hyper::body::Body;
use tokio::io::AsyncWrite;

use super::write::{self, Length};

/// A frame up to this size is copied behind what is there already; a larger one is written from where it is.
const SMALL: usize = 4 * 1024;
/// No more is taken at once.
const ENOUGH: usize = 16 * 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Output {
    small: BytesMut,
    large: Bytes,
    // Behind `large`.
    end_of_chunk: &'static [u8],
    length: Length,
    trailers: Vec<HeaderName>,
    ended: bool,
}

/// Where the body stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// There is something to be written.
    Some,
    /// It gives nothing for now.
    Nothing,
    /// It came to its end.
    All,
}

/// Why a body cannot be written.
#[derive(Debug)]
pub(crate) enum Unwritten<E> {
    /// It broke off.
    Body(E),
    /// It has not as many bytes as its head says.
    Short,
}

impl Output {
    /// Nothing.
    pub(crate) fn none() -> Self {
        Self {
            small: BytesMut::new(),
            large: Bytes::new(),
            end_of_chunk: b"",
            length: Length::Sized(0),
            trailers: Vec::new(),
            ended: true,
        }
    }

    /// A message with this head. `trailers` may be sent, if it is in chunks.
    pub(crate) fn new(head: BytesMut, length: Option<Length>, trailers: Vec<HeaderName>) -> Self {
        let ended = length.is_none();
        let length = length.unwrap_or(Length::Sized(0));
        Self { small: head, large: Bytes::new(), end_of_chunk: b"", length, trailers, ended }
    }

    fn is_written(&self) -> bool {
        self.small.is_empty() && self.large.is_empty() && self.end_of_chunk.is_empty()
    }

    /// Takes of the body what there is.
    pub(crate) fn take<B>(&mut self, body: &mut B, cx: &mut Context<'_>) -> Result<Taken, Unwritten<B::Error>>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        while !self.ended && self.small.len() < ENOUGH && self.large.is_empty() {
            if body.is_end_stream() {
                self.end(None)?;
                break;
            }
            match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.data(data),
                    Err(frame) => self.end(frame.into_trailers().ok())?,
                },
                Poll::Ready(Some(Err(e))) => return Err(Unwritten::Body(e)),
                Poll::Ready(None) => self.end(None)?,
                Poll::Pending => break,
            }
        }
        Ok(match (self.ended, self.is_written()) {
            (true, _) => Taken::All,
            (false, false) => Taken::Some,
            (false, true) => Taken::Nothing,
        })
    }

    fn data(&mut self, mut data: Bytes) {
        match &mut self.length {
            Length::Sized(left) => {
                data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= data.len() as u64;
            }
            Length::Chunked if data.is_empty() => {}
            Length::Chunked => {
                write::chunk_size(&mut self.small, data.len());
                self.end_of_chunk = b"\r\n";
            }
        }
        if data.len() > SMALL {
            self.large = data;
        } else {
            self.small.extend_from_slice(&data);
            self.small.extend_from_slice(std::mem::take(&mut self.end_of_chunk));
        }
    }

    fn end<E>(&mut self, trailers: Option<http::HeaderMap>) -> Result<(), Unwritten<E>> {
        self.ended = true;
        match self.length {
            Length::Sized(0) => Ok(()),
            Length::Sized(_) => Err(Unwritten::Short),
            Length::Chunked => {
                // Nothing large waits before it: no end is looked for until that is written.
                let trailers = trailers.map(|trailers| write::announced(trailers, &self.trailers));
                write::last_chunk(&mut self.small, trailers.as_ref());
                Ok(())
            }
        }
    }

    /// Writes all that was taken.
    pub(crate) fn poll_write<IO>(&mut self, io: &mut IO, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        IO: AsyncWrite + Unpin + ?Sized,
    {
        while !self.is_written() {
            let written = if self.large.is_empty() && self.end_of_chunk.is_empty() {
                ready!(Pin::new(&mut *io).poll_write(cx, &self.small))?
            } else {
                let parts = [&self.small[..], &self.large[..], self.end_of_chunk].map(IoSlice::new);
                ready!(Pin::new(&mut *io).poll_write_vectored(cx, &parts))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written(written);
        }
        Pin::new(io).poll_flush(cx)
    }

    fn written(&mut self, mut n: usize) {
        for part in [&mut self.small as &mut dyn Buf, &mut self.large, &mut self.end_of_chunk] {
            let of_part = n.min(part.remaining());
            part.advance(of_part);
            n -= of_part;
        }
    }
}
