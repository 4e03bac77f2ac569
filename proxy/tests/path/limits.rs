//! Clients that break rules or limits, and draining.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::apps;
use crate::clients::{Http1, Http2, fetch, get, post, raw};
use crate::world::Mesh;

#[tokio::test]
async fn malformed_requests_are_refused_with_the_reason_and_never_reach_the_application() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::with(app, |service| service.protocol = weft_api::v1::Protocol::Http1.into());
    for (bytes, wanted) in [
        (&b"GET / HTTP/1.1\r\nhost: a\r\nbad header\r\n\r\n"[..], "400"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\r\n\r\n", "400"),
        (b"CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n", "400"),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello", "400"),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -5\r\n\r\nhello", "400"),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n", "400"),
        (b"POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: a\0b\r\n\r\n", "400"),
    ] {
        let got = raw(mesh.front.outbound, bytes, false).await;
        assert!(got.starts_with(&format!("HTTP/1.1 {wanted} ")), "{} gave {got}", bytes.escape_ascii());
        assert!(got.contains("weft-reason: bad-request\r\n"), "{} gave {got}", bytes.escape_ascii());
        assert!(got.contains("connection: close"), "{got}");
    }
    assert_eq!(seen.requests(), 0);
}

#[tokio::test]
async fn a_request_cannot_be_smuggled_by_two_lengths() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::to(app);
    for head in [
        "content-length: 6\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 6",
        "Transfer-Encoding: chunked\r\nContent-Length: 0",
    ] {
        let smuggling = format!(
            "POST /a HTTP/1.1\r\nhost: a\r\n{head}\r\n\r\n0\r\n\r\nGET /admin HTTP/1.1\r\nhost: a\r\n\r\n"
        );
        let got = raw(mesh.front.outbound, smuggling.as_bytes(), false).await;
        assert!(got.starts_with("HTTP/1.1 400") && got.contains("weft-reason: bad-request"), "{got}");
        assert_eq!(got.matches("HTTP/1.1").count(), 1, "{got}");
    }
    assert_eq!(seen.requests(), 0);
    // Pipelined requests, each with one length, are as good as any.
    let pipelined = b"POST /1 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nPOST /2 HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let got = raw(mesh.front.outbound, pipelined, false).await;
    assert!(got.contains("POST /1") && got.contains("POST /2"), "{got}");
}

#[tokio::test]
async fn two_lengths_are_refused_whatever_came_before_them_in_one_packet() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::to(app);
    let before = [
        "GET /1 HTTP/1.1\r\nhost: a\r\n\r\n",
        "POST /2 HTTP/1.1\r\nhost: a\r\ncontent-length: 47\r\n\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n",
        "POST /3 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
        "POST /4 HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nab",
    ];
    let smuggling = "POST /5 HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /admin HTTP/1.1\r\nhost: a\r\n\r\n";
    // Each of them alone, and then all of them in order and in reverse.
    let mut orders: Vec<Vec<&str>> = before.iter().map(|one| vec![*one]).collect();
    orders.push(before.to_vec());
    orders.push(before.iter().rev().copied().collect());
    let mut fine = 0;
    for order in orders {
        fine += order.len();
        let got = raw(mesh.front.outbound, (order.concat() + smuggling).as_bytes(), false).await;
        assert_eq!(got.matches("HTTP/1.1 200").count(), order.len(), "{order:?}: {got}");
        assert_eq!(got.matches("HTTP/1.1 400").count(), 1, "{order:?}: {got}");
        assert!(got.contains("weft-reason: bad-request") && !got.contains("/admin"), "{got}");
    }
    assert_eq!(seen.requests(), fine);
}

#[tokio::test]
async fn a_client_that_stops_in_its_first_word_on_an_http_port_is_told() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::with(app, |service| service.protocol = weft_api::v1::Protocol::Http1.into());
    let mut slow = TcpStream::connect(mesh.front.outbound).await.unwrap();
    slow.write_all(b"GE").await.unwrap();
    let mut got = String::new();
    timeout(Duration::from_secs(25), slow.read_to_string(&mut got)).await.unwrap().unwrap();
    assert!(got.starts_with("HTTP/1.1 408 ") && got.contains("weft-reason: client-timeout"), "{got}");
    assert_eq!(seen.connections(), 0);
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_with_the_reason() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::to(app);
    let mut bytes = b"GET / HTTP/1.1\r\nhost: a\r\n".to_vec();
    for n in 0..90 {
        bytes.extend_from_slice(format!("x-{n}: {}\r\n", "a".repeat(1000)).as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    let got = raw(mesh.front.outbound, &bytes, false).await;
    assert!(got.starts_with("HTTP/1.1 431 ") && got.contains("weft-reason: headers-too-large"), "{got}");
    let line = mesh.front.log.find(|line| line["reason"] == "headers-too-large").await;
    assert_eq!((&line["code"], &line["log"]), (&431.into(), &"request".into()));
    assert_eq!(seen.requests(), 0);
    // What is below the limit passes.
    let mut request = get("/");
    request.headers_mut().insert("x", "a".repeat(50_000).parse().unwrap());
    assert_eq!(fetch(mesh.front.outbound, request).await.status, 200);
}

#[tokio::test]
async fn a_client_that_stops_within_a_head_is_told_after_ten_seconds_and_an_idle_one_is_kept() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let began = Instant::now();
    let mut slow = TcpStream::connect(mesh.front.outbound).await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n").await.unwrap();
    let mut idle = Http1::connect(mesh.front.outbound).await;
    assert_eq!(idle.send(get("/")).await.unwrap().status, 200);
    let mut got = String::new();
    timeout(Duration::from_secs(15), slow.read_to_string(&mut got)).await.unwrap().unwrap();
    assert!(got.starts_with("HTTP/1.1 408 ") && got.contains("weft-reason: client-timeout"), "{got}");
    assert!((9..13).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    sleep(Duration::from_secs(1)).await;
    assert_eq!(idle.send(get("/")).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_slow_body_is_not_a_slow_head() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let mut stream = TcpStream::connect(mesh.front.outbound).await.unwrap();
    stream
        .write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    for byte in [b"a", b"b", b"c"] {
        sleep(Duration::from_millis(4200)).await;
        stream.write_all(byte).await.unwrap();
    }
    let mut got = String::new();
    stream.read_to_string(&mut got).await.unwrap();
    assert!(got.starts_with("HTTP/1.1 200") && got.ends_with("abc"), "{got}");
}

#[tokio::test]
async fn a_call_that_was_not_redirected_is_closed() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    mesh.front.redirect(weft_proxy::record::Direction::Outbound, mesh.front.outbound);
    assert_eq!(raw(mesh.front.outbound, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", false).await, "");
}

#[tokio::test]
async fn draining_finishes_what_is_under_way_and_takes_nothing_new_in() {
    let (app, _) = apps::http(|_| async {
        sleep(Duration::from_millis(500)).await;
        apps::text("done")
    })
    .await;
    let mesh = Mesh::to(app);
    let mut idle = Http1::connect(mesh.back.inbound).await;
    idle.send(get("/")).await.unwrap();
    let (first, second) = (mesh.front.outbound, mesh.back.inbound);
    let under_way = tokio::spawn(async move { fetch(first, get("/")).await.text() });
    let mut grpc = Http2::connect(second).await;
    let stream = tokio::spawn(async move { grpc.send(post("/", "")).await.unwrap().text() });
    sleep(Duration::from_millis(100)).await;
    let began = Instant::now();
    mesh.back.drain.cancel();
    sleep(Duration::from_millis(50)).await;
    assert!(TcpStream::connect(mesh.back.inbound).await.is_err(), "a new connection was accepted");
    assert_eq!(under_way.await.unwrap(), "done");
    assert_eq!(stream.await.unwrap(), "done");
    assert!(idle.send(get("/")).await.is_err(), "an idle connection was kept");
    // The other proxy's connection was told to go, so nothing is left.
    for _ in 0..100 {
        if mesh.back.ended() {
            assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
            return;
        }
        sleep(Duration::from_millis(30)).await;
    }
    panic!("still draining");
}

#[tokio::test]
async fn a_rolling_change_of_proxies_costs_no_request() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (to, stop) = (mesh.front.outbound, std::sync::Arc::clone(&stop));
            tokio::spawn(async move {
                let mut client = Http1::connect(to).await;
                let mut sent = 0;
                while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                    let got = client.send(post("/", "x")).await.unwrap();
                    assert_eq!(got.status, 200, "after {sent}: {got:?}");
                    sent += 1;
                }
                sent
            })
        })
        .collect();
    let mut current = mesh.back.drain.clone();
    let mut nodes = Vec::new();
    for _ in 0..3 {
        sleep(Duration::from_millis(150)).await;
        let next = crate::world::Node::start(&mesh.ca, "back");
        next.redirect(weft_proxy::record::Direction::Inbound, app);
        mesh.front.serve(crate::world::service(&[next.inbound], Some("back")));
        sleep(Duration::from_millis(50)).await;
        current.cancel();
        current = next.drain.clone();
        nodes.push(next);
    }
    sleep(Duration::from_millis(150)).await;
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    for done in load {
        assert!(done.await.unwrap() > 10);
    }
}
