//! RequestAuthentication over real sockets: whose tokens get through and what of them the application sees, and what attackers try.
//! What a token must not be, `src/token/tests.rs` tries more widely.

use std::sync::LazyLock;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_api::v1::{self, AuthorizationAction as Action, authorization_condition::Of};

use crate::apps;
use crate::authorization::{policy, rule, said};
use crate::clients::{Got, Http2, fetch, get, post, raw};
use crate::issuer::{ALGORITHMS, Issuer, base64url, in_header, now};
use crate::world::{Mesh, Node, identity};

pub static ONE: LazyLock<Issuer> = LazyLock::new(|| Issuer::new("https://one.example"));
static OTHER: LazyLock<Issuer> = LazyLock::new(|| Issuer::new("https://other.example"));

pub fn of(issuers: Vec<v1::TokenIssuer>) -> v1::Tokens {
    v1::Tokens { issuers, level: 1 }
}

pub fn take(node: &Node, issuers: Vec<v1::TokenIssuer>, policies: Vec<v1::AuthorizationPolicy>) {
    node.workload("back", |own| {
        own.tokens = Some(of(issuers));
        own.authorization = Some(v1::Authorization { policies, level: 2 });
    });
}

async fn with(mesh: &Mesh, path: &str, lines: &[(&'static str, &str)]) -> Got {
    let mut request = get(path);
    for (name, value) in lines {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    fetch(mesh.front.outbound, request).await
}

async fn bearing(mesh: &Mesh, path: &str, token: &str) -> Got {
    with(mesh, path, &[("authorization", &format!("Bearer {token}"))]).await
}

fn principal(issuer: Option<&str>, subject: Option<&str>) -> v1::AuthorizationSource {
    let principal =
        v1::TokenPrincipal { issuer: issuer.map(str::to_owned), subject: subject.map(str::to_owned) };
    v1::AuthorizationSource { principals: vec![principal], ..Default::default() }
}

fn claim(name: &str, value: v1::claim_match::Value) -> v1::AuthorizationCondition {
    let claim = v1::ClaimMatch { claim: vec![name.to_owned()], value: Some(value) };
    v1::AuthorizationCondition { of: Some(Of::Claim(claim)) }
}

fn counted(node: &Node, result: &str) -> u64 {
    let start = format!("weft_tokens_total{{result=\"{result}\"}} ");
    let text = node.metrics.encode();
    text.lines().find_map(|line| line.strip_prefix(&start)).map_or(0, |count| count.parse().unwrap())
}

#[tokio::test]
async fn a_good_token_passes_by_each_algorithm_a_bad_one_never_and_none_is_the_policies_matter() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::to(app);
    take(&mesh.back, vec![ONE.message()], vec![]);
    for (algorithm, kid) in ALGORITHMS {
        assert_eq!(said(&bearing(&mesh, "/", &ONE.token(kid, "alice")).await), (200, ""), "{algorithm}");
    }
    assert_eq!(said(&fetch(mesh.front.outbound, get("/")).await), (200, ""), "none");
    assert_eq!(seen.requests(), 5);
    let got = bearing(&mesh, "/", "a.b.c").await;
    assert_eq!(said(&got), (401, "token-invalid"));
    assert_eq!(got.headers["www-authenticate"], "Bearer error=\"invalid_token\"");
    // Now somebody who has one is asked for.
    let whoever = policy("users", Action::Allow, vec![rule(vec![principal(None, None)], vec![])]);
    take(&mesh.back, vec![ONE.message()], vec![whoever]);
    assert_eq!(said(&fetch(mesh.front.outbound, get("/")).await), (403, "policy-denied"));
    assert_eq!(said(&bearing(&mesh, "/", &ONE.token("es", "alice")).await), (200, ""));
    let line = mesh.back.log.find(|line| line["token_subject"] == "alice").await;
    assert_eq!(line["token_issuer"], "https://one.example");
    assert_eq!((counted(&mesh.back, "verified"), counted(&mesh.back, "malformed")), (5, 1));
    // From outside of the mesh it is the same.
    let mut request = get("/");
    request
        .headers_mut()
        .insert("authorization", format!("Bearer {}", OTHER.token("es", "a")).parse().unwrap());
    assert_eq!(said(&fetch(mesh.back.inbound, request).await), (401, "token-invalid"));
}

/// Each of them with its word in the metric, and none of them reaches the application.
#[tokio::test]
async fn what_attackers_make_of_tokens_is_refused_and_counted() {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::to(app);
    take(&mesh.back, vec![ONE.message(), OTHER.message()], vec![]);
    let claims = |name: &str, value: serde_json::Value| {
        let mut claims = ONE.claims("mallory");
        claims[name] = value;
        claims
    };
    let unsigned = |header: serde_json::Value| {
        format!("{}.{}.", base64url(header.to_string()), base64url(ONE.claims("mallory").to_string()))
    };
    let hmac = {
        use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
        use aws_lc_rs::signature::KeyPair;
        let signed = unsigned(json!({"alg": "HS256", "kid": "rs"}));
        let signed = signed.trim_end_matches('.');
        let key = Key::new(HMAC_SHA256, ONE.rsa.public_key().as_ref());
        format!("{signed}.{}", base64url(sign(&key, signed.as_bytes())))
    };
    let zero = format!("{}{}", unsigned(json!({"alg": "ES256", "kid": "es"})), base64url([0; 64]));
    let good = ONE.token("ed", "alice");
    let changed = format!("{}{}", &good[..good.len() - 4], "AAAA");
    let tries = [
        ("algorithm", unsigned(json!({"alg": "none"}))),
        ("algorithm", hmac),
        ("signature", zero),
        ("signature", changed),
        ("signature", OTHER.sign("es", ONE.claims("mallory"))),
        ("unknown-key", ONE.sign_as("ES256", &json!({"alg": "ES256", "kid": "mallory"}), &ONE.claims("a"))),
        ("header", ONE.sign_as("ES256", &json!({"alg": "ES256", "jwk": {}}), &ONE.claims("a"))),
        ("unknown-issuer", ONE.sign("es", claims("iss", "https://mallory.example".into()))),
        ("audience", ONE.sign("es", claims("aud", "bank".into()))),
        ("expired", ONE.sign("es", claims("exp", (now() - 61).into()))),
        ("not-yet-valid", ONE.sign("es", claims("nbf", (now() + 90).into()))),
        ("without-expiry", ONE.sign("es", json!({"iss": ONE.name, "aud": "shop"}))),
        ("malformed", format!("{good}, Bearer {good}")),
        ("too-large", "a".repeat(20_000)),
    ];
    for (word, token) in &tries {
        let before = counted(&mesh.back, word);
        let got = bearing(&mesh, "/", token).await;
        let wanted =
            if matches!(*word, "expired" | "not-yet-valid") { "token-expired" } else { "token-invalid" };
        assert_eq!(said(&got), (401, wanted), "{word}");
        assert!(!got.text().contains("mallory") && !got.text().contains("shop/users"), "{}", got.text());
        assert_eq!(counted(&mesh.back, word), before + 1, "{word}");
    }
    for token in tries.iter().map(|(_, token)| token).filter(|token| token.len() > 100) {
        let lines = format!("{:?}", mesh.back.log.lines());
        assert!(!lines.contains(&token[..80]), "a token stands in the log");
    }
    let bearer = format!("Bearer {good}");
    let twice = with(&mesh, "/", &[("authorization", &bearer), ("authorization", &bearer)]).await;
    let beside = with(&mesh, "/", &[("authorization", "Basic YTpi"), ("authorization", &bearer)]).await;
    assert_eq!((said(&twice), said(&beside)), ((401, "token-invalid"), (401, "token-invalid")));
    assert_eq!(counted(&mesh.back, "ambiguous"), 2);
    assert_eq!(seen.requests(), 0);
}

#[tokio::test]
async fn a_token_is_found_where_its_issuer_says_and_goes_on_only_where_it_shall() {
    use v1::token_location::At;
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::to(app);
    let mut one = ONE.message();
    one.locations = vec![
        in_header("x-token", ""),
        v1::TokenLocation { at: Some(At::Cookie("session".into())) },
        v1::TokenLocation { at: Some(At::Query("access_token".into())) },
    ];
    one.forward = false;
    take(&mesh.back, vec![one, OTHER.message()], vec![]);
    let token = ONE.token("es", "alice");
    let cookie = format!("a=1; session={token}; b=2");
    let path = format!("/x?a=1&access_token={token}&b=2");
    for (path, lines) in [
        ("/", vec![("x-token", token.as_str())]),
        ("/", vec![("cookie", cookie.as_str())]),
        (path.as_str(), vec![]),
    ] {
        let got = with(&mesh, path, &lines).await;
        assert_eq!(said(&got), (200, ""), "{path} {lines:?}");
        assert!(!got.text().contains(&token), "{}", got.text());
    }
    let in_query = with(&mesh, &path, &[]).await;
    assert!(in_query.text().starts_with("GET /x?a=1&b=2\n"), "{}", in_query.text());
    let in_cookie = with(&mesh, "/", &[("cookie", &cookie)]).await;
    assert!(in_cookie.text().contains("cookie: a=1; b=2\n"), "{}", in_cookie.text());
    let line =
        mesh.back.log.find(|line| line["path"].as_str().is_some_and(|path| path.starts_with("/x"))).await;
    assert_eq!(line["path"], "/x?a=1&b=2", "the log has no token");
    assert_eq!(counted(&mesh.back, "remembered"), 4);
    let before = seen.requests();
    // In a place where only somebody else's tokens are taken; and in two.
    assert_eq!(said(&bearing(&mesh, "/", &token).await), (401, "token-invalid"));
    assert_eq!(said(&with(&mesh, &path, &[("cookie", &cookie)]).await), (401, "token-invalid"));
    assert_eq!(
        said(&with(&mesh, "/", &[("x-token", &token), ("cookie", &cookie)]).await),
        (401, "token-invalid")
    );
    assert_eq!(seen.requests(), before);
    assert_eq!(said(&bearing(&mesh, "/", &OTHER.token("es", "bob")).await), (200, ""));
}

#[tokio::test]
async fn headers_of_claims_are_the_proxys_alone() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let mut one = ONE.message();
    let header =
        |header: &str, claim: &str| v1::ClaimHeader { header: header.into(), claim: vec![claim.into()] };
    one.claim_headers = vec![header("x-user", "sub"), header("x-groups", "groups")];
    take(&mesh.back, vec![one], vec![]);
    let forged = [("x-user", "root"), ("X_User", "root"), ("x-groups", "admin"), ("x-user", "root2")];
    let got = with(&mesh, "/", &forged.map(|(name, value)| (name, value))).await;
    assert!(!got.text().contains("root") && !got.text().contains("admin"), "{}", got.text());
    let mut claims = ONE.claims("alice");
    claims["groups"] = json!(["a", "b"]);
    let bearer = format!("Bearer {}", ONE.sign("es", claims));
    let lines =
        [&forged[..], &[("authorization", bearer.as_str()), ("connection", "x-user, x-groups")]].concat();
    // Straight to it, so that only this proxy could take `Connection` for its word.
    let mut head = "GET / HTTP/1.1\r\nhost: back\r\n".to_owned();
    lines.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
    head.push_str("connection: close\r\n\r\n");
    for to in [mesh.back.inbound, mesh.front.outbound] {
        let got = raw(to, head.as_bytes(), false).await;
        assert!(got.contains("x-user: alice\n") && got.contains("x-groups: a,b\n"), "{got}");
        assert!(!got.contains("root") && !got.contains("admin"), "{got}");
    }
}

#[tokio::test]
async fn policies_ask_for_principals_and_claims_and_say_which_rule_it_was() {
    use v1::claim_match::Value;
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let one = Some("https://one.example");
    let mut admins = rule(vec![principal(one, None)], vec![]);
    admins.when = vec![claim("groups", Value::Exact("admin".into()))];
    let mut guest = rule(vec![], vec![]);
    guest.when = vec![claim("guest", Value::Present(true))];
    // Of this caller, with or without; of nobody else.
    let front = v1::AuthorizationSource {
        identities: vec![identity("front").to_string()],
        ..principal(one, Some("bob"))
    };
    let policies = vec![
        policy("admins", Action::Allow, vec![admins]),
        policy("bob", Action::Allow, vec![rule(vec![front], vec![])]),
        policy("guests", Action::Deny, vec![guest]),
    ];
    take(&mesh.back, vec![ONE.message(), OTHER.message()], policies.clone());
    let of = |issuer: &Issuer, subject: &str, more: serde_json::Value| {
        let mut claims = issuer.claims(subject);
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        issuer.sign("ed", claims)
    };
    for (token, wanted) in [
        (of(&ONE, "alice", json!({"groups": ["user", "admin"]})), 200),
        (of(&ONE, "alice", json!({"groups": "admin"})), 200),
        (of(&ONE, "alice", json!({"groups": ["user"]})), 403),
        (of(&OTHER, "alice", json!({"groups": ["admin"]})), 403),
        (of(&ONE, "bob", json!({})), 200),
        (of(&OTHER, "bob", json!({})), 403),
        (of(&ONE, "bob", json!({"guest": false})), 403),
    ] {
        assert_eq!(bearing(&mesh, "/", &token).await.status, wanted, "{token}");
    }
    assert_eq!(said(&fetch(mesh.front.outbound, get("/")).await), (403, "policy-denied"));
    let line = mesh.back.log.find(|line| line["policy"] == "shop/guests").await;
    assert_eq!((&line["policy_rule"], &line["token_subject"]), (&"0".into(), &"bob".into()));
    // Bob from outside of the mesh is not the one who was meant.
    let mut request = get("/");
    request
        .headers_mut()
        .insert("authorization", format!("Bearer {}", of(&ONE, "bob", json!({}))).parse().unwrap());
    assert_eq!(said(&fetch(mesh.back.inbound, request).await), (403, "policy-denied"));
    // In dry run it is only noted.
    let mut dry = policies;
    dry.iter_mut().for_each(|policy| policy.dry_run = true);
    take(&mesh.back, vec![ONE.message()], dry);
    assert_eq!(said(&fetch(mesh.front.outbound, get("/")).await), (200, ""));
    let line = mesh.back.log.find(|line| line["dry_run"].is_string()).await;
    assert!(line["dry_run"].as_str().unwrap().contains("shop/admins"), "{line}");
}

#[tokio::test]
async fn a_grpc_caller_is_told_that_it_is_not_authenticated() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    take(&mesh.back, vec![ONE.message()], vec![]);
    let mut client = Http2::connect(mesh.front.outbound).await;
    let mut call = post("/shop.Orders/Buy", "");
    call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    call.headers_mut().insert("authorization", "Bearer junk".parse().unwrap());
    let got = client.send(call.clone()).await.unwrap();
    assert_eq!((said(&got), got.headers["grpc-status"].to_str().unwrap()), ((200, "token-invalid"), "16"));
    call.headers_mut()
        .insert("authorization", format!("Bearer {}", ONE.token("rs", "alice")).parse().unwrap());
    assert_eq!(client.send(call).await.unwrap().reason(), "");
}

/// A token is judged when the request comes; what was made of it is judged again when policies change.
#[tokio::test]
async fn a_websocket_ends_when_its_token_is_not_allowed_any_more() {
    let (app, _) = apps::websocket().await;
    let mesh = Mesh::to(app);
    let allow = |subject: &str| {
        vec![policy("users", Action::Allow, vec![rule(vec![principal(None, Some(subject))], vec![])])]
    };
    take(&mesh.back, vec![ONE.message()], allow("alice"));
    let mut stream = TcpStream::connect(mesh.front.outbound).await.unwrap();
    let token = ONE.token("es", "alice");
    let head = format!(
        "GET / HTTP/1.1\r\nhost: back\r\nauthorization: Bearer {token}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut buffer = vec![0; 4096];
    let n = stream.read(&mut buffer).await.unwrap();
    assert!(buffer[..n].starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&buffer[..n]));
    stream.write_all(b"hello").await.unwrap();
    let n = stream.read(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..n], b"hello");
    take(&mesh.back, vec![ONE.message()], allow("bob"));
    let ended = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut buffer)).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    mesh.back.log.find(|line| line["reason"] == "policy-denied").await;
}

/// Where the policy needs the token, what was made of it lasts as long as the token does; where it does not, on.
#[tokio::test]
async fn a_websocket_ends_when_the_token_that_it_needs_expires() {
    let (app, _) = apps::websocket().await;
    let mesh = Mesh::to(app);
    let mut issuer = ONE.message();
    issuer.leeway_ms = 1000;
    let needed =
        vec![policy("users", Action::Allow, vec![rule(vec![principal(None, Some("alice"))], vec![])])];
    take(&mesh.back, vec![issuer.clone()], needed);
    let open = async || {
        let mut claims = ONE.claims("alice");
        claims["exp"] = (now() + 3).into();
        let head = format!(
            "GET /ws HTTP/1.1\r\nhost: back\r\nauthorization: Bearer {}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
            ONE.sign("es", claims)
        );
        let mut stream = TcpStream::connect(mesh.front.outbound).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut buffer = vec![0; 4096];
        let n = stream.read(&mut buffer).await.unwrap();
        assert!(buffer[..n].starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&buffer[..n]));
        stream
    };
    let (mut stream, began) = (open().await, std::time::Instant::now());
    let mut buffer = [0; 5];
    stream.write_all(b"hello").await.unwrap();
    stream.read_exact(&mut buffer).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(30), stream.read(&mut buffer)).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    // Three seconds, one of leeway; the clock counts whole ones.
    assert!(began.elapsed() > Duration::from_millis(2500), "{:?}", began.elapsed());
    mesh.back.log.find(|line| line["reason"] == "token-expired" && line["code"] == 101).await;
    let text = mesh.back.metrics.encode();
    assert!(
        text.lines().any(|l| l.starts_with("weft_requests_total") && l.contains("token-expired")),
        "{text}"
    );

    take(&mesh.back, vec![issuer], vec![policy("all", Action::Allow, vec![rule(vec![], vec![])])]);
    let mut stream = open().await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    stream.write_all(b"hello").await.unwrap();
    stream.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"hello");
}

#[tokio::test]
async fn keys_that_cannot_be_understood_keep_the_last_ones_and_let_nobody_into_a_new_pod() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    take(&mesh.back, vec![ONE.message()], vec![]);
    let mut bad = ONE.message();
    bad.keys[0].key = vec![1, 2, 3].into();
    let mut own = crate::world::workload("back");
    own.tokens = Some(of(vec![bad]));
    let update = v1::ToProxy { workload: Some(own), ..Default::default() };
    let (next, rejections) = mesh.back.store.load().apply(&update);
    assert_eq!(rejections[0].message, "tokens.issuers[0].keys[0].key: is no key for its algorithm");
    mesh.back.store.publish(next);
    assert_eq!(said(&bearing(&mesh, "/", "junk").await), (401, "token-invalid"));
    assert_eq!(said(&bearing(&mesh, "/", &ONE.token("es", "alice")).await), (200, ""));
    let (fresh, _) = weft_proxy::snapshot::Snapshot::default().apply(&update);
    mesh.back.store.publish(fresh);
    assert_eq!(said(&fetch(mesh.front.outbound, get("/")).await), (403, "policy-denied"));
}
