//! What a file may say, and what becomes of it: listeners that come and go, names, opaque bytes, plaintext.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::net::{TcpStream, UdpSocket};

use crate::apps;
use crate::clients::{fetch, get, raw};
use crate::process::{Config, PATIENCE, Proxy, address, ask, until};

/// A listener for one service with these endpoints.
fn file(listener: SocketAddr, endpoints: &str, more: &str) -> String {
    format!(
        "
log: info
listeners:
  outbound: [{{address: '{listener}', service: 'shop/back:80'}}]
services:
  - {{namespace: shop, name: back, port: 80, clusters: [{{name: all, endpoints: [{endpoints}]}}]}}
{more}"
    )
}

fn endpoint(address: impl std::fmt::Display) -> String {
    format!("{{address: '{address}'}}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_smallest_file_serves_http_and_opaque_bytes_in_plaintext() {
    let (app, _) = apps::echo().await;
    let (listener, metrics) = (address(), address());
    let config = Config::new(&file(listener, &endpoint(app), &format!("metrics: {metrics}")));
    let proxy = Proxy::start(&config.path(), &[]);
    let got = fetch(listener, get("/a")).await;
    assert!(got.text().starts_with("GET /a\n"), "{got:?}");
    assert_eq!(fetch(metrics, get("/ready")).await.status, 200);
    // A server that speaks first, by the same listener.
    let banner = apps::tcp(|mut stream| async move {
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"220 ready\r\n").await;
    })
    .await;
    config.write(&file(listener, &endpoint(banner), &format!("metrics: {metrics}")));
    // The first is the file at the start, the second what its names have come to.
    proxy.find("the change", |line| line["message"] == "configuration applied" && line["version"] == 3);
    assert_eq!(raw(listener, b"", false).await, "220 ready\r\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_come_and_go_with_the_file() {
    let (app, _) = apps::echo().await;
    let (first, second, admin) = (address(), address(), address());
    let config = Config::new(&file(first, &endpoint(app), &format!("admin: {admin}\nworkers: 2")));
    let proxy = Proxy::start(&config.path(), &[]);
    let mut kept = crate::clients::Http1::connect(first).await;
    assert_eq!(kept.send(get("/")).await.unwrap().status, 200);
    config.write(&file(second, &endpoint(app), &format!("admin: {admin}\nworkers: 2")));
    until("the new one", async || TcpStream::connect(second).await.is_ok()).await;
    assert_eq!(fetch(second, get("/")).await.status, 200);
    until("the old one is gone", async || TcpStream::connect(first).await.is_err()).await;
    // An address that somebody else has is a reason to take nothing of the file.
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = held.local_addr().unwrap();
    config.write(&file(taken, &endpoint(app), &format!("admin: {admin}")));
    until("it is told", async || ask(admin, "/config").await.contains("cannot listen at")).await;
    assert_eq!(fetch(second, get("/")).await.status, 200);
    // What needs a restart is said.
    config.write(&file(second, &endpoint(app), &format!("admin: {admin}\nworkers: 1")));
    let said = proxy.line("these take effect with the next restart");
    assert!(said["fields"].to_string().contains("workers"), "{said}");
}

/// Answers that the name is 127.0.0.n.
async fn name_server(last: Arc<AtomicU8>) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut packet = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut packet).await {
            // RFC 1035 section 4.1: the question begins after 12 bytes and ends with type and class.
            let end = 12 + packet[12..length].iter().position(|byte| *byte == 0).unwrap() + 5;
            let is_a = packet[end - 4..end - 2] == [0, 1];
            let mut reply = packet[..2].to_vec();
            reply.extend_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
            reply.extend_from_slice(&packet[12..end]);
            if is_a {
                reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 127, 0, 0]);
                reply.push(last.load(Ordering::SeqCst));
            }
            socket.send_to(&reply, from).await.unwrap();
        }
    });
    address
}

/// Says its address, at a port that both addresses have.
fn say(at: SocketAddr, text: &'static str) {
    let listener = std::net::TcpListener::bind(at).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut stream = stream;
            let mut request = [0; 1024];
            let _ = std::io::Read::read(&mut stream, &mut request);
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
                text.len()
            );
            let _ = std::io::Write::write_all(&mut stream, answer.as_bytes());
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_may_be_a_name_which_is_followed() {
    let (listener, port) = (address(), crate::process::port());
    say(SocketAddr::from(([127, 0, 0, 2], port)), "two");
    say(SocketAddr::from(([127, 0, 0, 3], port)), "three");
    let last = Arc::new(AtomicU8::new(2));
    let dns = format!("dns: {{servers: ['{}']}}", name_server(Arc::clone(&last)).await);
    let config = Config::new(&file(listener, &endpoint(format!("back.example.:{port}")), &dns));
    let _proxy = Proxy::start(&config.path(), &[]);
    assert_eq!(fetch(listener, get("/")).await.text(), "two");
    last.store(3, Ordering::SeqCst);
    until("its new address", async || fetch(listener, get("/")).await.text() == "three").await;
}

#[test]
fn a_file_that_cannot_be_used_ends_the_start_with_64_and_names_everything() {
    let config = Config::new("worker: 2\nlisteners: {outbound: [{address: here, service: a}]}\n");
    let started = std::process::Command::new(crate::process::PROGRAM)
        .arg("--config")
        .arg(config.path())
        .output()
        .unwrap();
    assert_eq!(started.status.code(), Some(64));
    let said = String::from_utf8(started.stderr).unwrap();
    assert!(said.contains("unknown field `worker`") && said.contains("outbound[0].address"), "{said}");
    let missing = std::process::Command::new(crate::process::PROGRAM)
        .args(["check", "--config", "/nonexistent/weft.yaml"])
        .output()
        .unwrap();
    assert_eq!(missing.status.code(), Some(64));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_start_by_mistake_shares_nothing() {
    let (app, _) = apps::echo().await;
    let listener = address();
    let config = Config::new(&file(listener, &endpoint(app), ""));
    let mut first = Proxy::start(&config.path(), &[]);
    let second = std::process::Command::new(crate::process::PROGRAM)
        .arg("--config")
        .arg(config.path())
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8(second.stderr).unwrap().contains("cannot listen at"));
    // Told to stop, it is gone at once when nothing is open.
    assert!(first.is_running());
    first.signal(nix::sys::signal::Signal::SIGTERM);
    let began = std::time::Instant::now();
    assert_eq!(first.exit(), Some(0));
    assert!(began.elapsed() < PATIENCE / 3, "{:?}", began.elapsed());
}
