//! Applies what a rule does besides choosing where a request goes: before it is sent, in place of sending it, and to what is
//! answered. The decisions are in `filter`; a route without filters never comes here.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, LOCATION};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use tokio::time::{Instant, sleep_until};
use weft_api::Reason;

use super::clock::Deadline;
use super::exchange::{Exchange, Served};
use super::incoming::Incoming;
use super::reply;
use crate::error::Error;
use crate::filter::cors::{Preflight, Standing};
use crate::filter::direct::Direct;
use crate::filter::fault::{Abort, Drawn, grpc_of_http};
use crate::filter::redirect::Redirect;
use crate::filter::{Answer, Filters};

/// Words of the access log's `action`.
const PREFLIGHT: &str = "preflight";
const REDIRECT: &str = "redirect";
const RESPONSE: &str = "response";
const DELAY: &str = "delay";

/// What a rule does to whatever is answered.
pub(crate) struct After {
    filters: Arc<Filters>,
    standing: Standing,
}

impl After {
    /// To a response of the application, and to one that the rule gives itself.
    pub(crate) fn answered(&self, headers: &mut HeaderMap) {
        self.refused(headers);
        if let Some(changes) = &self.filters.response {
            changes.apply(headers);
        }
    }

    /// To a refusal of the proxy: only what lets a page read it.
    pub(crate) fn refused(&self, headers: &mut HeaderMap) {
        if let Some(cors) = &self.filters.cors {
            cors.mark(&self.standing, headers);
        }
    }
}

/// Answers in place of the application where the rule says so; otherwise rewrites where the request goes. `prefix`: the one
/// that matched.
pub(super) fn begin(
    mut exchange: Box<Exchange>,
    request: &mut Request<Incoming>,
    filters: &Arc<Filters>,
    prefix: Option<&str>,
) -> ControlFlow<Response<Served>, Box<Exchange>> {
    let standing = match &filters.cors {
        Some(cors) => cors.standing(request.headers()),
        None => Standing::NoOrigin,
    };
    let preflight =
        filters.cors.as_ref().and_then(|cors| cors.preflight(request.method(), request.headers(), &standing));
    match preflight {
        Some(Preflight::Granted(answer)) => {
            // It is complete: nothing is to be added to it.
            let mut response = Response::new(Served::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            *response.headers_mut() = answer;
            return ControlFlow::Break(exchange.answer(PREFLIGHT, response));
        }
        Some(Preflight::Refused) => return ControlFlow::Break(exchange.refuse(&Reason::CorsRefused.into())),
        None => {}
    }
    if filters.cors.is_some() || filters.response.is_some() {
        exchange.shape(After { filters: Arc::clone(filters), standing });
    }
    let unfit = |exchange: Box<Exchange>, cause| {
        ControlFlow::Break(exchange.refuse(&Error::new(Reason::BadRequest, cause)))
    };
    match &filters.answer {
        Some(Answer::Direct(direct)) => {
            ControlFlow::Break(exchange.answer(RESPONSE, respond(direct, request.method())))
        }
        Some(Answer::Redirect(redirect)) => match location(redirect, request, prefix) {
            Ok(location) => {
                let mut response = Response::new(Served::empty());
                *response.status_mut() = redirect.status;
                response.headers_mut().insert(LOCATION, location);
                ControlFlow::Break(exchange.answer(REDIRECT, response))
            }
            Err(cause) => unfit(exchange, cause),
        },
        None => {
            if let Some(rewrite) = &filters.rewrite {
                let mut uri = std::mem::take(request.uri_mut());
                let rewritten = rewrite.apply(&mut uri, request.headers_mut(), prefix);
                *request.uri_mut() = uri;
                if let Err(cause) = rewritten {
                    return unfit(exchange, cause);
                }
            }
            ControlFlow::Continue(exchange)
        }
    }
}

fn respond(direct: &Direct, method: &Method) -> Response<Served> {
    let mut response = Response::new(Served::empty());
    *response.status_mut() = direct.status;
    if direct.body.is_empty() {
        return response;
    }
    response.headers_mut().insert(CONTENT_TYPE, direct.content_type.clone());
    if *method == Method::HEAD {
        // RFC 9110 section 9.3.2: the same head, and no body.
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(direct.body.len()));
    } else {
        *response.body_mut() = Served::own(Bytes::clone(&direct.body));
    }
    response
}

fn location(
    redirect: &Redirect,
    request: &Request<Incoming>,
    prefix: Option<&str>,
) -> Result<HeaderValue, crate::filter::rewrite::Unfit> {
    let uri = request.uri();
    let named = || request.headers().get(HOST)?.to_str().ok()?.parse::<Authority>().ok();
    let authority = uri.authority().cloned().or_else(named);
    redirect.location(uri, authority.as_ref(), prefix)
}

/// Makes the request wait, then fail, as it was drawn. The client may leave meanwhile, which ends it; the rule's timeout and
/// a gRPC call's deadline run.
pub(super) async fn inject(
    mut exchange: Box<Exchange>,
    drawn: Drawn,
    deadline: Option<Deadline>,
) -> ControlFlow<Response<Served>, Box<Exchange>> {
    if let Some(delay) = drawn.delay {
        exchange.record.action = DELAY;
        let until = Instant::now() + delay;
        let earlier = deadline.filter(|deadline| deadline.at < until);
        sleep_until(earlier.map_or(until, |deadline| deadline.at)).await;
        if let Some(deadline) = earlier {
            return ControlFlow::Break(exchange.refuse(&deadline.reason.into()));
        }
    }
    let Some(abort) = drawn.abort else { return ControlFlow::Continue(exchange) };
    let reason = Reason::FaultInjected;
    let response = match abort {
        Abort::Grpc(status) => reply::grpc_reply(reason, status),
        Abort::Http(status) if exchange.is_grpc() => reply::grpc_reply(reason, grpc_of_http(status.as_u16())),
        Abort::Http(status) => reply::http_reply(reason, status),
    };
    ControlFlow::Break(exchange.refuse_with(&reason.into(), response))
}
