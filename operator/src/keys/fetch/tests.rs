//! Tests of `fetch`: servers on loopback that answer well, badly, too much, too slowly, or somewhere else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::index::testing::{index_of, requests};
use crate::keys::{AGAIN, Missed, keep};
use crate::metrics::Metrics;
use crate::store::Store;

const KEYS: &str =
    r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"k","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

fn fetcher() -> Fetcher {
    Fetcher::with(|_| true, Duration::from_millis(1500))
}

fn source(uri: String) -> KeySource {
    KeySource { uri, ca_bundle: None }
}

fn answer(status: &str, lines: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{lines}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// Answers its n-th connection with these bytes, the last ones again and again; counts, and keeps what it was sent.
async fn server(answers: Vec<Vec<u8>>) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (at, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let n = counted.fetch_add(1, Ordering::SeqCst);
            let answer = answers[n.min(answers.len() - 1)].clone();
            tokio::spawn(async move {
                let mut head = vec![0; 4096];
                let read = stream.read(&mut head).await.unwrap();
                let head = String::from_utf8_lossy(&head[..read]).to_lowercase();
                assert!(
                    head.starts_with("get /keys http/1.1\r\n") && !head.contains("authorization"),
                    "{head}"
                );
                let _ = stream.write_all(&answer).await;
                // Whoever is to be patient is.
                tokio::time::sleep(Duration::from_secs(5)).await;
            });
        }
    });
    (at, asked)
}

async fn got(answer: Vec<u8>) -> Result<Got, String> {
    let (at, _) = server(vec![answer]).await;
    fetcher().fetch(&source(format!("http://{at}/keys"))).await
}

#[tokio::test]
async fn keys_come_with_how_long_they_may_be_kept() {
    let got_of = |lines: &'static str| async move { got(answer("200 OK", lines, KEYS)).await.unwrap() };
    assert_eq!(got_of("").await.keys[0].kid, "k");
    assert_eq!(got_of("").await.max_age, None);
    let age = got_of("cache-control: public, Max-Age=\"900\"\r\n").await.max_age;
    assert_eq!(age, Some(Duration::from_secs(900)));
    assert_eq!(got_of("cache-control: no-store, max-age=900\r\n").await.max_age, Some(Duration::ZERO));
    assert_eq!(got_of("cache-control: max-age=-1\r\n").await.max_age, None);
    // By name, too, and in chunks.
    let (at, _) = server(vec![
        format!(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{KEYS}\r\n0\r\n\r\n",
            KEYS.len()
        )
        .into_bytes(),
    ])
    .await;
    let named = fetcher().fetch(&source(format!("http://localhost:{}/keys", at.port()))).await;
    assert_eq!(named.unwrap().keys.len(), 1);
}

#[tokio::test]
async fn what_is_no_answer_is_a_sentence_without_what_the_server_said() {
    let secret = "the-secret-of-somebody-else";
    for (bytes, wanted) in [
        (answer("404 Not Found", "", secret), "answered 404"),
        (answer("500 Oops", "", KEYS), "answered 500"),
        (answer("200 OK", "", secret), "not JSON"),
        (answer("200 OK", "", &json!({"keys": [{"kty": secret}]}).to_string()), "no key that can verify"),
        (answer("200 OK", "", &json!({"keys": vec![json!({}); 65]}).to_string()), "more than 64 keys"),
        (b"SSH-2.0-secret\r\n".to_vec(), "did not answer in HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n".to_vec(), "longer than 262144 bytes"),
        (
            [&b"HTTP/1.1 200 OK\r\ncontent-length: 262145\r\n\r\n"[..], &[b' '; 262_145]].concat(),
            "longer than 262144 bytes",
        ),
        // Without a length, for ever.
        ([&b"HTTP/1.1 200 OK\r\n\r\n"[..], &[b' '; 600_000]].concat(), "longer than 262144 bytes"),
        (
            format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "a".repeat(100_000)).into_bytes(),
            "did not answer in HTTP",
        ),
        // It promises more than it sends.
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{".to_vec(), "took too long"),
        (Vec::new(), "took too long"),
    ] {
        let problem = got(bytes).await.unwrap_err();
        assert!(problem.contains(wanted) && !problem.contains("secret"), "{wanted}: {problem}");
    }
}

#[tokio::test]
async fn a_redirect_leads_nowhere() {
    let (other, asked) = server(vec![answer("200 OK", "", KEYS)]).await;
    for status in ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"] {
        let problem =
            got(answer(status, &format!("location: http://{other}/keys\r\n"), "")).await.unwrap_err();
        assert!(problem.contains("redirects are not followed"), "{problem}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn the_node_and_the_link_are_not_asked() {
    let (at, asked) = server(vec![answer("200 OK", "", KEYS)]).await;
    for host in
        [at.to_string(), format!("localhost:{}", at.port()), format!("[::ffff:127.0.0.1]:{}", at.port())]
    {
        let problem = Fetcher::new().fetch(&source(format!("http://{host}/keys"))).await.unwrap_err();
        assert!(problem.contains("address of the node or the link"), "{host}: {problem}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    for ip in [
        "169.254.169.254",
        "127.1.2.3",
        "0.0.0.0",
        "::",
        "::1",
        "fe80::1",
        "fd00:ec2::254",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
    ] {
        assert!(!permitted(ip.parse::<IpAddr>().unwrap().to_canonical()), "{ip}");
    }
    for ip in ["10.96.0.5", "192.0.2.1", "2001:db8::1", "fd00:1::5"] {
        assert!(permitted(ip.parse().unwrap()), "{ip}");
    }
    for bad in ["ftp://127.0.0.1/", "http://user@127.0.0.1/", "/keys", "http://"] {
        assert!(fetcher().fetch(&source(bad.into())).await.is_err(), "{bad}");
    }
}

#[tokio::test]
async fn a_server_over_tls_is_who_it_should_be() {
    let issuer = || {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let (root, other) = (issuer(), issuer());
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &*root).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![leaf.der().clone()], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(&answer("200 OK", "", KEYS)).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            });
        }
    });
    let of = |host: &str, ca: Option<String>| KeySource {
        uri: format!("https://{host}:{port}/keys"),
        ca_bundle: ca,
    };
    assert_eq!(fetcher().fetch(&of("localhost", Some(root.pem()))).await.unwrap().keys.len(), 1);
    for bad in [of("localhost", Some(other.pem())), of("localhost", None), of("127.0.0.1", Some(root.pem()))]
    {
        let problem = fetcher().fetch(&bad).await.unwrap_err();
        assert!(problem.starts_with("TLS failed"), "{problem}");
    }
    assert!(fetcher().fetch(&of("localhost", Some("no".into()))).await.unwrap_err().contains("jwksCaBundle"));
}

#[tokio::test]
async fn a_set_that_is_wanted_is_fetched_again_until_it_is_there_and_forgotten_when_nobody_wants_it() {
    let (at, asked) = server(vec![answer("503 Busy", "", ""), answer("200 OK", "", KEYS)]).await;
    let spec = json!({ "issuers": [{ "issuer": "a", "jwksUri": format!("http://{at}/keys") }] });
    let resource = requests("shop/users", 1, spec);
    let metrics = Arc::new(Metrics::default());
    let store = Arc::new(Store::new(index_of([]), Arc::clone(&metrics)));
    let crate::index::testing::Object::Requests(given) = resource else { panic!("it is one") };
    let key = given.key.clone();
    let keeping = tokio::spawn(keep(Arc::clone(&store), Arc::clone(&metrics), Arc::default(), fetcher()));
    store.apply(crate::index::Change::Apply(given));
    let missing = || {
        store.view(|view| {
            view.index.space("shop").unwrap().settled.request_authentications["users"].missing.clone()
        })
    };
    let mut said = false;
    for _ in 0..1000 {
        said |= missing().first().is_some_and(|sentence| sentence.contains("answered 503"));
        if missing().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(said && missing().is_empty() && asked.load(Ordering::SeqCst) == 2, "{:?}", missing());
    let text = metrics.text();
    for result in ["Fetched", "Failed"] {
        assert!(
            text.contains(&format!("weft_operator_key_fetches_total{{result=\"{result}\"}} 1")),
            "{text}"
        );
    }
    store.apply(
        crate::index::Change::<crate::index::policy::Resource<weft_crds::RequestAuthenticationSpec>>::Delete(
            key,
        ),
    );
    for _ in 0..1000 {
        if store.view(|view| view.index.key_sets.is_empty()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(store.view(|view| view.index.is_empty()));
    keeping.abort();
}

/// A thousand proxies that meet made-up names of keys are one fetch every ten seconds, and of that set only.
#[tokio::test]
async fn keys_that_are_missed_are_fetched_sooner_but_only_now_and_then() {
    let (at, asked) = server(vec![answer("200 OK", "", KEYS)]).await;
    let (other, others) = server(vec![answer("200 OK", "", KEYS)]).await;
    let uri = |at: SocketAddr| format!("http://{at}/keys");
    let spec = json!({ "issuers": [{ "issuer": "a", "jwksUri": uri(at) }, { "issuer": "b", "jwksUri": uri(other) }] });
    let metrics = Arc::new(Metrics::default());
    let store = Arc::new(Store::new(index_of([]), Arc::clone(&metrics)));
    let crate::index::testing::Object::Requests(given) = requests("shop/users", 1, spec) else {
        panic!("it is one")
    };
    let missed = Arc::new(Missed::default());
    let keeping = tokio::spawn(keep(store.clone(), metrics, Arc::clone(&missed), fetcher()));
    store.apply(crate::index::Change::Apply(given));
    let both = || (asked.load(Ordering::SeqCst), others.load(Ordering::SeqCst));
    let until = async |wanted: (usize, usize)| {
        for _ in 0..2000 {
            if both() == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{:?}, not {wanted:?}", both());
    };
    until((1, 1)).await;
    let began = tokio::time::Instant::now();
    while began.elapsed() < AGAIN / 2 {
        missed.note(uri(at));
        missed.note("http://made.up.example/keys".into());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(both(), (1, 1), "not before its time");
    until((2, 1)).await;
    assert!(began.elapsed() + Duration::from_secs(1) > AGAIN, "{:?}", began.elapsed());
    keeping.abort();
}
