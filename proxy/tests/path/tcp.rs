//! Opaque bytes through two proxies.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_api::v1;
use weft_proxy::record::Direction;

use crate::apps;
use crate::clients::{fetch, get, raw};
use crate::world::{Ca, Mesh, Node, VIP, identity, plain};

async fn echo() -> std::net::SocketAddr {
    apps::tcp(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await
}

async fn banner() -> std::net::SocketAddr {
    apps::tcp(|mut stream| async move {
        let _ = stream.write_all(b"220 mail ready\r\n").await;
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        let _ = stream.write_all(&rest).await;
    })
    .await
}

#[tokio::test]
async fn bytes_are_copied_and_each_end_is_passed_on_by_itself() {
    // Counts what it got only once the client has closed its side, then answers.
    let app = apps::tcp(|mut stream| async move {
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await.unwrap();
        stream.write_all(format!("{} bytes", got.len()).as_bytes()).await.unwrap();
    })
    .await;
    let mesh = Mesh::with(app, |service| service.protocol = v1::Protocol::Tcp.into());
    let got = raw(mesh.front.outbound, &[7; 300_000], true).await;
    assert_eq!(got, "300000 bytes");
    let line = mesh.front.log.find(|line| line["log"] == "connection").await;
    assert_eq!((&line["mtls"], &line["reason"]), (&true.into(), &serde_json::Value::Null));
    let line = mesh.back.log.find(|line| line["log"] == "connection").await;
    assert_eq!(line["source_identity"], identity("front").to_string());
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_without_delay() {
    let mesh = Mesh::to(banner().await);
    for round in 0..3 {
        let began = Instant::now();
        let mut stream = TcpStream::connect(mesh.front.outbound).await.unwrap();
        let mut said = [0; 16];
        stream.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"220 mail ready\r\n");
        assert!(began.elapsed() < Duration::from_millis(300), "round {round}: {:?}", began.elapsed());
        stream.write_all(b"QUIT").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "QUIT");
    }
    // What was found is remembered: nothing waits any more.
    let service = Arc::clone(&mesh.front.store.load().services[crate::world::SERVICE]);
    assert_eq!(service.live.learned(), weft_proxy::snapshot::Protocol::Tcp);
    // And forgotten when the port speaks HTTP one day.
    let (app, _) = apps::echo().await;
    mesh.back.redirect(Direction::Inbound, app);
    for _ in 0..3 {
        assert!(fetch(mesh.front.outbound, get("/")).await.text().contains("weft-client-identity"));
    }
    assert_eq!(service.live.learned(), weft_proxy::snapshot::Protocol::Detect);
}

#[tokio::test]
async fn an_opaque_client_that_speaks_first_is_copied() {
    let mesh = Mesh::to(echo().await);
    assert_eq!(raw(mesh.front.outbound, b"*1\r\n$4\r\nPING\r\n", true).await, "*1\r\n$4\r\nPING\r\n");
    // Late, after the upstream was opened already.
    let mut stream = TcpStream::connect(mesh.front.outbound).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    stream.write_all(b"*1\r\n").await.unwrap();
    let mut back = [0; 4];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"*1\r\n");
}

#[tokio::test]
async fn an_http_client_that_is_slow_to_speak_is_served_as_http() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::to(app);
    let mut stream = TcpStream::connect(mesh.front.outbound).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    stream.write_all(b"GET /slow HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut got = String::new();
    stream.read_to_string(&mut got).await.unwrap();
    assert!(got.contains("GET /slow") && got.contains("weft-client-identity"), "{got}");
    assert_eq!(seen.requests(), 1);
}

#[tokio::test]
async fn a_complaint_of_an_http_server_teaches_nothing() {
    let app = apps::tcp(|mut stream| async move {
        // As some servers do with connections opened ahead of need.
        let wait = tokio::time::timeout(Duration::from_millis(30), stream.peek(&mut [0])).await;
        let answer: &[u8] = if wait.is_err() {
            b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        } else {
            b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        };
        if wait.is_ok() {
            apps::read_request(&mut stream).await;
        }
        let _ = stream.write_all(answer).await;
    })
    .await;
    let mesh = Mesh::to(app);
    let idle = raw(mesh.front.outbound, b"", false);
    assert!(idle.await.starts_with("HTTP/1.1 408"));
    assert_eq!(fetch(mesh.front.outbound, get("/")).await.status, 200);
}

#[tokio::test]
async fn the_applications_own_tls_passes_untouched_and_its_name_is_recorded() {
    let mesh = Mesh::to(echo().await);
    // A ClientHello for shop.example, made by rustls.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from("shop.example").unwrap();
    let mut hello = Vec::new();
    rustls::ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut hello).unwrap();
    let mut stream = TcpStream::connect(mesh.front.outbound).await.unwrap();
    stream.write_all(&hello).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).await.unwrap();
    assert!(back == hello);
    let line = mesh.front.log.find(|line| line["log"] == "connection").await;
    assert_eq!(line["sni"], "shop.example");
}

#[tokio::test]
async fn an_address_outside_of_the_mesh_is_called_as_it_is() {
    let app = echo().await;
    let node = Node::start(&Ca::new(), "front");
    node.redirect(Direction::Outbound, app);
    let external = Some(v1::address::Target::External(v1::External {}));
    node.configure(v1::ToProxy {
        addresses: vec![v1::Address { address: app.to_string(), target: external }],
        ..Default::default()
    });
    assert_eq!(raw(node.outbound, b"GET / HTTP/1.1\r\n\r\n", true).await, "GET / HTTP/1.1\r\n\r\n");
}

#[tokio::test]
async fn one_endpoint_by_its_own_address_gets_every_request() {
    let ((one, first), (two, second)) = (apps::echo().await, apps::echo().await);
    let node = plain(&[one, two], |_| {});
    let pinned = v1::Pinned { service: crate::world::SERVICE.into(), endpoint: two.to_string() };
    node.configure(v1::ToProxy {
        addresses: vec![v1::Address {
            address: VIP.into(),
            target: Some(v1::address::Target::Pinned(pinned)),
        }],
        ..Default::default()
    });
    for _ in 0..6 {
        fetch(node.outbound, get("/")).await;
    }
    assert_eq!((first.requests(), second.requests()), (0, 6));
}

#[tokio::test]
async fn an_endpoint_of_the_own_pod_is_called_in_plaintext() {
    let (app, _) = apps::echo().await;
    let node = Node::start_with(&Ca::new(), "back", vec![app.ip()]);
    node.serve(crate::world::service(&[app], Some("back")));
    assert_eq!(fetch(node.outbound, get("/self")).await.status, 200);
    let line = node.log.find(|line| line["path"] == "/self").await;
    assert_eq!(line["mtls"], false);
}

#[tokio::test]
async fn an_opaque_connection_goes_to_another_endpoint_when_one_refuses() {
    let node = plain(&[apps::nobody().await, echo().await], |service| {
        service.protocol = v1::Protocol::Tcp.into();
    });
    for _ in 0..4 {
        assert_eq!(raw(node.outbound, b"hi", true).await, "hi");
    }
}

#[tokio::test]
async fn a_connection_that_no_endpoint_takes_is_closed_and_recorded() {
    let node = plain(&[apps::nobody().await], |service| service.protocol = v1::Protocol::Tcp.into());
    assert_eq!(raw(node.outbound, b"hi", false).await, "");
    let line = node.log.find(|line| line["log"] == "connection").await;
    assert_eq!(line["reason"], "connect-failed");
}

#[tokio::test]
async fn a_reset_of_the_server_is_a_reset_to_the_client_and_no_orderly_end() {
    let app = apps::tcp(|mut stream| async move {
        stream.write_all(b"half of an ans").await.unwrap();
        let _ = stream.read(&mut [0; 10]).await;
        stream.set_zero_linger().unwrap();
    })
    .await;
    let mesh = Mesh::with(app, |service| service.protocol = v1::Protocol::Tcp.into());
    let mut stream = TcpStream::connect(mesh.front.outbound).await.unwrap();
    let mut got = [0; 14];
    stream.read_exact(&mut got).await.unwrap();
    stream.write_all(b"go on").await.unwrap();
    let end = stream.read(&mut got).await;
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let line = mesh.back.log.find(|line| line["log"] == "connection").await;
    assert_eq!(line["reason"], "upstream-reset");
}
