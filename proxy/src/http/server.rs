//! Reads requests from a client's connection and writes the responses of a handler, until either side is done or the
//! proxy drains: of HTTP/1 what `http1::plain` leaves to hyper. Bounded in every direction. It handles nothing.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

use http::{HeaderValue, Request, Response};
use hyper::body::{Body, Frame, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use weft_api::Reason;

use super::client::Wire;
use super::exchange::Served;
use super::guard::{Guard, Phase};
use super::http1::plain;
use super::incoming::Incoming;
use super::{headers, http2, reply};
use crate::error::{Error, find};

/// A request's head may have this size.
const MAX_HEAD: usize = 64 * 1024;

/// Handles one request.
pub(crate) trait Handler: 'static {
    /// It always answers; refusals are answers too.
    fn handle(
        self: Rc<Self>,
        request: Request<Incoming>,
        wire: Wire,
    ) -> impl Future<Output = Response<Served>> + 'static;

    /// Where the client's connection stands.
    fn phase(&self) -> Phase {
        Phase::default()
    }
}

/// When and how a connection is brought to its end.
#[derive(Clone, Copy)]
pub(crate) struct Leave<'a> {
    /// From then on.
    pub(crate) drain: &'a CancellationToken,
    /// How long an HTTP/1 connection without a request is left open, for the client to send the last one. HTTP/2 says
    /// GOAWAY, and loses nothing.
    pub(crate) patience: Duration,
}

/// Serves one connection to its end. `Err`: the client broke a rule or a limit, outside of any request.
pub(crate) async fn serve<IO, H>(
    io: IO,
    wire: Wire,
    handler: Rc<H>,
    leave: Option<Leave<'_>>,
) -> Result<(), Error>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Handler,
{
    match wire {
        // Boxed: a connection's task shall have the size of what it serves, not of the largest thing it might.
        Wire::Http1 => {
            let plain = Box::pin(plain::serve(Box::new(io), &handler, leave));
            match plain.await? {
                Some(rest) => Box::pin(serve_http1(rest, handler, leave)).await,
                None => Ok(()),
            }
        }
        Wire::Http2 => {
            let draining = wait_for(leave.map(|leave| Leave { patience: Duration::ZERO, ..leave }), || {});
            Box::pin(http2::serve::serve(io, handler, draining)).await
        }
    }
}

async fn serve_http1<IO, H>(io: IO, handler: Rc<H>, leave: Option<Leave<'_>>) -> Result<(), Error>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Handler,
{
    let phase = handler.phase();
    let io = TokioIo::new(Guard::new(io, phase.clone()));
    let last = Rc::new(Cell::new(false));
    let is_last = Rc::clone(&last);
    let service = service_fn(move |mut request: Request<hyper::body::Incoming>| {
        if phase.request(request.body().is_end_stream()) {
            request.extensions_mut().insert(headers::BothLengths);
        }
        let (handled, phase) =
            (Rc::clone(&handler).handle(request.map(Incoming::Hyper), Wire::Http1), phase.clone());
        let last = Rc::clone(&is_last);
        async move {
            let mut response = handled.await;
            if last.get() && response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
                response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
            }
            if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
                phase.upgraded();
            }
            Ok::<_, Infallible>(response.map(|body| Tracked { body, phase }))
        }
    });
    let mut connection = http1::Builder::new()
        .max_header_size(MAX_HEAD)
        .header_read_timeout(None)
        .auto_date_header(false)
        .serve_connection(io, service)
        .with_upgrades();
    let ended = {
        let mut connection = Pin::new(&mut connection);
        let draining = wait_for(leave, || last.set(true));
        let mut draining = pin!(draining);
        let mut told = false;
        poll_fn(|cx| {
            if !told && draining.as_mut().poll(cx).is_ready() {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
            connection.as_mut().poll(cx)
        })
        .await
    };
    let Err(e) = ended else { return Ok(()) };
    let timed_out = find::<io::Error>(&e).is_some_and(|e| e.kind() == io::ErrorKind::TimedOut);
    if timed_out {
        if let Some(parts) = connection.into_parts() {
            let mut io = parts.io.into_inner();
            // The client may well be gone.
            let _ = io.write_all(&reply::raw(Reason::ClientTimeout)).await;
            let _ = io.shutdown().await;
        }
        return Err(Error::new(Reason::ClientTimeout, e));
    }
    if e.is_parse_too_large() {
        return Err(Error::new(Reason::HeadersTooLarge, e));
    }
    if e.is_parse() {
        return Err(Error::new(Reason::BadRequest, e));
    }
    // Broken off by the client, or by us within a response, which has its own record.
    Ok(())
}

async fn wait_for(leave: Option<Leave<'_>>, begun: impl FnOnce()) {
    let Some(Leave { drain, patience }) = leave else { return std::future::pending().await };
    drain.cancelled().await;
    begun();
    if !patience.is_zero() {
        sleep(patience).await;
    }
}

/// A response's body that tells the guard when it has ended.
struct Tracked {
    body: Served,
    phase: Phase,
}

impl Body for Tracked {
    type Data = bytes::Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<bytes::Bytes>, Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.phase.idle();
    }
}
