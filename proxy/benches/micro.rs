//! What single steps of the data path cost: classifying first bytes, choosing a route and an endpoint, changing heads, taking
//! over an update. `make bench-micro`. Whole requests are measured by `make bench`, and counted by `tests/allocations`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the report")]

use std::hint::black_box;

use divan::counter::ItemsCount;
use divan::{AllocProfiler, Bencher};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Uri, Version};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use tokio::time::Instant;
use weft_api::v1;
use weft_proxy::balance::{self, Outcome};
use weft_proxy::detect;
use weft_proxy::filter::headers::HeaderChanges;
use weft_proxy::http::headers;
use weft_proxy::route;
use weft_proxy::snapshot::Snapshot;
use weft_proxy::store::SnapshotStore;

#[path = "micro/authorization.rs"]
mod authorization;
#[path = "micro/tokens.rs"]
mod tokens;

/// Says how much each step takes from the heap, too.
#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

const SERVICE: &str = "shop/back:80";
/// Endpoints of a service.
const ENDPOINTS: [u32; 3] = [10, 1_000, 10_000];

fn main() {
    divan::main();
}

fn endpoint(i: u32) -> v1::Endpoint {
    v1::Endpoint {
        address: format!("10.{}.{}.{}:8080", i / 62_500, i / 250 % 250, i % 250 + 1),
        weight: 100,
        identity: "spiffe://cluster.local/ns/shop/sa/back".into(),
        pod: format!("back-7d4b9c6f5d-{i:05}"),
        workload: "back".into(),
        zone: format!("zone-{}", i % 3),
        region: "region".into(),
        ..Default::default()
    }
}

/// A service of so many endpoints, and so many routes that each ask for a path and a header before the one that takes all.
fn service(key: &str, endpoints: u32, routes: u32, balancer: v1::Balancer) -> v1::Service {
    let to_all = v1::Route {
        name: "default".into(),
        backends: vec![v1::Backend { cluster: key.to_owned(), weight: 1 }],
        ..Default::default()
    };
    let narrow = |i: u32| v1::Route {
        name: format!("policy/{i}"),
        matches: vec![v1::Match {
            path: Some(v1::r#match::Path::PathPrefix(format!("/part-{i}"))),
            headers: vec![v1::HeaderMatch {
                name: "x-user".into(),
                value: Some(v1::header_match::Value::Exact("somebody".into())),
            }],
            ..Default::default()
        }],
        ..to_all.clone()
    };
    v1::Service {
        key: key.to_owned(),
        namespace: "shop".into(),
        name: "back".into(),
        port: 80,
        routes: (0..routes).map(narrow).chain([to_all.clone()]).collect(),
        clusters: vec![v1::Cluster {
            name: key.to_owned(),
            balancer: balancer.into(),
            endpoints: (0..endpoints).map(endpoint).collect(),
            hash: Some(v1::Hash { key: Some(v1::hash::Key::SourceIp(true)), ring_points: 0 }),
            breaker: Some(v1::Breaker { max_concurrent_requests: 1_000_000, ..Default::default() }),
            outlier: Some(v1::Outlier { consecutive_failures: 5, ..Default::default() }),
            ..Default::default()
        }],
        default_cluster: key.to_owned(),
        ..Default::default()
    }
}

fn update(services: Vec<v1::Service>) -> v1::ToProxy {
    v1::ToProxy { version: 1, services, ..Default::default() }
}

fn snapshot(services: Vec<v1::Service>) -> Snapshot {
    let (snapshot, rejections) = Snapshot::default().apply(&update(services));
    assert!(rejections.is_empty(), "{rejections:?}");
    snapshot
}

/// The workload that is asked.
fn back() -> v1::Workload {
    v1::Workload {
        namespace: "shop".into(),
        pod: "back-0".into(),
        name: "back".into(),
        identity: "spiffe://cluster.local/ns/shop/sa/back".into(),
        mtls: v1::MtlsMode::Strict.into(),
        ..Default::default()
    }
}

fn head(count: usize) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("host", HeaderValue::from_static("back.shop"));
    headers.insert("x-user", HeaderValue::from_static("somebody"));
    headers.insert("connection", HeaderValue::from_static("keep-alive"));
    for i in headers.len()..count {
        let name: HeaderName = format!("x-header-{i}").parse().unwrap();
        headers.insert(name, HeaderValue::from_static("a value of some length"));
    }
    headers
}

#[divan::bench_group]
mod detection {
    use super::*;

    const HTTP1: &[u8] = b"GET /some/path?with=query HTTP/1.1\r\nhost: back.shop\r\nx-user: somebody\r\n\r\n";
    const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    const OPAQUE: &[u8] = b"\x00\x03\x00\x00user\x00postgres\x00";

    #[divan::bench(args = [("http1", HTTP1), ("http2", HTTP2), ("opaque", OPAQUE)])]
    fn classify(bencher: Bencher<'_, '_>, (_, bytes): (&str, &[u8])) {
        bencher.bench(|| detect::classify(black_box(bytes)));
    }
}

#[divan::bench_group]
mod requests {
    use super::*;

    /// The last of so many routes is the one that fits, by a head of 20 headers.
    #[divan::bench(args = [1, 10, 100])]
    fn route_match(bencher: Bencher<'_, '_>, routes: u32) {
        let snapshot = snapshot(vec![service(SERVICE, 1, routes, v1::Balancer::PeakEwma)]);
        let service = &snapshot.services[SERVICE];
        let uri: Uri = format!("/part-{}/item?q=1", routes - 1).parse().unwrap();
        let headers = head(20);
        assert_eq!(
            &*route::route(service, &Method::GET, &uri, &headers).route.name,
            format!("policy/{}", routes - 1)
        );
        bencher.bench(|| {
            black_box(route::route(black_box(service), &Method::GET, &uri, &headers).matching.is_some())
        });
    }

    fn pick(bencher: Bencher<'_, '_>, balancer: v1::Balancer, endpoints: u32) {
        let snapshot = snapshot(vec![service(SERVICE, endpoints, 0, balancer)]);
        let cluster = &snapshot.services[SERVICE].default_cluster;
        let mut rng = SmallRng::seed_from_u64(1);
        let mut key = 0_u64;
        bencher.bench_local(|| {
            key = key.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let load = balance::pick(cluster, Some(key), &[], Instant::now(), &mut rng).unwrap();
            load.finish(Outcome::Success { latency: std::time::Duration::from_millis(2) })
        });
    }

    #[divan::bench(args = ENDPOINTS)]
    fn pick_peak_ewma(bencher: Bencher<'_, '_>, endpoints: u32) {
        pick(bencher, v1::Balancer::PeakEwma, endpoints);
    }

    #[divan::bench(args = ENDPOINTS)]
    fn pick_round_robin(bencher: Bencher<'_, '_>, endpoints: u32) {
        pick(bencher, v1::Balancer::RoundRobin, endpoints);
    }

    #[divan::bench(args = ENDPOINTS)]
    fn pick_maglev(bencher: Bencher<'_, '_>, endpoints: u32) {
        pick(bencher, v1::Balancer::Maglev, endpoints);
    }

    /// What every request's head goes through on its way out.
    #[divan::bench(args = [5, 20])]
    fn forward_head(bencher: Bencher<'_, '_>, count: usize) {
        let mut rng = SmallRng::seed_from_u64(1);
        let given = head(count);
        bencher.with_inputs(|| given.clone()).bench_local_refs(|headers| {
            headers::forward_request(headers, Version::HTTP_11);
            headers::request_id(headers, &mut rng)
        });
    }

    /// What a rule may ask for besides.
    #[divan::bench(args = [5, 20])]
    fn change_headers(bencher: Bencher<'_, '_>, count: usize) {
        let line = |name: &'static str| (HeaderName::from_static(name), HeaderValue::from_static("value"));
        let changes = HeaderChanges {
            remove: vec![HeaderName::from_static("x-header-3")],
            set: vec![line("x-header-4"), line("x-set")],
            add: vec![line("x-added")],
        };
        let given = head(count);
        bencher.with_inputs(|| given.clone()).bench_local_refs(|headers| changes.apply(headers));
    }
}

#[divan::bench_group(sample_count = 20)]
mod snapshots {
    use super::*;

    /// The first update with a service of so many endpoints.
    #[divan::bench(args = ENDPOINTS)]
    fn first(bencher: Bencher<'_, '_>, endpoints: u32) {
        let update = update(vec![service(SERVICE, endpoints, 1, v1::Balancer::PeakEwma)]);
        bencher
            .counter(ItemsCount::new(endpoints))
            .bench(|| SnapshotStore::new().publish(Snapshot::default().apply(black_box(&update)).0));
    }

    /// One of so many endpoints is replaced.
    #[divan::bench(args = ENDPOINTS)]
    fn one_endpoint_changes(bencher: Bencher<'_, '_>, endpoints: u32) {
        one_changes(bencher, endpoints, v1::Balancer::PeakEwma);
    }

    /// The same where the balancer keeps a table.
    #[divan::bench(args = ENDPOINTS)]
    fn one_endpoint_changes_under_maglev(bencher: Bencher<'_, '_>, endpoints: u32) {
        one_changes(bencher, endpoints, v1::Balancer::Maglev);
    }

    fn one_changes(bencher: Bencher<'_, '_>, endpoints: u32, balancer: v1::Balancer) {
        let message = service(SERVICE, endpoints, 1, balancer);
        let mut changed = message.clone();
        changed.clusters[0].endpoints[5] = endpoint(endpoints + 1);
        let store = SnapshotStore::new();
        let updates = [update(vec![changed]), update(vec![message.clone()])];
        store.publish(snapshot(vec![message]));
        let mut turn = 0;
        bencher.bench_local(|| {
            let (next, _) = store.load().apply(black_box(&updates[turn % 2]));
            store.publish(next);
            turn += 1;
        });
    }

    /// A service of ten endpoints changes beside others of which each has a hundred: 1,000 endpoints, 10,000 endpoints.
    #[divan::bench(args = [10_u32, 100])]
    fn beside_others(bencher: Bencher<'_, '_>, others: u32) {
        let mut all: Vec<v1::Service> = (0..others)
            .map(|i| service(&format!("shop/other-{i}:80"), 100, 1, v1::Balancer::PeakEwma))
            .collect();
        let message = service(SERVICE, 10, 1, v1::Balancer::PeakEwma);
        let mut changed = message.clone();
        changed.clusters[0].endpoints[5] = endpoint(11);
        all.push(message.clone());
        let store = SnapshotStore::new();
        store.publish(snapshot(all));
        let updates = [update(vec![changed]), update(vec![message])];
        let mut turn = 0;
        bencher.bench_local(|| {
            let (next, _) = store.load().apply(black_box(&updates[turn % 2]));
            store.publish(next);
            turn += 1;
        });
    }
}
