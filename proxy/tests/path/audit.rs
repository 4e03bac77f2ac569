//! What auditors are told of policies' decisions, over real sockets: each of those that they chose, and nothing secret.

use http::HeaderValue;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_api::v1::{self, AuthorizationAction as Action, authorization_path::Path};

use crate::apps;
use crate::authorization::{enforce, from, policy, rule, said, to};
use crate::clients::{fetch, get, post};
use crate::tokens::{ONE, take};
use crate::world::{Mesh, Node, identity};

const PLANTED: &str = "planted-secret";

fn audited(mut policy: v1::AuthorizationPolicy) -> v1::AuthorizationPolicy {
    policy.audit = true;
    policy
}

async fn told(node: &Node, what: impl Fn(&Value) -> bool) -> Value {
    node.log.find(|line| line["log"] == "audit" && what(line)).await
}

fn events(node: &Node) -> Vec<Value> {
    node.log.lines().into_iter().filter(|line| line["log"] == "audit").collect()
}

/// Headers, query and body that nobody but the application shall see.
fn with_secrets(
    mut request: http::Request<http_body_util::Full<bytes::Bytes>>,
) -> http::Request<http_body_util::Full<bytes::Bytes>> {
    for name in ["authorization", "cookie", "x-api-key", "proxy-authorization", "x-forwarded-for", "referer"]
    {
        request.headers_mut().insert(name, HeaderValue::from_static(PLANTED));
    }
    request
}

#[tokio::test]
async fn each_decision_of_a_policy_for_auditors_is_told_and_nothing_secret_with_it() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let mut only = rule(vec![from("front")], vec![to(&[Path::Prefix("/public".into())])]);
    only.when = vec![v1::AuthorizationCondition {
        of: Some(v1::authorization_condition::Of::Header(v1::HeaderMatch {
            name: "x-api-key".into(),
            value: Some(v1::header_match::Value::Exact(PLANTED.into())),
        })),
    }];
    let secret = rule(vec![], vec![to(&[Path::Prefix("/public/secret".into())])]);
    enforce(
        &mesh.back,
        vec![
            audited(policy("public", Action::Allow, vec![only])),
            audited(policy("no", Action::Deny, vec![secret])),
        ],
    );
    let ask = async |path: &str| fetch(mesh.front.outbound, with_secrets(post(path, PLANTED))).await;
    assert_eq!(said(&ask("/public/a?token=planted-secret").await), (200, ""));
    let event = told(&mesh.back, |e| e["result"] == "allowed").await;
    assert_eq!((&event["component"], &event["event"]), (&json!("proxy"), &json!("authorization")));
    assert_eq!(event["who"], json!({"identity": identity("front").to_string(), "address": "127.0.0.1"}));
    let what = &event["what"];
    assert_eq!(
        (&what["kind"], &what["operation"], &what["path"], &what["port"], &what["name"]),
        (&json!("request"), &json!("POST"), &json!("/public/a"), &json!(app.port()), &json!("back"))
    );
    assert_eq!(event["policies"], json!([{"policy": "shop/public", "rule": "0", "action": "allow"}]));
    assert!(!what["request_id"].as_str().unwrap().is_empty(), "{event}");

    assert_eq!(said(&ask("/public/secret?token=planted-secret").await), (403, "policy-denied"));
    let event = told(&mesh.back, |e| e["policies"][0]["action"] == "deny").await;
    assert_eq!((&event["result"], &event["policies"][0]["policy"]), (&json!("denied"), &json!("shop/no")));
    assert_eq!(said(&ask("/elsewhere?token=planted-secret").await), (403, "policy-denied"));
    let event = told(&mesh.back, |e| e["what"]["path"] == "/elsewhere").await;
    assert_eq!((&event["result"], &event["reason"]), (&json!("denied"), &json!("policy-denied")));
    assert_eq!(event["policies"], json!([{"policy": "shop/public", "action": "allow"}]));
    assert_eq!(said(&ask("/public/..%2fsecret?token=planted-secret").await), (400, "bad-request"));
    told(&mesh.back, |e| e["reason"] == "bad-request").await;

    let all = events(&mesh.back);
    assert_eq!(all.len(), 4, "one for each decision: {all:#?}");
    assert!(!serde_json::to_string(&all).unwrap().contains(PLANTED), "a secret is told: {all:#?}");

    // The operator hears sums of them, of all that have a policy, and no more than whom which rule let in or did not.
    let report = mesh.back.decisions.take().unwrap();
    assert_eq!(report.left_out, 0);
    let front = identity("front").to_string();
    let mut sums: Vec<_> = report
        .decisions
        .iter()
        .map(|sum| {
            assert_eq!((&sum.caller, sum.times), (&front, 1));
            (&*sum.policy, &*sum.rule, &*sum.action, sum.denied)
        })
        .collect();
    sums.sort_unstable();
    let none = ("shop/public", "", "allow", true);
    assert_eq!(sums, [("shop/no", "0", "deny", true), none, ("shop/public", "0", "allow", false)]);
    for private in [PLANTED, "elsewhere", "127.0.0.1"] {
        assert!(!format!("{report:?}").contains(private), "{private} is reported: {report:?}");
    }
}

#[tokio::test]
async fn whose_token_it_was_is_told_and_never_the_token() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let no = rule(vec![], vec![to(&[Path::Prefix("/no".into())])]);
    let policies = vec![
        audited(policy("all", Action::Allow, vec![rule(vec![], vec![])])),
        audited(policy("no", Action::Deny, vec![no])),
    ];
    take(&mesh.back, vec![ONE.message()], policies);
    let token = ONE.token("es", "alice");
    for (path, expected) in [("/yes", (200, "")), ("/no", (403, "policy-denied"))] {
        let mut request = get(path);
        let bearer = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
        request.headers_mut().insert("authorization", bearer);
        assert_eq!(said(&fetch(mesh.front.outbound, request).await), expected);
        let event = told(&mesh.back, |e| e["what"]["path"] == path).await;
        let who = &event["who"];
        assert_eq!((&who["token_issuer"], &who["token_subject"]), (&json!(ONE.name), &json!("alice")));
        assert_eq!(who["identity"], identity("front").to_string(), "who called stays another question");
    }
    assert_eq!(said(&fetch(mesh.front.outbound, get("/without")).await), (200, ""));
    let event = told(&mesh.back, |e| e["what"]["path"] == "/without").await;
    assert!(event["who"]["token_subject"].is_null(), "{event}");
    let all = serde_json::to_string(&events(&mesh.back)).unwrap();
    for part in token.split('.') {
        assert!(!all.contains(part), "a part of the token is told: {all}");
    }
}

#[tokio::test]
async fn what_auditors_did_not_choose_is_not_told_and_what_audit_policies_fit_is() {
    let (app, _) = apps::echo().await;
    let mesh = Mesh::to(app);
    let at = |path: &str| vec![rule(vec![], vec![to(&[Path::Prefix(path.into())])])];
    enforce(
        &mesh.back,
        vec![policy("no", Action::Deny, at("/no")), policy("seen", Action::Audit, at("/seen"))],
    );
    assert_eq!(said(&fetch(mesh.front.outbound, get("/no")).await), (403, "policy-denied"));
    assert_eq!(said(&fetch(mesh.front.outbound, get("/")).await), (200, ""));
    assert_eq!(said(&fetch(mesh.front.outbound, get("/seen")).await), (200, ""));
    // A caller without identity is told by its address alone.
    assert_eq!(said(&fetch(mesh.back.inbound, get("/seen/2")).await), (200, ""));
    let event = told(&mesh.back, |e| e["what"]["path"] == "/seen/2").await;
    assert_eq!(event["who"], json!({"address": "127.0.0.1"}));
    assert_eq!(event["policies"], json!([{"policy": "shop/seen", "rule": "0", "action": "audit"}]));
    let all = events(&mesh.back);
    assert_eq!(all.len(), 2, "{all:#?}");
    assert!(all.iter().all(|event| event["result"] == "allowed"), "{all:#?}");
}

#[tokio::test]
async fn an_opaque_connection_is_told_when_it_begins_and_when_it_is_forbidden() {
    let app = apps::tcp(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let mesh = Mesh::to(app);
    let allow =
        |account| vec![audited(policy("only", Action::Allow, vec![rule(vec![from(account)], vec![])]))];
    enforce(&mesh.back, allow("front"));
    let mut client = TcpStream::connect(mesh.front.outbound).await.unwrap();
    client.write_all(b"\x01planted-secret").await.unwrap();
    let mut echoed = [0; 15];
    client.read_exact(&mut echoed).await.unwrap();
    let event = told(&mesh.back, |e| e["result"] == "allowed").await;
    let what = json!({"kind": "connection", "namespace": event["what"]["namespace"], "name": "back", "port": app.port()});
    assert_eq!(event["what"], what);
    enforce(&mesh.back, allow("other"));
    let event = told(&mesh.back, |e| e["result"] == "denied").await;
    assert_eq!(event["who"]["identity"], identity("front").to_string());
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest).await;
    assert_eq!(events(&mesh.back).len(), 2);
}
