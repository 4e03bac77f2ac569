//! Serves a client's connection of HTTP/2: the handler of each request and the body of its response run in the connection's own
//! task, so that what several of them have to say is written at once. Bounded: streams at the same time, a head's size,
//! resets. It handles nothing.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use h2::server::{Builder, SendResponse};
use http::Response;
use hyper::body::Body;
use tokio::io::{AsyncRead, AsyncWrite};
use weft_api::Reason;

use super::body::Received;
use super::pipe::{self, Piece, Pipe};
use super::turn::{PASSES, Turn};
use super::{CONNECTION_WINDOW, MAX_ERRORS, MAX_HEAD, SEND_BUFFER, STREAM_WINDOW};
use crate::error::Error;
use crate::http::client::Wire;
use crate::http::exchange::Served;
use crate::http::headers;
use crate::http::incoming::Incoming;
use crate::http::server::Handler;

/// Requests at the same time on one connection.
const MAX_STREAMS: u32 = 1000;

/// Serves until the connection ends; from when `draining` is ready, no further requests. `Err`: the client broke a rule or a
/// limit.
pub(crate) async fn serve<IO, H>(
    io: IO,
    handler: Rc<H>,
    draining: impl Future<Output = ()>,
) -> Result<(), Error>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    H: Handler,
{
    run(io, handler, draining).await.or_else(|e| {
        // Otherwise it is broken off, which each request has in its own record.
        let rule = !e.is_io() && !e.is_remote();
        if rule { Err(Error::new(Reason::BadRequest, e)) } else { Ok(()) }
    })
}

async fn run<IO, H>(io: IO, handler: Rc<H>, draining: impl Future<Output = ()>) -> Result<(), h2::Error>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    H: Handler,
{
    let mut connection = Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD)
        .max_send_buffer_size(SEND_BUFFER)
        .max_local_error_reset_streams(Some(MAX_ERRORS))
        .handshake::<_, Piece>(io)
        .await?;
    let mut streams = FuturesUnordered::new();
    let mut draining = pin!(draining);
    let mut told = false;
    let turn = Turn::new();
    poll_fn(|cx| {
        if !told && draining.as_mut().poll(cx).is_ready() {
            told = true;
            connection.graceful_shutdown();
            turn.connection.want();
        }
        turn.begin(cx);
        let mut passes = 0;
        while passes < PASSES && turn.goes_on() {
            passes += 1;
            // First: what they have to say goes out with what follows.
            if turn.streams.takes() {
                while let Poll::Ready(Some(())) = streams.poll_next_unpin(&mut turn.streams.context()) {}
            }
            while turn.connection.takes() {
                match connection.poll_accept(&mut turn.connection.context()) {
                    Poll::Ready(Some(Ok((request, respond)))) => {
                        let (head, stream) = request.into_parts();
                        let body = Received::new(stream, &head.headers, None);
                        let request = http::Request::from_parts(head, Incoming::Http2(body));
                        // Boxed: it is large, and gone when the response's body begins.
                        let handling = Box::pin(Rc::clone(&handler).handle(request, Wire::Http2));
                        streams.push(answer(handling, respond));
                        turn.streams.want();
                        turn.connection.want();
                    }
                    Poll::Ready(ended) => {
                        return Poll::Ready(ended.map_or(Ok(()), |ended| ended.map(|_| ())));
                    }
                    Poll::Pending => break,
                }
            }
        }
        turn.end(cx);
        Poll::Pending
    })
    .await
}

/// One request, until its response has been handed over for sending, or the client does not want it any more.
async fn answer<F>(mut handling: Pin<Box<F>>, mut respond: SendResponse<Piece>)
where
    F: Future<Output = Response<Served>>,
{
    let answered = poll_fn(|cx| match handling.as_mut().poll(cx) {
        Poll::Ready(response) => Poll::Ready(Some(response)),
        Poll::Pending => respond.poll_reset(cx).map(|_| None),
    });
    let Some(response) = answered.await else { return };
    drop(handling);
    let (mut head, body) = response.into_parts();
    headers::for_http2(&mut head.headers);
    let ended = body.is_end_stream();
    if !ended && let Some(length) = body.size_hint().exact() {
        pipe::state_length(&mut head.headers, length);
    }
    match respond.send_response(Response::from_parts(head, ()), ended) {
        Ok(_) if ended => {}
        Ok(to) => Pipe::new(body, to).await,
        // It is over already, or what the configuration adds to the head is nothing that HTTP/2 could say.
        Err(_) => respond.send_reset(h2::Reason::INTERNAL_ERROR),
    }
}
