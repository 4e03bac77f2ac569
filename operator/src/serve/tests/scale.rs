//! How the work grows with the cluster: with the number of services that a proxy calls, not with that of the cluster.
//! It counts; `make bench-control` measures.

use std::sync::Arc;

use weft_api::v1::Subscribe;

use crate::index::testing::*;
use crate::index::{Change, Key};
use crate::metrics::Metrics;
use crate::serve::Session;
use crate::store::{Mailbox, Store};

const PODS_EACH: usize = 10;

fn cluster(services: usize) -> Vec<Object> {
    let mut all = Vec::new();
    for s in 0..services {
        let (namespace, key) = (format!("ns{}", s % 50), format!("ns{}/svc{s}", s % 50));
        all.push(service(&key, &cluster_ip(s), &[("http", 80, 8080)]));
        let pods: Vec<(String, String)> =
            (0..PODS_EACH).map(|p| (pod_ip(s, p), format!("svc{s}-{p}"))).collect();
        let endpoints: Vec<_> = pods.iter().map(|(ip, name)| (ip.as_str(), name.as_str(), true)).collect();
        all.push(slice(&key, &[("http", 8080)], &endpoints));
        for (ip, name) in &pods {
            all.push(pod(&format!("{namespace}/{name}"), &format!("svc{s}"), ip));
        }
    }
    all
}

fn cluster_ip(service: usize) -> String {
    format!("10.96.{}.{}", service / 250, service % 250 + 1)
}

fn pod_ip(service: usize, pod: usize) -> String {
    let n = service * PODS_EACH + pod;
    format!("10.{}.{}.{}", 100 + n / 62_500, n / 250 % 250, n % 250 + 1)
}

struct Proxy {
    number: u64,
    mailbox: Arc<Mailbox>,
    session: Session,
}

impl Proxy {
    /// Calls these services.
    fn new(store: &Store, pod: Key, calls: impl Iterator<Item = usize>) -> Self {
        let number = store.session();
        let mut proxy = Self { number, mailbox: Arc::default(), session: Session::new(pod) };
        let add = calls.map(|s| format!("{}:80", cluster_ip(s))).collect();
        let subscribe = Subscribe { add, drop: Vec::new() };
        let sent = store.view(|view| proxy.session.subscribe(view, &subscribe)).unwrap();
        assert!(!sent.is_empty());
        proxy.register(store);
        proxy.look(store);
        proxy
    }

    fn register(&mut self, store: &Store) {
        let (joined, _) = self.session.topics();
        store.join(self.number, &self.mailbox, &joined);
        self.mailbox.put(joined);
    }

    /// How many messages there are for it.
    fn look(&mut self, store: &Store) -> usize {
        let topics = self.mailbox.take().topics;
        if topics.is_empty() {
            return 0;
        }
        store.view(|view| self.session.refresh(view, &topics)).len()
    }
}

fn store_of(services: usize) -> Store {
    Store::new(index_of(cluster(services)), Arc::new(Metrics::default()))
}

fn turn(store: &Store, service: usize, ready: bool) {
    let pods: Vec<_> = (0..PODS_EACH).map(|p| (pod_ip(service, p), format!("svc{service}-{p}"))).collect();
    let endpoints: Vec<_> =
        pods.iter().enumerate().map(|(i, (ip, name))| (ip.as_str(), name.as_str(), ready || i > 0)).collect();
    let key = format!("ns{}/svc{service}", service % 50);
    let Object::Slice(slice) = slice(&key, &[("http", 8080)], &endpoints) else { unreachable!() };
    store.apply(Change::Apply(slice));
}

#[test]
fn a_change_reaches_only_those_who_call_the_service_and_is_compiled_once() {
    let store = store_of(60);
    let mut proxies: Vec<Proxy> = (0..60)
        .map(|i| Proxy::new(&store, Key::new("ns0", format!("p{i}")), (i..i + 3).map(|s| s % 60)))
        .collect();
    proxies.iter_mut().for_each(|p| {
        p.look(&store);
    });
    let compiled = store.compiled();
    turn(&store, 7, false);
    let told: Vec<usize> = (0..60).filter(|i| proxies[*i].look(&store) > 0).collect();
    assert_eq!(told, [5, 6, 7]);
    assert_eq!(store.compiled() - compiled, 1);
}
