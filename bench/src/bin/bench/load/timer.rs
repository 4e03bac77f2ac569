//! Waiting for a moment within some microseconds. Tokio's own timers count in milliseconds, which is longer than what is
//! measured; timerfd_create(2) is not.

use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::time::Instant;

use anyhow::Result;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One at a time.
pub struct Timer {
    fd: AsyncFd<Fd>,
}

impl Timer {
    /// A new one.
    pub fn new() -> Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = Fd(TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?);
        // SAFETY: the descriptor is the timer's own and open until the timer is dropped, together with its registration.
        let fd = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) };
        Ok(Self { fd: fd.map_err(std::io::Error::from)? })
    }

    /// Returns at once when the moment is over.
    pub async fn until(&mut self, moment: Instant) -> Result<()> {
        let left = moment.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            // Setting it anew also takes back what it counted before, so that it need not be read.
            let expiration = Expiration::OneShot(TimeSpec::from_duration(left));
            self.fd.get_ref().0.set(expiration, TimerSetTimeFlags::empty())?;
            self.fd.readable().await?.clear_ready();
        }
        Ok(())
    }
}

struct Fd(TimerFd);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}
