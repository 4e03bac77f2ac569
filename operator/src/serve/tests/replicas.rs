//! The leader's sums over two replicas, each on an address of its own.

use std::net::SocketAddr;

use serde_json::json;
use weft_api::v1::{AppliedReply, AppliedRow};

use super::Operator;
use super::stream::{canary, checked_back, front, next_check, shop, until};
use crate::ca::Root;
use crate::index::OutboundPolicy;
use crate::index::testing::{OWN, Object, pod_of};
use crate::leader::replicas::Replicas;
use crate::settings::Settings;

pub(super) fn operator_pod(name: &str, ip: &str) -> Object {
    let labels = json!({ "app": "weft-operator", "app.kubernetes.io/name": "weft-operator" });
    pod_of(&format!("{OWN}/{name}"), labels, ip, false, json!({}))
}

/// Of op-1.
pub(super) fn settings(grpc_port: u16) -> Settings {
    Settings {
        namespace: OWN.into(),
        pod_name: "op-1".into(),
        pod_ip: Some("127.0.0.1".parse().unwrap()),
        trust_domain: "cluster.local".parse().unwrap(),
        audit: true,
        audit_events: true,
        outbound_policy: OutboundPolicy::AllowAny,
        leaf_lifetime: std::time::Duration::from_secs(3600),
        root_lifetime: std::time::Duration::from_secs(86_400),
        root_secret: None,
        bundle_port: None,
        grpc_port,
        metrics_port: 0,
    }
}

#[tokio::test]
async fn the_leader_adds_up_what_all_ready_replicas_say() {
    let root =
        Root::generate(&"cluster.local".parse().unwrap(), std::time::Duration::from_secs(86_400)).unwrap();
    let same = || Root::from_pem(&root.certificate_pem, &root.key_pem).unwrap();
    let with_pods = || {
        let mut objects = shop();
        objects.extend([canary(3, 1), operator_pod("op-1", "127.0.0.1"), operator_pod("op-2", "127.0.0.2")]);
        objects
    };
    let one = Operator::start_at("127.0.0.1:0".parse().unwrap(), same(), with_pods()).await;
    let port = one.at.port();
    let second = SocketAddr::new("127.0.0.2".parse().unwrap(), port);
    let two = Operator::start_at(second, same(), with_pods()).await;

    let mut proxies = Vec::new();
    for operator in [&one, &two, &two] {
        let mut proxy = front(operator).await;
        proxy.next().await.unwrap();
        proxy.subscribe(&["10.96.0.1:80"], &[]).await;
        let version = proxy.next().await.unwrap().version;
        proxy.ack(version).await;
        proxies.push(proxy);
    }
    // Beside it each has acknowledged the trust bundle.
    let policy = |sum: &AppliedReply| {
        let of = |row: &&AppliedRow| row.source.as_ref().is_some_and(|source| source.kind == "TrafficPolicy");
        sum.rows.iter().find(of).map_or((0, 0), |row| (row.applied, row.total))
    };
    let applied = |o: &Operator| policy(&o.shared.fleet.sum()).0;
    until(|| applied(&one) + applied(&two) == 3).await;

    let settings = settings(port);
    let mut replicas = Replicas::default();
    let sum = replicas.applied(&one.shared, &settings).await;
    assert_eq!((sum.proxies, policy(&sum)), (3, (3, 3)));

    // One that does not answer counts with its last answer while it is ready, and not at all when it has gone.
    two.shared.stop.cancel();
    until(|| two.shared.fleet.sum().proxies == 0).await;
    let sum = replicas.applied(&one.shared, &settings).await;
    assert_eq!(sum.proxies, 3);
    one.shared
        .store
        .apply(crate::index::Change::<crate::index::Pod>::Delete(crate::index::Key::new(OWN, "op-2")));
    let sum = replicas.applied(&one.shared, &settings).await;
    assert_eq!((sum.proxies, policy(&sum)), (1, (1, 1)));
}

#[tokio::test]
async fn every_replica_learns_what_the_checks_of_the_others_found() {
    let root =
        Root::generate(&"cluster.local".parse().unwrap(), std::time::Duration::from_secs(86_400)).unwrap();
    let same = || Root::from_pem(&root.certificate_pem, &root.key_pem).unwrap();
    let objects = || {
        let mut objects = shop();
        objects.extend([
            checked_back(),
            operator_pod("op-1", "127.0.0.1"),
            operator_pod("op-2", "127.0.0.2"),
        ]);
        objects
    };
    let one = Operator::start_at("127.0.0.1:0".parse().unwrap(), same(), objects()).await;
    let port = one.at.port();
    let two =
        Operator::start_at(SocketAddr::new("127.0.0.2".parse().unwrap(), port), same(), objects()).await;
    // As in `run`, on the first one only: what it tells comes from the second.
    let keep = tokio::spawn(crate::checks::keep(std::sync::Arc::clone(&one.shared), settings(port)));

    let mut far = front(&two).await;
    far.next().await.unwrap();
    far.subscribe(&["10.96.0.1:80"], &[]).await;
    far.next().await.unwrap();
    far.find_unhealthy("shop/back:80", "10.0.0.1:8080").await;
    // A caller that is connected here, and is the same pod: it has the say of one.
    let mut near = front(&one).await;
    near.next().await.unwrap();
    near.subscribe(&["10.96.0.1:80"], &[]).await;
    while next_check(&mut near).await != (vec!["shop/front-1".to_owned()], true) {}
    keep.abort();
}
