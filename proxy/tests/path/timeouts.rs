//! How long a request may take: silence, deadlines of gRPC calls, and what bounds a stream.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};
use weft_api::v1;

use crate::apps;
use crate::clients::{Http1, Http2, fetch, get, post};
use crate::world::{Mesh, Node, plain};

const PATIENCE: Duration = Duration::from_secs(20);

fn with(app: SocketAddr, change: impl FnOnce(&mut v1::Route)) -> Node {
    plain(&[app], |service| change(&mut service.routes[0]))
}

fn call(given: Option<&'static str>, id: &'static str) -> Request<Full<Bytes>> {
    let mut request = post("/shop.Back/Buy", Bytes::from_static(&[0, 0, 0, 0, 0]));
    let headers = request.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    headers.insert("x-request-id", HeaderValue::from_static(id));
    if let Some(given) = given {
        headers.insert("grpc-timeout", HeaderValue::from_static(given));
    }
    request
}

/// Never answers; counts the calls that were cancelled.
async fn hangs() -> (SocketAddr, Arc<AtomicUsize>) {
    struct Cancelled(Arc<AtomicUsize>);
    impl Drop for Cancelled {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let cancelled = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&cancelled);
    let (app, _) = apps::http(move |_| {
        let counted = Cancelled(Arc::clone(&counted));
        async move {
            std::future::pending::<()>().await;
            drop(counted);
            apps::text("never")
        }
    })
    .await;
    (app, cancelled)
}

async fn becomes(count: &AtomicUsize, wanted: usize) {
    let reached = async {
        while count.load(Ordering::SeqCst) != wanted {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, reached).await.expect("cancelled");
}

#[tokio::test]
async fn the_deadline_of_a_grpc_client_ends_the_call_everywhere() {
    let (app, cancelled) = hangs().await;
    let mesh = Mesh::to(app);
    let mut client = Http2::connect(mesh.front.outbound).await;
    let got = timeout(PATIENCE, client.send(call(Some("200m"), "late"))).await.unwrap().unwrap();
    assert_eq!((got.status.as_u16(), got.reason()), (200, "grpc-deadline"));
    assert_eq!((&got.headers["grpc-status"], got.body.len()), (&"4".parse().unwrap(), 0));
    becomes(&cancelled, 1).await;
    let line = mesh.front.log.find(|line| line["request_id"] == "late").await;
    assert_eq!((&line["reason"], &line["grpc_status"]), (&"grpc-deadline".into(), &4.into()));
    // It was the client's choice: the endpoint is not to blame.
    let live = &mesh.front.store.load().services[crate::world::SERVICE].default_cluster.endpoints[0].live;
    assert!(live.ejected().is_none());
    assert!(live.latency().is_some_and(|latency| latency >= Duration::from_millis(150)));
}

/// Says in a header what `grpc-timeout` it got, and can fail the first calls after a while.
async fn tells(mut failures: usize) -> SocketAddr {
    let left = Arc::new(AtomicUsize::new(std::mem::take(&mut failures)));
    let (app, _) = apps::http(move |request| {
        let fails = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
        async move {
            let mut response = apps::text("");
            let got = request.headers().get("grpc-timeout").cloned();
            response.headers_mut().insert("got", got.unwrap_or(HeaderValue::from_static("none")));
            let status = if fails {
                sleep(Duration::from_millis(300)).await;
                "14"
            } else {
                "0"
            };
            response.headers_mut().insert("grpc-status", HeaderValue::from_static(status));
            response
        }
    })
    .await;
    app
}

/// Milliseconds that the server was told.
async fn told(node: &Node, given: Option<&'static str>) -> Option<f64> {
    let got = Http2::connect(node.outbound).await.send(call(given, "told")).await.unwrap();
    let text = got.headers["got"].to_str().unwrap().to_owned();
    let micros = text.strip_suffix('u')?;
    Some(micros.parse::<f64>().unwrap() / 1000.0)
}

#[tokio::test]
async fn what_is_left_of_the_deadline_is_told_to_the_server_and_the_shorter_one_counts() {
    let node = with(tells(0).await, |_| {});
    let left = told(&node, Some("10S")).await.unwrap();
    assert!((5_000.0..10_000.0).contains(&left), "{left}");
    // Nobody has asked for any.
    assert_eq!(told(&node, None).await, None);
    let node = with(tells(0).await, |route| route.timeout_ms = 20_000);
    for (given, most) in [(Some("10S"), 10_000.0), (Some("1M"), 20_000.0), (None, 20_000.0)] {
        let left = told(&node, given).await.unwrap();
        assert!((most - 5_000.0..most).contains(&left), "{given:?}: {left}");
    }
    // It is for gRPC only.
    let got = fetch(node.outbound, get("/")).await;
    assert_eq!(got.headers["got"], "none");
    // Another try has less.
    let node = with(tells(1).await, |route| {
        route.retry = Some(v1::Retry {
            attempts: 1,
            grpc_statuses: vec![14],
            non_idempotent: true,
            budget_min_per_second: 10,
            ..Default::default()
        });
    });
    let left = told(&node, Some("10S")).await.unwrap();
    assert!((5_000.0..9_700.0).contains(&left), "{left}");
}

#[tokio::test]
async fn a_call_that_has_begun_ends_with_its_status_in_trailers() {
    let (app, _) = apps::http(|_| async {
        let frames = futures::stream::unfold(false, |sent| async move {
            if sent {
                std::future::pending::<()>().await;
            }
            Some((Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"first"))), true))
        });
        let mut response = Response::new(BodyExt::boxed(StreamBody::new(apps::shared(frames))));
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        response
    })
    .await;
    for (node, given, reason) in [
        (with(app, |_| {}), Some("300m"), "grpc-deadline"),
        (with(app, |route| route.timeout_ms = 300), None, "request-timeout"),
        (with(app, |route| route.idle_timeout_ms = 300), None, "idle-timeout"),
    ] {
        let got = timeout(PATIENCE, Http2::connect(node.outbound).await.send(call(given, "mid"))).await;
        let got = got.unwrap().unwrap();
        assert_eq!((got.text().as_str(), &got.trailers["grpc-status"]), ("first", &"4".parse().unwrap()));
        assert_eq!(got.trailers["weft-reason"], reason);
        let line = node.log.find(|line| line["request_id"] == "mid").await;
        assert_eq!((&line["reason"], &line["grpc_status"]), (&reason.into(), &4.into()));
    }
}

/// `n` pieces with a pause before each, and then nothing more, or the end.
fn drips(n: usize, pause: Duration, ends: bool) -> apps::Body {
    let frames = futures::stream::unfold(0, move |sent| async move {
        if sent == n {
            if ends {
                return None;
            }
            std::future::pending::<()>().await;
        }
        sleep(pause).await;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"x"))), sent + 1))
    });
    BodyExt::boxed(StreamBody::new(apps::shared(frames)))
}

#[tokio::test]
async fn silence_ends_a_request_and_bytes_keep_it_alive() {
    let idle = |route: &mut v1::Route| route.idle_timeout_ms = 600;
    // Nothing at all.
    let node = with(hangs().await.0, idle);
    let got = fetch(node.outbound, get("/")).await;
    assert_eq!((got.status.as_u16(), got.reason()), (504, "idle-timeout"));
    // Slow, but never silent; longer in all than the bound.
    let (app, _) = apps::http(|request| async move {
        let ends = request.uri().path() == "/ends";
        Response::new(drips(10, Duration::from_millis(100), ends))
    })
    .await;
    let node = with(app, idle);
    let began = Instant::now();
    assert_eq!(fetch(node.outbound, get("/ends")).await.body.len(), 10);
    assert!(began.elapsed() > Duration::from_millis(900));
    // And then silent.
    let mut client = Http1::connect(node.outbound).await;
    let mut request = get("/stops");
    request.headers_mut().insert("x-request-id", HeaderValue::from_static("stops"));
    let response = client.open(request).await;
    assert!(timeout(PATIENCE, response.into_body().collect()).await.unwrap().is_err());
    let line = node.log.find(|line| line["request_id"] == "stops").await;
    assert_eq!((&line["reason"], &line["response_bytes"]), (&"idle-timeout".into(), &10.into()));
}

#[tokio::test]
async fn a_client_that_sends_slowly_is_not_silent() {
    let (app, _) = apps::http(|request| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        apps::text(body.len().to_string())
    })
    .await;
    let node = with(app, |route| route.idle_timeout_ms = 600);
    let mut stream = tokio::net::TcpStream::connect(node.outbound).await.unwrap();
    stream
        .write_all(b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 10\r\n\r\n")
        .await
        .unwrap();
    for _ in 0..10 {
        sleep(Duration::from_millis(100)).await;
        stream.write_all(b"x").await.unwrap();
    }
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("10"), "{answer}");
}

#[tokio::test]
async fn a_stream_of_events_outlives_the_timeout_and_ends_with_silence() {
    let (app, _) = apps::http(|request| async move {
        let mut response =
            Response::new(drips(10, Duration::from_millis(100), request.uri().path() == "/ends"));
        let kind =
            if request.uri().path() == "/other" { "text/plain" } else { "Text/Event-Stream; charset=utf-8" };
        response.headers_mut().insert("content-type", HeaderValue::from_static(kind));
        response
    })
    .await;
    let node = with(app, |route| (route.timeout_ms, route.idle_timeout_ms) = (500, 700));
    assert_eq!(fetch(node.outbound, get("/ends")).await.body.len(), 10);
    for (path, reason) in [("/stops", "idle-timeout"), ("/other", "request-timeout")] {
        let mut client = Http1::connect(node.outbound).await;
        let response = client.open(get(path)).await;
        assert!(timeout(PATIENCE, response.into_body().collect()).await.unwrap().is_err());
        node.log.find(|line| line["path"] == path && line["reason"] == reason).await;
    }
    // Without a bound on silence it goes on.
    let node = with(app, |route| route.timeout_ms = 300);
    assert_eq!(fetch(node.outbound, get("/ends")).await.body.len(), 10);
}

#[tokio::test]
async fn a_websocket_outlives_the_timeout_and_ends_with_silence() {
    let (app, _) = apps::websocket().await;
    let node = with(app, |route| (route.timeout_ms, route.idle_timeout_ms) = (300, 600));
    let mut request = get("/ws");
    request.headers_mut().insert("connection", HeaderValue::from_static("Upgrade"));
    request.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
    let response = Http1::connect(node.outbound).await.open(request).await;
    let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    for _ in 0..10 {
        io.write_all(b"x").await.unwrap();
        io.read_exact(&mut [0]).await.unwrap();
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(timeout(PATIENCE, io.read(&mut [0])).await.unwrap().unwrap_or(0), 0);
    let line = node.log.find(|line| line["path"] == "/ws").await;
    assert_eq!((&line["reason"], &line["request_bytes"]), (&"idle-timeout".into(), &10.into()));
}

#[tokio::test]
async fn nonsense_in_grpc_timeout_bounds_nothing_and_is_passed_on() {
    let (app, _) = apps::http(|request| async move {
        let mut response = apps::text("");
        let given = request.headers()["grpc-timeout"].clone();
        response.headers_mut().extend(HeaderMap::from_iter([("got".parse().unwrap(), given)]));
        response
    })
    .await;
    let node = with(app, |_| {});
    let got = Http2::connect(node.outbound).await.send(call(Some("soon"), "odd")).await.unwrap();
    assert_eq!(got.headers["got"], "soon");
}
