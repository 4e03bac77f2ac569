//! A connection that changes its protocol (101 Switching Protocols): WebSocket and the like. From then on its bytes are
//! opaque and copied both ways. It changes nothing itself.

use std::rc::Rc;

use http::{HeaderValue, Response};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use weft_api::Reason;

use super::exchange::{Exchange, Served};
use super::headers;
use crate::error::Error;
use crate::forward::{self, Broken, Counts};
use crate::worker::Worker;

/// Passes the upstream's 101 on, and copies once both sides have changed over. Draining waits for it.
pub(crate) fn switch(
    worker: &Rc<Worker>,
    mut exchange: Box<Exchange>,
    client: OnUpgrade,
    mut response: Response<Incoming>,
) -> Response<Served> {
    let upstream = hyper::upgrade::on(&mut response);
    let (mut head, _) = response.into_parts();
    let protocol = head.headers.get(http::header::UPGRADE).cloned();
    headers::forward_response(&mut head.headers);
    exchange.dress(&mut head.headers);
    headers::restore_upgrade(&mut head.headers, protocol.unwrap_or(HeaderValue::from_static("websocket")));
    exchange.record.status = head.status.as_u16();
    worker.spawn(async move {
        let (client, upstream) = match futures::future::try_join(client, upstream).await {
            Ok(both) => both,
            Err(e) => return exchange.break_off(&Error::new(Reason::UpstreamReset, e)),
        };
        let counts = Counts::default();
        let copied = forward::copy(&mut TokioIo::new(client), &mut TokioIo::new(upstream), &counts).await;
        exchange.record.request_bytes = copied.sent;
        exchange.record.response_bytes = copied.received;
        if let Some(Broken::Upstream(e)) = copied.broken {
            exchange.break_off(&Error::new(Reason::UpstreamReset, e));
        }
    });
    Response::from_parts(head, Served::empty())
}
