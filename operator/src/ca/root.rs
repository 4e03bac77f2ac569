//! The root certificate and its key: made, read from PEM, written as PEM. It signs nothing by itself.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;
use weft_api::TrustDomain;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The organization in the subject of a root that Weft makes.
const OURS: &str = "Weft";
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
pub(super) const END: &str = "-----END CERTIFICATE-----";
/// Clocks of nodes differ. Of two that are each within five minutes of the right time, one may be ten minutes ahead of the other.
pub const BACKDATE: Duration = Duration::from_secs(10 * 60);

/// Why a root cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadRoot {
    /// The certificate is not PEM or not X.509.
    #[error("the root certificate cannot be read: {0}")]
    Certificate(String),
    /// The key is not PEM, or of a kind that is not supported.
    #[error("the root's private key cannot be read")]
    Key(#[source] rcgen::Error),
    /// The key is another one's.
    #[error("the root's private key does not belong to the root certificate")]
    Mismatch,
    /// Not a certificate authority's.
    #[error("the root certificate is not that of a certificate authority (CA:TRUE, keyCertSign)")]
    NotAuthority,
    /// It could not be made.
    #[error("a root could not be made")]
    Make(#[source] rcgen::Error),
}

/// A root.
#[derive(Debug)]
pub struct Root {
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// The certificate as PEM: the trust bundle. Of an intermediate authority it is the intermediate itself, so that nothing
    /// else of the PKI above it is trusted in the mesh.
    pub certificate_pem: String,
    /// As it was given: the certificate, and after it those that lead to a root, if any.
    pub chain_pem: String,
    /// The key as PEM.
    pub key_pem: String,
    /// From when on it is good, in seconds since 1970.
    pub not_before: i64,
    /// When it expires, in seconds since 1970.
    pub not_after: i64,
    pub(super) issuer: Issuer<'static, KeyPair>,
    ours: bool,
}

impl Root {
    /// Makes a new root: ECDSA P-256, signs leaves only (path length 0).
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn generate(trust_domain: &TrustDomain, lifetime: Duration) -> Result<Self, BadRoot> {
        Self::generate_at(trust_domain, lifetime, SystemTime::now())
    }

    /// The same, by another clock.
    pub(super) fn generate_at(
        trust_domain: &TrustDomain,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, BadRoot> {
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, OURS);
        name.push(DnType::CommonName, format!("Weft root of {trust_domain}"));
        let mut params = CertificateParams::default();
        params.distinguished_name = name;
        params.not_before = OffsetDateTime::from(now - BACKDATE);
        params.not_after = OffsetDateTime::from(now + lifetime);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial());
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(BadRoot::Make)?;
        let certificate = params.self_signed(&key).map_err(BadRoot::Make)?;
        Self::from_pem(&certificate.pem(), &key.serialize_pem())
    }

    /// Reads a root, and checks that the two belong together. The first certificate counts.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, BadRoot> {
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|e| BadRoot::Certificate(e.to_string()))?
            .into_owned();
        let key = KeyPair::from_pem(key_pem).map_err(BadRoot::Key)?;
        let (not_before, not_after, ours) = {
            let (_, parsed) =
                X509Certificate::from_der(&der).map_err(|e| BadRoot::Certificate(e.to_string()))?;
            if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
                return Err(BadRoot::Mismatch);
            }
            let signs = match parsed.key_usage() {
                Ok(Some(usage)) => usage.value.key_cert_sign(),
                _ => true,
            };
            if !parsed.is_ca() || !signs {
                return Err(BadRoot::NotAuthority);
            }
            let mut organizations = parsed.subject().iter_organization();
            let ours = organizations.next().is_some_and(|name| name.as_str() == Ok(OURS));
            (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp(), ours)
        };
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|e| BadRoot::Certificate(e.to_string()))?;
        Ok(Self {
            der,
            certificate_pem: first(certificate_pem),
            chain_pem: certificate_pem.to_owned(),
            key_pem: key_pem.to_owned(),
            not_before,
            not_after,
            ours,
            issuer,
        })
    }

    /// Whether Weft has made it; if not, it is the user's own.
    #[must_use]
    pub const fn is_weft(&self) -> bool {
        self.ours
    }
}

fn first(pem: &str) -> String {
    let begin = pem.find(BEGIN).unwrap_or_default();
    let end = pem[begin..].find(END).map_or(pem.len(), |end| begin + end + END.len());
    format!("{}\n", &pem[begin..end])
}

/// Random serial numbers, positive (RFC 5280 section 4.1.2.2).
pub(super) fn serial() -> rcgen::SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    rcgen::SerialNumber::from_slice(&bytes)
}
