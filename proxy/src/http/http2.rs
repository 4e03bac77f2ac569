//! HTTP/2 over the h2 crate, which knows frames, compression and windows. `serve` answers a client's requests, all of them in
//! the task of its connection; `upstream` sends requests from whatever task asks for it; `body` is what comes on a stream
//! and `pipe` what goes. None of them holds more of a body than the stream's windows allow.

pub(crate) mod alive;
pub(crate) mod body;
pub(crate) mod pipe;
pub(crate) mod serve;
mod turn;
pub(crate) mod upstream;

use super::pool;

/// Bytes of one stream that are taken before its reader has read them (RFC 9113 section 5.2). More than the network within a
/// cluster holds.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same of a whole connection: for as many streams as a proxy puts on one, so that those which nobody reads cannot take
/// the others' share.
const CONNECTION_WINDOW: u32 = pool::MAX_STREAMS * STREAM_WINDOW;
/// Bytes of one stream that wait to be sent.
const SEND_BUFFER: usize = STREAM_WINDOW as usize;
/// A head may have this size, either way.
const MAX_HEAD: u32 = 64 * 1024;
/// Streams that were reset for the peer's errors, beyond which the connection ends (CVE-2025-8671).
const MAX_ERRORS: usize = 1024;
