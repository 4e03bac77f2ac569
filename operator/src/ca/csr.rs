//! Reads a certificate request. Only its public key is used, after its own signature has proved that the caller has the
//! private key; every name in it is ignored.

use rcgen::SubjectPublicKeyInfo;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

/// Requests of proxies are some 300 bytes.
const MAX_LENGTH: usize = 8 << 10;

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum BadRequest {
    /// Not PKCS#10, or too long.
    #[error("the certificate request cannot be read")]
    Unreadable,
    /// The caller does not have the private key.
    #[error("the certificate request's own signature is wrong")]
    Signature,
    /// Neither P-256, P-384 nor Ed25519.
    #[error("the certificate request's key is of a kind that is not supported: use ECDSA P-256")]
    Key,
}

/// The public key of a request.
///
/// # Errors
/// Why it is refused.
pub fn public_key(der: &[u8]) -> Result<SubjectPublicKeyInfo, BadRequest> {
    if der.len() > MAX_LENGTH {
        return Err(BadRequest::Unreadable);
    }
    let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| BadRequest::Unreadable)?;
    if !rest.is_empty() {
        return Err(BadRequest::Unreadable);
    }
    request.verify_signature().map_err(|_| BadRequest::Signature)?;
    bare_public_key(request.certification_request_info.subject_pki.raw)
}

/// A public key (PKIX) of which somebody else has verified that the caller has the private one.
///
/// # Errors
/// It is of a kind that is not supported.
pub fn bare_public_key(der: &[u8]) -> Result<SubjectPublicKeyInfo, BadRequest> {
    let key = SubjectPublicKeyInfo::from_der(der).map_err(|_| BadRequest::Key)?;
    let good = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519];
    use rcgen::PublicKeyData;
    if good.into_iter().any(|algorithm| algorithm == key.algorithm()) {
        Ok(key)
    } else {
        Err(BadRequest::Key)
    }
}
