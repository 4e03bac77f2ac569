//! The body of a message as it comes from the other end, whatever reads it there. It only passes on.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use super::body::BodyError;
use super::http1::Malformed;
use super::http1::upload::Upload;
use super::http1::upstream::Reply;
use super::http2::body::Received;

/// See the module.
#[derive(Debug)]
pub enum Incoming {
    /// Read by hyper: of a client's request in HTTP/1 that is not a plain one.
    Hyper(hyper::body::Incoming),
    /// On a stream of HTTP/2.
    Http2(Received),
    /// Of a client's plain request.
    Upload(Upload),
    /// Of an upstream's response in HTTP/1.
    Reply(Reply),
}

/// Why a body did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// As hyper sees it.
    #[error(transparent)]
    Hyper(#[from] hyper::Error),
    /// The stream was reset, or its connection failed.
    #[error("the stream ended within a body")]
    Http2(#[from] h2::Error),
    /// The connection failed, or ended within the body.
    #[error("the connection ended within a body")]
    Io(#[from] io::Error),
    /// What came is no body.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The request's body broke off while the response came.
    #[error(transparent)]
    Request(Box<BodyError>),
}

impl From<hyper::body::Incoming> for Incoming {
    fn from(body: hyper::body::Incoming) -> Self {
        Self::Hyper(body)
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Self::Hyper(body) => Pin::new(body).poll_frame(cx).map_err(Broken::Hyper),
            Self::Http2(body) => Pin::new(body).poll_frame(cx).map_err(Broken::Http2),
            Self::Upload(body) => body.poll(cx).map(|next| next.map(|read| Ok(Frame::data(read?)))),
            Self::Reply(reply) => reply.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Hyper(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
            Self::Upload(body) => body.left() == 0,
            Self::Reply(reply) => reply.has_ended(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Hyper(body) => body.size_hint(),
            Self::Http2(body) => body.size_hint(),
            Self::Upload(body) => SizeHint::with_exact(body.left()),
            Self::Reply(reply) => reply.size(),
        }
    }
}
