//! The one place where the data path reads configuration from and the control task publishes it to. An address that
//! is not in the snapshot is asked for, once for all who wait, for a bounded time. It never talks to the operator
//! itself: `control` takes what is asked here and publishes the answers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use weft_api::Reason;

use crate::snapshot::{Snapshot, Target};

#[cfg(test)]
mod tests;

/// How long a connection waits for the operator to say what its destination is.
const PATIENCE: Duration = Duration::from_secs(2);
/// After a wait in vain, whoever comes next for the same address does not wait: a request after its connection, or
/// each of many connections while the operator is away. The answer is taken whenever it comes.
const NO_MORE_PATIENCE: Duration = Duration::from_secs(1);
/// Addresses held at most, as many as the operator takes on one stream; beyond, those unused for longest go.
const MAX_ADDRESSES: usize = 10_000;
/// How many go at once, so that finding them costs little for each.
const EVICTED_AT_ONCE: usize = MAX_ADDRESSES / 50;
/// Connections that wait for an answer at most.
const MAX_WAITING: usize = 4_096;
/// An address without a connection for this long is given back to the operator.
const IDLE: Duration = Duration::from_secs(600);

/// The current snapshot, who waits for what, and which addresses are in use.
pub struct SnapshotStore {
    current: ArcSwap<Snapshot>,
    changed: watch::Sender<u64>,
    uses: Mutex<Uses>,
    asked: Notify,
    keys_missed: Notify,
    waiting: AtomicUsize,
}

#[derive(Default)]
struct Uses {
    by_address: HashMap<SocketAddr, Use>,
    // Since the control task last looked; both within MAX_ADDRESSES plus what one burst evicts.
    asked: Vec<SocketAddr>,
    dropped: Vec<SocketAddr>,
}

struct Use {
    open: u32,
    last: Instant,
    // When somebody waited for an answer in vain.
    in_vain: Option<Instant>,
}

/// What the operator has to be told: addresses newly wanted, and those no longer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Newly wanted.
    pub add: Vec<SocketAddr>,
    /// No longer wanted.
    pub drop: Vec<SocketAddr>,
}

impl Default for SnapshotStore {
    fn default() -> Self {
        Self::new()
    }
}

impl SnapshotStore {
    /// With an empty snapshot.
    #[must_use]
    pub fn new() -> Self {
        Self {
            current: ArcSwap::from_pointee(Snapshot::default()),
            changed: watch::Sender::new(0),
            uses: Mutex::default(),
            asked: Notify::new(),
            keys_missed: Notify::new(),
            waiting: AtomicUsize::new(0),
        }
    }

    /// One consistent view. A request loads once and keeps it.
    #[must_use]
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Puts a new snapshot in force. Only one task may do so: it starts from [`SnapshotStore::load`].
    pub fn publish(&self, snapshot: Snapshot) {
        self.current.store(Arc::new(snapshot));
        self.changed.send_modify(|n| *n += 1);
    }

    /// Counts published snapshots.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// What an original destination is. One that was never called before is asked from the operator.
    pub async fn resolve(&self, address: SocketAddr) -> Result<Target, Reason> {
        let address = canonical(address);
        let held = self.touch(address, 0);
        if let Some(target) = self.current.load().addresses.get(&address) {
            return Ok(target.clone());
        }
        if !held {
            return Err(Reason::Overloaded);
        }
        if self.was_in_vain(address) {
            return Err(Reason::ConfigUnavailable);
        }
        let _place = self.place()?;
        // Subscribed before the look, so that no snapshot is missed in between.
        let mut changed = self.changed.subscribe();
        let answer = async {
            loop {
                changed.borrow_and_update();
                if let Some(target) = self.current.load().addresses.get(&address) {
                    return Some(target.clone());
                }
                changed.changed().await.ok()?;
            }
        };
        if let Ok(Some(target)) = timeout(PATIENCE, answer).await {
            return Ok(target);
        }
        if let Some(found) = self.uses().by_address.get_mut(&address) {
            found.in_vain = Some(Instant::now());
        }
        Err(Reason::ConfigUnavailable)
    }

    fn was_in_vain(&self, address: SocketAddr) -> bool {
        let last = self.uses().by_address.get(&address).and_then(|found| found.in_vain);
        last.is_some_and(|last| last.elapsed() < NO_MORE_PATIENCE)
    }

    /// Keeps an address from being dropped as idle, for as long as a connection to it is open.
    #[must_use]
    pub fn lease(self: &Arc<Self>, address: SocketAddr) -> Lease {
        let address = canonical(address);
        let held = self.touch(address, 1);
        Lease { store: Arc::clone(self), address, held }
    }

    fn place(&self) -> Result<Place<'_>, Reason> {
        let place = Place(&self.waiting);
        if self.waiting.fetch_add(1, Ordering::Relaxed) < MAX_WAITING {
            Ok(place)
        } else {
            Err(Reason::ConfigUnavailable)
        }
    }

    // Whether it is held now: not when the table is full of addresses with open connections.
    fn touch(&self, address: SocketAddr, opened: u32) -> bool {
        let mut uses = self.uses();
        let now = Instant::now();
        if let Some(found) = uses.by_address.get_mut(&address) {
            found.last = now;
            found.open += opened;
            return true;
        }
        if uses.by_address.len() >= MAX_ADDRESSES && !uses.evict() {
            return false;
        }
        uses.by_address.insert(address, Use { open: opened, last: now, in_vain: None });
        uses.asked.push(address);
        drop(uses);
        self.asked.notify_one();
        true
    }

    /// For the control task: waits until the operator has to be told something. Cancel safe.
    pub async fn changes(&self) -> Changes {
        loop {
            let changes = self.take_changes();
            if changes != Changes::default() {
                return changes;
            }
            self.asked.notified().await;
        }
    }

    /// For the control task while it has no stream: waits until something is asked, and leaves it to be taken.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }

    /// A token came whose key its issuer does not have, as far as is known.
    pub fn miss_keys(&self) {
        self.keys_missed.notify_one();
    }

    /// For the control task: waits for such tokens. Cancel safe.
    pub async fn keys_missed(&self) {
        self.keys_missed.notified().await;
    }

    /// Whether an address is wanted.
    #[must_use]
    pub fn holds(&self, address: SocketAddr) -> bool {
        self.uses().by_address.contains_key(&canonical(address))
    }

    fn take_changes(&self) -> Changes {
        let mut uses = self.uses();
        let (mut add, mut drop) = (std::mem::take(&mut uses.asked), std::mem::take(&mut uses.dropped));
        add.retain(|address| uses.by_address.contains_key(address));
        drop.retain(|address| !uses.by_address.contains_key(address));
        Changes { add, drop }
    }

    /// For the control task: everything held, to subscribe to after a reconnect. Nothing else is left to be told.
    #[must_use]
    pub fn held(&self) -> Vec<SocketAddr> {
        let mut uses = self.uses();
        uses.asked.clear();
        uses.dropped.clear();
        uses.by_address.keys().copied().collect()
    }

    /// For the control task: gives up what was not used for ten minutes; [`SnapshotStore::changes`] tells.
    pub fn expire(&self) {
        let mut uses = self.uses();
        let now = Instant::now();
        let Uses { by_address, dropped, .. } = &mut *uses;
        let before = dropped.len();
        by_address.retain(|address, entry| {
            let keep = entry.open > 0 || now.duration_since(entry.last) < IDLE;
            if !keep {
                dropped.push(*address);
            }
            keep
        });
        if dropped.len() > before {
            drop(uses);
            self.asked.notify_one();
        }
    }

    fn uses(&self) -> MutexGuard<'_, Uses> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Uses {
    // The table is full: those without a connection and unused for longest go. Whether there were any.
    fn evict(&mut self) -> bool {
        let mut idle: Vec<(Instant, SocketAddr)> = self
            .by_address
            .iter()
            .filter(|(_, entry)| entry.open == 0)
            .map(|(at, entry)| (entry.last, *at))
            .collect();
        let count = EVICTED_AT_ONCE.min(idle.len());
        if count < idle.len() {
            idle.select_nth_unstable(count);
        }
        for (_, address) in idle.drain(..count) {
            self.by_address.remove(&address);
            self.dropped.push(address);
        }
        count > 0
    }
}

/// See [`SnapshotStore::lease`].
pub struct Lease {
    store: Arc<SnapshotStore>,
    address: SocketAddr,
    held: bool,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.held {
            return;
        }
        if let Some(found) = self.store.uses().by_address.get_mut(&self.address) {
            found.open = found.open.saturating_sub(1);
            found.last = Instant::now();
        }
    }
}

struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
