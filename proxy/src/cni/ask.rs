//! Asks the API server one thing, when the installer is told to end: is the DaemonSet still there? One GET over TLS with the pod's own token;
//! what the answer means is decided by [`goes`], which is pure.

use std::env;
use std::fs;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const PATIENCE: Duration = Duration::from_secs(5);
const LONGEST: u64 = 1 << 20;

/// Whether the installer goes for good, as far as the answer tells: the DaemonSet is gone, is going, or so is the right to ask
/// about it, which `helm uninstall` takes away at the same time. Any other answer is a restart, an upgrade or a node that
/// shuts down, and what is on the node stays.
#[must_use]
pub fn goes(status: u16, body: &str) -> bool {
    let going = || {
        let object: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
        object.pointer("/metadata/deletionTimestamp").is_some_and(serde_json::Value::is_string)
    };
    matches!(status, 401 | 403 | 404) || status == 200 && going()
}

/// The DaemonSet of this name in the own namespace: status and body.
///
/// # Errors
/// Nobody answers.
pub async fn daemonset(name: &str) -> Result<(u16, String)> {
    timeout(PATIENCE, get(name)).await.context("the API server does not answer")?
}

async fn get(name: &str) -> Result<(u16, String)> {
    let read = |file: &str| {
        fs::read_to_string(format!("{ACCOUNT}/{file}")).with_context(|| format!("{ACCOUNT}/{file}"))
    };
    let (namespace, token) = (read("namespace")?, read("token")?);
    let host = env::var("KUBERNETES_SERVICE_HOST").context("KUBERNETES_SERVICE_HOST is not set")?;
    let port: u16 =
        env::var("KUBERNETES_SERVICE_PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(443);
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(read("ca.crt")?.as_bytes()) {
        roots.add(root?)?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = match host.parse::<IpAddr>() {
        Ok(ip) => ServerName::from(ip),
        Err(_) => ServerName::try_from(host.clone())?,
    };
    let stream = TcpStream::connect((host.as_str(), port)).await?;
    let mut stream = TlsConnector::from(Arc::new(config)).connect(server, stream).await?;
    // HTTP/1.0: the answer ends with the connection, in no coding.
    let request = format!(
        "GET /apis/apps/v1/namespaces/{}/daemonsets/{name} HTTP/1.0\r\nhost: {host}\r\naccept: application/json\r\nauthorization: Bearer {}\r\n\r\n",
        namespace.trim(),
        token.trim()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    // Servers that close without a word of TLS have said what they had to say.
    let _ = stream.take(LONGEST).read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("the API server's answer breaks off")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((status.context("the API server's answer has no status")?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_daemonset_that_is_gone_or_going_is_an_end() {
        for (status, body, gone) in [
            (404, "", true),
            (403, "", true),
            (401, "", true),
            (200, r#"{"metadata":{"deletionTimestamp":"2026-01-01T00:00:00Z"}}"#, true),
            (200, r#"{"metadata":{"name":"weft-cni"}}"#, false),
            (200, "", false),
            (500, "", false),
            (429, "", false),
        ] {
            assert_eq!(goes(status, body), gone, "{status} {body}");
        }
    }
}
