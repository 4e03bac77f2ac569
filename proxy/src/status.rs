//! How the control side of the proxy is doing: what `/ready` answers from and what the metrics of identity and
//! configuration are. Written by `identity`, `control` and the start; read by `admin`. It decides nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde::Serialize;

use crate::interception::Interception;
use crate::metrics::Metrics;

/// The state of the control side.
pub struct Status {
    /// Set by whoever bound the data path's listeners.
    pub listening: AtomicBool,
    /// Set when the stop signal came: unready from then on.
    pub draining: AtomicBool,
    /// Whether the pod's traffic comes here.
    pub interception: Arc<Interception>,
    connected: AtomicBool,
    version: AtomicU64,
    identity_error: Mutex<Option<String>>,
    control_error: Mutex<Option<String>>,
    metrics: Arc<Metrics>,
}

/// One thing that is missing for readiness.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Missing {
    /// Which part: `certificate`, `config`, `listeners`, `interception` or `draining`.
    pub part: &'static str,
    /// Why, as far as is known.
    pub detail: String,
}

impl Status {
    /// Nothing is up yet.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            listening: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            interception: Arc::default(),
            connected: AtomicBool::new(false),
            version: AtomicU64::new(0),
            identity_error: Mutex::default(),
            control_error: Mutex::default(),
            metrics,
        }
    }

    /// It has to be redirected to, as can be found out by this port.
    #[must_use]
    pub fn redirected(self, port: u16) -> Self {
        Self { interception: Arc::new(Interception::new(port)), ..self }
    }

    /// A certificate was signed, or why not.
    pub fn signed(&self, outcome: Result<SystemTime, String>) {
        match &outcome {
            Ok(not_after) => self.metrics.certificate_expiry(*not_after),
            Err(_) => self.metrics.certificate_failed(),
        }
        set(&self.identity_error, outcome.err());
    }

    /// The stream to the operator is up, or why not.
    pub fn connection(&self, outcome: Result<(), String>) {
        if outcome.is_err() {
            self.metrics.operator_failed();
        }
        self.set_connected(outcome.is_ok());
        set(&self.control_error, outcome.err());
    }

    /// The stream that was up has ended.
    pub fn disconnected(&self, why: String) {
        self.set_connected(false);
        set(&self.control_error, Some(why));
    }

    fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Relaxed);
        self.metrics.operator_connected(connected);
    }

    /// An update was taken.
    pub fn updated(&self, version: u64, rejections: usize, addresses: usize, services: usize) {
        self.version.store(version, Ordering::Relaxed);
        self.metrics.config_applied(version, rejections);
        self.held(addresses, services);
    }

    /// The configuration file was taken, or why not.
    pub fn reloaded(&self, outcome: Result<(), String>) {
        if outcome.is_err() {
            self.metrics.config_file_refused();
        }
        set(&self.control_error, outcome.err());
    }

    /// How much is held.
    pub fn held(&self, addresses: usize, services: usize) {
        self.metrics.config_held(addresses, services);
    }

    /// Whether the stream to the operator is up.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// The version of the last update.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    /// Why there is no new certificate, if the last attempt failed.
    #[must_use]
    pub fn identity_error(&self) -> Option<String> {
        self.identity_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why there is no stream, if the last attempt failed.
    #[must_use]
    pub fn control_error(&self) -> Option<String> {
        self.control_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What stands between this proxy and readiness. The operator being gone does not: the last good config serves.
    #[must_use]
    pub fn missing(&self, certificate: bool, workload: bool) -> Vec<Missing> {
        let mut missing = Vec::new();
        if self.draining.load(Ordering::Relaxed) {
            missing.push(Missing { part: "draining", detail: "the pod is shutting down".to_owned() });
        }
        if !certificate {
            let detail =
                self.identity_error().unwrap_or_else(|| "waiting for the first certificate".to_owned());
            missing.push(Missing { part: "certificate", detail });
        }
        if !workload {
            let detail =
                self.control_error().unwrap_or_else(|| "waiting for the operator's first update".to_owned());
            missing.push(Missing { part: "config", detail });
        }
        if !self.listening.load(Ordering::Relaxed) {
            missing.push(Missing { part: "listeners", detail: "the listeners are not up yet".to_owned() });
        }
        if let Some(detail) = self.interception.missing() {
            missing.push(Missing { part: "interception", detail });
        }
        missing
    }
}

fn set(slot: &Mutex<Option<String>>, value: Option<String>) {
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_names_everything_that_is_missing_and_why() {
        let status = Status::new(Arc::new(Metrics::new()));
        status.signed(Err("the operator refused the token".to_owned()));
        let parts: Vec<_> = status.missing(false, false).into_iter().map(|m| (m.part, m.detail)).collect();
        assert_eq!(parts[0], ("certificate", "the operator refused the token".to_owned()));
        assert_eq!(parts.iter().map(|p| p.0).collect::<Vec<_>>(), ["certificate", "config", "listeners"]);
        status.listening.store(true, Ordering::Relaxed);
        assert!(status.missing(true, true).is_empty());
        let redirected = Status::new(Arc::new(Metrics::new())).redirected(15029);
        assert_eq!(redirected.missing(true, true).pop().unwrap().part, "interception");
        // A failed renewal or a lost operator does not make it unready.
        status.disconnected("gone".to_owned());
        assert!(status.missing(true, true).is_empty());
        status.draining.store(true, Ordering::Relaxed);
        assert_eq!(status.missing(true, true)[0].part, "draining");
    }
}
