//! What a rule does to requests besides choosing where they go: header changes, rewrites, answers, faults, CORS.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request};
use http_body_util::Full;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use weft_api::v1::{self, abort, path_change};

use crate::apps;
use crate::clients::{Got, Http1, Http2, fetch, get, raw};
use crate::world::{Mesh, Node, plain};

/// Requests whose path has the prefix `/rule` fall under a rule that does this.
fn rule(filters: v1::Filters) -> impl FnOnce(&mut v1::Service) {
    move |service| {
        let path = Some(v1::r#match::Path::PathPrefix("/rule".into()));
        service.routes.insert(
            0,
            v1::Route {
                name: "policy/rule".into(),
                matches: vec![v1::Match { path, ..Default::default() }],
                filters: Some(filters),
                ..service.routes[0].clone()
            },
        );
    }
}

fn lines(pairs: &[(&str, &str)]) -> Vec<v1::HeaderLine> {
    pairs
        .iter()
        .map(|(name, value)| v1::HeaderLine { name: (*name).into(), value: (*value).into() })
        .collect()
}

fn path(change: path_change::Change) -> Option<v1::PathChange> {
    Some(v1::PathChange { change: Some(change) })
}

fn with(mut request: Request<Full<Bytes>>, headers: &[(&'static str, &'static str)]) -> Request<Full<Bytes>> {
    for (name, value) in headers {
        request.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    request
}

fn header<'a>(got: &'a Got, name: &str) -> &'a str {
    got.headers.get(name).map_or("", |value| value.to_str().unwrap())
}

async fn node(filters: v1::Filters) -> (Node, apps::Seen) {
    let (app, seen) = apps::echo().await;
    (plain(&[app], rule(filters)), seen)
}

#[tokio::test]
async fn headers_are_changed_both_ways_and_only_by_the_rule() {
    let (app, _) = apps::http(|request| async move {
        let mut response = apps::text(format!("{:?}", request.headers()));
        response.headers_mut().insert("server", HeaderValue::from_static("app"));
        response.headers_mut().insert("x-kept", HeaderValue::from_static("1"));
        response
    })
    .await;
    let mesh = Mesh::with(
        app,
        rule(v1::Filters {
            request: Some(v1::HeaderChanges {
                remove: vec!["x-secret".into()],
                set: lines(&[("x-env", "test")]),
                add: lines(&[("x-via", "weft")]),
            }),
            response: Some(v1::HeaderChanges {
                remove: vec!["server".into()],
                set: lines(&[("cache-control", "no-store")]),
                ..Default::default()
            }),
            ..Default::default()
        }),
    );
    let sent = [("x-secret", "1"), ("x-env", "prod"), ("x-via", "client"), ("connection", "x-env")];
    let got = fetch(mesh.front.outbound, with(get("/rule"), &sent)).await;
    let text = got.text();
    assert!(!text.contains("x-secret") && !text.contains("prod"), "{text}");
    assert!(text.contains(r#""x-env": "test""#), "not even `connection` takes it away: {text}");
    assert!(text.contains(r#""x-via": "client""#) && text.contains(r#""x-via": "weft""#), "{text}");
    assert!(!got.headers.contains_key("server"));
    assert_eq!(got.headers["cache-control"], "no-store");
    assert_eq!(got.headers["x-kept"], "1");
    let other = fetch(mesh.front.outbound, with(get("/other"), &sent)).await;
    assert!(other.text().contains("x-secret") && other.headers.contains_key("server"));
}

#[tokio::test]
async fn host_and_path_are_rewritten_in_http1_and_http2_and_the_query_stays() {
    let rewrite = |change| v1::Filters {
        rewrite: Some(v1::Rewrite { host: "inner.example:81".into(), path: path(change) }),
        ..Default::default()
    };
    let (node, _) = node(rewrite(path_change::Change::Prefix("/v2".into()))).await;
    let got = fetch(node.outbound, get("/rule/a%20b?c=d")).await.text();
    assert!(got.starts_with("GET /v2/a%20b?c=d\n") && got.contains("host: inner.example:81\n"), "{got}");
    let mut client = Http2::connect(node.outbound).await;
    let got = client.send(get("/rule?x")).await.unwrap().text();
    assert!(got.starts_with("GET http://inner.example:81/v2?x\n"), "{got}");
    let absolute = raw(
        node.outbound,
        b"GET http://outer/rule/x HTTP/1.1\r\nhost: outer\r\nconnection: close\r\n\r\n",
        false,
    )
    .await;
    assert!(absolute.contains("GET /v2/x\n") && absolute.contains("host: inner.example:81\n"), "{absolute}");
    // What was matched in its normalised form is rewritten in it.
    let got = fetch(node.outbound, get("/x/..//%72ule/y")).await.text();
    assert!(got.starts_with("GET /v2/y\n"), "{got}");

    let regex = path_change::Change::Regex(v1::PathSubstitution {
        pattern: "/rule/([^/]+)/(.*)".into(),
        substitution: "/$2/by/$1".into(),
    });
    let (node, _) = self::node(rewrite(regex)).await;
    let got = fetch(node.outbound, get("/rule/ann/items?q")).await.text();
    assert!(got.starts_with("GET /items/by/ann?q\n"), "{got}");
    let got = fetch(node.outbound, get("/rule/ann?q")).await.text();
    assert!(got.starts_with("GET /rule/ann?q\n"), "where it does not fit, the path stays: {got}");
}

#[tokio::test]
async fn a_path_that_no_rule_rewrites_is_sent_as_it_was_written() {
    let (node, _) =
        node(v1::Filters { request: Some(v1::HeaderChanges::default()), ..Default::default() }).await;
    for path in ["/rule//a/../%62", "/other/%2e/x"] {
        let got = fetch(node.outbound, get(path)).await.text();
        assert!(got.starts_with(&format!("GET {path}\n")), "{got}");
    }
}

#[tokio::test]
async fn a_redirect_sends_the_client_elsewhere_and_asks_no_application() {
    let (node, seen) = node(v1::Filters {
        redirect: Some(v1::Redirect {
            scheme: "https".into(),
            host: "shop.example".into(),
            path: path(path_change::Change::Prefix("/new".into())),
            status: 308,
            ..Default::default()
        }),
        response: Some(v1::HeaderChanges {
            set: lines(&[("cache-control", "no-store")]),
            ..Default::default()
        }),
        ..Default::default()
    })
    .await;
    let got = fetch(node.outbound, with(get("/rule/a?b=c"), &[("x-request-id", "moved")])).await;
    assert_eq!((got.status.as_u16(), header(&got, "location")), (308, "https://shop.example/new/a?b=c"));
    assert_eq!(got.headers["cache-control"], "no-store");
    assert_eq!(got.headers["x-request-id"], "moved");
    assert_eq!(got.reason(), "", "it is no refusal");
    assert_eq!(seen.requests(), 0);
    let line = node.log.find(|line| line["request_id"] == "moved").await;
    assert_eq!(
        (&line["code"], &line["route"], &line["action"]),
        (&308.into(), &"policy/rule".into(), &"redirect".into())
    );
}

#[tokio::test]
async fn a_response_of_the_rule_is_whole_in_both_versions_and_has_no_body_for_head() {
    let (node, seen) = node(v1::Filters {
        response_instead: Some(v1::DirectResponse {
            status: 503,
            body: r#"{"closed":true}"#.into(),
            content_type: "application/json".into(),
        }),
        ..Default::default()
    })
    .await;
    let mut two = Http2::connect(node.outbound).await;
    for got in [fetch(node.outbound, get("/rule")).await, two.send(get("/rule")).await.unwrap()] {
        assert_eq!((got.status.as_u16(), got.text().as_str()), (503, r#"{"closed":true}"#));
        assert_eq!((header(&got, "content-type"), got.reason()), ("application/json", ""));
    }
    let head = || {
        Request::builder()
            .method(Method::HEAD)
            .uri("/rule")
            .header("host", "back")
            .body(Full::default())
            .unwrap()
    };
    for got in [fetch(node.outbound, head()).await, two.send(head()).await.unwrap()] {
        assert_eq!((got.status.as_u16(), got.body.len(), header(&got, "content-length")), (503, 0, "15"));
    }
    assert_eq!(seen.requests(), 0);
    assert_eq!(fetch(node.outbound, get("/other")).await.status, 200);
}

fn abort(with: abort::With) -> v1::Filters {
    v1::Filters {
        fault: Some(v1::Fault {
            abort: Some(v1::Abort { with: Some(with), percent: 100 }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn grpc(path: &str) -> Request<Full<Bytes>> {
    with(
        crate::clients::post(path, Bytes::from_static(&[0; 5])),
        &[("content-type", "application/grpc"), ("te", "trailers")],
    )
}

#[tokio::test]
async fn an_abort_fails_with_its_status_and_says_that_it_is_made_up() {
    let (node, seen) = node(abort(abort::With::Status(418))).await;
    let got = fetch(node.outbound, with(get("/rule"), &[("x-request-id", "aborted")])).await;
    assert_eq!((got.status.as_u16(), got.reason()), (418, "fault-injected"));
    let line = node.log.find(|line| line["request_id"] == "aborted").await;
    assert_eq!((&line["code"], &line["reason"]), (&418.into(), &"fault-injected".into()));
    let got = Http2::connect(node.outbound).await.send(grpc("/rule/Call")).await.unwrap();
    assert_eq!(
        (got.status.as_u16(), header(&got, "grpc-status"), got.reason()),
        (200, "2", "fault-injected")
    );
    assert_eq!(seen.requests(), 0);
    assert_eq!(fetch(node.outbound, get("/other")).await.status, 200);
}

#[tokio::test]
async fn a_grpc_abort_concerns_only_grpc() {
    let (node, seen) = node(abort(abort::With::GrpcStatus(8))).await;
    assert_eq!(fetch(node.outbound, get("/rule")).await.status, 200);
    let got = Http2::connect(node.outbound).await.send(grpc("/rule/Call")).await.unwrap();
    assert_eq!((header(&got, "grpc-status"), got.reason()), ("8", "fault-injected"));
    assert_eq!(seen.requests(), 1);
}

fn delay(ms: u64) -> v1::Filters {
    v1::Filters {
        fault: Some(v1::Fault {
            delay: Some(v1::Delay { duration_ms: ms, percent: 100 }),
            when: Some(v1::FaultCondition { header: "x-chaos".into(), value: Some("slow".into()) }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_delay_holds_back_requests_with_the_header_and_no_others() {
    let (node, _) = node(delay(300)).await;
    let began = Instant::now();
    let chaos = [("x-chaos", "slow"), ("x-request-id", "slow")];
    assert_eq!(fetch(node.outbound, with(get("/rule"), &chaos)).await.status, 200);
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_eq!(node.log.find(|line| line["request_id"] == "slow").await["action"], "delay");
    let other = [("x-chaos", "fast"), ("x-request-id", "fast")];
    assert_eq!(fetch(node.outbound, with(get("/rule"), &other)).await.status, 200);
    assert!(node.log.find(|line| line["request_id"] == "fast").await.get("action").is_none());
}

#[tokio::test]
async fn a_delay_ends_with_the_rules_timeout_and_with_the_client() {
    let (app, seen) = apps::echo().await;
    let node = plain(&[app], |service| {
        rule(delay(60_000))(service);
        service.routes[0].timeout_ms = 200;
    });
    let got = fetch(node.outbound, with(get("/rule"), &[("x-chaos", "slow")])).await;
    assert_eq!((got.status.as_u16(), got.reason()), (504, "request-timeout"));

    let (node, seen_too) = self::node(delay(60_000)).await;
    let call = with(grpc("/rule/Call"), &[("x-chaos", "slow"), ("grpc-timeout", "200m")]);
    let got = Http2::connect(node.outbound).await.send(call).await.unwrap();
    assert_eq!(header(&got, "grpc-status"), "4", "a call's own deadline ends it too");
    let mut stream = TcpStream::connect(node.outbound).await.unwrap();
    let request = b"GET /rule HTTP/1.1\r\nhost: a\r\nx-chaos: slow\r\nx-request-id: left\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let client = Http2::connect(node.outbound).await;
    let mut second = client.clone();
    let waiting = with(get("/rule"), &[("x-chaos", "slow"), ("x-request-id", "reset")]);
    let waiting = tokio::spawn(async move { second.send(waiting).await.map(|got| got.status) });
    sleep(Duration::from_millis(200)).await;
    drop(stream);
    waiting.abort();
    for id in ["left", "reset"] {
        let line =
            timeout(Duration::from_secs(10), node.log.find(|line| line["request_id"] == id)).await.unwrap();
        assert_eq!((&line["code"], &line["action"]), (&0.into(), &"delay".into()), "{id}");
    }
    assert_eq!(seen.requests() + seen_too.requests(), 0);
}

fn cors(origins: &[&str], credentials: bool) -> v1::Filters {
    let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    v1::Filters {
        cors: Some(v1::Cors {
            allow_origins: names(origins),
            allow_methods: names(&["PUT"]),
            allow_headers: names(&["x-a"]),
            expose_headers: names(&["x-seen"]),
            max_age_s: 600,
            allow_credentials: credentials,
        }),
        ..Default::default()
    }
}

fn preflight(origin: &'static str) -> Request<Full<Bytes>> {
    let request = Request::builder()
        .method(Method::OPTIONS)
        .uri("/rule")
        .header("host", "back")
        .body(Full::default())
        .unwrap();
    with(request, &[("origin", origin), ("access-control-request-method", "PUT")])
}

#[tokio::test]
async fn a_preflight_is_answered_by_the_proxy() {
    let (node, seen) = node(cors(&["https://*.shop.example"], true)).await;
    let got = fetch(node.outbound, preflight("https://www.shop.example")).await;
    assert_eq!((got.status.as_u16(), got.body.len()), (204, 0));
    for (name, value) in [
        ("access-control-allow-origin", "https://www.shop.example"),
        ("access-control-allow-credentials", "true"),
        ("access-control-allow-methods", "PUT"),
        ("access-control-allow-headers", "x-a"),
        ("access-control-max-age", "600"),
        ("vary", "origin"),
    ] {
        assert_eq!(got.headers[name], value, "{name}");
    }
    let got = fetch(node.outbound, preflight("https://evil.example")).await;
    assert_eq!((got.status.as_u16(), got.reason()), (403, "cors-refused"));
    assert!(!got.headers.contains_key("access-control-allow-origin"));
    assert_eq!(seen.requests(), 0);
}

#[tokio::test]
async fn responses_and_refusals_say_which_pages_may_read_them() {
    let (app, _) = apps::http(|_| async {
        let mut response = apps::text("hello");
        response
            .headers_mut()
            .insert("access-control-allow-origin", HeaderValue::from_static("https://evil.example"));
        response.headers_mut().insert("vary", HeaderValue::from_static("accept"));
        response
    })
    .await;
    let node = plain(&[app], rule(cors(&["https://shop.example"], false)));
    let got = fetch(node.outbound, with(get("/rule"), &[("origin", "https://shop.example")])).await;
    assert_eq!(
        (got.status.as_u16(), header(&got, "access-control-allow-origin")),
        (200, "https://shop.example")
    );
    let vary: Vec<_> = got.headers.get_all("vary").iter().collect();
    assert_eq!(vary, ["accept", "origin"]);
    for origin in [&[("origin", "https://evil.example")][..], &[]] {
        let got = fetch(node.outbound, with(get("/rule"), origin)).await;
        assert_eq!(got.status, 200, "CORS keeps nobody from asking");
        assert!(!got.headers.contains_key("access-control-allow-origin") && got.headers.contains_key("vary"));
    }
    // Without an endpoint the proxy answers: a page must see that too.
    let node = plain(&[], rule(cors(&["https://shop.example"], false)));
    let got = fetch(node.outbound, with(get("/rule"), &[("origin", "https://shop.example")])).await;
    assert_eq!((got.status.as_u16(), got.reason()), (503, "no-healthy-endpoint"));
    assert_eq!(got.headers["access-control-allow-origin"], "https://shop.example");
}

#[tokio::test]
async fn a_rewritten_and_changed_websocket_still_changes_over() {
    let app = apps::tcp(|mut stream| async move {
        let head = apps::read_request(&mut stream).await.unwrap();
        assert!(head.starts_with("GET /ws HTTP/1.1") && head.contains("x-env: test"), "{head}");
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nserver: app\r\n\r\nhi";
        stream.write_all(answer).await.unwrap();
        let _ = stream.shutdown().await;
    })
    .await;
    let node = plain(
        &[app],
        rule(v1::Filters {
            request: Some(v1::HeaderChanges { set: lines(&[("x-env", "test")]), ..Default::default() }),
            response: Some(v1::HeaderChanges { remove: vec!["server".into()], ..Default::default() }),
            rewrite: Some(v1::Rewrite {
                host: String::new(),
                path: path(path_change::Change::Full("/ws".into())),
            }),
            ..Default::default()
        }),
    );
    let request = b"GET /rule HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let got = raw(node.outbound, request, false).await;
    assert!(
        got.starts_with("HTTP/1.1 101") && got.ends_with("\r\n\r\nhi") && !got.contains("server"),
        "{got}"
    );
}

#[tokio::test]
async fn a_rule_for_other_callers_does_not_concern_this_one() {
    let from = |account: &str| v1::Match {
        source: Some(v1::SourceMatch {
            identities: vec![crate::world::identity(account).to_string()],
            namespaces: Vec::new(),
        }),
        ..Default::default()
    };
    for (account, status) in [("front", 503), ("other", 200)] {
        let (app, _) = apps::echo().await;
        let node = plain(&[app], |service| {
            rule(abort(abort::With::Status(503)))(service);
            service.routes[0].matches = vec![from(account)];
        });
        let mut client = Http1::connect(node.outbound).await;
        assert_eq!(client.send(get("/")).await.unwrap().status.as_u16(), status, "{account}");
    }
}
