//! A new process takes over from the running one under load, and nobody notices.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::apps;
use crate::clients::{Http1, Http2, fetch, get};
use crate::process::{Config, Proxy, address, ask, until};

fn file(listeners: [SocketAddr; 3], app: SocketAddr, socket: &str, workers: usize) -> String {
    let [outbound, inbound, admin] = listeners;
    format!(
        "
admin: {admin}
log: info
accessLog: false
workers: {workers}
drainTimeout: 10s
{socket}
listeners:
  outbound: [{{address: '{outbound}', service: 'shop/back:80'}}]
  inbound: [{{address: '{inbound}', application: '{app}'}}]
services:
  - {{namespace: shop, name: back, port: 80, clusters: [{{name: all, endpoints: [{{address: '{app}'}}]}}]}}
"
    )
}

/// Clients that go on until told to stop. None of them tries anything twice, but a kept-alive one opens a new connection
/// when it was told that the last response was the last.
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    clients: JoinSet<()>,
}

impl Load {
    fn on(to: &[SocketAddr]) -> Self {
        let mut load = Self { stop: Arc::default(), sent: Arc::default(), clients: JoinSet::new() };
        for at in to.iter().copied() {
            let (stop, sent) = (Arc::clone(&load.stop), Arc::clone(&load.sent));
            let going = move || {
                sent.fetch_add(1, Ordering::SeqCst);
                !stop.load(Ordering::SeqCst)
            };
            load.clients.spawn(kept_alive(at, going.clone()));
            load.clients.spawn(one_by_one(at, going.clone()));
            load.clients.spawn(now_and_then(at, going.clone()));
            load.clients.spawn(http2(at, going));
        }
        load
    }

    fn sent(&self) -> usize {
        self.sent.load(Ordering::SeqCst)
    }

    async fn end(mut self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(client) = self.clients.join_next().await {
            client.expect("a client has failed");
        }
        self.sent()
    }
}

async fn kept_alive(at: SocketAddr, going: impl Fn() -> bool) {
    let mut client = Http1::connect(at).await;
    while going() {
        let got = client.send(get("/kept")).await.expect("a request on a kept connection");
        assert_eq!(got.status, 200, "{got:?}");
        if got.headers.get("connection").is_some_and(|value| value == "close") {
            client = Http1::connect(at).await;
        }
    }
}

async fn one_by_one(at: SocketAddr, going: impl Fn() -> bool) {
    while going() {
        let got = fetch(at, get("/new")).await;
        assert_eq!(got.status, 200, "{got:?}");
    }
}

/// Mostly idle: its connection is without a request when the change comes.
async fn now_and_then(at: SocketAddr, going: impl Fn() -> bool) {
    let mut client = Http1::connect(at).await;
    while going() {
        let got = client.send(get("/idle")).await.expect("a request on an idle connection");
        assert_eq!(got.status, 200, "{got:?}");
        if got.headers.get("connection").is_some_and(|value| value == "close") {
            client = Http1::connect(at).await;
        }
        sleep(Duration::from_millis(700)).await;
    }
}

async fn http2(at: SocketAddr, going: impl Fn() -> bool) {
    let mut client = Http2::connect(at).await;
    while going() {
        // GOAWAY says that a request was not taken; a client of HTTP/2 sends it on another connection.
        match client.send(get("/h2")).await {
            Ok(got) => assert_eq!(got.status, 200, "{got:?}"),
            Err(_) => {
                client = Http2::connect(at).await;
                let got = client.send(get("/h2")).await.expect("a request on a new HTTP/2 connection");
                assert_eq!(got.status, 200, "{got:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_one_after_the_other_serve_without_a_failure() {
    let (app, _) = apps::echo().await;
    let listeners = [address(), address(), address()];
    let config = Config::new("");
    let socket = config.dir().join("weft.sock");
    let named = format!("restartSocket: {}", socket.display());
    // More workers, then fewer: every socket of the one before is served by somebody.
    config.write(&file(listeners, app, &named, 2));
    let mut current = Proxy::start(&config.path(), &[]);
    let load = Load::on(&listeners[..2]);
    for workers in [3, 1, 2] {
        let before = load.sent();
        until("some load", async || load.sent() > before + 100).await;
        config.write(&file(listeners, app, &named, workers));
        let next = Proxy::start(&config.path(), &[]);
        next.line("the listeners were taken over");
        current.line("the listeners were handed over");
        assert_eq!(current.exit(), Some(0), "{:#?}", current.lines());
        assert!(ask(listeners[2], "/ready").await.contains("\"ready\":true"));
        current = next;
    }
    let before = load.sent();
    until("some load", async || load.sent() > before + 100).await;
    assert!(load.end().await > 500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_socket_may_be_named_on_the_command_line_and_a_successor_that_fails_changes_nothing() {
    let (app, _) = apps::echo().await;
    let listeners = [address(), address(), address()];
    let config = Config::new(&file(listeners, app, "", 1));
    let socket = config.dir().join("weft.sock");
    let takeover = ["--takeover", socket.to_str().unwrap()];
    // Nobody is there yet: the first one just starts.
    let mut first = Proxy::start(&config.path(), &takeover);
    first.line("listening");
    until("its socket", async || socket.exists()).await;
    // Its listener is somebody else's, so that it ends after it was given the sockets.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let other = Config::new(&file([listeners[0], taken.local_addr().unwrap(), listeners[2]], app, "", 1));
    let mut failing = Proxy::spawn(
        std::process::Command::new(crate::process::PROGRAM).arg("--config").arg(other.path()).args(takeover),
    );
    assert_eq!(failing.exit(), Some(1));
    first.line("a hand-over has failed, serving on");
    assert_eq!(fetch(listeners[0], get("/")).await.status, 200);
    let second = Proxy::start(&config.path(), &takeover);
    second.line("the listeners were taken over");
    assert_eq!(first.exit(), Some(0));
    assert_eq!(fetch(listeners[0], get("/")).await.status, 200);
}
