//! Distributed tracing over real sockets: what goes on to the application, and what a collector is told.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request};
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_api::v1;

use crate::apps;
use crate::clients::{Http1, Http2, fetch, get};
use crate::collector::{CLIENT, SERVER, Span, collector, collector_that};
use crate::world::{Ca, Mesh, Node, service};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

fn with(lines: &[(&'static str, &str)]) -> Request<Full<Bytes>> {
    let mut request = get("/cart/7?secret=1");
    for (name, value) in lines {
        request.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
    }
    request
}

/// A header as the application has seen it.
fn seen(echo: &str, name: &str) -> Option<String> {
    let found =
        echo.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).collect::<Vec<_>>();
    assert!(found.len() <= 1, "{name}: {found:?}");
    found.first().map(|value| (*value).to_owned())
}

fn one(
    node_to: &[SocketAddr],
    collector: SocketAddr,
    sampling: &str,
    change: impl FnOnce(&mut v1::Service),
) -> Node {
    let node = Node::traced(&Ca::new(), "front", collector, sampling);
    let mut service = service(node_to, None);
    change(&mut service);
    node.serve(service);
    node
}

fn of(spans: &[Span], kind: u64) -> &Span {
    spans.iter().find(|span| span.kind == kind).unwrap()
}

async fn counted(node: &Node, line: &str) -> bool {
    for _ in 0..500 {
        if node.metrics.encode().contains(line) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

#[tokio::test]
async fn two_hops_are_one_trace_and_each_is_the_others_parent() {
    let ((app, _), (told, collected)) = (apps::echo().await, collector().await);
    let mesh = Mesh::traced(app, told, "100", |_| {});
    let got = fetch(mesh.front.outbound, get("/cart/7?secret=1")).await;
    let spans = collected.wait(2).await;
    let (client, server) = (of(&spans, CLIENT), of(&spans, SERVER));
    assert_eq!((&client.trace, &client.parent), (&server.trace, &String::new()));
    assert_eq!(server.parent, client.id);
    assert_eq!(seen(&got.text(), "traceparent").unwrap(), format!("00-{}-{}-03", server.trace, server.id));
    assert_eq!((client.service.as_str(), server.service.as_str()), ("front", "back"));
    assert_eq!(
        (client.resource["k8s.pod.name"].as_str(), client.resource["k8s.namespace.name"].as_str()),
        ("front-1", "shop")
    );
    assert_eq!(client.name, "GET default");
    for span in [client, server] {
        assert_eq!(span.attributes["url.path"], "/cart/7");
        assert_eq!(span.attributes["http.response.status_code"], "200");
        assert_eq!(span.attributes["weft.mtls"], "true");
        assert!(span.status.is_none() && span.end >= span.start);
        assert!(!format!("{span:?}").contains("secret"));
    }
    assert_eq!(client.attributes["weft.peer.identity"], "spiffe://cluster.local/ns/shop/sa/back");
    assert_eq!(server.attributes["weft.peer.identity"], "spiffe://cluster.local/ns/shop/sa/front");
    assert_eq!(client.attributes["network.peer.address"], "127.0.0.1");
    for node in [&mesh.front, &mesh.back] {
        node.log.find(|line| line["trace_id"] == client.trace.as_str()).await;
        assert!(counted(node, "weft_trace_spans_total{result=\"sent\"} 1\n").await);
    }
}

#[tokio::test]
async fn http2_carries_a_trace_as_well() {
    let ((app, _), (told, collected)) = (apps::echo().await, collector().await);
    let mesh = Mesh::traced(app, told, "100", |_| {});
    let mut client = Http2::connect(mesh.front.outbound).await;
    for _ in 0..3 {
        assert_eq!(client.send(get("/")).await.unwrap().status, 200);
    }
    let spans = collected.wait(6).await;
    for server in spans.iter().filter(|span| span.kind == SERVER) {
        let client = spans.iter().find(|span| span.id == server.parent).unwrap();
        assert_eq!((client.kind, &client.trace), (CLIENT, &server.trace));
        assert_eq!(server.attributes["network.protocol.version"], "2");
    }
}

#[tokio::test]
async fn a_callers_own_decision_is_followed() {
    let ((app, _), (told, collected)) = (apps::echo().await, collector().await);
    let mesh = Mesh::traced(app, told, "0", |_| {});
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let got =
        fetch(mesh.front.outbound, with(&[("traceparent", &parent), ("tracestate", "congo=t61rcWkgMzE")]))
            .await;
    let spans = collected.wait(2).await;
    assert!(spans.iter().all(|span| span.trace == TRACE && span.state == "congo=t61rcWkgMzE"));
    assert_eq!(of(&spans, CLIENT).parent, CALLER);
    assert_eq!(seen(&got.text(), "tracestate").unwrap(), "congo=t61rcWkgMzE");

    let mesh = Mesh::traced(app, told, "100", |_| {});
    let parent = format!("00-{TRACE}-{CALLER}-00");
    let got = fetch(mesh.front.outbound, with(&[("traceparent", &parent), ("tracestate", "a=1")])).await;
    assert_eq!(seen(&got.text(), "traceparent").unwrap(), parent);
    mesh.back.log.find(|line| line["trace_id"] == TRACE).await;
    // Whoever would have been told of it is told of the next one.
    fetch(mesh.front.outbound, get("/")).await;
    let spans = collected.wait(4).await;
    assert_eq!(spans.iter().filter(|span| span.trace == TRACE).count(), 2, "{spans:#?}");
}

#[tokio::test]
async fn that_nobody_is_told_is_decided_once_for_all_hops() {
    let ((app, _), (told, collected)) = (apps::echo().await, collector().await);
    let ca = Ca::new();
    let (front, back) = (Node::traced(&ca, "front", told, "0"), Node::traced(&ca, "back", told, "100"));
    back.redirect(weft_proxy::record::Direction::Inbound, app);
    front.serve(service(&[back.inbound], Some("back")));
    let got = fetch(front.outbound, get("/")).await;
    assert!(seen(&got.text(), "traceparent").unwrap().ends_with("-02"));
    fetch(front.outbound, with(&[("traceparent", &format!("00-{TRACE}-{CALLER}-01"))])).await;
    let spans = collected.wait(2).await;
    assert!(spans.iter().all(|span| span.trace == TRACE), "{spans:#?}");
}

#[tokio::test]
async fn what_cannot_be_read_is_a_new_trace() {
    let ((app, _), (told, collected)) = (apps::echo().await, collector().await);
    let node = one(&[app], told, "100", |_| {});
    let bad = format!("00-{}-{CALLER}-01", TRACE.to_uppercase());
    let twice = format!("00-{TRACE}-{CALLER}-01");
    for lines in [
        &[("traceparent", bad.as_str()), ("tracestate", "a=1")][..],
        &[("traceparent", &twice), ("traceparent", &twice)],
    ] {
        let got = fetch(node.outbound, with(lines)).await;
        let parent = seen(&got.text(), "traceparent").unwrap();
        assert!(
            !parent.to_lowercase().contains(TRACE) && seen(&got.text(), "tracestate").is_none(),
            "{}",
            got.text()
        );
    }
    assert!(collected.wait(2).await.iter().all(|span| span.parent.is_empty()));
}

#[tokio::test]
async fn b3_goes_on_as_b3() {
    let ((app, _), (told, collected)) = (apps::echo().await, collector().await);
    let mesh = Mesh::traced(app, told, "0", |_| {});
    let got = fetch(mesh.front.outbound, with(&[("b3", &format!("{TRACE}-{CALLER}-1"))])).await;
    let spans = collected.wait(2).await;
    let (client, server) = (of(&spans, CLIENT), of(&spans, SERVER));
    assert_eq!((client.parent.as_str(), &server.parent, server.trace.as_str()), (CALLER, &client.id, TRACE));
    assert_eq!(seen(&got.text(), "b3").unwrap(), format!("{TRACE}-{}-1-{}", server.id, client.id));
    assert_eq!(seen(&got.text(), "traceparent"), None);
    let several = [("x-b3-traceid", &TRACE[16..]), ("x-b3-spanid", CALLER), ("x-b3-sampled", "1")];
    let got = fetch(mesh.front.outbound, with(&several)).await;
    let spans = collected.wait(4).await;
    assert_eq!(spans[2].trace, format!("{}{}", "0".repeat(16), &TRACE[16..]));
    assert_eq!(seen(&got.text(), "x-b3-traceid").unwrap(), TRACE[16..]);
    assert_eq!(seen(&got.text(), "x-b3-spanid").unwrap(), of(&spans[2..], SERVER).id);
}

#[tokio::test]
async fn without_tracing_headers_pass_untouched_and_nothing_is_made() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let lines =
        [("traceparent", "not one at all"), ("tracestate", "=,="), ("b3", "x"), ("x-b3-sampled", "maybe")];
    let got = fetch(mesh.front.outbound, with(&lines)).await;
    for (name, value) in lines {
        assert_eq!(seen(&got.text(), name).unwrap(), value);
    }
    let got = fetch(mesh.front.outbound, get("/none")).await;
    assert_eq!((seen(&got.text(), "traceparent"), seen(&got.text(), "b3")), (None, None));
    let line = mesh.back.log.find(|line| line["path"] == "/none").await;
    assert!(line.get("trace_id").is_none());
    assert!(!mesh.front.metrics.encode().contains("weft_trace_spans_total{"));
}

#[tokio::test]
async fn retries_are_events_and_what_fails_is_an_error_with_its_reason() {
    let (busy, _) = apps::http(|_| async { apps::status(503) }).await;
    let ((well, _), (told, collected)) = (apps::echo().await, collector().await);
    let node = one(&[busy, well], told, "100", |service| {
        service.routes[0].retry = Some(v1::Retry {
            attempts: 2,
            status_codes: vec![503],
            backoff_base_ms: 1,
            backoff_max_ms: 1,
            budget_percent: 100,
            budget_min_per_second: 1000,
            ..Default::default()
        });
    });
    let mut client = Http1::connect(node.outbound).await;
    for _ in 0..4 {
        assert_eq!(client.send(get("/")).await.unwrap().status, 200);
    }
    let spans = collected.wait(4).await;
    let retried = spans.iter().find(|span| !span.events.is_empty()).unwrap();
    let (name, attributes) = &retried.events[0];
    assert_eq!((name.as_str(), attributes["http.response.status_code"].as_str()), ("retry", "503"));
    assert_eq!(attributes["network.peer.port"], busy.port().to_string());
    assert_eq!((retried.attributes["weft.retries"].as_str(), &retried.status), ("1", &None));
    assert_eq!(retried.attributes["network.peer.port"], well.port().to_string());

    let node = one(&[apps::nobody().await], told, "100", |_| {});
    assert_eq!(fetch(node.outbound, get("/")).await.status, 503);
    let failed = collected.wait(5).await.pop().unwrap();
    assert_eq!(failed.attributes["weft.reason"], "connect-failed");
    assert_eq!(failed.status, Some((2, "connect-failed".into())));
}

#[tokio::test]
async fn a_websockets_span_ends_when_it_does() {
    let ((app, _), (told, collected)) = (apps::websocket().await, collector().await);
    let mesh = Mesh::traced(app, told, "100", |_| {});
    let mut stream = TcpStream::connect(mesh.front.outbound).await.unwrap();
    stream
        .write_all(b"GET /chat HTTP/1.1\r\nhost: back\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let began = Instant::now();
    tokio::time::sleep(Duration::from_millis(300)).await;
    stream.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    stream.read_exact(&mut echo).await.unwrap();
    assert!(collected.all().is_empty(), "it has not ended");
    let lasted = began.elapsed();
    drop(stream);
    let spans = collected.wait(2).await;
    for span in &spans {
        assert_eq!(span.attributes["http.response.status_code"], "101");
        assert!(u128::from(span.end - span.start) >= lasted.as_nanos(), "{span:?}");
    }
}

#[tokio::test]
async fn a_collector_that_hangs_costs_spans_and_no_request() {
    // Takes connections, and says nothing.
    let hangs = apps::tcp(|stream| async move {
        let _open = stream;
        std::future::pending::<()>().await;
    })
    .await;
    let (app, seen) = apps::echo().await;
    let node = one(&[app], hangs, "100", |_| {});
    let mut client = Http1::connect(node.outbound).await;
    let all = weft_proxy::trace::export::WAITING + 1000;
    for _ in 0..all {
        assert_eq!(client.send(get("/")).await.unwrap().status, 200);
    }
    assert_eq!(seen.requests(), all);
    assert!(counted(&node, "weft_trace_spans_total{result=\"dropped\"}").await, "{}", node.metrics.encode());
}

#[tokio::test]
async fn a_collector_that_is_gone_costs_spans_and_no_request() {
    let (app, _) = apps::echo().await;
    let node = one(&[app], apps::nobody().await, "100", |_| {});
    for _ in 0..3 {
        assert_eq!(fetch(node.outbound, get("/")).await.status, 200);
    }
    assert!(counted(&node, "weft_trace_spans_total{result=\"failed\"}").await, "{}", node.metrics.encode());
}

#[tokio::test]
async fn what_a_collector_cannot_take_now_it_is_told_again_and_what_it_refuses_is_not() {
    let (app, _) = apps::echo().await;
    let (told, collected) = collector_that(|call| apps::status(if call == 0 { 503 } else { 200 })).await;
    let node = one(&[app], told, "100", |_| {});
    fetch(node.outbound, get("/")).await;
    assert_eq!(collected.wait(1).await.len(), 1);
    assert!(counted(&node, "weft_trace_spans_total{result=\"sent\"} 1\n").await);

    let (told, collected) = collector_that(|_| apps::status(400)).await;
    let node = one(&[app], told, "100", |_| {});
    fetch(node.outbound, get("/")).await;
    assert!(counted(&node, "weft_trace_spans_total{result=\"failed\"} 1\n").await);
    assert!(collected.all().is_empty());

    // partial_success { rejected_spans: 1 }
    let (told, _) = collector_that(|_| apps::text(&b"\x0a\x02\x08\x01"[..])).await;
    let node = one(&[app], told, "100", |_| {});
    fetch(node.outbound, get("/")).await;
    assert!(counted(&node, "weft_trace_spans_total{result=\"rejected\"} 1\n").await);
}

#[tokio::test]
async fn about_as_many_are_told_of_as_was_said() {
    let ((app, _), (told, collected)) = (apps::echo().await, collector().await);
    let node = one(&[app], told, "10", |_| {});
    let mut client = Http1::connect(node.outbound).await;
    let mut sampled = 0;
    for _ in 0..1000 {
        let echo = client.send(get("/")).await.unwrap().text();
        sampled += usize::from(seen(&echo, "traceparent").unwrap().ends_with("-03"));
    }
    // Five standard deviations.
    assert!((50..=150).contains(&sampled), "{sampled} of 1000");
    assert_eq!(collected.wait(sampled).await.len(), sampled);
}
