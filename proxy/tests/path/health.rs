//! Endpoints that are worse than their peers, or gone without a word.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::time::sleep;
use weft_api::v1;

use crate::apps;
use crate::clients::{Http1, Http2, fetch, get, post};
use crate::netns::{ip, pod_and_peer};
use crate::world::{Node, plain};

#[tokio::test]
async fn gateway_errors_eject_and_other_failures_do_not() {
    let (sick, seen) = apps::http(|request| {
        let code = if request.uri().path() == "/gateway" { 503 } else { 500 };
        async move { apps::status(code) }
    })
    .await;
    let (well, _) = apps::echo().await;
    let node = plain(&[sick, well], |service| {
        service.routes[0].retry = Some(v1::Retry::default());
        service.clusters[0].outlier = Some(v1::Outlier {
            consecutive_gateway_errors: 3,
            base_ejection_ms: 60_000,
            max_ejected_percent: 50,
            ..Default::default()
        });
    });
    let mut client = Http1::connect(node.outbound).await;
    for path in ["/gateway", "/gateway", "/gateway", "/gateway", "/", "/"] {
        let _ = client.send(get(path)).await.unwrap();
    }
    // Two gateway errors, then a 500, which ends their row.
    assert_eq!(seen.requests(), 3);
    assert!(node.store.load().ejections().is_empty());
    for _ in 0..20 {
        let _ = client.send(get("/gateway")).await.unwrap();
    }
    assert_eq!(seen.requests(), 6);
    let ejected = node.store.load().ejections();
    assert_eq!(ejected[0].cause, "3 consecutive gateway errors");
    let metrics = node.metrics.encode();
    assert!(metrics.contains(r#"cause="gateway-errors"} 1"#), "{metrics}");
}

#[tokio::test]
async fn a_slow_endpoint_is_ejected_beside_its_peers() {
    let delay = Arc::new(AtomicU64::new(200));
    let slow = Arc::clone(&delay);
    let (slow, seen) = apps::http(move |_| {
        let delay = slow.load(Ordering::SeqCst);
        async move {
            sleep(Duration::from_millis(delay)).await;
            apps::text("slow")
        }
    })
    .await;
    let ((one, _), (two, _)) = (apps::echo().await, apps::echo().await);
    let node = plain(&[slow, one, two], |service| {
        service.clusters[0].outlier = Some(v1::Outlier {
            base_ejection_ms: 60_000,
            max_ejected_percent: 50,
            interval_ms: 1000,
            latency: Some(v1::LatencyRule { min_requests: 3, factor_thousandths: 3000 }),
            ..Default::default()
        });
    });
    let mut client = Http1::connect(node.outbound).await;
    for _ in 0..150 {
        assert_eq!(client.send(get("/")).await.unwrap().status, 200);
        if !node.store.load().ejections().is_empty() {
            break;
        }
    }
    let ejected = node.store.load().ejections();
    assert_eq!(ejected.len(), 1, "{} requests went to the slow one", seen.requests());
    assert!(
        ejected[0].endpoint == slow.to_string() && ejected[0].cause.contains("mean latency"),
        "{ejected:?}"
    );
    let before = seen.requests();
    for _ in 0..30 {
        client.send(get("/")).await.unwrap();
    }
    assert_eq!(seen.requests(), before);
    assert!(node.metrics.encode().contains(r#"cause="latency"} 1"#));
}

/// Where connections are neither accepted nor refused: the queue of a listener that accepts nobody is full.
struct BlackHole {
    addr: SocketAddr,
    listener: socket2::Socket,
    _queued: Vec<TcpStream>,
}

impl BlackHole {
    fn new() -> Self {
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(1).unwrap();
        let addr = listener.local_addr().unwrap().as_socket().unwrap();
        let connect = |_| TcpStream::connect_timeout(&addr, Duration::from_millis(150)).ok();
        let queued: Vec<_> = (0..10).map_while(connect).collect();
        assert!(queued.len() < 10, "the queue takes everybody");
        Self { addr, listener, _queued: queued }
    }

    /// Accepts after all, and answers everybody.
    fn open(self) -> Arc<AtomicU64> {
        let served = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&served);
        let listener: TcpListener = self.listener.into();
        std::thread::spawn(move || serve(&listener, &count));
        served
    }
}

/// A server of HTTP/1 that keeps its connections.
fn serve(listener: &TcpListener, served: &Arc<AtomicU64>) {
    for stream in listener.incoming().flatten() {
        let served = Arc::clone(served);
        std::thread::spawn(move || {
            let mut head = Vec::new();
            let mut byte = [0];
            while (&stream).read(&mut byte).is_ok_and(|n| n == 1) {
                head.push(byte[0]);
                if head.ends_with(b"\r\n\r\n") {
                    head.clear();
                    served.fetch_add(1, Ordering::SeqCst);
                    let _ = (&stream).write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
                }
            }
        });
    }
}

fn ejecting(service: &mut v1::Service) {
    service.clusters[0].connect_timeout_ms = 10_000;
    service.clusters[0].outlier =
        Some(v1::Outlier { consecutive_failures: 5, max_ejected_percent: 50, ..Default::default() });
}

#[tokio::test]
async fn an_endpoint_that_neither_accepts_nor_refuses_costs_a_moment_once() {
    let (well, _) = apps::echo().await;
    for http2 in [false, true] {
        let hole = BlackHole::new();
        let node = plain(&[hole.addr, well], ejecting);
        let began = Instant::now();
        // What is not idempotent too: nothing was sent.
        for _ in 0..6 {
            let status = match http2 {
                false => fetch(node.outbound, post("/", "x")).await.status,
                true => Http2::connect(node.outbound).await.send(post("/", "x")).await.unwrap().status,
            };
            assert_eq!(status, 200);
        }
        // Its connect timeout is ten seconds.
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        let metrics = node.metrics.encode();
        assert!(metrics.contains(r#"cause="connect"} 1"#), "{metrics}");
    }
}

#[tokio::test]
async fn who_could_be_connected_after_all_is_back_at_once() {
    let (well, _) = apps::echo().await;
    let hole = BlackHole::new();
    let node = plain(&[hole.addr, well], ejecting);
    for _ in 0..4 {
        assert_eq!(fetch(node.outbound, get("/")).await.status, 200);
    }
    assert_eq!(node.store.load().ejections().len(), 1);
    let served = hole.open();
    // The attempt that was given up comes about with its next SYN, before any request tries the endpoint again.
    for _ in 0..100 {
        if node.store.load().ejections().is_empty() {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!((node.store.load().ejections(), served.load(Ordering::SeqCst)), (vec![], 0));
    for _ in 0..4 {
        assert_eq!(fetch(node.outbound, get("/")).await.status, 200);
    }
    assert!(served.load(Ordering::SeqCst) >= 1);
}

#[tokio::test]
async fn the_only_endpoint_is_waited_for() {
    let hole = BlackHole::new();
    let addr = hole.addr;
    let node = plain(&[addr], ejecting);
    let request = tokio::spawn(async move { fetch(node.outbound, get("/")).await.status });
    sleep(Duration::from_millis(600)).await;
    assert!(!request.is_finished());
    hole.open();
    assert_eq!(request.await.unwrap(), 200);
}

#[tokio::test]
async fn opaque_connections_go_elsewhere_too() {
    let well = apps::tcp(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let hole = BlackHole::new();
    let node = plain(&[hole.addr, well], |service| {
        service.protocol = v1::Protocol::Tcp.into();
        ejecting(service);
    });
    let began = Instant::now();
    for _ in 0..4 {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(node.outbound).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// One request: since the beginning, how long it took, and whether it was served.
type Sample = (Duration, Duration, bool);

/// Safe requests over some connections for a while.
fn load(node: &Node, clients: usize, began: Instant, length: Duration) -> Vec<Sample> {
    let outbound = node.outbound;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let clients = (0..clients).map(|_| async move {
        let mut client = Http1::connect(outbound).await;
        let mut samples = Vec::new();
        while began.elapsed() < length {
            let at = began.elapsed();
            let served = client.send(get("/")).await.is_ok_and(|got| got.status == 200);
            samples.push((at, began.elapsed() - at, served));
            sleep(Duration::from_millis(3)).await;
        }
        samples
    });
    runtime.block_on(futures::future::join_all(clients)).concat()
}

/// Two endpoints, one of which vanishes under load: when it did, the requests, and the proxy's metrics at the end.
fn vanish(clients: usize) -> Option<(Duration, Vec<Sample>, String)> {
    let (pod, peer) = pod_and_peer()?;
    peer.run(|| {
        ip("addr add 10.77.0.3/24 dev eth0");
        let listener = TcpListener::bind("0.0.0.0:8080").unwrap();
        std::thread::spawn(move || serve(&listener, &Arc::default()));
    });
    let (report, samples) = std::sync::mpsc::channel();
    let (begin, begun) = std::sync::mpsc::channel();
    let watched = std::thread::spawn(move || {
        pod.run(move || {
            let endpoints = ["10.77.0.2:8080".parse().unwrap(), "10.77.0.3:8080".parse().unwrap()];
            let node = plain(&endpoints, ejecting);
            let began = Instant::now();
            begin.send(began).unwrap();
            let samples = load(&node, clients, began, Duration::from_secs(3));
            report.send((samples, node.metrics.encode())).unwrap();
        });
    });
    let began: Instant = begun.recv().unwrap();
    std::thread::sleep(Duration::from_millis(500).saturating_sub(began.elapsed()));
    // What is under way to it, and what comes after, is dropped without a word.
    peer.run(|| {
        ip("addr del 10.77.0.3/24 dev eth0");
        ip("route add blackhole 10.77.0.3/32");
    });
    let vanished = began.elapsed();
    watched.join().unwrap();
    let (samples, metrics) = samples.recv().unwrap();
    Some((vanished, samples, metrics))
}

/// After how long no request but probes went there; with nothing but that being allowed to go wrong.
fn moved_after(vanished: Duration, samples: &[Sample]) -> Duration {
    let slow: Vec<_> = samples.iter().filter(|(_, took, _)| *took > Duration::from_millis(150)).collect();
    assert!(samples.iter().all(|(.., served)| *served), "failed: {slow:?}");
    assert!(!slow.is_empty(), "nobody noticed");
    let soon = |at: Duration| at < vanished + Duration::from_millis(900);
    let moved = slow.iter().filter(|(at, ..)| soon(*at)).map(|(at, took, _)| *at + *took).max();
    let probes = slow.iter().filter(|(at, ..)| !soon(*at)).count();
    assert!(probes <= 4, "{slow:?}");
    let moved = moved.unwrap_or_default().saturating_sub(vanished);
    println!("{} requests, {} slow ones; all elsewhere after {moved:?}", samples.len(), slow.len());
    moved
}

#[test]
fn a_node_that_vanishes_costs_no_safe_request_and_traffic_is_elsewhere_within_a_second() {
    // One request at a time is on a connection that was open before: nothing is acknowledged. Of several at a time some need
    // new connections: nobody accepts. A busy machine may be late once.
    for (clients, causes) in [(1, &["gone"][..]), (4, &["gone", "connect"])] {
        let mut late = Vec::new();
        for _ in 0..3 {
            let Some((vanished, samples, metrics)) = vanish(clients) else { return };
            let noticed = |cause: &&str| metrics.contains(&format!("cause=\"{cause}\"}} 1"));
            assert!(causes.iter().any(noticed), "nobody noticed: {metrics}");
            late.push(moved_after(vanished, &samples));
            if late.last().is_some_and(|moved| *moved < Duration::from_secs(1)) {
                break;
            }
        }
        assert!(
            late.last().is_some_and(|moved| *moved < Duration::from_secs(1)),
            "{clients} clients: {late:?}"
        );
    }
}
