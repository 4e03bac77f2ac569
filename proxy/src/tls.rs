//! The proxy's TLS: its certificate, the trust bundle, and the rustls configurations made of them. A renewal swaps
//! all of it at once; open connections keep what they have. Stands beside the data path: `identity` and `control`
//! write, `inbound` and `connect` read. It never decides who may talk to whom, and a private key never leaves it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::client::{ClientSessionMemoryCache, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CipherSuite, ClientConfig, RootCertStore, ServerConfig, SignatureScheme};
use tokio::sync::watch;
use weft_api::{Identity, TrustDomain, names};

mod abroad;
mod ahead;
#[cfg(test)]
mod tests;
mod verify;

pub use abroad::Abroad;
pub use ahead::Ahead;
use verify::{ChainOnly, Domains, SpiffeClients};
pub use verify::{Leaf, PeerError, leaf, peer_identity};

/// What the bytes inside a connection between two proxies are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Opaque bytes.
    Tcp,
}

impl Alpn {
    /// The name on the wire.
    #[must_use]
    pub const fn wire(self) -> &'static [u8] {
        match self {
            Self::Http1 => names::ALPN_HTTP1,
            Self::Http2 => names::ALPN_HTTP2,
            Self::Tcp => names::ALPN_TCP,
        }
    }

    /// Which one a negotiated protocol name is; none of ours: `None`.
    #[must_use]
    pub fn of_wire(name: &[u8]) -> Option<Self> {
        [Self::Http1, Self::Http2, Self::Tcp].into_iter().find(|alpn| alpn.wire() == name)
    }
}

/// Why new key material was not taken. What was there before stays in force.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate, key or root that rustls refuses, or a key that is not the certificate's.
    #[error("the certificate or its key is unusable")]
    Material(#[source] rustls::Error),
    /// The verifier of clients could not be built from the roots.
    #[error("the trust bundle is unusable")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
    /// The own certificate is not of a workload.
    #[error("the own certificate is not of a workload")]
    Identity(#[source] PeerError),
    /// A trust bundle without a single usable root.
    #[error("the trust bundle holds no usable root certificate")]
    NoRoots,
    /// The same of another trust domain.
    #[error("the bundle of trust domain {0} holds no usable root certificate")]
    NoForeignRoots(TrustDomain),
    /// The own roots alone vouch for the own trust domain.
    #[error("{0} is the own trust domain, which cannot be a foreign one")]
    OwnAsForeign(TrustDomain),
}

/// The bundles of other trust domains, each of which vouches for its own identities only.
pub type Foreign = BTreeMap<TrustDomain, Vec<CertificateDer<'static>>>;

/// Own certificate as shown by the admin API; no key.
#[derive(Clone, Debug)]
pub struct Own {
    /// What the leaf says.
    pub leaf: Leaf,
    /// Leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
}

/// A trust bundle. While the root is rotated, the operator's replicas may for a moment not be of one mind, so that one of an
/// earlier epoch never takes the place of a later one. One of epoch 0 always counts.
#[derive(Debug)]
pub struct Bundle {
    /// All of it.
    pub roots: Vec<CertificateDer<'static>>,
    /// When it came to be, in ms since 1970.
    pub epoch: i64,
}

impl From<Vec<CertificateDer<'static>>> for Bundle {
    fn from(roots: Vec<CertificateDer<'static>>) -> Self {
        Self { roots, epoch: 0 }
    }
}

impl Bundle {
    const fn is_before(&self, epoch: i64) -> bool {
        self.epoch != 0 && self.epoch < epoch
    }
}

/// The live TLS state of the proxy. Reading costs one atomic load.
pub struct Tls {
    provider: Arc<CryptoProvider>,
    current: ArcSwap<Material>,
    // Writers read, change and swap; readers never take this. The epoch of the bundle in force.
    writing: Mutex<i64>,
    changed: watch::Sender<u64>,
}

struct Material {
    certified: Option<Arc<CertifiedKey>>,
    own: Option<Arc<Own>>,
    roots: Vec<CertificateDer<'static>>,
    foreign: Arc<Foreign>,
    // Counts swaps.
    generation: u64,
    server: Arc<ServerConfig>,
    clients: [Arc<ClientConfig>; 3],
    // The verifiers of both, for connections that are open already.
    judges: Option<(Arc<SpiffeClients>, Arc<ChainOnly>)>,
    operator: Arc<dyn rustls::client::ResolvesClientCert>,
}

impl Default for Tls {
    fn default() -> Self {
        Self::new()
    }
}

impl Tls {
    /// Without a certificate: every handshake fails until [`Tls::set_identity`].
    #[must_use]
    pub fn new() -> Self {
        let provider = Arc::new(provider());
        let empty = Material::without_certificate(&provider);
        Self {
            provider,
            current: ArcSwap::from_pointee(empty),
            writing: Mutex::new(0),
            changed: watch::Sender::new(0),
        }
    }

    /// With a certificate from the start.
    pub fn from_der(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, TlsError> {
        let tls = Self::new();
        tls.set_identity(chain, key, roots)?;
        Ok(tls)
    }

    /// For accepting from other proxies: TLS 1.3, a client certificate of the mesh is required.
    #[must_use]
    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.load().server)
    }

    /// For dialling another proxy. Verifies the chain, not the name: the caller compares [`peer_identity`] with the
    /// endpoint's identity before it sends a byte.
    #[must_use]
    pub fn client(&self, alpn: Alpn) -> Arc<ClientConfig> {
        Arc::clone(&self.current.load().clients[alpn as usize])
    }

    /// Presents the own certificate, for a client of the operator. None is presented before the first one.
    #[must_use]
    pub fn resolver(&self) -> Arc<dyn rustls::client::ResolvesClientCert> {
        Arc::clone(&self.current.load().operator)
    }

    /// True once a certificate is there and as long as it has not expired.
    #[must_use]
    pub fn has_certificate(&self) -> bool {
        self.own().is_some_and(|own| SystemTime::now() < own.leaf.not_after)
    }

    /// The own certificate.
    #[must_use]
    pub fn own(&self) -> Option<Arc<Own>> {
        self.current.load().own.clone()
    }

    /// The own identity, as certified.
    #[must_use]
    pub fn identity(&self) -> Option<Identity> {
        self.own().map(|own| own.leaf.identity.clone())
    }

    /// The trust bundle.
    #[must_use]
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.current.load().roots.clone()
    }

    /// Whether the own certificate still leads to a root of the bundle.
    #[must_use]
    pub fn own_is_trusted(&self) -> bool {
        let now = self.current.load();
        now.own.as_ref().is_some_and(|own| verify::leads_to(&own.chain, &now.roots, &self.provider))
    }

    /// The bundles of other trust domains.
    #[must_use]
    pub fn foreign(&self) -> Arc<Foreign> {
        Arc::clone(&self.current.load().foreign)
    }

    /// Counts swaps, as [`Tls::changed`] tells of them.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.current.load().generation
    }

    /// Whether the chain of a client (or else of a server) still leads to a root of its trust domain. `at`: when it was shown.
    #[must_use]
    pub fn vouches(&self, client: bool, chain: &[CertificateDer<'_>], at: UnixTime) -> bool {
        let now = self.current.load();
        now.judges.as_ref().is_some_and(|(clients, servers)| {
            if client { clients.vouches(chain, at).is_ok() } else { servers.vouches(chain, at).is_ok() }
        })
    }

    /// Counts swaps.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Takes a new certificate with its key, and the whole trust bundle.
    pub fn set_identity(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        bundle: impl Into<Bundle>,
    ) -> Result<(), TlsError> {
        let mut bundle = bundle.into();
        let leaf = leaf(&chain).map_err(TlsError::Identity)?;
        let certified =
            CertifiedKey::from_der(chain.clone(), key, &self.provider).map_err(TlsError::Material)?;
        let own = Arc::new(Own { leaf, chain });
        let mut epoch = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if bundle.is_before(*epoch) {
            bundle = Bundle { roots: self.roots(), epoch: *epoch };
        }
        let foreign = self.foreign();
        self.swap(Some((Arc::new(certified), own)), bundle.roots, foreign)?;
        *epoch = bundle.epoch;
        Ok(())
    }

    /// Takes a new trust bundle. Equal to the present one: nothing happens, TLS sessions stay resumable.
    pub fn set_roots(&self, bundle: impl Into<Bundle>) -> Result<(), TlsError> {
        let bundle = bundle.into();
        let mut epoch = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.current.load_full();
        // Before the first certificate there is nothing to verify with them.
        let Some(pair) = now.pair() else { return Ok(()) };
        if bundle.is_before(*epoch) {
            return Ok(());
        }
        if now.roots != bundle.roots {
            self.swap(Some(pair), bundle.roots, Arc::clone(&now.foreign))?;
        }
        *epoch = bundle.epoch;
        Ok(())
    }

    /// Takes the bundles of all other trust domains in place of those that there were. Equal to these: nothing happens.
    pub fn set_foreign(&self, foreign: Foreign) -> Result<(), TlsError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.current.load_full();
        if *now.foreign == foreign {
            return Ok(());
        }
        if let Some(own) = now.own.as_ref().map(|own| &own.leaf.identity.trust_domain)
            && foreign.contains_key(own)
        {
            return Err(TlsError::OwnAsForeign(own.clone()));
        }
        if let Some((domain, _)) = foreign.iter().find(|(_, roots)| usable(roots).is_none()) {
            return Err(TlsError::NoForeignRoots(domain.clone()));
        }
        self.swap(now.pair(), now.roots.clone(), Arc::new(foreign))
    }

    /// Only while writing.
    fn swap(
        &self,
        pair: Option<(Arc<CertifiedKey>, Arc<Own>)>,
        roots: Vec<CertificateDer<'static>>,
        foreign: Arc<Foreign>,
    ) -> Result<(), TlsError> {
        let now = self.current.load();
        let generation = now.generation + 1;
        let next = match pair {
            Some((certified, own)) => Material::build(&self.provider, certified, own, roots, foreign)?,
            None => Material { foreign, ..Material::without_certificate(&self.provider) },
        };
        self.current.store(Arc::new(Material { generation, ..next }));
        self.changed.send_modify(|n| *n += 1);
        Ok(())
    }
}

/// What rustls takes, in another order: AES with keys of 128 bits first, which is out of reach today and costs less (ten
/// rounds instead of fourteen, and the handshake hashes with SHA-256, for which processors have instructions). Where the
/// processor has none for AES, ChaCha20 is the faster one. The key exchange stays as it is in rustls: X25519 first.
fn provider() -> CryptoProvider {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    let aes = has_aes();
    provider.cipher_suites.sort_by_key(|suite| match suite.suite() {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => u8::from(!aes),
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => u8::from(aes) * 2,
        CipherSuite::TLS13_AES_256_GCM_SHA384 => 2 + u8::from(aes),
        _ => 4,
    });
    provider
}

fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    false
}

/// How many peers' sessions are kept for resumption (rustls keeps up to 8 tickets for each).
const RESUMABLE_PEERS: usize = 128;

impl Material {
    fn pair(&self) -> Option<(Arc<CertifiedKey>, Arc<Own>)> {
        Some((Arc::clone(self.certified.as_ref()?), Arc::clone(self.own.as_ref()?)))
    }

    // New sessions stores and ticket keys each time: a session of before a change of roots or certificate is never
    // resumed after it, so that a root that was taken away is gone at once.
    fn build(
        provider: &Arc<CryptoProvider>,
        certified: Arc<CertifiedKey>,
        own: Arc<Own>,
        roots: Vec<CertificateDer<'static>>,
        foreign: Arc<Foreign>,
    ) -> Result<Self, TlsError> {
        let mut domains = Domains::with_capacity(foreign.len() + 1);
        for (domain, roots) in &*foreign {
            let store = usable(roots).ok_or_else(|| TlsError::NoForeignRoots(domain.clone()))?;
            domains.insert(domain.clone(), store);
        }
        // Last, so that nobody else ever vouches for the own trust domain.
        domains.insert(own.leaf.identity.trust_domain.clone(), usable(&roots).ok_or(TlsError::NoRoots)?);
        let single = Arc::new(SingleCertAndKey::from(Arc::clone(&certified)));

        let of_clients = Arc::new(SpiffeClients::new(&domains, provider).map_err(TlsError::Verifier)?);
        let of_servers = Arc::new(ChainOnly::new(domains, provider));
        let mut server = ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Material)?
            .with_client_cert_verifier(Arc::clone(&of_clients) as _)
            .with_cert_resolver(Arc::clone(&single) as Arc<dyn ResolvesServerCert>);
        server.alpn_protocols =
            [Alpn::Http1, Alpn::Http2, Alpn::Tcp].map(|alpn| alpn.wire().to_vec()).to_vec();
        server.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(TlsError::Material)?;

        let clients = clients(provider, Arc::clone(&of_servers), Arc::clone(&single) as _);
        Ok(Self {
            certified: Some(certified),
            own: Some(own),
            roots,
            foreign,
            generation: 0,
            server: Arc::new(server),
            clients,
            judges: Some((of_clients, of_servers)),
            operator: single,
        })
    }

    fn without_certificate(provider: &Arc<CryptoProvider>) -> Self {
        let server = tls13_server(provider)
            .with_client_cert_verifier(rustls::server::WebPkiClientVerifier::no_client_auth())
            .with_cert_resolver(Arc::new(NoCertificate));
        let trusting_nobody = ChainOnly::new(Domains::default(), provider);
        Self {
            certified: None,
            own: None,
            roots: Vec::new(),
            foreign: Arc::default(),
            generation: 0,
            server: Arc::new(server),
            clients: clients(provider, Arc::new(trusting_nobody), Arc::new(NoCertificate)),
            judges: None,
            operator: Arc::new(NoCertificate),
        }
    }
}

/// The roots that can be used; `None`: there is none.
fn usable(roots: &[CertificateDer<'static>]) -> Option<Arc<RootCertStore>> {
    let mut store = RootCertStore::empty();
    let (taken, _ignored) = store.add_parsable_certificates(roots.iter().cloned());
    (taken > 0).then(|| Arc::new(store))
}

fn clients(
    provider: &Arc<CryptoProvider>,
    verifier: Arc<ChainOnly>,
    resolver: Arc<dyn rustls::client::ResolvesClientCert>,
) -> [Arc<ClientConfig>; 3] {
    // One store of sessions for all three: a peer's tickets do not depend on the ALPN.
    let sessions = Arc::new(ClientSessionMemoryCache::new(RESUMABLE_PEERS * 8));
    let mut config = tls13_client(provider)
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(resolver);
    config.resumption = Resumption::store(sessions);
    [Alpn::Http1, Alpn::Http2, Alpn::Tcp].map(|alpn| {
        let mut config = config.clone();
        config.alpn_protocols = vec![alpn.wire().to_vec()];
        Arc::new(config)
    })
}

#[expect(
    clippy::expect_used,
    reason = "aws-lc-rs always has TLS 1.3; the provider is a constant of this file"
)]
fn tls13_server(
    provider: &Arc<CryptoProvider>,
) -> rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier> {
    ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3")
}

#[expect(
    clippy::expect_used,
    reason = "aws-lc-rs always has TLS 1.3; the provider is a constant of this file"
)]
pub(crate) fn tls13_client(
    provider: &Arc<CryptoProvider>,
) -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3")
}

/// Before the first certificate.
#[derive(Debug)]
struct NoCertificate;

impl ResolvesServerCert for NoCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}
