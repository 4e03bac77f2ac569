//! Records as TLS 1.3 has them (RFC 8446, 5.2): five bytes of head, at most 16 KiB, a tag of 16 bytes; AES-128-GCM by
//! aws-lc, the key constant, numbers counted. In place: nothing is moved but the piece of a record that the last read ended in.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::ops::Range;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

const HEAD: usize = 5;
const TAG: usize = 16;
const CONTENT: usize = 16 * 1024;
const RECORD: usize = HEAD + CONTENT + TAG;
/// Records of one read: what fits one packet of loopback, as the proxy's buffers do.
const RECORDS: usize = 3;
const ROOM: usize = 60 * 1024;

/// What is read into, and written from.
pub struct Scratch {
    bytes: Vec<u8>,
    /// Where the contents of opened records are.
    opened: Vec<Range<usize>>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { bytes: vec![0; ROOM + RECORD], opened: Vec::new() }
    }
}

/// What one read brought.
pub struct Batch {
    /// Of the bytes that were read; 0 at the end.
    pub length: usize,
    /// Whether there may be more.
    pub full: bool,
    /// What is to be written; nothing: what was opened.
    whole: Option<usize>,
}

impl Scratch {
    /// Reads as it comes.
    pub fn read(&mut self, stream: &mut impl Read) -> io::Result<Batch> {
        let length = stream.read(&mut self.bytes[..ROOM])?;
        Ok(Batch { length, full: length == ROOM, whole: Some(length) })
    }

    /// What is to be written of a batch.
    pub fn pieces(&self, batch: &Batch) -> Vec<IoSlice<'_>> {
        match batch.whole {
            Some(length) => vec![IoSlice::new(&self.bytes[..length])],
            None => self.opened.iter().map(|range| IoSlice::new(&self.bytes[range.clone()])).collect(),
        }
    }
}

/// A direction's key and number.
struct Cipher {
    key: LessSafeKey,
    number: u64,
}

impl Cipher {
    fn new() -> Self {
        // 16 bytes are a key of this algorithm.
        let key = UnboundKey::new(&AES_128_GCM, &[7; 16]).map(LessSafeKey::new);
        Self { key: key.unwrap_or_else(|_| unreachable!("a key of 16 bytes")), number: 0 }
    }

    fn nonce(&mut self) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        nonce[NONCE_LEN - 8..].copy_from_slice(&self.number.to_be_bytes());
        self.number += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Reads plain bytes, to be written as records.
pub struct Sealer(Cipher);

impl Sealer {
    pub fn new() -> Self {
        Self(Cipher::new())
    }

    /// Reads each record's content to where it is sealed.
    pub fn read(&mut self, stream: &mut impl Read, scratch: &mut Scratch) -> io::Result<Batch> {
        let (places, _) = scratch.bytes[..RECORDS * RECORD].as_chunks_mut::<RECORD>();
        let mut contents: Vec<_> =
            places.iter_mut().map(|place| IoSliceMut::new(&mut place[HEAD..HEAD + CONTENT])).collect();
        let length = stream.read_vectored(&mut contents)?;
        let mut left = length;
        for place in places {
            if left == 0 {
                break;
            }
            let content = left.min(CONTENT);
            left -= content;
            let [high, low] = ((content + TAG) as u16).to_be_bytes();
            let head = [23, 3, 3, high, low];
            place[..HEAD].copy_from_slice(&head);
            let (content, rest) = place[HEAD..].split_at_mut(content);
            let nonce = self.0.nonce();
            let tag = self.0.key.seal_in_place_separate_tag(nonce, Aad::from(head), content);
            let tag = tag.map_err(io::Error::other)?;
            rest[..TAG].copy_from_slice(tag.as_ref());
        }
        // All records but the last one fill their places.
        let sealed = length + length.div_ceil(CONTENT) * (HEAD + TAG);
        Ok(Batch { length, full: length == RECORDS * CONTENT, whole: Some(sealed) })
    }
}

/// Reads records, whose contents are to be written.
pub struct Opener {
    cipher: Cipher,
    /// The beginning of a record whose rest has not come.
    begun: Vec<u8>,
}

impl Opener {
    pub fn new() -> Self {
        Self { cipher: Cipher::new(), begun: Vec::new() }
    }

    /// Reads records and opens them where they are.
    pub fn read(&mut self, stream: &mut impl Read, scratch: &mut Scratch) -> io::Result<Batch> {
        let kept = self.begun.len();
        let length = stream.read(&mut scratch.bytes[kept..kept + ROOM])?;
        scratch.bytes[..kept].copy_from_slice(&self.begun);
        scratch.opened.clear();
        let (mut at, end) = (0, kept + length);
        while let Some(head) = scratch.bytes[at..end].first_chunk::<HEAD>().copied() {
            let sealed = usize::from(u16::from_be_bytes([head[3], head[4]]));
            let Some(record) = scratch.bytes[at + HEAD..end].get_mut(..sealed) else { break };
            let nonce = self.cipher.nonce();
            let content = self.cipher.key.open_in_place(nonce, Aad::from(head), record);
            let content = content.map_err(io::Error::other)?;
            scratch.opened.push(at + HEAD..at + HEAD + content.len());
            at += HEAD + sealed;
        }
        self.begun.clear();
        self.begun.extend_from_slice(&scratch.bytes[at..end]);
        Ok(Batch { length, full: length == ROOM, whole: None })
    }
}
