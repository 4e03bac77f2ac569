//! Which requests without mTLS pass under Strict: the kubelet's probes that the pod declares, exactly those. A decision,
//! and the little of gRPC that it needs. It sends nothing.
//! Source: grpc/grpc doc/health-checking.md; gRPC over HTTP2, "Length-Prefixed-Message".

use http::{Method, Request};
use http_body_util::{BodyExt, Limited};

use super::body::Source;
use super::headers;
use super::incoming::Incoming;
use crate::snapshot::{Probe, Workload};

/// A health check's message is a service's name.
const MAX_MESSAGE: usize = 4096;
const CHECK: &str = "/grpc.health.v1.Health/Check";

/// The request with its body, if it is a probe of this port.
pub(crate) async fn admit(
    workload: Option<&Workload>,
    port: u16,
    request: Request<Incoming>,
) -> Option<(Request<()>, Source)> {
    let workload = workload?;
    let (head, body) = request.into_parts();
    if matches!(head.method, Method::GET | Method::HEAD) {
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let empty = hyper::body::Body::is_end_stream(&body);
        return (empty && workload.is_http_probe(port, path))
            .then(|| (Request::from_parts(head, ()), Source::empty()));
    }
    let check = head.method == Method::POST && head.uri.path() == CHECK && headers::is_grpc(&head.headers);
    if !check {
        return None;
    }
    let message = Limited::new(body, MAX_MESSAGE).collect().await.ok()?.to_bytes();
    let service = health_check(&message)?;
    workload
        .is_grpc_probe(port, service)
        .then(|| (Request::from_parts(head, ()), Source::whole(message.clone())))
}

/// Whether the head is that of a probe that the pod declares. Says nothing of the body: what passes by it must be harmless.
pub(crate) fn declared<B>(workload: &Workload, port: u16, request: &Request<B>) -> bool {
    match *request.method() {
        Method::GET | Method::HEAD => {
            let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
            workload.is_http_probe(port, path)
        }
        Method::POST => {
            let check = request.uri().path() == CHECK && headers::is_grpc(request.headers());
            check && workload.probes.iter().any(|probe| matches!(probe, Probe::Grpc(p, _) if *p == port))
        }
        _ => false,
    }
}

/// The service that a `HealthCheckRequest { string service = 1 }` asks for.
fn health_check(frame: &[u8]) -> Option<&str> {
    let (&[compressed, a, b, c, d], message) = frame.split_first_chunk::<5>()?;
    if compressed != 0 || u32::from_be_bytes([a, b, c, d]) as usize != message.len() {
        return None;
    }
    match message {
        [] => Some(""),
        // Field 1, length-delimited; lengths up to 127 are one byte, and no probe needs more.
        [0x0a, length, name @ ..] if *length < 128 && usize::from(*length) == name.len() => {
            std::str::from_utf8(name).ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_service_of_a_health_check_is_read() {
        assert_eq!(health_check(&[0, 0, 0, 0, 0]), Some(""));
        assert_eq!(health_check(&[0, 0, 0, 0, 6, 0x0a, 4, b's', b'h', b'o', b'p']), Some("shop"));
        for bad in [
            &[][..],
            &[1, 0, 0, 0, 0],
            &[0, 0, 0, 0, 1],
            &[0, 0, 0, 0, 2, 0x12, 0],
            &[0, 0, 0, 0, 3, 0x0a, 9, 1],
        ] {
            assert_eq!(health_check(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_frame_is_read_without_panic(frame in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = health_check(&frame);
        }
    }
}
