//! Hedging: another try beside one that takes long.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};
use weft_api::v1;

use crate::apps::{self, Seen};
use crate::clients::{Http1, fetch, get, post};
use crate::world::{Node, SERVICE, plain};

const LONG: Duration = Duration::from_secs(30);

async fn slow() -> (SocketAddr, Seen, Arc<AtomicUsize>) {
    struct Ended(Arc<AtomicUsize>);
    impl Drop for Ended {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let ended = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&ended);
    let (app, seen) = apps::http(move |_| {
        let guard = Ended(Arc::clone(&counted));
        async move {
            sleep(LONG).await;
            drop(guard);
            apps::text("late")
        }
    })
    .await;
    (app, seen, ended)
}

fn with(endpoints: &[SocketAddr], change: impl FnOnce(&mut v1::Service)) -> Node {
    plain(endpoints, |service| {
        service.routes[0].hedge = Some(v1::Hedge { delay_ms: 50, max_attempts: 2 });
        service.routes[0].retry =
            Some(v1::Retry { attempts: 0, budget_min_per_second: 1000, ..Default::default() });
        change(service);
    })
}

fn value(node: &Node, series: &str) -> u32 {
    let text = node.metrics.encode();
    let line = text.lines().find(|line| line.starts_with(series));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

const SENT: &str =
    r#"weft_hedges_total{destination_service="back",destination_namespace="shop",outcome="sent"}"#;
const WON: &str = r#"weft_hedges_won_total{destination_service="back",destination_namespace="shop"}"#;

#[tokio::test]
async fn the_first_answer_wins_and_the_loser_is_cancelled() {
    let ((late, asked, ended), (fast, _)) =
        (slow().await, apps::http(|_| async { apps::text("fast") }).await);
    let node = with(&[late, fast], |_| {});
    let began = Instant::now();
    for _ in 0..10 {
        let got = timeout(LONG, fetch(node.outbound, get("/"))).await.unwrap();
        assert_eq!(got.text(), "fast");
    }
    assert!(began.elapsed() < LONG / 3, "{:?}", began.elapsed());
    let lost = asked.requests();
    assert!(lost >= 5);
    assert_eq!((value(&node, SENT), value(&node, WON)), (lost as u32, lost as u32));
    let cancelled = async {
        while ended.load(Ordering::SeqCst) < lost {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LONG / 3, cancelled).await.expect("the losers are cancelled");
    let live = &node.store.load().services[SERVICE].default_cluster.endpoints[0].live;
    assert_eq!(live.in_flight(), 0);
    // The balancer has learned that it is slow, and nobody holds it for sick.
    assert!(live.latency().is_some_and(|latency| latency >= Duration::from_millis(30)));
    assert!(live.ejected().is_none());
}

#[tokio::test]
async fn what_is_not_safe_or_has_a_body_is_sent_once() {
    let ((late, _, _), (fast, quick)) = (slow().await, apps::http(|_| async { apps::text("fast") }).await);
    let node = with(&[late, fast], |service| service.routes[0].timeout_ms = 400);
    let with_body = |method: &str| {
        let mut request = post("/", "x");
        *request.method_mut() = method.parse().unwrap();
        request
    };
    for method in ["POST", "PUT", "GET"] {
        let (one, two) =
            tokio::join!(fetch(node.outbound, with_body(method)), fetch(node.outbound, with_body(method)));
        let mut reasons = [one.reason(), two.reason()];
        reasons.sort_unstable();
        assert_eq!(reasons, ["", "request-timeout"], "{method}");
    }
    assert_eq!((quick.requests(), value(&node, SENT)), (3, 0));
}

#[tokio::test]
async fn there_is_no_second_try_without_another_endpoint_or_beyond_the_limits() {
    let (only, asked, _) = slow().await;
    let node = with(&[only], |service| service.routes[0].timeout_ms = 300);
    assert_eq!(fetch(node.outbound, get("/")).await.reason(), "request-timeout");
    assert_eq!(asked.requests(), 1);

    let ((one, first, _), (two, second, _)) = (slow().await, slow().await);
    let node = with(&[one, two], |service| {
        service.routes[0].timeout_ms = 300;
        service.routes[0].retry.as_mut().unwrap().budget_min_per_second = 0;
    });
    assert_eq!(fetch(node.outbound, get("/")).await.reason(), "request-timeout");
    assert_eq!(first.requests() + second.requests(), 1);
    assert!(node.metrics.encode().contains(r#"weft_hedges_total{destination_service="back",destination_namespace="shop",outcome="budget-spent"} 1"#));

    let node = with(&[one, two], |service| {
        service.routes[0].timeout_ms = 600;
        service.clusters[0].breaker = Some(v1::Breaker { max_retries: 1, ..Default::default() });
    });
    tokio::join!(fetch(node.outbound, get("/")), fetch(node.outbound, get("/")));
    assert_eq!(first.requests() + second.requests(), 4);
    assert_eq!(value(&node, SENT), 1);
}

#[tokio::test]
async fn a_failure_does_not_win_while_another_try_is_still_running() {
    let (steady, _) = apps::http(|_| async {
        sleep(Duration::from_millis(400)).await;
        apps::text("steady")
    })
    .await;
    let (sick, asked) = apps::http(|_| async { apps::status(503) }).await;
    let node = with(&[steady, sick], |service| {
        service.clusters[0].outlier = Some(v1::Outlier { consecutive_failures: 100, ..Default::default() });
    });
    let mut client = Http1::connect(node.outbound).await;
    let (mut steady, mut failed) = (0, 0);
    for _ in 0..6 {
        let got = client.send(get("/")).await.unwrap();
        match got.status.as_u16() {
            200 => steady += 1,
            // It was the first try, and failed before there was a second.
            503 => failed += 1,
            other => panic!("{other}"),
        }
    }
    assert!(steady >= 3 && value(&node, SENT) == steady, "{steady} {failed}");
    assert_eq!((asked.requests() as u32, value(&node, WON)), (steady + failed, 0));
}

#[tokio::test]
async fn more_than_two_may_run() {
    let ((one, _, _), (two, _, _)) = (slow().await, slow().await);
    let (fast, _) = apps::http(|_| async { apps::text("fast") }).await;
    let node = with(&[one, two, fast], |service| {
        service.routes[0].hedge = Some(v1::Hedge { delay_ms: 30, max_attempts: 3 });
    });
    for _ in 0..6 {
        assert_eq!(timeout(LONG / 2, fetch(node.outbound, get("/"))).await.unwrap().text(), "fast");
    }
}
