//! A connection to the operator: its name to addresses, TCP, TLS 1.3, then a gRPC channel over exactly this
//! connection. The operator's certificate must be for the dialled name and be the operator's by SPIFFE id too.
//! It never retries: that is its callers'.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use weft_api::Identity;

use crate::settings::{Operator, Settings};
use crate::tls::{Tls, peer_identity, tls13_client};

const NAME_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// An operator that does not answer a ping is gone; without it a dead node would be noticed by nobody.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// A bundle is a handful of certificates; more is a mistake.
const MAX_BUNDLE: u64 = 1 << 20;

/// Why the operator could not be reached. Each is a sentence for the log and for `/ready`.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No roots to verify the operator with.
    #[error(
        "the trust bundle {file} is missing or unreadable: has the operator written ConfigMap weft-trust-bundle to this namespace?"
    )]
    Bundle {
        /// Where it should be.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file holds no certificate.
    #[error("the trust bundle {0} holds no usable certificate")]
    EmptyBundle(String),
    /// DNS.
    #[error("the name {0} could not be resolved")]
    Name(String, #[source] hickory_resolver::net::NetError),
    /// DNS took too long.
    #[error("the name {0} was not resolved in time")]
    NameTimeout(String),
    /// The name exists without addresses.
    #[error("the name {0} has no address")]
    NoAddress(String),
    /// TCP.
    #[error("the operator at {0} could not be connected")]
    Connect(SocketAddr, #[source] io::Error),
    /// TLS.
    #[error("the TLS handshake with the operator at {0} failed")]
    Handshake(SocketAddr, #[source] io::Error),
    /// The configuration names a host that cannot be in a certificate.
    #[error("`{0}` is neither a DNS name nor an address")]
    Host(String),
    /// Roots that rustls refuses.
    #[error("the trust bundle is unusable")]
    Verifier(#[source] rustls::client::VerifierBuilderError),
    /// HTTP/2.
    #[error("the gRPC connection could not be set up")]
    Grpc(#[source] tonic::transport::Error),
}

/// An error with its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            text.push_str(": ");
            text.push_str(&next_text);
        }
        cause = next.source();
    }
    text
}

/// The roots that vouch for the operator: those of the file, read anew each time as the ConfigMap changes, and those
/// that the operator sent. Without the file, the latter alone.
pub async fn trusted_roots(
    settings: &Settings,
    tls: &Tls,
) -> Result<Vec<CertificateDer<'static>>, DialError> {
    let file = settings.bundle_file.display().to_string();
    let mut roots = tls.roots();
    let read = async {
        // Bounded before it is read: the file is of somebody else's namespace.
        let length = tokio::fs::metadata(&settings.bundle_file).await?.len();
        if length > MAX_BUNDLE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "larger than 1 MiB"));
        }
        tokio::fs::read(&settings.bundle_file).await
    };
    match read.await {
        Ok(pem) => {
            let of_file = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok);
            let before = roots.len();
            for root in of_file {
                if !roots.contains(&root) {
                    roots.push(root);
                }
            }
            if before == 0 && roots.is_empty() { Err(DialError::EmptyBundle(file)) } else { Ok(roots) }
        }
        Err(source) if roots.is_empty() => Err(DialError::Bundle { file, source }),
        Err(_) => Ok(roots),
    }
}

/// Connects to the operator, presenting what `certificate` resolves to, if anything.
pub async fn operator(
    operator: &Operator,
    roots: &[CertificateDer<'static>],
    certificate: Option<Arc<dyn ResolvesClientCert>>,
) -> Result<Channel, DialError> {
    let config = client_config(roots, operator.identity.clone(), certificate)?;
    let name =
        ServerName::try_from(operator.host.clone()).map_err(|_| DialError::Host(operator.host.clone()))?;
    let mut last = DialError::NoAddress(operator.host.clone());
    for ip in resolve(&operator.host).await? {
        let address = SocketAddr::new(ip, operator.port);
        match connect(address, name.clone(), &config).await {
            Ok(stream) => return grpc(operator, stream).await,
            // An address that answered and failed says more than one where nobody is.
            Err(DialError::Connect(..)) if matches!(last, DialError::Handshake(..)) => {}
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn resolve(host: &str) -> Result<Vec<IpAddr>, DialError> {
    if let Ok(ip) = host.parse() {
        return Ok(vec![ip]);
    }
    let failed = |error| DialError::Name(host.to_owned(), error);
    // Made anew each time: resolv.conf is read again, and between connections nothing stays in memory.
    let mut builder = TokioResolver::builder_tokio().map_err(failed)?;
    let options = builder.options_mut();
    options.cache_size = 0;
    options.timeout = Duration::from_secs(2);
    options.attempts = 1;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.try_tcp_on_error = true;
    let resolver = builder.build().map_err(failed)?;
    // A service's full name is looked up as it stands, not with each search domain of the pod first (ndots is 5).
    let name = if host.contains(".svc.") { format!("{host}.") } else { host.to_owned() };
    let answer = timeout(NAME_TIMEOUT, resolver.lookup_ip(name.as_str())).await;
    let answer = answer.map_err(|_| DialError::NameTimeout(host.to_owned()))?.map_err(failed)?;
    Ok(answer.iter().collect())
}

async fn connect(
    address: SocketAddr,
    name: ServerName<'static>,
    config: &Arc<rustls::ClientConfig>,
) -> Result<TlsStream<TcpStream>, DialError> {
    let failed = |source| DialError::Connect(address, source);
    let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let shaken =
        timeout(HANDSHAKE_TIMEOUT, TlsConnector::from(Arc::clone(config)).connect(name, stream)).await;
    shaken
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|e| DialError::Handshake(address, e))
}

async fn grpc(operator: &Operator, stream: TlsStream<TcpStream>) -> Result<Channel, DialError> {
    // The scheme is http because TLS is already done; the connector below is the only way out.
    let host =
        if operator.host.contains(':') { format!("[{}]", operator.host) } else { operator.host.clone() };
    let endpoint = Endpoint::from_shared(format!("http://{host}:{}", operator.port))
        .map_err(DialError::Grpc)?
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .buffer_size(16);
    let mut only = Some(stream);
    // When this connection is lost the channel is of no more use; whoever holds it dials again.
    let connector = tower::service_fn(move |_| {
        let stream = only.take().map(TokioIo::new);
        async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    endpoint.connect_with_connector(connector).await.map_err(DialError::Grpc)
}

fn client_config(
    roots: &[CertificateDer<'static>],
    expected: Identity,
    certificate: Option<Arc<dyn ResolvesClientCert>>,
) -> Result<Arc<rustls::ClientConfig>, DialError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots.iter().cloned());
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(&provider))
        .build()
        .map_err(DialError::Verifier)?;
    let config = tls13_client(&provider)
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(OperatorOnly { inner, expected }));
    let mut config = match certificate {
        Some(resolver) => config.with_client_cert_resolver(resolver),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    // One connection at a time, hours apart: nothing to resume.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// What rustls verifies (chain, DNS name), and the operator's SPIFFE identity.
#[derive(Debug)]
struct OperatorOnly {
    inner: Arc<WebPkiServerVerifier>,
    expected: Identity,
}

impl ServerCertVerifier for OperatorOnly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp, now)?;
        match peer_identity(std::slice::from_ref(end_entity)) {
            Ok(identity) if identity == self.expected => Ok(verified),
            Ok(identity) => Err(rustls::Error::General(format!("it is {identity}, not {}", self.expected))),
            Err(_) => {
                Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
