//! Shared limits over two operator replicas: what proxies of both are asked for is divided by one of them.

use std::net::SocketAddr;

use serde_json::json;
use weft_api::v1::from_proxy::Message;
use weft_api::v1::{Demand, Demands, LimitsRequest, Share, ToProxy, peers_client::PeersClient};

use super::Operator;
use super::replicas::{operator_pod, settings};
use super::stream::{Proxy, until};
use crate::ca::Root;
use crate::index::testing::*;
use crate::leader::limits::Divider;

const LIMIT: &str = "shop/back:80#limits/0";
const BACK: &str = "spiffe://cluster.local/ns/shop/sa/back";

fn objects() -> Vec<Object> {
    let rule = json!({ "rateLimit": { "requests": 100, "per": "1s", "scope": "Mesh" } });
    vec![
        service("shop/back", "10.96.0.1", &[("http", 80, 8080)]),
        slice("shop/back", &[("http", 8080)], &[("10.0.0.1", "back-1", true), ("10.0.0.2", "back-2", true)]),
        pod("shop/back-1", "back", "10.0.0.1"),
        pod("shop/back-2", "back", "10.0.0.2"),
        policy(
            "shop/limits",
            1,
            0,
            json!({ "targetRefs": [{ "kind": "Service", "name": "back" }], "rules": [rule] }),
        ),
        operator_pod("op-1", "127.0.0.1"),
        operator_pod("op-2", "127.0.0.2"),
    ]
}

async fn back(operator: &Operator, pod: &str) -> Proxy {
    let mut proxy = Proxy::open(operator.connect_as(BACK).await, pod).await.unwrap();
    let workload = proxy.next().await.unwrap().workload.unwrap();
    assert!(workload.inbound_rules[0].rules[0].rate_limit.as_ref().unwrap().mesh);
    proxy
}

async fn want(proxy: &Proxy, limit: &str, demand: u32) {
    let demands = vec![Demand { limit: limit.into(), demand, tally: None }];
    proxy.say(Message::Demands(Demands { demands })).await;
}

fn shares(message: ToProxy) -> Vec<Share> {
    assert_eq!(ToProxy { rate_shares: vec![], ..message.clone() }, ToProxy::default());
    message.rate_shares
}

#[tokio::test]
async fn the_leader_divides_a_limit_among_proxies_of_all_operator_replicas() {
    let root =
        Root::generate(&"cluster.local".parse().unwrap(), std::time::Duration::from_secs(86_400)).unwrap();
    let same = || Root::from_pem(&root.certificate_pem, &root.key_pem).unwrap();
    let one = Operator::start_at("127.0.0.1:0".parse().unwrap(), same(), objects()).await;
    let second = SocketAddr::new("127.0.0.2".parse().unwrap(), one.at.port());
    let two = Operator::start_at(second, same(), objects()).await;
    let (mut here, mut there) = (back(&one, "shop/back-1").await, back(&two, "shop/back-2").await);
    want(&here, LIMIT, 3_000_000).await;
    want(&there, LIMIT, 1_000_000).await;
    // What it does not keep is none of its business.
    want(&here, "shop/other:80#limits/0", 5).await;
    want(&here, LIMIT, 3_000_000).await;
    until(|| one.shared.limits.wanted().len() == 1 && two.shared.limits.wanted().len() == 1).await;

    let (settings, mut divider) = (settings(one.at.port()), Divider::default());
    divider.divide(&one.shared, &settings).await;
    divider.divide(&one.shared, &settings).await;
    let near = |message, wanted: u32| {
        let shares = shares(message);
        assert_eq!((shares.len(), shares[0].limit.as_str()), (1, LIMIT));
        assert!(shares[0].share.abs_diff(wanted) < 10_000, "{shares:?}");
    };
    near(here.next().await.unwrap(), 750_000);
    near(there.next().await.unwrap(), 250_000);

    // A pod that goes gives its part back.
    drop(there);
    until(|| two.shared.limits.wanted().is_empty()).await;
    divider.divide(&one.shared, &settings).await;
    near(here.next().await.unwrap(), 1_000_000);

    // An operator replica that does not answer counts with its last answer.
    let mut there = back(&two, "shop/back-2").await;
    want(&there, LIMIT, 3_000_000).await;
    until(|| two.shared.limits.wanted().len() == 1).await;
    divider.divide(&one.shared, &settings).await;
    near(here.next().await.unwrap(), 500_000);
    divider.divide(&one.shared, &settings).await;
    near(there.next().await.unwrap(), 500_000);
    two.shared.stop.cancel();
    until(|| two.shared.limits.wanted().is_empty()).await;
    divider.divide(&one.shared, &settings).await;
    assert!(here.silent().await);
}

#[tokio::test]
async fn only_the_operator_may_grant_parts() {
    let operator = Operator::start(objects()).await;
    for identity in [BACK, "spiffe://cluster.local/ns/weft-system/sa/other"] {
        let mut client = PeersClient::new(operator.connect_as(identity).await);
        let refused = client.limits(LimitsRequest::default()).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{identity}");
    }
}
