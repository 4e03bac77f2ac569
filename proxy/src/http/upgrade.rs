//! A connection that changes its protocol (101 Switching Protocols): WebSocket and the like. From then on its bytes are
//! opaque and copied both ways. It changes nothing itself.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use http::{HeaderValue, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use weft_api::Reason;

use super::clock::Clock;
use super::exchange::{Exchange, Served};
use super::headers;
use super::incoming::Incoming;
use crate::error::Error;
use crate::forward::{self, Broken, Copied, Counts};
use crate::tcp::End;
use crate::worker::Worker;

/// Passes the upstream's 101 on, and copies once both sides have changed over, until there is a reason not to. Draining waits
/// for it.
pub(crate) fn switch(
    worker: &Rc<Worker>,
    mut exchange: Box<Exchange>,
    client: OnUpgrade,
    response: Response<Incoming>,
    clock: Option<Box<Clock>>,
    until: impl Future<Output = End> + 'static,
) -> Response<Served> {
    let (mut head, body) = response.into_parts();
    let Incoming::Reply(reply) = body else { return exchange.refuse(&Reason::UpstreamProtocol.into()) };
    let mut upstream = reply.upgraded();
    let protocol = head.headers.get(http::header::UPGRADE).cloned();
    headers::forward_response(&mut head.headers);
    exchange.dress(&mut head.headers);
    headers::restore_upgrade(&mut head.headers, protocol.unwrap_or(HeaderValue::from_static("websocket")));
    exchange.record.status = head.status.as_u16();
    let worker = Rc::clone(worker);
    Rc::clone(&worker).spawn(async move {
        let mut client = match client.await {
            Ok(client) => TokioIo::new(client),
            Err(e) => return exchange.break_off(&Error::new(Reason::UpstreamReset, e)),
        };
        let counts = Counts::default();
        let copying = forward::copy(&mut client, &mut upstream, &counts);
        // The protocol has no end of its own: from here on only silence ends it.
        let copying = async {
            match clock.and_then(Clock::of_stream) {
                None => Ok(copying.await),
                Some(clock) => unless_silent(clock, &counts, copying).await,
            }
        };
        let copied = tokio::select! {
            copied = copying => Ok(copied),
            end = until => Err(end),
        };
        exchange.record.request_bytes = counts.sent();
        exchange.record.response_bytes = counts.received();
        match copied {
            Ok(Ok(Copied { broken: Some(Broken::Upstream(e)), .. })) => {
                exchange.break_off(&Error::new(Reason::UpstreamReset, e));
            }
            Ok(Ok(_)) => {}
            Ok(Err(reason)) => exchange.break_off(&reason.into()),
            Err(end) => {
                exchange.break_off(&end.error);
                if end.authorization.is_some() {
                    exchange.record.authorization = end.authorization;
                    worker.proxy.decided(&exchange.record);
                }
            }
        }
    });
    Response::from_parts(head, Served::empty())
}

async fn unless_silent(
    mut clock: Box<Clock>,
    counts: &Counts,
    copying: impl Future<Output = Copied>,
) -> Result<Copied, Reason> {
    let mut copying = pin!(copying);
    let mut before = 0;
    clock.touch();
    poll_fn(|cx| {
        if let Poll::Ready(copied) = copying.as_mut().poll(cx) {
            return Poll::Ready(Ok(copied));
        }
        let bytes = counts.sent() + counts.received();
        if bytes != std::mem::replace(&mut before, bytes) {
            clock.touch();
        }
        clock.poll(cx).map(Err)
    })
    .await
}
