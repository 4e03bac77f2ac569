//! How a request that has ended looks as a span. Names are those of OpenTelemetry's semantic conventions for HTTP (1.37)
//! where there is one, and begin with `weft.` otherwise. Texts that clients choose are bounded; no query and no header of a
//! request is in it, but the host that was named and the request's id. Pure.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Method;

use super::otlp::{self, CLIENT, ERROR, HAS_REMOTE, KeyValue, REMOTE, SERVER, Value, attribute};
use super::{Ended, Retry};
use crate::record::{Direction, HttpKind, RequestRecord};
use crate::retry::Failed;

/// Longest text of a client, in bytes.
const LONGEST: usize = 1024;

pub(super) fn span(ended: &Ended) -> otlp::Span {
    let Ended { open, record } = ended;
    let flags = u32::from(open.flags) | if open.parent.is_some() { HAS_REMOTE | REMOTE } else { 0 };
    let kind = match record.direction {
        Direction::Inbound => SERVER,
        Direction::Outbound => CLIENT,
    };
    otlp::Span {
        trace_id: open.trace.0.to_vec(),
        span_id: open.span.0.to_vec(),
        trace_state: open.state.as_ref().and_then(|state| state.to_str().ok()).unwrap_or_default().to_owned(),
        parent_span_id: open.parent.map(|parent| parent.0.to_vec()).unwrap_or_default(),
        name: name(record),
        kind,
        start: nanos(open.started),
        end: nanos(open.started + record.duration),
        attributes: attributes(record),
        events: open.retries.iter().map(|retry| event(open.started, retry)).collect(),
        status: error(record).map(|message| otlp::Status { message, code: ERROR }),
        flags,
    }
}

/// Of few different ones: never with a path.
fn name(record: &RequestRecord) -> String {
    let method = known(&record.method).unwrap_or("HTTP");
    if record.route.is_empty() { method.to_owned() } else { format!("{method} {}", record.route) }
}

/// Others are of whoever invents them.
fn known(method: &Method) -> Option<&'static str> {
    const KNOWN: [&str; 9] = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT"];
    KNOWN.into_iter().find(|known| *known == method.as_str())
}

fn attributes(record: &RequestRecord) -> Vec<KeyValue> {
    let mut all = Vec::with_capacity(20);
    let mut set = |key: &str, value: Value| all.push(attribute(key, value));
    match known(&record.method) {
        Some(method) => set("http.request.method", method.into()),
        None => {
            set("http.request.method", "_OTHER".into());
            set("http.request.method_original", clipped(record.method.as_str()).into());
        }
    }
    set("url.path", clipped(record.uri.path()).into());
    if record.status != 0 {
        set("http.response.status_code", record.status.into());
    }
    let host = record.host.as_ref().map(|host| String::from_utf8_lossy(host.as_bytes()));
    if let Some((name, port)) = host.as_deref().map(address) {
        set("server.address", clipped(name).into());
        if let Some(port) = port {
            set("server.port", port.into());
        }
    }
    let (peer, other): (Option<SocketAddr>, _) = match record.direction {
        Direction::Inbound => (Some(record.client), &record.source),
        Direction::Outbound => (record.upstream, &record.destination),
    };
    if let Some(peer) = peer {
        set("network.peer.address", peer.ip().to_canonical().to_string().into());
        set("network.peer.port", peer.port().into());
    }
    let version = if record.kind == HttpKind::Http1 { "1.1" } else { "2" };
    set("network.protocol.name", "http".into());
    set("network.protocol.version", version.into());
    if record.kind == HttpKind::Grpc {
        set("rpc.system", "grpc".into());
        if let Some(status) = record.grpc_status {
            set("rpc.grpc.status_code", status.into());
        }
    }
    set("http.request.body.size", record.request_bytes.into());
    set("http.response.body.size", record.response_bytes.into());
    if record.retries > 0 {
        set("http.request.resend_count", record.retries.into());
        set("weft.retries", record.retries.into());
    }
    if let Some(reason) = record.reason {
        set("error.type", reason.as_str().into());
        set("weft.reason", reason.as_str().into());
    } else if error(record).is_some() {
        set("error.type", record.grpc_status.filter(|s| *s != 0).unwrap_or(record.status).to_string().into());
    }
    set("weft.mtls", record.mtls.into());
    if record.mtls
        && let Some(identity) = &other.identity
    {
        set("weft.peer.identity", identity.to_string().into());
    }
    let names = [
        ("weft.peer.workload", &*other.workload),
        ("weft.peer.namespace", &*other.namespace),
        ("weft.service", &*record.service),
        ("weft.route", &*record.route),
        ("weft.action", record.action),
    ];
    for (key, name) in names.into_iter().filter(|(_, name)| !name.is_empty()) {
        set(key, name.into());
    }
    set("weft.request_id", clipped(&String::from_utf8_lossy(record.request_id.as_bytes())).into());
    all
}

/// Why it is an error, if it is one. Semantic conventions for HTTP spans, "Status", and of gRPC, "Status": what a client did
/// wrong is no error of the server.
fn error(record: &RequestRecord) -> Option<String> {
    let client = record.direction == Direction::Outbound;
    if let Some(reason) = record.reason
        && (client || record.status >= 500 || record.status < 400)
    {
        return Some(reason.as_str().to_owned());
    }
    if record.status >= if client { 400 } else { 500 } {
        return Some(format!("status {}", record.status));
    }
    // UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
    let bad = |status: &u16| *status != 0 && (client || [2, 4, 12, 13, 14, 15].contains(status));
    record.grpc_status.filter(bad).map(|status| format!("grpc-status {status}"))
}

fn event(started: SystemTime, retry: &Retry) -> otlp::Event {
    let (word, status) = match retry.failed {
        Failed::Connect => ("connect", None),
        Failed::Untouched => ("untouched", None),
        Failed::Reset => ("reset", None),
        Failed::PerTryTimeout => ("per-try-timeout", None),
        Failed::Status(status) => ("status", Some(("http.response.status_code", status))),
        Failed::Grpc(status) => ("grpc-status", Some(("rpc.grpc.status_code", status))),
    };
    let mut attributes = vec![attribute("weft.failed", word)];
    attributes.extend(status.map(|(key, status)| attribute(key, status)));
    if let Some(endpoint) = retry.endpoint {
        attributes.push(attribute("network.peer.address", endpoint.ip().to_canonical().to_string()));
        attributes.push(attribute("network.peer.port", endpoint.port()));
    }
    otlp::Event { time: nanos(started + retry.after), name: "retry".to_owned(), attributes }
}

/// A host's name, and its port if it says one; without what stands before an `@`, which may be a password.
fn address(host: &str) -> (&str, Option<u16>) {
    let host = host.rsplit('@').next().unwrap_or_default();
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port.parse().ok()),
        _ => (host, None),
    }
}

fn clipped(text: &str) -> &str {
    &text[..text.floor_char_boundary(LONGEST)]
}

fn nanos(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::tests::record;
    use crate::trace::{Open, SpanId, TraceId};
    use http::{HeaderValue, Uri};
    use weft_api::Reason;

    fn of(record: RequestRecord) -> otlp::Span {
        let open = Open {
            trace: TraceId::of(1, 2),
            span: SpanId::of(3),
            parent: Some(SpanId::of(4)),
            flags: 1,
            state: Some(HeaderValue::from_static("a=1")),
            started: UNIX_EPOCH + Duration::from_secs(1),
            retries: vec![Retry {
                after: Duration::from_millis(5),
                failed: Failed::Status(503),
                endpoint: Some("10.0.0.9:80".parse().unwrap()),
            }],
        };
        span(&Ended { open, record })
    }

    fn value(all: &[KeyValue], key: &str) -> Option<Value> {
        let found: Vec<_> = all.iter().filter(|one| one.key == key).collect();
        assert!(found.len() <= 1, "{key} twice");
        found.first()?.value.clone()?.value
    }

    #[test]
    fn a_call_is_a_client_span_with_its_route_and_no_query() {
        let span = of(RequestRecord { retries: 1, ..record() });
        assert_eq!(
            (span.name.as_str(), span.kind, span.trace_state.as_str()),
            ("GET split/0", CLIENT, "a=1")
        );
        assert_eq!((span.start, span.end), (1_000_000_000, 1_001_500_000));
        assert_eq!((span.span_id[7], span.parent_span_id[7], span.flags), (3, 4, 0x301));
        assert_eq!(span.status, None);
        for (key, wanted) in [
            ("url.path", Value::from("/cart")),
            ("http.request.method", "GET".into()),
            ("http.response.status_code", 200_u16.into()),
            ("server.address", "back".into()),
            ("network.peer.address", "10.0.0.2".into()),
            ("weft.peer.identity", "spiffe://cluster.local/ns/shop/sa/back-v1".into()),
            ("weft.service", "shop/back:80".into()),
            ("weft.retries", 1_u32.into()),
            ("weft.request_id", "6f9".into()),
        ] {
            assert_eq!(value(&span.attributes, key), Some(wanted), "{key}");
        }
        assert!(!format!("{span:?}").contains("item=1"));
        assert_eq!((span.events[0].name.as_str(), span.events[0].time), ("retry", 1_005_000_000));
        assert_eq!(value(&span.events[0].attributes, "http.response.status_code"), Some(503_u16.into()));
    }

    #[test]
    fn errors_are_of_whom_they_are() {
        let status = |direction, status, reason, grpc_status| {
            of(RequestRecord { direction, status, reason, grpc_status, ..record() }).status.is_some()
        };
        let (out, into) = (Direction::Outbound, Direction::Inbound);
        assert!(!status(out, 200, None, None) && !status(into, 200, None, None));
        assert!(status(out, 404, None, None) && !status(into, 404, None, None));
        assert!(status(out, 500, None, None) && status(into, 500, None, None));
        assert!(
            !status(into, 403, Some(Reason::PolicyDenied), None)
                && status(out, 503, Some(Reason::ConnectFailed), None)
        );
        assert!(status(into, 200, Some(Reason::UpstreamReset), None), "broken off");
        assert!(status(out, 200, None, Some(5)) && !status(into, 200, None, Some(5)));
        assert!(status(into, 200, None, Some(13)) && !status(out, 200, None, Some(0)));
        let refused = of(RequestRecord { status: 503, reason: Some(Reason::ConnectFailed), ..record() });
        assert_eq!(value(&refused.attributes, "weft.reason"), Some("connect-failed".into()));
        assert_eq!(refused.status.unwrap().message, "connect-failed");
    }

    #[test]
    fn what_clients_invent_is_neither_a_name_nor_without_bound() {
        let span = of(RequestRecord {
            direction: Direction::Inbound,
            method: Method::from_bytes(b"BREW").unwrap(),
            uri: Uri::try_from(format!("/{}", "a".repeat(5000))).unwrap(),
            host: Some(HeaderValue::from_static("me:secret@back:8080")),
            route: "".into(),
            ..record()
        });
        assert_eq!((span.name.as_str(), span.kind), ("HTTP", SERVER));
        assert_eq!(value(&span.attributes, "http.request.method"), Some("_OTHER".into()));
        assert_eq!(value(&span.attributes, "server.address"), Some("back".into()));
        assert_eq!(value(&span.attributes, "server.port"), Some(8080_u16.into()));
        assert_eq!(value(&span.attributes, "network.peer.address"), Some("10.0.0.1".into()));
        let Some(Value::Text(path)) = value(&span.attributes, "url.path") else { panic!("no path") };
        assert_eq!(path.len(), LONGEST);
        assert_eq!((address("[::1]:80"), address("[::1]")), (("[::1]", Some(80)), ("[::1]", None)));
    }
}
