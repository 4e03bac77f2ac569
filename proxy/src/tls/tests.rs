//! Handshakes between two `Tls` over an in-memory stream.

use super::*;
use crate::testing::{Ca, Pair, identity};
use rustls::HandshakeKind;
use rustls::pki_types::ServerName;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

fn tls(ca: &Ca, pair: Pair) -> Tls {
    Tls::from_der(pair.0, pair.1, vec![ca.root()]).unwrap()
}

type Ends = (client::TlsStream<tokio::io::DuplexStream>, server::TlsStream<tokio::io::DuplexStream>);

// TLS 1.3: the client is done before the server has judged its certificate, so both ends exchange a byte.
async fn handshake(dialler: &Tls, acceptor: &Tls, alpn: Alpn) -> std::io::Result<Ends> {
    handshake_by(dialler.client(alpn), acceptor).await
}

// Of somebody who keeps what it has, sessions included, whatever is changed around it.
async fn handshake_by(dialler: Arc<ClientConfig>, acceptor: &Tls) -> std::io::Result<Ends> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = ServerName::IpAddress(std::net::Ipv4Addr::new(10, 0, 0, 1).into());
    let dial = async {
        let mut stream = TlsConnector::from(dialler).connect(name, near).await?;
        stream.write_all(b"x").await?;
        stream.read_u8().await?;
        Ok(stream)
    };
    let accept = async {
        let mut stream = TlsAcceptor::from(acceptor.server()).accept(far).await?;
        stream.read_u8().await?;
        stream.write_all(b"y").await?;
        Ok(stream)
    };
    tokio::try_join!(dial, accept)
}

#[tokio::test]
async fn two_workloads_know_each_other_and_the_alpn() {
    let ca = Ca::new("root");
    let (a, b) =
        (tls(&ca, ca.workload(&identity("shop", "front"))), tls(&ca, ca.workload(&identity("shop", "back"))));
    for alpn in [Alpn::Http1, Alpn::Http2, Alpn::Tcp] {
        let (client, server) = handshake(&a, &b, alpn).await.unwrap();
        assert_eq!(
            peer_identity(client.get_ref().1.peer_certificates().unwrap()).unwrap(),
            identity("shop", "back")
        );
        assert_eq!(
            peer_identity(server.get_ref().1.peer_certificates().unwrap()).unwrap(),
            identity("shop", "front")
        );
        assert_eq!(Alpn::of_wire(server.get_ref().1.alpn_protocol().unwrap()), Some(alpn));
        assert_eq!(Alpn::of_wire(client.get_ref().1.alpn_protocol().unwrap()), Some(alpn));
        assert_eq!(server.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    }
}

#[tokio::test]
async fn a_second_connection_resumes_and_still_knows_the_peer() {
    let ca = Ca::new("root");
    let (a, b) =
        (tls(&ca, ca.workload(&identity("shop", "front"))), tls(&ca, ca.workload(&identity("shop", "back"))));
    let (first, _) = handshake(&a, &b, Alpn::Tcp).await.unwrap();
    assert_eq!(first.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    let (client, server) = handshake(&a, &b, Alpn::Http2).await.unwrap();
    assert_eq!(client.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
    assert_eq!(
        peer_identity(client.get_ref().1.peer_certificates().unwrap()).unwrap(),
        identity("shop", "back")
    );
    assert_eq!(
        peer_identity(server.get_ref().1.peer_certificates().unwrap()).unwrap(),
        identity("shop", "front")
    );
}

#[tokio::test]
async fn another_pod_at_the_same_address_is_never_taken_for_the_old_one() {
    let ca = Ca::new("root");
    let a = tls(&ca, ca.workload(&identity("shop", "front")));
    let old = tls(&ca, ca.workload(&identity("shop", "back")));
    let new = tls(&ca, ca.workload(&identity("evil", "thief")));
    handshake(&a, &old, Alpn::Http1).await.unwrap();
    let (client, _) = handshake(&a, &new, Alpn::Http1).await.unwrap();
    assert_eq!(
        peer_identity(client.get_ref().1.peer_certificates().unwrap()).unwrap(),
        identity("evil", "thief")
    );
}

#[tokio::test]
async fn foreign_expired_and_missing_certificates_are_refused_by_both_sides() {
    let (ca, foreign) = (Ca::new("root"), Ca::new("other"));
    let me = identity("shop", "front");
    let good = tls(&ca, ca.workload(&me));
    let of_another_root = {
        let (chain, key) = foreign.workload(&me);
        Tls::from_der(chain, key, vec![ca.root()]).unwrap()
    };
    let expired = tls(&ca, ca.expired(&me));
    assert!(!expired.has_certificate());
    let uri = me.to_string();
    let two_uris = ca.issue(&[&uri, "spiffe://cluster.local/ns/a/sa/b"], &[], Duration::from_secs(60));
    assert!(matches!(
        Tls::from_der(two_uris.0, two_uris.1, vec![ca.root()]),
        Err(TlsError::Identity(PeerError::Uris(2)))
    ));
    for bad in [of_another_root, expired, Tls::new()] {
        assert!(handshake(&bad, &good, Alpn::Tcp).await.is_err(), "the server took it");
        assert!(handshake(&good, &bad, Alpn::Tcp).await.is_err(), "the client took it");
    }
}

#[tokio::test]
async fn a_valid_chain_without_a_workload_identity_is_refused_in_the_handshake() {
    let ca = Ca::new("root");
    let good = tls(&ca, ca.workload(&identity("shop", "front")));
    for uris in
        [&[][..], &["https://x/"], &["spiffe://cluster.local/ns/a/sa/b", "spiffe://cluster.local/ns/a/sa/c"]]
    {
        let (chain, key) = ca.issue(uris, &["back.shop"], Duration::from_secs(60));
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let certified = CertifiedKey::from_der(chain, key, &provider).unwrap();
        let single = Arc::new(SingleCertAndKey::from(certified));
        let mut config = (*good.client(Alpn::Tcp)).clone();
        config.client_auth_cert_resolver = single.clone();
        let name = ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (_, accepted) = tokio::join!(
            TlsConnector::from(Arc::new(config)).connect(name.clone(), near),
            TlsAcceptor::from(good.server()).accept(far)
        );
        assert!(accepted.unwrap_err().to_string().contains("certificate"));

        let mut config = (*good.server()).clone();
        config.cert_resolver = single;
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (dialled, _) = tokio::join!(
            TlsConnector::from(good.client(Alpn::Tcp)).connect(name, near),
            TlsAcceptor::from(Arc::new(config)).accept(far)
        );
        assert!(dialled.is_err());
    }
}

#[tokio::test]
async fn renewal_and_new_roots_swap_without_touching_open_connections() {
    let (old, new) = (Ca::new("old"), Ca::new("new"));
    let (me, peer) = (identity("shop", "front"), identity("shop", "back"));
    let (a, b) = (tls(&old, old.workload(&me)), tls(&old, old.workload(&peer)));
    let (mut client, mut server) = handshake(&a, &b, Alpn::Tcp).await.unwrap();

    // Overlap: both roots are trusted before any leaf is of the new one.
    for side in [&a, &b] {
        side.set_roots(vec![old.root(), new.root()]).unwrap();
    }
    let (chain, key) = new.workload(&peer);
    b.set_identity(chain, key, vec![old.root(), new.root()]).unwrap();
    let (renewed, _) = handshake(&a, &b, Alpn::Tcp).await.unwrap();
    assert_eq!(renewed.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    // The old root goes: who still has a leaf of it is out.
    a.set_roots(vec![new.root()]).unwrap();
    assert!(b.own_is_trusted() && !a.own_is_trusted());
    b.set_roots(vec![new.root()]).unwrap();
    assert!(handshake(&a, &b, Alpn::Tcp).await.is_err());

    client.write_all(b"still here").await.unwrap();
    let mut read = [0; 10];
    server.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"still here");
}

#[tokio::test]
async fn a_kept_session_is_no_way_back_in_once_its_root_is_taken_away() {
    let (old, new) = (Ca::new("old"), Ca::new("new"));
    let front = old.workload(&identity("shop", "front"));
    let a = Tls::from_der(front.0, front.1, vec![new.root()]).unwrap();
    let back = new.workload(&identity("shop", "back"));
    let b = Tls::from_der(back.0, back.1, vec![old.root(), new.root()]).unwrap();
    let kept = a.client(Alpn::Http2);
    handshake_by(Arc::clone(&kept), &b).await.unwrap();
    let (_, resumed) = handshake_by(Arc::clone(&kept), &b).await.unwrap();
    assert_eq!(resumed.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));

    b.set_roots(vec![new.root()]).unwrap();
    for _ in 0..3 {
        assert!(handshake_by(Arc::clone(&kept), &b).await.is_err());
    }
}

#[tokio::test]
async fn a_kept_session_is_not_resumed_with_a_server_that_was_certified_anew() {
    let ca = Ca::new("root");
    let (a, b) =
        (tls(&ca, ca.workload(&identity("shop", "front"))), tls(&ca, ca.workload(&identity("shop", "back"))));
    let kept = a.client(Alpn::Tcp);
    handshake_by(Arc::clone(&kept), &b).await.unwrap();
    let (chain, key) = ca.workload(&identity("shop", "back"));
    b.set_identity(chain, key, vec![ca.root()]).unwrap();
    let (_, server) = handshake_by(kept, &b).await.unwrap();
    assert_eq!(server.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
}

#[tokio::test]
async fn an_expired_client_is_nobody_whether_its_session_is_resumed_or_its_leaf_remembered() {
    let ca = Ca::new("root");
    let uri = identity("shop", "front").to_string();
    let a = tls(&ca, ca.issue(&[&uri], &[], Duration::from_secs(3)));
    let b = tls(&ca, ca.workload(&identity("shop", "back")));
    let kept = a.client(Alpn::Http1);
    let mut forgetful = (*kept).clone();
    forgetful.resumption = Resumption::disabled();
    let forgetful = Arc::new(forgetful);
    let (_, server) = handshake_by(Arc::clone(&kept), &b).await.unwrap();
    assert!(peer_identity(server.get_ref().1.peer_certificates().unwrap()).is_ok());
    // Now its leaf is known to be well signed.
    handshake_by(Arc::clone(&forgetful), &b).await.unwrap();

    let end = a.own().unwrap().leaf.not_after + Duration::from_secs(1);
    tokio::time::sleep(end.duration_since(std::time::SystemTime::now()).unwrap_or_default()).await;
    let (_, server) = handshake_by(kept, &b).await.unwrap();
    assert_eq!(server.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
    let shown = server.get_ref().1.peer_certificates().unwrap();
    assert!(matches!(peer_identity(shown), Err(PeerError::Expired)));
    assert!(handshake_by(forgetful, &b).await.is_err());
}

#[tokio::test]
async fn a_remembered_leaf_does_not_vouch_for_another_of_the_same_name() {
    let (ca, foreign) = (Ca::new("root"), Ca::new("root"));
    let (me, peer) = (identity("shop", "front"), identity("shop", "back"));
    let b = tls(&ca, ca.workload(&peer));
    handshake(&tls(&ca, ca.workload(&me)), &b, Alpn::Tcp).await.unwrap();
    let (chain, key) = foreign.workload(&me);
    let forged = Tls::from_der(chain, key, vec![ca.root()]).unwrap();
    assert!(handshake(&forged, &b, Alpn::Tcp).await.is_err());
    // Nor for somebody who has seen it, and has another key.
    let front = ca.workload(&me);
    let chain = front.0.clone();
    let real = tls(&ca, front);
    handshake(&real, &b, Alpn::Tcp).await.unwrap();
    let other = rustls::crypto::aws_lc_rs::sign::any_supported_type(&ca.workload(&me).1).unwrap();
    let mut config = (*real.client(Alpn::Tcp)).clone();
    config.resumption = Resumption::disabled();
    config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, other)));
    assert!(handshake_by(Arc::new(config), &b).await.is_err());
}

#[tokio::test]
async fn nothing_is_sent_ahead_of_a_handshake_and_the_cheap_cipher_is_agreed() {
    let ca = Ca::new("root");
    let (a, b) =
        (tls(&ca, ca.workload(&identity("shop", "front"))), tls(&ca, ca.workload(&identity("shop", "back"))));
    assert_eq!(b.server().max_early_data_size, 0);
    assert!([Alpn::Http1, Alpn::Http2, Alpn::Tcp].iter().all(|alpn| !a.client(*alpn).enable_early_data));
    let (client, _) = handshake(&a, &b, Alpn::Tcp).await.unwrap();
    // A FIPS build has neither ChaCha20 nor X25519.
    let fips = cfg!(feature = "fips");
    let wanted = if has_aes() || fips {
        CipherSuite::TLS13_AES_128_GCM_SHA256
    } else {
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
    };
    let session = client.get_ref().1;
    assert_eq!(session.negotiated_cipher_suite().unwrap().suite(), wanted);
    let group = if fips { rustls::NamedGroup::secp256r1 } else { rustls::NamedGroup::X25519 };
    assert_eq!(session.negotiated_key_exchange_group().unwrap().name(), group);
}

/// The list of docs/security.md.
#[tokio::test]
async fn only_the_three_ciphers_of_tls_1_3_are_spoken_and_no_older_version() {
    let ca = Ca::new("root");
    let (a, b) =
        (tls(&ca, ca.workload(&identity("shop", "front"))), tls(&ca, ca.workload(&identity("shop", "back"))));
    let listed = [
        CipherSuite::TLS13_AES_128_GCM_SHA256,
        CipherSuite::TLS13_AES_256_GCM_SHA384,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    let page = include_str!("../../../docs/security.md");
    for suite in listed {
        assert!(page.contains(&format!("`{}`", suite.as_str().unwrap())), "{suite:?} is not stated");
    }
    // A FIPS build has the first two.
    let listed = &listed[..if cfg!(feature = "fips") { 2 } else { 3 }];
    let (server, client) = (b.server(), a.client(Alpn::Http1));
    let offered = |suites: &[rustls::SupportedCipherSuite]| {
        let mut of_1_3: Vec<_> =
            suites.iter().filter(|suite| suite.tls13().is_some()).map(|s| s.suite()).collect();
        of_1_3.sort_by_key(|suite| u16::from(*suite));
        of_1_3
    };
    assert_eq!(offered(&server.crypto_provider().cipher_suites), listed);
    assert_eq!(offered(&client.crypto_provider().cipher_suites), listed);
    // A peer that speaks an older version only, otherwise as the mesh does.
    let mut older = ClientConfig::builder_with_provider(Arc::clone(client.crypto_provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    older.alpn_protocols.clone_from(&client.alpn_protocols);
    let refused = handshake_by(Arc::new(older), &b).await.unwrap_err();
    assert!(refused.to_string().contains("Tls12NotOfferedOrEnabled"), "{refused}");
}

#[test]
fn bad_material_changes_nothing() {
    let ca = Ca::new("root");
    let tls = tls(&ca, ca.workload(&identity("shop", "front")));
    let before = tls.own().unwrap().leaf.serial.clone();
    let changes = tls.changed();
    let (chain, _) = ca.workload(&identity("shop", "front"));
    let (_, key) = ca.workload(&identity("shop", "front"));
    assert!(matches!(tls.set_identity(chain, key, vec![ca.root()]), Err(TlsError::Material(_))));
    assert!(matches!(tls.set_roots(vec![]), Err(TlsError::NoRoots)));
    assert!(matches!(tls.set_roots(vec![CertificateDer::from(vec![1, 2, 3])]), Err(TlsError::NoRoots)));
    let (chain, key) = ca.workload(&identity("shop", "front"));
    assert!(matches!(tls.set_identity(chain, key, vec![]), Err(TlsError::NoRoots)));
    assert!(matches!(
        tls.set_identity(
            vec![CertificateDer::from(vec![0; 40])],
            ca.workload(&identity("a", "b")).1,
            vec![ca.root()]
        ),
        Err(TlsError::Identity(PeerError::Unreadable(_)))
    ));
    assert_eq!(tls.own().unwrap().leaf.serial, before);
    tls.set_roots(vec![ca.root()]).unwrap();
    assert!(!changes.has_changed().unwrap(), "equal roots are no change");
}

#[test]
fn a_bundle_of_before_never_takes_the_place_of_a_later_one() {
    let (old, new) = (Ca::new("old"), Ca::new("new"));
    let tls = Tls::new();
    let me = identity("shop", "front");
    let bundle = |roots: &[&Ca], epoch| Bundle { roots: roots.iter().map(|ca| ca.root()).collect(), epoch };
    let (chain, key) = old.workload(&me);
    tls.set_identity(chain, key, bundle(&[&old], 1)).unwrap();
    tls.set_roots(bundle(&[&old, &new], 2)).unwrap();
    // A replica of the operator that has not heard of it yet signs.
    let (chain, key) = old.workload(&me);
    tls.set_identity(chain, key, bundle(&[&old], 1)).unwrap();
    assert_eq!(tls.roots().len(), 2);
    tls.set_roots(bundle(&[&old], 1)).unwrap();
    assert_eq!(tls.roots().len(), 2);
    // Later, and of whoever does not count.
    tls.set_roots(bundle(&[&new], 3)).unwrap();
    assert_eq!(tls.roots(), [new.root()]);
    tls.set_roots(vec![old.root()]).unwrap();
    assert_eq!(tls.roots(), [old.root()]);
}

fn foreign(domain: &str) -> Identity {
    format!("spiffe://{domain}/ns/shop/sa/front").parse().unwrap()
}

fn bundles(of: &[(&str, &Ca)]) -> Foreign {
    of.iter().map(|(domain, ca)| (domain.parse().unwrap(), vec![ca.root()])).collect()
}

#[tokio::test]
async fn a_federated_trust_domain_is_known_both_ways_as_long_as_its_bundle_is_there() {
    let (ours, theirs) = (Ca::new("ours"), Ca::new("theirs"));
    let a = tls(&ours, ours.workload(&identity("shop", "back")));
    let b = tls(&theirs, theirs.workload(&foreign("other.example")));
    assert!(handshake(&a, &b, Alpn::Http2).await.is_err() && handshake(&b, &a, Alpn::Http2).await.is_err());
    a.set_foreign(bundles(&[("other.example", &theirs)])).unwrap();
    // One side alone is not enough.
    assert!(handshake(&a, &b, Alpn::Http2).await.is_err() && handshake(&b, &a, Alpn::Http2).await.is_err());
    b.set_foreign(bundles(&[("cluster.local", &ours)])).unwrap();
    let kept = b.client(Alpn::Http2);
    let (_, server) = handshake_by(Arc::clone(&kept), &a).await.unwrap();
    let shown = server.get_ref().1.peer_certificates().unwrap();
    assert_eq!(peer_identity(shown).unwrap(), foreign("other.example"));
    handshake(&a, &b, Alpn::Http2).await.unwrap();
    let (_, resumed) = handshake_by(Arc::clone(&kept), &a).await.unwrap();
    assert_eq!(resumed.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));

    // What is known of the connection that is open.
    let abroad =
        Abroad::of(&identity("shop", "back"), &foreign("other.example"), server.get_ref().1, true).unwrap();
    assert!(abroad.is_trusted(&a));
    assert!(Abroad::of(&identity("shop", "back"), &identity("x", "y"), server.get_ref().1, true).is_none());
    a.set_foreign(Foreign::new()).unwrap();
    assert!(!abroad.is_trusted(&a));
    for _ in 0..3 {
        assert!(handshake_by(Arc::clone(&kept), &a).await.is_err(), "a kept session is no way back in");
    }
    a.set_foreign(bundles(&[("other.example", &Ca::new("another"))])).unwrap();
    assert!(!abroad.is_trusted(&a), "another root of the same trust domain does not vouch for it");
    a.set_foreign(bundles(&[("other.example", &theirs)])).unwrap();
    assert!(abroad.is_trusted(&a));
}

#[tokio::test]
async fn a_root_vouches_for_its_own_trust_domain_and_for_no_other() {
    let (ours, theirs, thirds) = (Ca::new("ours"), Ca::new("theirs"), Ca::new("thirds"));
    let good = tls(&ours, ours.workload(&identity("shop", "back")));
    good.set_foreign(bundles(&[("other.example", &theirs), ("third.example", &thirds)])).unwrap();
    let own = foreign("cluster.local");
    for (ca, who, is_let_in) in [
        (&ours, &own, true),
        (&theirs, &foreign("other.example"), true),
        (&thirds, &foreign("third.example"), true),
        // Their root signs for us, ours for them, one of theirs for the other, and everybody for nobody that is known.
        (&theirs, &own, false),
        (&thirds, &own, false),
        (&ours, &foreign("other.example"), false),
        (&thirds, &foreign("other.example"), false),
        (&theirs, &foreign("third.example"), false),
        (&ours, &foreign("fourth.example"), false),
        (&theirs, &foreign("fourth.example"), false),
        (&theirs, &foreign("other.example.evil"), false),
    ] {
        let (chain, key) = ca.workload(who);
        // It trusts everybody, so that only what `good` thinks of it counts.
        let peer = Tls::from_der(chain, key, vec![ca.root()]).unwrap();
        match who.trust_domain.as_str() {
            "cluster.local" => peer.set_roots(vec![ca.root(), ours.root()]).unwrap(),
            _ => peer.set_foreign(bundles(&[("cluster.local", &ours)])).unwrap(),
        }
        for _ in 0..2 {
            assert_eq!(handshake(&peer, &good, Alpn::Tcp).await.is_ok(), is_let_in, "{who} to us");
            assert_eq!(handshake(&good, &peer, Alpn::Tcp).await.is_ok(), is_let_in, "us to {who}");
        }
    }
}

#[test]
fn the_own_trust_domain_is_never_foreign_and_bundles_are_never_empty() {
    let (ours, theirs) = (Ca::new("ours"), Ca::new("theirs"));
    let a = tls(&ours, ours.workload(&identity("shop", "back")));
    let refused = |foreign: Foreign| a.set_foreign(foreign).unwrap_err().to_string();
    assert!(refused(bundles(&[("cluster.local", &theirs)])).contains("own trust domain"));
    let empty = [("other.example".parse().unwrap(), Vec::new())];
    assert!(refused(empty.into()).contains("other.example holds no usable root"));
    assert!(a.foreign().is_empty());
    a.set_foreign(bundles(&[("other.example", &theirs)])).unwrap();
    let generation = a.generation();
    a.set_foreign(bundles(&[("other.example", &theirs)])).unwrap();
    assert_eq!(a.generation(), generation, "nothing has changed");
    // They outlive a renewal and new roots of the own.
    let (chain, key) = ours.workload(&identity("shop", "back"));
    a.set_identity(chain, key, vec![ours.root()]).unwrap();
    a.set_roots(vec![ours.root(), Ca::new("next").root()]).unwrap();
    assert_eq!(a.foreign().len(), 1);
}
