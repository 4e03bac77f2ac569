//! Responses that the proxy makes itself. Each says why, in the `weft-reason` header and in one line of text; to a gRPC
//! client the same as a status in a trailers-only response. It never passes anything of an upstream on.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use weft_api::{Reason, names};

use super::exchange::Served;

const REASON: HeaderName = HeaderName::from_static(names::REASON_HEADER);
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// The gRPC status of a reason (gRPC over HTTP2, "Responses"; status codes of grpc/grpc doc/statuscodes.md).
#[must_use]
pub const fn grpc_status(reason: Reason) -> u16 {
    match reason {
        // DEADLINE_EXCEEDED
        Reason::RequestTimeout | Reason::PerTryTimeout | Reason::IdleTimeout | Reason::GrpcDeadline => 4,
        // PERMISSION_DENIED
        Reason::MtlsRequired | Reason::ClientCertificate | Reason::CorsRefused | Reason::PolicyDenied => 7,
        // UNAUTHENTICATED
        Reason::TokenInvalid | Reason::TokenExpired => 16,
        // RESOURCE_EXHAUSTED
        Reason::RateLimited => 8,
        // INTERNAL
        Reason::BadRequest | Reason::HeadersTooLarge => 13,
        // UNAVAILABLE
        _ => 14,
    }
}

/// The response for a reason.
#[must_use]
pub fn reply(reason: Reason, grpc: bool) -> Response<Served> {
    if grpc {
        return grpc_reply(reason, grpc_status(reason));
    }
    http_reply(reason, StatusCode::from_u16(reason.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE))
}

/// The response for a reason, with another status than its own.
#[must_use]
pub fn http_reply(reason: Reason, status: StatusCode) -> Response<Served> {
    let mut response = Response::new(Served::own(Bytes::from(text(reason))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(REASON, HeaderValue::from_static(reason.as_str()));
    if matches!(reason, Reason::TokenInvalid | Reason::TokenExpired) {
        // RFC 6750 section 3.
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer error=\"invalid_token\""));
    }
    response
}

/// The same for a gRPC client, with a gRPC status.
#[must_use]
pub fn grpc_reply(reason: Reason, status: u16) -> Response<Served> {
    let word = HeaderValue::from_static(reason.as_str());
    let mut response = Response::new(Served::empty());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(GRPC_STATUS, HeaderValue::from(status));
    headers.insert(GRPC_MESSAGE, word.clone());
    headers.insert(REASON, word);
    response
}

/// The end of a gRPC response that has begun already.
#[must_use]
pub fn trailers(reason: Reason) -> HeaderMap {
    let word = HeaderValue::from_static(reason.as_str());
    let status = HeaderValue::from(grpc_status(reason));
    HeaderMap::from_iter([(GRPC_STATUS, status), (GRPC_MESSAGE, word.clone()), (REASON, word)])
}

/// The same, and the client shall not use the connection again (HTTP/1 only).
#[must_use]
pub fn last_reply(reason: Reason, grpc: bool) -> Response<Served> {
    let mut response = reply(reason, grpc);
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

fn text(reason: Reason) -> String {
    format!("weft: {reason}: {}\n", reason.help())
}

/// A whole HTTP/1.1 response on the wire, for where there is no request to answer.
#[must_use]
pub fn raw(reason: Reason) -> Vec<u8> {
    let status = StatusCode::from_u16(reason.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let body = text(reason);
    format!(
        "HTTP/1.1 {} {}\r\nconnection: close\r\n{}: {reason}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n\r\n{body}",
        status.as_u16(),
        status.canonical_reason().unwrap_or_default(),
        names::REASON_HEADER,
        body.len(),
    )
    .into_bytes()
}

/// The same to a client of HTTP/2, before any request was taken: SETTINGS, and GOAWAY for stream 0 with
/// `ENHANCE_YOUR_CALM` and the reason as debug data (RFC 9113 sections 6.5, 6.8 and 7). It may send them elsewhere.
#[must_use]
pub fn raw_http2(reason: Reason) -> Vec<u8> {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const ENHANCE_YOUR_CALM: [u8; 4] = [0, 0, 0, 0xb];
    let word = reason.as_str().as_bytes();
    let length = u8::try_from(8 + word.len()).unwrap_or(8);
    let mut out = SETTINGS.to_vec();
    out.extend_from_slice(&[0, 0, length, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    out.extend_from_slice(&ENHANCE_YOUR_CALM);
    out.extend_from_slice(word);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_response_of_its_status_and_a_grpc_one() {
        for reason in Reason::ALL {
            let plain = reply(*reason, false);
            assert_eq!(plain.status().as_u16(), reason.status());
            assert_eq!(plain.headers()["weft-reason"], reason.as_str());
            let grpc = reply(*reason, true);
            assert_eq!(grpc.status(), StatusCode::OK);
            assert_ne!(grpc.headers()["grpc-status"], "0");
            let raw = String::from_utf8(raw(*reason)).unwrap();
            assert!(raw.starts_with(&format!("HTTP/1.1 {} ", reason.status())), "{raw}");
        }
        assert_eq!(reply(Reason::RequestTimeout, true).headers()["grpc-status"], "4");
        assert_eq!(reply(Reason::NoHealthyEndpoint, true).headers()["grpc-status"], "14");
        assert_eq!(reply(Reason::RateLimited, true).headers()["grpc-status"], "8");
    }
}
