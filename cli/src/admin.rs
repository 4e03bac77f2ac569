//! Asks a proxy's admin API, which listens on the pod's loopback only, through the API server's port-forward.

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use std::time::Duration;
use weft_api::names::ADMIN_PORT;

/// The largest answer taken.
const ANSWER_LIMIT: usize = 32 << 20;
/// For everything: forwarding, asking, answering.
const PATIENCE: Duration = Duration::from_secs(10);

/// GET of a path, as text.
pub async fn get(pods: &Api<Pod>, pod: &str, path: &str) -> anyhow::Result<String> {
    ask(pods, pod, http::Method::GET, path, String::new()).await
}

/// A request of any method; an answer other than 2xx is an error with the answer's text.
pub async fn ask(
    pods: &Api<Pod>,
    pod: &str,
    method: http::Method,
    path: &str,
    body: String,
) -> anyhow::Result<String> {
    let answer = tokio::time::timeout(PATIENCE, forwarded(pods, pod, method, path, body));
    answer
        .await
        .unwrap_or_else(|_| bail!("no answer within {} s", PATIENCE.as_secs()))
        .with_context(|| format!("asking the proxy of pod {pod} for {path}"))
}

async fn forwarded(
    pods: &Api<Pod>,
    pod: &str,
    method: http::Method,
    path: &str,
    body: String,
) -> anyhow::Result<String> {
    let mut forward = pods.portforward(pod, &[ADMIN_PORT]).await.context("port-forward")?;
    let stream = forward.take_stream(ADMIN_PORT).context("port-forward gave no stream")?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, "localhost")
        .body(Full::new(Bytes::from(body)))?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("reading the answer: {error}"))?.to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        if !status.is_success() {
            bail!("{status}: {}", text.trim());
        }
        Ok(text)
    };
    let answer = exchange.await;
    connection.abort();
    forward.abort();
    answer
}
