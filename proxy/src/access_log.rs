//! The access log: one line of JSON on stdout for each request and each opaque connection, when it has ended. Written by
//! a thread of its own, so that nobody on the data path ever waits for whoever reads the log; what that thread cannot
//! keep up with is dropped and counted. It holds no opinion on what it writes.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use weft_api::lines::Lines;

use crate::metrics::Metrics;
use crate::record::{RequestRecord, TcpRecord};

mod line;
#[cfg(test)]
mod tests;

/// Where records go. Cheap to clone. Off: they go nowhere.
#[derive(Clone)]
pub struct AccessLog(Option<Lines<Entry>>);

enum Entry {
    Request(SystemTime, Box<RequestRecord>),
    Tcp(SystemTime, Box<TcpRecord>),
}

impl AccessLog {
    /// Writes nothing.
    #[must_use]
    pub const fn off() -> Self {
        Self(None)
    }

    /// Writes to stdout.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn stdout(metrics: Arc<Metrics>) -> std::io::Result<Self> {
        Self::to(std::io::stdout(), metrics)
    }

    /// Writes to `out`, whole lines at a time.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn to(out: impl Write + Send + 'static, metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let append = |batch: &mut Vec<u8>, entry: &Entry| match entry {
            Entry::Request(at, record) => line::request(batch, *at, record),
            Entry::Tcp(at, record) => line::tcp(batch, *at, record),
        };
        Lines::to("access-log", out, append, Arc::new(move || metrics.log_dropped(1)))
            .map(|lines| Self(Some(lines)))
    }

    /// A request has ended now.
    pub fn request(&self, record: &RequestRecord) {
        if let Some(lines) = &self.0 {
            lines.send(Entry::Request(SystemTime::now(), Box::new(record.clone())));
        }
    }

    /// An opaque connection has ended now.
    pub fn tcp(&self, record: &TcpRecord) {
        if let Some(lines) = &self.0 {
            lines.send(Entry::Tcp(SystemTime::now(), Box::new(record.clone())));
        }
    }

    /// Waits, not longer than this, until all that was recorded before is written. Blocks: for the end of the process.
    pub fn flush(&self, patience: Duration) {
        if let Some(lines) = &self.0 {
            lines.flush(patience);
        }
    }
}
