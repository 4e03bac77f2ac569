//! What each protocol allows, and proxies tend to lose: pipelining, HTTP/1.0, trailers, half-close, flow control, resets.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use weft_api::v1;

use crate::apps;
use crate::clients::{Http2, get, raw};
use crate::world::{Mesh, identity};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let (app, seen) = apps::http(|request| async move {
        // The first takes longest.
        let wait = request.uri().path() == "/0";
        tokio::time::sleep(Duration::from_millis(if wait { 100 } else { 0 })).await;
        apps::text(format!("answer {};", request.uri().path()))
    })
    .await;
    let mesh = Mesh::to(app);
    let mut requests: String = (0..9).map(|n| format!("GET /{n} HTTP/1.1\r\nhost: a\r\n\r\n")).collect();
    requests.push_str("GET /9 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    let got = raw(mesh.front.outbound, requests.as_bytes(), false).await;
    let answers: Vec<_> =
        got.match_indices("answer /").map(|(at, word)| &got[at + word.len()..][..1]).collect();
    assert_eq!(answers.concat(), "0123456789");
    assert_eq!(seen.requests(), 10);
}

#[tokio::test]
async fn http_1_0_keeps_a_connection_only_when_asked_to() {
    let (app, _) = apps::http(|_| async { apps::text("ok") }).await;
    let mesh = Mesh::to(app);
    let kept = b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\nGET / HTTP/1.0\r\n\r\n";
    let got = raw(mesh.front.outbound, kept, false).await;
    assert_eq!(got.matches("HTTP/1.0 200").count(), 2, "{got}");
    assert!(got.contains("connection: keep-alive"), "{got}");
    let got = raw(mesh.front.outbound, b"GET / HTTP/1.0\r\n\r\nGET / HTTP/1.0\r\n\r\n", false).await;
    assert_eq!(got.matches("HTTP/1.0 200").count(), 1, "{got}");
}

#[tokio::test]
async fn chunks_and_trailers_of_a_request_reach_the_application() {
    let (app, _) = apps::http(|request| async {
        let body = request.into_body().collect().await.unwrap();
        let sum = body.trailers().and_then(|trailers| trailers.get("x-sum")).cloned();
        apps::text(format!("sum {:?} of {:?}", sum, body.to_bytes()))
    })
    .await;
    let mesh = Mesh::to(app);
    let request = b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
        4;name=value\r\none \r\n3\r\ntwo\r\n0\r\nx-sum: 42\r\n\r\n";
    let got = raw(mesh.front.outbound, request, false).await;
    assert!(got.ends_with("sum Some(\"42\") of b\"one two\""), "{got}");
}

#[tokio::test]
async fn connect_is_refused_with_a_reason() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::to(app);
    let got = raw(mesh.front.outbound, b"CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n", false).await;
    assert!(got.starts_with("HTTP/1.1 400") && got.contains("weft-reason: bad-request"), "{got}");
    assert_eq!(seen.requests(), 0);
}

#[tokio::test]
async fn either_side_of_an_opaque_connection_can_end_first() {
    // The server says all it has and closes its side; the client goes on.
    let got = Arc::new(tokio::sync::Mutex::new(String::new()));
    let heard = Arc::clone(&got);
    let app = apps::tcp(move |mut stream| {
        let heard = Arc::clone(&heard);
        async move {
            stream.write_all(b"220 that is all\r\n").await.unwrap();
            stream.shutdown().await.unwrap();
            stream.read_to_string(&mut *heard.lock().await).await.unwrap();
        }
    })
    .await;
    for protocol in [v1::Protocol::Detect, v1::Protocol::Tcp] {
        let mesh = Mesh::with(app, |service| service.protocol = protocol.into());
        let mut client = TcpStream::connect(mesh.front.outbound).await.unwrap();
        let mut said = String::new();
        timeout(SOON, client.read_to_string(&mut said)).await.expect("its end").unwrap();
        assert_eq!(said, "220 that is all\r\n");
        let long = "still here ".repeat(50_000);
        client.write_all(long.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let heard = async {
            while got.lock().await.len() < long.len() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(SOON, heard).await.expect("all of it");
        assert!(std::mem::take(&mut *got.lock().await) == long);
    }
}

#[tokio::test]
async fn a_head_of_sixty_kibibytes_passes_and_a_larger_one_is_refused() {
    let (app, _) = apps::http(|request| async move {
        apps::text(format!("{}", request.headers().iter().map(|(_, value)| value.len()).sum::<usize>()))
    })
    .await;
    let mesh = Mesh::to(app);
    let long = |kibibytes: usize| {
        let mut request = get("/");
        for n in 0..kibibytes {
            let name = http::HeaderName::try_from(format!("x-{n}")).unwrap();
            request.headers_mut().insert(name, HeaderValue::from_str(&"v".repeat(1000)).unwrap());
        }
        request
    };
    let got = crate::clients::fetch(mesh.front.outbound, long(60)).await;
    assert_eq!(got.status, 200);
    assert!(got.text().parse::<usize>().unwrap() >= 60_000, "{}", got.text());
    assert_eq!(crate::clients::fetch(mesh.front.outbound, long(70)).await.status, 431);
    // The same in HTTP/2, to a server that takes as much.
    let app = apps::tcp(|stream| async move {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let size: usize = request.headers().values().map(HeaderValue::len).sum();
            let mut out = respond.send_response(Response::new(()), false).unwrap();
            out.send_data(Bytes::from(size.to_string()), true).unwrap();
        }
    })
    .await;
    let mesh = Mesh::to(app);
    let mut http2 = Http2::connect(mesh.front.outbound).await;
    let got = http2.send(long(60)).await.unwrap();
    assert!(got.status == 200 && got.text().parse::<usize>().unwrap() >= 60_000, "{}", got.text());
    assert!(!http2.send(long(70)).await.is_ok_and(|got| got.status == 200));
    // Others on the same connection go on.
    assert_eq!(http2.send(get("/")).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_thousand_streams_at_once_are_all_answered() {
    let (app, _) = apps::http(|request| async move { apps::text(request.uri().path().to_owned()) }).await;
    let mesh = Mesh::to(app);
    let client = Http2::connect(mesh.front.outbound).await;
    let calls = (0..1000).map(|n| {
        let mut client = client.clone();
        async move { client.send(get(&format!("/{n}"))).await.unwrap().text() == format!("/{n}") }
    });
    assert!(timeout(SOON * 2, join_all(calls)).await.expect("all answers").into_iter().all(|right| right));
}

/// Answers `/endless` with bytes for as long as they are taken, and anything else at once; counts what was taken.
async fn endless() -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&taken);
    let (app, _) = apps::http(move |request| {
        let counted = Arc::clone(&counted);
        async move {
            if request.uri().path() != "/endless" {
                return apps::text("ok");
            }
            let chunks = futures::stream::repeat_with(move || {
                counted.fetch_add(16 * 1024, Ordering::SeqCst);
                Ok(hyper::body::Frame::data(Bytes::from_static(&[b'x'; 16 * 1024])))
            });
            Response::new(BodyExt::boxed(http_body_util::StreamBody::new(chunks)))
        }
    })
    .await;
    (app, taken)
}

#[tokio::test]
async fn readers_that_do_not_read_stall_nobody_and_hold_a_bounded_amount() {
    let (app, taken) = endless().await;
    let mesh = Mesh::to(app);
    let stream = TcpStream::connect(mesh.front.outbound).await.unwrap();
    // With a window for each of them, or it would stall itself.
    let mut builder = h2::client::Builder::new();
    builder.initial_connection_window_size(64 << 20);
    let (client, connection) = builder.handshake::<_, Bytes>(stream).await.unwrap();
    tokio::spawn(connection);
    let mut idle = Vec::new();
    for _ in 0..40 {
        let request = Request::get("http://back/endless").body(()).unwrap();
        let (response, _) = client.clone().ready().await.unwrap().send_request(request, true).unwrap();
        idle.push(timeout(SOON, response).await.expect("a head").unwrap());
    }
    // Until every buffer on the way is full.
    let mut before = usize::MAX;
    let full = async {
        while taken.load(Ordering::SeqCst) != before {
            before = taken.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    timeout(SOON, full).await.expect("an end to what is taken");
    let each = taken.load(Ordering::SeqCst) / idle.len();
    assert!(each < 4 * 1024 * 1024, "{each} bytes for each of those that do not read");
    // Others: on the same connection of the client, and on another, which share the one between the proxies.
    let mut other = Http2::connect(mesh.front.outbound).await;
    for _ in 0..20 {
        let request = Request::get("http://back/").body(()).unwrap();
        let (response, _) = client.clone().ready().await.unwrap().send_request(request, true).unwrap();
        assert_eq!(timeout(SOON, response).await.expect("not stalled").unwrap().status(), 200);
        assert_eq!(timeout(SOON, other.send(get("/"))).await.expect("not stalled").unwrap().text(), "ok");
    }
    // And one of the idle ones, when it begins to read.
    let mut body = idle.pop().unwrap().into_body();
    for _ in 0..500 {
        let piece = timeout(SOON, body.data()).await.expect("more").unwrap().unwrap();
        body.flow_control().release_capacity(piece.len()).unwrap();
    }
}

#[tokio::test]
async fn uploads_that_nobody_reads_stall_no_other_upload() {
    // A server that has a window for each of them, as gRPC's have.
    let app = apps::tcp(|stream| async move {
        let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
            if request.uri().path() == "/slow" {
                std::future::pending::<()>().await;
            }
            let size = request.into_body().collect().await?.to_bytes().len();
            Ok::<_, hyper::Error>(apps::text(size.to_string()))
        });
        let _ = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
            .initial_connection_window_size(64 << 20)
            .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
            .await;
    })
    .await;
    let mesh = Mesh::to(app);
    let stream = TcpStream::connect(mesh.front.outbound).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut stuck = Vec::new();
    for _ in 0..8 {
        let request = Request::post("http://back/slow").body(()).unwrap();
        let (response, mut body) =
            client.clone().ready().await.unwrap().send_request(request, false).unwrap();
        body.reserve_capacity(4 << 20);
        body.send_data(Bytes::from(vec![b'x'; 4 << 20]), true).unwrap();
        stuck.push(response);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut other = Http2::connect(mesh.front.outbound).await;
    for _ in 0..5 {
        let upload = crate::clients::post("/", vec![b'y'; 1 << 20]);
        let got = timeout(SOON, other.send(upload)).await.expect("not stalled").unwrap();
        assert_eq!(got.text(), (1 << 20).to_string());
    }
}

#[tokio::test]
async fn a_reset_passes_both_ways() {
    let gone = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&gone);
    let app = apps::tcp(move |stream| {
        let counted = Arc::clone(&counted);
        async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let counted = Arc::clone(&counted);
                tokio::spawn(async move {
                    let mut out = respond.send_response(Response::new(()), false).unwrap();
                    out.send_data(Bytes::from_static(b"begun"), false).unwrap();
                    if request.uri().path() == "/server-resets" {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        out.send_reset(h2::Reason::INTERNAL_ERROR);
                    } else {
                        let _ = futures::future::poll_fn(|cx| out.poll_reset(cx)).await;
                        counted.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        }
    })
    .await;
    let mesh = Mesh::with(app, |service| service.protocol = v1::Protocol::Http2.into());
    let stream = TcpStream::connect(mesh.front.outbound).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let send = |path: &str| {
        let request = Request::get(format!("http://back{path}")).body(()).unwrap();
        let client = client.clone();
        async move {
            client.ready().await.unwrap().send_request(request, true).unwrap().0.await.unwrap().into_body()
        }
    };
    let mut body = send("/server-resets").await;
    assert_eq!(body.data().await.unwrap().unwrap(), "begun");
    let end = timeout(SOON, body.data()).await.expect("an end");
    assert!(end.is_some_and(|end| end.is_err_and(|e| e.is_reset())), "it looked complete");
    let mut body = send("/client-resets").await;
    assert_eq!(body.data().await.unwrap().unwrap(), "begun");
    drop(body);
    let told = async {
        while gone.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, told).await.expect("the application hears of it");
}

#[tokio::test]
async fn a_draining_proxy_says_goaway_and_ends_what_was_begun() {
    let (app, _) = apps::http(|_| async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        apps::text("in time")
    })
    .await;
    let mesh = Mesh::to(app);
    let stream = TcpStream::connect(mesh.back.inbound).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    let ended = tokio::spawn(connection);
    let request = Request::get("http://back/").body(()).unwrap();
    let (response, _) = client.clone().ready().await.unwrap().send_request(request, true).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    mesh.back.drain.cancel();
    let mut body = timeout(SOON, response).await.expect("the answer").unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "in time");
    drop((body, client));
    assert!(timeout(SOON, ended).await.expect("the connection's end").unwrap().is_ok());
}

#[tokio::test]
async fn trailers_of_a_request_pass_in_http2() {
    let (app, _) = apps::http(|request| async {
        let body = request.into_body().collect().await.unwrap();
        let sum = body.trailers().and_then(|trailers| trailers.get("x-sum")).cloned();
        apps::text(format!("{sum:?}"))
    })
    .await;
    let mesh = Mesh::to(app);
    let stream = TcpStream::connect(mesh.front.outbound).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("http://back/").body(()).unwrap();
    let (response, mut up) = client.ready().await.unwrap().send_request(request, false).unwrap();
    up.send_data(Bytes::from_static(b"body"), false).unwrap();
    up.send_trailers(HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from_static("42"))]))
        .unwrap();
    let mut body = timeout(SOON, response).await.expect("an answer").unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "Some(\"42\")");
}

#[tokio::test]
async fn a_port_declared_as_http_takes_nothing_past_the_http_server() {
    let (app, seen) = apps::echo().await;
    // The caller's side has been told that it is opaque.
    let mesh = Mesh::with(app, |service| service.protocol = v1::Protocol::Tcp.into());
    let port = u32::from(app.port());
    mesh.back.workload("back", |own| own.port_protocol = [(port, v1::Protocol::Http1.into())].into());
    let spoofing =
        b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\nweft-client-identity: spiffe://evil\r\n\r\n";
    let got = raw(mesh.front.outbound, spoofing, false).await;
    assert!(got.contains(&identity("front").to_string()) && !got.contains("evil"), "{got}");
    let got = raw(mesh.front.outbound, b"*1\r\n$4\r\nPING\r\n", false).await;
    assert!(got.starts_with("HTTP/1.1 400") && got.contains("weft-reason: bad-request"), "{got}");
    assert_eq!(seen.requests(), 1);
}

#[tokio::test]
async fn a_client_that_ends_its_side_still_gets_its_answer() {
    let (app, _) = apps::http(|request| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        tokio::time::sleep(Duration::from_millis(1200)).await;
        apps::text(format!("late answer to {body:?}"))
    })
    .await;
    let mesh = Mesh::to(app);
    let at = mesh.front.outbound;
    for (request, answer) in [
        (b"GET / HTTP/1.0\r\n\r\n".as_slice(), "late answer to b\"\""),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello", "late answer to b\"hello\""),
        (
            b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "late answer to b\"hello\"",
        ),
    ] {
        let got = raw(at, request, true).await;
        assert!(got.contains(" 200 OK") && got.ends_with(answer), "{got}");
    }
    let two = b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\n\r\n";
    assert_eq!(raw(at, two, true).await.matches("late answer").count(), 2);
}

#[tokio::test]
async fn a_client_that_is_gone_is_noticed_while_it_waits() {
    struct Gone(Arc<AtomicUsize>);
    impl Drop for Gone {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let (begun, gone) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (Arc::clone(&begun), Arc::clone(&gone));
    let (app, _) = apps::http(move |_| {
        let (begun, gone) = (Arc::clone(&counts.0), Gone(Arc::clone(&counts.1)));
        async move {
            begun.fetch_add(1, Ordering::SeqCst);
            std::future::pending::<()>().await;
            drop(gone);
            apps::text("never")
        }
    })
    .await;
    let mesh = Mesh::to(app);
    let reached = async |count: &AtomicUsize| {
        while count.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let mut client = TcpStream::connect(mesh.front.outbound).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    client.shutdown().await.unwrap();
    timeout(SOON, reached(&begun)).await.expect("a request");
    assert_eq!(gone.load(Ordering::SeqCst), 0, "it has only ended its side");
    drop(client);
    timeout(SOON, reached(&gone)).await.expect("nobody works for a client that is gone");
}
