//! The proxy's own HTTP: on loopback the admin API (configuration, endpoints, certificate, log level), and for everybody
//! metrics and probes. It runs on its own thread and only reads what the data path uses. It never shows a secret, and
//! the public port changes nothing.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use weft_api::{Identity, Reason};

use crate::logging::LogLevel;
use crate::metrics::{self, Metrics};
use crate::settings::Pod;
use crate::status::Status;
use crate::store::SnapshotStore;
use crate::tls::Tls;

#[cfg(test)]
mod tests;
mod view;

const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
const PROBES_AT_ONCE: usize = 32;
const CONNECTIONS: usize = 256;
/// A request's head, and the pause before a next one on the same connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer is a scrape or a dump of the configuration.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_FILTER: usize = 4096;

/// What the endpoints read.
pub struct Admin {
    /// The own pod; of a proxy by itself, a name and no address.
    pub pod: Pod,
    /// Who this workload is.
    pub identity: Identity,
    /// Whether it is ready with a certificate only.
    pub certified: bool,
    /// Configuration in force.
    pub store: Arc<SnapshotStore>,
    /// The own certificate.
    pub tls: Arc<Tls>,
    /// How the control side is doing.
    pub status: Arc<Status>,
    /// The log level.
    pub log: LogLevel,
    /// All metrics.
    pub metrics: Arc<Metrics>,
    /// Probes under way.
    pub probes: Semaphore,
}

impl Admin {
    /// Room for probes.
    #[must_use]
    pub fn probes() -> Semaphore {
        Semaphore::new(PROBES_AT_ONCE)
    }
}

/// The admin API. Bind it to loopback only.
pub fn private(admin: Arc<Admin>) -> Router {
    Router::new()
        .route("/config", get(config))
        .route("/clusters", get(clusters))
        .route("/certs", get(certs))
        .route("/plaintext", get(plaintext))
        .route("/log", get(log).put(set_log).post(set_log))
        .route("/reasons", get(reasons))
        .route("/metrics", get(scrape))
        .route("/ready", get(ready))
        .route("/live", get(live))
        .with_state(admin)
}

/// Metrics and probes.
pub fn public(admin: Arc<Admin>) -> Router {
    Router::new()
        .route("/metrics", get(scrape))
        .route("/ready", get(ready))
        .route("/live", get(live))
        .route("/probe/tcp/{port}", get(probe_tcp))
        .with_state(admin)
}

/// Both loopback addresses; a machine without IPv6 has one.
pub async fn bind_private(port: u16) -> std::io::Result<Vec<TcpListener>> {
    let first = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    let port = first.local_addr()?.port();
    let mut listeners = vec![first];
    listeners.extend(TcpListener::bind((Ipv6Addr::LOCALHOST, port)).await.ok());
    Ok(listeners)
}

/// All addresses of both families, or of IPv4 where there is no IPv6.
pub async fn bind_public(port: u16) -> std::io::Result<TcpListener> {
    let both = || {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
        socket.set_only_v6(false)?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
        socket.listen(128)?;
        TcpListener::from_std(socket.into())
    };
    match both() {
        Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
        }
        other => other,
    }
}

/// Serves HTTP/1.1 for ever, bounded in connections and time.
pub async fn serve(listener: TcpListener, router: Router) -> Infallible {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { std::future::pending().await };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "admin connection not accepted");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(16 << 10)
                .serve_connection(TokioIo::new(stream), service);
            // What a client did wrong here is of no interest to anybody.
            let _ = timeout(CONNECTION_TIMEOUT, connection).await;
            drop(permit);
        });
    }
}

async fn live() -> &'static str {
    "live\n"
}

async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    // The first certificate counts: an expired one is in the metrics, and refusing all traffic would not renew it.
    let certificate = !admin.certified || admin.tls.own().is_some();
    let missing = admin.status.missing(certificate, admin.store.load().workload.is_some());
    let status = if missing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(serde_json::json!({ "ready": missing.is_empty(), "missing": missing }))).into_response()
}

async fn scrape(State(admin): State<Arc<Admin>>) -> Response {
    // A gauge of what is true at this moment, whether or not an operator is there to be told.
    let snapshot = admin.store.load();
    admin.metrics.ejected(&snapshot.ejections());
    admin.metrics.unhealthy(&snapshot.unhealthy());
    admin.metrics.adaptive(snapshot.adaptive_limits());
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], admin.metrics.encode()).into_response()
}

async fn config(State(admin): State<Arc<Admin>>) -> Json<serde_json::Value> {
    Json(view::config(&admin))
}

async fn clusters(State(admin): State<Arc<Admin>>) -> Json<serde_json::Value> {
    Json(view::clusters(&admin.store.load()))
}

async fn certs(State(admin): State<Arc<Admin>>) -> Json<serde_json::Value> {
    Json(view::certs(&admin.tls, &admin.status))
}

async fn plaintext(State(admin): State<Arc<Admin>>) -> Json<serde_json::Value> {
    Json(view::plaintext(&admin.metrics.plaintext))
}

async fn log(State(admin): State<Arc<Admin>>) -> String {
    admin.log.text() + "\n"
}

#[derive(Deserialize)]
struct Level {
    level: Option<String>,
}

async fn set_log(State(admin): State<Arc<Admin>>, Query(level): Query<Level>, body: String) -> Response {
    let filter = level.level.unwrap_or(body);
    if filter.len() > MAX_FILTER {
        return (StatusCode::BAD_REQUEST, "the filter is longer than 4096 bytes\n").into_response();
    }
    match admin.log.set(&filter) {
        Ok(()) => {
            tracing::info!(filter = %admin.log.text(), "log level changed");
            (StatusCode::OK, admin.log.text() + "\n").into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    }
}

async fn reasons() -> Json<serde_json::Value> {
    let rows = Reason::ALL.iter().map(|reason| {
        serde_json::json!({ "reason": reason.as_str(), "status": reason.status(), "help": reason.help() })
    });
    Json(rows.collect())
}

// Stands in for a kubelet's tcpSocket probe, which would find the proxy's listener instead of the application's.
async fn probe_tcp(State(admin): State<Arc<Admin>>, Path(port): Path<String>) -> Response {
    let Some(port) = port.parse::<u16>().ok().filter(|port| *port > 0) else {
        return (StatusCode::BAD_REQUEST, "the port must be a number from 1 to 65535\n").into_response();
    };
    let Ok(_permit) = admin.probes.try_acquire() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many probes at a time\n").into_response();
    };
    match timeout(PROBE_TIMEOUT, any_accepts(&admin.pod.ips, port)).await {
        Ok(Ok(())) => (StatusCode::OK, "connected\n").into_response(),
        Ok(Err(error)) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("port {port}: {error}\n")).into_response()
        }
        Err(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("port {port}: no answer within 1 s\n")).into_response()
        }
    }
}

// An application may listen on one of the pod's two families only.
async fn any_accepts(ips: &[IpAddr], port: u16) -> std::io::Result<()> {
    let mut last = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
    for ip in ips {
        match TcpStream::connect(SocketAddr::new(*ip, port)).await {
            Ok(_) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}
