//! One subscription without a socket: its bounds, and the order of what it sends.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;
use weft_api::v1::{self, Ack, Subscribe, ToProxy, address::Target};

use crate::index::testing::*;
use crate::index::{Change, Key};
use crate::metrics::Metrics;
use crate::serve::fleet::Standing;
use crate::serve::wire::Update;
use crate::serve::{MAX_ADDRESSES, Refusal, Session};
use crate::store::{Store, Topic};

fn store(objects: Vec<Object>) -> Store {
    Store::new(index_of(objects), Arc::new(Metrics::default()))
}

fn add(texts: impl IntoIterator<Item = String>) -> Subscribe {
    Subscribe { add: texts.into_iter().collect(), drop: Vec::new() }
}

fn subscribe(store: &Store, session: &mut Session, subscribe: &Subscribe) -> Result<Vec<ToProxy>, Refusal> {
    let sent = store.view(|view| session.subscribe(view, subscribe))?;
    Ok(sent.iter().map(Update::read).collect())
}

fn refresh(store: &Store, session: &mut Session, topics: &HashSet<Topic>) -> Vec<ToProxy> {
    store.view(|view| session.refresh(view, topics)).iter().map(Update::read).collect()
}

#[test]
fn beyond_the_bound_only_what_is_not_of_the_mesh_is_answered() {
    let store = store(vec![service("shop/back", "10.96.0.1", &[("http", 80, 80)])]);
    let mut session = Session::new(Key::new("shop", "p"));
    let outside = (0..MAX_ADDRESSES).map(|i| format!("192.0.{}.{}:443", i / 250, i % 250 + 1));
    subscribe(&store, &mut session, &add(outside)).unwrap();
    assert_eq!(session.len(), MAX_ADDRESSES);
    let answer = subscribe(&store, &mut session, &add(["198.51.100.1:1".into()])).unwrap();
    assert!(matches!(answer[0].addresses[0].target, Some(Target::External(_))));
    assert_eq!(session.len(), MAX_ADDRESSES);
    assert_eq!(subscribe(&store, &mut session, &add(["10.96.0.1:80".into()])), Err(Refusal::TooMany));
}

#[test]
fn a_large_answer_is_cut_into_messages_with_services_before_their_addresses() {
    let pods: Vec<String> = (0..4_000).map(|i| format!("10.1.{}.{}", i / 250, i % 250 + 1)).collect();
    let endpoints: Vec<(&str, &str, bool)> = pods.iter().map(|ip| (ip.as_str(), "", true)).collect();
    let mut objects = Vec::new();
    for i in 0..40 {
        let key = format!("shop/s{i}");
        objects.push(service(&key, &format!("10.96.0.{i}"), &[("http", 80, 8080)]));
        objects.push(slice(&key, &[("http", 8080)], &endpoints));
    }
    let store = store(objects);
    let mut session = Session::new(Key::new("shop", "p"));
    let messages = subscribe(&store, &mut session, &add((0..40).map(|i| format!("10.96.0.{i}:80")))).unwrap();
    assert!(messages.len() > 1);
    let mut known = HashSet::new();
    let mut version = 0;
    for message in messages {
        assert!(prost::Message::encoded_len(&message) < 2 << 20);
        assert!(message.version > version);
        version = message.version;
        known.extend(message.services.into_iter().map(|s| s.key));
        for address in message.addresses {
            let Some(Target::Service(key)) = address.target else { panic!("{address:?}") };
            assert!(known.contains(&key));
        }
    }
}

#[test]
fn new_endpoints_under_the_same_policy_do_not_make_it_pending() {
    let store =
        store(vec![service("shop/back", "10.96.0.1", &[("http", 80, 8080)]), super::stream::canary(1, 1)]);
    let mut session = Session::new(Key::new("shop", "p"));
    let version = subscribe(&store, &mut session, &add(["10.96.0.1:80".into()])).unwrap()[0].version;
    session.acknowledge(&Ack { version, rejections: Vec::new() });
    let Object::Slice(entry) = slice("shop/back", &[("http", 8080)], &[("10.0.0.1", "", true)]) else {
        unreachable!()
    };
    store.apply(Change::Apply(entry));
    let topics = HashSet::from([Topic::Service(Key::new("shop", "back"))]);
    let sent = refresh(&store, &mut session, &topics);
    assert_eq!(sent[0].services.len(), 1);
    assert!(session.report()[0].applied);
}

proptest! {
    /// Whatever is added and dropped, in whatever order: the proxy's picture is that of a fresh subscription.
    #[test]
    fn a_subscription_never_drifts(steps in proptest::collection::vec((0usize..6, any::<bool>(), 0u32..4), 1..40)) {
        let texts = ["10.96.0.1:80", "10.96.0.2:80", "10.0.0.1:8080", "10.0.0.1:9", "10.0.0.2:8080", "192.0.2.1:1"];
        let base = || vec![
            service("shop/back", "10.96.0.1", &[("http", 80, 8080)]),
            service("shop/next", "10.96.0.2", &[("http", 80, 8080)]),
            slice("shop/back", &[("http", 8080)], &[("10.0.0.1", "b-1", true)]),
            slice("shop/next", &[("http", 8080)], &[("10.0.0.2", "b-2", true)]),
            pod("shop/b-1", "back", "10.0.0.1"),
            pod("shop/b-2", "next", "10.0.0.2"),
        ];
        let store = store(base());
        let mut session = Session::new(Key::new("shop", "b-1"));
        let mut picture = Picture::default();
        let mut held: HashSet<&str> = HashSet::new();
        for (which, adds, event) in steps {
            let text = texts[which];
            let change = if adds {
                held.insert(text);
                Subscribe { add: vec![text.into()], drop: Vec::new() }
            } else {
                held.remove(text);
                Subscribe { add: Vec::new(), drop: vec![text.into()] }
            };
            picture.apply(subscribe(&store, &mut session, &change).unwrap());
            picture.forget(&held);
            let ready = event % 2 == 0;
            let Object::Slice(entry) = slice("shop/back", &[("http", 8080)], &[("10.0.0.1", "b-1", ready)]) else { unreachable!() };
            store.apply(Change::Apply(entry));
            let topics: HashSet<Topic> = session.all_topics().cloned().collect();
            picture.apply(refresh(&store, &mut session, &topics));
        }
        let mut fresh = Picture::default();
        let mut other = Session::new(Key::new("shop", "b-1"));
        let topics: HashSet<Topic> = other.all_topics().cloned().collect();
        fresh.apply(refresh(&store, &mut other, &topics));
        fresh.apply(subscribe(&store, &mut other, &add(held.iter().map(|t| (*t).to_owned()))).unwrap());
        prop_assert_eq!(picture, fresh);
    }
}

/// What a proxy knows.
#[derive(Debug, Default, PartialEq)]
struct Picture {
    addresses: std::collections::BTreeMap<String, Option<Target>>,
    services: std::collections::BTreeMap<String, weft_api::v1::Service>,
}

impl Picture {
    fn apply(&mut self, messages: Vec<ToProxy>) {
        for message in messages {
            self.services.extend(message.services.into_iter().map(|s| (s.key.clone(), s)));
            self.addresses.extend(message.addresses.into_iter().map(|a| (a.address, a.target)));
            for key in message.removed_services {
                self.services.remove(&key);
            }
        }
    }

    fn forget(&mut self, held: &HashSet<&str>) {
        self.addresses.retain(|text, _| held.contains(text.as_str()));
    }
}

#[test]
fn external_services_are_told_without_being_asked_for_and_follow_their_policies() {
    let external = |hosts: serde_json::Value| {
        let external = json!({ "hosts": hosts, "ports": [{ "port": 443, "protocol": "Tls" }] });
        let Object::MeshService(entry) =
            mesh_service("shop/api", 1, 0, json!({ "target": { "external": external } }))
        else {
            unreachable!()
        };
        entry
    };
    let store = store(vec![mesh_service(
        "other/api",
        1,
        0,
        json!({ "target": { "external": { "hosts": ["b.example"], "ports": [{ "port": 443, "protocol": "Tls" }] } } }),
    )]);
    let mut session = Session::new(Key::new("shop", "p"));
    let topics: HashSet<Topic> = session.topics().0.into_iter().collect();
    let sent = refresh(&store, &mut session, &topics);
    assert!(sent.iter().all(|sent| sent.services.is_empty()), "another namespace's are not its own");

    store.apply(Change::Apply(external(json!(["a.example"]))));
    let sent = refresh(&store, &mut session, &HashSet::from([Topic::External("shop".into())]));
    assert_eq!((sent.len(), &*sent[0].services[0].key), (1, "shop/api.external:443"));
    let about = HashSet::from([Topic::Service(Key::new("shop", "api.external"))]);
    assert_eq!(refresh(&store, &mut session, &about), [], "nothing new");

    let Object::MeshService(entry) = mesh_service(
        "shop/api",
        2,
        0,
        json!({ "target": { "external": { "hosts": ["c.example"], "ports": [{ "port": 443, "protocol": "Tls" }] } } }),
    ) else {
        unreachable!()
    };
    store.apply(Change::Apply(entry));
    let sent = refresh(&store, &mut session, &about);
    assert_eq!(sent[0].services[0].hosts, ["c.example"]);
    store.apply(Change::<crate::index::policy::Resource<weft_crds::MeshServiceSpec>>::Delete(Key::new(
        "shop", "api",
    )));
    let sent = refresh(&store, &mut session, &about);
    assert_eq!(sent[0].removed_services, ["shop/api.external:443"]);
}

#[test]
fn other_trust_domains_are_told_at_first_even_if_there_are_none_and_then_when_they_change() {
    let root =
        crate::ca::Root::generate(&"partner.example".parse().unwrap(), Duration::from_secs(86_400)).unwrap();
    let spec = json!({ "trustDomain": "partner.example", "pem": root.certificate_pem });
    let entry = |created| match trust_domain("weft-system/p", created, spec.clone(), json!(null)) {
        Object::TrustDomain(entry) => entry,
        other => panic!("{other:?}"),
    };
    let store = store(vec![]);
    let mut session = Session::new(Key::new("shop", "p"));
    let about = HashSet::from([Topic::Federation]);
    assert!(session.topics().0.contains(&Topic::Federation));
    let first = refresh(&store, &mut session, &about);
    assert_eq!(first[0].federation, Some(v1::Federation::default()), "of before there may be some");
    assert_eq!(refresh(&store, &mut session, &about), []);
    store.apply(Change::Apply(entry(1)));
    let sent = refresh(&store, &mut session, &about);
    let bundles = &sent[0].federation.as_ref().unwrap().bundles;
    assert_eq!((bundles.len(), &*bundles[0].trust_domain), (1, "partner.example"));
    assert_eq!(bundles[0].roots_der, [root.der.to_vec()]);
    let applied = |session: &Session| {
        let of_it = |standing: &Standing| standing.sources.iter().any(|source| source.kind == "TrustDomain");
        session.report().into_iter().find(of_it).map(|standing| standing.applied)
    };
    assert_eq!(applied(&session), Some(false));
    session.acknowledge(&Ack { version: sent[0].version, ..Ack::default() });
    assert_eq!(applied(&session), Some(true));
    store.apply(Change::<crate::index::policy::Resource<weft_crds::TrustDomainSpec>>::Delete(Key::new(
        "weft-system",
        "p",
    )));
    let sent = refresh(&store, &mut session, &about);
    assert_eq!(sent[0].federation, Some(v1::Federation::default()));
    assert_eq!(applied(&session), None);
}
