//! Balancing by key over real sockets: who goes where, and what the client is given to come back with.

use std::net::SocketAddr;

use http::{HeaderValue, Request};
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_api::v1::{self, hash::Key};

use crate::apps::{self, Seen};
use crate::clients::{Got, Http1, Http2, fetch, get};
use crate::world::{Node, plain};

/// Applications that answer with their number.
async fn numbered(n: usize) -> (Vec<SocketAddr>, Vec<Seen>) {
    let mut all = (Vec::new(), Vec::new());
    for i in 0..n {
        let (addr, seen) = apps::http(move |_| async move { apps::text(i.to_string()) }).await;
        all.0.push(addr);
        all.1.push(seen);
    }
    all
}

fn by(balancer: v1::Balancer, key: Key) -> impl FnOnce(&mut v1::Service) {
    move |service| {
        service.clusters[0].balancer = balancer.into();
        service.clusters[0].hash = Some(v1::Hash { key: Some(key), ring_points: 0 });
    }
}

fn with_header(name: &'static str, value: &str) -> Request<Full<bytes::Bytes>> {
    let mut request = get("/");
    request.headers_mut().append(name, HeaderValue::from_str(value).unwrap());
    request
}

#[tokio::test]
async fn the_same_header_goes_to_the_same_endpoint_in_both_versions_and_others_elsewhere() {
    for balancer in [v1::Balancer::RingHash, v1::Balancer::Maglev] {
        let (apps, _) = numbered(4).await;
        let node = plain(&apps, by(balancer, Key::Header("x-user".into())));
        let other = plain(&apps, by(balancer, Key::Header("x-user".into())));
        let mut client = Http2::connect(node.outbound).await;
        let mut homes = std::collections::BTreeSet::new();
        for user in 0..24 {
            let request = || with_header("x-user", &format!("user-{user}"));
            let home = fetch(node.outbound, request()).await.text();
            for _ in 0..3 {
                assert_eq!(fetch(node.outbound, request()).await.text(), home);
            }
            assert_eq!(client.send(request()).await.unwrap().text(), home);
            // Another caller's proxy comes to the same.
            assert_eq!(fetch(other.outbound, request()).await.text(), home);
            homes.insert(home);
        }
        assert!(homes.len() >= 3, "{homes:?}");
    }
}

#[tokio::test]
async fn a_request_without_the_key_goes_anywhere() {
    let (apps, seen) = numbered(3).await;
    let node = plain(&apps, by(v1::Balancer::Maglev, Key::Header("x-user".into())));
    let mut client = Http1::connect(node.outbound).await;
    for _ in 0..90 {
        client.send(get("/")).await.unwrap();
    }
    assert!(seen.iter().all(|seen| seen.requests() > 5));
}

#[tokio::test]
async fn a_query_parameter_decides() {
    let (apps, _) = numbered(4).await;
    let node = plain(&apps, by(v1::Balancer::RingHash, Key::Query("user".into())));
    for user in 0..8 {
        let home = fetch(node.outbound, get(&format!("/a?user={user}"))).await.text();
        for path in [format!("/b?x=1&user={user}"), format!("/?user={user}&y=2")] {
            assert_eq!(fetch(node.outbound, get(&path)).await.text(), home);
        }
    }
}

fn cookie(got: &Got) -> Option<&str> {
    got.headers.get("set-cookie").map(|cookie| cookie.to_str().unwrap())
}

#[tokio::test]
async fn a_client_without_the_cookie_gets_one_and_comes_back_to_the_same_endpoint() {
    let (apps, _) = numbered(4).await;
    let key = || Key::Cookie(v1::HashCookie { name: "session".into(), ttl_ms: 90_000 });
    let node = plain(&apps, by(v1::Balancer::Maglev, key()));
    for _ in 0..12 {
        let first = fetch(node.outbound, get("/")).await;
        let set = cookie(&first).expect("a cookie").to_owned();
        assert!(set.starts_with("session=") && set.ends_with("; Max-Age=90; Path=/; HttpOnly"), "{set}");
        let pair = set.split(';').next().unwrap();
        for _ in 0..3 {
            let again = fetch(node.outbound, with_header("cookie", &format!("a=b; {pair}"))).await;
            assert_eq!(again.text(), first.text());
            assert_eq!(cookie(&again), None, "it has one already");
        }
    }
}

#[tokio::test]
async fn a_cookie_of_the_application_is_not_overwritten() {
    let (app, _) = apps::http(|_| async {
        let mut response = apps::text("");
        response.headers_mut().append("set-cookie", HeaderValue::from_static("own=1"));
        response
    })
    .await;
    let key = Key::Cookie(v1::HashCookie { name: "session".into(), ttl_ms: 0 });
    let node = plain(&[app], by(v1::Balancer::RingHash, key));
    let got = fetch(node.outbound, get("/")).await;
    let cookies: Vec<_> = got.headers.get_all("set-cookie").iter().map(|c| c.to_str().unwrap()).collect();
    assert_eq!(cookies.len(), 2);
    assert_eq!(cookies[0], "own=1");
    assert!(cookies[1].starts_with("session=") && !cookies[1].contains("Max-Age"), "{cookies:?}");
}

#[tokio::test]
async fn a_key_whose_endpoint_is_gone_is_served_by_the_next_one_and_always_the_same() {
    let (mut apps, _) = numbered(3).await;
    apps.push(apps::nobody().await);
    let node = plain(&apps, |service| {
        by(v1::Balancer::Maglev, Key::Header("x-user".into()))(service);
        service.clusters[0].outlier =
            Some(v1::Outlier { consecutive_failures: 5, max_ejected_percent: 50, ..Default::default() });
    });
    for user in 0..16 {
        let request = || with_header("x-user", &user.to_string());
        let first = fetch(node.outbound, request()).await;
        assert_eq!(first.status, 200);
        assert_eq!(fetch(node.outbound, request()).await.text(), first.text());
    }
}

/// What an opaque connection from this address meets.
async fn meets(node: &Node, from: &str) -> String {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    let mut stream: TcpStream = socket.connect(node.outbound).await.unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    said
}

#[tokio::test]
async fn opaque_connections_are_spread_by_their_source_address() {
    let mut servers = Vec::new();
    for i in 0..4 {
        let serve = move |mut stream: TcpStream| async move {
            stream.write_all(format!("server {i}").as_bytes()).await.unwrap();
        };
        servers.push(apps::tcp(serve).await);
    }
    let node = plain(&servers, |service| {
        service.protocol = v1::Protocol::Tcp.into();
        by(v1::Balancer::Maglev, Key::SourceIp(true))(service);
    });
    let mut homes = std::collections::BTreeSet::new();
    for last in 1..=16 {
        let from = format!("127.0.1.{last}");
        let home = meets(&node, &from).await;
        for _ in 0..2 {
            assert_eq!(meets(&node, &from).await, home, "another port of the same address");
        }
        homes.insert(home);
    }
    assert!(homes.len() >= 3, "{homes:?}");
}

#[tokio::test]
async fn an_endpoint_that_answers_429_at_once_gets_the_smaller_part() {
    for balancer in [v1::Balancer::PeakEwma, v1::Balancer::LeastRequest] {
        let (full, refused) = apps::http(|_| async { apps::status(429) }).await;
        let (well, served) = apps::http(|_| async {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            apps::text("")
        })
        .await;
        let node = plain(&[full, well], |service| service.clusters[0].balancer = balancer.into());
        let mut client = Http1::connect(node.outbound).await;
        for _ in 0..200 {
            client.send(get("/")).await.unwrap();
        }
        assert!(refused.requests() < 40, "{balancer:?}: {} of 200", refused.requests());
        assert_eq!(refused.requests() + served.requests(), 200);
    }
}

#[tokio::test]
async fn the_next_priority_takes_over_when_the_first_one_is_down() {
    let (mut apps, seen) = numbered(2).await;
    let node = plain(&apps, |service| {
        service.clusters[0].endpoints[1].priority = 1;
        service.clusters[0].outlier =
            Some(v1::Outlier { consecutive_failures: 5, max_ejected_percent: 100, ..Default::default() });
    });
    for _ in 0..10 {
        assert_eq!(fetch(node.outbound, get("/")).await.text(), "0");
    }
    assert_eq!(seen[1].requests(), 0);
    apps[0] = apps::nobody().await;
    let mut service = crate::world::service(&apps, None);
    service.clusters[0].endpoints[1].priority = 1;
    service.clusters[0].outlier =
        Some(v1::Outlier { consecutive_failures: 5, max_ejected_percent: 100, ..Default::default() });
    node.serve(service);
    for _ in 0..10 {
        assert_eq!(fetch(node.outbound, get("/")).await.text(), "1");
    }
}

#[tokio::test]
async fn callers_of_different_zones_go_to_their_own() {
    let (apps, _) = numbered(3).await;
    let places = [("a", "r"), ("b", "r"), ("c", "s")];
    for (zone, region, expected) in [("a", "r", "0"), ("b", "r", "1"), ("z", "s", "2")] {
        let node = Node::start(&crate::world::Ca::new(), "front");
        let mut service = crate::world::service(&apps, None);
        service.clusters[0].locality = v1::Locality::Prefer.into();
        for (endpoint, (zone, region)) in service.clusters[0].endpoints.iter_mut().zip(places) {
            (endpoint.zone, endpoint.region) = (zone.into(), region.into());
        }
        node.serve(service);
        node.workload("front", |own| (own.zone, own.region) = (zone.into(), region.into()));
        for _ in 0..5 {
            assert_eq!(fetch(node.outbound, get("/")).await.text(), expected, "from {zone}");
        }
    }
}
