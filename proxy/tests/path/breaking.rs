//! Bounds on requests under way: of a rule, and the one that finds itself.

use std::time::Duration;

use tokio::time::sleep;
use weft_api::v1;

use crate::apps;
use crate::clients::{Got, Http2, fetch, get};
use crate::world::{SERVICE, plain};

async fn slow(millis: u64) -> std::net::SocketAddr {
    let (app, _) = apps::http(move |_| async move {
        sleep(Duration::from_millis(millis)).await;
        apps::text("ok")
    })
    .await;
    app
}

fn refused<'a>(got: &'a [Got], reason: &str) -> Vec<&'a Got> {
    let refused: Vec<_> = got.iter().filter(|got| got.status == 503).collect();
    assert!(refused.iter().all(|got| got.reason() == reason), "{refused:?}");
    refused
}

#[tokio::test]
async fn a_rule_has_bounds_of_its_own_beside_those_of_the_service() {
    let node = plain(&[slow(300).await], |service| {
        service.clusters[0].breaker = Some(v1::Breaker { max_concurrent_requests: 5, ..Default::default() });
        let path = v1::r#match::Path::PathExact("/narrow".into());
        let narrow = v1::Route {
            name: "p/narrow".into(),
            matches: vec![v1::Match { path: Some(path), ..Default::default() }],
            breaker: Some(v1::Breaker { max_concurrent_requests: 2, ..Default::default() }),
            ..service.routes[0].clone()
        };
        service.routes.insert(0, narrow);
    });
    let calls = |path: &'static str, count: usize| {
        futures::future::join_all((0..count).map(move |_| fetch(node.outbound, get(path))))
    };
    let (narrow, wide) = tokio::join!(calls("/narrow", 6), async {
        sleep(Duration::from_millis(100)).await;
        calls("/wide", 6).await
    });
    assert_eq!(refused(&narrow, "breaker-open").len(), 4);
    // Five places, of which two are taken.
    assert_eq!(refused(&wide, "breaker-open").len(), 3);
    // What was refused holds no place.
    assert_eq!(refused(&calls("/narrow", 2).await, "").len(), 0);
}

/// A service of one connection that is taken, where no more than one request of `/narrow` may wait for it.
async fn taken(protocol: v1::Protocol) -> crate::world::Node {
    let (app, _) = apps::http(|request| async move {
        let held = if request.uri().path() == "/hold" { 1000 } else { 0 };
        sleep(Duration::from_millis(held)).await;
        apps::text("ok")
    })
    .await;
    plain(&[app], |service| {
        service.protocol = protocol.into();
        service.clusters[0].breaker =
            Some(v1::Breaker { max_connections: 1, max_pending_requests: 5, ..Default::default() });
        let path = v1::r#match::Path::PathExact("/narrow".into());
        let narrow = v1::Route {
            name: "p/narrow".into(),
            matches: vec![v1::Match { path: Some(path), ..Default::default() }],
            breaker: Some(v1::Breaker { max_pending_requests: 1, ..Default::default() }),
            ..service.routes[0].clone()
        };
        service.routes.insert(0, narrow);
    })
}

#[tokio::test]
async fn of_a_rule_no_more_requests_wait_for_a_connection_than_it_says() {
    let node = taken(v1::Protocol::Http1).await;
    let calls = |path: &'static str, count: usize| {
        futures::future::join_all((0..count).map(move |_| fetch(node.outbound, get(path))))
    };
    let hold = fetch(node.outbound, get("/hold"));
    let others = async {
        sleep(Duration::from_millis(300)).await;
        // Of the five places for waiting the rule gets one, and leaves the others to those who come after.
        tokio::join!(calls("/narrow", 4), async {
            sleep(Duration::from_millis(200)).await;
            calls("/wide", 6).await
        })
    };
    let (held, (narrow, wide)) = tokio::join!(hold, others);
    assert_eq!(held.status, 200);
    assert_eq!(refused(&narrow, "breaker-pending").len(), 3);
    assert_eq!(refused(&wide, "breaker-pending").len(), 2);
    // What was refused, and what has waited, holds no place.
    for _ in 0..3 {
        assert_eq!(fetch(node.outbound, get("/narrow")).await.status, 200);
    }
}

#[tokio::test]
async fn beyond_the_adaptive_limit_requests_are_refused_and_the_limit_follows_what_they_take() {
    let node = plain(&[slow(20).await], |service| {
        service.protocol = v1::Protocol::Http2.into();
        service.clusters[0].adaptive = Some(v1::Adaptive {
            min_limit: 3,
            max_limit: 20,
            tolerance_percent: 100,
            baseline_every_ms: 3_600_000,
        });
    });
    let limit = || {
        let snapshot = node.store.load();
        snapshot.adaptive_limits().map(|(cluster, limit)| (cluster.to_owned(), limit)).collect::<Vec<_>>()
    };
    assert_eq!(limit(), [(SERVICE.to_owned(), 3)]);
    let client = Http2::connect(node.outbound).await;
    let burst = |count: usize| {
        futures::future::join_all((0..count).map(|_| {
            let mut client = client.clone();
            async move { client.send(get("/")).await.unwrap() }
        }))
    };
    assert_eq!(refused(&burst(10).await, "adaptive-limit").len(), 7);
    // The service takes them all side by side, so that the limit goes up to its bound once the baseline is known.
    for _ in 0..1000 {
        burst(20).await;
        if limit()[0].1 == 20 {
            break;
        }
    }
    assert_eq!(limit()[0].1, 20);
    let counted = "weft_breaker_refusals_total{destination_service=\"back\",destination_namespace=\"shop\",reason=\"adaptive-limit\"}";
    assert!(node.metrics.encode().contains(counted), "{}", node.metrics.encode());
}
