//! Against an operator over real sockets.

use super::*;
use crate::balance::{self, Outcome};
use crate::identity;
use crate::outlier::Failure;
use crate::testing::operator::{Operator, Session};
use crate::testing::{Ca, identity as spiffe};
use std::sync::atomic::AtomicU64;
use tempfile::TempDir;
use weft_api::{Reason, v1};

struct Proxy {
    control: Control,
    task: tokio::task::JoinHandle<()>,
    _dir: TempDir,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Control {
    fn share(&self) -> Self {
        Self {
            settings: Arc::clone(&self.settings),
            tls: Arc::clone(&self.tls),
            store: Arc::clone(&self.store),
            status: Arc::clone(&self.status),
            names: Names::default(),
            decisions: Arc::clone(&self.decisions),
        }
    }
}

async fn start(operator: &Operator) -> Proxy {
    start_through(operator, operator.address.port()).await
}

async fn start_through(operator: &Operator, port: u16) -> Proxy {
    let dir = TempDir::new().unwrap();
    let mut settings = operator.settings(&dir);
    settings.operator.port = port;
    let control = Control {
        settings: Arc::new(settings),
        tls: Arc::new(Tls::new()),
        store: Arc::new(SnapshotStore::new()),
        status: Arc::new(Status::new(Arc::new(crate::metrics::Metrics::new()))),
        names: Names::default(),
        decisions: Arc::default(),
    };
    identity::sign(&control.settings, &control.tls).await.unwrap();
    let task = tokio::spawn(control.share().run());
    Proxy { control, task, _dir: dir }
}

impl Proxy {
    fn store(&self) -> &Arc<SnapshotStore> {
        &self.control.store
    }

    fn ask(&self, address: &str) -> tokio::task::JoinHandle<Result<Target, Reason>> {
        let (store, address) = (Arc::clone(self.store()), address.parse().unwrap());
        tokio::spawn(async move { store.resolve(address).await })
    }

    fn known(&self, address: &str) -> Option<Target> {
        self.store().load().addresses.get(&address.parse().unwrap()).cloned()
    }
}

async fn opened(operator: &mut Operator) -> Session {
    let mut session = operator.session().await;
    assert_eq!(session.peer, spiffe("shop", "front"));
    let hello = session.hello().await;
    assert_eq!((hello.namespace.as_str(), hello.pod.as_str()), ("shop", "front-1"));
    session
}

fn workload() -> v1::Workload {
    v1::Workload {
        namespace: "shop".to_owned(),
        pod: "front-1".to_owned(),
        name: "front".to_owned(),
        identity: spiffe("shop", "front").to_string(),
        mtls: v1::MtlsMode::Permissive.into(),
        ..Default::default()
    }
}

fn service(endpoints: &[&str]) -> v1::Service {
    let key = "shop/back:80";
    let cluster = v1::Cluster {
        name: key.to_owned(),
        endpoints: endpoints
            .iter()
            .map(|address| v1::Endpoint {
                address: (*address).to_owned(),
                weight: 1,
                identity: spiffe("shop", "back").to_string(),
                pod: "back-1".to_owned(),
                ..Default::default()
            })
            .collect(),
        outlier: Some(v1::Outlier {
            consecutive_failures: 5,
            base_ejection_ms: 60_000,
            max_ejection_ms: 60_000,
            max_ejected_percent: 100,
            ..Default::default()
        }),
        connect_timeout_ms: 1000,
        idle_timeout_ms: 1000,
        ..Default::default()
    };
    v1::Service {
        key: key.to_owned(),
        namespace: "shop".to_owned(),
        name: "back".to_owned(),
        port: 80,
        clusters: vec![cluster],
        routes: vec![v1::Route {
            name: "default".to_owned(),
            backends: vec![v1::Backend { cluster: key.to_owned(), weight: 1 }],
            ..Default::default()
        }],
        default_cluster: key.to_owned(),
        ..Default::default()
    }
}

fn to_service(address: &str) -> v1::Address {
    let target = v1::address::Target::Service("shop/back:80".to_owned());
    v1::Address { address: address.to_owned(), target: Some(target) }
}

fn external(address: &str) -> v1::Address {
    v1::Address { address: address.to_owned(), target: Some(v1::address::Target::External(v1::External {})) }
}

fn back(addresses: &[&str], endpoints: &[&str]) -> ToProxy {
    ToProxy {
        services: vec![service(endpoints)],
        addresses: addresses.iter().map(|at| to_service(at)).collect(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_first_call_subscribes_and_gets_its_answer() {
    let mut operator = Operator::start();
    let proxy = start(&operator).await;
    let mut session = opened(&mut operator).await;
    session.send(ToProxy { workload: Some(workload()), ..Default::default() }).await;
    assert!(proxy.store().load().workload.is_some());

    let (service, outside) = (proxy.ask("10.96.0.5:80"), proxy.ask("[fd00::9]:443"));
    let mut asked = session.subscribe().await.add;
    if asked.len() < 2 {
        asked.extend(session.subscribe().await.add);
    }
    asked.sort();
    assert_eq!(asked, ["10.96.0.5:80", "[fd00::9]:443"]);
    let mut update = back(&["10.96.0.5:80"], &["10.1.0.1:8080"]);
    update.addresses.push(external("[fd00::9]:443"));
    assert!(session.send(update).await.rejections.is_empty());
    assert!(matches!(service.await.unwrap(), Ok(Target::Service(s)) if &*s.key == "shop/back:80"));
    assert!(matches!(outside.await.unwrap(), Ok(Target::External)));
    assert!(proxy.control.status.is_connected());
    assert_eq!(proxy.control.status.version(), 2);
    // A second call of the same costs nothing.
    proxy.ask("10.96.0.5:80").await.unwrap().unwrap();
    assert!(session.is_silent().await);
}

#[tokio::test]
async fn after_a_reconnect_all_that_is_held_is_subscribed_and_live_state_stays() {
    let mut operator = Operator::start();
    let proxy = start(&operator).await;
    let mut session = opened(&mut operator).await;
    let call = proxy.ask("10.96.0.5:80");
    session.subscribe().await;
    session.send(back(&["10.96.0.5:80"], &["10.1.0.1:8080"])).await;
    let Ok(Target::Service(before)) = call.await.unwrap() else { panic!("not a service") };

    let mut operator = Operator::restart(operator.kill());
    let mut session = opened(&mut operator).await;
    assert_eq!(session.subscribe().await.add, ["10.96.0.5:80"]);
    session.send(back(&["10.96.0.5:80"], &["10.1.0.1:8080"])).await;
    let Some(Target::Service(same)) = proxy.known("10.96.0.5:80") else { panic!("not a service") };
    assert!(Arc::ptr_eq(&before, &same), "an equal service must not be built anew");
    session.send(back(&["10.96.0.5:80"], &["10.1.0.1:8080", "10.1.0.2:8080"])).await;
    let Some(Target::Service(after)) = proxy.known("10.96.0.5:80") else { panic!("not a service") };
    assert_eq!(after.default_cluster.endpoints.len(), 2);
    let live = |service: &crate::snapshot::Service| Arc::clone(&service.default_cluster.endpoints[0].live);
    assert!(Arc::ptr_eq(&live(&before), &live(&after)));
}

#[tokio::test]
async fn a_bad_resource_is_rejected_alone_and_its_last_good_version_stays() {
    let mut operator = Operator::start();
    let proxy = start(&operator).await;
    let mut session = opened(&mut operator).await;
    let call = proxy.ask("10.96.0.5:80");
    session.subscribe().await;
    session.send(back(&["10.96.0.5:80"], &["10.1.0.1:8080"])).await;
    call.await.unwrap().unwrap();

    let mut bad = back(&[], &["not an address"]);
    bad.workload = Some(workload());
    bad.addresses = vec![v1::Address { address: "nonsense".to_owned(), target: None }];
    bad.roots_der = vec![vec![1, 2, 3].into()];
    let ack = session.send(bad).await;
    let mut rejected: Vec<_> = ack.rejections.iter().map(|r| r.resource.as_str()).collect();
    rejected.sort_unstable();
    assert_eq!(rejected, ["nonsense", "roots", "shop/back:80"]);
    let Some(Target::Service(kept)) = proxy.known("10.96.0.5:80") else { panic!("not a service") };
    assert_eq!(kept.default_cluster.endpoints[0].addr, "10.1.0.1:8080".parse().unwrap());
    assert!(proxy.store().load().workload.is_some(), "the good part of the update is in force");
    assert!(proxy.control.tls.own_is_trusted());
}

#[tokio::test]
async fn without_the_operator_known_addresses_work_and_unknown_ones_give_a_reason_within_two_seconds() {
    let mut operator = Operator::start();
    let proxy = start(&operator).await;
    let mut session = opened(&mut operator).await;
    let call = proxy.ask("10.96.0.5:80");
    session.subscribe().await;
    session.send(back(&["10.96.0.5:80"], &["10.1.0.1:8080"])).await;
    call.await.unwrap().unwrap();

    let dead = operator.kill();
    while proxy.control.status.is_connected() {
        sleep(Duration::from_millis(10)).await;
    }
    proxy.ask("10.96.0.5:80").await.unwrap().unwrap();
    let start = Instant::now();
    assert!(matches!(proxy.ask("10.96.0.9:80").await.unwrap(), Err(Reason::ConfigUnavailable)));
    assert!(start.elapsed() < Duration::from_millis(2300));
    // It comes back while a call waits: the call is served.
    sleep(Duration::from_secs(2)).await;
    let late = proxy.ask("10.96.0.10:80");
    let mut operator = Operator::restart(dead);
    let mut session = opened(&mut operator).await;
    assert_eq!(session.subscribe().await.add.len(), 3);
    session.send(ToProxy { addresses: vec![external("10.96.0.10:80")], ..Default::default() }).await;
    assert!(matches!(late.await.unwrap(), Ok(Target::External)));
    drop(session);
}

#[tokio::test]
async fn an_answer_for_what_was_not_asked_is_not_kept() {
    let mut operator = Operator::start();
    let proxy = start(&operator).await;
    let mut session = opened(&mut operator).await;
    assert!(session.send(back(&["10.96.0.5:80"], &["10.1.0.1:8080"])).await.rejections.is_empty());
    assert!(proxy.known("10.96.0.5:80").is_none());
}

#[tokio::test]
async fn new_roots_go_to_tls() {
    let mut operator = Operator::start();
    let proxy = start(&operator).await;
    let mut session = opened(&mut operator).await;
    let next = Ca::new("next").root();
    let roots = [operator.ca.root(), next.clone()].map(|root| bytes::Bytes::copy_from_slice(&root)).to_vec();
    session.send(ToProxy { roots_der: roots, ..Default::default() }).await;
    assert_eq!(proxy.control.tls.roots(), [operator.ca.root(), next]);
}

#[tokio::test]
async fn ejections_are_reported_when_they_change_at_most_once_a_second() {
    let mut operator = Operator::start();
    let proxy = start(&operator).await;
    let mut session = opened(&mut operator).await;
    let call = proxy.ask("10.96.0.5:80");
    session.subscribe().await;
    session.send(back(&["10.96.0.5:80"], &["10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.3:8080"])).await;
    let Ok(Target::Service(service)) = call.await.unwrap() else { panic!("not a service") };
    let cluster = &service.default_cluster;
    let mut reports = Vec::new();
    let start = Instant::now();
    for endpoint in &cluster.endpoints[..2] {
        for _ in 0..5 {
            balance::pinned(cluster, endpoint, Instant::now()).finish(Outcome::Failure(Failure::Status));
        }
        sleep(Duration::from_millis(50)).await;
    }
    while reports.last().is_none_or(|last: &Vec<Ejection>| last.len() < 2) {
        match session.next().await {
            Message::Ejections(report) => reports.push(report.ejected),
            other => panic!("{other:?}"),
        }
    }
    assert!(reports.len() <= 2 && start.elapsed() < Duration::from_secs(3));
    let last = reports.last().unwrap();
    assert_eq!(last[0].service, "shop/back:80");
    assert_eq!(last[0].cause, "5 consecutive failures");

    // A new operator is told the whole set; an endpoint that goes leaves it.
    let mut operator = Operator::restart(operator.kill());
    let mut session = opened(&mut operator).await;
    session.subscribe().await;
    match session.next().await {
        Message::Ejections(report) => assert_eq!(report.ejected.len(), 2),
        other => panic!("{other:?}"),
    }
    session.send(back(&[], &["10.1.0.2:8080", "10.1.0.3:8080"])).await;
    match session.next().await {
        Message::Ejections(report) => assert_eq!(report.ejected.len(), 1),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_policies_for_auditors_decided_is_reported_in_sums_also_to_the_next_operator() {
    let mut operator = Operator::start();
    let proxy = start(&operator).await;
    let mut session = opened(&mut operator).await;
    let decided = |times: u64| {
        for _ in 0..times {
            proxy
                .control
                .decisions
                .hear(&crate::decisions::tests::denied("spiffe://cluster.local/ns/a/sa/b"));
        }
    };
    let mut told = 0;
    decided(5);
    while told < 5 {
        match session.next().await {
            Message::Decisions(report) => {
                assert_eq!((report.decisions.len(), report.left_out), (1, 0));
                let sum = &report.decisions[0];
                assert_eq!(
                    (&*sum.policy, &*sum.rule, &*sum.action, sum.denied),
                    ("shop/p", "0", "deny", true)
                );
                assert_eq!(sum.caller, "spiffe://cluster.local/ns/a/sa/b");
                told += sum.times;
            }
            other => panic!("{other:?}"),
        }
    }
    decided(7);
    assert!(session.is_silent().await, "reports come seldom");
    let mut operator = Operator::restart(operator.kill());
    let mut session = opened(&mut operator).await;
    match session.next().await {
        Message::Decisions(report) => assert_eq!(report.decisions[0].times, 7),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_the_own_checks_found_is_reported_whole() {
    let mut operator = Operator::start();
    let proxy = start(&operator).await;
    let mut session = opened(&mut operator).await;
    let call = proxy.ask("10.96.0.5:80");
    session.subscribe().await;
    let mut update = back(&["10.96.0.5:80"], &["10.1.0.1:8080", "10.1.0.2:8080"]);
    let cluster = &mut update.services[0].clusters[0];
    cluster.active = Some(v1::ActiveCheck {
        kind: Some(v1::active_check::Kind::Tcp(v1::TcpCheck {})),
        ..Default::default()
    });
    for endpoint in &mut cluster.endpoints {
        endpoint.check = Some(v1::EndpointCheck::default());
    }
    session.send(update).await;
    call.await.unwrap().unwrap();
    let snapshot = proxy.store().load();
    let live = &snapshot.services["shop/back:80"].default_cluster.endpoints[1].live;
    for (unhealthy, found) in [(true, vec!["10.1.0.2:8080"]), (false, vec![])] {
        live.checked.set(unhealthy, "status 503");
        live.health.announce();
        match session.next().await {
            Message::Ejections(report) => {
                assert_eq!(report.ejected.len(), found.len());
                assert!(report.ejected.iter().all(|one| one.cause == "unhealthy: status 503"));
            }
            other => panic!("{other:?}"),
        }
        match session.next().await {
            Message::Checked(report) => {
                let own: Vec<_> = report.unhealthy.iter().map(|one| one.endpoint.as_str()).collect();
                assert_eq!(own, found);
                assert!(report.unhealthy.iter().all(|one| one.service == "shop/back:80"));
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Whoever makes up names of keys gains a message every two seconds; and of keys that are given there is nothing to fetch.
#[tokio::test]
async fn keys_that_tokens_name_in_vain_are_told_now_and_then_where_they_are_fetched() {
    use crate::token::tests::ONE;
    let mut operator = Operator::start();
    let proxy = start(&operator).await;
    let mut session = opened(&mut operator).await;
    let fetched = v1::TokenIssuer { key_source: "https://one.example/keys".into(), ..ONE.message() };
    let given = v1::TokenIssuer { issuer: "https://given.example".into(), ..ONE.message() };
    let tokens = Some(v1::Tokens { issuers: vec![fetched, given], level: 1 });
    session
        .send(ToProxy {
            workload: Some(v1::Workload { tokens, ..workload() }),
            version: 1,
            ..Default::default()
        })
        .await;
    let own = loop {
        if let Some(tokens) = proxy.store().load().workload.as_ref().and_then(|own| own.tokens.clone()) {
            break tokens;
        }
        sleep(Duration::from_millis(5)).await;
    };
    let ask = |issuer: &str, kid: &str| {
        let mut claims = ONE.claims("alice");
        claims["iss"] = issuer.into();
        let header = serde_json::json!({"alg": "ES256", "kid": kid});
        let bearer = format!("Bearer {}", ONE.sign_as("ES256", &header, &claims));
        let mut headers = http::HeaderMap::new();
        headers.insert("authorization", bearer.parse().unwrap());
        let (mut uri, mut memory) = ("/".parse().unwrap(), crate::token::memory::Memory::default());
        let seen = own.of_request(&mut headers, &mut uri, crate::token::now(), &mut memory, |_| ());
        if matches!(seen, Some(crate::token::Seen::Bad(crate::token::Flaw::UnknownKey))) {
            proxy.store().miss_keys();
            true
        } else {
            false
        }
    };
    assert!(ask("https://given.example", "made-up") && !ask("https://one.example", "es"));
    let began = Instant::now();
    let mut times = Vec::new();
    while began.elapsed() < KEYS_EVERY + Duration::from_millis(500) {
        assert!(ask("https://one.example", &format!("made-up-{}", times.len())));
        if let Ok(message) = timeout(Duration::from_millis(5), session.next()).await {
            match message {
                Message::KeysMissed(missed) => {
                    assert_eq!(missed.key_sources, ["https://one.example/keys"]);
                    times.push(began.elapsed());
                }
                Message::Ack(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(times.len() == 2 && times[1] - times[0] >= KEYS_EVERY - Duration::from_millis(200), "{times:?}");
}

#[tokio::test]
async fn dropped_addresses_leave_the_snapshot_and_stale_services_are_forgotten() {
    let mut operator = Operator::start();
    let proxy = start(&operator).await;
    let mut session = opened(&mut operator).await;
    let call = proxy.ask("10.96.0.5:80");
    session.subscribe().await;
    session.send(back(&["10.96.0.5:80"], &["10.1.0.1:8080"])).await;
    call.await.unwrap().unwrap();
    proxy.task.abort();

    let control = proxy.control.share();
    let told = Told::default();
    control.forget_services(&told);
    assert_eq!(proxy.store().load().services.len(), 1, "an address leads to it");
    let changes = Changes { add: vec![], drop: vec!["10.96.0.5:80".parse().unwrap()] };
    assert_eq!(control.change(changes).drop, ["10.96.0.5:80"]);
    assert!(proxy.known("10.96.0.5:80").is_none());
    let mut of_this_stream = Told::default();
    of_this_stream.note(&back(&[], &[]));
    control.forget_services(&of_this_stream);
    assert_eq!(proxy.store().load().services.len(), 1, "the operator counts on it");
    control.forget_services(&told);
    assert!(proxy.store().load().services.is_empty());
}

#[tokio::test]
async fn an_error_of_the_operator_is_reported_and_the_stream_opened_again() {
    let mut operator = Operator::start();
    let proxy = start(&operator).await;
    let session = opened(&mut operator).await;
    session.fail(tonic::Status::permission_denied("pod shop/front-1 is not known")).await;
    let mut session = opened(&mut operator).await;
    session.send(ToProxy { workload: Some(workload()), ..Default::default() }).await;
    assert!(proxy.control.status.control_error().is_none());
}

#[tokio::test(start_paused = true)]
async fn the_same_failure_is_logged_once_a_minute() {
    let mut said = Said::default();
    assert!(said.is_new("refused"));
    assert!(!said.is_new("refused"));
    assert!(said.is_new("no route"));
    tokio::time::advance(SAY_AGAIN).await;
    assert!(said.is_new("no route"));
}

#[tokio::test]
async fn an_operator_that_falls_silent_is_noticed() {
    let mut operator = Operator::start();
    let relay = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, target) = (relay.local_addr().unwrap().port(), operator.address);
    // As when its node loses power: nothing more comes, and no connection is closed either.
    let (freeze, frozen) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = relay.accept().await {
            let mut frozen = frozen.clone();
            tokio::spawn(async move {
                let mut far = tokio::net::TcpStream::connect(target).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    _ = frozen.changed() => {}
                }
                std::future::pending::<()>().await;
            });
        }
    });
    let proxy = start_through(&operator, port).await;
    let mut session = opened(&mut operator).await;
    session.send(ToProxy { workload: Some(workload()), ..Default::default() }).await;
    freeze.send_replace(true);
    let start = Instant::now();
    while proxy.control.status.is_connected() {
        assert!(start.elapsed() < Duration::from_secs(20), "a silent operator was not noticed");
        sleep(Duration::from_millis(50)).await;
    }
    assert!(proxy.store().load().workload.is_some());
}

#[tokio::test]
async fn an_endpoint_by_name_is_resolved_and_the_operator_is_not_asked() {
    let mut operator = Operator::start();
    let proxy = start(&operator).await;
    let mut session = opened(&mut operator).await;
    let mut external = service(&[]);
    external.key = "shop/api.external:443".to_owned();
    external.egress = Some(v1::Egress { hosts: vec!["localhost".to_owned()] });
    external.protocol = v1::Protocol::Tls.into();
    external.clusters[0].endpoints =
        vec![v1::Endpoint { host: "localhost".to_owned(), host_port: 443, weight: 1, ..Default::default() }];
    let ack = session.send(ToProxy { services: vec![external], ..Default::default() }).await;
    assert_eq!(ack.rejections, []);
    let addresses = || {
        let snapshot = proxy.store().load();
        let cluster = &snapshot.services["shop/api.external:443"].default_cluster;
        cluster.endpoints.iter().map(|e| e.addr.to_string()).collect::<Vec<_>>()
    };
    for _ in 0..500 {
        if addresses().contains(&"127.0.0.1:443".to_owned()) {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("not resolved: {:?}", addresses());
}

#[tokio::test]
async fn what_is_asked_for_under_a_shared_limit_is_told_and_the_part_that_is_granted_is_in_force() {
    let limit = |mesh| v1::RateLimit { requests: 100, per_ms: 1000, mesh, ..Default::default() };
    let rules = |name: &str, mesh| v1::InboundRule {
        name: name.into(),
        rate_limit: Some(limit(mesh)),
        ..Default::default()
    };
    let port = v1::InboundRules {
        port: 8080,
        service: "shop/front:80".into(),
        rules: vec![rules("p/own", false), rules("p/shared", true)],
        ..Default::default()
    };
    let mut operator = Operator::start();
    let proxy = start(&operator).await;
    let mut session = opened(&mut operator).await;
    let update = |inbound_rules| ToProxy {
        workload: Some(v1::Workload { inbound_rules, ..workload() }),
        ..Default::default()
    };
    session.send(update(vec![port])).await;
    let id = "shop/front:80#p/shared";
    let limits = proxy.store().load().workload.as_ref().unwrap().limits.clone().unwrap();
    let shared = limits.all().find_map(|limit| limit.shared()).unwrap();
    // At once, and again while nothing is asked for.
    for _ in 0..2 {
        let Message::Demands(demands) = session.next().await else { panic!("no demands") };
        let [only] = &demands.demands[..] else { panic!("{demands:?}") };
        assert_eq!((only.limit.as_str(), only.demand, only.tally.unwrap().beyond), (id, 0, 0));
    }
    let bucket = AtomicU64::new(0);
    for _ in 0..50 {
        shared.draw(&bucket, 1);
    }
    let mut told = 0;
    while told == 0 {
        let Message::Demands(demands) = session.next().await else { panic!("no demands") };
        told = demands.demands[0].demand;
    }
    assert_eq!(shared.share(), 100_000);
    session
        .say(ToProxy {
            rate_shares: vec![v1::Share {
                limit: id.into(),
                share: 330_000,
                credit: Some(3),
                others_are_short: false,
            }],
            ..Default::default()
        })
        .await;
    while shared.share() != 330_000 {
        // Not an acknowledgement.
        let Message::Demands(_) = session.next().await else { panic!("not demands") };
    }
    // An update keeps the part; without the limit there is nothing more to say.
    session.say_next(update(vec![])).await;
    while !matches!(session.next().await, Message::Ack(_)) {}
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(session.is_silent().await);
}
