//! Tests of `snapshot`: no cluster, nothing but what they make themselves.

use super::*;
use proptest::prelude::*;
use weft_api::v1::{address, r#match};

pub(crate) fn endpoint(address: &str, weight: u32) -> v1::Endpoint {
    v1::Endpoint {
        address: address.into(),
        weight,
        identity: "spiffe://cluster.local/ns/shop/sa/back".into(),
        pod: "back-0".into(),
        workload: "back".into(),
        ..Default::default()
    }
}

pub(crate) fn cluster(name: &str, endpoints: Vec<v1::Endpoint>) -> v1::Cluster {
    v1::Cluster {
        name: name.into(),
        endpoints,
        breaker: Some(v1::Breaker { max_concurrent_requests: 2, ..Default::default() }),
        outlier: Some(v1::Outlier {
            consecutive_failures: 5,
            base_ejection_ms: 10_000,
            max_ejection_ms: 300_000,
            max_ejected_percent: 50,
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(crate) fn service(endpoints: &[&str]) -> v1::Service {
    let endpoints = endpoints.iter().map(|address| endpoint(address, 100)).collect();
    v1::Service {
        key: "shop/back:80".into(),
        namespace: "shop".into(),
        name: "back".into(),
        port: 80,
        routes: vec![route(&[("shop/back:80", 100)])],
        clusters: vec![cluster("shop/back:80", endpoints)],
        default_cluster: "shop/back:80".into(),
        ..Default::default()
    }
}

fn route(backends: &[(&str, u32)]) -> v1::Route {
    let backend =
        |(cluster, weight): &(&str, u32)| v1::Backend { cluster: (*cluster).into(), weight: *weight };
    v1::Route { name: "all".into(), backends: backends.iter().map(backend).collect(), ..Default::default() }
}

fn address(address: &str, target: address::Target) -> v1::Address {
    v1::Address { address: address.into(), target: Some(target) }
}

pub(crate) fn workload() -> v1::Workload {
    v1::Workload {
        namespace: "shop".into(),
        pod: "front-0".into(),
        name: "front".into(),
        identity: "spiffe://cluster.local/ns/shop/sa/front".into(),
        mtls: v1::MtlsMode::Strict.into(),
        port_mtls: [(8080, v1::MtlsMode::Permissive.into())].into(),
        port_protocol: [(8080, v1::Protocol::Http1.into())].into(),
        probes: vec![
            v1::Probe { port: 8080, kind: Some(v1::probe::Kind::HttpPath("/health?deep".into())) },
            v1::Probe { port: 9090, kind: Some(v1::probe::Kind::GrpcService(String::new())) },
        ],
        ..Default::default()
    }
}

pub(crate) fn applied(to: &Snapshot, update: &v1::ToProxy) -> Snapshot {
    let (next, rejections) = to.apply(update);
    assert!(rejections.is_empty(), "{rejections:?}");
    next
}

fn of_services(services: Vec<v1::Service>) -> v1::ToProxy {
    v1::ToProxy { services, ..Default::default() }
}

fn rejected(to: &Snapshot, update: &v1::ToProxy) -> (Snapshot, v1::Rejection) {
    let (next, mut rejections) = to.apply(update);
    assert_eq!(rejections.len(), 1, "{rejections:?}");
    (next, rejections.remove(0))
}

const KEY: &str = "shop/back:80";

fn first() -> Snapshot {
    applied(
        &Snapshot::default(),
        &v1::ToProxy {
            version: 1,
            workload: Some(workload()),
            services: vec![service(&["10.0.0.1:8080", "10.0.0.2:8080"])],
            addresses: vec![
                address("10.96.0.1:80", address::Target::Service(KEY.into())),
                address(
                    "10.0.0.1:8080",
                    address::Target::Pinned(v1::Pinned {
                        service: KEY.into(),
                        endpoint: "10.0.0.1:8080".into(),
                    }),
                ),
                address("[2001:db8::1]:443", address::Target::External(v1::External {})),
            ],
            ..Default::default()
        },
    )
}

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn an_update_is_taken_whole() {
    let snapshot = first();
    let workload = snapshot.workload.as_ref().unwrap();
    assert_eq!(workload.mtls_for(8080), MtlsMode::Permissive);
    assert_eq!(workload.mtls_for(1), MtlsMode::Strict);
    assert_eq!(workload.protocol_for(8080), Protocol::Http1);
    assert_eq!(workload.protocol_for(1), Protocol::Detect);
    assert!(matches!(&snapshot.addresses[&socket("10.96.0.1:80")], Target::Service(s) if &*s.key == KEY));
    assert!(
        matches!(&snapshot.addresses[&socket("10.0.0.1:8080")], Target::Pinned(_, e) if e.addr == socket("10.0.0.1:8080"))
    );
    assert!(matches!(&snapshot.addresses[&socket("[2001:db8::1]:443")], Target::External));
    assert_eq!(snapshot.services[KEY].default_cluster.connect_timeout, Duration::from_secs(2));
}

#[test]
fn only_the_declared_probes_are_probes() {
    let snapshot = first();
    let workload = snapshot.workload.unwrap();
    assert!(workload.is_http_probe(8080, "/health?deep"));
    for (port, path) in
        [(8080, "/health"), (8080, "/health?deep&x"), (8081, "/health?deep"), (8080, "/"), (9090, "")]
    {
        assert!(!workload.is_http_probe(port, path), "{port} {path}");
    }
    assert!(workload.is_grpc_probe(9090, ""));
    assert!(!workload.is_grpc_probe(9090, "other") && !workload.is_grpc_probe(8080, ""));
}

#[test]
fn the_same_update_again_changes_nothing_at_all() {
    let snapshot = first();
    let again = applied(&snapshot, &of_services(vec![service(&["10.0.0.1:8080", "10.0.0.2:8080"])]));
    assert!(Arc::ptr_eq(&snapshot.services[KEY], &again.services[KEY]));
    let again = applied(&snapshot, &v1::ToProxy { workload: Some(workload()), ..Default::default() });
    assert!(Arc::ptr_eq(snapshot.workload.as_ref().unwrap(), again.workload.as_ref().unwrap()));
}

#[test]
fn counts_outlive_an_update_and_addresses_follow_it() {
    let snapshot = first();
    let old = &snapshot.services[KEY];
    old.live.learn(Protocol::Http2);
    let endpoint = old.endpoint(socket("10.0.0.2:8080")).unwrap();
    let _load = crate::balance::pinned(&old.default_cluster, endpoint, tokio::time::Instant::now());
    let _permit = old.default_cluster.breaker.request().unwrap();

    let mut update = service(&["10.0.0.3:8080", "10.0.0.2:8080"]);
    update.clusters[0].breaker = Some(v1::Breaker { max_concurrent_requests: 1, ..Default::default() });
    let next = applied(&snapshot, &of_services(vec![update]));
    let new = &next.services[KEY];
    assert!(!Arc::ptr_eq(old, new));
    assert_eq!(new.live.learned(), Protocol::Http2);
    assert_eq!(new.endpoint(socket("10.0.0.2:8080")).unwrap().live.in_flight(), 1);
    assert_eq!(new.endpoint(socket("10.0.0.3:8080")).unwrap().live.in_flight(), 0);
    assert!(new.default_cluster.breaker.request().is_err(), "one is open, and the limit is one now");
    assert!(old.default_cluster.breaker.request().is_ok(), "whoever still has the old view has its limits");
    assert!(matches!(&next.addresses[&socket("10.96.0.1:80")], Target::Service(s) if Arc::ptr_eq(s, new)));
    // The pod has gone; the operator has not said yet what its address is now.
    assert!(
        matches!(&next.addresses[&socket("10.0.0.1:8080")], Target::Pinned(s, e) if Arc::ptr_eq(s, new) && e.addr == socket("10.0.0.1:8080"))
    );
}

#[test]
fn another_pod_at_the_same_address_starts_anew() {
    let snapshot = first();
    let old = &snapshot.services[KEY].default_cluster;
    let _load = crate::balance::pinned(old, &old.endpoints[0], tokio::time::Instant::now());
    let mut update = service(&["10.0.0.1:8080", "10.0.0.2:8080"]);
    update.clusters[0].endpoints[0].pod = "back-1".into();
    let next = applied(&snapshot, &of_services(vec![update]));
    assert_eq!(next.services[KEY].default_cluster.endpoints[0].live.in_flight(), 0);
}

#[test]
fn an_endpoint_is_one_and_the_same_in_the_whole_a_subset_and_another_service_that_splits_to_it() {
    let mut back = service(&["10.0.0.1:8080"]);
    back.clusters.push(cluster("shop/back:80/v1", vec![endpoint("10.0.0.1:8080", 50)]));
    let mut front = service(&[]);
    front.key = "shop/front:80".into();
    front.name = "front".into();
    front.clusters.clear();
    front.clusters.push(cluster("shop/front:80", vec![]));
    front.clusters.push(cluster("shop/back:80", vec![endpoint("10.0.0.1:8080", 100)]));
    front.default_cluster = "shop/front:80".into();
    let snapshot = applied(&Snapshot::default(), &of_services(vec![front, back]));
    let (front, back) = (&snapshot.services["shop/front:80"], &snapshot.services[KEY]);
    let live = &back.clusters[0].endpoints[0].live;
    assert!(Arc::ptr_eq(live, &back.clusters[1].endpoints[0].live));
    assert!(Arc::ptr_eq(live, &front.clusters[1].endpoints[0].live));
    let _held = back.clusters[0].breaker.request().unwrap();
    assert_eq!(front.clusters[1].breaker.open()[2], 1);
    assert_eq!(back.clusters[1].breaker.open()[2], 0, "a subset has its own limits");
}

#[test]
fn what_cannot_be_understood_is_rejected_by_name_and_the_last_good_one_stays() {
    let snapshot = first();
    type Spoil = fn(&mut v1::Service);
    let cases: &[(Spoil, &str)] = &[
        (|s| s.namespace.clear(), "namespace: is empty"),
        (|s| s.port = 70_000, "port: 70000 is not a port"),
        (|s| s.protocol = 77, "protocol: 77 is not a value that this proxy knows"),
        (|s| s.default_cluster = "x".into(), "default_cluster: `x` is not one of the clusters"),
        (|s| s.routes.clear(), "routes: the last one must match everything"),
        (|s| s.routes[0].backends.clear(), "routes[0].backends: at least one must have a weight above 0"),
        (
            |s| s.routes[0].backends = vec![Default::default()],
            "routes[0].backends[0].cluster: `` is not one of the clusters",
        ),
        (
            |s| s.clusters[0].endpoints[1].address = "10.0.0.2".into(),
            "clusters[0].endpoints[1].address: `10.0.0.2` is not ip:port",
        ),
        (
            |s| {
                s.clusters[0].adaptive =
                    Some(v1::Adaptive { min_limit: 5, max_limit: 4, ..Default::default() })
            },
            "clusters[0].adaptive.max_limit: 4 is below min_limit, 5",
        ),
        (|s| s.clusters[0].balancer = 9, "clusters[0].balancer: 9 is not a value that this proxy knows"),
        (
            |s| s.routes[0].retry = Some(v1::Retry { on: vec![0], ..Default::default() }),
            "routes[0].retry.on: 0 is not a value that this proxy knows",
        ),
        (
            |s| s.routes[0].retry = Some(v1::Retry { status_codes: vec![429, 200], ..Default::default() }),
            "routes[0].retry.status_codes: must be statuses of HTTP from 400 to 599",
        ),
        (
            |s| s.routes[0].retry = Some(v1::Retry { grpc_statuses: vec![0], ..Default::default() }),
            "routes[0].retry.grpc_statuses: must be statuses of gRPC from 1 to 16",
        ),
        (
            |s| s.routes[0].mirror = Some(v1::Mirror { cluster: "shop/gone:80".into(), percent: 1 }),
            "routes[0].mirror.cluster: `shop/gone:80` is not one of the clusters",
        ),
        (
            |s| s.routes[0].mirror = Some(v1::Mirror { cluster: KEY.into(), percent: 101 }),
            "routes[0].mirror.percent: 101 is not between 1 and 100",
        ),
        (
            |s| s.routes[0].hedge = Some(v1::Hedge { delay_ms: 0, max_attempts: 2 }),
            "routes[0].hedge.delay_ms: must be above 0",
        ),
        (
            |s| s.routes[0].hedge = Some(v1::Hedge { delay_ms: 1, max_attempts: 1 }),
            "routes[0].hedge.max_attempts: must be at least 2, the first try included",
        ),
    ];
    for (spoil, message) in cases {
        let mut bad = service(&["10.0.0.1:8080", "10.0.0.2:8080"]);
        spoil(&mut bad);
        let (next, rejection) = rejected(&snapshot, &of_services(vec![bad]));
        assert_eq!((rejection.resource.as_str(), rejection.message.as_str()), (KEY, *message));
        assert!(Arc::ptr_eq(&snapshot.services[KEY], &next.services[KEY]));
    }
}

#[test]
fn one_bad_resource_does_not_hold_up_the_others() {
    let snapshot = first();
    let mut bad = service(&[]);
    bad.default_cluster.clear();
    let mut good = service(&["10.0.0.9:80"]);
    good.key = "shop/other:80".into();
    let update = v1::ToProxy {
        services: vec![bad, good],
        workload: Some(v1::Workload { mtls: 0, ..workload() }),
        addresses: vec![
            address("10.96.0.2:80", address::Target::Service("shop/other:80".into())),
            address("10.96.0.3:80", address::Target::Service("shop/unknown:80".into())),
            address("nonsense", address::Target::External(v1::External {})),
            v1::Address { address: "10.96.0.4:80".into(), target: None },
        ],
        ..Default::default()
    };
    let (next, rejections) = snapshot.apply(&update);
    let rejected: Vec<_> = rejections.iter().map(|r| r.resource.as_str()).collect();
    assert_eq!(rejected, ["workload", KEY, "10.96.0.3:80", "nonsense", "10.96.0.4:80"]);
    assert!(
        matches!(&next.addresses[&socket("10.96.0.2:80")], Target::Service(s) if &*s.key == "shop/other:80")
    );
    assert_eq!(next.workload.unwrap().mtls, MtlsMode::Strict);
}

#[test]
fn regular_expressions_are_bounded_in_text_and_in_memory() {
    for (text, message) in [
        ("(".to_owned(), "is not a regular expression"),
        ("a".repeat(2000), "longer than 1024 bytes"),
        ("(a{1000}){1000}".to_owned(), "too large when compiled"),
        ("a)|(b".to_owned(), "is not a regular expression"),
    ] {
        let mut service = service(&["10.0.0.1:8080"]);
        let matched = v1::Match { path: Some(r#match::Path::PathRegex(text)), ..Default::default() };
        service.routes.insert(0, v1::Route { matches: vec![matched], ..route(&[(KEY, 1)]) });
        let (_, rejection) = rejected(&Snapshot::default(), &of_services(vec![service]));
        assert!(rejection.message.starts_with("routes[0].matches[0].path_regex: "), "{}", rejection.message);
        assert!(rejection.message.contains(message), "{}", rejection.message);
    }
}

#[test]
fn counts_of_a_rules_breaker_and_what_was_found_of_an_adaptive_limit_outlive_an_update() {
    let given = |max: u32, tolerance_percent: u32| {
        let mut service = service(&["10.0.0.1:8080"]);
        service.routes[0].breaker =
            Some(v1::Breaker { max_concurrent_requests: max, max_retries: 1, ..Default::default() });
        let adaptive =
            v1::Adaptive { min_limit: 4, max_limit: 9, tolerance_percent, baseline_every_ms: 60_000 };
        service.clusters[0].adaptive = Some(adaptive);
        service
    };
    let first = applied(&Snapshot::default(), &of_services(vec![given(2, 25)]));
    let parts = |snapshot: &Snapshot| {
        let service = &snapshot.services[KEY];
        let cluster = &service.clusters[0];
        (service.routes[0].breaker.clone().unwrap(), cluster.adaptive.clone().unwrap(), Arc::clone(cluster))
    };
    let (_, adaptive, cluster) = parts(&first);
    let _held = first.services[KEY].routes[0].admit(&cluster).unwrap();
    let next = applied(&first, &of_services(vec![given(1, 25)]));
    let (breaker, same, cluster) = parts(&next);
    assert!(Arc::ptr_eq(&adaptive, &same));
    assert_eq!((breaker.requests(), breaker.limits().requests), (1, Some(1)));
    assert_eq!(next.services[KEY].routes[0].admit(&cluster).err(), Some(weft_api::Reason::BreakerOpen));
    // What was refused by one of the two has no place at the other.
    assert_eq!((breaker.requests(), cluster.breaker.requests()), (1, 1));
    let (_, other, _) = parts(&applied(&next, &of_services(vec![given(1, 50)])));
    assert!(!Arc::ptr_eq(&adaptive, &other));
}

#[test]
fn a_request_beyond_the_adaptive_limit_or_a_retry_beyond_the_rules_is_refused() {
    let mut service = service(&["10.0.0.1:8080"]);
    service.clusters[0].breaker = None;
    service.clusters[0].adaptive =
        Some(v1::Adaptive { min_limit: 2, max_limit: 2, tolerance_percent: 25, baseline_every_ms: 60_000 });
    service.routes[0].breaker = Some(v1::Breaker { max_retries: 1, ..Default::default() });
    let snapshot = applied(&Snapshot::default(), &of_services(vec![service]));
    let (route, cluster) = (&snapshot.services[KEY].routes[0], &snapshot.services[KEY].clusters[0]);
    let held = [route.admit(cluster).unwrap(), route.admit(cluster).unwrap()];
    assert_eq!(route.admit(cluster).err(), Some(weft_api::Reason::AdaptiveLimit));
    drop(held);
    assert!(route.admit(cluster).is_ok());
    let _retry = route.admit_retry(cluster).unwrap();
    assert!(route.admit_retry(cluster).is_none());
    assert!(route.bound_on_waiting().is_none());
}

#[test]
fn a_rules_bound_on_waiting_is_its_own_and_outlives_updates() {
    let of = |pending| {
        let mut service = service(&["10.0.0.1:8080"]);
        service.routes[0].breaker = Some(v1::Breaker { max_pending_requests: pending, ..Default::default() });
        of_services(vec![service])
    };
    let first = applied(&Snapshot::default(), &of(1));
    let waiting = |snapshot: &Snapshot| snapshot.services[KEY].routes[0].bound_on_waiting().unwrap();
    let _waits = waiting(&first).pending().unwrap();
    assert_eq!(waiting(&first).pending().err(), Some(weft_api::Reason::BreakerPending));
    let cluster = &first.services[KEY].clusters[0];
    assert_eq!(cluster.breaker.open(), [0; 4], "the cluster's places are others");
    let next = applied(&first, &of(2));
    let _second = waiting(&next).pending().unwrap();
    assert!(waiting(&next).pending().is_err());
}

fn limited(limit: v1::RateLimit) -> v1::Workload {
    let rule = v1::InboundRule { name: "p/0".into(), rate_limit: Some(limit), ..Default::default() };
    let rules = v1::InboundRules { port: 80, service: KEY.into(), rules: vec![rule], ..Default::default() };
    v1::Workload { inbound_rules: vec![rules], ..workload() }
}

fn of_workload(workload: v1::Workload) -> v1::ToProxy {
    v1::ToProxy { workload: Some(workload), ..Default::default() }
}

#[test]
fn a_rate_limit_that_makes_no_sense_is_rejected_with_a_sentence_and_the_last_one_stays() {
    use v1::rate_limit::Key;
    let good = v1::RateLimit { requests: 1, per_ms: 1000, ..Default::default() };
    let first = applied(&Snapshot::default(), &of_workload(limited(good.clone())));
    assert!(first.workload.as_ref().unwrap().limits_on(80).is_some());
    assert!(first.workload.as_ref().unwrap().limits_on(81).is_none());
    for (bad, message) in [
        (v1::RateLimit { requests: 0, ..good.clone() }, "requests: and per_ms must be above 0"),
        (
            v1::RateLimit { key: Some(Key::Header("a b".into())), ..good.clone() },
            "header: `a b` is not the name of a header",
        ),
        (
            v1::RateLimit { key: Some(Key::PathTemplate("/a".into())), ..good },
            "path_template: `/a` has no {name}",
        ),
    ] {
        let mut workload = limited(bad);
        workload.mtls = v1::MtlsMode::Disable.into();
        let (next, rejections) = first.apply(&of_workload(workload.clone()));
        assert_eq!(rejections[0].message, format!("inbound_rules[0].rules[0].rate_limit.{message}"));
        let own = next.workload.unwrap();
        // The rest of it is in force.
        assert_eq!((own.mtls, own.limits_on(80).is_some()), (MtlsMode::Disable, true));
        // Also where there was none before.
        let (fresh, _) = Snapshot::default().apply(&of_workload(workload));
        assert!(fresh.workload.unwrap().limits.is_none());
    }
}

#[test]
fn a_limit_of_several_matches_is_one_limit_whatever_their_order() {
    let limit = v1::RateLimit { requests: 1, per_ms: 1000, mesh: true, ..Default::default() };
    let mut workload = limited(limit);
    let method = |method: &str| v1::Match { method: method.into(), ..Default::default() };
    workload.inbound_rules[0].precedence = v1::Precedence::Specificity.into();
    workload.inbound_rules[0].rules[0].matches = vec![method("GET"), method("POST")];
    let own = applied(&Snapshot::default(), &of_workload(workload)).workload.unwrap();
    assert_eq!(own.limits.as_ref().unwrap().all().count(), 1);
}

#[test]
fn the_same_limits_again_change_nothing() {
    let limit = v1::RateLimit { requests: 1, per_ms: 1000, ..Default::default() };
    let first = applied(&Snapshot::default(), &of_workload(limited(limit.clone())));
    let again = applied(&first, &of_workload(limited(limit)));
    assert!(Arc::ptr_eq(first.workload.as_ref().unwrap(), again.workload.as_ref().unwrap()));
    let none = applied(&again, &of_workload(workload()));
    assert!(none.workload.unwrap().limits.is_none());
}

fn filtered(filters: v1::Filters) -> v1::Service {
    let mut service = service(&["10.0.0.1:8080"]);
    service.routes[0].filters = Some(filters);
    service
}

#[test]
fn a_rule_that_does_what_it_may_not_is_rejected_by_name() {
    let line = |name: &str, value: &str| v1::HeaderLine { name: name.into(), value: value.into() };
    let set = |line| Some(v1::HeaderChanges { set: vec![line], ..Default::default() });
    let path = |change| {
        Some(v1::Rewrite { path: Some(v1::PathChange { change: Some(change) }), ..Default::default() })
    };
    let regex = |pattern: &str, substitution: &str| {
        v1::path_change::Change::Regex(v1::PathSubstitution {
            pattern: pattern.into(),
            substitution: substitution.into(),
        })
    };
    let redirect = |redirect| v1::Filters { redirect: Some(redirect), ..Default::default() };
    let cases = [
        (
            v1::Filters { request: set(line("host", "a")), ..Default::default() },
            "request.set[0].name: `host` belongs to the connection",
        ),
        (
            v1::Filters { response: set(line("a", "b\nc")), ..Default::default() },
            "response.set[0].value: `b\\nc` is not",
        ),
        (
            v1::Filters { rewrite: path(v1::path_change::Change::Full("/a b".into())), ..Default::default() },
            "rewrite.path.full: `/a b` is not a path",
        ),
        (
            v1::Filters { rewrite: path(regex("/(a)", "/$2")), ..Default::default() },
            "rewrite.path.substitution: the expression has no group 2",
        ),
        (
            v1::Filters { rewrite: path(regex("(", "/")), ..Default::default() },
            "rewrite.path.pattern: `(` is not",
        ),
        (redirect(v1::Redirect { status: 304, ..Default::default() }), "redirect.status: 304 is not"),
        (
            redirect(v1::Redirect { host: "a:1".into(), ..Default::default() }),
            "redirect.host: `a:1` is not a host",
        ),
        (
            redirect(v1::Redirect {
                path: Some(v1::PathChange { change: Some(regex("a", "/")) }),
                ..Default::default()
            }),
            "redirect.path: cannot be a regex",
        ),
        (
            v1::Filters {
                response_instead: Some(v1::DirectResponse { status: 101, ..Default::default() }),
                ..Default::default()
            },
            "response.status: 101 is not",
        ),
        (
            v1::Filters {
                fault: Some(v1::Fault { abort: Some(v1::Abort::default()), ..Default::default() }),
                ..Default::default()
            },
            "fault.abort.with: is not given",
        ),
        (
            v1::Filters {
                cors: Some(v1::Cors {
                    allow_origins: vec!["*".into()],
                    allow_credentials: true,
                    ..Default::default()
                }),
                ..Default::default()
            },
            "cors.allow_credentials: cannot be given to every origin",
        ),
    ];
    for (filters, message) in cases {
        let (_, rejection) = rejected(&Snapshot::default(), &of_services(vec![filtered(filters)]));
        let wanted = format!("routes[0].filters.{message}");
        assert!(rejection.message.starts_with(&wanted), "{} is not {wanted}", rejection.message);
    }
}

#[test]
fn a_rule_for_other_callers_is_left_out() {
    let from = |identities: &[&str], namespaces: &[&str]| v1::Match {
        source: Some(v1::SourceMatch {
            identities: identities.iter().map(|id| (*id).to_owned()).collect(),
            namespaces: namespaces.iter().map(|name| (*name).to_owned()).collect(),
        }),
        ..Default::default()
    };
    let named = |name: &str, matches| v1::Route { name: name.into(), matches, ..route(&[(KEY, 1)]) };
    let mut message = service(&["10.0.0.1:8080"]);
    let other = || from(&["spiffe://cluster.local/ns/shop/sa/other"], &["bank"]);
    message.routes.splice(
        0..0,
        [
            named("others", vec![other()]),
            named("either", vec![other(), from(&["spiffe://cluster.local/ns/shop/sa/front"], &[])]),
            named("namespace", vec![from(&[], &["shop"])]),
        ],
    );
    let update = v1::ToProxy { workload: Some(workload()), ..of_services(vec![message.clone()]) };
    let snapshot = applied(&Snapshot::default(), &update);
    let routes: Vec<_> = snapshot.services[KEY].routes.iter().map(|r| (&*r.name, r.matches.len())).collect();
    assert_eq!(routes, [("either", 1), ("namespace", 1), ("all", 0)]);
    // A proxy that does not know who it is cannot say; it must not guess.
    let (_, rejection) = rejected(&Snapshot::default(), &of_services(vec![message]));
    assert!(rejection.message.contains("matches[0].source: cannot be judged"), "{}", rejection.message);
}

#[test]
fn a_removed_service_goes_and_what_points_to_it_waits_for_the_operator() {
    let snapshot = first();
    let update = v1::ToProxy { removed_services: vec![KEY.into(), "no/such:1".into()], ..Default::default() };
    let next = applied(&snapshot, &update);
    assert!(next.services.is_empty());
    assert!(matches!(&next.addresses[&socket("10.96.0.1:80")], Target::Service(_)));
    let next = next.without(&[socket("10.96.0.1:80")]);
    assert_eq!(next.addresses.len(), 2);
}

#[tokio::test]
async fn ejections_are_listed_once_and_announced_over_updates() {
    use crate::balance::Outcome;
    use crate::outlier::Failure;
    let mut update = service(&["10.0.0.1:8080", "10.0.0.2:8080"]);
    update.clusters.push(cluster("shop/back:80/v1", vec![endpoint("10.0.0.1:8080", 100)]));
    let snapshot = applied(&Snapshot::default(), &of_services(vec![update]));
    let mut changes = snapshot.ejection_changes();
    let now = tokio::time::Instant::now();
    let cluster = &snapshot.services[KEY].default_cluster;
    let load = crate::balance::pinned(cluster, &cluster.endpoints[0], now);
    load.finish(Outcome::Failure(Failure::Connect)).unwrap();
    changes.changed().await.unwrap();
    assert_eq!(
        snapshot.ejections(),
        [v1::Ejection {
            service: KEY.into(),
            endpoint: "10.0.0.1:8080".into(),
            cause: "failed to connect".into()
        }]
    );
    let next =
        applied(&snapshot, &of_services(vec![service(&["10.0.0.1:8080", "10.0.0.3:8080", "10.0.0.4:8080"])]));
    assert_eq!(next.ejections(), snapshot.ejections());
    let cluster = &next.services[KEY].default_cluster;
    // The share of three is rounded down to one, and that one is out.
    let load = crate::balance::pinned(cluster, &cluster.endpoints[1], now);
    assert_eq!(load.finish(Outcome::Failure(Failure::Connect)), None);
    let load = crate::balance::pinned(cluster, &cluster.endpoints[0], now);
    assert!(load.finish(Outcome::Success { latency: Duration::from_millis(1) }).is_some());
    changes.changed().await.unwrap();
    assert!(next.ejections().is_empty());
}

proptest! {
    // What comes over the wire may be anything that decodes.
    #[test]
    fn no_update_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(update) = <v1::ToProxy as prost::Message>::decode(bytes.as_slice()) {
            let _ = first().apply(&update);
        }
    }

    #[test]
    fn no_text_in_any_field_panics(text in "\\PC{0,40}", number: u32, wide: u64) {
        let mut update = service(&["10.0.0.1:8080"]);
        update.clusters[0].endpoints[0].address.clone_from(&text);
        update.clusters[0].endpoints[0].identity.clone_from(&text);
        update.clusters[0].connect_timeout_ms = wide;
        update.clusters[0].outlier = Some(v1::Outlier {
            consecutive_failures: number,
            base_ejection_ms: wide,
            max_ejection_ms: wide / 2,
            max_ejected_percent: number,
            ..Default::default()
        });
        update.clusters[0].breaker = Some(v1::Breaker { max_retries: number, ..Default::default() });
        update.port = number;
        update.routes.insert(0, v1::Route {
            matches: vec![v1::Match {
                path: Some(r#match::Path::PathRegex(text.clone())),
                method: text.clone(),
                headers: vec![v1::HeaderMatch {
                    name: text.clone(),
                    value: Some(v1::header_match::Value::Regex(text.clone())),
                }],
                ..Default::default()
            }],
            timeout_ms: wide,
            ..route(&[(KEY, number)])
        });
        let message = of_services(vec![update]);
        let (snapshot, rejections) = Snapshot::default().apply(&message);
        prop_assert_eq!(snapshot.services.len() + rejections.len(), 1);
    }
}

#[test]
fn an_active_check_is_taken_with_its_defaults_or_refused_with_a_sentence() {
    let checked = |kind: Option<v1::active_check::Kind>, port: u32| {
        let mut message = service(&["10.0.0.1:8080"]);
        message.clusters[0].active = Some(v1::ActiveCheck { kind, port, ..Default::default() });
        of_services(vec![message])
    };
    let http = |path: &str, host: &str| {
        let http = v1::HttpCheck { path: path.into(), host: host.into(), ..Default::default() };
        Some(v1::active_check::Kind::Http(http))
    };
    let snapshot = applied(&Snapshot::default(), &checked(http("/healthz?a=b", ""), 9090));
    let cluster = &snapshot.services[KEY].default_cluster;
    let check = cluster.active.as_ref().unwrap();
    assert_eq!(
        (check.port, check.interval, check.timeout),
        (Some(9090), Duration::from_secs(10), Duration::from_secs(1))
    );
    assert_eq!((check.unhealthy_threshold, check.healthy_threshold, check.max_checkers), (3, 2, 3));
    // What is not said of the endpoint is as at its own port.
    let endpoint = &cluster.endpoints[0];
    assert_eq!(endpoint.check.as_ref().unwrap().identity, endpoint.identity);
    for (kind, port, word) in [
        (None, 0, "update the proxy"),
        (http("healthz", ""), 0, "is not a path"),
        (http("/", "a\nb"), 0, "is not the value of a header"),
        (http("/", ""), 65_536, "is not a port"),
    ] {
        let (_, rejection) = rejected(&Snapshot::default(), &checked(kind, port));
        assert!(rejection.message.contains(word), "{}", rejection.message);
    }
}

#[test]
fn the_service_in_a_clusters_name() {
    assert_eq!(service_of("shop/back:80/v1"), "shop/back:80");
    assert_eq!(service_of("shop/back:80"), "shop/back:80");
    assert_eq!(service_of("odd"), "odd");
}

#[test]
fn balancing_that_makes_no_sense_is_rejected_with_a_sentence() {
    use v1::hash::Key;
    let hashed = |key| {
        let mut service = service(&["10.0.0.1:8080"]);
        service.clusters[0].balancer = v1::Balancer::RingHash.into();
        service.clusters[0].hash = Some(v1::Hash { key, ring_points: 0 });
        service
    };
    let mut keyless = hashed(None);
    keyless.clusters[0].hash = None;
    let mut far = service(&["10.0.0.1:8080"]);
    far.clusters[0].endpoints[0].priority = 64;
    let mut lost = service(&["10.0.0.1:8080"]);
    lost.clusters[0].locality = 9;
    let cookie = v1::HashCookie { name: "a=b".into(), ttl_ms: 0 };
    for (bad, message) in [
        (keyless, "clusters[0].hash: RingHash needs a key to hash by"),
        (hashed(None), "clusters[0].hash: RingHash needs a key to hash by"),
        (
            hashed(Some(Key::Header("a b".into()))),
            "clusters[0].hash.header: `a b` is not the name of a header",
        ),
        (
            hashed(Some(Key::Cookie(cookie))),
            "clusters[0].hash.cookie.name: `a=b` is not the name of a cookie",
        ),
        (hashed(Some(Key::Query(String::new()))), "clusters[0].hash.query: is empty"),
        (far, "clusters[0].endpoints[0].priority: 64 is not below 64"),
        (lost, "clusters[0].locality: 9 is not a value that this proxy knows"),
    ] {
        let (next, rejection) = rejected(&Snapshot::default(), &of_services(vec![bad]));
        assert_eq!(rejection.message, message);
        assert!(next.services.is_empty());
    }
}

fn authorized(change: impl FnOnce(&mut v1::Authorization)) -> v1::Workload {
    let rule = v1::AuthorizationRule {
        name: "0".into(),
        from: vec![v1::AuthorizationSource { namespaces: vec!["shop".into()], ..Default::default() }],
        to: vec![v1::AuthorizationTarget { ports: vec![80], ..Default::default() }],
        when: Vec::new(),
    };
    let policy = v1::AuthorizationPolicy {
        namespace: "shop".into(),
        name: "p".into(),
        action: v1::AuthorizationAction::Allow.into(),
        dry_run: false,
        audit: false,
        rules: vec![rule],
    };
    let mut authorization = v1::Authorization { policies: vec![policy], level: 1 };
    change(&mut authorization);
    v1::Workload { authorization: Some(authorization), ..workload() }
}

#[test]
fn policies_that_cannot_be_understood_are_rejected_whole_with_a_sentence() {
    use v1::authorization_path::Path;
    let first = applied(&Snapshot::default(), &of_workload(authorized(|_| {})));
    let before = first.workload.as_ref().unwrap().authorization.clone().unwrap();
    type Change = fn(&mut v1::Authorization);
    let bad: [(Change, &str); 9] = [
        (|a| a.level = 4, "level: 4 is beyond what this proxy understands, 3: update the proxy"),
        (|a| a.policies[0].action = 0, "policies[0].action: 0 is not a value that this proxy knows"),
        (|a| a.policies[0].action = 9, "policies[0].action: 9 is not a value that this proxy knows"),
        (|a| a.policies[0].name.clear(), "policies[0].name: is empty"),
        (
            |a| a.policies[0].rules[0].to[0].ports.push(0),
            "policies[0].rules[0].to[0].ports[1]: 0 is not a port",
        ),
        (
            |a| a.policies[0].rules[0].from[0].ip_blocks.push("ten".into()),
            "policies[0].rules[0].from[0].ip_blocks[0]: `ten` is not a block of IP addresses: write for example 10.0.0.0/8, 10.1.2.3 or 2001:db8::/32",
        ),
        (
            |a| {
                a.policies[0].rules[0].to[0]
                    .paths
                    .push(v1::AuthorizationPath { path: Some(Path::Prefix("/a/../b".into())) })
            },
            "policies[0].rules[0].to[0].paths[0].path: `/a/../b` has empty segments or dot segments, which no path has when it is compared",
        ),
        (
            |a| a.policies[0].rules[0].to[0].paths.push(v1::AuthorizationPath { path: None }),
            "policies[0].rules[0].to[0].paths[0].path: is not given: update the proxy, its operator knows a condition that it does not",
        ),
        (
            |a| a.policies[0].rules[0].when.push(v1::AuthorizationCondition { of: None }),
            "policies[0].rules[0].when[0].of: is not given: update the proxy, its operator knows a condition that it does not",
        ),
    ];
    for (change, message) in bad {
        let mut workload = authorized(change);
        workload.mtls = v1::MtlsMode::Disable.into();
        let (next, rejections) = first.apply(&of_workload(workload.clone()));
        assert_eq!(rejections[0].message, format!("authorization.{message}"));
        let own = next.workload.unwrap();
        // The rest of it is in force, and the policies are as they were.
        assert_eq!(own.mtls, MtlsMode::Disable);
        assert!(Arc::ptr_eq(own.authorization.as_ref().unwrap(), &before));
        // Of a pod of which nothing was known, nobody gets in.
        let (fresh, _) = Snapshot::default().apply(&of_workload(workload));
        let closed = fresh.workload.unwrap().authorization.clone().unwrap();
        let front = "spiffe://cluster.local/ns/shop/sa/front".parse().unwrap();
        assert!(closed.admit(Some(&front), [10, 0, 0, 1].into(), 80).opaque().refused.is_some());
    }
}

#[test]
fn the_same_policies_again_are_not_made_anew() {
    let first = applied(&Snapshot::default(), &of_workload(authorized(|_| {})));
    let mut changed = authorized(|_| {});
    changed.mtls = v1::MtlsMode::Disable.into();
    let again = applied(&first, &of_workload(changed));
    let of = |snapshot: &Snapshot| snapshot.workload.as_ref().unwrap().authorization.clone().unwrap();
    assert!(Arc::ptr_eq(&of(&first), &of(&again)));
    // None at all cost nothing.
    let without = applied(&again, &of_workload(authorized(|a| a.policies.clear())));
    assert!(without.workload.unwrap().authorization.is_none());
}
