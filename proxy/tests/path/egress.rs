//! Destinations outside of the cluster: what the outbound policy refuses.

use std::net::SocketAddr;

use weft_api::v1;
use weft_proxy::record::Direction;

use crate::apps;
use crate::clients::{Http1, Http2, fetch, get, raw};
use crate::world::{Ca, Node};

/// A proxy under a policy, whose application calls an address that the operator knows nothing of.
fn outside(to: SocketAddr, policy: v1::OutboundPolicy) -> Node {
    let node = Node::start(&Ca::new(), "front");
    node.redirect(Direction::Outbound, to);
    node.workload("front", |own| own.outbound_policy = policy.into());
    let external = Some(v1::address::Target::External(v1::External {}));
    node.configure(v1::ToProxy {
        addresses: vec![v1::Address { address: to.to_string(), target: external }],
        ..Default::default()
    });
    node
}

#[tokio::test]
async fn http_to_what_is_not_registered_is_told_so() {
    let (app, seen) = apps::echo().await;
    let node = outside(app, v1::OutboundPolicy::RegisteredOnly);
    let got = fetch(node.outbound, get("/")).await;
    assert_eq!((got.status.as_u16(), got.reason()), (502, "not-registered"));
    let got = Http2::connect(node.outbound).await.send(get("/two")).await.unwrap();
    assert_eq!((got.status.as_u16(), got.reason()), (502, "not-registered"));
    assert_eq!(seen.connections(), 0);
}

#[tokio::test]
async fn other_bytes_to_what_is_not_registered_are_closed_logged_and_counted() {
    let (app, seen) = apps::echo().await;
    let node = outside(app, v1::OutboundPolicy::RegisteredOnly);
    assert_eq!(raw(node.outbound, b"\0\0opaque", false).await, "");
    assert_eq!(raw(node.outbound, b"", false).await, "", "nor does a silent client wait for ever");
    let line = node.log.find(|line| line["reason"] == "not-registered").await;
    assert_eq!((&line["log"], &line["original"]), (&"connection".into(), &app.to_string().into()));
    assert!(node.metrics.encode().contains("reason=\"not-registered\""));
    assert_eq!(seen.connections(), 0);
}

#[tokio::test]
async fn the_policy_holds_as_soon_as_it_is_told_also_on_kept_connections() {
    let (app, _) = apps::echo().await;
    let node = outside(app, v1::OutboundPolicy::AllowAny);
    assert_eq!(fetch(node.outbound, get("/")).await.status, 200);
    node.workload("front", |own| own.outbound_policy = v1::OutboundPolicy::RegisteredOnly.into());
    let mut client = Http1::connect(node.outbound).await;
    assert_eq!(client.send(get("/")).await.unwrap().reason(), "not-registered");
    assert_eq!(client.send(get("/")).await.unwrap().reason(), "not-registered");
}
