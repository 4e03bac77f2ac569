//! Tells a collector of spans: a bounded queue, and a thread of its own that empties it in batches by OTLP over HTTP. What
//! there is no room for, or what the collector does not take in a while, is dropped and counted; no request ever waits.
//! Source: OTLP specification 1.7, "OTLP/HTTP".

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::TcpStream;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{sleep, timeout};
use weft_api::tracing::Endpoint;

use super::otlp::{self, attribute};
use super::{Ended, span};
use crate::backoff::Backoff;
use crate::metrics::{Metrics, Told};
use crate::store::SnapshotStore;

/// Spans that may wait.
pub const WAITING: usize = 2048;
/// Spans that are told together.
const BATCH: usize = 512;
/// Of an answer, which is a few bytes.
const MAX_ANSWER: usize = 64 * 1024;
const PROTOBUF: &str = "application/x-protobuf";
const OWN_NAME: &str = concat!("weft-proxy/", env!("CARGO_PKG_VERSION"));

/// Who is told, of whom.
pub struct Collector {
    /// Where it is.
    pub endpoint: Endpoint,
    /// Who tells.
    pub resource: Resource,
    /// What became of spans.
    pub metrics: Arc<Metrics>,
    /// How long for what.
    pub pace: Pace,
}

/// Whom spans are of. Empty: not known.
pub struct Resource {
    /// Says the workload's name, once it is known.
    pub store: Arc<SnapshotStore>,
    /// Stands for it until then.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Pod.
    pub pod: String,
    /// Its uid.
    pub uid: String,
}

/// See the defaults.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How long the first span waits for others. Who sends one meanwhile wakes nobody.
    pub gather: Duration,
    /// For an answer.
    pub patience: Duration,
    /// Before the second attempt; doubles.
    pub first: Duration,
    /// Between two attempts.
    pub most: Duration,
    /// For one batch.
    pub attempts: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            gather: Duration::from_millis(200),
            patience: Duration::from_secs(10),
            first: Duration::from_millis(500),
            most: Duration::from_secs(30),
            attempts: 5,
        }
    }
}

pub(super) struct Queue {
    to: Sender<Entry>,
    metrics: Arc<Metrics>,
}

enum Entry {
    Span(Box<Ended>),
    Flush(SyncSender<()>),
}

impl Queue {
    pub(super) fn send(&self, ended: Box<Ended>) {
        if self.to.try_send(Entry::Span(ended)).is_err() {
            self.metrics.spans(Told::NoRoom, 1);
        }
    }

    pub(super) fn flush(&self, patience: Duration) {
        let (done, wait) = sync_channel(1);
        let end = Instant::now() + patience;
        // Behind whatever waits; a full queue empties, or time is up.
        while self.to.try_send(Entry::Flush(done.clone())).is_err() {
            if Instant::now() >= end || self.to.is_closed() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = wait.recv_timeout(end.saturating_duration_since(Instant::now()));
    }
}

/// Starts the thread.
pub(super) fn start(collector: Collector) -> std::io::Result<Queue> {
    let (to, from) = channel(WAITING);
    let metrics = Arc::clone(&collector.metrics);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build()?;
    let telling = Telling {
        backoff: Backoff::new(collector.pace.first, collector.pace.most),
        collector,
        connection: None,
        failing: false,
    };
    let thread = std::thread::Builder::new().name("traces".to_owned()).stack_size(512 << 10);
    thread.spawn(move || runtime.block_on(telling.run(from)))?;
    Ok(Queue { to, metrics })
}

struct Telling {
    collector: Collector,
    connection: Option<SendRequest<Full<Bytes>>>,
    backoff: Backoff,
    failing: bool,
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("no connection: {0}")]
    Connect(std::io::Error),
    #[error("the connection broke: {0}")]
    Broken(#[from] hyper::Error),
    #[error("no answer in time")]
    Late,
    #[error("it answers {0}")]
    Status(StatusCode),
    #[error("not a request: {0}")]
    Request(#[from] http::Error),
}

impl Trouble {
    /// OTLP, "Failures": these may pass.
    fn may_pass(&self) -> bool {
        match self {
            Self::Status(status) => matches!(status.as_u16(), 429 | 502..=504),
            Self::Request(_) => false,
            _ => true,
        }
    }
}

impl Telling {
    async fn run(mut self, mut from: Receiver<Entry>) {
        let mut batch = Vec::new();
        loop {
            let mut flush = None;
            let first = match from.try_recv() {
                Ok(entry) => entry,
                Err(_) => {
                    let Some(entry) = from.recv().await else { return };
                    if matches!(entry, Entry::Span(_)) {
                        sleep(self.collector.pace.gather).await;
                    }
                    entry
                }
            };
            let mut next = Some(first);
            while let Some(entry) = next.take() {
                match entry {
                    Entry::Span(ended) => batch.push(span::span(&ended)),
                    Entry::Flush(done) => flush = Some(done),
                }
                if batch.len() < BATCH && flush.is_none() {
                    next = from.try_recv().ok();
                }
            }
            if !batch.is_empty() {
                self.tell(std::mem::take(&mut batch)).await;
            }
            if let Some(done) = flush {
                let _ = done.try_send(());
            }
        }
    }

    async fn tell(&mut self, spans: Vec<otlp::Span>) {
        let count = spans.len() as u64;
        let body = Bytes::from(self.collector.resource.request(spans).encode_to_vec());
        let mut attempts = self.collector.pace.attempts;
        loop {
            let posted = match timeout(self.collector.pace.patience, self.post(body.clone())).await {
                Ok(posted) => posted,
                Err(_) => Err(Trouble::Late),
            };
            let metrics = &self.collector.metrics;
            let trouble = match posted {
                Ok(rejected) => {
                    let rejected = rejected.min(count);
                    metrics.spans(Told::Sent, count - rejected);
                    metrics.spans(Told::Rejected, rejected);
                    self.backoff.reset();
                    if std::mem::take(&mut self.failing) {
                        tracing::info!(endpoint = %self.collector.endpoint, "the collector takes traces again");
                    }
                    return;
                }
                Err(trouble) => trouble,
            };
            self.connection = None;
            if !std::mem::replace(&mut self.failing, true) {
                let endpoint = &self.collector.endpoint;
                tracing::warn!(%endpoint, error = %trouble, "the collector does not take traces");
            }
            attempts = attempts.saturating_sub(1);
            if attempts == 0 || !trouble.may_pass() {
                metrics.spans(Told::Failed, count);
                return;
            }
            sleep(self.backoff.wait()).await;
        }
    }

    /// How many spans the collector did not want.
    async fn post(&mut self, body: Bytes) -> Result<u64, Trouble> {
        let endpoint = &self.collector.endpoint;
        let request = Request::post(endpoint.path.as_str())
            .header(HOST, endpoint.authority())
            .header(CONTENT_TYPE, PROTOBUF)
            .header(USER_AGENT, OWN_NAME)
            .body(Full::new(body))?;
        let kept = match self.connection.take() {
            Some(mut kept) => kept.ready().await.is_ok().then_some(kept),
            None => None,
        };
        let mut connection = match kept {
            Some(kept) => kept,
            None => self.connect().await?,
        };
        let response = connection.send_request(request).await?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        if !status.is_success() {
            return Err(Trouble::Status(status));
        }
        let Ok(answer) = answer else { return Ok(0) };
        self.connection = Some(connection);
        // Whatever else it says, it has taken them.
        let partial = otlp::Response::decode(answer.to_bytes()).ok().and_then(|answer| answer.partial);
        Ok(partial.map_or(0, |partial| {
            tracing::debug!(
                rejected = partial.rejected,
                said = partial.message,
                "the collector does not want all spans"
            );
            u64::try_from(partial.rejected).unwrap_or_default()
        }))
    }

    /// Out of the pod as it is: what the proxy's own user sends is not redirected.
    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Trouble> {
        let Endpoint { host, port, .. } = &self.collector.endpoint;
        let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(Trouble::Connect)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Ends with its sender, or when the other side closes it.
        tokio::spawn(connection);
        Ok(sender)
    }
}

impl Resource {
    fn request(&self, spans: Vec<otlp::Span>) -> otlp::Request {
        let workload = self.store.load().workload.as_ref().map(|own| own.name.to_string());
        let name = workload.filter(|name| !name.is_empty()).unwrap_or_else(|| self.name.clone());
        let all = [
            ("service.name", name.as_str()),
            ("service.namespace", &self.namespace),
            ("service.instance.id", &self.uid),
            ("k8s.namespace.name", if self.pod.is_empty() { "" } else { &self.namespace }),
            ("k8s.pod.name", &self.pod),
            ("k8s.pod.uid", &self.uid),
            ("telemetry.sdk.name", "weft"),
            ("telemetry.sdk.language", "rust"),
            ("telemetry.sdk.version", env!("CARGO_PKG_VERSION")),
        ];
        let known = all.into_iter().filter(|(_, value)| !value.is_empty());
        let attributes = known.map(|(key, value)| attribute(key, value)).collect();
        let scope =
            otlp::Scope { name: "weft-proxy".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
        otlp::Request {
            resources: vec![otlp::ResourceSpans {
                resource: Some(otlp::Attributes { attributes }),
                scopes: vec![otlp::ScopeSpans { scope: Some(scope), spans }],
            }],
        }
    }
}
