//! What tokens cost: verified for the first time, by each algorithm; remembered from a moment ago; and a request without any.

use super::*;
use http::header::AUTHORIZATION;
use weft_proxy::token::memory::Memory;
use weft_proxy::token::{Seen, Tokens, now};

#[path = "../../tests/path/issuer.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod issuer;

use issuer::Issuer;

fn tokens(issuer: &Issuer) -> std::sync::Arc<Tokens> {
    let tokens = v1::Tokens { issuers: vec![issuer.message()], level: 1 };
    let workload = v1::Workload { tokens: Some(tokens), ..back() };
    let update = v1::ToProxy { version: 1, workload: Some(workload), ..Default::default() };
    let (snapshot, rejections) = Snapshot::default().apply(&update);
    assert!(rejections.is_empty(), "{rejections:?}");
    snapshot.workload.as_ref().and_then(|own| own.tokens.clone()).unwrap()
}

/// A request with a token by that key. `afresh`: nothing is remembered.
fn request(bencher: Bencher<'_, '_>, kid: &str, afresh: bool) {
    let issuer = Issuer::new("https://accounts.example");
    let tokens = tokens(&issuer);
    let mut headers = head(20);
    headers.insert(AUTHORIZATION, format!("Bearer {}", issuer.token(kid, "alice")).parse().unwrap());
    let (mut uri, mut memory, at) = (Uri::from_static("/api"), Memory::default(), now());
    bencher.bench_local(|| {
        if afresh {
            memory = Memory::default();
        }
        let seen = tokens.of_request(black_box(&mut headers), &mut uri, at, &mut memory, |_| {});
        assert!(matches!(seen, Some(Seen::Good(..))));
    });
}

#[divan::bench(args = ["rs", "ps", "es", "ed"])]
fn first(bencher: Bencher<'_, '_>, kid: &str) {
    request(bencher, kid, true);
}

#[divan::bench(args = ["rs", "ed"])]
fn remembered(bencher: Bencher<'_, '_>, kid: &str) {
    request(bencher, kid, false);
}

#[divan::bench]
fn none(bencher: Bencher<'_, '_>) {
    let tokens = tokens(&Issuer::new("https://accounts.example"));
    let (mut headers, mut uri, mut memory, at) =
        (head(20), Uri::from_static("/api"), Memory::default(), now());
    bencher.bench_local(|| {
        assert!(tokens.of_request(black_box(&mut headers), &mut uri, at, &mut memory, |_| {}).is_none());
    });
}
