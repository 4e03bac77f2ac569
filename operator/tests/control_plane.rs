//! The operator as it is shipped, between an API server and fifty proxies: whoever a change concerns acknowledges it, nobody
//! else is sent anything, and no more bytes than there is to tell. Counts only; `make bench-control` measures.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the report")]

use std::path::Path;
use std::time::Duration;

use weft_bench::control::cluster::Sizes;
use weft_bench::control::measure::{Kind, World};

/// Of a compiled service: its routes, hosts and cluster, without endpoints.
const SERVICE: f64 = 800.0;
/// Of an endpoint with its identity, pod, workload and place.
const ENDPOINT: f64 = 180.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_acknowledged_by_those_whom_it_concerns_and_sent_to_nobody_else() {
    let sizes = Sizes { services: 50, pods: 500, proxies: 50, calls: 6 };
    let mut world =
        World::start(Path::new(env!("CARGO_BIN_EXE_weft-operator")), sizes).await.expect("all connect");
    let proxies = world.cluster.proxies.len();
    assert_eq!(proxies, 50);
    for kind in Kind::ALL {
        let changes = world.change(kind, 6, Duration::ZERO).await.unwrap();
        assert_eq!(changes.astray, 0, "{kind:?}");
        assert!(changes.callers >= 1.0, "{kind:?} concerned nobody");
        // A pod and its slice come by two watches: their callers may be told in two steps.
        let most = if kind == Kind::Pod { 2.0 } else { 1.0 };
        assert!((1.0..=most).contains(&(changes.messages / changes.callers)), "{changes:?}");
        let endpoints = if kind == Kind::Shared { 100.0 } else { 40.0 };
        assert!(changes.bytes / changes.messages < SERVICE + endpoints * ENDPOINT, "{changes:?}");
        if kind == Kind::Shared {
            assert!((changes.callers - proxies as f64).abs() < f64::EPSILON);
        }
    }
    assert_eq!(world.grow(100).await.unwrap(), 0, "a service that nobody calls is nobody's business");
    let acks = world.operator.metric("weft_operator_acks_total").await;
    assert!(acks.is_some_and(|acks| acks > 50.0), "{acks:?}");
    // Everybody comes back to another operator of the same root, and has everything again.
    world.restart().await.expect("all come back");
    assert_eq!(world.change(Kind::Endpoint, 4, Duration::ZERO).await.unwrap().astray, 0);
}
