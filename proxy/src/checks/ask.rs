//! One check of one endpoint, over the same kind of connection as requests: mTLS with the expected identity where the endpoint is
//! in the mesh, plain otherwise. Its connection serves nothing else. It counts and concludes nothing.
//! Source of the gRPC part: grpc/grpc doc/health-checking.md.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, TE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use super::standing::{ActiveCheck, Kind};
use crate::connect::{self, Upstream};
use crate::dial::chain;
use crate::originate::Originate;
use crate::snapshot::Endpoint;
use crate::tls::{Alpn, Tls};

const AGENT: HeaderValue = HeaderValue::from_static(concat!("weft-check/", env!("CARGO_PKG_VERSION")));
/// Of a response of the health protocol; of others the body is not read.
const MAX_MESSAGE: usize = 4096;
/// How long an application that is reached through its proxy has for refusing a connection. It is next door.
const MOMENT: Duration = Duration::from_millis(250);

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Passed,
    /// Why, for the log and the status.
    Failed(String),
    /// It is alive, and has no time for us (429).
    Neither,
}

impl Asked {
    /// The word for metrics.
    pub(super) const fn as_str(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed(_) => "failed",
            Self::Neither => "neither",
        }
    }
}

type Answer = Result<Asked, Box<dyn std::error::Error + Send + Sync>>;

/// Asks. `own`: it is the own pod's application.
pub(super) async fn ask(
    tls: &Tls,
    originate: Option<&Originate>,
    endpoint: &Endpoint,
    check: &ActiveCheck,
    own: bool,
) -> Asked {
    let at = SocketAddr::new(endpoint.addr.ip(), check.port.unwrap_or(endpoint.addr.port()));
    let identity = endpoint.check.as_ref().and_then(|check| check.identity.as_deref()).filter(|_| !own);
    let answer = async {
        let open = async |alpn| match originate {
            Some(originate) => originate.open(at, alpn, check.timeout).await,
            None => connect::open(tls, at, identity, alpn, check.timeout).await,
        };
        match &check.kind {
            Kind::Tcp => tcp(open(Alpn::Tcp).await?, check.timeout).await,
            Kind::Http { path, expected, host } => {
                let mut request = Request::new(Full::default());
                *request.uri_mut() = path.clone().into();
                let host = match host {
                    Some(host) => host.clone(),
                    None => HeaderValue::from_str(&at.to_string())?,
                };
                request.headers_mut().insert(HOST, host);
                request.headers_mut().insert(USER_AGENT, AGENT);
                let response = http1(open(Alpn::Http1).await?, request).await?;
                Ok(by_status(response.status().as_u16(), expected))
            }
            Kind::Grpc(service) => grpc(open(Alpn::Http2).await?, at, service).await,
        }
    };
    match timeout(check.timeout, Box::pin(answer)).await {
        Ok(Ok(asked)) => asked,
        Ok(Err(error)) => Asked::Failed(chain(&*error)),
        Err(_) => Asked::Failed("no answer in time".to_owned()),
    }
}

fn by_status(status: u16, expected: &[u16]) -> Asked {
    let passes = if expected.is_empty() { (200..400).contains(&status) } else { expected.contains(&status) };
    match status {
        _ if passes => Asked::Passed,
        429 => Asked::Neither,
        _ => Asked::Failed(format!("status {status}")),
    }
}

/// Without a proxy the application itself has accepted. A proxy has accepted in any case: it closes when its application does not.
async fn tcp(mut upstream: Upstream, limit: Duration) -> Answer {
    if matches!(upstream, Upstream::Plain(_)) {
        return Ok(Asked::Passed);
    }
    match timeout(MOMENT.min(limit / 2), upstream.read(&mut [0])).await {
        Ok(Ok(0) | Err(_)) => Ok(Asked::Failed("the application refuses connections".to_owned())),
        _ => Ok(Asked::Passed),
    }
}

async fn http1(
    upstream: Upstream,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, hyper::Error> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(upstream)).await?;
    let response = sender.send_request(request);
    tokio::select! {
        biased;
        response = response => response,
        // Its response, if there is one, is there already.
        Err(error) = connection => Err(error),
    }
}

async fn grpc(upstream: Upstream, at: SocketAddr, service: &str) -> Answer {
    let uri = format!("http://{at}/grpc.health.v1.Health/Check");
    let mut request = Request::post(uri).version(Version::HTTP_2).body(Full::new(frame(service)))?;
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    request.headers_mut().insert(USER_AGENT, AGENT);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(upstream)).await?;
    let whole = async {
        let response = sender.send_request(request).await?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_MESSAGE).collect().await?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        Ok(by_message(head.status.as_u16(), &[&head.headers, &trailers], &body.to_bytes()))
    };
    tokio::select! {
        biased;
        whole = whole => whole,
        Err(error) = connection => Err(error.into()),
    }
}

#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SERVING: i32 = 1;

/// gRPC over HTTP2, "Length-Prefixed-Message": not compressed, length, message.
fn frame(service: &str) -> Bytes {
    let message = HealthCheckRequest { service: service.to_owned() }.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap_or(0).to_be_bytes();
    [&[0][..], &length, &message].concat().into()
}

fn by_message(status: u16, heads: &[&HeaderMap], body: &[u8]) -> Asked {
    if status == 429 {
        return Asked::Neither;
    }
    if status != 200 {
        return Asked::Failed(format!("status {status}"));
    }
    let of = |head: &&HeaderMap| Some(head.get("grpc-status")?.as_bytes().to_vec());
    match heads.iter().rev().find_map(of).as_deref() {
        Some(b"0") => {}
        Some(code) => return Asked::Failed(format!("gRPC status {}", String::from_utf8_lossy(code))),
        None => return Asked::Failed("no gRPC status".to_owned()),
    }
    let Some((&[0, a, b, c, d], message)) = body.split_first_chunk::<5>() else {
        return Asked::Failed("no message".to_owned());
    };
    let whole = u32::from_be_bytes([a, b, c, d]) as usize == message.len();
    match HealthCheckResponse::decode(message) {
        Ok(response) if whole && response.status == SERVING => Asked::Passed,
        Ok(response) if whole => Asked::Failed(format!("health status {}, not SERVING", response.status)),
        _ => Asked::Failed("the message cannot be read".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_status_passes_or_fails_or_is_neither() {
        let failed = |status: u16| Asked::Failed(format!("status {status}"));
        for (status, expected, asked) in [
            (200, &[][..], Asked::Passed),
            (399, &[], Asked::Passed),
            (400, &[], failed(400)),
            (503, &[], failed(503)),
            (429, &[], Asked::Neither),
            (429, &[429], Asked::Passed),
            (204, &[200], failed(204)),
            (503, &[200, 503], Asked::Passed),
        ] {
            assert_eq!(by_status(status, expected), asked, "{status} of {expected:?}");
        }
    }

    #[test]
    fn only_serving_passes() {
        let trailers = |code: &'static str| {
            HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-status"),
                HeaderValue::from_static(code),
            )])
        };
        let (ok, none) = (trailers("0"), HeaderMap::new());
        let serving = [0, 0, 0, 0, 2, 8, 1];
        assert_eq!(by_message(200, &[&none, &ok], &serving), Asked::Passed);
        assert_eq!(by_message(429, &[&none, &none], &[]), Asked::Neither);
        for (status, head, body) in [
            (503, &ok, &serving[..]),
            (200, &trailers("12"), &serving),
            (200, &none, &serving),
            (200, &ok, &[]),
            (200, &ok, &[0, 0, 0, 0, 2, 8, 2]),
            (200, &ok, &[0, 0, 0, 0, 0]),
            (200, &ok, &[1, 0, 0, 0, 2, 8, 1]),
            (200, &ok, &[0, 0, 0, 0, 3, 8, 1]),
        ] {
            let asked = by_message(status, &[&none, head], body);
            assert!(matches!(asked, Asked::Failed(_)), "{status} {head:?} {body:?}: {asked:?}");
        }
        assert_eq!(frame("shop")[..], [0, 0, 0, 0, 6, 0x0a, 4, b's', b'h', b'o', b'p']);
    }

    proptest! {
        #[test]
        fn no_answer_panics(status: u16, body in prop::collection::vec(any::<u8>(), 0..40), code in "[ -~]{0,8}") {
            let mut head = HeaderMap::new();
            if let Ok(code) = HeaderValue::from_str(&code) {
                head.insert("grpc-status", code);
            }
            let _ = by_message(status, &[&head], &body);
        }
    }
}
