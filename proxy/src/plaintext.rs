//! Who calls the own pod in plaintext: by address and port, for whoever is about to switch Strict on and wants to know whom
//! that refuses. Bounded; who was seen longest ago makes room. It refuses nobody itself.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// Callers that are remembered.
pub const MOST: usize = 1024;

/// Those that were seen since the start.
#[derive(Debug)]
pub struct Callers {
    since: SystemTime,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    callers: HashMap<(IpAddr, u16), (u64, SystemTime)>,
    forgotten: u64,
}

/// One that connected to a port of the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The other end of its connections.
    pub address: IpAddr,
    /// Where the application listens.
    pub port: u16,
    /// Connections on which it was served.
    pub connections: u64,
    /// When the last of them was served first.
    pub last: SystemTime,
}

impl Default for Callers {
    fn default() -> Self {
        Self { since: SystemTime::now(), seen: Mutex::default() }
    }
}

impl Callers {
    /// A connection is served in plaintext, that Strict would refuse.
    pub fn note(&self, address: IpAddr, port: u16) {
        self.note_at(address, port, SystemTime::now());
    }

    fn note_at(&self, address: IpAddr, port: u16, now: SystemTime) {
        let key = (address.to_canonical(), port);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.callers.len() >= MOST && !seen.callers.contains_key(&key) {
            let oldest = seen.callers.iter().min_by_key(|(_, (_, last))| *last).map(|(key, _)| *key);
            if let Some(oldest) = oldest {
                seen.callers.remove(&oldest);
                seen.forgotten += 1;
            }
        }
        let (connections, last) = seen.callers.entry(key).or_insert((0, now));
        *connections += 1;
        *last = now;
    }

    /// All of them, in order; and how many had to make room.
    #[must_use]
    pub fn all(&self) -> (Vec<Caller>, u64) {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let all = seen.callers.iter();
        let mut all: Vec<Caller> = all
            .map(|((address, port), (connections, last))| Caller {
                address: *address,
                port: *port,
                connections: *connections,
                last: *last,
            })
            .collect();
        let forgotten = seen.forgotten;
        drop(seen);
        all.sort_by_key(|caller| (caller.address, caller.port));
        (all, forgotten)
    }

    /// Since when they are noted.
    #[must_use]
    pub const fn since(&self) -> SystemTime {
        self.since
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::time::Duration;

    #[test]
    fn callers_are_told_apart_by_address_and_port_and_counted() {
        let callers = Callers::default();
        let (a, mapped): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "::ffff:10.0.0.1".parse().unwrap());
        callers.note(a, 80);
        callers.note(mapped, 80);
        callers.note(a, 81);
        let (all, forgotten) = callers.all();
        let brief: Vec<_> = all.iter().map(|c| (c.address, c.port, c.connections)).collect();
        assert_eq!((brief, forgotten), (vec![(a, 80, 2), (a, 81, 1)], 0));
    }

    #[test]
    fn who_was_seen_longest_ago_makes_room() {
        let callers = Callers::default();
        let at = |n: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(n);
        let address = |n: usize| IpAddr::from(Ipv4Addr::from(u32::try_from(n).unwrap()));
        for n in 0..MOST {
            callers.note_at(address(n), 80, at(n as u64));
        }
        callers.note_at(address(0), 80, at(5000));
        callers.note_at(address(MOST), 80, at(5001));
        let (all, forgotten) = callers.all();
        assert_eq!((all.len(), forgotten), (MOST, 1));
        assert!(all.iter().any(|caller| caller.address == address(0)), "seen again, so kept");
        assert!(!all.iter().any(|caller| caller.address == address(1)), "the oldest is gone");
    }
}
