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
                Poll::Ready(Some(Err(e))) => {
                    // Whatever it says of itself from now on, it has no end that could be written.
                    self.ended = true;
                    return Err(Unwritten::Body(e));
                }
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

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::body::Frame;
    use std::collections::VecDeque;
    use std::task::Waker;

    /// Gives what it was given, then says that it has ended.
    struct Pieces(VecDeque<Result<&'static [u8], &'static str>>);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = &'static str;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
            let next = self.0.pop_front();
            Poll::Ready(next.map(|piece| piece.map(|data| Frame::data(Bytes::from_static(data)))))
        }

        fn is_end_stream(&self) -> bool {
            self.0.is_empty()
        }
    }

    /// What is written of a body, and whether all of it was taken.
    fn written(pieces: &[Result<&'static [u8], &'static str>], length: Length) -> (String, bool) {
        let mut cx = Context::from_waker(Waker::noop());
        let mut output = Output::new(BytesMut::from("head "), Some(length), Vec::new());
        let mut body = Pieces(pieces.iter().copied().collect());
        let (mut out, mut whole) = (Vec::new(), true);
        for _ in 0..10 {
            // Asked again after it has failed, as when what came before it could not be written at once.
            whole &= output.take(&mut body, &mut cx).is_ok();
            assert!(matches!(output.poll_write(&mut out, &mut cx), Poll::Ready(Ok(()))));
        }
        (String::from_utf8(out).unwrap(), whole)
    }

    #[test]
    fn a_body_is_written_with_its_end() {
        let body = [Ok(b"ab".as_slice()), Ok(b"c".as_slice())];
        assert_eq!(written(&body, Length::Sized(3)), ("head abc".into(), true));
        assert_eq!(written(&body, Length::Chunked), ("head 2\r\nab\r\n1\r\nc\r\n0\r\n\r\n".into(), true));
    }

    #[test]
    fn a_body_that_breaks_off_is_never_given_an_end() {
        let body = [Ok(b"ab".as_slice()), Err("broken")];
        assert_eq!(written(&body, Length::Chunked), ("head 2\r\nab\r\n".into(), false));
        assert_eq!(written(&body, Length::Sized(5)), ("head ab".into(), false));
        assert_eq!(written(&[Ok(b"ab".as_slice())], Length::Sized(5)), ("head ab".into(), false));
    }

    #[test]
    fn no_more_is_written_than_the_head_says_and_large_frames_keep_their_place() {
        static LARGE: [u8; 2 * SMALL] = [b'x'; 2 * SMALL];
        assert_eq!(written(&[Ok(b"abcdef".as_slice())], Length::Sized(2)), ("head ab".into(), true));
        let (text, whole) = written(&[Ok(b"a".as_slice()), Ok(&LARGE), Ok(b"b".as_slice())], Length::Chunked);
        let wanted = format!("head 1\r\na\r\n2000\r\n{}\r\n1\r\nb\r\n0\r\n\r\n", "x".repeat(2 * SMALL));
        assert!(whole && text == wanted, "{} bytes", text.len());
    }
}
