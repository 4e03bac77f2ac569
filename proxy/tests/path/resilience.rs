//! Failing upstreams: retries, timeouts, limits, ejection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::HeaderValue;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;
use weft_api::v1;

use crate::apps;
use crate::clients::{Http1, Http2, fetch, get, post};
use crate::world::{Mesh, plain};

fn retry(on: &[v1::RetryOn]) -> v1::Retry {
    v1::Retry {
        attempts: 2,
        on: on.iter().map(|on| (*on).into()).collect(),
        backoff_base_ms: 1,
        backoff_max_ms: 2,
        budget_percent: 100,
        budget_min_per_second: 1000,
        ..Default::default()
    }
}

#[tokio::test]
async fn a_dead_endpoint_is_never_noticed() {
    let (app, seen) = apps::echo().await;
    let node = plain(&[apps::nobody().await, app], |service| {
        service.clusters[0].outlier =
            Some(v1::Outlier { consecutive_failures: 5, max_ejected_percent: 50, ..Default::default() });
    });
    let mut client = Http1::connect(node.outbound).await;
    for _ in 0..20 {
        // Also what is not idempotent: nothing reached an application.
        assert_eq!(client.send(post("/", "x")).await.unwrap().status, 200);
    }
    assert_eq!(seen.requests(), 20);
}

#[tokio::test]
async fn an_application_that_is_gone_behind_its_proxy_is_never_noticed() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(apps::nobody().await);
    let other = crate::world::Node::start(&mesh.ca, "back");
    other.redirect(weft_proxy::record::Direction::Inbound, app);
    mesh.front.serve(crate::world::service(&[mesh.back.inbound, other.inbound], Some("back")));
    for _ in 0..10 {
        let got = fetch(mesh.front.outbound, post("/", "x")).await;
        assert_eq!(got.status, 200, "{got:?}");
    }
}

#[tokio::test]
async fn an_idempotent_request_is_retried_elsewhere_after_a_reset_and_others_are_not() {
    let (sick, _) = apps::scripted(b"").await;
    let (well, _) = apps::echo().await;
    let node = plain(&[sick, well], |service| {
        service.routes[0].retry = Some(retry(&[v1::RetryOn::Reset]));
    });
    for _ in 0..6 {
        assert_eq!(fetch(node.outbound, get("/")).await.status, 200);
    }
    let mut reset = 0;
    for _ in 0..6 {
        let got = fetch(node.outbound, post("/", "x")).await;
        if got.status == 502 {
            assert_eq!(got.reason(), "upstream-reset");
            reset += 1;
        }
    }
    assert_eq!(reset, 3);
}

#[tokio::test]
async fn a_put_with_a_body_is_sent_again_whole_and_one_too_large_is_not() {
    let (sick, _) = apps::http(|request| async move {
        // Takes the whole body, then fails.
        let _ = request.into_body().collect().await;
        apps::status(503)
    })
    .await;
    let (well, _) = apps::echo().await;
    let node = plain(&[sick, well], |service| {
        service.routes[0].retry = Some(retry(&[v1::RetryOn::GatewayError]));
    });
    let put = |body: Vec<u8>| {
        let mut request = post("/", body);
        *request.method_mut() = http::Method::PUT;
        request
    };
    for _ in 0..4 {
        let got = fetch(node.outbound, put(vec![b'x'; 60_000])).await;
        assert_eq!(got.status, 200);
        assert!(got.body.ends_with(&[b'x'; 60_000]));
    }
    let mut refused = 0;
    for _ in 0..4 {
        refused += usize::from(fetch(node.outbound, put(vec![b'x'; 100_000])).await.status == 503);
    }
    assert_eq!(refused, 2);
}

#[tokio::test]
async fn a_response_that_has_begun_is_never_retried() {
    let (app, seen) = apps::scripted(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly a part").await;
    let node = plain(&[app], |service| service.routes[0].retry = Some(retry(&[v1::RetryOn::Reset])));
    let mut client = Http1::connect(node.outbound).await;
    let mut request = get("/cut");
    request.headers_mut().insert("x-request-id", HeaderValue::from_static("cut"));
    let response = client.open(request).await;
    assert_eq!(response.status(), 200);
    assert!(response.into_body().collect().await.is_err());
    assert_eq!(seen.requests(), 1);
    let line = node.log.find(|line| line["request_id"] == "cut").await;
    assert_eq!((&line["code"], &line["reason"]), (&200.into(), &"upstream-reset".into()));
}

#[tokio::test]
async fn retries_stay_within_the_budget() {
    let (app, seen) = apps::http(|_| async { apps::status(503) }).await;
    let node = plain(&[app], |service| {
        let mut policy = retry(&[v1::RetryOn::GatewayError]);
        (policy.budget_percent, policy.budget_min_per_second) = (20, 0);
        service.routes[0].retry = Some(policy);
    });
    let mut client = Http1::connect(node.outbound).await;
    for _ in 0..100 {
        assert_eq!(client.send(get("/")).await.unwrap().status, 503);
    }
    assert!((110..=120).contains(&seen.requests()), "{}", seen.requests());
    // A failed try does not cost its connection.
    assert!(seen.connections() <= 5, "{}", seen.connections());
}

#[tokio::test]
async fn keep_alive_races_never_surface() {
    // Closes each connection after a few answers, without a word, a moment after the last one.
    let served = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&served);
    let app = apps::tcp(move |mut stream| {
        let counted = Arc::clone(&counted);
        async move {
            for _ in 0..5 {
                if apps::read_request(&mut stream).await.is_none() {
                    return;
                }
                counted.fetch_add(1, Ordering::SeqCst);
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
        }
    })
    .await;
    let mesh = Mesh::to(app);
    let clients = (0..10).map(|_| {
        let to = mesh.front.outbound;
        tokio::spawn(async move {
            let mut client = Http1::connect(to).await;
            for n in 0..1000 {
                let got = client.send(get("/")).await.unwrap();
                assert_eq!(got.status, 200, "request {n}: {got:?}");
            }
        })
    });
    for done in futures::future::join_all(clients).await {
        done.unwrap();
    }
    assert!(served.load(Ordering::SeqCst) >= 10_000);
}

#[tokio::test]
async fn a_request_with_effect_is_never_sent_on_a_connection_that_was_closed() {
    // Closes after each answer, some time later.
    let app = apps::tcp(|mut stream| async move {
        while apps::read_request(&mut stream).await.is_some() {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            if tokio::time::timeout(Duration::from_millis(2), stream.peek(&mut [0])).await.is_err() {
                return;
            }
        }
    })
    .await;
    let mesh = Mesh::to(app);
    let mut client = Http1::connect(mesh.front.outbound).await;
    for n in 0..300 {
        let got = client.send(post("/", "x")).await.unwrap();
        assert_eq!(got.status, 200, "request {n}: {got:?}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_routes_timeout_covers_the_whole_response() {
    let (app, _) = apps::http(|request| async move {
        if request.uri().path() == "/slow" {
            sleep(Duration::from_secs(5)).await;
        }
        let (first, rest) = (Ok("begun".into()), sleep(Duration::from_secs(5)));
        let body = futures::stream::once(async { first }).chain(futures::stream::once(async {
            rest.await;
            Ok("late".into())
        }));
        use futures::StreamExt;
        let frames = body
            .map(|data: Result<bytes::Bytes, std::convert::Infallible>| data.map(hyper::body::Frame::data));
        http::Response::new(BodyExt::boxed(http_body_util::StreamBody::new(SyncStream(Box::pin(frames)))))
    })
    .await;
    let node = plain(&[app], |service| service.routes[0].timeout_ms = 200);
    let began = Instant::now();
    let got = fetch(node.outbound, get("/slow")).await;
    assert_eq!((got.status.as_u16(), got.reason()), (504, "request-timeout"));
    assert!((190..1500).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    // In the middle of the body the stream is broken off.
    let mut client = Http1::connect(node.outbound).await;
    let response = client.open(get("/body")).await;
    assert_eq!(response.status(), 200);
    assert!(response.into_body().collect().await.is_err());
    assert!(began.elapsed() < Duration::from_secs(3));
    // To gRPC it is DEADLINE_EXCEEDED.
    let mut request = post("/slow", "");
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let got = Http2::connect(node.outbound).await.send(request).await.unwrap();
    assert_eq!(got.headers["grpc-status"], "4");
}

struct SyncStream<T>(std::pin::Pin<Box<T>>);
// SAFETY: it is only ever used through `&mut`.
unsafe impl<T> Sync for SyncStream<T> {}
impl<T: futures::Stream> futures::Stream for SyncStream<T> {
    type Item = T::Item;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<T::Item>> {
        self.0.as_mut().poll_next(cx)
    }
}

#[tokio::test]
async fn a_try_that_takes_too_long_is_followed_by_another() {
    let (slow, _) = apps::http(|_| async {
        sleep(Duration::from_secs(5)).await;
        apps::text("late")
    })
    .await;
    let (fast, _) = apps::http(|_| async { apps::text("fast") }).await;
    let with = |endpoints: &[_]| {
        plain(endpoints, |service| {
            let mut policy = retry(&[v1::RetryOn::Reset]);
            policy.per_try_timeout_ms = 100;
            service.routes[0].retry = Some(policy);
        })
    };
    let node = with(&[slow, fast]);
    for _ in 0..4 {
        assert_eq!(fetch(node.outbound, get("/")).await.text(), "fast");
    }
    let got = fetch(with(&[slow]).outbound, get("/")).await;
    assert_eq!((got.status.as_u16(), got.reason()), (504, "per-try-timeout"));
}

#[tokio::test]
async fn requests_beyond_the_limit_are_refused_with_the_reason() {
    let (app, _) = apps::http(|_| async {
        sleep(Duration::from_millis(300)).await;
        apps::text("ok")
    })
    .await;
    let node = plain(&[app], |service| {
        service.clusters[0].breaker = Some(v1::Breaker { max_concurrent_requests: 3, ..Default::default() });
    });
    let calls = (0..10).map(|_| fetch(node.outbound, get("/")));
    let got = futures::future::join_all(calls).await;
    let refused: Vec<_> = got.iter().filter(|got| got.status == 503).collect();
    assert_eq!(refused.len(), 7);
    assert!(refused.iter().all(|got| got.reason() == "breaker-open"));
    assert!(node.metrics.encode().contains("breaker-open"));
    assert_eq!(fetch(node.outbound, get("/")).await.status, 200);
}

#[tokio::test]
async fn requests_wait_for_a_connection_within_the_limit_and_no_more_than_may_wait() {
    let (app, seen) = apps::http(|_| async {
        sleep(Duration::from_millis(100)).await;
        apps::text("ok")
    })
    .await;
    let node = plain(&[app], |service| {
        service.protocol = v1::Protocol::Http1.into();
        service.clusters[0].breaker =
            Some(v1::Breaker { max_connections: 1, max_pending_requests: 2, ..Default::default() });
    });
    // Also a request that opens a connection waits for it: with one open, all of the places are for those that queue.
    fetch(node.outbound, get("/")).await;
    let calls = (0..6).map(|_| fetch(node.outbound, get("/")));
    let got = futures::future::join_all(calls).await;
    let served = got.iter().filter(|got| got.status == 200).count();
    let refused = got.iter().filter(|got| got.reason() == "breaker-pending").count();
    assert_eq!((served, refused), (3, 3), "{got:?}");
    assert_eq!(seen.connections(), 1);
}

#[tokio::test]
async fn an_idle_connection_to_one_endpoint_makes_room_for_another() {
    let ((one, _), (two, _)) = (apps::echo().await, apps::echo().await);
    let node = plain(&[one, two], |service| {
        service.clusters[0].breaker = Some(v1::Breaker { max_connections: 1, ..Default::default() });
    });
    let mut client = Http1::connect(node.outbound).await;
    let began = Instant::now();
    for _ in 0..6 {
        assert_eq!(client.send(get("/")).await.unwrap().status, 200);
    }
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_failing_endpoint_is_ejected_and_comes_back() {
    let sick = Arc::new(AtomicBool::new(true));
    let state = Arc::clone(&sick);
    let (flaky, tried) = apps::http(move |_| {
        let code = if state.load(Ordering::SeqCst) { 500 } else { 200 };
        async move { apps::status(code) }
    })
    .await;
    let (well, _) = apps::echo().await;
    let node = plain(&[flaky, well], |service| {
        service.clusters[0].outlier = Some(v1::Outlier {
            consecutive_failures: 3,
            base_ejection_ms: 300,
            max_ejection_ms: 1000,
            max_ejected_percent: 50,
            ..Default::default()
        });
    });
    let mut client = Http1::connect(node.outbound).await;
    let mut failed = 0;
    for _ in 0..50 {
        failed += usize::from(client.send(get("/")).await.unwrap().status == 500);
    }
    assert_eq!((failed, tried.requests()), (3, 3));
    assert_eq!(node.store.load().ejections().len(), 1);
    // After its time one request tries it; it is still sick, so it stays out.
    sleep(Duration::from_millis(350)).await;
    for _ in 0..20 {
        let _ = client.send(get("/")).await.unwrap();
    }
    assert_eq!(tried.requests(), 4);
    sick.store(false, Ordering::SeqCst);
    sleep(Duration::from_millis(700)).await;
    for _ in 0..40 {
        assert_eq!(client.send(get("/")).await.unwrap().status, 200);
    }
    assert!(tried.requests() > 15, "{}", tried.requests());
    assert!(node.store.load().ejections().is_empty());
}

#[tokio::test]
async fn an_answer_that_is_not_http_is_told() {
    let (app, _) = apps::scripted(b"SSH-2.0-OpenSSH_9.2\r\n").await;
    let node = plain(&[app], |service| {
        service.protocol = v1::Protocol::Http1.into();
        service.routes[0].retry = Some(v1::Retry::default());
    });
    let got = fetch(node.outbound, get("/")).await;
    assert_eq!((got.status.as_u16(), got.reason()), (502, "upstream-protocol"));
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_request_everywhere() {
    let (app, _) = apps::http(|_| async {
        sleep(Duration::from_secs(30)).await;
        apps::text("late")
    })
    .await;
    let mesh = Mesh::to(app);
    let mut stream = tokio::net::TcpStream::connect(mesh.front.outbound).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nx-request-id: left\r\n\r\n").await.unwrap();
    sleep(Duration::from_millis(100)).await;
    drop(stream);
    for node in [&mesh.front, &mesh.back] {
        let line = node.log.find(|line| line["request_id"] == "left").await;
        assert_eq!(line["code"], 0);
    }
    let live = &mesh.front.store.load().services[crate::world::SERVICE].default_cluster.endpoints[0].live;
    assert_eq!(live.in_flight(), 0);
}

#[tokio::test]
async fn a_destination_without_configuration_is_explained_to_http() {
    let node = crate::world::Node::start(&crate::world::Ca::new(), "front");
    let got = fetch(node.outbound, get("/")).await;
    assert_eq!((got.status.as_u16(), got.reason()), (503, "config-unavailable"));
    let mut stream = tokio::net::TcpStream::connect(node.outbound).await.unwrap();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(6), stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok());
}

#[tokio::test]
async fn connections_to_an_endpoint_that_has_left_are_closed() {
    let ((one, first), (two, second)) = (apps::echo().await, apps::echo().await);
    let node = plain(&[one], |_| {});
    let mut client = Http1::connect(node.outbound).await;
    client.send(get("/")).await.unwrap();
    node.serve(crate::world::service(&[two], None));
    client.send(get("/")).await.unwrap();
    assert_eq!((first.requests(), second.requests()), (1, 1));
    for _ in 0..100 {
        if node.metrics.encode().contains("weft_upstream_connections 1\n") {
            return;
        }
        sleep(Duration::from_millis(30)).await;
    }
    panic!("{}", node.metrics.encode());
}

#[tokio::test]
async fn a_connection_is_replaced_after_its_share_of_requests_and_after_its_idle_time() {
    let (app, seen) = apps::echo().await;
    let node = plain(&[app], |service| {
        service.clusters[0].max_requests_per_connection = 5;
        service.clusters[0].idle_timeout_ms = 100;
    });
    let mut client = Http1::connect(node.outbound).await;
    for _ in 0..10 {
        client.send(get("/")).await.unwrap();
    }
    assert_eq!(seen.connections(), 2);
    client.send(get("/")).await.unwrap();
    sleep(Duration::from_millis(200)).await;
    client.send(get("/")).await.unwrap();
    assert_eq!(seen.connections(), 4);
    let mut client = Http2::connect(node.outbound).await;
    for _ in 0..10 {
        client.send(get("/")).await.unwrap();
    }
    assert_eq!(seen.connections(), 6);
}

#[tokio::test]
async fn opaque_connections_beyond_the_limit_are_closed_with_the_reason() {
    let app = apps::tcp(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let node = plain(&[app], |service| {
        service.protocol = v1::Protocol::Tcp.into();
        service.clusters[0].breaker = Some(v1::Breaker { max_connections: 1, ..Default::default() });
    });
    let mut first = tokio::net::TcpStream::connect(node.outbound).await.unwrap();
    first.write_all(b"x").await.unwrap();
    first.read_exact(&mut [0]).await.unwrap();
    let mut second = tokio::net::TcpStream::connect(node.outbound).await.unwrap();
    assert_eq!(second.read(&mut [0]).await.unwrap_or(0), 0);
    node.log.find(|line| line["reason"] == "breaker-connections").await;
    first.write_all(b"y").await.unwrap();
    first.read_exact(&mut [0]).await.unwrap();
}

#[tokio::test]
async fn the_tasks_of_connections_are_counted_and_end_with_them() {
    let (app, _) = apps::echo().await;
    let node = plain(&[app], |service| service.clusters[0].idle_timeout_ms = 300);
    let tasks = || {
        let metrics = node.metrics.encode();
        let line = metrics.lines().find_map(|line| line.strip_prefix("weft_tasks "));
        line.unwrap().parse::<u64>().unwrap()
    };
    let settles = async |what: &str, wanted: &dyn Fn(u64) -> bool| {
        let begun = Instant::now();
        while !wanted(tasks()) {
            assert!(begun.elapsed() < Duration::from_secs(20), "{what}: {} tasks", tasks());
            sleep(Duration::from_millis(100)).await;
        }
        tasks()
    };
    settles("a worker has tasks of its own", &|now| now > 0).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = Http1::connect(node.outbound).await;
        assert_eq!(client.send(get("/")).await.unwrap().status, 200);
        clients.push(client);
    }
    settles("one for each connection at least", &|now| now > 20).await;
    // What only begins something has ended by then.
    sleep(Duration::from_secs(1)).await;
    let with_clients = tasks();
    drop(clients);
    settles("without those of the connections", &|now| now + 20 <= with_clients).await;
}
