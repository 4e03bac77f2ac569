//! Distributed tracing: which trace a request belongs to, whether it is told of, and the span of it that goes to a collector
//! when it has ended. Decided once, at the request's head; of a request that is not told of only its trace's id is kept.
//! It never waits for the collector, and never changes a request but for the headers that name the trace.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue};
use rand::RngCore;
use weft_api::tracing::Sampling;

use crate::record::RequestRecord;
use crate::retry::Failed;

mod b3;
pub mod context;
pub mod export;
mod head;
mod otlp;
mod span;

pub use context::{SpanId, TraceId};
pub use export::{Collector, Resource};
pub use head::Begun;

use export::Queue;

/// Retries of one request that its span tells of.
const MAX_RETRIES: usize = 32;

/// Where spans go. Off: nowhere, and no request is looked at.
pub struct Traces(Option<On>);

struct On {
    sampling: Sampling,
    queue: Queue,
}

/// A request that is told of, until it ends.
#[derive(Clone, Debug)]
pub struct Open {
    pub(crate) trace: TraceId,
    pub(crate) span: SpanId,
    pub(crate) parent: Option<SpanId>,
    pub(crate) flags: u8,
    pub(crate) state: Option<HeaderValue>,
    pub(crate) started: SystemTime,
    pub(crate) retries: Vec<Retry>,
}

/// A try that failed, and was followed by another one.
#[derive(Clone, Debug)]
pub(crate) struct Retry {
    /// Since the request's head.
    pub(crate) after: Duration,
    pub(crate) failed: Failed,
    /// Where it was tried.
    pub(crate) endpoint: Option<SocketAddr>,
}

/// A request that has ended.
pub(crate) struct Ended {
    pub(crate) open: Open,
    pub(crate) record: RequestRecord,
}

impl Traces {
    /// Tells nobody anything.
    #[must_use]
    pub const fn off() -> Self {
        Self(None)
    }

    /// Tells a collector of as many new traces as `sampling` says, and of those that callers tell of.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn to(collector: Collector, sampling: Sampling) -> std::io::Result<Self> {
        Ok(Self(Some(On { sampling, queue: export::start(collector)? })))
    }

    /// With the head of a request. `None`: tracing is off.
    pub(crate) fn begin(&self, headers: &mut HeaderMap, rng: impl FnOnce() -> [u64; 3]) -> Option<Begun> {
        let on = self.0.as_ref()?;
        Some(head::begin(headers, on.sampling, rng))
    }

    /// It has ended.
    pub(crate) fn end(&self, open: Open, record: &RequestRecord) {
        if let Some(on) = &self.0 {
            // What only policies and tokens know of is no part of a span.
            let record = RequestRecord { authorization: None, token: None, ..record.clone() };
            on.queue.send(Box::new(Ended { open, record }));
        }
    }

    /// Waits, not longer than this, until what has ended before is told. Blocks: for the end of the process.
    pub fn flush(&self, patience: Duration) {
        if let Some(on) = &self.0 {
            on.queue.flush(patience);
        }
    }
}

impl Open {
    /// A try has failed, and there will be another one.
    pub(crate) fn retry(&mut self, after: Duration, failed: Failed, endpoint: Option<SocketAddr>) {
        if self.retries.len() < MAX_RETRIES {
            self.retries.push(Retry { after, failed, endpoint });
        }
    }
}

/// For new ids.
pub(crate) fn random(rng: &mut impl RngCore) -> [u64; 3] {
    [rng.next_u64(), rng.next_u64(), rng.next_u64()]
}

/// Starts telling a collector, if there is one.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(
    settings: Option<&crate::settings::Tracing>,
    resource: Resource,
    metrics: Arc<crate::metrics::Metrics>,
) -> std::io::Result<Traces> {
    let Some(settings) = settings else { return Ok(Traces::off()) };
    tracing::info!(endpoint = %settings.endpoint, "telling a collector of traces");
    let endpoint = settings.endpoint.clone();
    Traces::to(Collector { endpoint, resource, metrics, pace: export::Pace::default() }, settings.sampling)
}
