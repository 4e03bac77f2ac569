//! HTTP/1 through two proxies.

use std::time::Duration;

use futures::future::join_all;
use http::{HeaderMap, HeaderValue, Request};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_api::v1;

use crate::apps;
use crate::clients::{Http1, fetch, get, post, raw};
use crate::world::{Mesh, VIP, identity};

#[tokio::test]
async fn requests_reach_the_application_and_connections_are_kept() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::to(app);
    let mut client = Http1::connect(mesh.front.outbound).await;
    for n in 0..20 {
        let got = client.send(post(&format!("/a/{n}?q=1"), "hello")).await.unwrap();
        assert_eq!(got.status, 200);
        assert!(got.text().starts_with(&format!("POST /a/{n}?q=1\n")), "{}", got.text());
        assert!(got.text().ends_with("\n\nhello"));
        assert!(got.text().contains("x-request-id: "));
    }
    assert_eq!((seen.connections(), seen.requests()), (1, 20));
}

#[tokio::test]
async fn both_proxies_record_the_same_request() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let mut request = get("/a?secret=1");
    request.headers_mut().insert("x-request-id", HeaderValue::from_static("id-1"));
    fetch(mesh.front.outbound, request).await;
    for (node, direction) in [(&mesh.front, "outbound"), (&mesh.back, "inbound")] {
        let line = node.log.find(|line| line["request_id"] == "id-1").await;
        assert_eq!(line["direction"], direction);
        assert_eq!(line["code"], 200);
        assert_eq!(line["mtls"], true);
        assert_eq!(line["source_identity"], identity("front").to_string());
        assert_eq!(line["reason"], serde_json::Value::Null);
    }
    let text = mesh.front.metrics.encode();
    assert!(text.contains("weft_requests_total"), "{text}");
}

#[tokio::test]
async fn the_application_learns_who_calls_and_nobody_can_pretend() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let mut request = get("/");
    for spelling in ["weft-client-identity", "weft_client_identity"] {
        request
            .headers_mut()
            .insert(spelling, HeaderValue::from_static("spiffe://cluster.local/ns/shop/sa/admin"));
    }
    let got = fetch(mesh.front.outbound, request).await.text();
    assert!(got.contains(&format!("weft-client-identity: {}\n", identity("front"))), "{got}");
    assert!(!got.contains("admin"), "{got}");
}

#[tokio::test]
async fn hop_by_hop_headers_stay_on_their_hop() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let mut request = get("/");
    let headers = request.headers_mut();
    headers.insert("connection", HeaderValue::from_static("x-hop"));
    headers.insert("x-hop", HeaderValue::from_static("1"));
    headers.insert("te", HeaderValue::from_static("trailers"));
    headers.insert("x-end", HeaderValue::from_static("1"));
    let got = fetch(mesh.front.outbound, request).await.text();
    assert!(!got.contains("x-hop") && got.contains("x-end: 1") && got.contains("te: trailers"), "{got}");
}

#[tokio::test]
async fn chunked_bodies_and_trailers_pass() {
    let (app, _) = apps::http(|_| async {
        let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from_static("42"))]);
        let mut response = http::Response::new(apps::with_trailers(&["one ", "two"], trailers));
        response.headers_mut().insert("trailer", HeaderValue::from_static("x-sum"));
        response
    })
    .await;
    let mesh = Mesh::to(app);
    let mut request = get("/");
    request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
    let got = fetch(mesh.front.outbound, request).await;
    assert_eq!((got.text().as_str(), got.trailers["x-sum"].to_str().unwrap()), ("one two", "42"));
}

#[tokio::test]
async fn a_large_body_passes_whole_each_way() {
    let (app, _) = apps::http(|request| async {
        use http_body_util::BodyExt;
        apps::text(request.into_body().collect().await.unwrap().to_bytes())
    })
    .await;
    let mesh = Mesh::to(app);
    let body: Vec<u8> = (0..5_000_000u32).map(|n| (n % 251) as u8).collect();
    let got = fetch(mesh.front.outbound, post("/", body.clone())).await;
    assert_eq!(got.body.len(), body.len());
    assert!(got.body == body);
}

#[tokio::test]
async fn head_no_content_and_not_modified_have_no_body() {
    let (app, _) = apps::http(|request| async move {
        match request.uri().path() {
            "/head" => apps::text("twelve bytes"),
            "/204" => apps::status(204),
            _ => apps::status(304),
        }
    })
    .await;
    let mesh = Mesh::to(app);
    let mut client = Http1::connect(mesh.front.outbound).await;
    let head = Request::head("/head").header("host", "a").body(Full::default()).unwrap();
    let got = client.send(head).await.unwrap();
    assert_eq!((got.headers["content-length"].to_str().unwrap(), got.body.len()), ("12", 0));
    assert_eq!(client.send(get("/204")).await.unwrap().status, 204);
    assert_eq!(client.send(get("/304")).await.unwrap().status, 304);
    assert_eq!(client.send(get("/204")).await.unwrap().status, 204);
}

#[tokio::test]
async fn a_websocket_is_opened_and_copied_both_ways() {
    let (app, _) = apps::http(|mut request| async move {
        assert_eq!(request.headers()["upgrade"], "websocket");
        tokio::spawn(async move {
            let mut io = TokioIo::new(hyper::upgrade::on(&mut request).await.unwrap());
            let mut buffer = [0; 100];
            while let Ok(n @ 1..) = io.read(&mut buffer).await {
                io.write_all(&buffer[..n].to_ascii_uppercase()).await.unwrap();
            }
        });
        let mut response = apps::status(101);
        response.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
        response.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
        response
    })
    .await;
    let mesh = Mesh::to(app);
    let mut client = Http1::connect(mesh.front.outbound).await;
    let mut request = get("/ws");
    request.headers_mut().insert("connection", HeaderValue::from_static("Upgrade"));
    request.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
    request.headers_mut().insert("x-request-id", HeaderValue::from_static("ws-1"));
    let response = client.open(request).await;
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["upgrade"], "websocket");
    let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    for _ in 0..3 {
        io.write_all(b"hello").await.unwrap();
        let mut answer = [0; 5];
        io.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HELLO");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(io);
    let line = mesh.front.log.find(|line| line["request_id"] == "ws-1").await;
    assert_eq!((&line["code"], &line["reason"]), (&101.into(), &serde_json::Value::Null));
    assert_eq!((&line["request_bytes"], &line["response_bytes"]), (&15.into(), &15.into()), "{line}");
}

#[tokio::test]
async fn http_1_0_and_absolute_form_are_understood() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let got = raw(mesh.front.outbound, b"GET /old HTTP/1.0\r\n\r\n", false).await;
    assert!(
        got.starts_with("HTTP/1.0 200") && got.contains("GET /old") && got.contains(&format!("host: {VIP}")),
        "{got}"
    );
    let got = raw(
        mesh.front.outbound,
        b"GET http://shop.example/abs HTTP/1.1\r\nhost: other\r\nconnection: close\r\n\r\n",
        false,
    )
    .await;
    assert!(got.contains("GET /abs\n") && got.contains("host: shop.example\n"), "{got}");
}

#[tokio::test]
async fn an_upstream_of_http_1_0_is_spoken_for_in_http_1_1() {
    let (app, _) = apps::scripted(b"HTTP/1.0 200 OK\r\n\r\nuntil the end").await;
    let mesh = Mesh::with(app, |service| service.protocol = v1::Protocol::Http1.into());
    let got =
        raw(mesh.front.outbound, b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", false).await;
    assert!(got.starts_with("HTTP/1.1 200") && got.contains("until the end"), "{got}");
}

#[tokio::test]
async fn expect_100_continue_is_answered() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let mut stream = tokio::net::TcpStream::connect(mesh.front.outbound).await.unwrap();
    stream
        .write_all(b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert!(rest.starts_with("HTTP/1.1 200") && rest.ends_with("hello"), "{rest}");
}

#[tokio::test]
async fn many_clients_at_once_are_all_answered() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let clients = (0..50).map(|n| {
        let to = mesh.front.outbound;
        tokio::spawn(async move {
            let mut client = Http1::connect(to).await;
            for i in 0..20 {
                let got = client.send(get(&format!("/{n}/{i}"))).await.unwrap();
                assert!(got.text().starts_with(&format!("GET /{n}/{i}\n")));
            }
        })
    });
    for done in join_all(clients).await {
        done.unwrap();
    }
}

#[tokio::test]
async fn a_weighted_split_is_kept_within_statistical_bounds() {
    let ((one, _), (two, _)) = (
        apps::http(|_| async { apps::text("one") }).await,
        apps::http(|_| async { apps::text("two") }).await,
    );
    let node = crate::world::plain(&[one], |service| {
        let mut canary = service.clusters[0].clone();
        canary.name = "shop/back:80/canary".into();
        canary.endpoints[0].address = two.to_string();
        service.clusters.push(canary);
        service.routes[0].backends = vec![
            v1::Backend { cluster: crate::world::SERVICE.into(), weight: 90 },
            v1::Backend { cluster: "shop/back:80/canary".into(), weight: 10 },
        ];
    });
    let mut client = Http1::connect(node.outbound).await;
    let mut canary = 0;
    for _ in 0..1000 {
        canary += usize::from(client.send(get("/")).await.unwrap().text() == "two");
    }
    // Binomial(1000, 0.1): five standard deviations are 47.
    assert!((53..=147).contains(&canary), "{canary}");
}
