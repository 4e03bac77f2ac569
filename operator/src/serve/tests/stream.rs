//! Tests of `serve` (stream): no cluster, nothing but what they make themselves.

use std::time::Duration;

use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use weft_api::v1::config_client::ConfigClient;
use weft_api::v1::from_proxy::Message;
use weft_api::v1::peers_client::PeersClient;
use weft_api::v1::{
    Ack, AppliedRequest, Checked, CheckedEndpoint, ChecksRequest, Decision, Decisions, Ejection, Ejections,
    FromProxy, Hello, KeysMissed, MtlsMode, Rejection, Subscribe, ToProxy, address::Target,
};
use weft_events::Fate;

use super::{Operator, certificate_of, connect};
use crate::ca::{Authority, Root};
use crate::index::testing::*;
use crate::metrics::InEvents;

const FRONT: &str = "spiffe://cluster.local/ns/shop/sa/front";
const QUIET: Duration = Duration::from_millis(150);

pub(super) fn shop() -> Vec<Object> {
    vec![
        service("shop/back", "10.96.0.1", &[("http", 80, 8080)]),
        slice("shop/back", &[("http", 8080)], &[("10.0.0.1", "back-1", true)]),
        pod("shop/back-1", "back", "10.0.0.1"),
        pod("shop/front-1", "front", "10.0.0.9"),
        service("shop/other", "10.96.0.2", &[("http", 80, 8080)]),
    ]
}

/// A proxy's end of the stream.
pub(super) struct Proxy {
    say: mpsc::Sender<FromProxy>,
    hear: Streaming<ToProxy>,
}

impl Proxy {
    pub(super) async fn open(channel: Channel, pod: &str) -> Result<Self, Status> {
        let (say, said) = mpsc::channel(16);
        let proxy = say.clone();
        let key = key_of(pod);
        let hello = Hello { namespace: key.namespace, pod: key.name, version: "test".into() };
        proxy.send(FromProxy { message: Some(Message::Hello(hello)) }).await.unwrap();
        let hear = ConfigClient::new(channel).stream(ReceiverStream::new(said)).await?.into_inner();
        Ok(Self { say, hear })
    }

    pub(super) async fn say(&self, message: Message) {
        self.say.send(FromProxy { message: Some(message) }).await.unwrap();
    }

    pub(super) async fn subscribe(&self, add: &[&str], drop: &[&str]) {
        let own = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect();
        self.say(Message::Subscribe(Subscribe { add: own(add), drop: own(drop) })).await;
    }

    pub(super) async fn ack(&self, version: u64) {
        self.say(Message::Ack(Ack { version, rejections: Vec::new() })).await;
    }

    /// The next message but the trust bundle, with which every stream begins.
    pub(super) async fn next(&mut self) -> Result<ToProxy, Status> {
        loop {
            let message = self.next_of_all().await?;
            if message.roots_der.is_empty() {
                return Ok(message);
            }
        }
    }

    pub(super) async fn next_of_all(&mut self) -> Result<ToProxy, Status> {
        let message = timeout(Duration::from_secs(5), self.hear.message()).await.expect("no message came");
        Ok(message?.expect("the stream ended"))
    }

    pub(super) async fn find_unhealthy(&self, service: &str, endpoint: &str) {
        let one = CheckedEndpoint { service: service.into(), endpoint: endpoint.into() };
        self.say(Message::Checked(Checked { unhealthy: vec![one] })).await;
    }

    pub(super) async fn silent(&mut self) -> bool {
        timeout(QUIET, self.hear.message()).await.is_err()
    }
}

pub(super) async fn front(operator: &Operator) -> Proxy {
    Proxy::open(operator.connect_as(FRONT).await, "shop/front-1").await.unwrap()
}

pub(super) fn canary(generation: i64, seconds: u32) -> Object {
    policy(
        "shop/p",
        generation,
        0,
        json!({
            "targetRefs": [{ "kind": "Service", "name": "back" }], "rules": [{ "timeout": format!("{seconds}s") }],
        }),
    )
}

#[tokio::test]
async fn the_workload_comes_first_then_what_is_subscribed_then_only_what_changes() {
    let operator = Operator::start(shop()).await;
    let mut proxy = front(&operator).await;
    let first = proxy.next().await.unwrap();
    let workload = first.workload.unwrap();
    assert_eq!((workload.pod.as_str(), workload.identity.as_str()), ("front-1", FRONT));
    assert_eq!(workload.mtls(), MtlsMode::Permissive);

    proxy.subscribe(&["10.96.0.1:80", "192.0.2.1:443"], &[]).await;
    let second = proxy.next().await.unwrap();
    assert!(second.version > first.version);
    assert_eq!(second.services.len(), 1);
    assert_eq!(second.services[0].key, "shop/back:80");
    let targets: Vec<_> = second.addresses.iter().map(|a| a.target.clone().unwrap()).collect();
    assert_eq!(targets[0], Target::Service("shop/back:80".into()));
    assert!(matches!(targets[1], Target::External(_)));

    // A change of what it calls reaches it.
    let two = [("10.0.0.1", "back-1", true), ("10.0.0.2", "back-2", true)];
    operator.apply(pod("shop/back-2", "back", "10.0.0.2"));
    operator.apply(slice("shop/back", &[("http", 8080)], &two));
    let third = proxy.next().await.unwrap();
    assert_eq!(third.services[0].clusters[0].endpoints.len(), 2);
    assert!(third.addresses.is_empty() && third.workload.is_none(), "what is absent is unchanged");

    // Others, and events that change nothing, do not.
    operator.apply(slice("shop/other", &[("http", 8080)], &[("10.0.0.1", "back-1", true)]));
    operator.apply(slice("shop/back", &[("http", 8080)], &two));
    operator.apply(slice("shop/back", &[("http", 8080)], &[two[1], two[0]]));
    assert!(proxy.silent().await);

    // Its own authentication does.
    operator.apply(authentication("shop/all", 0, json!({ "mtls": { "mode": "Strict" } })));
    assert_eq!(proxy.next().await.unwrap().workload.unwrap().mtls(), MtlsMode::Strict);
}

#[tokio::test]
async fn a_burst_of_changes_is_one_message() {
    let operator = Operator::start(shop()).await;
    let mut proxy = front(&operator).await;
    proxy.next().await.unwrap();
    proxy.subscribe(&["10.96.0.1:80"], &[]).await;
    proxy.next().await.unwrap();
    for i in 0..20 {
        operator.apply(canary(i, 1 + u32::try_from(i).unwrap()));
    }
    let mut messages = vec![proxy.next().await.unwrap()];
    while let Ok(Ok(Some(message))) = timeout(QUIET, proxy.hear.message()).await {
        messages.push(message);
    }
    assert!(messages.len() <= 3, "{} messages", messages.len());
    assert_eq!(messages.last().unwrap().services[0].routes[0].timeout_ms, 20_000);
}

#[tokio::test]
async fn what_is_dropped_is_removed_and_not_told_of_again() {
    let operator = Operator::start(shop()).await;
    let mut proxy = front(&operator).await;
    proxy.next().await.unwrap();
    // Two addresses, one service: it stays until the last goes.
    proxy.subscribe(&["10.96.0.1:80", "10.0.0.1:8080"], &[]).await;
    let message = proxy.next().await.unwrap();
    assert_eq!((message.services.len(), message.addresses.len()), (1, 2));
    proxy.subscribe(&[], &["10.96.0.1:80"]).await;
    assert!(proxy.silent().await);
    proxy.subscribe(&[], &["10.0.0.1:8080"]).await;
    assert_eq!(proxy.next().await.unwrap().removed_services, ["shop/back:80"]);
    operator.apply(canary(1, 1));
    assert!(proxy.silent().await);
    proxy.subscribe(&["10.96.0.1:80"], &[]).await;
    let again = proxy.next().await.unwrap();
    assert_eq!(again.services[0].routes[0].timeout_ms, 1_000);
}

#[tokio::test]
async fn an_address_that_becomes_something_else_is_told_with_its_new_service() {
    let operator = Operator::start(shop()).await;
    let mut proxy = front(&operator).await;
    proxy.next().await.unwrap();
    proxy.subscribe(&["10.96.0.7:80"], &[]).await;
    let unknown = proxy.next().await.unwrap();
    assert!(matches!(unknown.addresses[0].target, Some(Target::External(_))));
    operator.apply(service("shop/late", "10.96.0.7", &[("http", 80, 8080)]));
    let late = proxy.next().await.unwrap();
    assert_eq!(late.addresses[0].target, Some(Target::Service("shop/late:80".into())));
    assert_eq!(late.services[0].key, "shop/late:80");
    // Its Service is gone: what the proxy has stays in force, until somebody else has the address.
    operator.shared.store.apply(crate::index::Change::<crate::index::Service>::Delete(key_of("shop/late")));
    operator.apply(service("shop/later", "10.96.0.7", &[("http", 80, 8080)]));
    let later = proxy.next().await.unwrap();
    assert_eq!(later.addresses[0].target, Some(Target::Service("shop/later:80".into())));
    assert_eq!(later.removed_services, ["shop/late:80"]);
}

#[tokio::test]
async fn acknowledgements_and_rejections_are_counted_by_resource_and_generation() {
    let operator = Operator::start(shop()).await;
    operator.apply(canary(5, 1));
    let mut proxy = front(&operator).await;
    proxy.next().await.unwrap();
    proxy.subscribe(&["10.96.0.1:80"], &[]).await;
    let message = proxy.next().await.unwrap();
    let row = || {
        let sum = operator.shared.fleet.sum();
        let row = sum.rows.into_iter().find(|r| r.source.as_ref().unwrap().kind == "TrafficPolicy").unwrap();
        (row.source.unwrap().generation, row.applied, row.total, row.rejection)
    };
    assert_eq!(row(), (5, 0, 1, String::new()));
    proxy.ack(message.version).await;
    until(|| row() == (5, 1, 1, String::new())).await;

    operator.apply(canary(6, 2));
    let message = proxy.next().await.unwrap();
    assert_eq!(row(), (6, 0, 1, String::new()));
    let rejections = vec![Rejection { resource: "shop/back:80".into(), message: "too fancy".into() }];
    proxy.say(Message::Ack(Ack { version: message.version, rejections })).await;
    until(|| row() == (6, 0, 1, "too fancy".into())).await;

    let ejected = vec![Ejection {
        service: "shop/back:80".into(),
        endpoint: "10.0.0.1:8080".into(),
        cause: "5 in a row".into(),
    }];
    proxy.say(Message::Ejections(Ejections { ejected })).await;
    until(|| operator.shared.fleet.sum().ejected.len() == 1).await;
    assert_eq!(operator.shared.metrics.proxies.get(), 1);
    drop(proxy);
    until(|| operator.shared.fleet.sum().proxies == 0).await;
    assert_eq!(operator.shared.fleet.sum().rows, []);
}

#[tokio::test]
async fn decisions_that_a_proxy_reports_are_events_of_the_policies_that_govern_it_and_seldom() {
    let operator = Operator::start(shop()).await;
    operator.apply(authorization(
        "shop/no",
        1,
        json!({ "action": "Deny", "audit": true, "rules": [{ "from": [{ "namespaces": ["shop"] }] }] }),
    ));
    let mut proxy = front(&operator).await;
    proxy.next().await.unwrap();
    let decision = |policy: &str, times| Decision {
        policy: policy.into(),
        rule: "0".into(),
        action: "deny".into(),
        denied: true,
        caller: "spiffe://cluster.local/ns/shop/sa/back".into(),
        times,
    };
    let report = |times| Decisions {
        decisions: vec![decision("shop/no", times), decision("bank/no", 3)],
        left_out: 2,
    };
    let count =
        |fate| operator.shared.metrics.audit_kubernetes_events.get_or_create(&InEvents::new(fate)).get();
    proxy.say(Message::Decisions(report(12))).await;
    until(|| count(Fate::Written) == 12 && count(Fate::Dropped) == 5).await;
    proxy.say(Message::Decisions(report(1))).await;
    until(|| count(Fate::Dropped) == 11).await;
    let events = operator.events.lock().unwrap().clone();
    let [event] = &events[..] else { panic!("{events:?}") };
    assert_eq!(
        (&event["regarding"]["kind"], &event["regarding"]["name"]),
        (&json!("AuthorizationPolicy"), &json!("no"))
    );
    assert_eq!((&event["reason"], &event["series"]["count"]), (&json!("Denied"), &json!(12)));
    let text = "spiffe://cluster.local/ns/shop/sa/back was denied: by rule 0";
    assert_eq!(event["note"], text);
}

pub(super) async fn until(mut holds: impl FnMut() -> bool) {
    for _ in 0..250 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it never came to hold");
}

#[tokio::test]
async fn whoever_is_not_the_pods_workload_is_refused() {
    let operator = Operator::start(shop()).await;
    let refused = async |identity: &str, pod: &str| {
        let mut proxy = Proxy::open(operator.connect_as(identity).await, pod).await?;
        proxy.next().await.map(|_| ())
    };
    for (identity, pod) in [
        ("spiffe://cluster.local/ns/shop/sa/back", "shop/front-1"),
        ("spiffe://cluster.local/ns/bank/sa/front", "shop/front-1"),
        ("spiffe://other.domain/ns/shop/sa/front", "shop/front-1"),
    ] {
        let status = refused(identity, pod).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{identity} as {pod}: {status}");
    }
    let anonymous = Proxy::open(operator.anonymous().await, "shop/front-1").await;
    assert_eq!(anonymous.err().unwrap().code(), Code::Unauthenticated);
    assert_eq!(operator.shared.metrics.streams_refused.get(), 4);
}

#[tokio::test]
async fn a_certificate_of_another_root_gets_no_connection() {
    let operator = Operator::start(shop()).await;
    let foreign = Authority::new(
        Root::generate(&"cluster.local".parse().unwrap(), std::time::Duration::from_secs(86_400)).unwrap(),
        Duration::from_secs(3600),
    );
    let config = operator.client(Some(certificate_of(&foreign, FRONT)));
    let opened = async {
        let channel = connect(operator.at, config).await.map_err(|e| Status::unavailable(e.to_string()))?;
        let mut proxy = Proxy::open(channel, "shop/front-1").await?;
        proxy.next().await
    };
    assert!(opened.await.is_err());
    assert_eq!(operator.shared.fleet.sum().proxies, 0);
}

#[tokio::test]
async fn a_pod_that_comes_a_moment_later_is_waited_for() {
    let mut objects = shop();
    let late = objects.remove(3);
    let operator = Operator::start(objects).await;
    let mut proxy = front(&operator).await;
    assert!(proxy.silent().await);
    operator.apply(late);
    assert!(proxy.next().await.unwrap().workload.is_some());
}

#[tokio::test]
async fn what_is_no_address_or_no_hello_ends_the_stream_with_a_sentence() {
    let operator = Operator::start(shop()).await;
    let mut proxy = front(&operator).await;
    proxy.next().await.unwrap();
    proxy.subscribe(&["not an address"], &[]).await;
    let status = proxy.next().await.unwrap_err();
    assert!(status.message().contains("not an address"), "{status}");

    let (say, said) = mpsc::channel(1);
    say.send(FromProxy { message: Some(Message::Ack(Ack::default())) }).await.unwrap();
    let channel = operator.connect_as(FRONT).await;
    let mut hear = ConfigClient::new(channel).stream(ReceiverStream::new(said)).await.unwrap().into_inner();
    assert_eq!(hear.message().await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_new_serving_certificate_is_taken_by_new_connections_and_a_new_root_is_told() {
    let operator = Operator::start(shop()).await;
    let mut proxy = front(&operator).await;
    proxy.next().await.unwrap();
    operator.shared.serving.renew().unwrap();
    let mut second = front(&operator).await;
    second.next().await.unwrap();
    let root =
        Root::generate(&"cluster.local".parse().unwrap(), std::time::Duration::from_secs(86_400)).unwrap();
    let der = root.der.to_vec();
    operator.shared.authority.replace(root);
    assert_eq!(proxy.next_of_all().await.unwrap().roots_der, vec![der]);
}

#[tokio::test]
async fn who_trusts_the_next_root_is_counted_by_acknowledgements_of_that_very_bundle() {
    let operator = Operator::start(shop()).await;
    let root = || Root::generate(&"cluster.local".parse().unwrap(), Duration::from_secs(86_400)).unwrap();
    let mut proxy = front(&operator).await;
    let first = proxy.next_of_all().await.unwrap();
    assert_eq!(first.roots_der.len(), 1, "a stream begins with the bundle");
    proxy.ack(first.version).await;
    proxy.next().await.unwrap();

    let before = operator.shared.authority.roots();
    let both = before.begin(root(), std::time::SystemTime::now());
    operator.shared.authority.replace(both.clone());
    let second = proxy.next_of_all().await.unwrap();
    assert_eq!((second.roots_der.len(), second.roots_epoch), (2, both.epoch));
    let trusted = |roots: &crate::ca::Roots| {
        let reply = operator.shared.applied();
        let source = crate::serve::bundle_source(roots);
        let row = reply.rows.iter().find(|row| row.source.as_ref() == Some(&source));
        (row.map(|row| (row.applied, row.total)), reply.roots_epoch)
    };
    assert_eq!(trusted(&both), (Some((0, 1)), both.epoch));
    assert_eq!(trusted(&before).0, None, "what was acknowledged before does not count");
    proxy.ack(second.version).await;
    for _ in 0..100 {
        if trusted(&both).0 == Some((1, 1)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the acknowledgement was not counted: {:?}", trusted(&both));
}

#[tokio::test]
async fn stopping_ends_the_streams_so_that_proxies_go_elsewhere() {
    let operator = Operator::start(shop()).await;
    let mut proxy = front(&operator).await;
    proxy.next().await.unwrap();
    operator.shared.stop.cancel();
    assert_eq!(proxy.next().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn only_an_operator_may_ask_what_is_applied() {
    let operator = Operator::start(shop()).await;
    let ask = async |identity: &str| {
        PeersClient::new(operator.connect_as(identity).await)
            .applied(AppliedRequest {})
            .await
            .map_err(|s| s.code())
    };
    assert_eq!(ask(FRONT).await.unwrap_err(), Code::PermissionDenied);
    assert_eq!(
        ask("spiffe://cluster.local/ns/shop/sa/weft-operator").await.unwrap_err(),
        Code::PermissionDenied
    );
    ask("spiffe://cluster.local/ns/weft-system/sa/weft-operator").await.unwrap();
    let anonymous = PeersClient::new(operator.anonymous().await).applied(AppliedRequest {}).await;
    assert_eq!(anonymous.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_pod_has_only_so_many_streams() {
    let operator = Operator::start(shop()).await;
    let mut open = Vec::new();
    for _ in 0..8 {
        let mut proxy = front(&operator).await;
        proxy.next().await.unwrap();
        open.push(proxy);
    }
    let mut refused = front(&operator).await;
    assert_eq!(refused.next().await.unwrap_err().code(), Code::ResourceExhausted);
    open.pop();
    until(|| operator.shared.fleet.sum().proxies == 7).await;
    front(&operator).await.next().await.unwrap();
}

pub(super) fn checked_back() -> Object {
    let spec = json!({ "target": { "service": "back" }, "health": { "active": { "http": { "path": "/healthz" } } } });
    mesh_service("shop/back", 1, 0, spec)
}

/// The checkers, and whether the endpoint is unhealthy, in the next message.
pub(super) async fn next_check(proxy: &mut Proxy) -> (Vec<String>, bool) {
    let message = proxy.next().await.unwrap();
    let cluster = &message.services[0].clusters[0];
    (cluster.checkers.clone(), cluster.endpoints[0].check.as_ref().unwrap().unhealthy)
}

#[tokio::test]
async fn callers_learn_who_checks_and_what_most_of_the_checkers_found() {
    let mut objects = shop();
    objects.push(checked_back());
    objects.push(pod("shop/front-2", "front", "10.0.0.10"));
    let operator = Operator::start(objects).await;
    let shared = &operator.shared;
    // As `checks::keep` does, with no other replica.
    let keep = tokio::spawn({
        let shared = std::sync::Arc::clone(shared);
        async move {
            loop {
                shared.fleet.checks_changed().await;
                shared.store.checked(crate::checks::merge([shared.fleet.checks()]));
            }
        }
    });
    let mut one = front(&operator).await;
    one.next().await.unwrap();
    one.subscribe(&["10.96.0.1:80"], &[]).await;
    // Nobody checks yet that anybody would know of.
    assert_eq!(next_check(&mut one).await, (vec![], false));
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(next_check(&mut one).await, (names(&["shop/front-1"]), false));
    let mut two = Proxy::open(operator.connect_as(FRONT).await, "shop/front-2").await.unwrap();
    two.next().await.unwrap();
    two.subscribe(&["10.96.0.1:80"], &[]).await;
    let both = names(&["shop/front-1", "shop/front-2"]);
    assert_eq!(next_check(&mut one).await, (both.clone(), false));
    while next_check(&mut two).await.0 != both {}

    let found = |endpoint: &str| {
        let one = CheckedEndpoint { service: "shop/back:80".into(), endpoint: endpoint.into() };
        Message::Checked(Checked { unhealthy: vec![one] })
    };
    // One of two is not most; and what the proxy does not call is not its to judge.
    one.say(found("10.0.0.1:8080")).await;
    one.say(Message::Checked(Checked {
        unhealthy: vec![
            CheckedEndpoint { service: "shop/other:80".into(), endpoint: "10.0.0.1:8080".into() },
            CheckedEndpoint { service: "shop/back:80".into(), endpoint: "10.0.0.1:8080".into() },
        ],
    }))
    .await;
    assert!(one.silent().await && two.silent().await);
    two.say(found("10.0.0.1:8080")).await;
    assert_eq!(next_check(&mut one).await, (both.clone(), true));
    assert_eq!(next_check(&mut two).await, (both, true));
    // A checker that leaves takes its word with it, and the other one's is most again.
    drop(two);
    assert_eq!(next_check(&mut one).await, (names(&["shop/front-1"]), true));
    one.say(Message::Checked(Checked::default())).await;
    assert_eq!(next_check(&mut one).await, (names(&["shop/front-1"]), false));
    keep.abort();
}

#[tokio::test]
async fn only_replicas_may_ask_for_checks() {
    let operator = Operator::start(shop()).await;
    let ask = async |identity: &str| {
        let channel = operator.connect_as(identity).await;
        PeersClient::new(channel).checks(ChecksRequest {}).await.map_err(|status| status.code())
    };
    assert_eq!(ask(FRONT).await.unwrap_err(), Code::PermissionDenied);
    ask("spiffe://cluster.local/ns/weft-system/sa/weft-operator").await.unwrap();
}

/// A proxy speaks for the keys of its own pod's issuers only.
#[tokio::test]
async fn only_keys_that_the_own_pod_is_told_of_are_asked_for_again() {
    let keys = "http://keys.shop/own";
    let own = json!({ "issuers": [{ "issuer": "a", "jwksUri": keys }] });
    let others = json!({ "selector": { "matchLabels": { "app": "back" } }, "issuers": [{ "issuer": "b", "jwksUri": "http://keys.shop/others" }] });
    let mut objects = shop();
    objects.extend([requests("shop/own", 0, own), requests("shop/others", 1, others)]);
    let operator = Operator::start(objects).await;
    let mut proxy = front(&operator).await;
    let told = proxy.next().await.unwrap().workload.unwrap().tokens.unwrap();
    assert!(told.issuers.iter().any(|issuer| issuer.key_source == keys));
    let sources = ["http://keys.shop/others", keys, "", "http://made.up.example"];
    let missed = KeysMissed { key_sources: sources.map(str::to_owned).into() };
    proxy.say(Message::KeysMissed(missed)).await;
    let mut noted = std::collections::BTreeSet::new();
    for _ in 0..500 {
        noted.extend(operator.shared.missed.take());
        if !noted.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // What comes after it was heard after it.
    proxy.say(Message::KeysMissed(KeysMissed::default())).await;
    noted.extend(operator.shared.missed.take());
    assert_eq!(noted.into_iter().collect::<Vec<_>>(), [keys]);
}
