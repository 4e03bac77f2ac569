//! Rate limits, kept by the callee's proxy.

use std::time::{Duration, Instant};

use http::HeaderValue;
use weft_api::v1::{self, rate_limit::Key};
use weft_proxy::record::Direction;

use crate::apps;
use crate::clients::{Got, Http1, Http2, fetch, get, post, raw};
use crate::world::{Mesh, Node, SERVICE, service};

/// So few that no test is slow enough to be given more.
fn limit(requests: u32, key: Option<Key>) -> v1::RateLimit {
    v1::RateLimit { requests, per_ms: 3_600_000, key, ..Default::default() }
}

fn rule(matches: Vec<v1::Match>, rate_limit: Option<v1::RateLimit>) -> v1::InboundRule {
    v1::InboundRule { name: "shop/0".into(), matches, rate_limit }
}

fn keep(node: &Node, port: u16, rules: Vec<v1::InboundRule>) {
    let rules = v1::InboundRules { port: port.into(), service: SERVICE.into(), rules, ..Default::default() };
    node.workload("back", |own| own.inbound_rules = vec![rules]);
}

fn header<'a>(got: &'a Got, name: &str) -> &'a str {
    got.headers.get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn beyond_the_limit_there_is_429_with_its_reason_and_every_answer_says_what_is_left() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::with(app, |service| {
        service.clusters[0].outlier =
            Some(v1::Outlier { consecutive_failures: 1, max_ejected_percent: 100, ..Default::default() });
    });
    let free = v1::Match { path: Some(v1::r#match::Path::PathExact("/free".into())), ..Default::default() };
    keep(&mesh.back, app.port(), vec![rule(vec![free], None), rule(vec![], Some(limit(2, None)))]);
    let mut client = Http1::connect(mesh.front.outbound).await;
    for left in ["1", "0"] {
        let got = client.send(get("/")).await.unwrap();
        assert_eq!(got.status, 200);
        assert_eq!(header(&got, "ratelimit-policy"), "\"shop/0\";q=2;w=3600");
        assert!(header(&got, "ratelimit").starts_with(&format!("\"shop/0\";r={left};t=")), "{got:?}");
    }
    for _ in 0..3 {
        let got = client.send(post("/", "body")).await.unwrap();
        assert_eq!((got.status.as_u16(), got.reason()), (429, "rate-limited"));
        let wait: u64 = header(&got, "retry-after").parse().unwrap();
        assert!((1700..=1800).contains(&wait), "{wait}");
        assert_eq!(header(&got, "ratelimit"), format!("\"shop/0\";r=0;t={wait}"));
    }
    // Nothing of it was a failure of the endpoint, and what is not limited says nothing of limits.
    assert!(mesh.front.store.load().ejections().is_empty());
    let got = client.send(get("/free")).await.unwrap();
    assert_eq!((got.status.as_u16(), header(&got, "ratelimit")), (200, ""));
    assert_eq!(seen.requests(), 3);
    let line = mesh.back.log.find(|line| line["reason"] == "rate-limited").await;
    assert_eq!((&line["code"], &line["route"]), (&429.into(), &"shop/0".into()));
}

#[tokio::test]
async fn a_refusal_before_a_large_body_has_come_is_an_answer_and_no_failure() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::with(app, |service| {
        service.clusters[0].outlier =
            Some(v1::Outlier { consecutive_failures: 1, max_ejected_percent: 100, ..Default::default() });
    });
    keep(&mesh.back, app.port(), vec![rule(vec![], Some(limit(1, None)))]);
    assert_eq!(fetch(mesh.front.outbound, get("/")).await.status, 200);
    for _ in 0..10 {
        // HTTP/1 has no way to say "stop": the body is read to its end.
        let got = fetch(mesh.front.outbound, post("/", vec![b'x'; 4 << 20])).await;
        assert_eq!((got.status.as_u16(), got.reason()), (429, "rate-limited"));
        let mut client = Http2::connect(mesh.front.outbound).await;
        let got = client.send(post("/", vec![b'x'; 4 << 20])).await.unwrap();
        assert_eq!((got.status.as_u16(), got.reason()), (429, "rate-limited"));
    }
    assert!(mesh.front.store.load().ejections().is_empty());
}

#[tokio::test]
async fn a_grpc_client_is_told_resource_exhausted_without_a_body() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::to(app);
    keep(&mesh.back, app.port(), vec![rule(vec![], Some(limit(1, None)))]);
    let mut client = Http2::connect(mesh.front.outbound).await;
    let call = || {
        let mut request = post("/shop.Back/Call", "");
        request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        request
    };
    assert_eq!(client.send(call()).await.unwrap().status, 200);
    let got = client.send(call()).await.unwrap();
    assert_eq!((got.status.as_u16(), header(&got, "grpc-status"), got.reason()), (200, "8", "rate-limited"));
    assert!(got.body.is_empty() && !header(&got, "retry-after").is_empty());
    assert_eq!(seen.requests(), 1);
}

#[tokio::test]
async fn callers_of_different_identity_have_a_bucket_each_and_those_without_share_one() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let other = Node::start(&mesh.ca, "other");
    other.serve(service(&[mesh.back.inbound], Some("back")));
    keep(&mesh.back, app.port(), vec![rule(vec![], Some(limit(1, Some(Key::Identity(true)))))]);
    for caller in [mesh.front.outbound, other.outbound, mesh.back.inbound] {
        assert_eq!(fetch(caller, get("/")).await.status, 200);
    }
    for caller in [mesh.front.outbound, other.outbound, mesh.back.inbound] {
        assert_eq!(fetch(caller, get("/")).await.status, 429);
    }
}

#[tokio::test]
async fn headers_paths_and_addresses_tell_buckets_apart() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let by = |key| keep(&mesh.back, app.port(), vec![rule(vec![], Some(limit(1, Some(key))))]);
    let user = |name: &'static str| {
        let mut request = get("/");
        request.headers_mut().insert("x-user", HeaderValue::from_static(name));
        request
    };
    let ask = async |request| fetch(mesh.front.outbound, request).await.status.as_u16();
    by(Key::Header("x-user".into()));
    assert_eq!([ask(user("a")).await, ask(user("b")).await, ask(user("a")).await], [200, 200, 429]);
    assert_eq!([ask(get("/")).await, ask(get("/")).await], [200, 429]);
    by(Key::PathTemplate("/users/{id}".into()));
    let paths = ["/users/1", "/users/2?a=b", "/users/%31", "/elsewhere", "/users/1/2"];
    let mut got = Vec::new();
    for path in paths {
        got.push(ask(get(path)).await);
    }
    assert_eq!(got, [200, 200, 429, 200, 429]);
    by(Key::SourceIp(true));
    assert_eq!([ask(get("/")).await, ask(get("/")).await], [200, 429]);
}

#[tokio::test]
async fn a_probe_of_the_kubelet_is_never_limited() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let port = app.port();
    let rules = v1::InboundRules {
        port: port.into(),
        service: SERVICE.into(),
        rules: vec![rule(vec![], Some(limit(1, None)))],
        ..Default::default()
    };
    mesh.back.workload("back", |own| {
        own.inbound_rules = vec![rules];
        own.probes =
            vec![v1::Probe { port: port.into(), kind: Some(v1::probe::Kind::HttpPath("/healthz".into())) }];
    });
    for _ in 0..5 {
        assert_eq!(fetch(mesh.back.inbound, get("/healthz")).await.status, 200);
    }
    assert_eq!(fetch(mesh.back.inbound, get("/")).await.status, 200);
    assert_eq!(fetch(mesh.back.inbound, get("/")).await.status, 429);
    // The path alone is not enough: from inside of the mesh it is a request like any other.
    assert_eq!(fetch(mesh.front.outbound, get("/healthz")).await.status, 429);
}

#[tokio::test]
async fn opaque_bytes_are_no_way_around_a_limit() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::with(app, |service| service.protocol = v1::Protocol::Tcp.into());
    let request = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    keep(&mesh.back, app.port(), vec![rule(vec![], Some(limit(1, None)))]);
    // HTTP in a tunnel is still counted, and what is no HTTP is refused.
    assert!(raw(mesh.front.outbound, request, false).await.starts_with("HTTP/1.1 200"));
    assert!(raw(mesh.front.outbound, request, false).await.starts_with("HTTP/1.1 429"));
    assert_eq!(raw(mesh.front.outbound, b"get / HTTP/1.1\nhost: a\n\n", true).await, "");
    assert_eq!(raw(mesh.back.inbound, b"\x00\x01\x02 GET / HTTP/1.1\r\n\r\n", true).await, "");
    assert_eq!(seen.requests(), 1);
    let refused = "weft_refusals_total{direction=\"inbound\",reason=\"bad-request\"} 2";
    assert!(mesh.back.metrics.encode().contains(refused), "{}", mesh.back.metrics.encode());
    mesh.back.redirect(Direction::Inbound, app);
}

#[tokio::test]
async fn a_bucket_fills_again_at_its_rate_and_outlives_an_update() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let quick = |requests| v1::RateLimit { requests, per_ms: 1000, burst: 1, ..Default::default() };
    keep(&mesh.back, app.port(), vec![rule(vec![], Some(quick(2)))]);
    let mut client = Http1::connect(mesh.front.outbound).await;
    let begin = Instant::now();
    let mut served = 0;
    while begin.elapsed() < Duration::from_millis(2200) {
        served += u32::from(client.send(get("/")).await.unwrap().status == 200);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let most = 1 + u32::try_from(begin.elapsed().as_millis() / 500).unwrap();
    assert!((4..=most).contains(&served), "{served} in {:?}", begin.elapsed());
    keep(&mesh.back, app.port(), vec![rule(vec![], Some(limit(1, None)))]);
    // The bucket is nearly empty, and fills in an hour now.
    let statuses = [client.send(get("/")).await.unwrap().status, client.send(get("/")).await.unwrap().status];
    assert!(statuses.iter().any(|status| *status == 429), "{statuses:?}");
}

#[tokio::test]
async fn a_limit_for_certain_callers_or_by_specificity_is_kept_for_just_those() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let from = |account: &str| v1::Match {
        source: Some(v1::SourceMatch {
            identities: vec![crate::world::identity(account).to_string()],
            namespaces: Vec::new(),
        }),
        ..Default::default()
    };
    let get = || fetch(mesh.front.outbound, get("//wide/./deep"));
    for (account, second) in [("other", 200), ("front", 429)] {
        keep(&mesh.back, app.port(), vec![rule(vec![from(account)], Some(limit(1, None)))]);
        assert_eq!(get().await.status, 200);
        assert_eq!(get().await.status.as_u16(), second, "{account}");
    }
    let under = |prefix: &str| v1::Match {
        path: Some(v1::r#match::Path::PathPrefix(prefix.into())),
        ..Default::default()
    };
    let rules = vec![
        rule(vec![under("/wide")], None),
        v1::InboundRule { name: "shop/deep".into(), ..rule(vec![under("/wide/deep")], Some(limit(1, None))) },
    ];
    for (precedence, second) in [(v1::Precedence::Written, 200), (v1::Precedence::Specificity, 429)] {
        let rules = v1::InboundRules {
            port: app.port().into(),
            service: SERVICE.into(),
            rules: rules.clone(),
            precedence: precedence.into(),
        };
        mesh.back.workload("back", |own| own.inbound_rules = vec![rules]);
        assert_eq!(get().await.status, 200);
        assert_eq!(get().await.status.as_u16(), second, "{precedence:?}");
    }
}
