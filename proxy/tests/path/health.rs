//! Endpoints that are worse than their peers, or gone without a word.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::sleep;
use weft_api::v1;

use crate::apps;
use crate::clients::{Http1, get};
use crate::world::plain;

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
