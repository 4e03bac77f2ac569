//! Where lines go in tests: memory that can be held shut. Here, and not with the tests, because those of every part need it. It
//! judges nothing.

use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// See the module. Clones are the same place.
#[derive(Clone, Debug, Default)]
pub struct Sink(Arc<(Mutex<Held>, Condvar)>);

#[derive(Debug, Default)]
struct Held {
    written: Vec<u8>,
    shut: bool,
}

impl Sink {
    /// From now on whoever writes waits, or no longer.
    pub fn shut(&self, shut: bool) {
        self.held().shut = shut;
        self.0.1.notify_all();
    }

    /// All that was written.
    ///
    /// # Errors
    /// It is no text.
    pub fn text(&self) -> io::Result<String> {
        String::from_utf8(self.held().written.clone()).map_err(|e| io::Error::new(ErrorKind::InvalidData, e))
    }

    /// The same, each line as JSON.
    ///
    /// # Errors
    /// A line is none.
    pub fn lines(&self) -> io::Result<Vec<serde_json::Value>> {
        self.text()?.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let held = self.0.1.wait_while(self.held(), |held| held.shut);
        held.unwrap_or_else(PoisonError::into_inner).written.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
