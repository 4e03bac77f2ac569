//! The closed list of reasons, each provoked over real sockets. A reason that nothing here provokes fails the test: it
//! would be a word in the documentation that nobody has ever seen.

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::sleep;
use weft_api::{Reason, v1};
use weft_proxy::record::Direction;

use crate::apps;
use crate::clients::{fetch, get, raw};
use crate::world::{Ca, Mesh, Node, SERVICE, identity, plain};

/// What was seen of it: the header's word, or that of the log, or of the metric.
async fn provoke(reason: Reason) -> String {
    match reason {
        Reason::NoHealthyEndpoint => answered(&plain(&[], |_| {})).await,
        Reason::BreakerConnections => breaker_connections().await,
        Reason::BreakerPending => {
            beyond(breaker(v1::Breaker { max_connections: 1, max_pending_requests: 1, ..Default::default() }))
                .await
        }
        Reason::BreakerOpen => {
            beyond(breaker(v1::Breaker { max_concurrent_requests: 1, ..Default::default() })).await
        }
        Reason::AdaptiveLimit => {
            let one = v1::Adaptive {
                min_limit: 1,
                max_limit: 1,
                tolerance_percent: 100,
                baseline_every_ms: 60_000,
            };
            beyond(|cluster| cluster.adaptive = Some(one)).await
        }
        Reason::ConnectTimeout => connect_timeout().await,
        Reason::ConnectFailed => answered(&plain(&[apps::nobody().await], |_| {})).await,
        Reason::PeerIdentityMismatch => {
            let mesh = Mesh::to(apps::echo().await.0);
            mesh.front.serve(crate::world::service(&[mesh.back.inbound], Some("other")));
            answered(&mesh.front).await
        }
        Reason::TlsHandshake => {
            let in_the_mesh = |service: &mut v1::Service| {
                service.clusters[0].endpoints[0].identity = identity("back").to_string();
            };
            answered(&plain(&[apps::echo().await.0], in_the_mesh)).await
        }
        Reason::UpstreamReset => answered(&plain(&[apps::scripted(b"").await.0], without_retry)).await,
        Reason::UpstreamProtocol => {
            answered(&plain(&[apps::scripted(b"SSH-2.0\r\n").await.0], without_retry)).await
        }
        Reason::RequestTimeout => answered(&plain(&[silent().await], |s| s.routes[0].timeout_ms = 50)).await,
        Reason::PerTryTimeout => {
            let retry = v1::Retry { per_try_timeout_ms: 50, ..Default::default() };
            answered(&plain(&[silent().await], |s| s.routes[0].retry = Some(retry))).await
        }
        Reason::MtlsRequired => {
            let mesh = Mesh::to(apps::echo().await.0);
            mesh.back.workload("back", |own| own.mtls = v1::MtlsMode::Strict.into());
            fetch(mesh.back.inbound, get("/")).await.reason().to_owned()
        }
        Reason::ClientCertificate => client_certificate().await,
        Reason::BadRequest => {
            let mesh = Mesh::to(apps::echo().await.0);
            header_of(&raw(mesh.front.outbound, b"GET / HTTP/1.1\r\n\r\n", false).await)
        }
        Reason::HeadersTooLarge => {
            let mesh = Mesh::to(apps::echo().await.0);
            let head = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "a".repeat(80_000));
            header_of(&raw(mesh.front.outbound, head.as_bytes(), false).await)
        }
        Reason::ClientTimeout => {
            let mesh = Mesh::to(apps::echo().await.0);
            header_of(&raw(mesh.front.outbound, b"GET / HTTP/1.1\r\nhost: a\r\n", false).await)
        }
        Reason::ConfigUnavailable => answered(&Node::start(&Ca::new(), "front")).await,
        Reason::Draining => draining().await,
        Reason::Overloaded => {
            let node = plain(&[apps::echo().await.0], |_| {});
            let mut held = Vec::new();
            for _ in 0..crate::world::MAX_CONNECTIONS {
                held.push(TcpStream::connect(node.outbound).await.unwrap());
            }
            answered(&node).await
        }
        Reason::RateLimited => {
            let (app, _) = apps::echo().await;
            let mesh = Mesh::to(app);
            let limit = v1::RateLimit { requests: 1, per_ms: 3_600_000, ..Default::default() };
            let rule = v1::InboundRule { name: "one".into(), rate_limit: Some(limit), ..Default::default() };
            let rules = v1::InboundRules {
                port: app.port().into(),
                service: SERVICE.into(),
                rules: vec![rule],
                ..Default::default()
            };
            mesh.back.workload("back", |own| own.inbound_rules = vec![rules]);
            assert_eq!(fetch(mesh.front.outbound, get("/")).await.status, 200);
            answered(&mesh.front).await
        }
        Reason::NotRegistered => {
            let node = Node::start(&Ca::new(), "front");
            node.workload("front", |own| own.outbound_policy = v1::OutboundPolicy::RegisteredOnly.into());
            let target = Some(v1::address::Target::External(v1::External {}));
            let address = v1::Address { address: crate::world::VIP.into(), target };
            node.configure(v1::ToProxy { addresses: vec![address], ..Default::default() });
            answered(&node).await
        }
        Reason::FaultInjected => {
            let abort = v1::Abort { with: Some(v1::abort::With::Status(503)), percent: 100 };
            let fault = v1::Fault { abort: Some(abort), ..Default::default() };
            answered(&plain(&[], |s| {
                s.routes[0].filters = Some(v1::Filters { fault: Some(fault), ..Default::default() })
            }))
            .await
        }
        Reason::CorsRefused => {
            let cors = v1::Cors { allow_origins: vec!["https://a.example".into()], ..Default::default() };
            let node = plain(&[], |s| {
                s.routes[0].filters = Some(v1::Filters { cors: Some(cors), ..Default::default() })
            });
            let preflight = b"OPTIONS / HTTP/1.1\r\nhost: a\r\nconnection: close\r\norigin: https://b.example\r\naccess-control-request-method: PUT\r\n\r\n";
            header_of(&raw(node.outbound, preflight, false).await)
        }
        Reason::IdleTimeout => {
            answered(&plain(&[silent().await], |s| s.routes[0].idle_timeout_ms = 50)).await
        }
        Reason::GrpcDeadline => {
            let node = plain(&[silent().await], |_| {});
            let mut call = get("/shop.Back/Buy");
            call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            call.headers_mut().insert("grpc-timeout", "50m".parse().unwrap());
            fetch(node.outbound, call).await.reason().to_owned()
        }
        Reason::PolicyDenied => {
            let mesh = Mesh::to(apps::echo().await.0);
            let nobody = v1::AuthorizationPolicy {
                namespace: "shop".into(),
                name: "closed".into(),
                action: v1::AuthorizationAction::Allow.into(),
                ..Default::default()
            };
            mesh.back.workload("back", |own| {
                own.authorization = Some(v1::Authorization { policies: vec![nobody], level: 1 });
            });
            answered(&mesh.front).await
        }
        Reason::TokenInvalid => {
            let (mesh, issuer) = (Mesh::to(apps::echo().await.0), &crate::tokens::ONE);
            mesh.back.workload("back", |own| own.tokens = Some(crate::tokens::of(vec![issuer.message()])));
            let mut request = get("/");
            request.headers_mut().insert("authorization", "Bearer junk".parse().unwrap());
            fetch(mesh.front.outbound, request).await.reason().to_owned()
        }
        Reason::TokenExpired => {
            let (mesh, issuer) = (Mesh::to(apps::echo().await.0), &crate::tokens::ONE);
            mesh.back.workload("back", |own| own.tokens = Some(crate::tokens::of(vec![issuer.message()])));
            let mut claims = issuer.claims("alice");
            claims["exp"] = 1.into();
            let mut request = get("/");
            let bearer = format!("Bearer {}", issuer.sign("ed", claims));
            request.headers_mut().insert("authorization", bearer.parse().unwrap());
            fetch(mesh.front.outbound, request).await.reason().to_owned()
        }
        #[allow(unreachable_patterns, reason = "for those that are to come")]
        _ => panic!("nothing here provokes `{reason}`: add how it comes about to this test"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_reason_of_the_closed_list_can_be_provoked() {
    // A test has both ends of all its connections, and 1024 files by default.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most.min(8192), most).unwrap();
    // Making its keys takes a while, in which nothing else would go on.
    std::sync::LazyLock::force(&crate::tokens::ONE);
    // Some of them take the proxy's patience, so all at once.
    let seen =
        Reason::ALL.iter().map(|reason| async move { (*reason, tokio::spawn(provoke(*reason)).await) });
    let wrong: Vec<String> = futures::future::join_all(seen)
        .await
        .into_iter()
        .filter_map(|(reason, seen)| match seen {
            Ok(seen) if seen == reason.as_str() => None,
            Ok(seen) => Some(format!("{reason}: `{seen}` was seen")),
            Err(panicked) => Some(format!("{reason}: {panicked}")),
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

async fn answered(node: &Node) -> String {
    fetch(node.outbound, get("/")).await.reason().to_owned()
}

fn header_of(answer: &str) -> String {
    let line = answer.lines().find_map(|line| line.strip_prefix("weft-reason: "));
    line.unwrap_or(answer).to_owned()
}

fn without_retry(service: &mut v1::Service) {
    service.routes[0].retry = Some(v1::Retry::default());
}

/// Takes everything, and says nothing.
async fn silent() -> std::net::SocketAddr {
    apps::tcp(|mut stream| async move {
        let mut sink = [0; 1024];
        while stream.read(&mut sink).await.is_ok_and(|read| read > 0) {}
    })
    .await
}

fn breaker(breaker: v1::Breaker) -> impl FnOnce(&mut v1::Cluster) {
    move |cluster| cluster.breaker = Some(breaker)
}

/// Several requests at once, of which this limit allows some.
async fn beyond(limit: impl FnOnce(&mut v1::Cluster)) -> String {
    let (app, _) = apps::http(|_| async {
        sleep(Duration::from_millis(500)).await;
        apps::text("ok")
    })
    .await;
    let node = plain(&[app], |service| {
        service.protocol = v1::Protocol::Http1.into();
        limit(&mut service.clusters[0]);
    });
    let got = futures::future::join_all((0..6).map(|_| fetch(node.outbound, get("/")))).await;
    got.iter().map(|got| got.reason()).find(|reason| !reason.is_empty()).unwrap_or_default().to_owned()
}

/// Of opaque connections: those of HTTP wait for one another.
async fn breaker_connections() -> String {
    let node = plain(&[silent().await], |service| {
        service.protocol = v1::Protocol::Tcp.into();
        service.clusters[0].breaker = Some(v1::Breaker { max_connections: 1, ..Default::default() });
    });
    let mut first = TcpStream::connect(node.outbound).await.unwrap();
    first.write_all(b"hello").await.unwrap();
    for _ in 0..50 {
        let second = TcpStream::connect(node.outbound).await.unwrap();
        drop(second);
        sleep(Duration::from_millis(20)).await;
        if node.log.lines().iter().any(|line| line["reason"] == "breaker-connections") {
            break;
        }
    }
    let line = node.log.find(|line| line["reason"].is_string()).await;
    line["reason"].as_str().unwrap().to_owned()
}

/// A listener whose queue is full: the kernel answers no further SYN (listen(2), Linux).
async fn connect_timeout() -> String {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = socket.listen(1).unwrap();
    let at = full.local_addr().unwrap();
    let mut queue = Vec::new();
    for _ in 0..4 {
        queue.push(tokio::spawn(TcpStream::connect(at)));
    }
    sleep(Duration::from_millis(200)).await;
    let node = plain(&[at], |service| {
        without_retry(service);
        service.clusters[0].connect_timeout_ms = 200;
    });
    let seen = answered(&node).await;
    queue.iter().for_each(tokio::task::JoinHandle::abort);
    seen
}

/// Of another root; the metric tells, for there is nobody to be answered.
async fn client_certificate() -> String {
    let mesh = Mesh::to(apps::echo().await.0);
    let stranger = Node::start(&Ca::new(), "front");
    let mut service = crate::world::service(&[mesh.back.inbound], Some("back"));
    // Otherwise a client that is slow to speak is connected, and reset, before it has said anything.
    service.protocol = v1::Protocol::Http1.into();
    stranger.serve(service);
    stranger.certify(&Ca::new(), "front", vec![mesh.ca.root()]);
    fetch(stranger.outbound, get("/")).await;
    let word = Reason::ClientCertificate.as_str();
    let seen = mesh.back.metrics.encode().contains(&format!("reason=\"{word}\""));
    if seen { word.to_owned() } else { mesh.back.metrics.encode() }
}

/// What is under way when draining has taken long enough is cut off, and said to be.
async fn draining() -> String {
    let app = silent().await;
    let node = plain(&[app], without_retry);
    node.redirect(Direction::Inbound, app);
    let to = node.outbound;
    let cut = tokio::spawn(async move { raw(to, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", false).await });
    sleep(Duration::from_millis(300)).await;
    node.drain.cancel();
    node.exit.cancel();
    let line = node.log.find(|line| line["reason"].is_string()).await;
    cut.await.unwrap();
    line["reason"].as_str().unwrap().to_owned()
}
