//! Tests of `token`: what is good is taken by each algorithm, and whatever else attackers make of it is not.

use std::sync::LazyLock;

use aws_lc_rs::hmac;
use aws_lc_rs::signature::KeyPair as _;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::snapshot::Snapshot;
use crate::snapshot::tests::workload;

#[path = "../../tests/path/issuer.rs"]
pub(crate) mod issuer;

use issuer::{ALGORITHMS, Issuer as Signer, base64url};

pub(crate) static ONE: LazyLock<Signer> = LazyLock::new(|| Signer::new("https://one.example"));
static OTHER: LazyLock<Signer> = LazyLock::new(|| Signer::new("https://other.example"));

fn tokens(issuers: Vec<v1::TokenIssuer>) -> Arc<Tokens> {
    let message = v1::Tokens { issuers, level: 1 };
    let own = v1::Workload { tokens: Some(message), ..workload() };
    let (snapshot, rejections) =
        Snapshot::default().apply(&v1::ToProxy { workload: Some(own), ..Default::default() });
    assert!(rejections.is_empty(), "{rejections:?}");
    snapshot.workload.as_ref().unwrap().tokens.clone().unwrap()
}

fn both() -> Arc<Tokens> {
    tokens(vec![ONE.message(), OTHER.message()])
}

/// Of a request with these lines.
fn seen(tokens: &Arc<Tokens>, lines: &[(&'static str, &str)], uri: &str) -> (Option<Seen>, HeaderMap, Uri) {
    let line = |(name, value): &(&'static str, &str)| (HeaderName::from_static(name), value.parse().unwrap());
    let (mut headers, mut uri): (HeaderMap, Uri) = (lines.iter().map(line).collect(), uri.parse().unwrap());
    let seen = tokens.of_request(&mut headers, &mut uri, now(), &mut Memory::default(), |_| {});
    (seen, headers, uri)
}

fn judged(tokens: &Arc<Tokens>, token: &str) -> Result<Arc<Verified>, Flaw> {
    match seen(tokens, &[("authorization", &format!("Bearer {token}"))], "/").0.unwrap() {
        Seen::Good(verified, _) => Ok(verified),
        Seen::Bad(flaw) => Err(flaw),
    }
}

fn flaw(tokens: &Arc<Tokens>, token: &str) -> Flaw {
    judged(tokens, token).unwrap_err()
}

#[test]
fn a_good_token_is_taken_by_each_algorithm_and_no_other() {
    let tokens = both();
    for (algorithm, kid) in ALGORITHMS {
        let good = judged(&tokens, &ONE.token(kid, "alice")).unwrap();
        assert_eq!(
            (&*good.claims.issuer, good.claims.subject.as_deref()),
            ("https://one.example", Some("alice"))
        );
        // Without the key's name, by whichever key of that algorithm there is.
        let unnamed = ONE.sign_as(algorithm, &json!({"alg": algorithm}), &ONE.claims("alice"));
        assert!(judged(&tokens, &unnamed).is_ok(), "{algorithm}");
        // By the name of another key, whatever signed it.
        for (_, other) in ALGORITHMS.iter().filter(|(_, other)| *other != kid) {
            let renamed =
                ONE.sign_as(algorithm, &json!({"alg": algorithm, "kid": other}), &ONE.claims("alice"));
            assert_eq!(flaw(&tokens, &renamed), Flaw::Algorithm, "{algorithm} as {other}");
        }
    }
    // RFC 7515 section 4.1.4: which key it is. None of that name: none.
    let unknown = ONE.sign_as("ES256", &json!({"alg": "ES256", "kid": "new"}), &ONE.claims("a"));
    assert_eq!(flaw(&tokens, &unknown), Flaw::UnknownKey);
}

#[test]
fn algorithms_cannot_be_confused() {
    let tokens = both();
    let payload = base64url(ONE.claims("mallory").to_string());
    // No signature at all.
    for word in ["none", "None", "NONE", "nOnE"] {
        let unsigned = format!("{}.{payload}.", base64url(json!({"alg": word}).to_string()));
        assert_eq!(flaw(&tokens, &unsigned), Flaw::Algorithm, "{word}");
    }
    let named = |word: &str, kid: &str| base64url(json!({"alg": word, "kid": kid}).to_string());
    assert_eq!(flaw(&tokens, &format!("{}.{payload}.", named("RS256", "rs"))), Flaw::Signature);
    // HMAC with the public key as the secret: everybody knows it.
    for key in [ONE.rsa.public_key().as_ref(), ONE.ec.public_key().as_ref()] {
        for word in ["HS256", "RS256"] {
            let signed = format!("{}.{payload}", named(word, "rs"));
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), signed.as_bytes());
            let wanted = if word == "HS256" { Flaw::Algorithm } else { Flaw::Signature };
            assert_eq!(flaw(&tokens, &format!("{signed}.{}", base64url(tag))), wanted);
        }
    }
    // One padding for another.
    let pkcs1 = ONE.sign_as("RS256", &json!({"alg": "PS256", "kid": "ps"}), &ONE.claims("mallory"));
    assert_eq!(flaw(&tokens, &pkcs1), Flaw::Signature);
    // CVE-2022-21449: r and s of zero, and other numbers that are none of the curve's.
    let signed = format!("{}.{payload}", named("ES256", "es"));
    for bytes in [
        vec![0; 64],
        vec![0xff; 64],
        vec![],
        vec![0; 63],
        vec![0; 65],
        vec![0; 72],
        [vec![0; 63], vec![1]].concat(),
    ] {
        assert_eq!(flaw(&tokens, &format!("{signed}.{}", base64url(bytes))), Flaw::Signature);
    }
    // RFC 7518 section 3.4: not as ASN.1, which would be another way to write the same.
    let der = [&[0x30, 0x06, 0x02, 0x01, 0x01, 0x02, 0x01, 0x01][..]].concat();
    assert_eq!(flaw(&tokens, &format!("{signed}.{}", base64url(der))), Flaw::Signature);
    assert_eq!(
        flaw(&tokens, &format!("{}.{payload}.{}", named("EdDSA", "ed"), base64url([0; 64]))),
        Flaw::Signature
    );
}

#[test]
fn a_key_of_another_issuer_or_of_the_token_itself_does_not_count() {
    let tokens = both();
    for (_, kid) in ALGORITHMS {
        let stolen = OTHER.sign(kid, ONE.claims("alice"));
        assert_eq!(flaw(&tokens, &stolen), Flaw::Signature, "{kid}");
    }
    for name in ["jwk", "jku", "x5u", "x5c", "crit"] {
        let header = json!({"alg": "ES256", "kid": "es", name: ["https://mallory.example"]});
        assert_eq!(flaw(&tokens, &ONE.sign_as("ES256", &header, &ONE.claims("a"))), Flaw::Header, "{name}");
    }
    // Of two keys of one issuer, the one that is asked for by name.
    let mut renamed = ONE.message();
    renamed.keys[2].kid.clear();
    assert!(judged(&tokens_of(renamed), &ONE.token("es", "a")).is_ok(), "the only one without a name");
    let mut without = ONE.message();
    without.keys.clear();
    assert_eq!(flaw(&tokens_of(without), &ONE.token("es", "a")), Flaw::UnknownKey);
    let mut many = ONE.message();
    many.keys =
        (0..=MAX_TRIED).map(|n| v1::TokenKey { kid: format!("k{n}"), ..ONE.keys()[2].clone() }).collect();
    let unnamed = ONE.sign_as("ES256", &json!({"alg": "ES256"}), &ONE.claims("a"));
    assert_eq!(flaw(&tokens_of(many), &unnamed), Flaw::UnknownKey);
}

fn tokens_of(issuer: v1::TokenIssuer) -> Arc<Tokens> {
    tokens(vec![issuer])
}

#[test]
fn issuer_audience_and_time_must_be_right() {
    let tokens = both();
    let with = |name: &str, value: Value| {
        let mut claims = ONE.claims("alice");
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value,
        }
        ONE.sign("ed", claims)
    };
    let at = now();
    for (name, value, wanted) in [
        ("iss", json!("https://three.example"), Flaw::UnknownIssuer),
        ("iss", json!("https://one.example/"), Flaw::UnknownIssuer),
        ("iss", Value::Null, Flaw::UnknownIssuer),
        ("iss", json!(["https://one.example"]), Flaw::Malformed),
        ("aud", json!("bank"), Flaw::Audience),
        ("aud", json!(["bank", "Shop"]), Flaw::Audience),
        ("aud", Value::Null, Flaw::Audience),
        ("exp", json!(at - 61), Flaw::Expired),
        ("exp", json!(0), Flaw::Expired),
        ("exp", json!(-1e300), Flaw::Expired),
        ("exp", Value::Null, Flaw::WithoutExpiry),
        ("exp", json!("9999999999"), Flaw::Malformed),
        ("nbf", json!(at + 120), Flaw::NotYetValid),
        ("iat", json!(at + 120), Flaw::NotYetValid),
    ] {
        assert_eq!(flaw(&tokens, &with(name, value.clone())), wanted, "{name}: {value}");
    }
    for (name, value) in [
        ("aud", json!(["bank", "shop"])),
        ("exp", json!(at - 30)),
        ("nbf", json!(at + 30)),
        ("iat", json!(at + 30)),
    ] {
        assert!(judged(&tokens, &with(name, value)).is_ok(), "{name}: within the leeway");
    }
    let mut anybody = ONE.message();
    anybody.audiences.clear();
    assert!(judged(&tokens_of(anybody), &with("aud", Value::Null)).is_ok());
}

#[test]
fn two_tokens_are_none_wherever_they_are() {
    use v1::token_location::At;
    let cookie = v1::TokenLocation { at: Some(At::Cookie("session".into())) };
    let query = v1::TokenLocation { at: Some(At::Query("access_token".into())) };
    let mut message = ONE.message();
    message.locations.extend([cookie, query]);
    // Tokens of the other one are taken from its own place only.
    let mut other = OTHER.message();
    other.locations = vec![issuer::in_header("x-token", "")];
    let tokens = tokens(vec![message, other]);
    let (good, second) = (ONE.token("ed", "alice"), ONE.token("es", "bob"));
    let (bearer, in_cookie) = (format!("Bearer {good}"), format!("a=b; session={good}"));
    let in_query = format!("/a?x=1&access_token={good}");
    let of = |lines: &[(&'static str, &str)], uri: &str| match seen(&tokens, lines, uri).0 {
        None => "none",
        Some(Seen::Good(..)) => "good",
        Some(Seen::Bad(flaw)) => flaw.as_str(),
    };
    assert_eq!(of(&[], "/"), "none");
    assert_eq!(of(&[("authorization", "Basic abc")], "/?token=x"), "none");
    assert_eq!(of(&[("authorization", &bearer)], "/"), "good");
    assert_eq!(of(&[("cookie", &in_cookie)], "/"), "good");
    assert_eq!(of(&[], &in_query), "good");
    for (lines, uri) in [
        (vec![("authorization", bearer.as_str()), ("cookie", &in_cookie)], "/"),
        (vec![("authorization", &bearer)], in_query.as_str()),
        (vec![("cookie", &in_cookie)], &in_query),
        (vec![("authorization", &bearer), ("authorization", &bearer)], "/"),
        (vec![("authorization", "Basic x"), ("authorization", &bearer)], "/"),
        (vec![("authorization", &bearer), ("x-token", "junk")], "/"),
    ] {
        assert_eq!(of(&lines, uri), "ambiguous", "{lines:?} {uri}");
    }
    assert_eq!(of(&[("authorization", &format!("{bearer}, Bearer {second}"))], "/"), "malformed");
    assert_eq!(of(&[("authorization", "Bearer")], "/"), "malformed");
    assert_eq!(
        of(&[("authorization", &format!("Bearer {}", OTHER.token("ed", "eve")))], "/"),
        "unknown-issuer"
    );
    assert_eq!(of(&[("x-token", &OTHER.token("ed", "eve"))], "/"), "good");
    assert_eq!(of(&[("authorization", &format!("Bearer {}", "a".repeat(20_000)))], "/"), "too-large");
}

#[test]
fn claims_become_headers_that_nobody_else_can_set() {
    let claim = |header: &str, claim: &[&str]| v1::ClaimHeader {
        header: header.into(),
        claim: claim.iter().map(|&part| part.to_owned()).collect(),
    };
    let mut message = ONE.message();
    message.claim_headers = vec![
        claim("x-user", &["sub"]),
        claim("x-roles", &["realm", "roles"]),
        claim("x-tenant", &["tenant"]),
    ];
    message.forward = false;
    let tokens = tokens_of(message);
    let mut claims = ONE.claims("alice");
    claims["realm"] = json!({"roles": ["a", "b"]});
    let bearer = format!("Bearer {}", ONE.sign("ed", claims));
    let forged = [
        ("x-user", "root"),
        ("x_user", "root"),
        ("x-tenant", "evil"),
        ("x-roles", "admin"),
        ("x-other", "1"),
    ];
    let (_, headers, _) = seen(&tokens, &[&forged[..], &[("authorization", &bearer)]].concat(), "/");
    let mut left: Vec<String> =
        headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
    left.sort();
    assert_eq!(left, ["x-other: 1", "x-roles: a,b", "x-user: alice"], "and no token");
    // Without any token, too.
    let (_, headers, _) = seen(&tokens, &forged, "/");
    assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-other"]);
}

#[test]
fn a_token_is_remembered_while_it_is_good_and_the_conditions_are_the_same() {
    let (mut memory, at) = (Memory::default(), now());
    let mut message = ONE.message();
    message.locations.push(issuer::in_header("x-token", ""));
    let mut elsewhere = OTHER.message();
    elsewhere.locations = vec![issuer::in_header("x-other", "")];
    let tokens = tokens(vec![message.clone(), elsewhere]);
    let token = ONE.token("rs", "alice");
    let mut ask = |tokens: &Arc<Tokens>, name: &'static str, value: &str, at: i64| {
        let mut headers = HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())]);
        let seen = tokens.of_request(&mut headers, &mut Uri::default(), at, &mut memory, |_| {});
        seen.unwrap().as_str()
    };
    let bearer = format!("Bearer {token}");
    assert_eq!(ask(&tokens, "authorization", &bearer, at), "verified");
    assert_eq!(ask(&tokens, "authorization", &bearer, at), "remembered");
    assert_eq!(ask(&tokens, "x-token", &token, at), "remembered");
    // Not in a place where its issuer's tokens are not taken, nor when its time is up.
    assert_eq!(ask(&tokens, "x-other", &token, at), "unknown-issuer");
    assert_eq!(ask(&tokens, "authorization", &bearer, at + 600 + 59), "remembered");
    assert_eq!(ask(&tokens, "authorization", &bearer, at + 600 + 60), "expired");
    assert_eq!(ask(&tokens, "authorization", &bearer, at - 120), "not-yet-valid");
    // Other conditions: from the beginning.
    message.audiences = vec!["bank".into()];
    assert_eq!(ask(&tokens_of(message), "authorization", &bearer, at), "audience");
    assert_eq!(ask(&tokens, "authorization", &bearer, at), "verified");
    // It is bounded, and those that are used stay.
    for n in 0..3000 {
        let other =
            ONE.sign("ed", json!({"iss": ONE.name, "aud": "shop", "exp": at + 600, "sub": n.to_string()}));
        assert_eq!(ask(&tokens, "authorization", &format!("Bearer {other}"), at), "verified");
        if n % 100 == 0 {
            assert_eq!(ask(&tokens, "authorization", &bearer, at), "remembered");
        }
    }
    assert!(memory.len() <= 1024, "{}", memory.len());
}

#[test]
fn an_operator_that_has_just_started_takes_no_keys_away() {
    let told = |snapshot: &Snapshot, issuer: v1::TokenIssuer| {
        let own = v1::Workload { tokens: Some(v1::Tokens { issuers: vec![issuer], level: 1 }), ..workload() };
        let (next, rejections) = snapshot.apply(&v1::ToProxy { workload: Some(own), ..Default::default() });
        assert!(rejections.is_empty(), "{rejections:?}");
        let tokens = next.workload.as_ref().unwrap().tokens.clone().unwrap();
        (next, tokens)
    };
    let fetched = v1::TokenIssuer { key_source: "https://one.example/keys".into(), ..ONE.message() };
    let pending = v1::TokenIssuer { keys: Vec::new(), keys_pending: true, ..fetched.clone() };
    let (first, before) = told(&Snapshot::default(), fetched.clone());
    let (_, after) = told(&first, pending.clone());
    assert!(Arc::ptr_eq(&before, &after), "the same keys, and what is remembered of tokens");
    let (_, narrowed) = told(&first, v1::TokenIssuer { audiences: vec!["bank".into()], ..pending.clone() });
    assert_eq!(flaw(&narrowed, &ONE.token("es", "a")), Flaw::Audience, "the rest of it changes");
    // Those of another source are others; and there are none for a pod that never had any.
    let (_, other) =
        told(&first, v1::TokenIssuer { key_source: "https://one.example/new".into(), ..pending.clone() });
    let (_, fresh) = told(&Snapshot::default(), pending);
    for tokens in [other, fresh] {
        assert_eq!(flaw(&tokens, &ONE.token("es", "a")), Flaw::UnknownKey);
    }
    // An operator that knows of none any more says so.
    let (_, none) = told(&first, v1::TokenIssuer { keys: Vec::new(), ..fetched });
    assert_eq!(flaw(&none, &ONE.token("es", "a")), Flaw::UnknownKey);
}

#[test]
fn each_flaw_has_a_word_and_a_reason() {
    let words: std::collections::HashSet<_> = Flaw::ALL.iter().map(|flaw| flaw.as_str()).collect();
    assert_eq!(words.len(), Flaw::ALL.len());
    assert_eq!(Flaw::NotYetValid.error().reason(), Reason::TokenExpired);
    assert_eq!(Flaw::Signature.error().reason(), Reason::TokenInvalid);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Any other byte at any place.
    #[test]
    fn a_token_that_was_changed_anywhere_is_refused(which in 0usize..4, at in any::<prop::sample::Index>(), byte in "[\\x21-\\x7e]") {
        static GOOD: LazyLock<(Arc<Tokens>, Vec<String>)> = LazyLock::new(|| {
            (both(), ALGORITHMS.map(|(_, kid)| ONE.token(kid, "alice")).into())
        });
        let (tokens, good) = &*GOOD;
        let token = &good[which];
        let at = at.index(token.len());
        let changed = format!("{}{byte}{}", &token[..at], &token[at + 1..]);
        prop_assert_eq!(judged(tokens, &changed).is_ok(), changed == *token);
        let cut = format!("{}{}", &token[..at], &token[at + 1..]);
        prop_assert!(judged(tokens, &cut).is_err());
        let longer = format!("{}{byte}{}", &token[..at], &token[at..]);
        prop_assert!(judged(tokens, &longer).is_err());
    }

    #[test]
    fn no_text_makes_it_panic_or_is_taken(text in "([a-zA-Z0-9_.=-]|\\PC){0,80}") {
        static TOKENS: LazyLock<Arc<Tokens>> = LazyLock::new(both);
        if let Ok(value) = HeaderValue::from_bytes(format!("Bearer {text}").as_bytes()) {
            let mut headers = HeaderMap::from_iter([(http::header::AUTHORIZATION, value)]);
            let seen = TOKENS.of_request(&mut headers, &mut Uri::default(), now(), &mut Memory::default(), |_| {});
            prop_assert!(matches!(seen, Some(Seen::Bad(_))));
        }
    }
}
