//! Holds the head of a gRPC response back until the body's first message byte, or its trailers, have come: until then the
//! call may fail and be tried again without the client having seen anything. Bounded in time, and in size to one frame. It
//! judges nothing.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Body, Frame};
use tokio::time::{Instant, timeout_at};
use weft_api::Reason;

use super::client::Failure;
use super::exchange::Answer;
use crate::error::Error;
use crate::retry::Failed;

/// A head waits for a message for so long. Servers of unary calls send both at once; a stream may begin with silence.
pub(crate) const LONGEST: Duration = Duration::from_secs(1);

/// The same answer with what comes first of its body. A connection that is lost meanwhile is a failed try.
pub(crate) async fn until_begun(mut answer: Answer, deadline: Option<Instant>) -> Result<Answer, Failure> {
    let longest = Instant::now() + LONGEST;
    let until = deadline.map_or(longest, |deadline| deadline.min(longest));
    let body = answer.response.body_mut();
    while !body.is_end_stream() {
        match timeout_at(until, body.frame()).await {
            Ok(Some(Ok(frame))) if is_empty(&frame) => {}
            Ok(Some(Ok(frame))) => {
                answer.first = Some(Box::new(frame));
                break;
            }
            Ok(Some(Err(e))) => {
                return Err(Failure { failed: Failed::Reset, error: Error::new(Reason::UpstreamReset, e) });
            }
            Ok(None) | Err(_) => break,
        }
    }
    Ok(answer)
}

fn is_empty(frame: &Frame<bytes::Bytes>) -> bool {
    frame.data_ref().is_some_and(bytes::Bytes::is_empty)
}
