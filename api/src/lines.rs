//! Lines of a log, written by a thread of their own to wherever they are told to go, so that nobody who has something to
//! say ever waits for whoever reads it: what that thread cannot keep up with is dropped and counted. It opens nothing, and
//! holds no opinion on what it writes.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

pub mod sink;

/// Lines that may wait for the writer.
pub const WAITING: usize = 4096;
/// Lines that are written together are at most about so many bytes.
const BATCH: usize = 64 * 1024;
/// How long the first of them waits for others. Who sends one meanwhile wakes nobody, and neither the writer nor whoever reads
/// takes a processor from the requests for each line. Fewer than [`WAITING`] lines come in it.
const GATHER: Duration = Duration::from_millis(20);

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
        let body = move || write(out, &from, append, || std::thread::sleep(GATHER));
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
fn write<E>(
    mut out: impl Write,
    from: &Receiver<Entry<E>>,
    append: impl Fn(&mut Vec<u8>, &E),
    gather: impl Fn(),
) {
    let mut batch = Vec::with_capacity(BATCH / 8);
    while let Ok(first) = from.recv() {
        if matches!(first, Entry::Line(_)) {
            gather();
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// Each write, as a whole.
    #[derive(Default)]
    struct Writes(Vec<String>);

    impl Write for &mut Writes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.push(String::from_utf8_lossy(bytes).into_owned());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn append(batch: &mut Vec<u8>, line: &&str) {
        batch.extend_from_slice(line.as_bytes());
    }

    #[test]
    fn lines_that_come_soon_after_another_are_written_with_it() {
        let (to, from) = sync_channel(8);
        assert!(to.send(Entry::Line("first\n")).is_ok());
        let later = Cell::new(Some(to));
        let mut writes = Writes::default();
        write(&mut writes, &from, append, || {
            let to = later.take().expect("once");
            assert!(to.send(Entry::Line("second\n")).is_ok());
        });
        assert_eq!(writes.0, ["first\nsecond\n"]);
    }

    #[test]
    fn a_flush_waits_for_no_others() {
        let (to, from) = sync_channel(8);
        let (done, wait) = sync_channel(1);
        assert!(to.send(Entry::Flush(done)).is_ok() && to.send(Entry::Line("first\n")).is_ok());
        drop(to);
        let mut writes = Writes::default();
        write(&mut writes, &from, append, || panic!("it gathers"));
        assert_eq!(wait.try_recv(), Ok(()));
        assert_eq!(writes.0, ["first\n"]);
    }
}
