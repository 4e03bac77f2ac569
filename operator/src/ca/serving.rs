//! The operator's own certificate: made in process, renewed at two thirds of its life, and the TLS settings that follow.
//! The listener and the connections to other replicas take whatever is newest.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use weft_api::{Identity, TrustDomain, names};

use super::{Authority, IssueError};

/// Why there is no certificate to serve with.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    /// It could not be signed.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// No key.
    #[error("a key could not be made")]
    Key(#[from] rcgen::Error),
    /// Refused by rustls.
    #[error("the certificate cannot be used")]
    Tls(#[from] rustls::Error),
    /// The root cannot verify clients.
    #[error("the root cannot verify clients")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// The operator's TLS settings of the moment.
pub struct Serving {
    authority: Arc<Authority>,
    identity: Identity,
    dns_names: Vec<String>,
    current: ArcSwap<Tls>,
}

/// Settings that belong together.
pub struct Tls {
    /// For the listener: TLS 1.3 only, client certificate optional.
    pub server: Arc<ServerConfig>,
    /// For the bundle endpoint: no client certificate, HTTP/1.
    pub bundle: Arc<ServerConfig>,
    /// For connections to other replicas.
    pub client: Arc<ClientConfig>,
    /// When the certificate expires.
    pub not_after: SystemTime,
    renew_at: SystemTime,
}

/// DNS names that only a ServiceAccount of Weft's own namespace gets.
#[must_use]
pub fn dns_names(name: &str, namespace: &str) -> Vec<String> {
    let forms = ["", ".svc", ".svc.cluster.local"];
    let qualified = forms.map(|suffix| format!("{name}.{namespace}{suffix}"));
    std::iter::once(name.to_owned()).chain(qualified).collect()
}

impl Serving {
    /// Makes the first certificate.
    ///
    /// # Errors
    /// When the root cannot sign.
    pub fn new(
        authority: Arc<Authority>,
        trust_domain: TrustDomain,
        namespace: &str,
    ) -> Result<Self, ServingError> {
        let identity = Identity {
            trust_domain,
            namespace: namespace.to_owned(),
            service_account: names::OPERATOR.to_owned(),
        };
        let dns_names = dns_names(names::OPERATOR, namespace);
        let current = ArcSwap::from_pointee(make(&authority, &identity, &dns_names)?);
        Ok(Self { authority, identity, dns_names, current })
    }

    /// The settings of the moment.
    #[must_use]
    pub fn current(&self) -> Arc<Tls> {
        self.current.load_full()
    }

    /// Whose certificate it is.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// A new certificate, at once: after the root has changed.
    ///
    /// # Errors
    /// When the root cannot sign; the last certificate stays.
    pub fn renew(&self) -> Result<(), ServingError> {
        self.current.store(Arc::new(make(&self.authority, &self.identity, &self.dns_names)?));
        Ok(())
    }

    /// Renews for ever.
    pub async fn keep_renewed(&self) {
        let mut pause = Duration::from_secs(30);
        loop {
            let wait = self.current.load().renew_at.duration_since(SystemTime::now()).unwrap_or_default();
            // Bounded, because the clock of a suspended machine jumps.
            tokio::time::sleep(wait.clamp(pause, Duration::from_secs(300))).await;
            if SystemTime::now() < self.current.load().renew_at {
                continue;
            }
            match self.renew() {
                Ok(()) => {
                    pause = Duration::from_secs(30);
                    tracing::info!("renewed the operator's own certificate");
                }
                Err(error) => {
                    tracing::error!(error = %error, "cannot renew the operator's own certificate");
                    pause = Duration::from_secs(5);
                }
            }
        }
    }
}

fn make(authority: &Authority, identity: &Identity, dns_names: &[String]) -> Result<Tls, ServingError> {
    let now = SystemTime::now();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let issued = authority.sign(&key, identity, dns_names, now)?;
    let life = issued.not_after.duration_since(now).unwrap_or_default();

    let provider: Arc<CryptoProvider> = Arc::new(default_provider());
    let mut roots = RootCertStore::empty();
    for root in authority.roots().bundle() {
        roots.add(root)?;
    }
    let roots = Arc::new(roots);
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()?;
    let private = || PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(issued.chain.clone(), private())?;
    // A resumed session would not have its client certificate verified again.
    server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    let mut bundle = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(issued.chain.clone(), private())?;
    bundle.send_tls13_tickets = 0;
    bundle.alpn_protocols = vec![b"http/1.1".to_vec()];
    server.alpn_protocols = vec![b"h2".to_vec()];
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(issued.chain, private())?;
    client.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Tls {
        server: Arc::new(server),
        bundle: Arc::new(bundle),
        client: Arc::new(client),
        not_after: issued.not_after,
        renew_at: now + life * 2 / 3,
    })
}
