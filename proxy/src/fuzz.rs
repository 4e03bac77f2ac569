//! Fuzzing of what outsiders feed the proxy, on the stable toolchain. Each target gets bytes that are made by changing those
//! of a committed corpus (`proxy/fuzz/<target>`), and compares what the code makes of them with somebody else's parser, or
//! with what it makes of the same bytes in other pieces. Not guided by coverage: what matters has to be in the corpus.
//!
//! `cargo test --workspace --lib fuzz` gives each target `WEFT_FUZZ_SECONDS` (1), beginning with `WEFT_FUZZ_SEED` (1). An
//! input that fails is written into the corpus, and is a test from then on.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::header::{CONNECTION, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::{Request, Response};
use prost::Message as _;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_api::v1;

use crate::detect::{self, First};
use crate::hello::{self, Parsed};
use crate::http::exchange::Served;
use crate::http::incoming::Incoming;
use crate::http::server::{self, Handler};
use crate::http::{Wire, framing, headers};
use crate::snapshot::Snapshot;

/// What turns up in heads, and in what breaks parsers of them.
const WORDS: [&[u8]; 30] = [
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b":",
    b"\0",
    b"\xff",
    b"GET ",
    b"/",
    b"*",
    b" HTTP/1.1\r\n",
    b" HTTP/1.0\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"Host: a\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"transfer-encoding:",
    b"content-length:",
    b"Connection: ",
    b"close, ",
    b"Upgrade: websocket\r\n",
    b"weft-client-identity: spiffe://a/ns/b/sa/c\r\n",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"ffffffffffffffff",
    b"http://a@b:80/",
    b"[::1]",
];

fn corpus(target: &str) -> (PathBuf, Vec<Vec<u8>>) {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let inputs: Vec<_> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    assert!(!inputs.is_empty(), "{} is empty", dir.display());
    (dir, inputs)
}

fn number(variable: &str) -> u64 {
    std::env::var(variable).map_or(1, |value| value.parse().expect(variable))
}

/// Runs a target on its corpus as it is, then on changes of it.
fn fuzz(target: &str, mut check: impl FnMut(&[u8])) {
    let (dir, corpus) = corpus(target);
    let mut attempt = |input: &[u8]| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(input))) {
            let at = dir.join(format!(
                "found-{:08x}",
                input.iter().fold(5381u32, |h, b| h.wrapping_mul(33) ^ u32::from(*b))
            ));
            let written = std::fs::write(&at, input);
            eprintln!("{target} fails on {}, kept at {} ({written:?})", input.escape_ascii(), at.display());
            resume_unwind(panic);
        }
    };
    corpus.iter().for_each(|input| attempt(input));
    let mut rng = SmallRng::seed_from_u64(number("WEFT_FUZZ_SEED"));
    let until = Instant::now() + Duration::from_secs(number("WEFT_FUZZ_SECONDS"));
    let mut inputs = 0u64;
    while inputs < 200 || Instant::now() < until {
        attempt(&changed(&mut rng, &corpus));
        inputs += 1;
    }
    println!("{target}: {} of the corpus, {inputs} made", corpus.len());
}

fn changed(rng: &mut SmallRng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = corpus[rng.random_range(0..corpus.len())].clone();
    for _ in 0..rng.random_range(1..=6) {
        let at = rng.random_range(0..=bytes.len());
        let end = (at + rng.random_range(0..20)).min(bytes.len());
        match rng.random_range(0..9) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            1 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][rng.random_range(0..5)],
            2 if at < bytes.len() => bytes[at] = rng.random(),
            3 => drop(bytes.drain(at..end)),
            4 => bytes.truncate(at),
            5 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            6 => {
                let other = &corpus[rng.random_range(0..corpus.len())];
                bytes.truncate(at);
                bytes.extend_from_slice(&other[rng.random_range(0..=other.len())..]);
            }
            _ => drop(bytes.splice(at..at, WORDS[rng.random_range(0..WORDS.len())].iter().copied())),
        }
    }
    bytes.truncate(8 * 1024);
    bytes
}

/// What httparse, with which hyper reads heads, makes of it: how long the head is, and what its headers' names are.
fn by_httparse<T>(bytes: &[u8], read: impl FnOnce(usize, &httparse::Request<'_, '_>) -> T) -> Option<T> {
    let mut lines = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut lines);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => Some(read(length, &request)),
        _ => None,
    }
}

#[test]
fn detection_never_changes_its_mind_and_lets_no_request_by() {
    fuzz("detect", |bytes| {
        let mut decided: Option<First> = None;
        for cut in (0..=bytes.len().min(400)).chain([bytes.len()]) {
            let now = detect::classify(&bytes[..cut]);
            if decided.is_some() {
                assert_eq!(now, decided, "after {cut} bytes");
            }
            decided = now;
        }
        let upper = |b: u8| b.is_ascii_uppercase() || b == b'-' || b == b'_';
        let request = by_httparse(bytes, |_, request| {
            request.method.is_some_and(|method| method.len() <= 24 && method.bytes().all(upper))
        });
        if request == Some(true) {
            assert_eq!(detect::classify(bytes), Some(First::Http1));
        }
    });
}

#[test]
fn server_names_are_what_rustls_takes_them_for() {
    fuzz("hello", |bytes| {
        let ours = hello::parse(bytes);
        let mut acceptor = rustls::server::Acceptor::default();
        let mut unread = bytes;
        while !unread.is_empty() && acceptor.read_tls(&mut unread).is_ok_and(|n| n > 0) {
            let Ok(Some(accepted)) = acceptor.accept() else { continue };
            let theirs = accepted.client_hello();
            let weft =
                theirs.alpn().is_some_and(|mut all| all.any(|p| crate::tls::Alpn::of_wire(p).is_some()));
            let Parsed::Hello(ours) = ours else { panic!("{ours:?}, and rustls has a ClientHello") };
            assert_eq!(ours.weft, weft);
            if let Some(name) = theirs.server_name() {
                assert_eq!(ours.sni, Some(name.to_ascii_lowercase()));
            }
            break;
        }
    });
}

#[test]
fn two_lengths_are_seen_wherever_httparse_sees_them() {
    fuzz("head", |bytes| {
        let named = by_httparse(bytes, |length, request| {
            let has =
                |name: &str| request.headers.iter().any(|header| header.name.eq_ignore_ascii_case(name));
            (length, has("transfer-encoding") && has("content-length"))
        });
        let seen = framing::gives_two_lengths(bytes, bytes.len());
        for piece in [1, 2, 7, 100] {
            assert_eq!(framing::gives_two_lengths(bytes, piece), seen, "in pieces of {piece}");
        }
        if let Some((length, both)) = named {
            assert_eq!(framing::gives_two_lengths(&bytes[..length], length), both);
        }
    });
}

/// Does with a request what both paths do, and looks at what would go upstream.
struct Forwarding;

impl Handler for Forwarding {
    async fn handle(self: Rc<Self>, request: Request<Incoming>, _: Wire) -> Response<Served> {
        if headers::check(&request).is_err() {
            return Response::new(Served::empty());
        }
        let (mut head, _) = request.into_parts();
        headers::forward_request(&mut head.headers, head.version);
        headers::state_identity(&mut head.headers, None);
        headers::to_origin_form(&mut head.uri, &mut head.headers);
        headers::ensure_host(&mut head.headers, "10.0.0.1:80".parse().unwrap());
        let target = head.uri.to_string();
        assert!(target.starts_with('/') || target == "*", "{target}");
        assert!(target.bytes().all(|b| b > b' ' && b != 0x7f), "{target}");
        let hosts: Vec<_> = head.headers.get_all(HOST).iter().collect();
        assert!(hosts.len() == 1 && !hosts[0].as_bytes().contains(&b','), "{hosts:?}");
        assert!(!head.headers.contains_key(TRANSFER_ENCODING) && !head.headers.contains_key(UPGRADE));
        let te = head.headers.get(CONNECTION).map(http::HeaderValue::as_bytes);
        assert!(te.is_none() || te == Some(b"te") && head.headers.contains_key(TE));
        let identity = |name: &http::HeaderName| name.as_str().replace('_', "-") == "weft-client-identity";
        assert!(!head.headers.keys().any(identity));
        assert!(
            head.headers
                .values()
                .all(|value| !value.as_bytes().iter().any(|b| matches!(b, b'\r' | b'\n' | 0)))
        );
        Response::new(Served::empty())
    }
}

#[test]
fn whatever_the_http_server_takes_goes_on_in_one_reading() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    fuzz("head", |bytes| {
        let (mut client, io) = tokio::io::duplex(64 * 1024);
        let talk = async {
            client.write_all(bytes).await.unwrap();
            client.shutdown().await.unwrap();
            let mut answers = Vec::new();
            client.read_to_end(&mut answers).await.unwrap();
            assert!(answers.is_empty() || answers.starts_with(b"HTTP/1."), "{}", answers.escape_ascii());
        };
        let served = server::serve(io, Wire::Http1, Rc::new(Forwarding), None);
        let both = async { tokio::join!(served, talk).0 };
        let ended = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), both).await });
        let _ = ended.expect("it hangs");
    });
}

#[test]
fn configuration_is_taken_or_refused_with_a_sentence() {
    fuzz("wire", |bytes| {
        let Ok(update) = v1::ToProxy::decode(bytes) else { return };
        let (once, rejected) = Snapshot::default().apply(&update);
        assert!(rejected.iter().all(|rejection| !rejection.message.is_empty()), "{rejected:?}");
        let (twice, again) = once.apply(&update);
        assert_eq!(
            (once.services.len(), once.addresses.len()),
            (twice.services.len(), twice.addresses.len())
        );
        assert_eq!(rejected.len(), again.len(), "{rejected:?}, then {again:?}");
    });
}
