//! Ways in which callers try to get past a policy: requests hidden in requests, hosts and identities that are claimed, a change of
//! protocol, and connections that were open before.

use std::time::Duration;

use http::HeaderValue;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use weft_api::v1::{self, AuthorizationAction as Action, authorization_path::Path};

use crate::apps;
use crate::authorization::{enforce, from, policy, rule, said, to};
use crate::clients::{Http1, Http2, fetch, get, post, raw};
use crate::world::{Mesh, identity};

fn only_public() -> Vec<v1::AuthorizationPolicy> {
    vec![policy("public", Action::Allow, vec![rule(vec![], vec![to(&[Path::Prefix("/public".into())])])])]
}

/// The statuses of the answers, in order.
fn statuses(answers: &str) -> Vec<&str> {
    answers.match_indices("HTTP/1.1 ").map(|(at, start)| &answers[at + start.len()..][..3]).collect()
}

/// As the proxy's own reader of HTTP/1 takes them, and as hyper does once one of them is not plain.
#[tokio::test]
async fn each_request_of_one_packet_is_judged_for_itself() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::to(app);
    enforce(&mesh.back, only_public());
    let hidden = "GET /public/hidden HTTP/1.1\r\nhost: a\r\n\r\n";
    let refused =
        format!("POST /admin HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{hidden}", hidden.len());
    let chunked = "POST /public/0 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    let in_chunks = format!(
        "POST /admin HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{hidden}\r\n0\r\n\r\n",
        hidden.len()
    );
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
    let last = "GET /public/last HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    for at in [mesh.back.inbound, mesh.front.outbound] {
        for (packet, expected) in [
            (get("/public/1") + &get("/admin") + last, vec!["200", "403", "200"]),
            (get("/public/1") + &refused + last, vec!["200", "403", "200"]),
            (chunked.to_owned() + &get("/admin") + last, vec!["200", "403", "200"]),
            (chunked.to_owned() + &refused + last, vec!["200", "403", "200"]),
            (get("/public/1") + &in_chunks + last, vec!["200", "403", "200"]),
        ] {
            let before = seen.requests();
            let answers = raw(at, packet.as_bytes(), false).await;
            assert!(!answers.contains("hidden") && !answers.contains("/admin"), "{packet}\n{answers}");
            // After a refusal it may close instead, never serve more than was asked for.
            let got = statuses(&answers);
            assert!(got.len() >= 2 && expected.starts_with(&got), "{packet}\n{answers}");
            assert_eq!(seen.requests() - before, got.iter().filter(|s| **s == "200").count(), "{packet}");
        }
    }
}

#[tokio::test]
async fn the_host_that_is_judged_is_the_host_that_the_application_reads() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::to(app);
    let mut open = to(&[]);
    open.hosts = vec!["open.example".into()];
    enforce(&mesh.back, vec![policy("open", Action::Allow, vec![rule(vec![], vec![open])])]);
    for at in [mesh.back.inbound, mesh.front.outbound] {
        let ask = async |target: &str, hosts: &[&str]| {
            let hosts: String = hosts.iter().map(|host| format!("host: {host}\r\n")).collect();
            let request = format!("GET {target} HTTP/1.1\r\n{hosts}connection: close\r\n\r\n");
            raw(at, request.as_bytes(), false).await
        };
        // What the target names counts, and is all that the application gets to see.
        let answer = ask("http://open.example/x", &["closed.example"]).await;
        assert!(answer.contains("host: open.example\n") && !answer.contains("closed"), "{answer}");
        let before = seen.requests();
        for (target, hosts, status) in [
            ("http://closed.example/x", &["open.example"][..], "403"),
            ("/", &["open.example", "closed.example"], "400"),
            ("/", &["closed.example", "open.example"], "400"),
            ("/", &["open.example,closed.example"], "400"),
            ("/", &["open.example.evil"], "403"),
            ("/", &["evil-open.example"], "403"),
            ("/", &[], "400"),
        ] {
            let answer = ask(target, hosts).await;
            assert_eq!(statuses(&answer), [status], "{target} {hosts:?}: {answer}");
        }
        assert_eq!(seen.requests(), before);
    }
}

#[tokio::test]
async fn streams_of_one_http2_connection_are_judged_each_for_itself() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::to(app);
    enforce(&mesh.back, only_public());
    for at in [mesh.back.inbound, mesh.front.outbound] {
        let client = Http2::connect(at).await;
        let before = seen.requests();
        let calls = [
            ("/public/a", 200, ""),
            ("/admin", 403, "policy-denied"),
            ("/public/../admin", 403, "policy-denied"),
            ("/public/%2e%2e/admin", 403, "policy-denied"),
            ("//admin", 403, "policy-denied"),
            ("/public/..%2fadmin", 400, "bad-request"),
            ("/public/..;/admin", 400, "bad-request"),
            ("/public/%00", 400, "bad-request"),
        ];
        let asked = calls.map(|(path, status, reason)| {
            let mut client = client.clone();
            tokio::spawn(async move {
                let got = client.send(post(path, "body")).await.unwrap();
                assert_eq!(said(&got), (status, reason), "{path}");
            })
        });
        for asked in asked {
            asked.await.unwrap();
        }
        assert_eq!(seen.requests() - before, 1);
    }
}

/// What came with an upgrade would pass requests by the proxy.
#[tokio::test]
async fn a_change_to_http2_within_a_connection_is_not_made() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::to(app);
    enforce(&mesh.back, only_public());
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for at in [mesh.back.inbound, mesh.front.outbound] {
        for upgrade in ["h2c", "H2C", "websocket, h2c"] {
            let request = format!(
                "GET /public HTTP/1.1\r\nhost: a\r\nconnection: upgrade, http2-settings\r\nupgrade: {upgrade}\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n"
            );
            let before = seen.requests();
            let answers = raw(at, (request + preface).as_bytes(), true).await;
            assert_eq!(statuses(&answers)[0], "200", "{answers}");
            assert!(!answers.contains("upgrade:") && !answers.contains("http2-settings"), "{answers}");
            assert_eq!(seen.requests() - before, 1, "{answers}");
        }
    }
}

/// As a header, as a header of the connection that is to be dropped, and behind the body.
#[tokio::test]
async fn an_identity_that_a_caller_states_is_never_passed_on() {
    let app = apps::tcp(|mut stream| async move {
        let mut text = Vec::new();
        while !text.ends_with(b"0\r\n\r\n") && !text.ends_with(b"sum: 1\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => text.push(byte),
                Err(_) => return,
            }
        }
        let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", text.len());
        let _ = stream.write_all(&[head.as_bytes(), &text].concat()).await;
    })
    .await;
    let mesh = Mesh::with(app, |service| service.protocol = v1::Protocol::Http1.into());
    enforce(&mesh.back, vec![policy("all", Action::Allow, vec![rule(vec![], vec![])])]);
    for (at, own) in [(mesh.back.inbound, None), (mesh.front.outbound, Some(identity("front").to_string()))] {
        for spoof in ["weft-client-identity", "Weft-Client-Identity", "WEFT-CLIENT-IDENTITY"] {
            let request = format!(
                "POST / HTTP/1.1\r\nhost: a\r\n{spoof}: spoofed-a\r\n{spoof}: spoofed-b\r\nconnection: close, weft-client-identity\r\nte: trailers\r\ntransfer-encoding: chunked\r\ntrailer: x-sum, {spoof}\r\n\r\n2\r\nhi\r\n0\r\n{spoof}: spoofed-c\r\nx-sum: 1\r\n\r\n"
            );
            let answer = raw(at, request.as_bytes(), false).await;
            assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("x-sum: 1"), "{answer}");
            assert!(!answer.contains("spoofed"), "{answer}");
            let stated: Vec<&str> =
                answer.lines().filter_map(|line| line.strip_prefix("weft-client-identity: ")).collect();
            assert_eq!(stated, own.as_deref().into_iter().collect::<Vec<_>>(), "{answer}");
        }
    }
}

/// Between plain sockets much is moved within the kernel, past every buffer of the proxy: the policy ends that too.
#[tokio::test]
async fn bulk_that_is_under_way_ends_when_a_policy_forbids_it() {
    let app = apps::tcp(|mut stream| async move {
        let _ = stream.read_u8().await;
        let chunk = vec![7; 256 * 1024];
        while stream.write_all(&chunk).await.is_ok() {}
    })
    .await;
    let mesh = Mesh::with(app, |service| service.protocol = v1::Protocol::Tcp.into());
    let mut streams = Vec::new();
    for at in [mesh.back.inbound, mesh.front.outbound] {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(b"*").await.unwrap();
        let mut much = vec![0; 16 * 1024 * 1024];
        timeout(Duration::from_secs(20), stream.read_exact(&mut much)).await.unwrap().unwrap();
        streams.push((stream, much));
    }
    let deny = rule(vec![], vec![to(&[Path::Prefix("/".into())])]);
    enforce(&mesh.back, vec![policy("d", Action::Deny, vec![deny])]);
    for (mut stream, mut much) in streams {
        // What is in the sockets' buffers still comes; then it is over, and nobody takes it for an orderly end of all.
        let end = async { while matches!(stream.read(&mut much).await, Ok(1..)) {} };
        timeout(Duration::from_secs(20), end).await.expect("an end");
    }
    for caller in [true, false] {
        let fits = move |line: &serde_json::Value| {
            line["log"] == "connection" && line["policy"] == "shop/d" && line["mtls"] == caller
        };
        assert_eq!(mesh.back.log.find(fits).await["reason"], "policy-denied");
    }
}

/// What was a request once lasts as long as its connection.
#[tokio::test]
async fn a_websocket_ends_when_a_policy_or_a_mode_forbids_it() {
    let (app, _) = apps::websocket().await;
    let mesh = Mesh::to(app);
    let open = async |at, path| {
        let mut request = get(path);
        request.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
        request.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
        let response = Http1::connect(at).await.open(request).await;
        assert_eq!(response.status(), 101);
        TokioIo::new(hyper::upgrade::on(response).await.unwrap())
    };
    let is_open = async |io: &mut TokioIo<Upgraded>| {
        let mut answer = [0; 5];
        io.write_all(b"hello").await.is_ok() && io.read_exact(&mut answer).await.is_ok()
    };
    let ends = async |mut io: TokioIo<Upgraded>| {
        let end = timeout(Duration::from_secs(10), io.read(&mut [0; 5])).await.expect("an end");
        assert!(!matches!(end, Ok(1..)), "{end:?}");
    };
    let admin = open(mesh.front.outbound, "/admin/ws").await;
    let mut public = open(mesh.front.outbound, "/public/ws").await;
    let mut plain = open(mesh.back.inbound, "/public/ws").await;
    enforce(&mesh.back, only_public());
    ends(admin).await;
    assert!(is_open(&mut public).await && is_open(&mut plain).await);
    let line = mesh.back.log.find(|line| line["path"] == "/admin/ws").await;
    assert_eq!((&line["code"], &line["reason"]), (&101.into(), &"policy-denied".into()), "{line}");
    // From outside of the mesh it needs plain text, which is forbidden now.
    mesh.back.workload("back", |own| own.mtls = v1::MtlsMode::Strict.into());
    ends(plain).await;
    assert!(is_open(&mut public).await);
    // Under rules for paths one is opened that they do not allow: it is not.
    enforce(&mesh.back, only_public());
    let mut request = get("/admin/ws");
    request.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
    request.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
    assert_eq!(said(&fetch(mesh.front.outbound, request).await), (403, "policy-denied"));
}

/// A caller that is in the mesh, and drops to plain text to be somebody else, or nobody.
#[tokio::test]
async fn going_down_to_plain_text_gains_nothing() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::to(app);
    let mesh_only = v1::AuthorizationSource { identities: vec!["*".into()], ..Default::default() };
    enforce(&mesh.back, vec![policy("mesh", Action::Allow, vec![rule(vec![mesh_only], vec![])])]);
    let request = format!(
        "GET / HTTP/1.1\r\nhost: a\r\nweft-client-identity: {}\r\nx-forwarded-client-cert: By=x\r\nconnection: close\r\n\r\n",
        identity("front")
    );
    assert!(raw(mesh.front.outbound, request.as_bytes(), false).await.starts_with("HTTP/1.1 200"));
    let answer = raw(mesh.back.inbound, request.as_bytes(), false).await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("policy-denied"), "{answer}");
    let mut plain = Http2::connect(mesh.back.inbound).await;
    let mut spoofed = post("/", "");
    let stated = HeaderValue::from_str(&identity("front").to_string()).unwrap();
    spoofed.headers_mut().insert("weft-client-identity", stated);
    assert_eq!(said(&plain.send(spoofed).await.unwrap()), (403, "policy-denied"));
    // One who is denied by name is not let in without it either, where only callers of the mesh are.
    enforce(
        &mesh.back,
        vec![
            policy("not-front", Action::Deny, vec![rule(vec![from("front")], vec![])]),
            policy(
                "mesh",
                Action::Allow,
                vec![rule(
                    vec![v1::AuthorizationSource { namespaces: vec!["shop".into()], ..Default::default() }],
                    vec![],
                )],
            ),
        ],
    );
    for at in [mesh.front.outbound, mesh.back.inbound] {
        assert!(raw(at, request.as_bytes(), false).await.starts_with("HTTP/1.1 403"));
    }
    assert_eq!(seen.requests(), 1);
}
