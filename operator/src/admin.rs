//! HTTP on port 15020: `/metrics`, `/ready` (index whole, certificate at hand), `/live`. Nothing else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::UNIX_EPOCH;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Kind;
use crate::serve::Shared;

/// What the handlers look at.
#[derive(Clone)]
pub struct Admin {
    /// The parts.
    pub shared: Arc<Shared>,
    /// The index is whole, a certificate is there, the port is open, and it is not stopping.
    pub ready: Arc<AtomicBool>,
}

/// Serves until told to stop.
///
/// # Errors
/// When the listener fails.
pub async fn run(admin: Admin, listener: TcpListener, end: CancellationToken) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/ready", get(ready))
        .route("/live", get(|| async { "live\n" }))
        .with_state(admin);
    axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>())
        .with_graceful_shutdown(end.cancelled_owned())
        .await
}

async fn ready(State(admin): State<Admin>) -> (StatusCode, &'static str) {
    if admin.ready.load(Ordering::Acquire) {
        (StatusCode::OK, "ready\n")
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "starting (not everything has been listed from the API server yet) or stopping\n",
        )
    }
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    let shared = &admin.shared;
    for (kind, count) in shared.store.view(|view| view.index.sizes()) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        shared.metrics.objects.get_or_create(&Kind { kind }).set(count);
    }
    shared.metrics.root_expiry.set(shared.authority.root().not_after);
    let leaf = shared.serving.current().not_after.duration_since(UNIX_EPOCH).unwrap_or_default();
    shared.metrics.leaf_expiry.set(i64::try_from(leaf.as_secs()).unwrap_or(i64::MAX));
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], shared.metrics.text())
}
