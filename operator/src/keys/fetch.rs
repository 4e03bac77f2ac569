//! One fetch of a key set: GET over HTTP/1.1 or TLS, and nothing else. Whoever may write a RequestAuthentication chooses where the
//! operator sends this request, so that it goes to no address of the node or of the link, follows no redirect, carries nothing of
//! the operator's own, and what comes back is told to nobody but as keys. It keeps nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_LENGTH, HOST, USER_AGENT};
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use weft_crds::validate::{self, jwks};

use crate::index::KeySource;

/// For all of it, from the look-up of the name to the last byte: a server that sends byte by byte is none.
const LONGEST: Duration = Duration::from_secs(10);
/// For each of look-up, connecting and handshake.
const STEP: Duration = Duration::from_secs(4);
/// Addresses of a name that are tried.
const TRIED: usize = 2;

#[cfg(test)]
mod tests;

/// What came of a fetch.
#[derive(Debug)]
pub struct Got {
    /// The keys that can be used; never none.
    pub keys: Vec<jwks::Key>,
    /// How long the answer may be kept.
    pub max_age: Option<Duration>,
}

/// Fetches key sets.
#[derive(Clone)]
pub struct Fetcher {
    resolver: Result<TokioResolver, String>,
    /// To which addresses it may go.
    permitted: fn(IpAddr) -> bool,
    longest: Duration,
}

impl Fetcher {
    /// As the system resolves names, to addresses that [`permitted`] lets pass.
    #[must_use]
    pub fn new() -> Self {
        Self::with(permitted, LONGEST)
    }

    /// To other addresses, with another patience.
    #[must_use]
    pub fn with(permitted: fn(IpAddr) -> bool, longest: Duration) -> Self {
        let resolver = TokioResolver::builder_tokio().and_then(|mut builder| {
            let options = builder.options_mut();
            options.timeout = Duration::from_secs(2);
            options.attempts = 1;
            options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
            builder.build()
        });
        Self { resolver: resolver.map_err(|e| e.to_string()), permitted, longest }
    }

    /// Fetches one.
    ///
    /// # Errors
    /// A sentence without what the server said: it may be none of the user's business.
    pub async fn fetch(&self, source: &KeySource) -> Result<Got, String> {
        let got = timeout(self.longest, self.get(source)).await;
        got.unwrap_or_else(|_| Err("took too long".into()))
    }

    async fn get(&self, source: &KeySource) -> Result<Got, String> {
        let https = source.uri.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"));
        let tls = https.then(|| tls(source.ca_bundle.as_deref(), "jwksCaBundle")).transpose()?;
        let (text, max_age) = self.ask(&source.uri, tls, jwks::MAX_SIZE).await?;
        // What went wrong inside is said without any of the text.
        Ok(Got { keys: jwks::read(&text)?, max_age })
    }

    /// What is at a URL, and how long it may be kept. `config`: for https; without it only http is possible.
    ///
    /// # Errors
    /// A sentence without what the server said.
    pub async fn read(
        &self,
        url: &str,
        config: Option<Arc<ClientConfig>>,
        most: usize,
    ) -> Result<(String, Option<Duration>), String> {
        let got = timeout(self.longest, self.ask(url, config, most)).await;
        got.unwrap_or_else(|_| Err("took too long".into()))
    }

    async fn ask(
        &self,
        url: &str,
        config: Option<Arc<ClientConfig>>,
        most: usize,
    ) -> Result<(String, Option<Duration>), String> {
        let uri: Uri = url.parse().map_err(|_| "is no URI")?;
        let tls = match (uri.scheme_str(), &config) {
            (Some("https"), Some(_)) => true,
            (Some("http"), None) => false,
            _ => return Err("is neither https nor http".into()),
        };
        let authority =
            uri.authority().filter(|a| !a.as_str().contains('@')).ok_or("has no host, or a user")?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let request = Request::get(path)
            .header(HOST, authority.as_str())
            .header(ACCEPT, "application/jwk-set+json, application/json")
            .header(USER_AGENT, concat!("weft-operator/", env!("CARGO_PKG_VERSION")))
            .body(Empty::<&[u8]>::new())
            .map_err(|_| "is no URI that can be asked for")?;
        let stream = self.connect(&host, port).await?;
        if !tls {
            return ask(stream, request, most).await;
        }
        let connector = TlsConnector::from(config.ok_or("is neither https nor http")?);
        let name = ServerName::try_from(host).map_err(|_| "has a host that no certificate can be for")?;
        let shaken = timeout(STEP, connector.connect(name, stream)).await;
        let stream =
            shaken.map_err(|_| "the TLS handshake took too long")?.map_err(|e| format!("TLS failed: {e}"))?;
        ask(stream, request, most).await
    }

    /// To an address that was looked at, so that the name cannot mean another one a moment later.
    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, String> {
        let addresses: Vec<IpAddr> = match host.parse() {
            Ok(ip) => vec![ip],
            Err(_) => {
                let resolver =
                    self.resolver.as_ref().map_err(|e| format!("names cannot be looked up: {e}"))?;
                let found = timeout(STEP, resolver.lookup_ip(host))
                    .await
                    .map_err(|_| "looking its host up took too long")?;
                found.map_err(|_| "its host has no address")?.iter().collect()
            }
        };
        let mut problem = "its host has no address".to_owned();
        for ip in addresses.into_iter().take(TRIED) {
            if !(self.permitted)(ip.to_canonical()) {
                problem =
                    "its host has an address of the node or the link itself, where nothing is fetched".into();
                continue;
            }
            match timeout(STEP, TcpStream::connect(SocketAddr::new(ip, port))).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(_)) => problem = "nobody takes connections there".into(),
                Err(_) => problem = "connecting took too long".into(),
            }
        }
        Err(problem)
    }
}

impl Default for Fetcher {
    fn default() -> Self {
        Self::new()
    }
}

/// Not loopback, nor link-local, where clouds tell machines their secrets, nor what is no host at all.
#[must_use]
pub fn permitted(ip: IpAddr) -> bool {
    !ip.is_loopback()
        && !ip.is_unspecified()
        && !ip.is_multicast()
        && match ip {
            IpAddr::V4(ip) => !ip.is_link_local() && !ip.is_broadcast(),
            // fd00:ec2::254 is a metadata service, too.
            IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 != 0xfe80 && ip.segments()[..2] != [0xfd00, 0x0ec2],
        }
}

async fn ask<S>(
    stream: S,
    request: Request<Empty<&'static [u8]>>,
    most: usize,
) -> Result<(String, Option<Duration>), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let shaken = hyper::client::conn::http1::Builder::new()
        .max_buf_size(32 * 1024)
        .handshake(TokioIo::new(stream))
        .await;
    let (mut sender, connection) = shaken.map_err(|_| "the connection broke off")?;
    let asking = async {
        let response = sender.send_request(request).await.map_err(|_| "the server did not answer in HTTP")?;
        if response.status() != StatusCode::OK {
            return Err(format!(
                "answered {}, and only 200 counts: redirects are not followed",
                response.status().as_u16()
            ));
        }
        let (max_age, length) = (max_age(response.headers()), length(response.headers()));
        let too_long = || format!("what it answers is longer than {most} bytes");
        if length.is_some_and(|length| length > most as u64) {
            return Err(too_long());
        }
        let (mut body, mut bytes) = (response.into_body(), Vec::new());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| "the connection broke off")?;
            if let Some(data) = frame.data_ref() {
                if bytes.len() + data.len() > most {
                    return Err(too_long());
                }
                bytes.extend_from_slice(data);
            }
        }
        let text = String::from_utf8(bytes).map_err(|_| "what it answers is not JSON")?;
        Ok((text, max_age))
    };
    tokio::pin!(connection);
    let mut asking = std::pin::pin!(asking);
    tokio::select! {
        got = &mut asking => got,
        // It has nothing more to do; what it has read is there.
        _ = &mut connection => asking.await,
    }
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// RFC 9111 section 5.2.2: `no-store` and `no-cache` are for at once, which the least pause makes of it.
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let all = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let mut age = None;
    for directive in all.flat_map(|value| value.split(',')).map(str::trim) {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        if name.eq_ignore_ascii_case("no-store") || name.eq_ignore_ascii_case("no-cache") {
            return Some(Duration::ZERO);
        }
        if name.eq_ignore_ascii_case("max-age") {
            age = value.trim_matches('"').parse().ok().map(Duration::from_secs);
        }
    }
    age
}

/// For servers that are verified by their name. `field`: of the bundle.
///
/// # Errors
/// What is wrong with the bundle.
pub fn tls(ca_bundle: Option<&str>, field: &str) -> Result<Arc<ClientConfig>, String> {
    let roots = match ca_bundle {
        None => web(),
        Some(pem) => {
            let mut store = RootCertStore::empty();
            for der in
                validate::certificates(pem).ok_or_else(|| format!("{field} is no list of certificates"))?
            {
                store
                    .add(CertificateDer::from(der))
                    .map_err(|_| format!("{field} has an unusable certificate"))?;
            }
            Arc::new(store)
        }
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("TLS cannot be used: {e}"))?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn web() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    Arc::clone(
        ROOTS.get_or_init(|| Arc::new(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() })),
    )
}
