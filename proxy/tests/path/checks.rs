//! Active checks over real sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Duration;

use http::HeaderMap;
use http_body_util::{BodyExt, Full};
use tokio::time::sleep;
use weft_api::v1::{self, active_check::Kind};
use weft_proxy::record::Direction;

use crate::apps;
use crate::clients::{Http1, get};
use crate::world::{Ca, Mesh, Node, identity, plain, service};

const ME: &str = "shop/front-1";

fn http(path: &str) -> Kind {
    Kind::Http(v1::HttpCheck { path: path.into(), host: "back.shop".into(), ..Default::default() })
}

/// Checks of all endpoints, often; identities are those of the endpoints.
fn checked(service: &mut v1::Service, kind: Kind, checkers: &[&str]) {
    let cluster = &mut service.clusters[0];
    cluster.active = Some(v1::ActiveCheck {
        kind: Some(kind),
        interval_ms: 50,
        timeout_ms: 2000,
        unhealthy_threshold: 2,
        healthy_threshold: 2,
        jitter_percent: 20,
        max_checkers: 1,
        ..Default::default()
    });
    cluster.checkers = checkers.iter().map(|name| (*name).to_owned()).collect();
    for endpoint in &mut cluster.endpoints {
        endpoint.check = Some(v1::EndpointCheck { identity: endpoint.identity.clone(), unhealthy: false });
    }
}

/// Waits until exactly these are unhealthy, and says why the first one is.
async fn unhealthy(node: &Node, endpoints: &[SocketAddr]) -> String {
    let mut expected: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
    expected.sort();
    for _ in 0..500 {
        let found = node.store.load().ejections();
        if found.iter().map(|e| e.endpoint.clone()).collect::<Vec<_>>() == expected {
            return found.first().map(|e| e.cause.clone()).unwrap_or_default();
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("{:?} are unhealthy, not {expected:?}", node.store.load().ejections());
}

/// Answers to checks with a status that the test sets, and counts both kinds of requests.
struct App {
    addr: SocketAddr,
    status: Arc<AtomicU16>,
    checks: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
}

async fn app() -> App {
    let (status, checks, requests) =
        (Arc::new(AtomicU16::new(200)), Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (code, one, other) = (Arc::clone(&status), Arc::clone(&checks), Arc::clone(&requests));
    let (addr, _) = apps::http(move |request| {
        let check = request.uri().path() == "/healthz";
        if check {
            assert_eq!(request.headers()["host"], "back.shop");
        }
        (if check { &one } else { &other }).fetch_add(1, Ordering::SeqCst);
        let code = if check { code.load(Ordering::SeqCst) } else { 200 };
        async move { apps::status(code) }
    })
    .await;
    App { addr, status, checks, requests }
}

#[tokio::test]
async fn an_endpoint_that_fails_its_checks_gets_no_request_until_it_passes_them_again() {
    let (sick, well) = (app().await, app().await);
    let node = plain(&[sick.addr, well.addr], |service| checked(service, http("/healthz"), &[]));
    let checking = tokio::spawn(node.checker(ME).run());
    let mut client = Http1::connect(node.outbound).await;
    sick.status.store(503, Ordering::SeqCst);
    assert_eq!(unhealthy(&node, &[sick.addr]).await, "unhealthy: status 503");
    let before = sick.requests.load(Ordering::SeqCst);
    for _ in 0..20 {
        assert_eq!(client.send(get("/")).await.unwrap().status, 200);
    }
    assert_eq!(sick.requests.load(Ordering::SeqCst), before);
    let metrics = node.metrics.encode();
    assert!(
        metrics.contains(r#"outcome="failed"}"#) && metrics.contains(r#"outcome="passed"}"#),
        "{metrics}"
    );
    assert_eq!(node.store.load().unhealthy().len(), 1);

    // Busy is neither well nor ill.
    sick.status.store(429, Ordering::SeqCst);
    let seen = sick.checks.load(Ordering::SeqCst);
    while sick.checks.load(Ordering::SeqCst) < seen + 4 {
        sleep(Duration::from_millis(10)).await;
    }
    unhealthy(&node, &[sick.addr]).await;
    sick.status.store(204, Ordering::SeqCst);
    unhealthy(&node, &[]).await;
    for _ in 0..20 {
        client.send(get("/")).await.unwrap();
    }
    assert!(sick.requests.load(Ordering::SeqCst) > before);
    checking.abort();
}

#[tokio::test]
async fn when_all_fail_their_checks_all_are_used() {
    let (one, two) = (app().await, app().await);
    let node = plain(&[one.addr, two.addr], |service| checked(service, http("/healthz"), &[]));
    let checking = tokio::spawn(node.checker(ME).run());
    for app in [&one, &two] {
        app.status.store(500, Ordering::SeqCst);
    }
    unhealthy(&node, &[one.addr, two.addr]).await;
    let mut client = Http1::connect(node.outbound).await;
    for _ in 0..20 {
        assert_eq!(client.send(get("/")).await.unwrap().status, 200);
    }
    assert!(one.requests.load(Ordering::SeqCst) > 4 && two.requests.load(Ordering::SeqCst) > 4);
    checking.abort();
}

#[tokio::test]
async fn who_is_not_chosen_checks_nothing_and_believes_the_operator() {
    let (one, two) = (app().await, app().await);
    let told = |unhealthy| {
        let mut message = service(&[one.addr, two.addr], None);
        checked(&mut message, http("/healthz"), &["shop/other-1"]);
        message.clusters[0].endpoints[0].check.as_mut().unwrap().unhealthy = unhealthy;
        message
    };
    let node = plain(&[one.addr, two.addr], |message| *message = told(true));
    let checking = tokio::spawn(node.checker(ME).run());
    assert_eq!(unhealthy(&node, &[one.addr]).await, "unhealthy: failed the checks of other proxies");
    let mut client = Http1::connect(node.outbound).await;
    for _ in 0..20 {
        client.send(get("/")).await.unwrap();
    }
    assert_eq!((one.requests.load(Ordering::SeqCst), two.requests.load(Ordering::SeqCst)), (0, 20));
    node.serve(told(false));
    unhealthy(&node, &[]).await;
    for _ in 0..20 {
        client.send(get("/")).await.unwrap();
    }
    assert_eq!(one.requests.load(Ordering::SeqCst), 10);
    sleep(Duration::from_millis(200)).await;
    assert_eq!(one.checks.load(Ordering::SeqCst) + two.checks.load(Ordering::SeqCst), 0);

    // Chosen now, it takes over what was known, and finds out for itself.
    one.status.store(500, Ordering::SeqCst);
    let mut mine = told(true);
    mine.clusters[0].checkers = vec![ME.into()];
    node.serve(mine);
    unhealthy(&node, &[one.addr]).await;
    while one.checks.load(Ordering::SeqCst) < 3 {
        sleep(Duration::from_millis(10)).await;
    }
    unhealthy(&node, &[one.addr]).await;
    one.status.store(200, Ordering::SeqCst);
    unhealthy(&node, &[]).await;
    checking.abort();
}

#[tokio::test]
async fn checks_of_the_mesh_are_by_mtls_and_of_nobody_else() {
    let app = app().await;
    let mesh = Mesh::with(app.addr, |service| checked(service, http("/healthz"), &[]));
    // Only mTLS gets through.
    mesh.back.workload("back", |own| own.mtls = v1::MtlsMode::Strict.into());
    let checking = tokio::spawn(mesh.front.checker(ME).run());
    while app.checks.load(Ordering::SeqCst) < 3 {
        sleep(Duration::from_millis(10)).await;
    }
    unhealthy(&mesh.front, &[]).await;
    // Somebody else is expected there.
    let mut message = service(&[mesh.back.inbound], Some("back"));
    checked(&mut message, http("/healthz"), &[]);
    message.clusters[0].endpoints[0].check.as_mut().unwrap().identity = identity("other").to_string();
    mesh.front.serve(message);
    let why = unhealthy(&mesh.front, &[mesh.back.inbound]).await;
    assert!(why.contains("sa/other") && why.contains("sa/back"), "{why}");
    checking.abort();
}

#[tokio::test]
async fn a_grpc_server_is_asked_by_its_health_protocol() {
    let status = Arc::new(AtomicU16::new(1));
    let said = Arc::clone(&status);
    let (addr, _) = apps::http(move |request| {
        let said = said.load(Ordering::SeqCst);
        async move {
            let (head, body) = request.into_parts();
            let asked = body.collect().await.unwrap().to_bytes();
            assert_eq!(head.uri.path(), "/grpc.health.v1.Health/Check");
            assert_eq!(asked[..], [0, 0, 0, 0, 6, 0x0a, 4, b's', b'h', b'o', b'p']);
            let message: &'static str =
                if said == 1 { "\0\0\0\0\u{2}\u{8}\u{1}" } else { "\0\0\0\0\u{2}\u{8}\u{2}" };
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            let mut response = http::Response::new(apps::with_trailers(&[message], trailers));
            response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            response
        }
    })
    .await;
    let kind = || Kind::Grpc(v1::GrpcCheck { service: "shop".into() });
    let mesh = Mesh::with(addr, |service| checked(service, kind(), &[]));
    let plain = plain(&[addr], |service| checked(service, kind(), &[]));
    let checking = [mesh.front.checker(ME), plain.checker(ME)].map(|checker| tokio::spawn(checker.run()));
    sleep(Duration::from_millis(300)).await;
    unhealthy(&mesh.front, &[]).await;
    unhealthy(&plain, &[]).await;
    status.store(2, Ordering::SeqCst);
    assert_eq!(unhealthy(&mesh.front, &[mesh.back.inbound]).await, "unhealthy: health status 2, not SERVING");
    unhealthy(&plain, &[addr]).await;
    status.store(1, Ordering::SeqCst);
    unhealthy(&mesh.front, &[]).await;
    unhealthy(&plain, &[]).await;
    checking.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_connection_is_accepted_by_the_application_not_by_its_proxy() {
    let kind = || Kind::Tcp(v1::TcpCheck {});
    let (app, _) = apps::echo().await;
    let nobody = apps::nobody().await;
    let ca = Ca::new();
    let (front, one, two) = (Node::start(&ca, "front"), Node::start(&ca, "back"), Node::start(&ca, "back"));
    one.redirect(Direction::Inbound, app);
    two.redirect(Direction::Inbound, nobody);
    let mut message = service(&[one.inbound, two.inbound], Some("back"));
    checked(&mut message, kind(), &[]);
    front.serve(message);
    let plain = plain(&[app, nobody], |service| checked(service, kind(), &[]));
    let checking = [front.checker(ME), plain.checker(ME)].map(|checker| tokio::spawn(checker.run()));
    let why = unhealthy(&front, &[two.inbound]).await;
    assert_eq!(why, "unhealthy: the application refuses connections");
    let why = unhealthy(&plain, &[nobody]).await;
    assert!(why.contains("refused"), "{why}");
    sleep(Duration::from_millis(300)).await;
    unhealthy(&front, &[two.inbound]).await;
    checking.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn checks_that_get_no_answer_end_and_do_not_pile_up() {
    let (addr, seen) = apps::http(|_| async {
        sleep(Duration::from_secs(60)).await;
        http::Response::new(Full::default().boxed())
    })
    .await;
    let node = plain(&[addr], |service| {
        checked(service, http("/healthz"), &[]);
        service.clusters[0].active.as_mut().unwrap().timeout_ms = 100;
        // As a file may leave it out.
        service.clusters[0].endpoints[0].check = None;
    });
    let checking = tokio::spawn(node.checker(ME).run());
    assert_eq!(unhealthy(&node, &[addr]).await, "unhealthy: no answer in time");
    assert!(seen.requests() <= 10, "{}", seen.requests());
    checking.abort();
}
