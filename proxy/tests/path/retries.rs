//! What a retry policy can ask for: listed statuses, gRPC statuses in trailers, bounds on bodies and waits, and what
//! happens without being asked for when a kept connection is gone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;
use weft_api::v1;

use crate::apps::{self, Seen};
use crate::clients::{Http1, Http2, fetch, get, post};
use crate::world::{Mesh, Node, plain};

/// One more try, whatever it is for.
fn once() -> v1::Retry {
    v1::Retry {
        attempts: 1,
        non_idempotent: true,
        backoff_base_ms: 1,
        backoff_max_ms: 1,
        budget_percent: 100,
        budget_min_per_second: 1000,
        ..Default::default()
    }
}

fn with(endpoints: &[SocketAddr], retry: v1::Retry) -> Node {
    plain(endpoints, |service| service.routes[0].retry = Some(retry))
}

fn trailers(status: &'static str) -> HeaderMap {
    HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static(status))])
}

/// A gRPC server whose calls end like this: a head, these messages, and a status in trailers.
async fn grpc(messages: &'static [&'static str], status: &'static str) -> (SocketAddr, Seen) {
    apps::http(move |request| async move {
        let _ = request.into_body().collect().await;
        let mut response = Response::new(apps::with_trailers(messages, trailers(status)));
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        response
    })
    .await
}

fn call() -> Request<Full<Bytes>> {
    let mut request = post("/shop.Back/Buy", Bytes::from_static(&[0, 0, 0, 0, 0]));
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
    request
}

async fn fails_with(code: u16, header: Option<(&'static str, &'static str)>) -> (SocketAddr, Seen) {
    apps::http(move |_| async move {
        let mut response = apps::status(code);
        if let Some((name, value)) = header {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    })
    .await
}

#[tokio::test]
async fn a_listed_status_is_retried_at_another_endpoint_and_is_no_failure_of_the_first() {
    let (busy, busy_tries) = fails_with(429, None).await;
    let (well, _) = apps::echo().await;
    let node = plain(&[busy, well], |service| {
        service.routes[0].retry = Some(v1::Retry { status_codes: vec![429, 404], ..once() });
        service.clusters[0].outlier =
            Some(v1::Outlier { consecutive_failures: 1, max_ejected_percent: 50, ..Default::default() });
    });
    let mut client = Http1::connect(node.outbound).await;
    for _ in 0..10 {
        // With one retry only: it never goes to where the first try was.
        assert_eq!(client.send(post("/", "x")).await.unwrap().status, 200);
    }
    assert!(node.store.load().ejections().is_empty());
    assert!(busy_tries.requests() >= 5);
    assert!(node.metrics.encode().contains(r#"outcome="sent""#), "{}", node.metrics.encode());

    let node = with(&[busy], v1::Retry { status_codes: vec![503], ..once() });
    assert_eq!(fetch(node.outbound, get("/")).await.status, 429);
    assert!(!node.metrics.encode().contains("weft_retries_total{"), "it was not asked for");
}

#[tokio::test]
async fn a_grpc_status_in_trailers_is_retried_as_long_as_no_message_has_come() {
    let ((sick, tried), (well, _)) = (grpc(&[], "8").await, grpc(&["well"], "0").await);
    let wants = v1::Retry { grpc_statuses: vec![8], ..once() };
    let node = with(&[sick, well], wants.clone());
    let mut client = Http2::connect(node.outbound).await;
    for _ in 0..10 {
        let got = client.send(call()).await.unwrap();
        assert_eq!((got.text().as_str(), &got.trailers["grpc-status"]), ("well", &"0".parse().unwrap()));
    }
    assert!(tried.requests() >= 5);

    // Nobody asked for it, or it is another status: it is passed on as it is.
    for retry in [once(), v1::Retry { grpc_statuses: vec![14], ..once() }] {
        let got = Http2::connect(with(&[sick], retry).outbound).await.send(call()).await.unwrap();
        assert_eq!((got.status.as_u16(), &got.trailers["grpc-status"]), (200, &"8".parse().unwrap()));
    }
    // A message has come: too late.
    let (late, tried) = grpc(&["a message"], "8").await;
    let got = Http2::connect(with(&[late, well], wants.clone()).outbound).await.send(call()).await.unwrap();
    if got.text() == "a message" {
        assert_eq!((&got.trailers["grpc-status"], tried.requests()), (&"8".parse().unwrap(), 1));
    }
    // All tries have failed: the last answer stands, whole.
    let got = Http2::connect(with(&[sick], wants).outbound).await.send(call()).await.unwrap();
    assert_eq!((got.status.as_u16(), &got.trailers["grpc-status"]), (200, &"8".parse().unwrap()));
}

#[tokio::test]
async fn a_grpc_status_without_messages_counts_against_its_endpoint() {
    let ((sick, _), (well, _)) = (grpc(&[], "14").await, grpc(&["well"], "0").await);
    let node = plain(&[sick, well], |service| {
        service.routes[0].retry = Some(v1::Retry { on: vec![v1::RetryOn::GrpcUnavailable.into()], ..once() });
        service.clusters[0].outlier =
            Some(v1::Outlier { consecutive_failures: 3, max_ejected_percent: 50, ..Default::default() });
    });
    let mut client = Http2::connect(node.outbound).await;
    for _ in 0..10 {
        assert_eq!(client.send(call()).await.unwrap().text(), "well");
    }
    assert_eq!(node.store.load().ejections().len(), 1);
}

/// A gRPC server that sends the head at once and what follows when it is told to.
async fn begins_slowly(go: Arc<Notify>, then: Option<&'static [u8]>) -> SocketAddr {
    apps::tcp(move |stream| {
        let go = Arc::clone(&go);
        async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let go = Arc::clone(&go);
                tokio::spawn(async move {
                    let head =
                        Response::builder().header("content-type", "application/grpc").body(()).unwrap();
                    let mut stream = respond.send_response(head, false).unwrap();
                    go.notified().await;
                    match then {
                        Some(message) => {
                            stream.send_data(Bytes::from_static(message), false).unwrap();
                            stream.send_trailers(trailers("0")).unwrap();
                        }
                        None => stream.send_reset(h2::Reason::INTERNAL_ERROR),
                    }
                });
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_grpc_call_that_is_lost_before_its_first_message_is_retried() {
    let go = Arc::new(Notify::new());
    go.notify_one();
    let sick = begins_slowly(Arc::clone(&go), None).await;
    let (well, _) = grpc(&["well"], "0").await;
    let retry = v1::Retry { on: vec![v1::RetryOn::Reset.into()], grpc_statuses: vec![14], ..once() };
    let node = with(&[sick, well], retry);
    let mut client = Http2::connect(node.outbound).await;
    for _ in 0..6 {
        go.notify_one();
        let got = tokio::time::timeout(Duration::from_secs(20), client.send(call())).await.unwrap();
        assert_eq!(got.unwrap().text(), "well");
    }
}

#[tokio::test]
async fn a_head_is_not_held_back_for_ever() {
    let go = Arc::new(Notify::new());
    let slow = begins_slowly(Arc::clone(&go), Some(b"at last")).await;
    let node = with(&[slow], v1::Retry { grpc_statuses: vec![14], ..once() });
    let stream = tokio::net::TcpStream::connect(node.outbound).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("http://back/shop.Back/Watch").header("content-type", "application/grpc");
    let (response, _) = client.ready().await.unwrap().send_request(request.body(()).unwrap(), true).unwrap();
    // The server waits for us, and we for the head.
    let mut body =
        tokio::time::timeout(Duration::from_secs(10), response).await.unwrap().unwrap().into_body();
    go.notify_one();
    assert_eq!(body.data().await.unwrap().unwrap(), "at last");
    assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn bodies_are_kept_up_to_the_bound_of_the_policy() {
    let (sick, _) = apps::http(|request| async move {
        let _ = request.into_body().collect().await;
        apps::status(503)
    })
    .await;
    let (well, _) = apps::echo().await;
    for (bound, size, kept) in [
        (Some(1000), 1000, true),
        (Some(1000), 1001, false),
        (Some(0), 1, false),
        (Some(300_000), 200_000, true),
        (None, 65_536, true),
        (None, 65_537, false),
    ] {
        let node =
            with(&[sick, well], v1::Retry { status_codes: vec![503], max_body_bytes: bound, ..once() });
        let mut failed = 0;
        for _ in 0..4 {
            let got = fetch(node.outbound, post("/", vec![b'x'; size])).await;
            failed += usize::from(got.status == 503);
            assert!(got.status == 503 || got.body.ends_with(&vec![b'x'; size]), "{bound:?} {size}");
        }
        assert_eq!(failed, if kept { 0 } else { 2 }, "{bound:?} {size}");
    }
}

#[tokio::test]
async fn a_wait_that_the_server_asks_for_is_kept_when_it_may_be() {
    let (later, tried) = fails_with(503, Some(("retry-after", "1"))).await;
    let (well, _) = apps::echo().await;
    let policy = v1::Retry { status_codes: vec![503], ..once() };
    // Longer than the longest wait: the failure stands.
    let node = with(&[later], v1::Retry { backoff_max_ms: 999, ..policy.clone() });
    assert_eq!(fetch(node.outbound, get("/")).await.status, 503);
    assert_eq!(tried.requests(), 1);
    // Or than what is left of the timeout.
    let node = plain(&[later], |service| {
        service.routes[0].timeout_ms = 900;
        service.routes[0].retry = Some(v1::Retry { backoff_max_ms: 5000, ..policy.clone() });
    });
    assert_eq!(fetch(node.outbound, get("/")).await.status, 503);
    assert_eq!(tried.requests(), 2);
    let node = with(&[later, well], v1::Retry { backoff_max_ms: 1000, ..policy });
    let began = Instant::now();
    for _ in 0..2 {
        assert_eq!(fetch(node.outbound, get("/")).await.status, 200);
    }
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(tried.requests() >= 3);
}

#[tokio::test]
async fn a_grpc_server_may_forbid_another_try() {
    let (never, tried) = apps::http(|_| async {
        let mut end = trailers("14");
        end.insert("grpc-retry-pushback-ms", HeaderValue::from_static("-1"));
        Response::new(apps::with_trailers(&[], end))
    })
    .await;
    let node = with(&[never], v1::Retry { grpc_statuses: vec![14], ..once() });
    let got = Http2::connect(node.outbound).await.send(call()).await.unwrap();
    assert_eq!((&got.trailers["grpc-status"], tried.requests()), (&"14".parse().unwrap(), 1));
}

/// Answers one request on each connection, and closes it without having said so.
async fn closes_silently() -> SocketAddr {
    apps::tcp(|mut stream| async move {
        if apps::read_request(&mut stream).await.is_some() {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        }
    })
    .await
}

#[tokio::test]
async fn a_safe_request_never_sees_that_a_kept_connection_was_closed_even_without_retries() {
    let app = closes_silently().await;
    let off = |service: &mut v1::Service| service.routes[0].retry = Some(v1::Retry::default());
    let (alone, mesh) = (plain(&[app], off), Mesh::with(app, off));
    for to in [alone.outbound, mesh.front.outbound] {
        let clients = (0..8).map(|_| {
            tokio::spawn(async move {
                let mut client = Http1::connect(to).await;
                for n in 0..400 {
                    let mut request = if n % 3 == 0 { post("/", vec![b'x'; 500]) } else { get("/") };
                    if n % 3 == 0 {
                        *request.method_mut() = Method::PUT;
                    }
                    let got = client.send(request).await.unwrap();
                    assert_eq!(got.status, 200, "request {n}: {got:?}");
                }
            })
        });
        for done in futures::future::join_all(clients).await {
            done.unwrap();
        }
    }
    for node in [&alone, &mesh.front, &mesh.back] {
        let text = node.metrics.encode();
        assert!(!text.contains("upstream-reset") && !text.contains("weft_retries_total{"), "{text}");
    }
}

#[tokio::test]
async fn what_the_server_resets_is_no_closed_connection_and_is_not_sent_again_by_stealth() {
    let streams = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&streams);
    let app = apps::tcp(move |stream| {
        let counted = Arc::clone(&counted);
        async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                respond.send_reset(h2::Reason::INTERNAL_ERROR);
            }
        }
    })
    .await;
    let node = plain(&[app], |service| {
        service.protocol = v1::Protocol::Http2.into();
        service.routes[0].retry = Some(v1::Retry::default());
    });
    let mut client = Http2::connect(node.outbound).await;
    for _ in 0..10 {
        assert_eq!(client.send(get("/")).await.unwrap().reason(), "upstream-reset");
    }
    assert_eq!(streams.load(std::sync::atomic::Ordering::SeqCst), 10);
}

#[tokio::test]
async fn nor_does_one_of_http2_when_its_connection_is_closed_without_goaway() {
    let app = apps::tcp(|stream| async move {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        if let Some(Ok((_, mut respond))) = connection.accept().await {
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            stream.send_data(Bytes::from_static(b"ok"), true).unwrap();
            // Until it is sent, and not one request longer.
            let more = std::future::poll_fn(|cx| connection.poll_accept(cx));
            let _ = tokio::time::timeout(Duration::from_millis(1), more).await;
        }
    })
    .await;
    let node = plain(&[app], |service| {
        service.protocol = v1::Protocol::Http2.into();
        service.routes[0].retry = Some(v1::Retry::default());
    });
    let mut client = Http2::connect(node.outbound).await;
    for n in 0..300 {
        let got = client.send(get("/")).await.unwrap();
        assert_eq!((got.status.as_u16(), got.text().as_str()), (200, "ok"), "request {n}: {got:?}");
    }
}
