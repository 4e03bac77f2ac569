//! `/ready`, `/live` and `/metrics` over plain HTTP on their own port, for the kubelet and Prometheus. It serves nothing else.

use crate::metrics::Metrics;
use crate::serving::Certificate;
use crate::stores::Stores;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What readiness depends on.
#[derive(Clone)]
pub struct Health {
    /// The serving certificate.
    pub certificate: Arc<Certificate>,
    /// The caches.
    pub stores: Stores,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Set when the process is going.
    pub going: CancellationToken,
}

impl Health {
    /// Nothing when ready, otherwise what is still missing.
    #[must_use]
    pub fn missing(&self) -> Option<&'static str> {
        if self.going.is_cancelled() {
            Some("shutting down")
        } else if !self.certificate.is_valid() {
            Some("no serving certificate from the operator yet")
        } else if !self.stores.synced() {
            Some("the caches are not filled yet")
        } else {
            None
        }
    }
}

/// The routes.
pub fn router(health: Health) -> Router {
    Router::new()
        .route("/ready", get(ready))
        .route("/live", get(async || "live\n"))
        .route("/metrics", get(metrics))
        .with_state(health)
}

async fn ready(State(health): State<Health>) -> (StatusCode, String) {
    match health.missing() {
        None => (StatusCode::OK, "ready\n".into()),
        Some(what) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {what}\n")),
    }
}

async fn metrics(State(health): State<Health>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], health.metrics.text())
}
