//! Tokens (JWT) that nobody trustworthy has signed for this place and time, and floods of names of keys that there are not.

use anyhow::{Result, ensure};
use aws_lc_rs::signature::KeyPair as _;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use weft_api::Reason;
use weft_e2e::{App, Client, Injection, Namespace, eventually, scenario};

use super::ground::{Attacker, SOON, address, served};
use issuer::{Issuer, base64url, now};

#[path = "../../../proxy/tests/path/issuer.rs"]
#[allow(dead_code, reason = "the proxy's tests need more of it")]
mod issuer;

const TOKENS: &str = "weft_tokens_total";
const FETCHES: &str = "weft_operator_key_fetches_total";
const NAME: &str = "https://one.example";

fn key_set(issuer: &Issuer, kid: &str) -> String {
    let point = issuer.ec.public_key().as_ref();
    json!({ "keys": [
        { "kty": "EC", "crv": "P-256", "kid": kid, "use": "sig", "x": base64url(&point[1..33]), "y": base64url(&point[33..]) },
        { "kty": "OKP", "crv": "Ed25519", "kid": "ed", "alg": "EdDSA", "x": base64url(issuer.ed.public_key().as_ref()) },
    ] })
    .to_string()
}

fn take(ns: &Namespace, keys: &Value) -> Result<()> {
    let mut issuer = json!({ "issuer": NAME, "audiences": ["shop"] });
    for (name, value) in keys.as_object().into_iter().flatten() {
        issuer[name] = value.clone();
    }
    ns.apply_json(&json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "RequestAuthentication", "metadata": { "name": "users" },
        "spec": { "selector": { "matchLabels": { "app": "server" } }, "issuers": [issuer] } }))?;
    ns.apply_json(&json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": { "name": "users" },
        "spec": { "action": "Allow", "selector": { "matchLabels": { "app": "server" } }, "rules": [{ "from": [{ "requestPrincipals": ["*"] }] }] } }))
        .map(drop)
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}")
}

#[test]
fn confused_algorithms_and_made_up_tokens_are_refused_each_with_its_word() {
    scenario("jwt", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        let (client, attacker) = (Client::deploy(ns, "client")?, Attacker::deploy(ns)?);
        let server = ns.pod("app=server")?;
        let ip = address(&server)?;
        let (one, other) = (Issuer::new(NAME), Issuer::new(NAME));
        take(ns, &json!({ "jwks": key_set(&one, "es") }))?;
        let good = one.token("es", "alice");
        eventually("tokens count", SOON, || {
            client.get("http://server/")?.expect_reason(403, Reason::PolicyDenied)?;
            client.get_with("http://server/", &["-H", &bearer(&good)])?.expect(200).map(drop)
        })?;
        let before = served(&client.get_with("http://server/", &["-H", &bearer(&good)])?.body.to_string())?;
        let with = |name: &str, value: Value| {
            let mut claims = one.claims("mallory");
            claims[name] = value;
            one.sign("es", claims)
        };
        let unsigned = |header: Value| {
            format!("{}.{}", base64url(header.to_string()), base64url(one.claims("mallory").to_string()))
        };
        // The public key, taken for the secret of HMAC: as bytes, and as the PEM that libraries hand on.
        let hmac = |secret: &[u8]| {
            use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
            let signed = unsigned(json!({"alg": "HS256", "kid": "es"}));
            let tag = sign(&Key::new(HMAC_SHA256, secret), signed.as_bytes());
            format!("{signed}.{}", base64url(tag))
        };
        let key = one.ec.public_key().as_ref();
        let pem = format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD, key)
        );
        let none = |word: &str| format!("{}.", unsigned(json!({"alg": word})));
        let zero = format!("{}.{}", unsigned(json!({"alg": "ES256", "kid": "es"})), base64url([0; 64]));
        let es = |header: Value| one.sign_as("ES256", &header, &one.claims("mallory"));
        let attacks = [
            ("algorithm", none("none")),
            ("algorithm", none("None")),
            ("algorithm", none("nOnE")),
            ("algorithm", hmac(key)),
            ("algorithm", hmac(pem.as_bytes())),
            (
                "algorithm",
                one.sign_as("EdDSA", &json!({"alg": "EdDSA", "kid": "es"}), &one.claims("mallory")),
            ),
            ("signature", zero),
            ("signature", format!("{}AAAA", &good[..good.len() - 4])),
            ("signature", other.token("es", "mallory")),
            ("unknown-key", es(json!({"alg": "ES256", "kid": "mallory"}))),
            ("unknown-key", es(json!({"alg": "ES256", "kid": "../../dev/null"}))),
            ("header", es(json!({"alg": "ES256", "kid": "es", "jwk": {}}))),
            ("header", es(json!({"alg": "ES256", "kid": "es", "jku": "https://mallory.example/keys"}))),
            ("unknown-issuer", with("iss", "https://mallory.example".into())),
            ("audience", with("aud", "bank".into())),
            ("expired", with("exp", (now() - 400).into())),
            ("not-yet-valid", with("nbf", (now() + 400).into())),
            ("without-expiry", one.sign("es", json!({"iss": NAME, "sub": "mallory", "aud": "shop"}))),
            ("malformed", "e30".into()),
        ];
        for (word, token) in &attacks {
            let label = format!("result=\"{word}\"");
            let counted = attacker.count(ip, TOKENS, &[&label])?;
            let reason = if matches!(*word, "expired" | "not-yet-valid") {
                Reason::TokenExpired
            } else {
                Reason::TokenInvalid
            };
            client
                .get_with("http://server/", &["-H", &bearer(token)])?
                .expect_reason(401, reason)
                .map_err(|e| e.context(format!("{word}: {token}")))?;
            let after = attacker.count(ip, TOKENS, &[&label])?;
            ensure!(after == counted + 1, "{word} is counted {after} times, before {counted}");
        }
        let twice = ["-H", &bearer(&good), "-H", &bearer(&good)];
        client.get_with("http://server/", &twice)?.expect_reason(401, Reason::TokenInvalid)?;
        let after = served(&client.get_with("http://server/", &["-H", &bearer(&good)])?.body.to_string())?;
        ensure!(after == before + 1, "{} of them reached the application", after - before - 1);
        Ok(())
    });
}

#[test]
fn a_flood_of_unknown_keys_makes_the_operator_ask_no_more_than_now_and_then_and_a_new_key_counts_soon() {
    scenario("jwks-flood", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        let one = Issuer::new(NAME);
        let keys = App::new("keys").argument(&format!("--keys={}", key_set(&one, "old")));
        keys.deploy(ns)?;
        let (client, attacker) = (Client::deploy(ns, "client")?, Attacker::deploy(ns)?);
        let server = ns.pod("app=server")?;
        let ip = address(&server)?;
        take(ns, &json!({ "jwksUri": format!("http://keys.{}.svc.cluster.local/keys", ns.name) }))?;
        let of = |kid: &str| {
            bearer(&one.sign_as("ES256", &json!({"alg": "ES256", "kid": kid}), &one.claims("alice")))
        };
        eventually("the keys are there", SOON, || {
            client.get_with("http://server/", &["-H", &of("old")])?.expect(200).map(drop)
        })?;
        let fetches = || attacker.count_of("weft-operator", FETCHES, &[]);
        let replicas = weft_e2e::chart::pods(ns.cluster, "weft-operator")?.len() as u64;
        let refused = attacker.count(ip, TOKENS, &["result=\"unknown-key\""])?;
        let (before, began) = (fetches()?, Instant::now());
        let mut sent = 0;
        while began.elapsed() < Duration::from_secs(12) {
            for reply in
                client.get_many("http://server/", 100, 4, &["-H", &of(&format!("made-up-{sent}"))])?
            {
                reply.expect_reason(401, Reason::TokenInvalid)?;
            }
            sent += 100;
        }
        // One set: each replica fetches it at most every ten seconds for this, whoever asks, and once by itself.
        let most = replicas * (began.elapsed().as_secs() / 10 + 2);
        let made = fetches()? - before;
        ensure!(made >= 1, "a key that is not known is not asked for");
        ensure!(made <= most, "{sent} tokens brought {made} fetches, not {most}");
        attacker.counted(ip, TOKENS, &["result=\"unknown-key\""], refused + sent)?;

        // The issuer has another key now: its tokens count within seconds, long before the keys would have been fetched anyway.
        App::new("keys").argument(&format!("--keys={}", key_set(&one, "new"))).deploy(ns)?;
        let began = Instant::now();
        eventually("a token of the new key is good", Duration::from_secs(40), || {
            client.get_with("http://server/", &["-H", &of("new")])?.expect(200).map(drop)
        })?;
        eprintln!("the new key counted after {:?}", began.elapsed());
        client.get_with("http://server/", &["-H", &of("old")])?.expect_reason(401, Reason::TokenInvalid)?;
        Ok(())
    });
}
