//! A connection to an upstream that speaks HTTP/2, shared by many requests. Each is sent by the task that asks for it; a task of
//! the connection's own writes and reads the socket. Whether a failed request is sent again is decided elsewhere.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use h2::client::{Builder, SendRequest};
use http::{Method, Request, Response};
use hyper::body::Body;
use tokio::task::{JoinHandle, spawn_local};

use super::alive::{Alive, Heard};
use super::body::Received;
use super::pipe::{self, Piece, Pipe};
use super::{CONNECTION_WINDOW, MAX_ERRORS, MAX_HEAD, SEND_BUFFER, STREAM_WINDOW};
use crate::connect::Counted;
use crate::http::body::Outgoing;
use crate::http::headers;
use crate::http::incoming::Incoming;

/// See the module. Closed when it is dropped and the last stream has ended.
pub(crate) struct Connection {
    sender: SendRequest<Piece>,
    closed: Rc<Cell<bool>>,
    /// Requests under way.
    pub(crate) streams: Rc<Cell<u32>>,
}

/// Why there is no response.
#[derive(Debug)]
pub(crate) enum Failed {
    /// Nothing of it was sent.
    Unsent(h2::Error),
    /// It may have been read.
    Broken(h2::Error),
}

/// A request's body that is being sent beside its response. Ends when it is dropped.
#[derive(Debug)]
pub(super) struct Upload(Option<JoinHandle<()>>);

impl Upload {
    /// To its end, whoever waits for it.
    pub(super) fn goes_on(mut self) {
        self.0 = None;
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

impl Connection {
    /// Begins to speak on what is connected.
    pub(crate) async fn open(io: Counted) -> Result<Self, h2::Error> {
        let heard = Rc::new(Cell::new(false));
        let (sender, mut connection) = Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEAD)
            .max_send_buffer_size(SEND_BUFFER)
            .max_local_error_reset_streams(Some(MAX_ERRORS))
            .enable_push(false)
            .handshake::<_, Piece>(Heard::new(io, Rc::clone(&heard)))
            .await?;
        let (closed, streams) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
        let mut alive = connection.ping_pong().map(|pings| Alive::new(pings, Rc::clone(&streams), heard));
        let ended = Rc::clone(&closed);
        spawn_local(async move {
            let mut connection = Box::pin(connection);
            poll_fn(|cx| {
                if alive.as_mut().is_some_and(|alive| alive.poll(cx).is_ready()) {
                    return Poll::Ready(());
                }
                connection.as_mut().poll(cx).map(|_| ())
            })
            .await;
            ended.set(true);
        });
        Ok(Self { sender, closed, streams })
    }

    /// Whether no request could be sent on it.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Sends a request; the response's head. What of the body cannot be sent at once is sent beside that.
    pub(crate) async fn send(
        &self,
        mut request: Request<()>,
        body: Outgoing,
    ) -> Result<Response<Incoming>, Failed> {
        let mut sender = self.sender.clone();
        poll_fn(|cx| sender.poll_ready(cx)).await.map_err(Failed::Unsent)?;
        headers::for_http2(request.headers_mut());
        if let Some(length) = body.size_hint().exact()
            && (length != 0 || has_content(request.method()))
        {
            pipe::state_length(request.headers_mut(), length);
        }
        let ended = body.is_end_stream();
        let (response, to) = sender.send_request(request, ended).map_err(|e| {
            // Of the connection: it ended just now. Otherwise the request is one that HTTP/2 has no words for.
            if e.is_io() || e.is_go_away() { Failed::Unsent(e) } else { Failed::Broken(e) }
        })?;
        drop(sender);
        let mut upload = None;
        if !ended {
            let mut pipe = Pipe::new(body, to);
            // Most often all of it is there.
            if poll_fn(|cx| Poll::Ready(std::pin::Pin::new(&mut pipe).poll(cx).is_pending())).await {
                upload = Some(Upload(Some(spawn_local(pipe))));
            }
        }
        let (head, stream) = response.await.map_err(Failed::Broken)?.into_parts();
        let body = Received::new(stream, &head.headers, upload);
        Ok(Response::from_parts(head, Incoming::Http2(body)))
    }
}

/// Whether a request of this method that has no body says so (RFC 9110 section 8.6).
fn has_content(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::DELETE | Method::CONNECT)
}
