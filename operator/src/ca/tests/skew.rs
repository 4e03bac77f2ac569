//! Clocks that differ: what an issuer makes whose clock is wrong, by the code that issues, and what proxies make of it whose clocks are
//! right, by the code that verifies, over sockets. Nothing can turn a clock of one process alone, so that it is the issuer's that is
//! turned: what counts is the difference.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use weft_proxy::identity::renewal;
use weft_proxy::tls::{Alpn, Tls, peer_identity};

use super::*;

const MINUTE: Duration = Duration::from_secs(60);
/// How far a clock may be from the right time, either way.
const OFF: Duration = Duration::from_secs(5 * 60);
/// A little of it has passed when the peer looks.
const MOMENT: Duration = Duration::from_secs(20);

/// A clock in minutes ahead of the right time.
fn clock(ahead: i64) -> SystemTime {
    let (now, by) = (SystemTime::now(), MINUTE * u32::try_from(ahead.unsigned_abs()).unwrap());
    if ahead < 0 { now - by } else { now + by }
}

/// A root that was made, and certificates that were signed, at these times.
struct Issuer {
    authority: Authority,
}

impl Issuer {
    fn new(made: SystemTime) -> Self {
        let root = Root::generate_at(&domain(), DAY * 365, made).unwrap();
        Self { authority: Authority::new(root, DAY) }
    }

    /// A proxy with a certificate that was signed at that time.
    fn proxy(&self, account: &str, signed: SystemTime) -> Tls {
        let id: Identity = format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap();
        let key = csr_key();
        let issued = self.authority.sign(&key, &id, &[], signed).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Tls::from_der(issued.chain, key, vec![self.authority.root().der.clone()]).unwrap()
    }
}

/// One calls the other: who each has seen.
async fn meet(caller: &Tls, callee: &Tls) -> std::io::Result<(Identity, Identity)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let at = listener.local_addr()?;
    let seen = |certificates: Option<&[CertificateDer<'static>]>| {
        peer_identity(certificates.unwrap_or_default()).map_err(std::io::Error::other)
    };
    let dial = async {
        let stream = TcpStream::connect(at).await?;
        let connector = TlsConnector::from(caller.client(Alpn::Tcp));
        let mut stream = connector.connect(ServerName::IpAddress(at.ip().into()), stream).await?;
        stream.write_all(b"x").await?;
        // In TLS 1.3 the client is done before the server has judged it.
        stream.read_u8().await?;
        seen(stream.get_ref().1.peer_certificates())
    };
    let accept = async {
        let (stream, _) = listener.accept().await?;
        let mut stream = TlsAcceptor::from(Arc::clone(&callee.server())).accept(stream).await?;
        stream.read_u8().await?;
        stream.write_all(b"y").await?;
        seen(stream.get_ref().1.peer_certificates())
    };
    tokio::try_join!(dial, accept)
}

/// Of the operator's clock and a proxy's, each five minutes off at most, one is up to ten minutes ahead of the other.
#[tokio::test]
async fn certificates_of_an_issuer_whose_clock_is_off_are_good_for_both_ends() {
    for made in [-10, 0, 10] {
        let issuer = Issuer::new(clock(made));
        let right = issuer.proxy("back", clock(0));
        for signed in [-10, -5, 0, 5, 10] {
            let off = issuer.proxy("front", clock(signed));
            for (caller, callee) in [(&off, &right), (&right, &off), (&off, &off)] {
                let met = meet(caller, callee).await;
                assert!(met.is_ok(), "root {made} min, leaf {signed} min ahead: {met:?}");
            }
            let (callee, caller) = meet(&off, &right).await.unwrap();
            assert_eq!((&*callee.service_account, &*caller.service_account), ("back", "front"));
        }
    }
}

/// The test above can fail.
#[tokio::test]
async fn a_clock_that_is_further_off_is_refused_by_both_ends() {
    let issuer = Issuer::new(clock(0));
    let right = issuer.proxy("back", clock(0));
    for signed in [clock(0) + BACKDATE + MOMENT, clock(0) - DAY - MOMENT] {
        let off = issuer.proxy("front", signed);
        assert!(meet(&off, &right).await.is_err(), "the callee took it");
        assert!(meet(&right, &off).await.is_err(), "the caller took it");
    }
}

/// A leaf that lives for 40 minutes or more is renewed before anybody takes it for expired, whosever clock is off.
#[test]
fn a_leaf_is_renewed_in_time_by_whatever_clock() {
    for life in [40 * MINUTE, DAY / 24, DAY] {
        for issuers in [-5i64, 0, 5] {
            let made = clock(issuers);
            let authority = Authority::new(Root::generate_at(&domain(), DAY * 365, made).unwrap(), life);
            let not_after = authority.sign(&csr_key(), &identity(), &[], made).unwrap().not_after;
            for own in [-5, 0, 5] {
                // When the proxy's own clock says so, in right time.
                let by_own = renewal(clock(own), not_after, 0.0);
                let renewed = clock(0) + by_own.duration_since(clock(own)).unwrap();
                // By the peer whose clock is furthest ahead.
                assert!(renewed + OFF <= not_after + MOMENT, "{life:?} {issuers} {own}");
            }
        }
    }
}
