//! Who may talk to whom, and as whom.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_api::v1;
use weft_proxy::record::Direction;
use weft_proxy::tls::{Alpn, Tls};

use crate::apps;
use crate::clients::{Http2, fetch, get, post, raw};
use crate::world::{Ca, Mesh, Node, identity, service};

fn strict(node: &Node, change: impl FnOnce(&mut v1::Workload)) {
    node.workload("back", |own| {
        own.mtls = v1::MtlsMode::Strict.into();
        change(own);
    });
}

/// mTLS as a proxy would speak it, with a certificate of this root.
async fn dial(
    to: SocketAddr,
    ca: &Ca,
    roots: &Ca,
    alpn: Alpn,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let (chain, key) = ca.workload(&identity("front"));
    let tls = Tls::from_der(chain, key, vec![roots.root()]).unwrap();
    let connector = tokio_rustls::TlsConnector::from(tls.client(alpn));
    connector.connect(ServerName::IpAddress(to.ip().into()), TcpStream::connect(to).await?).await
}

#[tokio::test]
async fn an_endpoint_that_is_somebody_else_gets_not_one_byte() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::to(app);
    mesh.front.serve(service(&[mesh.back.inbound], Some("other")));
    let got = fetch(mesh.front.outbound, get("/")).await;
    assert_eq!((got.status.as_u16(), got.reason()), (503, "peer-identity-mismatch"));
    assert_eq!(seen.connections(), 0);
    let line = mesh.front.log.find(|line| line["reason"] == "peer-identity-mismatch").await;
    let detail = line["detail"].as_str().unwrap();
    assert!(detail.contains("sa/other") && detail.contains("sa/back"), "{detail}");
}

#[tokio::test]
async fn an_endpoint_of_another_root_is_refused() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::to(app);
    let stranger = Ca::new();
    mesh.back.certify(&stranger, "back", vec![stranger.root(), mesh.ca.root()]);
    let got = fetch(mesh.front.outbound, get("/")).await;
    assert_eq!((got.status.as_u16(), got.reason()), (503, "tls-handshake"));
    assert_eq!(seen.connections(), 0);
}

#[tokio::test]
async fn a_plaintext_endpoint_that_should_be_in_the_mesh_is_refused() {
    let (app, seen) = apps::echo().await;
    let node = crate::world::plain(&[app], |service| {
        service.clusters[0].endpoints[0].identity = identity("back").to_string();
    });
    let got = fetch(node.outbound, get("/")).await;
    assert_eq!(got.reason(), "tls-handshake");
    assert_eq!(seen.requests(), 0);
}

#[tokio::test]
async fn a_client_of_another_root_is_refused_whatever_it_sends() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::to(app);
    let stranger = Ca::new();
    // In TLS 1.3 the client believes to be connected until it hears the alert.
    if let Ok(mut stream) = dial(mesh.back.inbound, &stranger, &mesh.ca, Alpn::Http1).await {
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut rest = Vec::new();
        assert!(stream.read_to_end(&mut rest).await.is_err());
    }
    assert_eq!(seen.connections(), 0);
    // The client may hear of it before it is counted.
    for _ in 0..100 {
        if mesh.back.metrics.encode().contains("reason=\"client-certificate\"") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    panic!("{}", mesh.back.metrics.encode());
}

#[tokio::test]
async fn a_client_of_the_mesh_is_served_by_hand_made_mtls_too() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    strict(&mesh.back, |_| {});
    let mut stream = dial(mesh.back.inbound, &mesh.ca, &mesh.ca, Alpn::Http1).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut got = String::new();
    let _ = stream.read_to_string(&mut got).await;
    assert!(got.contains(&format!("weft-client-identity: {}", identity("front"))), "{got}");
}

#[tokio::test]
async fn a_kept_session_is_judged_as_a_new_one_when_the_policy_has_changed() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::to(app);
    strict(&mesh.back, |_| {});
    let (chain, key) = mesh.ca.workload(&identity("front"));
    let tls = Tls::from_der(chain, key, vec![mesh.ca.root()]).unwrap();
    let kept = tls.client(Alpn::Http1);
    let back = mesh.back.inbound;
    let ask = async || -> std::io::Result<(Option<rustls::HandshakeKind>, String)> {
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&kept));
        let name = ServerName::IpAddress(back.ip().into());
        let mut stream = connector.connect(name, TcpStream::connect(back).await?).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await?;
        let mut got = String::new();
        let _ = stream.read_to_string(&mut got).await;
        Ok((stream.get_ref().1.handshake_kind(), got))
    };
    assert!(ask().await.unwrap().1.contains("weft-client-identity"));
    let (kind, got) = ask().await.unwrap();
    assert_eq!(kind, Some(rustls::HandshakeKind::Resumed));
    // Who it has proved to be goes with the session.
    assert!(got.contains(&format!("weft-client-identity: {}", identity("front"))), "{got}");

    mesh.back.workload("back", |own| own.mtls = v1::MtlsMode::Disable.into());
    assert!(ask().await.is_err());
    strict(&mesh.back, |_| {});
    mesh.back.certify(&Ca::new(), "back", vec![Ca::new().root()]);
    assert!(ask().await.map_or(true, |(_, got)| got.is_empty()));
    assert_eq!(seen.requests(), 2);
}

#[tokio::test]
async fn strict_refuses_plaintext_with_a_reason_and_serves_the_mesh() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::to(app);
    strict(&mesh.back, |_| {});
    assert_eq!(fetch(mesh.front.outbound, get("/")).await.status, 200);
    let got = fetch(mesh.back.inbound, get("/")).await;
    assert_eq!((got.status.as_u16(), got.reason()), (403, "mtls-required"));
    let got = Http2::connect(mesh.back.inbound).await.send(get("/")).await.unwrap();
    assert_eq!((got.status.as_u16(), got.reason()), (403, "mtls-required"));
    assert_eq!(raw(mesh.back.inbound, b"*1\r\n$4\r\nPING\r\n", false).await, "");
    assert_eq!(seen.requests(), 1);
    mesh.back.log.find(|line| line["log"] == "connection" && line["reason"] == "mtls-required").await;
}

#[tokio::test]
async fn strict_lets_the_declared_probes_pass_and_nothing_near_them() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::to(app);
    let port = u32::from(app.port());
    strict(&mesh.back, |own| {
        own.probes =
            vec![v1::Probe { port, kind: Some(v1::probe::Kind::HttpPath("/healthz?full=1".into())) }];
    });
    let allowed = fetch(mesh.back.inbound, get("/healthz?full=1")).await;
    assert_eq!(allowed.status, 200);
    assert!(!allowed.text().contains("weft-client-identity"));
    let mut head = get("/healthz?full=1");
    *head.method_mut() = http::Method::HEAD;
    assert_eq!(fetch(mesh.back.inbound, head).await.status, 200);
    for path in
        ["/healthz", "/healthz?full=2", "/healthz?full=1&x=2", "/", "/healthz/../admin", "//healthz?full=1"]
    {
        assert_eq!(fetch(mesh.back.inbound, get(path)).await.reason(), "mtls-required", "{path}");
    }
    assert_eq!(fetch(mesh.back.inbound, post("/healthz?full=1", "")).await.reason(), "mtls-required");
    let mut with_body = get("/healthz?full=1");
    *with_body.body_mut() = Bytes::from("x").into();
    assert_eq!(fetch(mesh.back.inbound, with_body).await.reason(), "mtls-required");
    // On another port it is no probe.
    mesh.back.redirect(Direction::Inbound, SocketAddr::new(app.ip(), app.port() ^ 1));
    assert_eq!(fetch(mesh.back.inbound, get("/healthz?full=1")).await.reason(), "mtls-required");
    assert_eq!(seen.requests(), 2);
}

#[tokio::test]
async fn strict_lets_the_declared_grpc_probe_pass_and_no_other_service() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let port = u32::from(app.port());
    strict(&mesh.back, |own| {
        own.probes = vec![v1::Probe { port, kind: Some(v1::probe::Kind::GrpcService("live".into())) }];
    });
    let check = |path: &str, service: &str| {
        let message =
            [&[0, 0, 0, 0, service.len() as u8 + 2, 0x0a, service.len() as u8], service.as_bytes()].concat();
        let mut request = post(path, message);
        request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        request
    };
    let mut client = Http2::connect(mesh.back.inbound).await;
    let got = client.send(check("/grpc.health.v1.Health/Check", "live")).await.unwrap();
    assert!(got.body.ends_with(b"live") && got.reason().is_empty(), "{got:?}");
    for (path, service) in
        [("/grpc.health.v1.Health/Check", "other"), ("/grpc.health.v1.Health/Watch", "live")]
    {
        let got = client.send(check(path, service)).await.unwrap();
        assert_eq!((got.reason(), got.headers["grpc-status"].to_str().unwrap()), ("mtls-required", "7"));
    }
}

#[tokio::test]
async fn permissive_serves_both_and_believes_only_certificates() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let mut request = get("/");
    request.headers_mut().insert("weft-client-identity", HeaderValue::from_static("spoofed"));
    let got = fetch(mesh.back.inbound, request).await;
    assert_eq!(got.status, 200);
    assert!(!got.text().contains("weft-client-identity"), "{}", got.text());
    let line = mesh.back.log.find(|line| line["direction"] == "inbound").await;
    assert_eq!(line["mtls"], false);
}

#[tokio::test]
async fn permissive_hears_a_server_that_speaks_first() {
    let app = apps::tcp(|mut stream| async move {
        let _ = stream.write_all(b"220 ready\r\n").await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let mesh = Mesh::to(app);
    let mut stream = TcpStream::connect(mesh.back.inbound).await.unwrap();
    let mut said = [0; 11];
    tokio::time::timeout(Duration::from_secs(1), stream.read_exact(&mut said)).await.unwrap().unwrap();
    assert_eq!(&said, b"220 ready\r\n");
}

#[tokio::test]
async fn a_port_may_differ_from_its_workload() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    strict(&mesh.back, |own| {
        own.port_mtls.insert(u32::from(app.port()), v1::MtlsMode::Permissive.into());
    });
    assert_eq!(fetch(mesh.back.inbound, get("/")).await.status, 200);
}

#[tokio::test]
async fn disable_takes_plaintext_only() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    mesh.back.workload("back", |own| own.mtls = v1::MtlsMode::Disable.into());
    assert_eq!(fetch(mesh.back.inbound, get("/")).await.status, 200);
    assert!(dial(mesh.back.inbound, &mesh.ca, &mesh.ca, Alpn::Http1).await.is_err());
}

#[tokio::test]
async fn without_configuration_plaintext_is_refused() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::to(app);
    let mut empty = (*mesh.back.store.load()).clone();
    empty.workload = None;
    mesh.back.store.publish(empty);
    assert_eq!(fetch(mesh.back.inbound, get("/")).await.reason(), "mtls-required");
    assert_eq!(seen.requests(), 0);
}

#[tokio::test]
async fn an_application_cannot_speak_for_the_mesh() {
    let (app, _) = apps::http(|_| async {
        let mut response = apps::status(503);
        response.headers_mut().insert("weft-reason", HeaderValue::from_static("connect-failed"));
        response
    })
    .await;
    let mesh = Mesh::to(app);
    let got = fetch(mesh.front.outbound, get("/")).await;
    assert_eq!((got.status.as_u16(), got.reason()), (503, ""));
}

#[tokio::test]
async fn a_renewed_certificate_breaks_no_connection_and_a_new_root_is_taken() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::to(app);
    let mut client = crate::clients::Http1::connect(mesh.front.outbound).await;
    assert_eq!(client.send(get("/")).await.unwrap().status, 200);
    let next = Ca::new();
    for node in [(&mesh.front, "front"), (&mesh.back, "back")] {
        node.0.certify(&next, node.1, vec![mesh.ca.root(), next.root()]);
        assert_eq!(client.send(get("/")).await.unwrap().status, 200);
    }
    assert_eq!(seen.connections(), 1);
    // A new connection between the proxies uses the new certificates.
    let slow = futures::future::join_all((0..5).map(|_| fetch(mesh.front.outbound, get("/")))).await;
    assert!(slow.iter().all(|got| got.status == 200));
    let _ = Arc::strong_count(&mesh.front.store);
}

#[tokio::test]
async fn what_is_open_follows_when_plaintext_is_forbidden() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let mut http = crate::clients::Http1::connect(mesh.back.inbound).await;
    assert_eq!(http.send(get("/")).await.unwrap().status, 200);
    let opaque = apps::tcp(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    mesh.back.redirect(Direction::Inbound, opaque);
    let mut stream = TcpStream::connect(mesh.back.inbound).await.unwrap();
    stream.write_all(b"*1\r\n").await.unwrap();
    let mut back = [0; 4];
    stream.read_exact(&mut back).await.unwrap();
    // A change of something else changes nothing.
    mesh.back.workload("back", |own| {
        own.probes.push(v1::Probe { port: 1, kind: Some(v1::probe::Kind::HttpPath("/".into())) })
    });
    stream.write_all(b"*2\r\n").await.unwrap();
    stream.read_exact(&mut back).await.unwrap();

    strict(&mesh.back, |_| {});
    assert_eq!(http.send(get("/")).await.unwrap().reason(), "mtls-required");
    let end = tokio::time::timeout(Duration::from_secs(2), stream.read(&mut back)).await.unwrap();
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn whom_strict_would_refuse_is_known_before_it_is_switched_on() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    mesh.back.workload("back", |own| {
        own.mtls = v1::MtlsMode::Permissive.into();
        own.probes = vec![v1::Probe {
            port: app.port().into(),
            kind: Some(v1::probe::Kind::HttpPath("/healthz".into())),
        }];
    });
    // Of the mesh, and of the kubelet: these are good under Strict too.
    assert_eq!(fetch(mesh.front.outbound, get("/")).await.status, 200);
    assert_eq!(fetch(mesh.back.inbound, get("/healthz")).await.status, 200);
    let seen = || mesh.back.metrics.plaintext.all().0;
    assert!(seen().is_empty(), "{:?}", seen());
    for _ in 0..2 {
        assert_eq!(fetch(mesh.back.inbound, get("/")).await.status, 200);
    }
    let callers = seen();
    assert_eq!(callers.len(), 1, "{callers:?}");
    assert_eq!(
        (callers[0].address, callers[0].port, callers[0].connections),
        ("127.0.0.1".parse().unwrap(), app.port(), 2)
    );
    // Under Strict it is refused, and nobody more is noted.
    strict(&mesh.back, |_| {});
    assert_eq!(fetch(mesh.back.inbound, get("/")).await.reason(), "mtls-required");
    assert_eq!(seen()[0].connections, 2);
}
