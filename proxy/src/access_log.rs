//! The access log: one line of JSON on stdout for each request and each opaque connection, when it has ended. Written by
//! a thread of its own, so that nobody on the data path ever waits for whoever reads the log; what that thread cannot
//! keep up with is dropped and counted. It holds no opinion on what it writes.

use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, SystemTime};

use crate::metrics::Metrics;
use crate::record::{RequestRecord, TcpRecord};

mod line;
#[cfg(test)]
mod tests;

/// Lines that may wait for the writer.
const WAITING: usize = 4096;
/// Lines that are written together are at most about so many bytes.
const BATCH: usize = 64 * 1024;

/// Where records go. Cheap to clone. Off: they go nowhere.
#[derive(Clone)]
pub struct AccessLog(Option<Writer>);

#[derive(Clone)]
struct Writer {
    to: SyncSender<Entry>,
    metrics: Arc<Metrics>,
}

enum Entry {
    Request(SystemTime, Box<RequestRecord>),
    Tcp(SystemTime, Box<TcpRecord>),
    Flush(SyncSender<()>),
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
        let (to, from) = sync_channel(WAITING);
        std::thread::Builder::new().name("access-log".into()).spawn(move || write(out, &from))?;
        Ok(Self(Some(Writer { to, metrics })))
    }

    /// A request has ended now.
    pub fn request(&self, record: &RequestRecord) {
        if let Some(writer) = &self.0 {
            writer.send(Entry::Request(SystemTime::now(), Box::new(record.clone())));
        }
    }

    /// An opaque connection has ended now.
    pub fn tcp(&self, record: &TcpRecord) {
        if let Some(writer) = &self.0 {
            writer.send(Entry::Tcp(SystemTime::now(), Box::new(record.clone())));
        }
    }

    /// Waits, not longer than this, until all that was recorded before is written. Blocks: for the end of the process.
    pub fn flush(&self, patience: Duration) {
        let Some(Writer { to, .. }) = &self.0 else { return };
        let (done, wait) = sync_channel(1);
        let until = std::time::Instant::now() + patience;
        let mut entry = Entry::Flush(done);
        while std::time::Instant::now() < until {
            match to.try_send(entry) {
                Ok(()) => {
                    let _ = wait.recv_timeout(until.saturating_duration_since(std::time::Instant::now()));
                    return;
                }
                Err(TrySendError::Full(back)) => entry = back,
                Err(TrySendError::Disconnected(_)) => return,
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Writer {
    fn send(&self, entry: Entry) {
        if self.to.try_send(entry).is_err() {
            self.metrics.log_dropped(1);
        }
    }
}

/// The writer's thread; ends with the last sender, or when nobody can read any more.
fn write(mut out: impl Write, from: &Receiver<Entry>) {
    let mut batch = Vec::with_capacity(BATCH / 8);
    while let Ok(first) = from.recv() {
        let mut flushed = Vec::new();
        let mut next = Some(first);
        while let Some(entry) = next.take() {
            match entry {
                Entry::Request(at, record) => line::request(&mut batch, at, &record),
                Entry::Tcp(at, record) => line::tcp(&mut batch, at, &record),
                Entry::Flush(done) => flushed.push(done),
            }
            if batch.len() < BATCH {
                next = from.try_recv().ok();
            }
        }
        if out.write_all(&batch).and_then(|()| out.flush()).is_err() {
            return;
        }
        batch.clear();
        for done in flushed {
            let _ = done.try_send(());
        }
    }
}
