//! Follows the requests that an HTTP/1 client's bytes are, in whatever pieces they come, for one question: which of them give their
//! body two lengths, the classic way to smuggle a request (RFC 9112 section 11.2). hyper goes by the chunks, as it should, and hides
//! the other; and of what came in one packet it may read several requests. Pure. What is not well formed it does not follow any
//! further: hyper refuses that, and closes.

/// So much of a line tells what it says.
const LONGEST: usize = 64;
const CHUNKED: &[u8] = b"transfer-encoding:";
const SIZED: &[u8] = b"content-length:";
/// A length that is none. No body is as long.
const UNREADABLE: u64 = u64::MAX;

/// See the module.
#[derive(Debug)]
pub(crate) struct Requests {
    at: At,
    /// Heads that have ended.
    heads: u64,
    // Beginning of the line that the last bytes ended in.
    carried: [u8; LONGEST],
    length: usize,
    // Of the head that is read.
    begun: bool,
    chunked: bool,
    sized: Option<u64>,
}

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Head,
    /// So many bytes of a body.
    Sized(u64),
    ChunkSize,
    /// So many bytes of a chunk and its line end.
    Chunk(u64),
    Trailers,
    /// Nobody knows.
    Lost,
}

impl Requests {
    /// After so many.
    pub(crate) const fn after(heads: u64) -> Self {
        Self {
            at: At::Head,
            heads,
            carried: [0; LONGEST],
            length: 0,
            begun: false,
            chunked: false,
            sized: None,
        }
    }

    /// Whether it follows no more.
    pub(crate) fn is_lost(&self) -> bool {
        self.at == At::Lost
    }

    /// The next bytes. Returns the number of the first request in them whose head gives two lengths, from 1.
    pub(crate) fn take(&mut self, mut bytes: &[u8]) -> Option<u64> {
        let mut disputed = None;
        while !bytes.is_empty() {
            match self.at {
                At::Lost => break,
                At::Sized(left) => {
                    let n = skip(&mut bytes, left);
                    self.at = if left > n { At::Sized(left - n) } else { At::Head };
                }
                At::Chunk(left) => {
                    let n = skip(&mut bytes, left);
                    self.at = if left > n { At::Chunk(left - n) } else { At::ChunkSize };
                }
                At::Head | At::ChunkSize | At::Trailers => {
                    let Some(end) = memchr::memchr(b'\n', bytes) else {
                        self.carry(bytes);
                        break;
                    };
                    let (line, rest) = bytes.split_at(end + 1);
                    bytes = rest;
                    if self.length == 0 {
                        self.judge(line, &mut disputed);
                    } else {
                        self.carry(line);
                        let (carried, length) = (self.carried, std::mem::take(&mut self.length));
                        self.judge(&carried[..length], &mut disputed);
                    }
                }
            }
        }
        disputed
    }

    fn carry(&mut self, bytes: &[u8]) {
        let n = bytes.len().min(LONGEST - self.length);
        self.carried[self.length..self.length + n].copy_from_slice(&bytes[..n]);
        self.length += n;
    }

    /// A line, or as much of it as matters.
    fn judge(&mut self, line: &[u8], disputed: &mut Option<u64>) {
        let empty = matches!(line.first(), Some(b'\r' | b'\n'));
        match self.at {
            // RFC 9112 section 2.2: empty lines before the request line are none of the head's.
            At::Head if empty && !self.begun => {}
            At::Head if empty => self.end_of_head(disputed),
            At::Head => {
                self.begun = true;
                if names(line, CHUNKED) {
                    self.chunked = true;
                } else if names(line, SIZED) {
                    self.sized = Some(number(&line[SIZED.len()..], 10).unwrap_or(UNREADABLE));
                }
            }
            At::ChunkSize => {
                self.at = match number(line, 16) {
                    Some(0) => At::Trailers,
                    Some(size) => At::Chunk(size.saturating_add(2)),
                    None => At::Lost,
                }
            }
            At::Trailers if empty => self.at = At::Head,
            At::Trailers | At::Sized(_) | At::Chunk(_) | At::Lost => {}
        }
    }

    fn end_of_head(&mut self, disputed: &mut Option<u64>) {
        self.heads += 1;
        self.at = match (self.chunked, self.sized) {
            (true, sized) => {
                if sized.is_some() {
                    disputed.get_or_insert(self.heads);
                }
                At::ChunkSize
            }
            // hyper refuses it.
            (false, Some(UNREADABLE)) => At::Lost,
            (false, Some(size)) if size > 0 => At::Sized(size),
            (false, _) => At::Head,
        };
        (self.begun, self.chunked, self.sized) = (false, false, None);
    }
}

/// Leaves out so many bytes, or as many as there are. Returns how many.
fn skip(bytes: &mut &[u8], most: u64) -> u64 {
    let n = bytes.len().min(usize::try_from(most).unwrap_or(usize::MAX));
    *bytes = &bytes[n..];
    n as u64
}

fn names(line: &[u8], name: &[u8]) -> bool {
    line.get(..name.len()).is_some_and(|l| l.eq_ignore_ascii_case(name))
}

/// A number and what may stand around it: whitespace, and after it a chunk's extension or the line's end.
fn number(text: &[u8], radix: u32) -> Option<u64> {
    let text = text.trim_ascii_start();
    let digits = text.iter().take_while(|b| char::from(**b).is_digit(radix)).count();
    let ends = matches!(text.get(digits), Some(b';' | b' ' | b'\t' | b'\r' | b'\n'));
    let number = std::str::from_utf8(&text[..digits]).ok()?;
    ends.then(|| u64::from_str_radix(number, radix).ok()).flatten()
}

/// Whether the first head that comes in pieces of this size gives its body two lengths.
#[cfg(test)]
pub(crate) fn gives_two_lengths(head: &[u8], piece: usize) -> bool {
    let mut requests = Requests::after(0);
    head.chunks(piece.max(1)).any(|bytes| requests.take(bytes) == Some(1))
}

#[cfg(test)]
mod tests {
    use super::gives_two_lengths as both;
    use super::*;
    use proptest::prelude::*;

    const DISPUTED: &[u8] =
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nhost: a\r\nTRANSFER-encoding: chunked\r\n\r\n0\r\n\r\n";

    #[test]
    fn two_lengths_are_seen_however_the_bytes_come() {
        let reversed = b"POST / HTTP/1.1\ntransfer-encoding:chunked\ncontent-length:3\n\n";
        let broken = b"POST / HTTP/1.1\r\ntransfer-encoding:chunked\r\ncontent-length: x\r\n\r\n";
        let unreadable = b"POST / HTTP/1.1\r\ncontent-length:\xf940\r\ntransfer-encoding:chunked\r\n\r\n";
        let late = [b"\r\n\n".as_slice(), DISPUTED].concat();
        for cut in 1..100 {
            assert!(both(DISPUTED, cut) && both(reversed, cut) && both(&late, cut), "pieces of {cut}");
            assert!(both(broken, cut) && both(unreadable, cut), "pieces of {cut}");
        }
    }

    #[test]
    fn one_length_and_what_a_body_holds_are_fine() {
        let upload = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n10\r\ncontent-length: 3\r\n";
        let plain = b"POST / HTTP/1.1\r\ncontent-length: 3\r\nx-transfer-encoding: a\r\ntransfer-encodings: b\r\n\r\n";
        for cut in 1..100 {
            assert!(!both(upload, cut) && !both(plain, cut), "pieces of {cut}");
        }
    }

    /// Requests that are fine, whatever they hold.
    fn fine() -> Vec<Vec<u8>> {
        let inside =
            [b"transfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n".as_slice(), DISPUTED].concat();
        let sized = format!("POST / HTTP/1.1\r\nContent-Length:  {} \r\n\r\n", inside.len());
        let chunk =
            format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{:X};a=b\r\n", inside.len());
        vec![
            b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(),
            b"\r\nPOST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n".to_vec(),
            [sized.as_bytes(), &inside].concat(),
            [chunk.as_bytes(), &inside, b"\r\n3\r\nabc\r\n0\r\ncontent-length: 3\r\n\r\n"].concat(),
        ]
    }

    proptest! {
        #[test]
        fn whatever_goes_before_it_the_one_that_is_disputed_is_found(
            before in prop::collection::vec(prop::sample::select(fine()), 0..6), cut in 1usize..200,
        ) {
            let bytes = [before.concat().as_slice(), DISPUTED, b"GET /next HTTP/1.1\r\n\r\n"].concat();
            let mut requests = Requests::after(5);
            let found: Vec<_> = bytes.chunks(cut).filter_map(|piece| requests.take(piece)).collect();
            prop_assert_eq!(found, [before.len() as u64 + 6]);
            prop_assert!(!requests.is_lost());
        }

        #[test]
        fn any_bytes_are_taken_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 1usize..50) {
            let _ = both(&bytes, cut);
        }
    }
}
