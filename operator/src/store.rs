//! The index behind a lock, the compiled services that many streams share, and who wants to hear of what.
//! Changes reach a stream only for what it subscribed to. No I/O; the lock is never held across an await.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use crate::checks::{Checks, Table};
use crate::compile::{self, Encoded};
use crate::index::{Change, Dirty, Entry, Index, Key, ServiceId};
use crate::metrics::Metrics;
use tokio::sync::{Notify, watch};

/// Services whose compiled form is kept; beyond that all are dropped and made again as needed.
const MAX_COMPILED: usize = 20_000;

/// Something that a stream depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// A Service.
    Service(Key),
    /// A pod.
    Pod(Key),
    /// What an address is.
    Ip(IpAddr),
    /// Which external services a namespace registers; empty: those of the mesh's own, for everybody.
    External(String),
    /// Which other trust domains there are.
    Federation,
}

/// Where topics that may have changed wait until their stream looks at them. Bounded by what it subscribed to.
#[derive(Debug, Default)]
pub struct Mailbox {
    waiting: Mutex<Waiting>,
    notify: Notify,
}

/// What waits in a mailbox.
#[derive(Debug, Default)]
pub struct Waiting {
    /// The topics.
    pub topics: HashSet<Topic>,
    /// When the first of them came.
    pub since: Option<Instant>,
}

impl Mailbox {
    /// Waits until something is in.
    pub async fn filled(&self) {
        loop {
            let notified = self.notify.notified();
            if !lock(&self.waiting).topics.is_empty() {
                return;
            }
            notified.await;
        }
    }

    /// Takes all out.
    #[must_use]
    pub fn take(&self) -> Waiting {
        std::mem::take(&mut lock(&self.waiting))
    }

    /// Puts topics in.
    pub fn put(&self, topics: impl IntoIterator<Item = Topic>) {
        let mut waiting = lock(&self.waiting);
        waiting.since.get_or_insert_with(Instant::now);
        waiting.topics.extend(topics);
        drop(waiting);
        self.notify.notify_one();
    }
}

/// A poisoned lock is taken all the same: whoever panicked left a consistent map behind, as every change is one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Compiled {
    /// Version of the Service in the index. Pods have none: theirs is dropped when they change.
    version: u64,
    /// Of what is known of active checks; `None`: it has none.
    checks: Option<u64>,
    service: Arc<Encoded>,
}

/// The index and those who follow it.
pub struct Store {
    index: RwLock<Index>,
    /// By the Service or pod, then by port.
    compiled: Mutex<HashMap<Topic, HashMap<u16, Compiled>>>,
    interests: Mutex<HashMap<Topic, HashMap<u64, Arc<Mailbox>>>>,
    next_session: AtomicU64,
    changed: watch::Sender<u64>,
    checks: Checks,
    metrics: Arc<Metrics>,
}

impl Store {
    /// Around an empty index.
    #[must_use]
    pub fn new(index: Index, metrics: Arc<Metrics>) -> Self {
        Self {
            index: RwLock::new(index),
            compiled: Mutex::default(),
            interests: Mutex::default(),
            next_session: AtomicU64::new(1),
            changed: watch::Sender::new(0),
            checks: Checks::default(),
            metrics,
        }
    }

    /// Applies one change and tells those whom it may concern.
    pub fn apply<E: Entry>(&self, change: Change<E>) {
        let (dirty, version) = {
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            let mut dirty = index.apply(change);
            if dirty.external.contains(&index.own_namespace) {
                dirty.external.insert(String::new());
            }
            (dirty, index.version())
        };
        if dirty.is_empty() {
            return;
        }
        self.forget(&dirty);
        let leader = dirty.leader;
        self.tell(dirty);
        if leader {
            self.changed.send_replace(version);
        }
    }

    /// Takes what active checks found now, and tells those whom it concerns: callers of the Services, and of those that split
    /// requests to them.
    pub fn checked(&self, table: Table) {
        let mut dirty = Dirty::default();
        dirty.services.extend(self.checks.set(table));
        if dirty.services.is_empty() {
            return;
        }
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let splitters = |key: &Key| -> Vec<Key> {
            let space = index.space(&key.namespace);
            let names = space.and_then(|space| space.settled.splitters.get(&key.name)).into_iter().flatten();
            names.map(|name| Key::new(&key.namespace, name)).collect()
        };
        let more: Vec<Key> = dirty.services.iter().flat_map(splitters).collect();
        drop(index);
        dirty.services.extend(more);
        self.forget(&dirty);
        self.tell(dirty);
    }

    fn forget(&self, dirty: &Dirty) {
        let mut compiled = lock(&self.compiled);
        if compiled.len() > MAX_COMPILED {
            compiled.clear();
        }
        for service in &dirty.services {
            compiled.remove(&Topic::Service(service.clone()));
        }
        for pod in &dirty.pods {
            compiled.remove(&Topic::Pod(pod.clone()));
        }
    }

    fn tell(&self, dirty: Dirty) {
        let services = dirty.services.into_iter().map(Topic::Service);
        let pods = dirty.pods.into_iter().map(Topic::Pod);
        let ips = dirty.ips.into_iter().map(Topic::Ip);
        let external = dirty.external.into_iter().map(Topic::External);
        let federation = dirty.federation.then_some(Topic::Federation);
        let interests = lock(&self.interests);
        for topic in services.chain(pods).chain(ips).chain(external).chain(federation) {
            for mailbox in interests.get(&topic).iter().flat_map(|m| m.values()) {
                mailbox.put([topic.clone()]);
            }
        }
    }

    /// Follows the version of the index, as far as it concerns the leader: not when only endpoints or pods change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// A consistent view of the index.
    pub fn view<T>(&self, look: impl FnOnce(&View<'_>) -> T) -> T {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        look(&View { index: &index, store: self })
    }

    /// How many services have been compiled.
    #[cfg(test)]
    pub fn compiled(&self) -> u64 {
        self.metrics.compiled.get()
    }

    /// A number for a new stream.
    #[must_use]
    pub fn session(&self) -> u64 {
        self.next_session.fetch_add(1, Ordering::Relaxed)
    }

    /// The session wants to hear of these.
    pub fn join(&self, session: u64, mailbox: &Arc<Mailbox>, topics: &[Topic]) {
        let mut interests = lock(&self.interests);
        for topic in topics {
            interests.entry(topic.clone()).or_default().insert(session, Arc::clone(mailbox));
        }
    }

    /// The session no longer wants to hear of these.
    pub fn leave<'a>(&self, session: u64, topics: impl IntoIterator<Item = &'a Topic>) {
        let mut interests = lock(&self.interests);
        for topic in topics {
            if let Some(sessions) = interests.get_mut(topic) {
                sessions.remove(&session);
                if sessions.is_empty() {
                    interests.remove(topic);
                }
            }
        }
    }
}

/// The index as it is at one moment.
pub struct View<'a> {
    /// The index.
    pub index: &'a Index,
    store: &'a Store,
}

impl View<'_> {
    /// A compiled service; shared by all streams that ask for it while nothing changes.
    #[must_use]
    pub fn service(&self, id: &ServiceId) -> Option<Arc<Encoded>> {
        let (topic, version) = match id {
            ServiceId::Service(key, _) => (Topic::Service(key.clone()), self.index.service_version(key)),
            ServiceId::Pod(key, _) => (Topic::Pod(key.clone()), 0),
        };
        let known = |port: &Compiled| {
            let current = port.version == version && self.store.checks.is_current(port.checks);
            current.then(|| Arc::clone(&port.service))
        };
        if let Some(service) =
            lock(&self.store.compiled).get(&topic).and_then(|ports| ports.get(&id.port())).and_then(known)
        {
            return Some(service);
        }
        let start = Instant::now();
        let mut service = compile::service(self.index, id)?;
        let checks = self.store.checks.add(&mut service);
        let service = Arc::new(Encoded::from(service));
        self.store.metrics.compile_seconds.observe(start.elapsed().as_secs_f64());
        self.store.metrics.compiled.inc();
        let compiled = Compiled { version, checks, service: Arc::clone(&service) };
        lock(&self.store.compiled).entry(topic).or_default().insert(id.port(), compiled);
        Some(service)
    }
}
