//! The HTTPS server: bounds every connection and body, hands the review to [`inject`] or [`judge`], counts and logs.
//! It decides nothing itself.

use crate::inject;
use crate::judge::{judge, passes_unseen};
use crate::metrics::{Kind, Metrics, Outcome};
use crate::review::{self, Answer, Request};
use crate::serving::Certificate;
use crate::stores::Stores;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use weft_api::audit::{self, Audit, Event, What};

/// Largest body; the API server takes objects of 3 MiB at most.
const BODY: usize = 3 * 1024 * 1024;
/// Most connections at a time.
const CONNECTIONS: usize = 1024;
const HANDSHAKE: Duration = Duration::from_secs(5);
const READ: Duration = Duration::from_secs(10);
/// What is in flight may end after shutdown began.
const DRAIN: Duration = Duration::from_secs(10);

/// What reviews need.
pub struct Webhook {
    /// The injected proxy.
    pub settings: inject::Settings,
    /// What exists.
    pub stores: Stores,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// What auditors are told.
    pub audit: Audit,
}

/// TLS as the API server speaks it, with the certificate of the moment.
///
/// # Errors
/// Only if the cryptography supports no protocol version.
pub fn tls(certificate: Arc<Certificate>) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        // API servers speak it, as everything does that Go 1.12 or newer has compiled.
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The routes.
pub fn router(webhook: Arc<Webhook>) -> Router {
    Router::new()
        .route("/mutate/pods", post(mutate))
        .route("/validate", post(validate))
        .fallback(async || (StatusCode::NOT_FOUND, "POST an AdmissionReview to /mutate/pods or /validate\n"))
        .with_state(webhook)
}

/// Serves until `stop`, then lets what is in flight end.
pub async fn serve(
    listener: TcpListener,
    tls: ServerConfig,
    router: Router,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let open = GracefulShutdown::new();
    while let Some(Ok(permit)) = stop.run_until_cancelled(permits.clone().acquire_owned()).await {
        let stream = match stop.run_until_cancelled(listener.accept()).await {
            None => break,
            Some(Ok((stream, _))) => stream,
            Some(Err(error)) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (acceptor, router, metrics, watcher) =
            (acceptor.clone(), router.clone(), metrics.clone(), open.watcher());
        tokio::spawn(async move {
            metrics.connections.inc();
            connection(stream, &acceptor, router, &metrics, watcher).await;
            metrics.connections.dec();
            drop(permit);
        });
    }
    drop(listener);
    if timeout(DRAIN, open.shutdown()).await.is_err() {
        tracing::warn!("some connections did not end in time");
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: &TlsAcceptor,
    router: Router,
    metrics: &Metrics,
    open: hyper_util::server::graceful::Watcher,
) {
    let _ = stream.set_nodelay(true);
    let stream = match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            metrics.failed_handshakes.inc();
            tracing::debug!(%error, "TLS handshake failed");
            return;
        }
        Err(_) => {
            metrics.failed_handshakes.inc();
            return;
        }
    };
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(READ);
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(30))
        .max_concurrent_streams(256);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Err(error) = open.watch(connection.into_owned()).await {
        tracing::debug!(%error, "connection ended");
    }
}

async fn mutate(State(webhook): State<Arc<Webhook>>, body: Body) -> Response {
    let started = Instant::now();
    let request = match incoming(body).await {
        Ok(request) => request,
        Err(response) => return webhook.malformed(response, started),
    };
    let kind = Kind::of(&request.kind.kind);
    let asked_for = kind == Kind::Pod
        && request.operation == "CREATE"
        && request.sub_resource.as_deref().unwrap_or_default().is_empty();
    let (outcome, answer) = if asked_for {
        injected(&request, &webhook.settings)
    } else {
        (Outcome::Allowed, Answer::allow(Vec::new()))
    };
    webhook.respond(&request, kind, outcome, &answer, started)
}

/// The patch is the difference of the pod before and after, so that order and escapes are right whatever was changed.
fn injected(request: &Request, settings: &inject::Settings) -> (Outcome, Answer) {
    match inject::review(&request.object, &request.namespace, settings) {
        inject::Outcome::Inject { pod, warnings } => {
            let patch = json_patch::diff(&request.object, &pod);
            (Outcome::Injected, Answer { refusal: None, warnings, patch: Some(patch) })
        }
        inject::Outcome::Skip { why, warnings } => (why.into(), Answer::allow(warnings)),
        inject::Outcome::Refuse(sentence) => (Outcome::Refused, Answer::refuse(sentence, Vec::new())),
    }
}

async fn validate(State(webhook): State<Arc<Webhook>>, body: Body) -> Response {
    let started = Instant::now();
    let request = match incoming(body).await {
        Ok(request) => request,
        Err(response) => return webhook.malformed(response, started),
    };
    let (outcome, answer) = webhook.judged(&request).await;
    webhook.respond(&request, Kind::of(&request.kind.kind), outcome, &answer, started)
}

impl Webhook {
    async fn judged(&self, request: &Request) -> (Outcome, Answer) {
        if passes_unseen(request) {
            return (Outcome::Allowed, Answer::allow(Vec::new()));
        }
        let Some(mut known) = self.stores.cached(&request.namespace) else {
            let answer = Answer::later(
                "the webhook has just started and does not know yet what exists: apply again in a few seconds",
            );
            return (Outcome::Unavailable, answer);
        };
        known.trust_domain.clone_from(&self.settings.trust_domain);
        let root = &self.settings.namespace;
        let mut answer = judge(request, &known, root);
        if answer.refusal.is_some() || !answer.warnings.is_empty() {
            // Not before looking twice: the cache may lag behind what was applied a moment ago.
            match self.stores.fresh(&request.namespace).await {
                Ok(mut known) => {
                    known.trust_domain.clone_from(&self.settings.trust_domain);
                    answer = judge(request, &known, root);
                }
                Err(error) => {
                    tracing::warn!(error = %format!("{error:#}"), "no second look, the caches decide")
                }
            }
        }
        let outcome = if answer.refusal.is_some() { Outcome::Refused } else { Outcome::Allowed };
        (outcome, answer)
    }

    fn respond(
        &self,
        request: &Request,
        kind: Kind,
        outcome: Outcome,
        answer: &Answer,
        started: Instant,
    ) -> Response {
        let took = started.elapsed();
        self.metrics.reviewed(kind, outcome, took);
        if self.audit.is_on() {
            self.audit.event(admission(request, outcome));
        }
        tracing::info!(
            uid = request.uid,
            kind = request.kind.kind,
            operation = request.operation,
            namespace = request.namespace,
            name = name(request),
            outcome = ?outcome,
            refusal = answer.refusal.as_ref().map(|(_, sentence)| sentence.as_str()),
            warnings = answer.warnings.len(),
            took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            "reviewed"
        );
        match review::write(&request.uid, answer) {
            Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
            Err(error) => {
                (StatusCode::INTERNAL_SERVER_ERROR, format!("the answer cannot be written: {error}\n"))
                    .into_response()
            }
        }
    }

    fn malformed(&self, response: Response, started: Instant) -> Response {
        self.metrics.reviewed(Kind::Other, Outcome::Malformed, started.elapsed());
        let mut event = Event::now(audit::Kind::Admission, audit::Outcome::Denied);
        event.reason = Outcome::Malformed.as_str();
        self.audit.event(event);
        response
    }
}

/// What auditors hear. The sentence of a refusal is not in it, because it may quote what the object holds: the log has it, by
/// the same uid.
fn admission(request: &Request, outcome: Outcome) -> Event {
    let result = match outcome {
        Outcome::Refused | Outcome::Unavailable | Outcome::Malformed => audit::Outcome::Denied,
        _ => audit::Outcome::Allowed,
    };
    let mut event = Event::now(audit::Kind::Admission, result);
    event.reason = outcome.as_str();
    event.who.user = audit::text(&request.user_info.username);
    event.what = What {
        kind: audit::text(&request.kind.kind),
        namespace: audit::text(&request.namespace),
        name: audit::text(name(request)),
        operation: match request.dry_run {
            Some(true) => format!("{}, dry run", audit::text(&request.operation)),
            _ => audit::text(&request.operation),
        },
        uid: audit::text(&request.uid),
        object_uid: audit::text(
            request.old_object.pointer("/metadata/uid").and_then(|uid| uid.as_str()).unwrap_or_default(),
        ),
        ..What::default()
    };
    event
}

/// Pods of a ReplicaSet have no name yet.
fn name(request: &Request) -> &str {
    let of =
        |key| request.object.get("metadata").and_then(|m| m.get(key)).and_then(serde_json::Value::as_str);
    if request.name.is_empty() {
        of("name").or_else(|| of("generateName")).unwrap_or_default()
    } else {
        &request.name
    }
}

async fn incoming(body: Body) -> Result<Request, Response> {
    let refuse = |code: StatusCode, sentence: String| {
        tracing::warn!(code = code.as_u16(), sentence, "no review");
        (code, format!("{sentence}\n")).into_response()
    };
    let bytes = match timeout(READ, Limited::new(body, BODY).collect()).await {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            return Err(refuse(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the body is larger than {BODY} bytes"),
            ));
        }
        Ok(Err(error)) => {
            return Err(refuse(StatusCode::BAD_REQUEST, format!("the body breaks off: {error}")));
        }
        Err(_) => {
            return Err(refuse(
                StatusCode::REQUEST_TIMEOUT,
                format!("the body took longer than {} s", READ.as_secs()),
            ));
        }
    };
    review::read(&bytes).map_err(|error| refuse(StatusCode::BAD_REQUEST, error.to_string()))
}
