//! Mirroring: copies of requests that nobody waits for.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::{HeaderMap, Method};
use http_body_util::BodyExt;
use tokio::time::{sleep, timeout};
use weft_api::v1;

use crate::apps;
use crate::clients::{Http1, Http2, fetch, get, post};
use crate::world::{Node, SERVICE, plain};

const SHADOW: &str = "shop/shadow:80";

/// What a copy was like.
#[derive(Clone, Debug)]
struct Copy {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: usize,
}

type Copies = Arc<Mutex<Vec<Copy>>>;

/// Notes what comes, and answers with this status after this time.
async fn shadow(status: u16, after: Duration) -> (SocketAddr, Copies) {
    let copies = Copies::default();
    let seen = Arc::clone(&copies);
    let (app, _) = apps::http(move |request| {
        let seen = Arc::clone(&seen);
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map_or(0, |body| body.to_bytes().len());
            let path = head.uri.path().to_owned();
            seen.lock().unwrap().push(Copy { method: head.method, path, headers: head.headers, body });
            sleep(after).await;
            apps::status(status)
        }
    })
    .await;
    (app, copies)
}

fn with(app: SocketAddr, shadow: SocketAddr, percent: u32, change: impl FnOnce(&mut v1::Service)) -> Node {
    plain(&[app], |service| {
        let mut cluster = service.clusters[0].clone();
        cluster.name = SHADOW.into();
        cluster.endpoints[0].address = shadow.to_string();
        service.clusters.push(cluster);
        service.routes[0].mirror = Some(v1::Mirror { cluster: SHADOW.into(), percent });
        change(service);
    })
}

async fn counted(node: &Node, outcome: &str, count: usize) {
    let line = format!(
        "weft_mirrored_total{{destination_service=\"shadow\",destination_namespace=\"shop\",outcome=\"{outcome}\"}} {count}\n"
    );
    let reached = async {
        while !node.metrics.encode().contains(&line) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    if timeout(Duration::from_secs(20), reached).await.is_err() {
        panic!("no {line} in {}", node.metrics.encode());
    }
}

#[tokio::test]
async fn a_copy_is_the_same_request_with_a_mark_and_its_answer_is_thrown_away() {
    let (app, seen) = apps::echo().await;
    let (shadow, copies) = shadow(500, Duration::ZERO).await;
    let node = with(app, shadow, 100, |service| {
        service.clusters[1].outlier = Some(v1::Outlier { consecutive_failures: 1, ..Default::default() });
        // Whatever the rule would try again, a copy is sent once.
        service.routes[0].retry = Some(v1::Retry {
            attempts: 3,
            on: vec![v1::RetryOn::RetryOn5xx.into()],
            non_idempotent: true,
            budget_min_per_second: 100,
            ..Default::default()
        });
    });
    let mut client = Http1::connect(node.outbound).await;
    for n in 0..5 {
        let mut request = post(&format!("/{n}"), vec![b'x'; 1000]);
        request.headers_mut().insert("x-mine", "1".parse().unwrap());
        let got = client.send(request).await.unwrap();
        assert!(got.status == 200 && !got.text().contains("weft-mirror"), "{got:?}");
    }
    assert_eq!(client.send(get("/5")).await.unwrap().status, 200);
    counted(&node, "answered", 6).await;
    let copies = copies.lock().unwrap().clone();
    assert_eq!((copies.len(), seen.requests()), (6, 6));
    for copy in &copies {
        let posted = copy.path != "/5";
        assert_eq!((copy.method == Method::POST, copy.body), (posted, if posted { 1000 } else { 0 }));
        assert_eq!(
            (&copy.headers["host"], &copy.headers["weft-mirror"]),
            (&"back".parse().unwrap(), &"true".parse().unwrap())
        );
        assert_eq!(copy.headers.contains_key("x-mine"), posted);
    }
    // Neither its endpoint nor the requests' own counts suffer from what became of copies.
    assert!(node.store.load().ejections().is_empty());
    assert!(!node.metrics.encode().contains("weft_retries_total{"));
}

#[tokio::test]
async fn a_copy_delays_nothing_and_holds_nothing() {
    let (app, _) = apps::echo().await;
    let (slow, copies) = shadow(200, Duration::from_secs(60)).await;
    let node = with(app, slow, 100, |service| {
        service.routes[0].timeout_ms = 2_000;
        let breaker = v1::Breaker { max_concurrent_requests: 3, ..Default::default() };
        service.clusters[1].breaker = Some(breaker);
    });
    let began = Instant::now();
    let mut client = Http1::connect(node.outbound).await;
    for _ in 0..10 {
        assert_eq!(client.send(post("/", "x")).await.unwrap().status, 200);
    }
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
    // Its own cluster's breaker is full, and nothing else.
    counted(&node, "dropped", 7).await;
    // They end with the time of the request that they are of.
    counted(&node, "failed", 3).await;
    assert_eq!(copies.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn what_is_too_long_or_breaks_off_is_not_copied_and_passes_whole() {
    let (app, _) = apps::http(|request| async move {
        apps::text(request.into_body().collect().await.map_or(0, |body| body.to_bytes().len()).to_string())
    })
    .await;
    let (shadow, copies) = shadow(200, Duration::ZERO).await;
    let node = with(app, shadow, 100, |_| {});
    assert_eq!(fetch(node.outbound, post("/", vec![b'x'; 65_537])).await.text(), "65537");
    counted(&node, "dropped", 1).await;
    assert_eq!(fetch(node.outbound, post("/", vec![b'x'; 65_536])).await.text(), "65536");
    counted(&node, "answered", 1).await;
    // Without a length in advance.
    let mut body =
        b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..70 {
        body.extend_from_slice(b"400\r\n");
        body.extend_from_slice(&[b'x'; 1024]);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"0\r\n\r\n");
    let got = crate::clients::raw(node.outbound, &body, false).await;
    assert!(got.ends_with("71680"), "{got}");
    counted(&node, "dropped", 2).await;
    // The client leaves in the middle.
    let half = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf";
    crate::clients::raw(node.outbound, half, true).await;
    counted(&node, "dropped", 3).await;
    assert_eq!(copies.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn copies_are_a_share_of_http2_requests_too() {
    let (app, seen) = apps::echo().await;
    let (shadow, copies) = shadow(200, Duration::ZERO).await;
    let node = with(app, shadow, 30, |_| {});
    let mut client = Http2::connect(node.outbound).await;
    for _ in 0..400 {
        assert_eq!(client.send(post("/", "hello")).await.unwrap().status, 200);
    }
    assert_eq!(seen.requests(), 400);
    // Six standard deviations around 120.
    let share = || copies.lock().unwrap().len();
    let enough = async {
        while share() < 65 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(timeout(Duration::from_secs(20), enough).await.is_ok(), "{}", share());
    assert!(share() <= 175, "{}", share());
    assert!(copies.lock().unwrap().iter().all(|copy| copy.body == 5));
}

#[tokio::test]
async fn a_mirror_where_nobody_listens_is_nobodys_trouble() {
    let (app, _) = apps::echo().await;
    let node = with(app, apps::nobody().await, 100, |_| {});
    let mut client = Http1::connect(node.outbound).await;
    for _ in 0..10 {
        assert_eq!(client.send(get("/")).await.unwrap().status, 200);
    }
    counted(&node, "failed", 10).await;
    assert_eq!(node.store.load().services[SERVICE].clusters[1].endpoints[0].live.in_flight(), 0);
}
