//! One request, from its head until the end of its response: what it holds (load, permits, connection), and what is
//! recorded of it. Whatever way it ends, also by being dropped because the client has left, it gives everything back
//! and is recorded once.

use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, Version};
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Instant;
use weft_api::Reason;

use super::body::Source;
use super::client::{Held, Wire};
use super::clock::Clock;
use super::filters::After;
use super::incoming::Incoming;
use super::{headers, reply};
use crate::balance::{Load, Outcome};
use crate::breaker::Permit;
use crate::error::Error;
use crate::outlier::Failure;
use crate::proxy::Proxy;
use crate::record::{Direction, HttpKind, Party, RequestRecord};
use crate::retry::Failed;
use crate::trace::{self, Open};
use crate::worker::Worker;

/// See the module.
pub(crate) struct Exchange {
    worker: Rc<Worker>,
    started: Instant,
    /// What is known of it so far.
    pub(crate) record: RequestRecord,
    /// The request's body.
    pub(crate) body: Source,
    /// That the client gets with the response.
    pub(crate) cookie: Option<HeaderValue>,
    load: Option<Load>,
    held: Option<Held>,
    permit: Option<Permit>,
    retry_permit: Option<Permit>,
    // What the rule does to whatever is answered.
    after: Option<Box<After>>,
    // Its trace is told of.
    span: Option<Box<Open>>,
}

/// An upstream's response, not passed on yet.
pub(crate) struct Answer {
    pub(crate) response: Response<Incoming>,
    pub(crate) held: Held,
    /// Read ahead of the rest of the body.
    pub(crate) first: Option<Box<Frame<Bytes>>>,
}

impl Answer {
    pub(crate) const fn new(response: Response<Incoming>, held: Held) -> Self {
        Self { response, held, first: None }
    }
}

impl Exchange {
    /// With a request's head, before it is judged.
    pub(crate) fn begin(
        worker: &Rc<Worker>,
        direction: Direction,
        request: &mut Request<Incoming>,
        wire: Wire,
        client: SocketAddr,
    ) -> Box<Self> {
        let request_id = worker.with_rng(|rng| headers::request_id(request.headers_mut(), rng));
        let random = || worker.with_rng(trace::random);
        let trace = worker.proxy.traces.begin(request.headers_mut(), random);
        let authority = || HeaderValue::from_str(request.uri().authority()?.as_str()).ok();
        let kind = match wire {
            _ if headers::is_grpc(request.headers()) => HttpKind::Grpc,
            Wire::Http1 => HttpKind::Http1,
            Wire::Http2 => HttpKind::Http2,
        };
        let record = RequestRecord {
            kind,
            method: request.method().clone(),
            uri: request.uri().clone(),
            host: request.headers().get(HOST).cloned().or_else(authority),
            request_id,
            trace: trace.as_ref().and_then(|begun| begun.trace),
            ..blank(direction, client)
        };
        Box::new(Self {
            worker: Rc::clone(worker),
            started: Instant::now(),
            record,
            body: Source::empty(),
            cookie: None,
            load: None,
            held: None,
            permit: None,
            retry_permit: None,
            after: None,
            span: trace.and_then(|begun| begun.open),
        })
    }

    /// Records a request whose head never came whole, or could not be read.
    pub(crate) fn unread(
        proxy: &Proxy,
        direction: Direction,
        client: SocketAddr,
        ends: [Party; 2],
        error: &Error,
    ) {
        let [source, destination] = ends;
        proxy.record(&RequestRecord {
            status: error.reason().status(),
            reason: Some(error.reason()),
            detail: error.detail(),
            source,
            destination,
            ..blank(direction, client)
        });
    }

    pub(crate) const fn started(&self) -> Instant {
        self.started
    }

    pub(crate) fn is_grpc(&self) -> bool {
        self.record.kind == HttpKind::Grpc
    }

    /// Counts as a request under way until the end.
    pub(crate) fn admit(&mut self, permit: Permit) {
        self.permit = Some(permit);
    }

    /// Goes to this endpoint now, in place of an earlier one.
    pub(crate) fn attempt(&mut self, load: Load, retry: Option<Permit>) {
        self.retry_permit = retry;
        self.record.upstream = Some(load.endpoint.addr);
        self.load = Some(load);
    }

    /// Tells the balancer how the endpoint does.
    pub(crate) fn report(&mut self, outcome: Outcome) {
        if let Some(load) = &mut self.load {
            self.worker.report(&self.record.service, load, outcome);
        }
    }

    /// Nobody waits for the endpoint any longer, which is not its failure.
    pub(crate) fn outlasted(&self) {
        if let Some(load) = &self.load {
            load.outlasted();
        }
    }

    /// The endpoint has answered, at this moment; perhaps that it takes no more for now.
    pub(crate) fn answered(&mut self, refuses: bool, at: Instant) {
        if let Some(load) = &self.load {
            let latency = at.saturating_duration_since(load.started());
            self.report(if refuses { Outcome::Refused } else { Outcome::Success { latency } });
        }
    }

    /// The last try has failed like this, and there will be another one.
    pub(crate) fn retries(&mut self, failed: Failed) {
        self.record.retries += 1;
        if let Some(span) = &mut self.span {
            span.retry(self.started.elapsed(), failed, self.record.upstream);
        }
    }

    /// Ends with a response of the proxy's own.
    pub(crate) fn refuse(self: Box<Self>, error: &Error) -> Response<Served> {
        let close = error.reason() == Reason::BadRequest && self.record.kind != HttpKind::Http2;
        let grpc = self.is_grpc();
        let response = if close && !grpc {
            reply::last_reply(error.reason(), grpc)
        } else {
            reply::reply(error.reason(), grpc)
        };
        self.refuse_with(error, response)
    }

    /// The same, with a response made for it.
    pub(crate) fn refuse_with(
        mut self: Box<Self>,
        error: &Error,
        mut response: Response<Served>,
    ) -> Response<Served> {
        self.break_off(error);
        if let Some(after) = &self.after {
            after.refused(response.headers_mut());
        }
        self.own(response)
    }

    /// Ends as a rule wants it, with a response of the proxy's own.
    pub(crate) fn answer(
        mut self: Box<Self>,
        action: &'static str,
        mut response: Response<Served>,
    ) -> Response<Served> {
        self.record.action = action;
        if let Some(after) = &self.after {
            after.answered(response.headers_mut());
        }
        self.own(response)
    }

    /// Ends with a response of the proxy's own, made as it shall be but for what every one of them has.
    fn own(mut self: Box<Self>, mut response: Response<Served>) -> Response<Served> {
        // For `weft explain`.
        response.headers_mut().insert(headers::REQUEST_ID, self.record.request_id.clone());
        self.record.status = response.status().as_u16();
        self.record.grpc_status = self.is_grpc().then(|| headers::grpc_status(response.headers())).flatten();
        self.record.response_bytes = response.body().size_hint().exact().unwrap_or_default();
        response
    }

    /// What the rule does to whatever is answered.
    pub(crate) fn shape(&mut self, after: After) {
        self.after = Some(Box::new(after));
    }

    /// Notes why it ends before its time.
    pub(crate) fn break_off(&mut self, error: &Error) {
        self.record.reason = Some(error.reason());
        self.record.detail = error.detail();
    }

    /// Passes an upstream's response on; its body carries the exchange to its end.
    pub(crate) fn respond(
        mut self: Box<Self>,
        answer: Answer,
        clock: Option<Box<Clock>>,
    ) -> Response<Served> {
        let Answer { response, held, first } = answer;
        let (mut head, body) = response.into_parts();
        headers::forward_response(&mut head.headers);
        self.dress(&mut head.headers);
        if head.version < Version::HTTP_2 {
            // RFC 9112 section 2.3: a proxy states its own version, whatever the upstream's.
            head.version = Version::HTTP_11;
        }
        self.body.settle();
        self.record.status = head.status.as_u16();
        if self.is_grpc() {
            self.record.grpc_status = headers::grpc_status(&head.headers);
        }
        self.held = Some(held);
        let clock = clock.and_then(|clock| {
            clock.touch();
            // Such a response has no end of its own (WHATWG HTML, "Server-sent events").
            if headers::is_event_stream(&head.headers) { clock.of_stream() } else { Some(clock) }
        });
        let mut relay = Box::new(Relay {
            body,
            first,
            clock,
            grpc: self.is_grpc() && head.version == Version::HTTP_2,
            cut: false,
            exchange: Some(self),
        });
        if relay.is_over() {
            relay.end();
        }
        Response::from_parts(head, Served::Relay(relay))
    }

    /// Changes the head of an upstream's response as the rule wants it.
    pub(crate) fn dress(&self, response: &mut HeaderMap) {
        if let Some(after) = &self.after {
            after.answered(response);
        }
    }

    /// The response came whole: the connection can be used again.
    fn complete(&mut self) {
        if let Some(Held::Http1(lent)) = self.held.take() {
            self.worker.pool.give_back(lent);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.worker.cuts_off() {
            self.record.reason.get_or_insert(Reason::Draining);
        }
        self.record.duration = self.started.elapsed();
        self.record.request_bytes += self.body.seen();
        self.worker.proxy.record(&self.record);
        if let Some(span) = self.span.take() {
            self.worker.proxy.traces.end(*span, &self.record);
        }
    }
}

/// Nothing is known but who connected.
fn blank(direction: Direction, client: SocketAddr) -> RequestRecord {
    RequestRecord {
        direction,
        kind: HttpKind::Http1,
        // Not a method of anything.
        method: Method::from_bytes(b"-").unwrap_or_default(),
        uri: Uri::default(),
        host: None,
        request_id: HeaderValue::from_static(""),
        status: 0,
        grpc_status: None,
        reason: None,
        detail: None,
        duration: std::time::Duration::ZERO,
        request_bytes: 0,
        response_bytes: 0,
        retries: 0,
        mtls: false,
        source: Party::default(),
        destination: Party::default(),
        service: Arc::default(),
        route: Arc::default(),
        client,
        upstream: None,
        action: "",
        authorization: None,
        token: None,
        trace: None,
    }
}

/// The body of a response.
pub enum Served {
    /// The proxy's own.
    Own(Option<Bytes>),
    /// An upstream's.
    Relay(Box<Relay>),
}

/// An upstream's body on its way to the client.
pub struct Relay {
    body: Incoming,
    // Comes before the rest of the body.
    first: Option<Box<Frame<Bytes>>>,
    clock: Option<Box<Clock>>,
    // Trailers can say why it ends before its time.
    grpc: bool,
    // They have.
    cut: bool,
    exchange: Option<Box<Exchange>>,
}

impl Served {
    /// Nothing.
    #[must_use]
    pub const fn empty() -> Self {
        Self::Own(None)
    }

    /// The proxy's own words.
    #[must_use]
    pub const fn own(bytes: Bytes) -> Self {
        Self::Own(Some(bytes))
    }
}

impl Relay {
    fn is_over(&self) -> bool {
        self.cut || self.first.is_none() && self.body.is_end_stream()
    }

    fn end(&mut self) {
        if let Some(mut exchange) = self.exchange.take() {
            exchange.complete();
        }
    }

    fn broken(&mut self, error: Error, failure: Failure) -> Error {
        if let Some(mut exchange) = self.exchange.take() {
            exchange.break_off(&error);
            exchange.report(Outcome::Failure(failure));
        }
        error
    }

    /// Time is up. A gRPC call ends with its status, anything else without its end.
    fn late(&mut self, reason: Reason) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let error = Error::from(reason);
        if let Some(mut exchange) = self.exchange.take() {
            exchange.break_off(&error);
            // Silence is of both sides, and a call's deadline its client's choice.
            if reason == Reason::RequestTimeout {
                exchange.report(Outcome::Failure(Failure::Timeout));
            }
            if self.grpc {
                exchange.record.grpc_status = Some(reply::grpc_status(reason));
            }
        }
        self.cut = true;
        Poll::Ready(Some(if self.grpc { Ok(Frame::trailers(reply::trailers(reason))) } else { Err(error) }))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.cut {
            return Poll::Ready(None);
        }
        let late = match &mut self.clock {
            Some(clock) if self.exchange.is_some() => clock.poll(cx),
            _ => Poll::Pending,
        };
        if let Poll::Ready(reason) = late
            && reason != Reason::IdleTimeout
        {
            return self.late(reason);
        }
        let next = match self.first.take() {
            Some(first) => Some(Ok(*first)),
            None => match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(next) => next,
                // It was silent for that long, and not just nobody who read it.
                Poll::Pending => {
                    return if let Poll::Ready(reason) = late { self.late(reason) } else { Poll::Pending };
                }
            },
        };
        if let Some(clock) = &self.clock {
            clock.touch();
        }
        match next {
            Some(Ok(frame)) => {
                if let Some(exchange) = &mut self.exchange {
                    if let Some(data) = frame.data_ref() {
                        exchange.record.response_bytes += data.len() as u64;
                    } else if let Some(trailers) = frame.trailers_ref()
                        && exchange.is_grpc()
                    {
                        exchange.record.grpc_status = headers::grpc_status(trailers);
                    }
                }
                if self.is_over() {
                    self.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(e)) => {
                let error = self.broken(Error::new(Reason::UpstreamReset, e), Failure::Reset);
                Poll::Ready(Some(Err(error)))
            }
            None => {
                self.end();
                Poll::Ready(None)
            }
        }
    }
}

impl Body for Served {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.get_mut() {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Relay(relay) => relay.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Relay(relay) => relay.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Relay(relay) => {
                let mut hint = relay.body.size_hint();
                if let Some(data) = relay.first.as_ref().and_then(|first| first.data_ref()) {
                    let ahead = data.len() as u64;
                    if let Some(upper) = hint.upper() {
                        hint.set_upper(upper + ahead);
                    }
                    hint.set_lower(hint.lower() + ahead);
                }
                hint
            }
        }
    }
}
