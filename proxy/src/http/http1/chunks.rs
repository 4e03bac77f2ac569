//! The chunked coding (RFC 9112 section 7.1), as strict as hyper's: lines end with CRLF, sizes are hexadecimal digits. It
//! takes what is whole out of a buffer; it reads nothing.

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::Malformed;

/// Extensions of all chunks of a body together, which nobody uses.
const MAX_EXTENSIONS: usize = 16 * 1024;
const MAX_TRAILERS: usize = 16 * 1024;
const MAX_TRAILER_LINES: usize = 100;

/// A body that is being read.
#[derive(Debug)]
pub(crate) struct Chunks {
    at: At,
    left: u64,
    extensions: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    // Whether there was a digit.
    Size(bool),
    SizeEnd,
    Extension,
    LineFeed,
    Data,
    DataEnd,
    Trailers,
    Done,
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Step {
    /// A piece of the body.
    Data(Bytes),
    /// The end, and what was said there.
    End(Option<HeaderMap>),
    /// Nothing, without more bytes.
    More,
}

impl Chunks {
    pub(crate) const fn new() -> Self {
        Self { at: At::Size(false), left: 0, extensions: 0 }
    }

    /// Takes the next piece out of what was read.
    pub(crate) fn step(&mut self, read: &mut BytesMut) -> Result<Step, Malformed> {
        loop {
            match self.at {
                At::Data => {
                    if read.is_empty() {
                        return Ok(Step::More);
                    }
                    let n = usize::try_from(self.left).unwrap_or(usize::MAX).min(read.len());
                    self.left -= n as u64;
                    if self.left == 0 {
                        self.at = At::DataEnd;
                    }
                    return Ok(Step::Data(read.split_to(n).freeze()));
                }
                At::DataEnd => match read.first_chunk::<2>() {
                    Some(b"\r\n") => {
                        read.advance(2);
                        (self.at, self.left) = (At::Size(false), 0);
                    }
                    Some(_) => return Err(Malformed::Chunk),
                    None if read.first().is_none_or(|b| *b == b'\r') => return Ok(Step::More),
                    None => return Err(Malformed::Chunk),
                },
                At::Trailers => return self.trailers(read),
                At::Done => return Ok(Step::End(None)),
                _ => {
                    let Some(byte) = read.first().copied() else { return Ok(Step::More) };
                    read.advance(1);
                    self.line(byte)?;
                }
            }
        }
    }

    /// One byte of the line before a chunk.
    fn line(&mut self, byte: u8) -> Result<(), Malformed> {
        self.at = match (self.at, byte) {
            (At::Size(_), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).map_or(0, u64::from);
                self.left =
                    self.left.checked_mul(16).and_then(|n| n.checked_add(digit)).ok_or(Malformed::Chunk)?;
                At::Size(true)
            }
            (At::Size(true) | At::SizeEnd, b' ' | b'\t') => At::SizeEnd,
            (At::Size(true) | At::SizeEnd, b';') => At::Extension,
            (At::Size(true) | At::SizeEnd | At::Extension, b'\r') => At::LineFeed,
            (At::Extension, b'\n') => return Err(Malformed::Chunk),
            (At::Extension, _) => {
                self.extensions += 1;
                if self.extensions > MAX_EXTENSIONS {
                    return Err(Malformed::Chunk);
                }
                At::Extension
            }
            (At::LineFeed, b'\n') if self.left == 0 => At::Trailers,
            (At::LineFeed, b'\n') => At::Data,
            _ => return Err(Malformed::Chunk),
        };
        Ok(())
    }

    fn trailers(&mut self, read: &mut BytesMut) -> Result<Step, Malformed> {
        if read.starts_with(b"\r\n") {
            read.advance(2);
            self.at = At::Done;
            return Ok(Step::End(None));
        }
        let mut lines = [httparse::EMPTY_HEADER; MAX_TRAILER_LINES];
        match httparse::parse_headers(read, &mut lines) {
            Ok(httparse::Status::Complete((length, lines))) => {
                let mut trailers = HeaderMap::with_capacity(lines.len());
                for line in lines {
                    let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| Malformed::Chunk)?;
                    trailers.append(name, HeaderValue::from_bytes(line.value).map_err(|_| Malformed::Chunk)?);
                }
                read.advance(length);
                self.at = At::Done;
                Ok(Step::End(Some(trailers)))
            }
            Ok(httparse::Status::Partial) if read.len() <= MAX_TRAILERS => Ok(Step::More),
            Ok(httparse::Status::Partial) | Err(_) => Err(Malformed::Chunk),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::http1::write;
    use proptest::prelude::*;

    /// The body, its trailers' number, and what is left behind it.
    fn decoded(wire: &[u8], piece: usize) -> Result<Option<(Vec<u8>, usize, usize)>, Malformed> {
        let (mut chunks, mut read, mut body) = (Chunks::new(), BytesMut::new(), Vec::new());
        let mut pieces = wire.chunks(piece.max(1));
        loop {
            match chunks.step(&mut read)? {
                Step::Data(data) => body.extend_from_slice(&data),
                Step::End(trailers) => {
                    let left = read.len() + pieces.map(<[u8]>::len).sum::<usize>();
                    return Ok(Some((body, trailers.map_or(0, |t| t.len()), left)));
                }
                Step::More => match pieces.next() {
                    Some(more) => read.extend_from_slice(more),
                    None => return Ok(None),
                },
            }
        }
    }

    #[test]
    fn a_body_is_the_same_however_its_bytes_come() {
        let wire = b"5\r\nhello\r\n6 ;a=b\r\n world\r\n0\r\nx-sum: 1\r\n\r\nGET";
        for piece in 1..wire.len() {
            assert_eq!(decoded(wire, piece), Ok(Some((b"hello world".to_vec(), 1, 3))), "pieces of {piece}");
        }
        assert_eq!(decoded(b"A\r\n0123456789\r\n0\r\n\r\n", 3), Ok(Some((b"0123456789".to_vec(), 0, 0))));
        assert_eq!(decoded(b"5\r\nhel", 3), Ok(None));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for wire in [
            "0x5\r\nhello\r\n",
            "+5\r\n",
            "-5\r\n",
            "5_0\r\n",
            " 5\r\n",
            "\r\n",
            ";a\r\n",
            "5\nhello\r\n",
            "5\r\nhello\n0",
            "5\r\nhelloX",
            "5;a\nhello",
            "5 5\r\n",
            "10000000000000005\r\n",
            "5\rhello",
            "0\r\nbad name: 1\r\n\r\n",
        ] {
            assert_eq!(decoded(wire.as_bytes(), 100), Err(Malformed::Chunk), "{wire:?}");
        }
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let extension = [b"5;", "a".repeat(20_000).as_bytes(), b"\r\n"].concat();
        assert_eq!(decoded(&extension, 1000), Err(Malformed::Chunk));
        let trailers = [b"0\r\nx: ".as_slice(), "a".repeat(20_000).as_bytes()].concat();
        assert_eq!(decoded(&trailers, 1000), Err(Malformed::Chunk));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_alike_in_any_pieces(bytes in prop::collection::vec(any::<u8>(), 0..200), piece in 1usize..9) {
            let whole = decoded(&bytes, 1000);
            prop_assert_eq!(decoded(&bytes, piece).is_err(), whole.is_err());
        }

        #[test]
        fn what_is_written_in_chunks_is_read_as_it_was(body in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..9)) {
            let mut wire = BytesMut::new();
            for data in &body {
                write::chunk_size(&mut wire, data.len());
                wire.extend_from_slice(data);
                wire.extend_from_slice(b"\r\n");
            }
            write::last_chunk(&mut wire, None);
            prop_assert_eq!(decoded(&wire, 7), Ok(Some((body.concat(), 0, 0))));
        }
    }
}
