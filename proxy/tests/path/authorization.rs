//! AuthorizationPolicy over real sockets: who gets through, what is said of it, and what attackers try.

use std::time::Duration;

use http::HeaderValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_api::v1::{self, AuthorizationAction as Action, authorization_path::Path};

use crate::apps;
use crate::clients::{Got, Http1, Http2, fetch, get, post, raw};
use crate::world::{Mesh, Node, identity};

pub fn policy(name: &str, action: Action, rules: Vec<v1::AuthorizationRule>) -> v1::AuthorizationPolicy {
    v1::AuthorizationPolicy {
        namespace: "shop".into(),
        name: name.into(),
        action: action.into(),
        dry_run: false,
        audit: false,
        rules,
    }
}

pub fn enforce(node: &Node, policies: Vec<v1::AuthorizationPolicy>) {
    enforce_with(node, policies, |_| {});
}

fn enforce_with(node: &Node, policies: Vec<v1::AuthorizationPolicy>, change: impl FnOnce(&mut v1::Workload)) {
    node.workload("back", |own| {
        own.authorization = Some(v1::Authorization { policies, level: 1 });
        change(own);
    });
}

pub fn from(account: &str) -> v1::AuthorizationSource {
    v1::AuthorizationSource { identities: vec![identity(account).to_string()], ..Default::default() }
}

pub fn to(paths: &[Path]) -> v1::AuthorizationTarget {
    let path = |path: &Path| v1::AuthorizationPath { path: Some(path.clone()) };
    v1::AuthorizationTarget { paths: paths.iter().map(path).collect(), ..Default::default() }
}

pub fn rule(from: Vec<v1::AuthorizationSource>, to: Vec<v1::AuthorizationTarget>) -> v1::AuthorizationRule {
    v1::AuthorizationRule { name: "0".into(), from, to, when: Vec::new() }
}

fn public() -> Vec<v1::AuthorizationPolicy> {
    vec![policy("public", Action::Allow, vec![rule(vec![], vec![to(&[Path::Prefix("/public".into())])])])]
}

fn no_admin() -> Vec<v1::AuthorizationPolicy> {
    vec![policy("admin", Action::Deny, vec![rule(vec![], vec![to(&[Path::Prefix("/admin".into())])])])]
}

pub fn said(got: &Got) -> (u16, &str) {
    (got.status.as_u16(), got.reason())
}

#[tokio::test]
async fn a_refusal_tells_the_caller_the_reason_and_the_log_and_the_metric_the_policy() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::to(app);
    enforce(&mesh.back, no_admin());
    assert_eq!(fetch(mesh.front.outbound, get("/")).await.status, 200);
    let got = fetch(mesh.front.outbound, post("/admin/users", "body")).await;
    assert_eq!(said(&got), (403, "policy-denied"));
    let told = format!("{:?} {}", got.headers, got.text());
    assert!(!told.contains("shop/admin"), "a stranger learns which policy there is: {told}");
    let line = mesh.back.log.find(|line| line["reason"] == "policy-denied").await;
    assert_eq!((&line["policy"], &line["policy_rule"]), (&"shop/admin".into(), &"0".into()));
    assert_eq!(line["source_identity"], identity("front").to_string());
    let counted = "weft_policy_decisions_total{decision=\"refused\",policy=\"admin\",policy_namespace=\"shop\",policy_rule=\"0\",action=\"deny\"} 1";
    assert!(mesh.back.metrics.encode().contains(counted), "{}", mesh.back.metrics.encode());
    assert_eq!(seen.requests(), 1);
    // The connection between the proxies is good for more.
    assert_eq!(fetch(mesh.front.outbound, get("/")).await.status, 200);
}

#[tokio::test]
async fn a_grpc_caller_is_told_in_its_own_way() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let orders = to(&[Path::Exact("/shop.Orders/Buy".into())]);
    enforce(&mesh.back, vec![policy("orders", Action::Allow, vec![rule(vec![], vec![orders])])]);
    let mut client = Http2::connect(mesh.front.outbound).await;
    let mut call = async |path| {
        let mut request = post(path, "");
        request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        client.send(request).await.unwrap()
    };
    assert_eq!(call("/shop.Orders/Buy").await.reason(), "");
    let got = call("/shop.Orders/Cancel").await;
    assert_eq!((said(&got), got.headers["grpc-status"].to_str().unwrap()), ((200, "policy-denied"), "7"));
}

#[tokio::test]
async fn an_allow_policy_lets_through_just_whom_and_what_it_names() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let mut target = to(&[Path::Template("/users/{id}".into())]);
    target.methods = vec!["GET".into()];
    target.hosts = vec!["back".into()];
    target.ports = vec![app.port().into()];
    let mut only = rule(vec![from("front")], vec![target]);
    only.when = vec![v1::AuthorizationCondition {
        of: Some(v1::authorization_condition::Of::Header(v1::HeaderMatch {
            name: "x-tenant".into(),
            value: Some(v1::header_match::Value::Exact("a".into())),
        })),
    }];
    enforce(&mesh.back, vec![policy("users", Action::Allow, vec![only])]);
    let of = |mut request: http::Request<http_body_util::Full<bytes::Bytes>>, tenant| {
        request.headers_mut().insert("x-tenant", HeaderValue::from_static(tenant));
        fetch(mesh.front.outbound, request)
    };
    assert_eq!(said(&of(get("/users/7?x=/y"), "a").await), (200, ""));
    for (request, tenant) in
        [(get("/users/7"), "b"), (get("/users/"), "a"), (get("/users/7/x"), "a"), (post("/users/7", ""), "a")]
    {
        let what = format!("{request:?}");
        assert_eq!(said(&of(request, tenant).await), (403, "policy-denied"), "{what}");
    }
    let mut other_host = get("/users/7");
    other_host.headers_mut().insert("host", HeaderValue::from_static("back.evil"));
    assert_eq!(said(&of(other_host, "a").await), (403, "policy-denied"));
    // The same from outside of the mesh has no identity, whatever it says of itself.
    let mut spoofed = get("/users/7");
    for (name, value) in [("weft-client-identity", identity("front").to_string()), ("x-tenant", "a".into())] {
        spoofed.headers_mut().insert(name, value.parse().unwrap());
    }
    assert_eq!(said(&fetch(mesh.back.inbound, spoofed).await), (403, "policy-denied"));
    let line = mesh.back.log.find(|line| line["mtls"] == false).await;
    assert!(
        line["detail"].as_str().unwrap().contains("shop/users") && line.get("policy").is_none(),
        "{line}"
    );
}

#[tokio::test]
async fn an_address_that_a_header_claims_does_not_count() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let block = |text: &str| {
        let source = v1::AuthorizationSource { ip_blocks: vec![text.into()], ..Default::default() };
        vec![policy("near", Action::Allow, vec![rule(vec![source], vec![])])]
    };
    enforce(&mesh.back, block("127.0.0.0/8"));
    assert_eq!(fetch(mesh.back.inbound, get("/")).await.status, 200);
    enforce(&mesh.back, block("10.0.0.0/8"));
    let mut request = get("/");
    for name in ["x-forwarded-for", "forwarded", "x-real-ip"] {
        request.headers_mut().insert(name, HeaderValue::from_static("10.1.2.3"));
    }
    assert_eq!(said(&fetch(mesh.back.inbound, request).await), (403, "policy-denied"));
}

/// Every one of them is another way to write something that is not allowed, or something that servers read differently.
#[tokio::test]
async fn no_spelling_of_a_path_gets_past_a_policy() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::to(app);
    let ask = async |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: back\r\nconnection: close\r\n\r\n");
        raw(mesh.front.outbound, request.as_bytes(), false).await
    };
    let hidden = [
        "/public/../admin",
        "/public/%2e%2e/admin",
        "/public/.%2E/admin",
        "/public/./../admin",
        "//admin",
        "/public//../admin",
        "/./admin",
        "/%61dmin",
        "/adm%69n/x",
        "/admin/",
        "/public/../../admin",
        "/public/..//admin",
        "/admin%3Fx",
    ];
    let ambiguous = [
        "/public/..%2fadmin",
        "/public%2f..%2fadmin",
        "/public/..%5cadmin",
        "/public/..\\admin",
        "/public/..;/admin",
        "/admin;x=1",
        "/public;/../admin",
        "/public/%00",
        "/admin%00",
        "/public/%0d%0a",
        "/public/%c0%af../admin",
        "/public/%zz",
        "/public/%",
    ];
    for policies in [public(), no_admin()] {
        enforce(&mesh.back, policies.clone());
        let deny = policies[0].name == "admin";
        for path in hidden {
            // A deny of /admin leaves out what is no spelling of it.
            if deny && path == "/admin%3Fx" {
                continue;
            }
            let answer = ask(path).await;
            assert!(
                answer.starts_with("HTTP/1.1 403") && answer.contains("policy-denied"),
                "{path}: {answer}"
            );
        }
        for path in ambiguous {
            let answer = ask(path).await;
            assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("bad-request"), "{path}: {answer}");
        }
    }
    assert_eq!(seen.requests(), 0);
    // Upper and lower case are different paths: what allows by name is safe, what denies by name is not.
    enforce(&mesh.back, public());
    assert!(ask("/ADMIN").await.starts_with("HTTP/1.1 403"));
    assert!(ask("/PUBLIC").await.starts_with("HTTP/1.1 403"));
    // What passes reaches the application as the path that was judged.
    for (path, judged) in [
        ("/admin/../public/x?a=/../b", "/public/x?a=/../b"),
        ("//public/y", "/public/y"),
        ("/public/%41", "/public/%41"),
    ] {
        let answer = ask(path).await;
        assert!(answer.contains(&format!("GET {judged}\n")), "{path}: {answer}");
    }
    let line = mesh.back.log.find(|line| line["reason"] == "bad-request").await;
    assert!(line["detail"].as_str().unwrap().contains("policies of this workload look at paths"), "{line}");
}

#[tokio::test]
async fn where_no_policy_looks_at_paths_they_pass_as_they_are() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let mut at_other_port = to(&[Path::Prefix("/".into())]);
    at_other_port.ports = vec![1];
    enforce(
        &mesh.back,
        vec![
            policy("mine", Action::Allow, vec![rule(vec![from("front")], vec![])]),
            policy(
                "other",
                Action::Deny,
                vec![
                    rule(vec![], vec![at_other_port]),
                    rule(vec![from("other")], vec![to(&[Path::Exact("/x".into())])]),
                ],
            ),
        ],
    );
    for path in ["/a/../b", "/a%2fb", "/a;b=c"] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: back\r\nconnection: close\r\n\r\n");
        let answer = raw(mesh.front.outbound, request.as_bytes(), false).await;
        assert!(answer.contains(&format!("GET {path}\n")), "{answer}");
    }
}

#[tokio::test]
async fn dry_run_and_audit_note_and_never_refuse() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let mut nothing = policy("closed", Action::Allow, vec![]);
    nothing.dry_run = true;
    let watch = policy("watch", Action::Audit, vec![rule(vec![from("front")], vec![])]);
    enforce(&mesh.back, vec![nothing, watch]);
    assert_eq!(fetch(mesh.front.outbound, get("/")).await.status, 200);
    let line = mesh.back.log.find(|line| line["direction"] == "inbound" && line["path"] == "/").await;
    assert_eq!(line["dry_run"], "no rule of the policies that allow something fits: shop/closed");
    assert_eq!((&line["audit"], &line["code"]), (&"shop/watch/0".into(), &200.into()));
    let text = mesh.back.metrics.encode();
    for counted in [
        "weft_policy_decisions_total{decision=\"would-refuse\",policy=\"\",policy_namespace=\"\",policy_rule=\"\",action=\"allow\"} 1",
        "weft_policy_decisions_total{decision=\"audited\",policy=\"watch\",policy_namespace=\"shop\",policy_rule=\"0\",action=\"audit\"} 1",
    ] {
        assert!(text.contains(counted), "{text}");
    }
    let mut no_admin = no_admin();
    no_admin[0].dry_run = true;
    enforce(&mesh.back, no_admin);
    assert_eq!(fetch(mesh.front.outbound, get("/admin%2f")).await.status, 200);
    let line = mesh.back.log.find(|line| line["path"] == "/admin%2f").await;
    assert!(line["dry_run"].as_str().unwrap().contains("an encoded slash"), "{line}");
}

#[tokio::test]
async fn the_kubelets_probes_pass_and_nothing_near_them() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let port = u32::from(app.port());
    let probe = |kind| v1::Probe { port, kind: Some(kind) };
    let probes = vec![
        probe(v1::probe::Kind::HttpPath("/healthz".into())),
        probe(v1::probe::Kind::GrpcService("live".into())),
    ];
    for mode in [v1::MtlsMode::Permissive, v1::MtlsMode::Strict] {
        enforce_with(&mesh.back, vec![policy("closed", Action::Allow, vec![])], |own| {
            own.probes = probes.clone();
            own.mtls = mode.into();
        });
        let refused = if mode == v1::MtlsMode::Strict { "mtls-required" } else { "policy-denied" };
        assert_eq!(said(&fetch(mesh.back.inbound, get("/healthz")).await), (200, ""), "{mode:?}");
        for near in [get("/healthz/"), get("/healthz?x"), post("/healthz", "")] {
            assert_eq!(said(&fetch(mesh.back.inbound, near).await), (403, refused), "{mode:?}");
        }
        let mut client = Http2::connect(mesh.back.inbound).await;
        for (service, reason) in [("live", ""), ("dead", refused)] {
            let message =
                [&[0, 0, 0, 0, service.len() as u8 + 2, 0x0a, service.len() as u8], service.as_bytes()]
                    .concat();
            let mut check = post("/grpc.health.v1.Health/Check", message);
            check.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            assert_eq!(client.send(check).await.unwrap().reason(), reason, "{mode:?} {service}");
        }
        // From inside of the mesh it is a request like any other.
        assert_eq!(said(&fetch(mesh.front.outbound, get("/healthz")).await), (403, "policy-denied"));
    }
}

#[tokio::test]
async fn opaque_bytes_are_judged_by_caller_and_port() {
    let app = apps::bytes_echo().await;
    let mesh = Mesh::with(app, |service| service.protocol = v1::Protocol::Tcp.into());
    let speak = async || {
        let mut stream = TcpStream::connect(mesh.front.outbound).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        let mut back = [0; 5];
        stream.read_exact(&mut back).await.is_ok()
    };
    let ports = |port: u16| v1::AuthorizationTarget { ports: vec![port.into()], ..Default::default() };
    let allow = |from, to| vec![policy("a", Action::Allow, vec![rule(from, to)])];
    let deny = |from, to| vec![policy("d", Action::Deny, vec![rule(from, to)])];
    let path = || to(&[Path::Prefix("/".into())]);
    let not_here = app.port() ^ 1;
    for (policies, passes) in [
        (allow(vec![from("front")], vec![]), true),
        (allow(vec![from("other")], vec![]), false),
        (allow(vec![from("front")], vec![ports(app.port())]), true),
        (allow(vec![from("front")], vec![ports(not_here)]), false),
        // What cannot be seen allows nothing, and denies.
        (allow(vec![from("front")], vec![path()]), false),
        (deny(vec![from("front")], vec![path()]), false),
        (deny(vec![from("other")], vec![path()]), true),
        (deny(vec![from("front")], vec![ports(not_here)]), true),
    ] {
        enforce(&mesh.back, policies.clone());
        assert_eq!(speak().await, passes, "{policies:?}");
    }
    enforce(&mesh.back, deny(vec![from("front")], vec![]));
    assert!(!speak().await);
    let fits = |line: &serde_json::Value| line["log"] == "connection" && line["policy"] == "shop/d";
    assert_eq!(mesh.back.log.find(fits).await["reason"], "policy-denied");
}

#[tokio::test]
async fn plaintext_bytes_and_a_server_that_speaks_first_are_judged_too() {
    let app = apps::tcp(|mut stream| async move {
        let _ = stream.write_all(b"220 ready\r\n").await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let mesh = Mesh::to(app);
    enforce(&mesh.back, vec![policy("a", Action::Allow, vec![rule(vec![from("front")], vec![])])]);
    // Nothing that the application says reaches a stranger, whether it speaks or not.
    let mut stream = TcpStream::connect(mesh.back.inbound).await.unwrap();
    let silent = tokio::time::timeout(Duration::from_millis(300), stream.read_u8()).await;
    assert!(!matches!(silent, Ok(Ok(_))), "{silent:?}");
    assert_eq!(raw(mesh.back.inbound, b"*1\r\n$4\r\nPING\r\n", false).await, "");
    mesh.back.log.find(|line| line["log"] == "connection" && line["reason"] == "policy-denied").await;
    // The mesh's own client hears it.
    let mut stream = TcpStream::connect(mesh.front.outbound).await.unwrap();
    let mut greeting = [0; 11];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 ready\r\n");
    // And one that may not is not left waiting.
    enforce(&mesh.back, vec![policy("a", Action::Allow, vec![])]);
    let mut stream = TcpStream::connect(mesh.front.outbound).await.unwrap();
    let end =
        tokio::time::timeout(Duration::from_secs(10), stream.read(&mut greeting)).await.expect("an end");
    assert!(!matches!(end, Ok(1..)), "{end:?}");
}

#[tokio::test]
async fn http_that_came_as_opaque_bytes_is_judged_as_http() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::with(app, |service| service.protocol = v1::Protocol::Tcp.into());
    enforce(&mesh.back, public());
    let ask = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    assert!(raw(mesh.front.outbound, ask("/public").as_bytes(), false).await.starts_with("HTTP/1.1 200"));
    assert!(raw(mesh.front.outbound, ask("/admin").as_bytes(), false).await.starts_with("HTTP/1.1 403"));
    // What the application might take for HTTP, and the proxy does not, allows nothing.
    assert_eq!(raw(mesh.front.outbound, b"get /public HTTP/1.1\nhost: a\n\n", true).await, "");
    assert_eq!(seen.requests(), 1);
}

#[tokio::test]
async fn what_is_open_is_judged_anew_when_policies_change() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let mut http1 = Http1::connect(mesh.front.outbound).await;
    let mut http2 = Http2::connect(mesh.front.outbound).await;
    let mut plain = Http1::connect(mesh.back.inbound).await;
    assert_eq!(http1.send(get("/")).await.unwrap().status, 200);
    assert_eq!(http2.send(get("/")).await.unwrap().status, 200);
    assert_eq!(plain.send(get("/")).await.unwrap().status, 200);

    let bytes = apps::bytes_echo().await;
    let opaque = Mesh::with(bytes, |service| service.protocol = v1::Protocol::Tcp.into());
    let (mut tunnel, mut direct) = (
        TcpStream::connect(opaque.front.outbound).await.unwrap(),
        TcpStream::connect(opaque.back.inbound).await.unwrap(),
    );
    let mut back = [0; 4];
    for stream in [&mut tunnel, &mut direct] {
        stream.write_all(b"*1\r\n").await.unwrap();
        stream.read_exact(&mut back).await.unwrap();
    }
    // Those who are still allowed notice nothing.
    let allow = vec![policy("front", Action::Allow, vec![rule(vec![from("front")], vec![])])];
    enforce(&mesh.back, allow.clone());
    enforce(&opaque.back, allow);
    assert_eq!(http1.send(get("/")).await.unwrap().status, 200);
    assert_eq!(http2.send(get("/")).await.unwrap().status, 200);
    assert_eq!(said(&plain.send(get("/")).await.unwrap()), (403, "policy-denied"));
    tunnel.write_all(b"*2\r\n").await.unwrap();
    tunnel.read_exact(&mut back).await.unwrap();
    let end = tokio::time::timeout(Duration::from_secs(5), direct.read(&mut back)).await.unwrap();
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);

    let deny = vec![policy("front", Action::Deny, vec![rule(vec![from("front")], vec![])])];
    enforce(&mesh.back, deny.clone());
    enforce(&opaque.back, deny);
    assert_eq!(said(&http1.send(get("/")).await.unwrap()), (403, "policy-denied"));
    assert_eq!(said(&http2.send(get("/")).await.unwrap()), (403, "policy-denied"));
    let end = tokio::time::timeout(Duration::from_secs(5), tunnel.read(&mut back)).await.unwrap();
    assert!(!matches!(end, Ok(1..)), "{end:?}");
    let fits = |line: &serde_json::Value| line["log"] == "connection" && line["policy"] == "shop/front";
    assert_eq!(opaque.back.log.find(fits).await["reason"], "policy-denied");

    enforce(&mesh.back, vec![]);
    assert_eq!(http1.send(get("/")).await.unwrap().status, 200);
}

#[tokio::test]
async fn the_pods_own_address_is_no_way_around() {
    // The same proxy answers whether the Service or the pod was called: it is the callee's.
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::to(app);
    enforce(&mesh.back, vec![policy("closed", Action::Allow, vec![])]);
    let mut service = crate::world::service(&[mesh.back.inbound], Some("back"));
    service.key = "shop/back-0.pod:80".into();
    mesh.front.serve(service);
    assert_eq!(said(&fetch(mesh.front.outbound, get("/")).await), (403, "policy-denied"));
    assert_eq!(said(&fetch(mesh.back.inbound, get("/")).await), (403, "policy-denied"));
    assert_eq!(seen.requests(), 0);
}
