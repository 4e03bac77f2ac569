//! RequestAuthentication: whose tokens requests may bear, from kubectl to the refusal; keys given, and fetched by the operator.

use anyhow::{Result, ensure};
use aws_lc_rs::signature::KeyPair as _;
use serde_json::{Value, json};
use std::time::Duration;
use weft_api::Reason;
use weft_e2e::{App, Client, Injection, Namespace, eventually, scenario};

use crate::status::condition_is;

#[path = "../../../proxy/tests/path/issuer.rs"]
#[allow(dead_code, reason = "the proxy's tests need more of it")]
mod issuer;

use issuer::{Issuer, base64url};

const SOON: Duration = Duration::from_secs(20);
/// After a few failures in a row the next try is this far away.
const LATER: Duration = Duration::from_secs(90);

fn take(ns: &Namespace, name: &str, spec: &Value) -> Result<String> {
    ns.apply_json(&json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "RequestAuthentication", "metadata": { "name": name }, "spec": spec }))
}

fn allow(ns: &Namespace, rules: &Value) -> Result<String> {
    ns.apply_json(&json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": { "name": "users" },
        "spec": { "action": "Allow", "selector": { "matchLabels": { "app": "server" } }, "rules": rules } }))
}

/// The public keys, as an issuer publishes them.
fn key_set(issuer: &Issuer) -> String {
    let point = issuer.ec.public_key().as_ref();
    json!({ "keys": [
        { "kty": "EC", "crv": "P-256", "kid": "es", "use": "sig", "x": base64url(&point[1..33]), "y": base64url(&point[33..]) },
        { "kty": "OKP", "crv": "Ed25519", "kid": "ed", "alg": "EdDSA", "x": base64url(issuer.ed.public_key().as_ref()) },
    ] })
    .to_string()
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}")
}

#[test]
fn tokens_of_given_keys_pass_and_all_others_are_refused() {
    scenario("tokens", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        let (one, other) = (Issuer::new("https://one.example"), Issuer::new("https://other.example"));
        let spec = json!({ "selector": { "matchLabels": { "app": "server" } }, "issuers": [{
            "issuer": "https://one.example", "audiences": ["shop"], "leeway": "30s", "jwks": key_set(&one),
            "locations": [{ "header": { "name": "Authorization", "prefix": "Bearer " } }, { "cookie": "session" }, { "query": "access_token" }],
            "claimsToHeaders": [{ "header": "x-user", "claim": "sub" }], "forwardToken": false }] });
        take(ns, "users", &spec)?;
        let (alice, mallory) =
            (bearer(&one.token("es", "alice")), bearer(&other.sign("es", one.claims("alice"))));
        eventually("a token of somebody else is refused", SOON, || {
            client
                .get_with("http://server/", &["-H", &mallory])?
                .expect_reason(401, Reason::TokenInvalid)
                .map(drop)
        })?;
        eventually("the status counts the one proxy", SOON, || {
            condition_is(ns, "requestauthentication", "users", "Accepted", "True", &[])?;
            condition_is(ns, "requestauthentication", "users", "Programmed", "True", &["1 of 1"])
        })?;
        let got = client.get_with("http://server/", &["-H", &alice, "-H", "x-user: root"])?.expect(200)?;
        ensure!(got.seen_header("x-user") == Some("alice"), "{got}");
        ensure!(got.seen_header("authorization").is_none(), "the token went on: {got}");
        let forged = client.get_with("http://server/", &["-H", "x-user: root"])?.expect(200)?;
        ensure!(forged.seen_header("x-user").is_none(), "{forged}");
        let token = one.token("ed", "bob");
        let cookie = format!("cookie: session={token}");
        client.get_with("http://server/", &["-H", &cookie])?.expect(200)?;
        client.get(&format!("http://server/?access_token={token}"))?.expect(200)?;
        client
            .get_with("http://server/", &["-H", &cookie, "-H", &alice])?
            .expect_reason(401, Reason::TokenInvalid)?;
        let mut claims = one.claims("alice");
        claims["exp"] = (issuer::now() - 40).into();
        let old = bearer(&one.sign("es", claims.clone()));
        client.get_with("http://server/", &["-H", &old])?.expect_reason(401, Reason::TokenExpired)?;

        // Who may do what, by whose token it is.
        allow(
            ns,
            &json!([{ "from": [{ "requestPrincipals": ["https://one.example/alice"] }] },
            { "name": "admins", "when": [{ "claim": "realm.roles", "exact": "admin" }] }]),
        )?;
        eventually("without a token nobody gets in", SOON, || {
            client.get("http://server/")?.expect_reason(403, Reason::PolicyDenied).map(drop)
        })?;
        client.get_with("http://server/", &["-H", &alice])?.expect(200)?;
        client
            .get_with("http://server/", &["-H", &bearer(&token)])?
            .expect_reason(403, Reason::PolicyDenied)?;
        let mut claims = one.claims("bob");
        claims["realm"] = json!({ "roles": ["user", "admin"] });
        client.get_with("http://server/", &["-H", &bearer(&one.sign("ed", claims))])?.expect(200)?;
        Ok(())
    });
}

#[test]
fn keys_are_fetched_by_the_operator_and_what_goes_wrong_is_said() {
    scenario("tokens-keys", Injection::Label, |ns| {
        let one = Issuer::new("https://one.example");
        App::new("server").deploy(ns)?;
        App::new("keys").argument(&format!("--keys={}", key_set(&one))).deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        let of = |path: &str| {
            let uri = format!("http://keys.{}.svc.cluster.local{path}", ns.name);
            json!({ "selector": { "matchLabels": { "app": "server" } },
                "issuers": [{ "issuer": "https://one.example", "audiences": ["shop"], "jwksUri": uri }] })
        };
        take(ns, "users", &of("/keys"))?;
        let alice = bearer(&one.token("es", "alice"));
        eventually("the keys are there", SOON, || {
            condition_is(ns, "requestauthentication", "users", "ResolvedRefs", "True", &[])
        })?;
        allow(ns, &json!([{ "from": [{ "requestPrincipals": ["*"] }] }]))?;
        eventually("only tokens get in", SOON, || {
            client.get("http://server/")?.expect_reason(403, Reason::PolicyDenied)?;
            client.get_with("http://server/", &["-H", &alice])?.expect(200).map(drop)
        })?;
        // What is no key set, a redirect, and a server that cannot be verified: none of them brings keys.
        take(ns, "users", &of("/elsewhere"))?;
        eventually("a redirect is not followed", LATER, || {
            condition_is(ns, "requestauthentication", "users", "ResolvedRefs", "False", &["answered 302"])?;
            client
                .get_with("http://server/", &["-H", &alice])?
                .expect_reason(401, Reason::TokenInvalid)
                .map(drop)
        })?;
        let root = rcgen::generate_simple_self_signed(["root".to_owned()])?;
        let mut tls = of("/");
        tls["issuers"][0]["jwksUri"] = json!(format!("https://keys.{}.svc.cluster.local:8443/keys", ns.name));
        tls["issuers"][0]["jwksCaBundle"] = json!(root.cert.pem());
        take(ns, "users", &tls)?;
        eventually("a server of another root is not believed", LATER, || {
            condition_is(ns, "requestauthentication", "users", "ResolvedRefs", "False", &["TLS failed"])
        })?;
        let refused = ns.apply_refused(
            &json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "RequestAuthentication", "metadata": { "name": "bad" },
                "spec": { "issuers": [{ "issuer": "a", "jwks": "{\"keys\":[{\"kty\":\"oct\",\"k\":\"AQAB\"}]}" }] } })
            .to_string(),
        )?;
        ensure!(refused.contains("private or symmetric"), "{refused}");
        Ok(())
    });
}
