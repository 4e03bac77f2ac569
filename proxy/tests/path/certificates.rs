//! Certificates with which somebody tries to be somebody: each is refused in the handshake, before a byte reaches the
//! application, and counted as `client-certificate`. The verifier of the caller's side is the same (`proxy/src/tls/tests.rs`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints, SanType,
};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_proxy::tls::{Alpn, Tls};

use crate::apps;
use crate::world::{Ca, Mesh, Node, identity};

/// A chain and its key; `None`: the client shows nothing.
type Shown = Option<(Vec<CertificateDer<'static>>, KeyPair)>;

#[derive(Debug)]
struct Show(Option<Arc<CertifiedKey>>);

impl ResolvesClientCert for Show {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }

    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}

/// What a workload's certificate says, to be changed.
fn leaf(uri: &str) -> CertificateParams {
    let mut params = CertificateParams::new([]).unwrap();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn authority(constraints: Option<NameConstraints>) -> CertificateParams {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params.name_constraints = constraints;
    params
}

fn me() -> String {
    identity("front").to_string()
}

/// Signed by the root.
fn signed(ca: &Ca, params: &CertificateParams) -> Shown {
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, ca.issuer()).unwrap();
    Some((vec![certificate.der().clone()], key))
}

/// Signed by whoever holds `by`, whose certificate the root has signed.
fn signed_below(ca: &Ca, by: &CertificateParams, params: &CertificateParams) -> Shown {
    let (chain, between) = signed(ca, by)?;
    let issuer = Issuer::new(by.clone(), between);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    Some(([vec![certificate.der().clone()], chain].concat(), key))
}

/// Below so many authorities, one below the other.
fn deep(ca: &Ca, depth: usize) -> Shown {
    let (mut chain, key) = signed(ca, &authority(None))?;
    let mut issuer = Issuer::new(authority(None), key);
    for _ in 1..depth {
        let key = KeyPair::generate().unwrap();
        let certificate = authority(None).signed_by(&key, &issuer).unwrap();
        chain.insert(0, certificate.der().clone());
        issuer = Issuer::new(authority(None), key);
    }
    let key = KeyPair::generate().unwrap();
    let certificate = leaf(&me()).signed_by(&key, &issuer).unwrap();
    chain.insert(0, certificate.der().clone());
    Some((chain, key))
}

/// Only names of another trust domain: the constraint that RFC 5280 has for URIs, which rcgen does not write.
fn only_other_uris() -> CertificateParams {
    let domain = b"other.example";
    let tagged = |tag: u8, content: &[u8]| [&[tag, u8::try_from(content.len()).unwrap()], content].concat();
    let subtree = tagged(0x30, &tagged(0x86, domain));
    let content = tagged(0x30, &tagged(0xa0, &subtree));
    let mut params = authority(None);
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 30], content);
    extension.set_criticality(true);
    params.custom_extensions.push(extension);
    params
}

async fn answer(node: &Node, ca: &Ca, shown: Shown) -> std::io::Result<String> {
    let (chain, key) = ca.workload(&identity("front"));
    let tls = Tls::from_der(chain, key, vec![ca.root()]).unwrap();
    let mut config: ClientConfig = (*tls.client(Alpn::Http1)).clone();
    let certified = shown.map(|(chain, key)| {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
        Arc::new(CertifiedKey::new(chain, key))
    });
    config.client_auth_cert_resolver = Arc::new(Show(certified));
    let stream = TcpStream::connect(node.inbound).await?;
    let name = ServerName::IpAddress(node.inbound.ip().into());
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await?;
    let mut got = String::new();
    stream.read_to_string(&mut got).await?;
    Ok(got)
}

fn refused(node: &Node) -> u64 {
    let text = node.metrics.encode();
    let lines = text
        .lines()
        .filter(|line| line.starts_with("weft_refusals_total{") && line.contains("client-certificate"));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

#[tokio::test]
async fn no_certificate_but_a_good_one_of_the_mesh_gets_a_byte_to_the_application_and_each_refusal_is_counted()
 {
    let (app, seen) = apps::echo().await;
    let mesh = Mesh::to(app);
    let (ca, foreign) = (&mesh.ca, Ca::new());
    let now = OffsetDateTime::now_utc();
    let within = |from: i64, to: i64| {
        let mut params = leaf(&me());
        params.not_before = now + time::Duration::hours(from);
        params.not_after = now + time::Duration::hours(to);
        params
    };
    let with = |change: fn(&mut CertificateParams)| {
        let mut params = leaf(&me());
        change(&mut params);
        params
    };
    let dns = |name: &str| {
        Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName(name.into())],
            excluded_subtrees: Vec::new(),
        })
    };
    let named =
        with(|params| params.subject_alt_names.push(SanType::DnsName("back.shop".try_into().unwrap())));
    let attacks = [
        ("no certificate", None),
        ("of a foreign root", signed(&foreign, &leaf(&me()))),
        ("expired", signed(ca, &within(-2, -1))),
        ("not yet valid", signed(ca, &within(1, 2))),
        ("without an identity", signed(ca, &with(|params| params.subject_alt_names.clear()))),
        (
            "with two identities",
            signed(
                ca,
                &with(|params| {
                    params
                        .subject_alt_names
                        .push(SanType::URI("spiffe://cluster.local/ns/shop/sa/admin".try_into().unwrap()));
                }),
            ),
        ),
        ("with an id that is no workload's", signed(ca, &leaf("spiffe://cluster.local/admin"))),
        ("with an id of another scheme", signed(ca, &leaf("https://cluster.local/ns/shop/sa/front"))),
        (
            "for servers only",
            signed(
                ca,
                &with(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            ),
        ),
        (
            "of an authority in place of a workload",
            signed(ca, &with(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))),
        ),
        (
            "signed by another workload",
            signed_below(ca, &leaf(&me()), &leaf("spiffe://cluster.local/ns/shop/sa/admin")),
        ),
        (
            "below an authority for other names",
            signed_below(ca, &authority(dns("elsewhere.example")), &named),
        ),
        ("below an authority for other trust domains", signed_below(ca, &only_other_uris(), &leaf(&me()))),
        ("at the end of a huge chain", deep(ca, 60)),
    ];
    for (n, (what, shown)) in attacks.into_iter().enumerate() {
        let began = Instant::now();
        let got = answer(&mesh.back, ca, shown).await;
        assert!(got.as_ref().is_err_and(|e| e.kind() != std::io::ErrorKind::TimedOut), "{what}: {got:?}");
        assert!(began.elapsed() < Duration::from_secs(10), "{what} took {:?}", began.elapsed());
        // The client may hear of it before it is counted.
        for _ in 0..200 {
            if refused(&mesh.back) > n as u64 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(
            refused(&mesh.back),
            n as u64 + 1,
            "{what} is not counted: {}",
            mesh.back.metrics.encode()
        );
    }
    assert_eq!(seen.connections(), 0, "something reached the application");
    // The same client with a good one: what was refused was the certificate.
    let got = answer(&mesh.back, ca, signed(ca, &leaf(&me()))).await.unwrap();
    assert!(got.contains(&format!("weft-client-identity: {}", me())), "{got}");
    let got = answer(&mesh.back, ca, signed_below(ca, &authority(None), &leaf(&me()))).await.unwrap();
    assert!(got.starts_with("HTTP/1.1 200"), "an intermediate that is the root's own is good: {got}");
}
