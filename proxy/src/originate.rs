//! TLS that the proxy speaks in the application's place to an external service: the server's chain and name are verified
//! against the roots that the service names, or those of the web. Made once for each cluster, used for each connection.
//! It knows nothing of the mesh's own certificates and shows none.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::client::{ClientSessionMemoryCache, Resumption};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use weft_api::Reason;

use crate::connect::Upstream;
use crate::error::Error;
use crate::tls::{Ahead, Alpn};

/// RFC 7301: names of HTTP in ALPN.
const HTTP1: &[u8] = b"http/1.1";
const HTTP2: &[u8] = b"h2";
/// Sessions kept for resumption, of one cluster and protocol.
const SESSIONS: usize = 64;

/// The server would speak another protocol than the application does.
#[derive(Debug, thiserror::Error)]
#[error("the server does not speak the application's protocol ({0}): it chose another one by ALPN, or none")]
struct OtherProtocol(&'static str);

/// How to speak TLS to a cluster's endpoints.
#[derive(Debug)]
pub struct Originate {
    name: ServerName<'static>,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    opaque: Arc<ClientConfig>,
}

impl Originate {
    /// To servers with a certificate for `name` of one of the `roots`; without any, of one that browsers trust.
    ///
    /// # Errors
    /// What cannot be used.
    pub fn new(name: &str, roots: &[impl AsRef<[u8]>]) -> Result<Self, String> {
        let server =
            ServerName::try_from(name.to_owned()).map_err(|_| format!("`{name}` is no name of a server"))?;
        let store = if roots.is_empty() { public_roots() } else { Arc::new(private_roots(roots)?) };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = |protocol: Option<&[u8]>| -> Result<Arc<ClientConfig>, String> {
            let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()
                .map_err(|e| e.to_string())?
                .with_root_certificates(Arc::clone(&store))
                .with_no_client_auth();
            config.alpn_protocols = protocol.into_iter().map(<[u8]>::to_vec).collect();
            config.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(SESSIONS)));
            Ok(Arc::new(config))
        };
        Ok(Self {
            name: server,
            http1: config(Some(HTTP1))?,
            http2: config(Some(HTTP2))?,
            opaque: config(None)?,
        })
    }

    fn config(&self, alpn: Alpn) -> &Arc<ClientConfig> {
        match alpn {
            Alpn::Http1 => &self.http1,
            Alpn::Http2 => &self.http2,
            Alpn::Tcp => &self.opaque,
        }
    }

    /// Connects to `addr`. `limit` holds for TCP and for the handshake, each.
    ///
    /// # Errors
    /// `ConnectFailed`, `ConnectTimeout`, `TlsHandshake`.
    pub async fn open(&self, addr: SocketAddr, alpn: Alpn, limit: Duration) -> Result<Upstream, Error> {
        let tcp = match timeout(limit, TcpStream::connect(addr)).await {
            Ok(connected) => connected.map_err(|e| Error::new(Reason::ConnectFailed, e))?,
            Err(elapsed) => return Err(Error::new(Reason::ConnectTimeout, elapsed)),
        };
        // Fails only when the peer is gone already; the first write will tell.
        let _ = tcp.set_nodelay(true);
        let connector = TlsConnector::from(Arc::clone(self.config(alpn)));
        let shaken = timeout(limit, connector.connect(self.name.clone(), Ahead::new(tcp))).await;
        let stream = shaken
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|e| Error::new(Reason::TlsHandshake, e))?;
        match (alpn, stream.get_ref().1.alpn_protocol()) {
            (Alpn::Http1, None | Some(HTTP1)) | (Alpn::Http2, Some(HTTP2)) | (Alpn::Tcp, _) => {
                Ok(Upstream::Tls(Box::new(stream)))
            }
            (Alpn::Http2, _) => Err(Error::new(Reason::TlsHandshake, OtherProtocol("h2"))),
            (Alpn::Http1, _) => Err(Error::new(Reason::TlsHandshake, OtherProtocol("http/1.1"))),
        }
    }
}

/// Made when first needed: some 150 certificates that most proxies never look at.
fn public_roots() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let made = || {
        let mut store = RootCertStore::empty();
        store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        Arc::new(store)
    };
    Arc::clone(ROOTS.get_or_init(made))
}

fn private_roots(roots: &[impl AsRef<[u8]>]) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    for (i, der) in roots.iter().enumerate() {
        let root = CertificateDer::from(der.as_ref().to_vec());
        store.add(root).map_err(|e| format!("certificate {i} is unusable: {e}"))?;
    }
    Ok(store)
}
