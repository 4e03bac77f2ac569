//! Two meshes with a root each, over real sockets: who gets through, what is said of it, what attackers try, and what becomes of
//! open connections when the bundles change.

use std::time::Duration;

use http::HeaderValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use weft_api::v1::{self, AuthorizationAction as Action};
use weft_proxy::record::Direction;

use crate::apps;
use crate::authorization::{policy, rule, said};
use crate::clients::{Http1, Http2, fetch, get};
use crate::world::{Ca, Node, SERVICE, identity_in, service, workload};

const THEIRS: &str = "partner.example";

/// Our server, their client.
struct Meshes {
    ours: Ca,
    theirs: Ca,
    /// Of theirs.
    front: Node,
    /// Of ours.
    back: Node,
}

impl Meshes {
    fn to(app: std::net::SocketAddr) -> Self {
        let (ours, theirs) = (Ca::new(), Ca::new());
        let front = Node::start(&theirs, &identity_in(THEIRS, "front").to_string());
        let back = Node::start(&ours, "back");
        back.redirect(Direction::Inbound, app);
        front.federate(&[("cluster.local", &ours)]);
        back.federate(&[(THEIRS, &theirs)]);
        front.serve(service(&[back.inbound], Some("back")));
        Self { ours, theirs, front, back }
    }

    fn allow(&self, source: v1::AuthorizationSource) {
        self.enforce(vec![policy("partner", Action::Allow, vec![rule(vec![source], vec![])])]);
    }

    fn enforce(&self, policies: Vec<v1::AuthorizationPolicy>) {
        self.back.workload("back", |own| own.authorization = Some(v1::Authorization { policies, level: 3 }));
    }
}

fn identities(text: &str) -> v1::AuthorizationSource {
    v1::AuthorizationSource { identities: vec![text.into()], ..Default::default() }
}

fn domain(name: &str) -> v1::AuthorizationSource {
    v1::AuthorizationSource { trust_domains: vec![name.into()], ..Default::default() }
}

#[tokio::test]
async fn a_caller_of_another_mesh_is_known_by_its_own_name_everywhere() {
    let (app, _) = apps::echo().await;
    let meshes = Meshes::to(app);
    let who = identity_in(THEIRS, "front").to_string();
    meshes.allow(identities(&who));
    let mut request = get("/");
    request
        .headers_mut()
        .insert("weft-client-identity", HeaderValue::from_static("spiffe://cluster.local/ns/shop/sa/admin"));
    let got = fetch(meshes.front.outbound, request).await;
    assert_eq!(got.status, 200, "{}", got.text());
    assert!(got.text().contains(&format!("weft-client-identity: {who}")), "{}", got.text());
    assert!(!got.text().contains("sa/admin"), "{}", got.text());
    let line = meshes.back.log.find(|line| line["source_identity"] == *who).await;
    assert_eq!(line["source_namespace"], "partner.example/shop", "{line}");
    let metrics = meshes.back.metrics.encode();
    assert!(metrics.contains("source_namespace=\"partner.example/shop\""), "{metrics}");
    let line = meshes.front.log.find(|line| line["direction"] == "outbound").await;
    assert_eq!(line["destination_identity"], identity_in("cluster.local", "back").to_string(), "{line}");
}

/// However a policy may name callers of our own, it does not mean those of others.
#[tokio::test]
async fn a_caller_of_another_mesh_has_to_be_let_in_by_name() {
    let (app, seen) = apps::echo().await;
    let meshes = Meshes::to(app);
    let ask = async || {
        let got = fetch(meshes.front.outbound, get("/")).await;
        let (status, reason) = said(&got);
        (status, reason.to_owned())
    };
    let refused = (403, "policy-denied".to_owned());
    assert_eq!(ask().await, refused, "no policy selects the workload");
    let shop = v1::AuthorizationSource { namespaces: vec!["shop".into()], ..Default::default() };
    for source in [
        shop.clone(),
        identities("*"),
        identities("*/ns/shop/sa/front"),
        identities("*/sa/front"),
        identities("spiffe://cluster.local/ns/shop/sa/front"),
        identities("spiffe://cluster.local/*"),
        domain("cluster.local"),
        v1::AuthorizationSource { trust_domains: vec![THEIRS.into()], ..shop.clone() },
        v1::AuthorizationSource {
            trust_domains: vec![THEIRS.into()],
            ..identities("spiffe://partner.example/ns/shop/sa/other")
        },
    ] {
        meshes.allow(source.clone());
        assert_eq!(ask().await, refused, "{source:?}");
    }
    let line = meshes.back.log.find(|line| line["reason"] == "policy-denied").await;
    assert!(line["detail"].as_str().unwrap().contains("trust domain partner.example"), "{line}");
    meshes.enforce(vec![policy("no-one", Action::Deny, vec![rule(vec![identities("*/sa/other")], vec![])])]);
    assert_eq!(ask().await, refused, "that others are denied lets nobody in");
    assert_eq!(seen.requests(), 0);

    for source in [
        identities("spiffe://partner.example/ns/shop/sa/front"),
        identities("spiffe://partner.example/ns/shop/*"),
        identities("spiffe://partner.example/*"),
        domain(THEIRS),
        v1::AuthorizationSource {
            trust_domains: vec![THEIRS.into()],
            ..identities("spiffe://partner.example/*")
        },
    ] {
        meshes.allow(source.clone());
        assert_eq!(ask().await.0, 200, "{source:?}");
    }
    // What denies or notes everybody does so with those of others, too.
    let let_in = || policy("partner", Action::Allow, vec![rule(vec![domain(THEIRS)], vec![])]);
    for source in
        [identities("*"), identities("*/sa/front"), domain(THEIRS), v1::AuthorizationSource::default()]
    {
        let from = if source == v1::AuthorizationSource::default() { vec![] } else { vec![source.clone()] };
        meshes.enforce(vec![let_in(), policy("closed", Action::Deny, vec![rule(from, vec![])])]);
        assert_eq!(ask().await, refused, "{source:?}");
    }
    meshes.enforce(vec![
        let_in(),
        policy("ours", Action::Deny, vec![rule(vec![shop, domain("cluster.local")], vec![])]),
    ]);
    assert_eq!(ask().await.0, 200, "our namespace is not theirs of the same name");
}

/// Signs an identity that is not its own to sign: to our server, and as the server that we call.
#[tokio::test]
async fn a_root_that_signs_for_another_trust_domain_is_refused_and_counted() {
    let (app, seen) = apps::echo().await;
    let meshes = Meshes::to(app);
    meshes.allow(identities("spiffe://cluster.local/*"));
    let evil = Ca::new();
    let counted = |node: &Node| {
        let metrics = node.metrics.encode();
        let line = metrics
            .lines()
            .find(|line| line.starts_with("weft_refusals_total{") && line.contains("client-certificate"));
        line.and_then(|line| line.rsplit_once(' ')?.1.parse::<u32>().ok()).unwrap_or_default()
    };
    for (root, who) in [
        (&meshes.theirs, identity_in("cluster.local", "front")),
        (&meshes.ours, identity_in(THEIRS, "front")),
        (&meshes.theirs, identity_in("third.example", "front")),
        (&evil, identity_in("cluster.local", "front")),
        (&evil, identity_in(THEIRS, "front")),
    ] {
        let before = counted(&meshes.back);
        let attacker = Node::start(root, &who.to_string());
        match who.trust_domain.as_str() {
            "cluster.local" => attacker.trust(&[root, &meshes.ours]),
            _ => attacker.federate(&[("cluster.local", &meshes.ours)]),
        }
        attacker.serve(service(&[meshes.back.inbound], Some("back")));
        let got = fetch(attacker.outbound, get("/")).await;
        assert_ne!(got.status, 200, "{who} by another's root");
        let mut tries = 0;
        while counted(&meshes.back) == before {
            tries += 1;
            assert!(tries < 500, "{who} is not counted: {}", meshes.back.metrics.encode());
            sleep(Duration::from_millis(10)).await;
        }

        // The same as a server: ours calls it by the name that it claims.
        attacker.redirect(Direction::Inbound, app);
        let caller = Node::start(&meshes.ours, "front");
        caller.federate(&[(THEIRS, &meshes.theirs)]);
        let mut called = service(&[attacker.inbound], Some("back"));
        called.clusters[0].endpoints[0].identity = who.to_string();
        caller.serve(called);
        let got = fetch(caller.outbound, get("/")).await;
        assert_eq!(said(&got), (503, "tls-handshake"), "{who} by another's root");
    }
    assert_eq!(seen.requests(), 0);
}

#[tokio::test]
async fn a_service_of_another_mesh_is_called_by_its_identity_and_nobody_elses() {
    let (app, seen) = apps::echo().await;
    let (ours, theirs) = (Ca::new(), Ca::new());
    let caller = Node::start(&ours, "front");
    let server = Node::start(&theirs, &identity_in(THEIRS, "back").to_string());
    server.redirect(Direction::Inbound, app);
    server.federate(&[("cluster.local", &ours)]);
    let own = workload(&identity_in(THEIRS, "back").to_string());
    let from = v1::AuthorizationSource { trust_domains: vec!["cluster.local".into()], ..Default::default() };
    let policies = vec![policy("ours", Action::Allow, vec![rule(vec![from], vec![])])];
    let authorization = Some(v1::Authorization { policies, level: 3 });
    server.configure(v1::ToProxy {
        workload: Some(v1::Workload { authorization, mtls: v1::MtlsMode::Strict.into(), ..own }),
        ..Default::default()
    });
    let call = |who: String| {
        let mut called = service(&[server.inbound], Some("back"));
        called.clusters[0].endpoints[0].identity = who;
        caller.serve(called);
    };
    call(identity_in(THEIRS, "back").to_string());
    assert_eq!(said(&fetch(caller.outbound, get("/")).await), (503, "tls-handshake"), "not federated yet");
    caller.federate(&[(THEIRS, &theirs)]);
    let got = fetch(caller.outbound, get("/")).await;
    assert_eq!(got.status, 200, "{}", got.text());
    assert!(
        got.text().contains("weft-client-identity: spiffe://cluster.local/ns/shop/sa/front"),
        "{}",
        got.text()
    );
    let mut http2 = Http2::connect(caller.outbound).await;
    assert_eq!(http2.send(get("/")).await.unwrap().status, 200);
    let before = seen.requests();
    for wrong in [identity_in(THEIRS, "other"), identity_in("cluster.local", "back")] {
        call(wrong.to_string());
        assert_eq!(said(&fetch(caller.outbound, get("/")).await), (503, "peer-identity-mismatch"), "{wrong}");
    }
    // Connections are kept, and not used any more once the trust domain is gone.
    call(identity_in(THEIRS, "back").to_string());
    let mut kept = Http1::connect(caller.outbound).await;
    assert_eq!(kept.send(get("/")).await.unwrap().status, 200);
    assert_eq!(http2.send(get("/")).await.unwrap().status, 200);
    assert_eq!(seen.requests(), before + 2);
    caller.federate(&[]);
    assert_eq!(said(&kept.send(get("/")).await.unwrap()), (503, "tls-handshake"));
    assert_eq!(said(&http2.send(get("/")).await.unwrap()), (503, "tls-handshake"));
    assert_eq!(seen.requests(), before + 2);
}

#[tokio::test]
async fn requests_on_open_connections_are_refused_once_nobody_vouches_for_the_caller() {
    let (app, _) = apps::echo().await;
    let meshes = Meshes::to(app);
    meshes.allow(domain(THEIRS));
    let (mut http1, mut http2) =
        (Http1::connect(meshes.front.outbound).await, Http2::connect(meshes.front.outbound).await);
    for _ in 0..2 {
        assert_eq!(http1.send(get("/")).await.unwrap().status, 200);
        assert_eq!(http2.send(get("/")).await.unwrap().status, 200);
    }
    // Their root is another one now, by which what is open was not signed.
    meshes.back.federate(&[(THEIRS, &Ca::new())]);
    let got = http1.send(get("/")).await.unwrap();
    assert_eq!(said(&got), (403, "client-certificate"));
    assert_ne!(http2.send(get("/")).await.unwrap().status, 200);
    // And back: a new handshake, at once.
    meshes.back.federate(&[(THEIRS, &meshes.theirs)]);
    assert_eq!(fetch(meshes.front.outbound, get("/")).await.status, 200);
    // What has nothing to do with them does not notice.
    let own = Node::start(&meshes.ours, "front");
    own.serve(service(&[meshes.back.inbound], Some("back")));
    meshes.allow(identities("*"));
    let mut kept = Http1::connect(own.outbound).await;
    assert_eq!(kept.send(get("/")).await.unwrap().status, 200);
    meshes.back.federate(&[]);
    assert_eq!(kept.send(get("/")).await.unwrap().status, 200);
    assert_eq!(meshes.back.store.load().services.len(), 0);
}

/// As operators rotate: the next root is known before it signs, and the old one goes when nothing that it has signed is good any
/// more. Connections that show a certificate of the old one are not used any longer by then, on either side.
#[tokio::test]
async fn a_rotated_root_costs_no_request_on_kept_connections() {
    let (app, _) = apps::echo().await;
    for of_the_caller in [true, false] {
        let meshes = Meshes::to(app);
        meshes.allow(domain(THEIRS));
        let (mut http1, mut http2) =
            (Http1::connect(meshes.front.outbound).await, Http2::connect(meshes.front.outbound).await);
        let mut ask = async |when: &str| {
            for _ in 0..3 {
                let got = http1.send(get("/")).await.unwrap();
                assert_eq!(said(&got), (200, ""), "{when} over HTTP/1, of the caller: {of_the_caller}");
                let got = http2.send(get("/")).await.unwrap();
                assert_eq!(said(&got), (200, ""), "{when} over HTTP/2, of the caller: {of_the_caller}");
            }
        };
        ask("before").await;
        let next = Ca::new();
        let (rotates, follows, old, id) = match of_the_caller {
            true => (&meshes.front, &meshes.back, &meshes.theirs, identity_in(THEIRS, "front")),
            false => (&meshes.back, &meshes.front, &meshes.ours, identity_in("cluster.local", "back")),
        };
        let domain = id.trust_domain.to_string();
        rotates.trust(&[old, &next]);
        follows.federate(&[(&domain, old), (&domain, &next)]);
        ask("while both are trusted").await;
        rotates.certify(&next, &id.to_string(), vec![old.root(), next.root()]);
        ask("once the next one signs").await;
        follows.federate(&[(&domain, &next)]);
        ask("once the old one is gone there").await;
        rotates.trust(&[&next]);
        ask("once it is gone everywhere").await;
    }
}

#[tokio::test]
async fn open_opaque_connections_end_on_both_sides_once_nobody_vouches_for_the_peer() {
    let app = apps::bytes_echo().await;
    for at_the_server in [true, false] {
        let meshes = Meshes::to(app);
        meshes.allow(domain(THEIRS));
        meshes.front.configure(v1::ToProxy {
            services: vec![v1::Service {
                protocol: v1::Protocol::Tcp.into(),
                ..service(&[meshes.back.inbound], Some("back"))
            }],
            ..Default::default()
        });
        let mut open = TcpStream::connect(meshes.front.outbound).await.unwrap();
        let mut read = [0; 4];
        for _ in 0..2 {
            open.write_all(b"ping").await.unwrap();
            timeout(Duration::from_secs(10), open.read_exact(&mut read)).await.unwrap().unwrap();
        }
        // Another trust domain comes: nothing happens to this one.
        let other = Ca::new();
        meshes.back.federate(&[(THEIRS, &meshes.theirs), ("third.example", &other)]);
        meshes.front.federate(&[("cluster.local", &meshes.ours), ("third.example", &other)]);
        sleep(Duration::from_millis(100)).await;
        open.write_all(b"ping").await.unwrap();
        timeout(Duration::from_secs(10), open.read_exact(&mut read)).await.unwrap().unwrap();
        let (node, reason) = if at_the_server {
            meshes.back.federate(&[("third.example", &other)]);
            (&meshes.back, "client-certificate")
        } else {
            meshes.front.federate(&[]);
            (&meshes.front, "tls-handshake")
        };
        let ended = timeout(Duration::from_secs(10), open.read(&mut read)).await.expect("an end");
        assert!(!matches!(ended, Ok(1..)), "{ended:?}");
        node.log.find(|line| line["reason"] == reason).await;
        assert_eq!(meshes.front.store.load().services.len(), 1, "{SERVICE}");
    }
}
