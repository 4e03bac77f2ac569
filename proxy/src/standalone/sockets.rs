//! The listening sockets of a proxy by itself: bound, or taken over from the process before, and kept for the one after.
//! One for each worker and listener. It accepts on none of them.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use socket2::{Domain, Protocol, Socket, Type};

use crate::handover::{Label, Labelled};
use crate::listener::{self, Key, Listening};
use crate::original_dst::OriginalDst;

/// Kinds of sockets besides the listeners'.
pub(super) const ADMIN: &str = "admin";
pub(super) const METRICS: &str = "metrics";

/// Copies of all sockets, and where their connections go.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    listeners: BTreeMap<Key, Held>,
    others: Vec<Labelled>,
}

/// One listener.
#[derive(Debug)]
pub(super) struct Held {
    sockets: Vec<TcpListener>,
    destination: Arc<ArcSwapOption<SocketAddr>>,
}

impl Held {
    /// Takes those over that are there, and binds as many more as there are workers.
    pub(super) fn new(key: Key, workers: usize, taken: &mut Vec<Labelled>) -> io::Result<Self> {
        let mut sockets = take(taken, key.0.as_str(), key.1);
        if sockets.is_empty() {
            refuse_if_taken(key.1)?;
        }
        while sockets.len() < workers {
            sockets.push(listener::bind_to(key.1)?.into());
        }
        Ok(Self { sockets, destination: Arc::default() })
    }
}

impl Sockets {
    /// Holds a listener.
    pub(super) fn insert(&mut self, key: Key, held: Held) {
        self.listeners.insert(key, held);
    }

    /// Gives a listener up. Connections that wait for it are closed with its last copy.
    pub(super) fn remove(&mut self, key: &Key) {
        self.listeners.remove(key);
    }

    /// The listeners that there are.
    pub(super) fn keys(&self) -> Vec<Key> {
        self.listeners.keys().copied().collect()
    }

    /// Where a listener's connections go from now on.
    pub(super) fn aim(&self, key: &Key, destination: Option<SocketAddr>) {
        if let Some(held) = self.listeners.get(key) {
            held.destination.store(destination.map(Arc::new));
        }
    }

    /// Copies of a listener's sockets, for these workers in turn.
    pub(super) fn of(&self, key: &Key, workers: usize) -> io::Result<Vec<Vec<Listening>>> {
        let mut lists: Vec<Vec<Listening>> = (0..workers.max(1)).map(|_| Vec::new()).collect();
        let turns = lists.len();
        if let Some(held) = self.listeners.get(key) {
            for (n, socket) in held.sockets.iter().enumerate() {
                let original_dst = OriginalDst::Listener(Arc::clone(&held.destination));
                let socket = socket.try_clone()?;
                if let Some(list) = lists.get_mut(n % turns) {
                    list.push(Listening { key: *key, original_dst, socket });
                }
            }
        }
        Ok(lists)
    }

    /// A socket of another kind, to keep for a successor; returns a copy.
    pub(super) fn other(
        &mut self,
        kind: &str,
        address: SocketAddr,
        taken: &mut Vec<Labelled>,
    ) -> io::Result<TcpListener> {
        let socket = match take(taken, kind, address).pop() {
            Some(socket) => socket,
            None => {
                refuse_if_taken(address)?;
                listener::bind_to(address)?.into()
            }
        };
        let copy = socket.try_clone()?;
        self.others.push(Labelled { label: Label { kind: kind.to_owned(), address }, socket });
        Ok(copy)
    }

    /// Copies of everything, for a successor. What cannot be copied is left to it to bind.
    pub(super) fn copies(&self) -> Vec<Labelled> {
        let of_listeners = self.listeners.iter().flat_map(|((direction, address), held)| {
            let label = Label { kind: direction.as_str().to_owned(), address: *address };
            held.sockets.iter().map(move |socket| (label.clone(), socket))
        });
        let others = self.others.iter().map(|other| (other.label.clone(), &other.socket));
        of_listeners
            .chain(others)
            .filter_map(|(label, socket)| Some(Labelled { label, socket: socket.try_clone().ok()? }))
            .collect()
    }
}

fn take(taken: &mut Vec<Labelled>, kind: &str, address: SocketAddr) -> Vec<TcpListener> {
    let fits = |one: &Labelled| one.label.kind == kind && one.label.address == address;
    taken.extract_if(.., |one| fits(one)).map(|one| one.socket).collect()
}

/// Workers share an address, and so would two processes that were started by mistake.
fn refuse_if_taken(address: SocketAddr) -> io::Result<()> {
    let probe = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    probe.set_reuse_address(true)?;
    probe.bind(&address.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Direction;

    fn free() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    #[test]
    fn each_worker_has_a_socket_and_a_successor_gets_copies_of_all() {
        let key = (Direction::Outbound, free());
        let mut sockets = Sockets::default();
        sockets.insert(key, Held::new(key, 3, &mut Vec::new()).unwrap());
        let lists = sockets.of(&key, 3).unwrap();
        assert_eq!(lists.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1]);
        // Somebody else, by mistake.
        assert!(Held::new(key, 1, &mut Vec::new()).is_err());
        // The successor has fewer workers, and still everything.
        let mut taken = sockets.copies();
        let mut next = Sockets::default();
        next.insert(key, Held::new(key, 1, &mut taken).unwrap());
        assert!(taken.is_empty());
        assert_eq!(next.of(&key, 1).unwrap()[0].len(), 3);
        next.aim(&key, Some(key.1));
        sockets.remove(&key);
        assert!(sockets.keys().is_empty());
    }
}
