//! Who is at the other end of a TLS connection: the SPIFFE identity in a certificate, and chain verification against the
//! bundle of that identity's trust domain, never against another one's: a root vouches for its own domain and for nobody
//! else's (SPIFFE Federation, section 3). It never compares an identity with an expected one: that is the caller's.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use weft_api::{Identity, TrustDomain, spiffe};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Why a peer's certificate does not say who it is.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The peer presented nothing.
    #[error("the peer presented no certificate")]
    None,
    /// Not X.509.
    #[error("the peer's certificate cannot be read")]
    Unreadable(#[source] x509_parser::error::X509Error),
    /// SPIFFE wants exactly one URI in the subject alternative names (X.509-SVID section 2).
    #[error("the peer's certificate names {0} URIs instead of exactly one")]
    Uris(usize),
    /// The URI is not a workload's.
    #[error(transparent)]
    Identity(#[from] spiffe::ParseError),
    /// Its time has not come.
    #[error("the peer's certificate is not valid yet")]
    NotYetValid,
    /// Its time is over.
    #[error("the peer's certificate has expired")]
    Expired,
    /// Nobody here vouches for identities of its trust domain.
    #[error("the peer is of trust domain {0}, which is not federated with this mesh")]
    Unknown(TrustDomain),
}

/// What a workload's certificate says.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Whose it is.
    pub identity: Identity,
    /// Serial number, as colon separated hexadecimal bytes.
    pub serial: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
}

/// The verified peer's identity. Checks the validity times too: a resumed session does not verify the chain again.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<Identity, PeerError> {
    let leaf = read_before(chain)?;
    let now = SystemTime::now();
    if now < leaf.not_before {
        return Err(PeerError::NotYetValid);
    }
    if now > leaf.not_after {
        return Err(PeerError::Expired);
    }
    Ok(leaf.identity.clone())
}

/// Certificates of peers that a thread remembers.
const REMEMBERED: usize = 128;

thread_local! {
    static LEAVES: RefCell<HashMap<Box<[u8]>, Arc<Leaf>>> = RefCell::default();
}

/// The same as [`leaf`]. A peer shows the same certificate with each connection, and is asked for it twice: what exactly these
/// bytes say is remembered.
fn read_before(chain: &[CertificateDer<'_>]) -> Result<Arc<Leaf>, PeerError> {
    let der = chain.first().ok_or(PeerError::None)?;
    if let Some(leaf) = LEAVES.with_borrow(|leaves| leaves.get(&**der).cloned()) {
        return Ok(leaf);
    }
    let leaf = Arc::new(leaf(chain)?);
    LEAVES.with_borrow_mut(|leaves| {
        if leaves.len() >= REMEMBERED {
            leaves.clear();
        }
        leaves.insert(Box::from(&**der), Arc::clone(&leaf));
    });
    Ok(leaf)
}

/// Reads the first certificate of a chain, whether or not it is valid now.
pub fn leaf(chain: &[CertificateDer<'_>]) -> Result<Leaf, PeerError> {
    let der = chain.first().ok_or(PeerError::None)?;
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|e| PeerError::Unreadable(unwrap_nom(e)))?;
    let names = certificate.subject_alternative_name().map_err(PeerError::Unreadable)?;
    let mut uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let uri = match (uris.next(), uris.count()) {
        (None, _) => return Err(PeerError::Uris(0)),
        (Some(uri), 0) => uri,
        (Some(_), more) => return Err(PeerError::Uris(more + 1)),
    };
    Ok(Leaf {
        identity: uri.parse()?,
        serial: certificate.raw_serial_as_string(),
        not_before: from_unix(certificate.validity.not_before.timestamp()),
        not_after: from_unix(certificate.validity.not_after.timestamp()),
    })
}

fn unwrap_nom(error: x509_parser::nom::Err<x509_parser::error::X509Error>) -> x509_parser::error::X509Error {
    match error {
        x509_parser::nom::Err::Error(e) | x509_parser::nom::Err::Failure(e) => e,
        x509_parser::nom::Err::Incomplete(_) => x509_parser::error::X509Error::InvalidCertificate,
    }
}

fn from_unix(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let at = if seconds >= 0 {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    };
    at.unwrap_or(SystemTime::UNIX_EPOCH)
}

fn refused(error: PeerError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// Whether a chain leads to one of these roots now.
pub(super) fn leads_to(
    chain: &[CertificateDer<'_>],
    roots: &[CertificateDer<'static>],
    provider: &CryptoProvider,
) -> bool {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots.iter().cloned());
    let Some((end_entity, intermediates)) = chain.split_first() else { return false };
    let Ok(parsed) = ParsedCertificate::try_from(end_entity) else { return false };
    let algorithms = provider.signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&parsed, &store, intermediates, UnixTime::now(), algorithms)
        .is_ok()
}

/// Leaves whose signature by a root was verified. It does not change for these very bytes and these very roots: a verifier
/// is made anew with other roots, and its memory with it. What does change is time, which is looked at always, and
/// that the peer has the key, which it proves in each handshake. Chains with certificates in between are not remembered.
#[derive(Debug, Default)]
struct Signed(Mutex<HashSet<Box<[u8]>>>);

impl Signed {
    fn holds(&self, leaf: &CertificateDer<'_>, between: &[CertificateDer<'_>]) -> bool {
        between.is_empty() && self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&**leaf)
    }

    fn add(&self, leaf: &CertificateDer<'_>, between: &[CertificateDer<'_>]) {
        if between.is_empty() {
            let mut leaves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if leaves.len() >= REMEMBERED {
                leaves.clear();
            }
            leaves.insert(Box::from(&**leaf));
        }
    }
}

/// The roots of each trust domain, the own one among them. Looked up by what a certificate itself says: that it says so is
/// believed only once its chain leads to a root of that very domain.
pub(super) type Domains = HashMap<TrustDomain, Arc<RootCertStore>>;

/// Verifies a server's chain and that it is some workload's; which one, the caller checks.
#[derive(Debug)]
pub(super) struct ChainOnly {
    domains: Domains,
    algorithms: WebPkiSupportedAlgorithms,
    signed: Signed,
}

impl ChainOnly {
    pub(super) fn new(domains: Domains, provider: &CryptoProvider) -> Self {
        Self { domains, algorithms: provider.signature_verification_algorithms, signed: Signed::default() }
    }

    /// Whether the chain of a server leads to a root of its own trust domain, as of then.
    pub(super) fn vouches(&self, chain: &[CertificateDer<'_>], at: UnixTime) -> Result<(), Error> {
        let (end_entity, intermediates) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
        if self.signed.holds(end_entity, intermediates) {
            return Ok(());
        }
        // Not from what is remembered: of strangers' certificates nothing is, before somebody vouches for them.
        let domain = leaf(chain).map_err(refused)?.identity.trust_domain;
        let roots = self.domains.get(&domain).ok_or_else(|| refused(PeerError::Unknown(domain)))?;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, at, self.algorithms.all)?;
        self.signed.add(end_entity, intermediates);
        Ok(())
    }
}

impl ServerCertVerifier for ChainOnly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.signed.holds(end_entity, intermediates) {
            let chain: Vec<_> = std::iter::once(end_entity).chain(intermediates).cloned().collect();
            self.vouches(&chain, now)?;
        }
        peer_identity(std::slice::from_ref(end_entity)).map_err(refused)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Verifies a client's chain as rustls does, by the roots of its own trust domain, and that it is some workload's.
#[derive(Debug)]
pub(super) struct SpiffeClients {
    domains: HashMap<TrustDomain, Arc<dyn ClientCertVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
    signed: Signed,
}

impl SpiffeClients {
    pub(super) fn new(
        domains: &Domains,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, VerifierBuilderError> {
        // No hints: they would tell the roots' names to anybody who connects, and peers have one certificate anyway.
        let verifier = |roots: &Arc<RootCertStore>| {
            let builder =
                WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider));
            builder.clear_root_hint_subjects().build()
        };
        let made = domains.iter().map(|(domain, roots)| Ok((domain.clone(), verifier(roots)?)));
        Ok(Self {
            domains: made.collect::<Result<_, VerifierBuilderError>>()?,
            algorithms: provider.signature_verification_algorithms,
            signed: Signed::default(),
        })
    }

    /// Whether the chain of a client leads to a root of its own trust domain, as of then.
    pub(super) fn vouches(&self, chain: &[CertificateDer<'_>], at: UnixTime) -> Result<(), Error> {
        let (end_entity, intermediates) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
        if self.signed.holds(end_entity, intermediates) {
            return Ok(());
        }
        let domain = leaf(chain).map_err(refused)?.identity.trust_domain;
        let verifier = self.domains.get(&domain).ok_or_else(|| refused(PeerError::Unknown(domain)))?;
        // Only its result, which says no more than that there was no error.
        let _: ClientCertVerified = verifier.verify_client_cert(end_entity, intermediates, at)?;
        self.signed.add(end_entity, intermediates);
        Ok(())
    }
}

impl ClientCertVerifier for SpiffeClients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if !self.signed.holds(end_entity, intermediates) {
            let chain: Vec<_> = std::iter::once(end_entity).chain(intermediates).cloned().collect();
            self.vouches(&chain, now)?;
        }
        peer_identity(std::slice::from_ref(end_entity)).map_err(refused)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
