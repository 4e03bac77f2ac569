//! A response that a rule gives by itself.

use bytes::Bytes;
use http::{HeaderValue, StatusCode};

/// The same for every request.
#[derive(Debug)]
pub struct Direct {
    /// Its status.
    pub status: StatusCode,
    /// Its body, empty for none.
    pub body: Bytes,
    /// What the body is.
    pub content_type: HeaderValue,
}
