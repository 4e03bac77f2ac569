//! One fetch of another trust domain's bundle: over TLS always, and the server is verified by its SPIFFE id and the bundle that is
//! known (`https_spiffe`), or by its name (`https_web`). Bounded, and to permitted addresses only, as the keys of issuers
//! are fetched. It keeps nothing.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use weft_api::Identity;
use weft_crds::trust_domain::{BundleEndpoint, Profile, TrustDomainSpec};

use super::document::{self, Document};
use crate::keys::fetch::{Fetcher, tls};
use crate::serve::peer;

/// Fetches the bundle of a trust domain. `known`: roots of it that are believed already.
///
/// # Errors
/// A sentence without what the server said.
pub async fn fetch(
    fetcher: &Fetcher,
    spec: &TrustDomainSpec,
    known: &[Vec<u8>],
) -> Result<(Document, Option<Duration>), String> {
    let endpoint = spec.endpoint.as_ref().ok_or("has no endpoint")?;
    let config = config(endpoint, known)?;
    let (text, max_age) = fetcher.read(&endpoint.url, Some(config), document::MAX_SIZE).await?;
    let document = document::read(&spec.trust_domain, &text)?;
    let age = document.refresh_hint.or(max_age);
    Ok((document, age))
}

fn config(endpoint: &BundleEndpoint, known: &[Vec<u8>]) -> Result<Arc<ClientConfig>, String> {
    if endpoint.profile == Profile::HttpsWeb {
        return tls(endpoint.ca_bundle.as_deref(), "endpoint.caBundle");
    }
    let expected: Identity = endpoint
        .spiffe_id
        .as_deref()
        .unwrap_or_default()
        .parse()
        .map_err(|e: weft_api::spiffe::ParseError| e.to_string())?;
    let mut roots = RootCertStore::empty();
    let (taken, _ignored) =
        roots.add_parsable_certificates(known.iter().map(|der| CertificateDer::from(der.clone())));
    if taken == 0 {
        return Err("there is no root of that trust domain by which its server could be verified".into());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = ByIdentity { roots, expected, algorithms: provider.signature_verification_algorithms };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("TLS cannot be used: {e}"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Chain and SPIFFE id, not the name of the host (SPIFFE Federation, section 5.2.2).
#[derive(Debug)]
struct ByIdentity {
    roots: RootCertStore,
    expected: Identity,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for ByIdentity {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        match peer::read(end_entity) {
            Some(peer) if peer.identity == self.expected => Ok(ServerCertVerified::assertion()),
            _ => Err(Error::InvalidCertificate(CertificateError::NotValidForName)),
        }
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
