//! Moves bytes from one TCP socket to another within the kernel, through a pipe: what arrives is not copied into this
//! process and back (splice(2)). For plain connections with much to carry; it looks at nothing and decides nothing.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// What a pipe holds: one slot for each piece of 4 KiB, or for each packet that is smaller. The default of 64 KiB would
/// be little more than a window's worth of small packets.
const PIPE: usize = 256 * 1024;
/// Bytes moved at once, at most. A pipe's slot may hold more than a page.
const AT_ONCE: usize = 1 << 20;
/// Empty pipes that a thread keeps.
const SPARE: usize = 8;
/// Pipes of a thread at the same time: each takes two of the process's files. Beyond, bytes are copied.
const MOST: usize = 64;

thread_local! {
    static TUBES: RefCell<Vec<Ends>> = const { RefCell::new(Vec::new()) };
    static TAKEN: Cell<usize> = const { Cell::new(0) };
}

struct Ends {
    out: OwnedFd,
    into: OwnedFd,
}

/// A pipe, and how much is in it.
pub(super) struct Tube {
    ends: Option<Ends>,
    held: usize,
}

impl Tube {
    /// An empty one. `None`: there are enough of them, or no more files.
    pub(super) fn take() -> Option<Self> {
        if TAKEN.get() >= MOST {
            return None;
        }
        let ends = match TUBES.with_borrow_mut(Vec::pop) {
            Some(ends) => ends,
            None => {
                let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
                // A user's pipes have a limit together (pipe(7)); a small one works too.
                let _ = fcntl_setpipe_size(&into, PIPE);
                Ends { out, into }
            }
        };
        TAKEN.set(TAKEN.get() + 1);
        Some(Self { ends: Some(ends), held: 0 })
    }

    /// Bytes in it.
    pub(super) const fn held(&self) -> usize {
        self.held
    }

    /// Fills the empty pipe with what has arrived. 0: the peer's side has ended.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, from: &TcpStream) -> Poll<io::Result<usize>> {
        let Some(Ends { into, .. }) = &self.ends else { return Poll::Ready(Ok(0)) };
        loop {
            ready!(from.poll_read_ready(cx))?;
            match from.try_io(Interest::READABLE, || moved(from.as_fd(), into.as_fd())) {
                Ok(n) => {
                    self.held += n;
                    return Poll::Ready(Ok(n));
                }
                Err(e) if is_passing(&e) => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    /// Passes on what is in it, as far as there is room.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<usize>> {
        let Some(Ends { out, .. }) = &self.ends else { return Poll::Ready(Ok(0)) };
        loop {
            ready!(to.poll_write_ready(cx))?;
            match to.try_io(Interest::WRITABLE, || moved(out.as_fd(), to.as_fd())) {
                Ok(n) => {
                    self.held = self.held.saturating_sub(n);
                    return Poll::Ready(Ok(n));
                }
                Err(e) if is_passing(&e) => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

impl Drop for Tube {
    fn drop(&mut self) {
        TAKEN.set(TAKEN.get().saturating_sub(1));
        // What is still in it belongs to nobody else.
        if self.held == 0
            && let Some(ends) = self.ends.take()
        {
            let _ = TUBES.try_with(|tubes| {
                let mut tubes = tubes.borrow_mut();
                if tubes.len() < SPARE {
                    tubes.push(ends);
                }
            });
        }
    }
}

fn moved(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<usize> {
    Ok(splice(from, None, to, None, AT_ONCE, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)?)
}

fn is_passing(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
