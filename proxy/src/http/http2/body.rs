//! The body of a message as it comes on a stream. What was taken makes room for more: whoever does not read keeps its window
//! shut. It only passes on.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use hyper::body::{Body, Frame, SizeHint};

use super::STREAM_WINDOW;
use super::upstream::Upload;

/// So many bytes are taken before they make room for more. h2 tells the peer of room by halves of the window.
const RELEASED_AT_ONCE: usize = STREAM_WINDOW as usize / 16;

/// See the module.
#[derive(Debug)]
pub struct Received {
    stream: RecvStream,
    // As announced, and not taken yet.
    left: Option<u64>,
    // Bytes that were taken and have not made room yet. They do when the stream is over, whoever drops it.
    taken: usize,
    data_ended: bool,
    // The rest of the request that this is the response to.
    upload: Option<Upload>,
}

impl Received {
    /// What follows a head with these headers. `upload`: what of the request is still being sent; when nobody wants the
    /// response any more, that ends too.
    pub(super) fn new(stream: RecvStream, headers: &HeaderMap, upload: Option<Upload>) -> Self {
        let left = if stream.is_end_stream() { Some(0) } else { announced(headers) };
        Self { stream, left, taken: 0, data_ended: false, upload }
    }

    fn make_room(&mut self) {
        // Fails only when the stream is over, and has no window.
        let _ = self.stream.flow_control().release_capacity(std::mem::take(&mut self.taken));
    }
}

/// Without one that makes sense, nothing is announced; h2 has compared it with what came.
fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// RFC 9113 section 8.1: a peer that has answered all it will, and wants no more of the request. Its answer is whole.
fn is_enough(error: &h2::Error) -> bool {
    error.reason() == Some(Reason::NO_ERROR)
}

impl Body for Received {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let this = &mut *self;
        if !this.data_ended {
            match ready!(this.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    this.taken += data.len();
                    if this.taken >= RELEASED_AT_ONCE {
                        this.make_room();
                    }
                    if let Some(left) = &mut this.left {
                        *left = left.saturating_sub(data.len() as u64);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(e)) if is_enough(&e) => return Poll::Ready(None),
                Some(Err(e)) => return Poll::Ready(Some(Err(e))),
                None => {
                    this.data_ended = true;
                    this.make_room();
                }
            }
        }
        match ready!(this.stream.poll_trailers(cx)) {
            Ok(trailers) => Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers)))),
            Err(e) if is_enough(&e) => Poll::Ready(None),
            Err(e) => Poll::Ready(Some(Err(e))),
        }
    }

    /// h2 is asked only where it may be so, as that takes its lock: of a stream without an announced length the next poll says it.
    fn is_end_stream(&self) -> bool {
        (self.data_ended || self.left == Some(0)) && self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if let Some(upload) = self.upload.take()
            && self.stream.is_end_stream()
        {
            upload.goes_on();
        }
    }
}
