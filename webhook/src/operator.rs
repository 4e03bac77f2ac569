//! Asks the operator to sign: resolves its name, speaks TLS 1.3 verified against the trust bundle, checks that the peer is the
//! operator by its SPIFFE identity, and calls `Identity.Sign`. One connection per call, because there is one call in hours.
//! The name is resolved by hickory, because a static glibc binary cannot use the system's resolver.

use anyhow::{Context, Result, anyhow, bail};
use hickory_resolver::TokioResolver;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::future::ready;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::Endpoint;
use weft_api::Identity;
use weft_api::v1::identity_client::IdentityClient;
use weft_api::v1::{SignRequest, SignResponse};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Bound on each step.
const STEP: Duration = Duration::from_secs(5);

/// Where the operator is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    host: String,
    port: u16,
}

impl FromStr for Address {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let remedy = || format!("`{text}` is not host:port");
        let (host, port) = text.rsplit_once(':').ok_or_else(remedy)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
        let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(remedy)?;
        if host.is_empty() { Err(remedy()) } else { Ok(Self { host: host.to_owned(), port }) }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// One call of `Identity.Sign`.
///
/// # Errors
/// With the step that failed; every cause may pass, so the caller tries again.
pub async fn sign(
    address: &Address,
    roots: Arc<RootCertStore>,
    expected: &Identity,
    csr_der: Vec<u8>,
    token: String,
) -> Result<SignResponse> {
    let mut stream = Some(connect(address, roots, expected).await?);
    // The address is only a label here: the connection exists.
    let channel = Endpoint::from_static("http://weft-operator")
        .connect_with_connector(tower::service_fn(move |_| {
            ready(
                stream
                    .take()
                    .map(TokioIo::new)
                    .ok_or_else(|| std::io::Error::other("the connection is gone")),
            )
        }))
        .await
        .context("HTTP/2 with the operator")?;
    let call = IdentityClient::new(channel);
    let mut call = call.max_decoding_message_size(1 << 20);
    let response = timeout(STEP * 2, call.sign(SignRequest { csr_der: csr_der.into(), token }))
        .await
        .context("the operator does not answer")?;
    response
        .map(tonic::Response::into_inner)
        .map_err(|status| anyhow!("the operator refused to sign ({}): {}", status.code(), status.message()))
}

async fn connect(
    address: &Address,
    roots: Arc<RootCertStore>,
    expected: &Identity,
) -> Result<TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from(address.host.clone()).context("the operator's address is not a name")?;
    let tcp = dial(address).await?;
    let stream = timeout(STEP, TlsConnector::from(Arc::new(config)).connect(name, tcp))
        .await
        .context("TLS with the operator takes too long")?
        .context("TLS with the operator")?;
    let leaf = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(<[_]>::first)
        .context("the operator has no certificate")?;
    let found = identity(leaf)?;
    if found != *expected {
        bail!("the peer at {address} is {found}, not {expected}");
    }
    Ok(stream)
}

async fn dial(address: &Address) -> Result<TcpStream> {
    let mut last = anyhow!("{} has no address", address.host);
    for ip in resolve(&address.host).await? {
        match timeout(STEP, TcpStream::connect(SocketAddr::new(ip, address.port))).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => {
                last = anyhow!(error).context(format!("connecting to {ip} port {}", address.port))
            }
            Err(_) => last = anyhow!("connecting to {ip} port {} takes too long", address.port),
        }
    }
    Err(last)
}

async fn resolve(host: &str) -> Result<Vec<IpAddr>> {
    if let Ok(ip) = host.parse() {
        return Ok(vec![ip]);
    }
    let resolver = TokioResolver::builder_tokio().context("reading the resolver's configuration")?.build()?;
    // With the dot the name is complete, and the cluster's search domains are not tried one by one.
    let name = if host.contains('.') { format!("{host}.") } else { host.to_owned() };
    let found = timeout(STEP, resolver.lookup_ip(name)).await.context("name resolution takes too long")?;
    Ok(found.with_context(|| format!("resolving {host}"))?.iter().collect())
}

/// The SPIFFE identity in a certificate: its only URI name.
fn identity(certificate: &CertificateDer<'_>) -> Result<Identity> {
    let (_, certificate) =
        X509Certificate::from_der(certificate).context("the operator's certificate cannot be read")?;
    let names = certificate.subject_alternative_name()?.context("the operator's certificate has no names")?;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Ok(uri.parse()?),
        _ => bail!("the operator's certificate does not have exactly one URI name"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_names_or_ips_with_a_port() {
        for (text, host) in
            [("a.b.svc:1", "a.b.svc"), ("a.:1", "a"), ("10.0.0.1:1", "10.0.0.1"), ("[fd00::1]:1", "fd00::1")]
        {
            assert_eq!(text.parse::<Address>().unwrap().host, host);
        }
        for bad in ["", "a", ":1", "a:", "a:0", "a:70000"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
