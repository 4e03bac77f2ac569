//! Destinations outside of the cluster: what the outbound policy refuses, and what is registered.

use std::net::SocketAddr;

use weft_api::v1;
use weft_proxy::record::Direction;

use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use v1::OutboundPolicy::{AllowAny, RegisteredOnly};

use crate::apps;
use crate::clients::{Got, Http1, Http2, fetch, get, raw};
use crate::world::{Ca, Node};

/// A proxy under a policy, whose application calls an address that the operator knows nothing of.
fn outside(to: SocketAddr, policy: v1::OutboundPolicy) -> Node {
    let node = Node::start(&Ca::new(), "front");
    node.redirect(Direction::Outbound, to);
    node.workload("front", |own| own.outbound_policy = policy.into());
    let external = Some(v1::address::Target::External(v1::External {}));
    node.configure(v1::ToProxy {
        addresses: vec![v1::Address { address: to.to_string(), target: external }],
        ..Default::default()
    });
    node
}

#[tokio::test]
async fn http_to_what_is_not_registered_is_told_so() {
    let (app, seen) = apps::echo().await;
    let node = outside(app, RegisteredOnly);
    let got = fetch(node.outbound, get("/")).await;
    assert_eq!((got.status.as_u16(), got.reason()), (502, "not-registered"));
    let got = Http2::connect(node.outbound).await.send(get("/two")).await.unwrap();
    assert_eq!((got.status.as_u16(), got.reason()), (502, "not-registered"));
    assert_eq!(seen.connections(), 0);
}

#[tokio::test]
async fn other_bytes_to_what_is_not_registered_are_closed_logged_and_counted() {
    let (app, seen) = apps::echo().await;
    let node = outside(app, RegisteredOnly);
    assert_eq!(raw(node.outbound, b"\0\0opaque", false).await, "");
    assert_eq!(raw(node.outbound, b"", false).await, "", "nor does a silent client wait for ever");
    let line = node.log.find(|line| line["reason"] == "not-registered").await;
    assert_eq!((&line["log"], &line["original"]), (&"connection".into(), &app.to_string().into()));
    assert!(node.metrics.encode().contains("reason=\"not-registered\""));
    assert_eq!(seen.connections(), 0);
}

#[tokio::test]
async fn the_policy_holds_as_soon_as_it_is_told_also_on_kept_connections() {
    let (app, _) = apps::echo().await;
    let node = outside(app, AllowAny);
    assert_eq!(fetch(node.outbound, get("/")).await.status, 200);
    node.workload("front", |own| own.outbound_policy = RegisteredOnly.into());
    let mut client = Http1::connect(node.outbound).await;
    assert_eq!(client.send(get("/")).await.unwrap().reason(), "not-registered");
    assert_eq!(client.send(get("/")).await.unwrap().reason(), "not-registered");
}

const KEY: &str = "shop/api.external:1";

/// An external service of these hosts at the port of `called`, with these endpoints.
fn external(
    called: SocketAddr,
    protocol: v1::Protocol,
    hosts: &[&str],
    endpoints: &[SocketAddr],
) -> v1::Service {
    let mut service = crate::world::service(endpoints, None);
    service.key = KEY.into();
    service.name = "api.external".into();
    service.port = called.port().into();
    service.protocol = protocol.into();
    service.egress = Some(v1::Egress { hosts: hosts.iter().map(|host| (*host).into()).collect() });
    service
}

fn register(node: &Node, service: v1::Service) {
    node.configure(v1::ToProxy { services: vec![service], ..Default::default() });
}

fn for_host(host: &str) -> Request<http_body_util::Full<bytes::Bytes>> {
    Request::get("/").header("host", host).body(Default::default()).unwrap()
}

fn hello(name: &str) -> Vec<u8> {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = name.to_owned().try_into().unwrap();
    let mut hello = Vec::new();
    rustls::ClientConnection::new(config.into(), name).unwrap().write_tls(&mut hello).unwrap();
    hello
}

/// Answers with a word as soon as anything comes.
async fn word(word: &'static [u8]) -> (SocketAddr, apps::Seen) {
    let seen = apps::Seen::default();
    let counted = seen.clone();
    let addr = apps::tcp(move |mut stream| {
        counted.connections.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        async move {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(word).await;
        }
    })
    .await;
    (addr, seen)
}

async fn say(to: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = tokio::net::TcpStream::connect(to).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut got = String::new();
    let _ = stream.read_to_string(&mut got).await;
    got
}

#[tokio::test]
async fn a_server_name_chooses_a_service_never_an_address() {
    for policy in [AllowAny, RegisteredOnly] {
        let ((registered, _), (elsewhere, seen)) = (word(b"registered").await, word(b"elsewhere").await);
        let node = outside(elsewhere, policy);
        register(&node, external(elsewhere, v1::Protocol::Tls, &["api.example.com"], &[registered]));
        // The application connects to an address of its own choice, and says a name that is registered.
        assert_eq!(say(node.outbound, &hello("api.example.com")).await, "registered");
        assert_eq!(seen.connections(), 0, "{policy:?}");
        let line = node.log.find(|line| line["sni"] == "api.example.com").await;
        assert_eq!((&line["service"], &line["reason"]), (&KEY.into(), &serde_json::Value::Null));

        let other = say(node.outbound, &hello("other.example.com")).await;
        let line = node.log.find(|line| line["sni"] == "other.example.com").await;
        match policy {
            AllowAny => assert_eq!(other, "elsewhere"),
            RegisteredOnly => assert_eq!((&*other, &line["reason"]), ("", &"not-registered".into())),
        }
        assert_eq!(seen.connections(), usize::from(policy == AllowAny));
    }
}

#[tokio::test]
async fn each_request_says_for_itself_which_service_it_means() {
    for policy in [AllowAny, RegisteredOnly] {
        let ((registered, good), (elsewhere, other)) = (apps::echo().await, apps::echo().await);
        let node = outside(elsewhere, policy);
        register(&node, external(elsewhere, v1::Protocol::Http1, &["*.example.com", "back"], &[registered]));
        let mut client = Http1::connect(node.outbound).await;
        assert_eq!(client.send(for_host("api.example.com:80")).await.unwrap().status, 200);
        assert_eq!((good.requests(), other.requests()), (1, 0));
        let got = client.send(for_host("example.org")).await.unwrap();
        match policy {
            AllowAny => assert_eq!((got.status.as_u16(), other.requests()), (200, 1)),
            RegisteredOnly => assert_eq!((got.reason(), other.connections()), ("not-registered", 0)),
        }
        assert_eq!(client.send(for_host("API.example.com")).await.unwrap().status, 200);
        // HTTP/2 by prior knowledge, for `back`.
        assert_eq!(Http2::connect(node.outbound).await.send(get("/")).await.unwrap().status, 200);
        assert_eq!(good.requests(), 3);
        let line = node.log.find(|line| line["host"] == "API.example.com").await;
        assert_eq!(line["service"], KEY);
    }
}

#[tokio::test]
async fn opaque_bytes_mean_the_service_that_has_the_address() {
    let (app, _) = word(b"rows").await;
    let (unregistered, seen) = word(b"other").await;
    let node = outside(app, RegisteredOnly);
    register(&node, external(app, v1::Protocol::Tcp, &["db.example.com"], &[app]));
    assert_eq!(say(node.outbound, b"select").await, "rows");
    node.redirect(Direction::Outbound, unregistered);
    let target = Some(v1::address::Target::External(v1::External {}));
    node.configure(v1::ToProxy {
        addresses: vec![v1::Address { address: unregistered.to_string(), target }],
        ..Default::default()
    });
    assert_eq!(say(node.outbound, b"select").await, "");
    assert_eq!(seen.connections(), 0);
}

#[tokio::test]
async fn a_server_that_speaks_first_beside_registered_ones_is_passed_on() {
    let mail = apps::tcp(|mut stream| async move {
        let _ = stream.write_all(b"220 ready\r\n").await;
    })
    .await;
    let node = outside(mail, AllowAny);
    register(&node, external(mail, v1::Protocol::Tls, &["mail.example.com"], &[apps::nobody().await]));
    assert_eq!(raw(node.outbound, b"", false).await, "220 ready\r\n");
}

#[tokio::test]
async fn an_external_service_has_retries_ejection_and_a_breaker() {
    let (up, seen) = apps::echo().await;
    let (called, down) = (apps::nobody().await, apps::nobody().await);
    let node = outside(called, RegisteredOnly);
    let mut service = external(called, v1::Protocol::Http1, &["back"], &[down, up]);
    service.clusters[0].outlier = Some(v1::Outlier {
        consecutive_failures: 1,
        base_ejection_ms: 60_000,
        max_ejection_ms: 60_000,
        max_ejected_percent: 50,
        ..Default::default()
    });
    service.clusters[0].breaker = Some(v1::Breaker { max_concurrent_requests: 1, ..Default::default() });
    register(&node, service);
    for _ in 0..4 {
        assert_eq!(fetch(node.outbound, get("/")).await.status, 200);
    }
    assert_eq!(seen.requests(), 4);
    let ejected = node.store.load().ejections();
    assert_eq!((ejected.len(), &*ejected[0].endpoint), (1, &*down.to_string()));
}

#[tokio::test]
async fn a_service_whose_name_has_no_address_yet_says_so() {
    let called = apps::nobody().await;
    let node = outside(called, AllowAny);
    register(&node, external(called, v1::Protocol::Http1, &["back"], &[]));
    assert_eq!(fetch(node.outbound, get("/")).await.reason(), "no-healthy-endpoint");
}

/// A proxy that speaks TLS for its application to a server of `name`, trusting `ca`.
async fn originating(server: SocketAddr, sni: &str, ca: &Ca) -> Node {
    let called = apps::nobody().await;
    let node = outside(called, RegisteredOnly);
    let mut service = external(called, v1::Protocol::Http1, &["back"], &[server]);
    let roots_der = vec![bytes::Bytes::copy_from_slice(&ca.root())];
    service.clusters[0].tls = Some(v1::OriginateTls { sni: sni.into(), roots_der });
    register(&node, service);
    node
}

async fn both(node: &Node) -> (Got, Got) {
    let one = fetch(node.outbound, get("/x")).await;
    (one, Http2::connect(node.outbound).await.send(get("/x")).await.unwrap())
}

#[tokio::test]
async fn the_proxy_speaks_tls_in_the_applications_protocol() {
    let ca = Ca::new();
    let (server, seen) = apps::tls_echo(ca.server("api.example.com"), &["h2", "http/1.1"]).await;
    let (one, two) = both(&originating(server, "api.example.com", &ca).await).await;
    assert_eq!(one.text(), "http/1.1 api.example.com /x");
    assert_eq!(two.text(), "h2 api.example.com https://back/x");
    assert_eq!(seen.connections(), 2);
}

#[tokio::test]
async fn a_server_without_alpn_is_one_of_http1_and_none_of_http2() {
    let ca = Ca::new();
    let (server, _) = apps::tls_echo(ca.server("api.example.com"), &[]).await;
    let (one, two) = both(&originating(server, "api.example.com", &ca).await).await;
    assert_eq!(one.text(), "- api.example.com /x");
    assert_eq!((two.status.as_u16(), two.reason()), (503, "tls-handshake"));
}

#[tokio::test]
async fn a_server_of_another_authority_or_name_gets_no_request() {
    let ca = Ca::new();
    let (server, seen) = apps::tls_echo(ca.server("api.example.com"), &["http/1.1"]).await;
    let other_authority = originating(server, "api.example.com", &Ca::new()).await;
    assert_eq!(fetch(other_authority.outbound, get("/")).await.reason(), "tls-handshake");
    let line = other_authority.log.find(|line| line["reason"] == "tls-handshake").await;
    assert!(line["detail"].to_string().contains("invalid peer certificate"), "{line}");
    let other_name = originating(server, "www.example.com", &ca).await;
    assert_eq!(fetch(other_name.outbound, get("/")).await.reason(), "tls-handshake");
    assert_eq!(seen.requests(), 0);
}

#[tokio::test]
async fn opaque_bytes_go_out_over_tls_too() {
    let ca = Ca::new();
    let (server, _) = apps::tls_echo(ca.server("db.example.com"), &[]).await;
    let node = outside(server, RegisteredOnly);
    let mut service = external(server, v1::Protocol::Tcp, &["db.example.com"], &[server]);
    let roots_der = vec![bytes::Bytes::copy_from_slice(&ca.root())];
    service.clusters[0].tls = Some(v1::OriginateTls { sni: "db.example.com".into(), roots_der });
    register(&node, service);
    let answer = raw(node.outbound, b"GET /y HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", false).await;
    assert!(answer.ends_with("- db.example.com /y"), "{answer}");
}
