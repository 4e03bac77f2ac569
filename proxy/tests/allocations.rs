//! The decisions on the way of a request, and counting it, take nothing from the heap once its like was seen.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Uri};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use tokio::time::Instant;
use weft_api::v1;
use weft_proxy::balance::{self, Outcome};
use weft_proxy::metrics::Metrics;
use weft_proxy::record::{Direction, HttpKind, Party, RequestRecord};
use weft_proxy::route;
use weft_proxy::snapshot::Snapshot;

/// Counts what this thread takes.
struct Counting;

thread_local! {
    static TAKEN: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: hands everything on to the system's allocator; the counter is a constant-initialised cell and takes nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = TAKEN.try_with(|taken| taken.set(taken.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn snapshot(balancer: v1::Balancer) -> Snapshot {
    let endpoint = |i: u32| v1::Endpoint {
        address: format!("10.0.0.{i}:8080"),
        weight: 100 * i,
        identity: "spiffe://cluster.local/ns/shop/sa/back".into(),
        pod: format!("back-{i}"),
        workload: "back".into(),
        ..Default::default()
    };
    let key = "shop/back:80".to_owned();
    let to_all = v1::Route {
        name: "all".into(),
        backends: vec![v1::Backend { cluster: key.clone(), weight: 1 }],
        ..Default::default()
    };
    let path = v1::r#match::Path::PathRegex("/item/[0-9]+".into());
    let items = v1::Route {
        // Everything that a match can look at.
        matches: vec![v1::Match {
            path: Some(path),
            method: "GET".into(),
            query: vec![v1::QueryMatch {
                name: "q".into(),
                value: Some(v1::query_match::Value::Exact("1".into())),
            }],
            hosts: vec!["*.example".into()],
            ..Default::default()
        }],
        ..to_all.clone()
    };
    let cluster = v1::Cluster {
        name: key.clone(),
        balancer: balancer.into(),
        hash: Some(v1::Hash { key: Some(v1::hash::Key::SourceIp(true)), ring_points: 0 }),
        // What there is to decide with tiers, too.
        panic_threshold_percent: 50,
        slow_start: Some(v1::SlowStart { window_ms: 1000, aggression: 1 }),
        endpoints: (1..=5).map(endpoint).collect(),
        outlier: Some(v1::Outlier { consecutive_failures: 5, ..Default::default() }),
        breaker: Some(v1::Breaker { max_concurrent_requests: 100, ..Default::default() }),
        ..Default::default()
    };
    let service = v1::Service {
        key: key.clone(),
        namespace: "shop".into(),
        name: "back".into(),
        port: 80,
        routes: vec![items, to_all],
        clusters: vec![cluster],
        default_cluster: key,
        ..Default::default()
    };
    let update = v1::ToProxy { services: vec![service], ..Default::default() };
    let (snapshot, rejections) = Snapshot::default().apply(&update);
    assert!(rejections.is_empty(), "{rejections:?}");
    snapshot
}

#[test]
fn a_request_like_an_earlier_one_is_decided_and_counted_without_allocating() {
    use v1::Balancer::{LeastRequest, Maglev, PeakEwma, Random, RingHash, RoundRobin};
    for balancer in [PeakEwma, LeastRequest, RoundRobin, Random, RingHash, Maglev] {
        let snapshot = snapshot(balancer);
        let service = &snapshot.services["shop/back:80"];
        let (metrics, headers) = (Metrics::new(), HeaderMap::new());
        let mut rng = SmallRng::seed_from_u64(1);
        let mut record = RequestRecord {
            direction: Direction::Outbound,
            kind: HttpKind::Http1,
            method: Method::GET,
            uri: Uri::from_static("/item/7?q=2"),
            host: None,
            request_id: HeaderValue::from_static("1"),
            status: 200,
            grpc_status: None,
            reason: None,
            detail: None,
            duration: Duration::from_millis(2),
            request_bytes: 0,
            response_bytes: 10,
            retries: 0,
            mtls: true,
            source: Party { namespace: "shop".into(), workload: "front".into(), identity: None },
            destination: Party { namespace: "shop".into(), ..Party::default() },
            service: Arc::clone(&service.key),
            route: "all".into(),
            client: "10.0.0.9:4000".parse().unwrap(),
            upstream: None,
            action: "",
            authorization: None,
            token: None,
            trace: None,
        };
        let mut request = || {
            let route = route::route(service, &record.method, &record.uri, &headers).route;
            let cluster = route::backend(route, &mut rng);
            let permit = cluster.breaker.request().unwrap();
            service.live.budget.deposit(&route.retry, Instant::now());
            let mut load = balance::pick(cluster, Some(7), &[], Instant::now(), &mut rng).unwrap();
            load.report(Outcome::Success { latency: Duration::from_millis(2) });
            record.destination.workload = Arc::clone(&load.endpoint.workload);
            metrics.request(&record);
            drop((load, permit));
        };
        for _ in 0..200 {
            request();
        }
        let before = TAKEN.get();
        for _ in 0..1000 {
            request();
        }
        assert_eq!(TAKEN.get() - before, 0, "{balancer:?}");
    }
}
