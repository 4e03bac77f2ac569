//! Lines of a log, written by a thread of their own to wherever they are told to go, so that nobody who has something to
//! say ever waits for whoever reads it: what that thread cannot keep up with is dropped and counted. It opens nothing, and
//! holds no opinion on what it writes.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

/// Lines that may wait for the writer.
pub const WAITING: usize = 4096;
/// Lines that are written together are at most about so many bytes.
const BATCH: usize = 64 * 1024;

/// Where lines go. Cheap to clone.
pub struct Lines<E> {
    to: SyncSender<Entry<E>>,
    dropped: Arc<dyn Fn() + Send + Sync>,
}

enum Entry<E> {
    Line(E),
    Flush(SyncSender<()>),
}

impl<E> Clone for Lines<E> {
    fn clone(&self) -> Self {
        Self { to: self.to.clone(), dropped: Arc::clone(&self.dropped) }
    }
}

impl<E: Send + 'static> Lines<E> {
    /// Writes to `out` in a thread of this name, whole lines at a time, as `append` puts them; `dropped` is called for each
    /// line that is not written.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn to(
        thread: &str,
        out: impl Write + Send + 'static,
        append: impl Fn(&mut Vec<u8>, &E) + Send + 'static,
        dropped: Arc<dyn Fn() + Send + Sync>,
    ) -> io::Result<Self> {
        let (to, from) = sync_channel(WAITING);
        let body = move || write(out, &from, append);
        std::thread::Builder::new().name(thread.into()).stack_size(512 << 10).spawn(body)?;
        Ok(Self { to, dropped })
    }

    /// Has it written, or drops it. Never waits.
    pub fn send(&self, line: E) {
        if self.to.try_send(Entry::Line(line)).is_err() {
            (self.dropped)();
        }
    }

    /// Waits, not longer than this, until all that was sent before is written. Blocks: for the end of the process.
    pub fn flush(&self, patience: Duration) {
        let (done, wait) = sync_channel(1);
        let until = Instant::now() + patience;
        let mut entry = Entry::Flush(done);
        while Instant::now() < until {
            match self.to.try_send(entry) {
                Ok(()) => {
                    let _ = wait.recv_timeout(until.saturating_duration_since(Instant::now()));
                    return;
                }
                Err(TrySendError::Full(back)) => entry = back,
                Err(TrySendError::Disconnected(_)) => return,
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The writer's thread; ends with the last sender, or when nobody can read any more.
fn write<E>(mut out: impl Write, from: &Receiver<Entry<E>>, append: impl Fn(&mut Vec<u8>, &E)) {
    let mut batch = Vec::with_capacity(BATCH / 8);
    while let Ok(first) = from.recv() {
        let mut flushed = Vec::new();
        let mut next = Some(first);
        while let Some(entry) = next.take() {
            match entry {
                Entry::Line(line) => append(&mut batch, &line),
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
