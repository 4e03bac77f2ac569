//! Sends one request to one upstream: takes a connection from the pool or opens one, within the breaker's limits, and
//! waits for the response's head. A pooled connection that the peer has closed meanwhile is replaced without anybody
//! noticing, where that cannot do anything twice. Other retries are not its business.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, Request, Response, Uri, Version};
use http_body_util::BodyExt;
use hyper::body::Body;
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout};
use weft_api::Reason;

use super::body::Source;
use super::grpc_timeout::{self, GRPC_TIMEOUT};
use super::http1::upstream::{self, Connection};
use super::http2;
use super::incoming::Incoming;
use super::patience;
use super::pool::{Destination, Host, Lent, Stream};
use crate::breaker::{Breaker, Permit};
use crate::connect::Counted;
use crate::error::{Error, find};
use crate::lost::Socket;
use crate::retry::Failed;
use crate::tls::Alpn;
use crate::worker::Worker;

/// A response that nobody gets is read when it has no more bytes than this, and ends within this time.
const MAX_DISCARDED: u64 = 16 * 1024;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);
/// Connections that are found closed before anything was written, one after the other, before a new one is opened. A
/// request that may have been read is sent once more only, on a new one.
const MAX_STALE: u32 = 3;

/// A request that can be sent more than once.
#[derive(Debug)]
pub(crate) struct Template {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Source,
    pub(crate) version: Wire,
    /// May it have an effect twice?
    pub(crate) repeatable: bool,
    /// Of a gRPC call: what is left until then is told to the upstream.
    pub(crate) grpc_deadline: Option<Instant>,
    /// Where its rule bounds how many wait for a connection.
    pub(crate) rule: Option<Arc<Breaker>>,
}

/// What is spoken to the upstream: what the client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// The connection of an exchange, held until the response has ended.
pub(crate) enum Held {
    /// Goes back to the pool.
    Http1(Lent),
    /// Counts as a stream.
    Http2(#[allow(dead_code, reason = "held for its drop")] Stream),
}

/// A try without a response.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) failed: Failed,
    pub(crate) error: Error,
}

impl Failure {
    fn of_connect(error: Error) -> Self {
        Self { failed: Failed::Connect, error }
    }
}

/// One try. `elsewhere` says whether the request could go to another endpoint after such a failure; it is asked only when
/// this endpoint takes suspiciously long to answer.
pub(crate) async fn send(
    worker: &Rc<Worker>,
    to: &Destination,
    template: &Template,
    elsewhere: Elsewhere<'_>,
) -> Result<(Response<Incoming>, Held), Failure> {
    let host = worker.pool.host(&worker.proxy, to);
    let mut stale = 0;
    loop {
        let fresh = stale >= MAX_STALE;
        let (sent, reused, held) = match template.version {
            Wire::Http1 => {
                let (mut lent, reused) = http1(worker, &host, to, fresh, template, elsewhere)
                    .await
                    .map_err(Failure::of_connect)?;
                let (socket, headers) = (lent.watched(), template.head());
                let sending =
                    lent.connection().send(&template.method, &template.uri, &headers, template.body.open());
                let sent = answered(worker, to, template, elsewhere, socket, sending).await;
                (sent.map(|sent| sent.map_err(failure)), reused, Held::Http1(lent))
            }
            Wire::Http2 => {
                let (stream, reused) = http2(worker, &host, to, fresh, template, elsewhere)
                    .await
                    .map_err(Failure::of_connect)?;
                let connection = &stream.0.connection;
                let sending = connection.send(template.request(), template.body.open());
                let sent = answered(worker, to, template, elsewhere, stream.0.watched.clone(), sending).await;
                if sent.as_ref().is_some_and(Result::is_err) && connection.is_closed() {
                    host.retire(&stream.0);
                }
                (sent.map(|sent| sent.map_err(classify)), reused, Held::Http2(stream))
            }
        };
        let failure = match sent {
            Some(Ok(response)) => return Ok((response, held)),
            Some(Err(failure)) => failure,
            None => {
                let error = Error::new(Reason::UpstreamReset, Gone);
                return Err(Failure { failed: Failed::Reset, error });
            }
        };
        if matches!(failure.failed, Failed::Untouched)
            && let Held::Http2(stream) = &held
        {
            host.retire(&stream.0);
        }
        let untouched = failure.failed == Failed::Untouched;
        let harmless = untouched
            || failure.failed == Failed::Reset && template.repeatable && !is_reset_of_stream(&failure);
        if !(reused && harmless && template.body.replayable() && !template.body.broken()) {
            return Err(failure);
        }
        stale = if untouched { stale + 1 } else { MAX_STALE };
    }
}

/// Whether a request could go to another endpoint after such a failure.
pub(crate) type Elsewhere<'a> = &'a dyn Fn(Failed) -> bool;

/// Nothing that was sent is acknowledged.
#[derive(Debug, thiserror::Error)]
#[error("the endpoint has stopped to acknowledge what is sent to it")]
struct Gone;

/// Waits for the response's head. When the peer turns out to be gone, everybody is told; `None`: and this request goes
/// elsewhere, because it may and can. Another one is waited for: it may have had its effect.
async fn answered<T>(
    worker: &Worker,
    to: &Destination,
    template: &Template,
    elsewhere: Elsewhere<'_>,
    socket: Option<Socket>,
    sending: impl Future<Output = T>,
) -> Option<T> {
    let Some(socket) = socket else { return Some(sending.await) };
    let mut sending = pin!(sending);
    if let Some(sent) = worker.lost.watch(&socket, sending.as_mut()).await {
        return Some(sent);
    }
    worker.pool.host(&worker.proxy, to).clear();
    if let Destination::Endpoint { cluster, endpoint, .. } = to {
        worker.gone(cluster, endpoint);
    }
    let moves = template.repeatable && template.body.replayable() && elsewhere(Failed::Reset);
    if moves { None } else { Some(sending.await) }
}

/// A response that nobody gets. A short one is read to its end, so that its connection can be used again.
pub(crate) fn discard(worker: &Rc<Worker>, response: Response<Incoming>, held: Held) {
    let Held::Http1(lent) = held else { return };
    let mut body = response.into_body();
    let short = body.size_hint().upper().is_some_and(|size| size <= MAX_DISCARDED);
    if !short {
        return;
    }
    let worker = Rc::clone(worker);
    spawn_local(async move {
        let drained = async { while let Some(Ok(_)) = body.frame().await {} };
        if timeout(DISCARD_TIMEOUT, drained).await.is_ok() {
            worker.pool.give_back(lent);
        }
    });
}

impl Template {
    /// The headers of the next try.
    fn head(&self) -> Cow<'_, HeaderMap> {
        let Some(at) = self.grpc_deadline else { return Cow::Borrowed(&self.headers) };
        let mut headers = self.headers.clone();
        let left = at.saturating_duration_since(Instant::now());
        headers.insert(GRPC_TIMEOUT, grpc_timeout::write(left));
        Cow::Owned(headers)
    }

    fn request(&self) -> Request<()> {
        let mut request = Request::new(());
        request.method_mut().clone_from(&self.method);
        request.uri_mut().clone_from(&self.uri);
        *request.headers_mut() = self.head().into_owned();
        *request.version_mut() = match self.version {
            Wire::Http2 if self.uri.authority().is_some() => Version::HTTP_2,
            // Without an authority, h2 takes a request only as one of HTTP/1: then its Host header stands.
            _ => Version::HTTP_11,
        };
        request
    }
}

/// An HTTP/1 connection for one exchange, and whether it was used before.
async fn http1(
    worker: &Rc<Worker>,
    host: &Rc<Host>,
    to: &Destination,
    fresh: bool,
    template: &Template,
    elsewhere: Elsewhere<'_>,
) -> Result<(Lent, bool), Error> {
    let idle = || if fresh { None } else { host.idle_http1(!template.repeatable) };
    if let Some(lent) = idle() {
        return Ok((lent, true));
    }
    // Boxed: most requests find a connection, and shall not hold the room for opening one.
    Box::pin(dial_http1(worker, host, to, idle, template, elsewhere)).await
}

async fn dial_http1(
    worker: &Rc<Worker>,
    host: &Rc<Host>,
    to: &Destination,
    idle: impl Fn() -> Option<Lent>,
    template: &Template,
    elsewhere: Elsewhere<'_>,
) -> Result<(Lent, bool), Error> {
    let _pending = to.pending(template.rule.as_deref())?;
    let permit = match place(worker, to, idle).await? {
        Place::Idle(lent) => return Ok((lent, true)),
        Place::Dial(permit) => permit,
    };
    let io = match patience::open(worker, to, Alpn::Http1, permit, elsewhere).await? {
        Ok(io) => io,
        Err(late) => {
            let (worker, host, to) = (Rc::clone(worker), Rc::clone(host), to.clone());
            spawn_local(async move {
                if let Some(io) = late.opened(&worker, &to).await {
                    worker.pool.give_back(host.opened_http1(Connection::new(io), &to));
                }
            });
            return Err(patience::too_slow());
        }
    };
    Ok((host.opened_http1(Connection::new(io), to), false))
}

/// A stream of an HTTP/2 connection, and whether the connection was there before.
async fn http2(
    worker: &Rc<Worker>,
    host: &Rc<Host>,
    to: &Destination,
    fresh: bool,
    template: &Template,
    elsewhere: Elsewhere<'_>,
) -> Result<(Stream, bool), Error> {
    if !fresh && let Some(stream) = host.shared_http2(true) {
        return Ok((stream, true));
    }
    Box::pin(join_http2(worker, host, to, template, elsewhere)).await
}

/// The same of a connection that is dialled for all who wait.
async fn join_http2(
    worker: &Rc<Worker>,
    host: &Rc<Host>,
    to: &Destination,
    template: &Template,
    elsewhere: Elsewhere<'_>,
) -> Result<(Stream, bool), Error> {
    let _pending = to.pending(template.rule.as_deref())?;
    let before = host.dialled.borrow().0;
    let _dialling = host.dialling.lock().await;
    let (dials, failure) = host.dialled.borrow().clone();
    if dials != before {
        // Somebody else has dialled while this one waited: that result is as good as its own.
        if let Some(stream) = host.shared_http2(true) {
            return Ok((stream, true));
        }
        if let Some(error) = failure {
            return Err(error);
        }
    }
    let dialled = dial_http2(worker, host, to, elsewhere).await;
    *host.dialled.borrow_mut() = (dials + 1, dialled.as_ref().err().cloned());
    dialled
}

async fn dial_http2(
    worker: &Rc<Worker>,
    host: &Rc<Host>,
    to: &Destination,
    elsewhere: Elsewhere<'_>,
) -> Result<(Stream, bool), Error> {
    let permit = match to.permit() {
        Ok(permit) => permit,
        // At the limit of connections, a full one is better than none.
        Err(reason) => match host.shared_http2(false) {
            Some(stream) => return Ok((stream, true)),
            None => match place(worker, to, || host.shared_http2(false)).await.map_err(|_| reason)? {
                Place::Idle(stream) => return Ok((stream, true)),
                Place::Dial(permit) => permit,
            },
        },
    };
    let io = match patience::open(worker, to, Alpn::Http2, permit, elsewhere).await? {
        Ok(io) => io,
        Err(late) => {
            let (worker, host, to) = (Rc::clone(worker), Rc::clone(host), to.clone());
            spawn_local(async move {
                if let Some(io) = late.opened(&worker, &to).await {
                    // Idle until somebody comes for it.
                    let _ = begin_http2(&host, io, &to).await;
                }
            });
            return Err(patience::too_slow());
        }
    };
    Ok((begin_http2(host, io, to).await?, false))
}

async fn begin_http2(host: &Rc<Host>, io: Counted, to: &Destination) -> Result<Stream, Error> {
    let watched = io.watched();
    let connection = http2::upstream::Connection::open(io).await;
    let connection = connection.map_err(|e| Error::new(Reason::ConnectFailed, e))?;
    Ok(host.opened_http2(connection, watched, to))
}

/// What a request that found no connection may use.
enum Place<T> {
    /// A connection that was given back.
    Idle(T),
    /// A connection of its own, within the limit.
    Dial(Option<Permit>),
}

/// Waits for a connection, or for room for another one within `maxConnections`.
async fn place<T>(
    worker: &Worker,
    to: &Destination,
    idle: impl Fn() -> Option<T>,
) -> Result<Place<T>, Error> {
    let waiting = async {
        loop {
            // Nothing else runs on this thread between the look and the wait.
            let freed = worker.pool.freed.notified();
            if let Ok(permit) = to.permit() {
                return Place::Dial(permit);
            }
            // The room of an evicted one is free once its task has run.
            if let Destination::Endpoint { cluster, .. } = to {
                worker.pool.evict(&cluster.live);
            }
            freed.await;
            if let Some(connection) = idle() {
                return Place::Idle(connection);
            }
        }
    };
    timeout(to.connect_timeout(), waiting).await.map_err(|_| Reason::BreakerConnections.into())
}

impl Destination {
    /// A place among those that wait for a connection: the cluster's, and one of the rule's where that bounds them.
    fn pending(&self, rule: Option<&Breaker>) -> Result<Option<Permit>, Reason> {
        let Self::Endpoint { cluster, .. } = self else { return Ok(None) };
        let permit = cluster.breaker.pending()?;
        Ok(Some(match rule {
            None => permit,
            Some(own) => permit.and(own.pending()?),
        }))
    }

    fn permit(&self) -> Result<Option<Permit>, Reason> {
        match self {
            Self::Endpoint { cluster, .. } => cluster.breaker.connection().map(Some),
            Self::App(_) => Ok(None),
        }
    }
}

/// What a request on a stream has failed of.
fn classify(failed: http2::upstream::Failed) -> Failure {
    let (error, (failed, reason)) = match failed {
        http2::upstream::Failed::Unsent(e) => (e, (Failed::Untouched, Reason::UpstreamReset)),
        http2::upstream::Failed::Broken(e) if refused(&e) => (e, (Failed::Untouched, Reason::UpstreamReset)),
        http2::upstream::Failed::Broken(e) => {
            let kind = of_connection(&e);
            (e, kind)
        }
    };
    Failure { failed, error: Error::new(reason, error) }
}

/// The same of HTTP/1.
fn failure(failed: upstream::Failed) -> Failure {
    let (kind, reason) = match &failed {
        upstream::Failed::Malformed(_) => (Failed::Reset, Reason::UpstreamProtocol),
        upstream::Failed::Body(_) | upstream::Failed::Short => (Failed::Reset, Reason::BadRequest),
        upstream::Failed::Closed => (Failed::Reset, Reason::UpstreamReset),
        upstream::Failed::Io(e) => of_connection(e),
    };
    Failure { failed: kind, error: Error::new(reason, failed) }
}

/// What a connection that broke before the response says.
fn of_connection(error: &(dyn StdError + 'static)) -> (Failed, Reason) {
    match find::<rustls::Error>(error) {
        // In TLS 1.3 the server judges the client's certificate after the client has begun to send; it hands nothing on
        // before.
        Some(rustls::Error::AlertReceived(_)) => (Failed::Connect, Reason::TlsHandshake),
        _ => (Failed::Reset, Reason::UpstreamReset),
    }
}

/// The peer is there and has given up this request: nothing that a new connection would cure.
fn is_reset_of_stream(failure: &Failure) -> bool {
    find::<h2::Error>(&failure.error).is_some_and(h2::Error::is_reset)
}

/// RFC 9113 section 8.7: such a request was not processed.
fn refused(error: &h2::Error) -> bool {
    let graceful = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    error.is_remote() && (graceful || refused)
}
