//! HTTP/2 and gRPC through two proxies.

use bytes::Bytes;
use futures::future::join_all;
use http::{HeaderMap, HeaderValue, Request};
use http_body_util::Full;
use tokio::io::AsyncReadExt;
use weft_api::v1;

use crate::apps;
use crate::clients::{Http2, get};
use crate::world::{Mesh, SERVICE, plain};

fn grpc(path: &str) -> Request<Full<Bytes>> {
    let mut request = crate::clients::post(path, Bytes::from_static(&[0, 0, 0, 0, 0]));
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
    request
}

async fn grpc_app(name: &'static str) -> (std::net::SocketAddr, apps::Seen) {
    apps::http(move |request| async move {
        assert_eq!(request.version(), http::Version::HTTP_2);
        assert_eq!(request.headers()["te"], "trailers");
        let trailers =
            HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
        let mut response = http::Response::new(apps::with_trailers(&[name], trailers));
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        response
    })
    .await
}

#[tokio::test]
async fn http2_requests_share_one_connection_all_the_way() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::to(app);
    let client = Http2::connect(mesh.front.outbound).await;
    let calls = (0..50).map(|n| {
        let mut client = client.clone();
        async move { client.send(get(&format!("/{n}"))).await.unwrap().text() }
    });
    for (n, got) in join_all(calls).await.into_iter().enumerate() {
        assert!(got.contains(&format!("/{n}\n")) && got.contains("weft-client-identity: spiffe://"), "{got}");
    }
    assert_eq!((seen.connections(), seen.requests()), (1, 50));
}

#[tokio::test]
async fn grpc_trailers_pass_and_are_recorded() {
    let (app, _) = grpc_app("reply").await;
    let mesh = Mesh::to(app);
    let mut request = grpc("/shop.Back/Buy");
    request.headers_mut().insert("x-request-id", HeaderValue::from_static("grpc-1"));
    let got = Http2::connect(mesh.front.outbound).await.send(request).await.unwrap();
    assert_eq!(
        (got.status.as_u16(), got.text().as_str(), got.trailers["grpc-status"].to_str().unwrap()),
        (200, "reply", "0")
    );
    let line = mesh.front.log.find(|line| line["request_id"] == "grpc-1").await;
    assert_eq!((&line["protocol"], &line["grpc_status"]), (&"grpc".into(), &0.into()));
}

#[tokio::test]
async fn grpc_is_balanced_per_request_over_one_client_connection() {
    let (one, two) = (grpc_app("one").await, grpc_app("two").await);
    let node = plain(&[one.0, two.0], |service| service.protocol = v1::Protocol::Http2.into());
    let mut client = Http2::connect(node.outbound).await;
    for _ in 0..20 {
        client.send(grpc("/shop.Back/Buy")).await.unwrap();
    }
    assert_eq!((one.1.requests(), two.1.requests()), (10, 10));
    assert_eq!((one.1.connections(), two.1.connections()), (1, 1));
}

#[tokio::test]
async fn the_proxys_own_failures_are_grpc_statuses_to_grpc_clients() {
    let node = plain(&[apps::nobody().await], |_| {});
    let mut client = Http2::connect(node.outbound).await;
    let got = client.send(grpc("/shop.Back/Buy")).await.unwrap();
    assert_eq!((got.status.as_u16(), got.reason()), (200, "connect-failed"));
    assert_eq!(got.headers["grpc-status"], "14");
    // The same to others is a status of HTTP.
    assert_eq!(client.send(get("/")).await.unwrap().status, 503);
}

#[tokio::test]
async fn a_trailers_only_unavailable_is_retried_where_the_route_says_so() {
    let (sick, _) = apps::http(|_| async {
        let mut response = apps::status(200);
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        response.headers_mut().insert("grpc-status", HeaderValue::from_static("14"));
        response
    })
    .await;
    let (well, _) = grpc_app("well").await;
    let node = plain(&[sick, well], |service| {
        service.routes[0].retry = Some(v1::Retry {
            attempts: 1,
            on: vec![v1::RetryOn::GrpcUnavailable.into()],
            non_idempotent: true,
            budget_percent: 100,
            budget_min_per_second: 100,
            backoff_base_ms: 1,
            backoff_max_ms: 1,
            ..Default::default()
        });
    });
    let mut client = Http2::connect(node.outbound).await;
    for _ in 0..10 {
        assert_eq!(client.send(grpc("/shop.Back/Buy")).await.unwrap().text(), "well");
    }
}

#[tokio::test]
async fn a_server_that_goes_away_costs_no_request() {
    // An HTTP/2 server that says GOAWAY after each request.
    let app = apps::tcp(|stream| async move {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        if let Some(Ok((_, mut respond))) = connection.accept().await {
            connection.graceful_shutdown();
            let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
            stream.send_data(Bytes::from_static(b"ok"), true).unwrap();
            while let Some(Ok(_)) = connection.accept().await {}
        }
    })
    .await;
    let mesh = Mesh::with(app, |service| service.protocol = v1::Protocol::Http2.into());
    let mut client = Http2::connect(mesh.front.outbound).await;
    for n in 0..100 {
        let mut request = grpc("/shop.Back/Buy");
        request.headers_mut().insert("n", HeaderValue::from(n));
        let got = client.send(request).await.unwrap();
        assert_eq!((got.status.as_u16(), got.text().as_str()), (200, "ok"), "{got:?}");
    }
}

#[tokio::test]
async fn a_flood_of_resets_ends_the_connection_and_nothing_else() {
    let (app, _) = apps::http(|_| async {
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        apps::text("late")
    })
    .await;
    let mesh = Mesh::to(app);
    let stream = tokio::net::TcpStream::connect(mesh.front.outbound).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    // CVE-2023-44487.
    for _ in 0..5000 {
        let Ok(ready) = client.clone().ready().await else { break };
        client = ready;
        let request = Request::get("http://back/").body(()).unwrap();
        let Ok((response, mut stream)) = client.send_request(request, false) else { break };
        stream.send_reset(h2::Reason::CANCEL);
        drop(response);
        tokio::task::yield_now().await;
    }
    let ended = tokio::time::timeout(std::time::Duration::from_secs(10), connection).await;
    assert!(ended.is_ok_and(|ended| ended.unwrap().is_err()), "the flood was let through");
    let other = Http2::connect(mesh.front.outbound).await;
    drop(other);
}

#[tokio::test]
async fn a_plaintext_http2_connection_that_is_not_http2_is_closed() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let mut stream = tokio::net::TcpStream::connect(mesh.front.outbound).await.unwrap();
    let bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nthis is no frame of HTTP/2 at all";
    tokio::io::AsyncWriteExt::write_all(&mut stream, bytes).await.unwrap();
    let mut rest = Vec::new();
    let read = tokio::time::timeout(std::time::Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
    assert!(read.is_ok(), "it was left hanging");
    assert_eq!(mesh.front.store.load().services.len(), 1, "{SERVICE}");
}

#[tokio::test]
async fn a_stream_of_messages_flows_both_ways_at_once() {
    // Answers each piece as it comes.
    let app = apps::tcp(|stream| async move {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            tokio::spawn(async move {
                let mut body = request.into_body();
                let mut out = respond.send_response(http::Response::new(()), false).unwrap();
                while let Some(Ok(piece)) = body.data().await {
                    let _ = body.flow_control().release_capacity(piece.len());
                    out.send_data(piece, false).unwrap();
                }
                let trailers =
                    HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
                out.send_trailers(trailers).unwrap();
            });
        }
    })
    .await;
    let mesh = Mesh::to(app);
    let stream = tokio::net::TcpStream::connect(mesh.front.outbound).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("http://back/shop.Back/Chat")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (response, mut up) = client.ready().await.unwrap().send_request(request, false).unwrap();
    up.send_data(Bytes::from_static(b"0"), false).unwrap();
    let mut down = response.await.unwrap().into_body();
    assert_eq!(down.data().await.unwrap().unwrap(), "0");
    for n in 1..50 {
        up.send_data(Bytes::from(n.to_string()), false).unwrap();
        assert_eq!(down.data().await.unwrap().unwrap(), n.to_string());
    }
    up.send_data(Bytes::new(), true).unwrap();
    assert!(down.data().await.is_none());
    assert_eq!(down.trailers().await.unwrap().unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn more_streams_than_one_connection_should_carry_are_spread() {
    let (app, seen) = apps::http(|_| async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        apps::text("ok")
    })
    .await;
    let node = plain(&[app], |_| {});
    let client = Http2::connect(node.outbound).await;
    client.clone().send(get("/")).await.unwrap();
    let calls = (0..150).map(|_| {
        let mut client = client.clone();
        async move { client.send(get("/")).await.unwrap().status }
    });
    assert!(join_all(calls).await.iter().all(|status| *status == 200));
    assert_eq!(seen.connections(), 2);
}

#[tokio::test]
async fn a_call_that_the_client_gives_up_is_given_up_at_the_application() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let app = apps::tcp(move |stream| {
        let tell = tell.clone();
        async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let tell = tell.clone();
                tokio::spawn(async move {
                    let answers = request.uri().path() == "/answers";
                    let mut body = request.into_body();
                    let _stream =
                        answers.then(|| respond.send_response(http::Response::new(()), false).unwrap());
                    let _ = tell.send(None);
                    while let Some(Ok(piece)) = body.data().await {
                        let _ = body.flow_control().release_capacity(piece.len());
                    }
                    let reset = std::future::poll_fn(|cx| respond.poll_reset(cx));
                    let _ =
                        tell.send(tokio::time::timeout(std::time::Duration::from_secs(10), reset).await.ok());
                });
            }
        }
    })
    .await;
    let mesh = Mesh::to(app);
    let stream = tokio::net::TcpStream::connect(mesh.front.outbound).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    for (path, ends) in [("/waits", false), ("/waits", true), ("/answers", false)] {
        client = client.ready().await.unwrap();
        let request = Request::post(format!("http://back{path}")).body(()).unwrap();
        let (response, mut up) = client.send_request(request, false).unwrap();
        up.send_data(Bytes::from_static(b"begun"), ends).unwrap();
        assert!(told.recv().await.unwrap().is_none());
        let down = if path == "/answers" { Some(response.await.unwrap()) } else { None };
        up.send_reset(h2::Reason::CANCEL);
        let reset = told.recv().await.unwrap();
        assert!(reset.is_some_and(|reset| reset.is_ok_and(|why| why == h2::Reason::CANCEL)), "{path} {ends}");
        drop(down);
    }
}
