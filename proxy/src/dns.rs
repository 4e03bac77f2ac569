//! Keeps names resolved: each is looked up again when its answer's time to live is over, within bounds, and whoever is
//! interested sees a change. A name that cannot be resolved any more keeps its last addresses. What the addresses are for
//! is none of its business: static mode uses it for endpoints, and anything else that is configured by a name may.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::dial::chain;

#[cfg(test)]
mod tests;

/// A time to live below this is taken for this, so that no name is asked for in a loop.
pub const MIN_TTL: Duration = Duration::from_secs(1);
/// A time to live above this is taken for this, so that a mistake in a zone does not last for a day.
pub const MAX_TTL: Duration = Duration::from_secs(300);
/// Addresses of one name that count; the rest is left out.
pub const MAX_ADDRESSES: usize = 128;
/// After a failure, doubled with each one in a row.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// For one lookup, all its tries together.
const LOOKUP: Duration = Duration::from_secs(5);
/// Lookups under way at the same time.
const AT_ONCE: usize = 16;

/// Addresses by name, in order. A name that has never been resolved is absent.
pub type Found = BTreeMap<String, Vec<IpAddr>>;

/// What a lookup has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Addresses of both families.
    pub addresses: Vec<IpAddr>,
    /// How long the answer may be used.
    pub ttl: Duration,
}

/// Looks a name up once.
pub trait Lookup: Clone + Send + 'static {
    /// Its addresses, or a sentence why there are none.
    fn lookup(&self, name: String) -> impl Future<Output = Result<Answer, String>> + Send;
}

/// By DNS, and the hosts file.
#[derive(Clone)]
pub struct Resolver(TokioResolver);

impl Resolver {
    /// As the system is configured (`/etc/resolv.conf`, `/etc/hosts`); with `servers`, those are asked instead.
    ///
    /// # Errors
    /// The system's configuration cannot be read.
    pub fn new(servers: &[SocketAddr]) -> Result<Self, String> {
        let mut builder = if servers.is_empty() {
            TokioResolver::builder_tokio().map_err(|e| chain(&e))?
        } else {
            let servers = servers.iter().map(|server| {
                let port = |mut connection: ConnectionConfig| {
                    connection.port = server.port();
                    connection
                };
                let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(port).to_vec();
                NameServerConfig::new(server.ip(), true, connections)
            });
            let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        let options: &mut ResolverOpts = builder.options_mut();
        // Each answer is kept here, for as long as it may be.
        options.cache_size = 0;
        options.timeout = Duration::from_secs(2);
        options.attempts = 1;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.try_tcp_on_error = true;
        Ok(Self(builder.build().map_err(|e| chain(&e))?))
    }
}

impl Lookup for Resolver {
    async fn lookup(&self, name: String) -> Result<Answer, String> {
        let found = self.0.lookup_ip(name.as_str()).await.map_err(|e| chain(&e))?;
        let ttl = found.valid_until().saturating_duration_since(std::time::Instant::now());
        Ok(Answer { addresses: found.iter().collect(), ttl })
    }
}

/// Says which names are wanted, and what was found.
#[derive(Debug)]
pub struct Names {
    wanted: watch::Sender<BTreeSet<String>>,
    found: watch::Receiver<Arc<Found>>,
    answered: watch::Receiver<BTreeSet<String>>,
}

impl Names {
    /// With the task that looks them up; it ends when this is dropped.
    pub fn new<L: Lookup>(lookup: L) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (wanted, wants) = watch::channel(BTreeSet::new());
        let (finds, found) = watch::channel(Arc::default());
        let (answers, answered) = watch::channel(BTreeSet::new());
        let table =
            Table { lookup, wants, finds, answers, entries: BTreeMap::new(), under_way: JoinSet::new() };
        (Self { wanted, found, answered }, table.run())
    }

    /// From now on these are wanted, and others not any more.
    pub fn want(&self, names: BTreeSet<String>) {
        self.wanted.send_if_modified(|wanted| {
            let changed = *wanted != names;
            *wanted = names;
            changed
        });
    }

    /// What is known.
    #[must_use]
    pub fn found(&self) -> Arc<Found> {
        Arc::clone(&self.found.borrow())
    }

    /// Tells of every change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Arc<Found>> {
        self.found.clone()
    }

    /// Waits until each wanted name was looked up at least once, whatever came of it.
    pub async fn settled(&mut self) {
        let wanted = self.wanted.borrow().clone();
        // Fails only when the task has ended, and with it all waiting.
        let _ = self.answered.wait_for(|answered| wanted.is_subset(answered)).await;
    }
}

struct Table<L> {
    lookup: L,
    wants: watch::Receiver<BTreeSet<String>>,
    finds: watch::Sender<Arc<Found>>,
    answers: watch::Sender<BTreeSet<String>>,
    entries: BTreeMap<String, Entry>,
    under_way: JoinSet<(String, Result<Answer, String>)>,
}

#[derive(Debug, Default)]
struct Entry {
    addresses: Vec<IpAddr>,
    // `None`: it is being looked up.
    due: Option<Instant>,
    failures: u32,
    answered: bool,
}

impl<L: Lookup> Table<L> {
    async fn run(mut self) {
        loop {
            self.begin(Instant::now());
            let next = self.entries.values().filter_map(|entry| entry.due).min();
            let idle = self.under_way.len() < AT_ONCE;
            tokio::select! {
                changed = self.wants.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.change();
                }
                Some(Ok((name, answer))) = self.under_way.join_next() => self.take(&name, answer, Instant::now()),
                () = at(next), if idle => {}
            }
        }
    }

    fn change(&mut self) {
        let wanted = self.wants.borrow_and_update().clone();
        self.entries.retain(|name, _| wanted.contains(name));
        for name in wanted {
            self.entries
                .entry(name)
                .or_insert_with(|| Entry { due: Some(Instant::now()), ..Entry::default() });
        }
        self.publish();
    }

    fn begin(&mut self, now: Instant) {
        for (name, entry) in &mut self.entries {
            if self.under_way.len() >= AT_ONCE {
                return;
            }
            if entry.due.is_some_and(|due| due <= now) {
                entry.due = None;
                let (lookup, name) = (self.lookup.clone(), name.clone());
                self.under_way.spawn(async move {
                    let answer = timeout(LOOKUP, lookup.lookup(name.clone())).await;
                    let answer = answer.unwrap_or_else(|_| Err("no answer in time".to_owned()));
                    (name, answer)
                });
            }
        }
    }

    fn take(&mut self, name: &str, answer: Result<Answer, String>, now: Instant) {
        // Nobody wants it any more.
        let Some(entry) = self.entries.get_mut(name) else { return };
        entry.answered = true;
        let answer = answer.and_then(|found| match found.addresses.is_empty() {
            true => Err("it has no address".to_owned()),
            false => Ok(found),
        });
        match answer {
            Ok(Answer { mut addresses, ttl }) => {
                // Servers rotate them; that is no change.
                addresses.sort_unstable();
                addresses.dedup();
                addresses.truncate(MAX_ADDRESSES);
                entry.due = Some(now + ttl.clamp(MIN_TTL, MAX_TTL));
                entry.failures = 0;
                if entry.addresses != addresses {
                    tracing::info!(%name, ?addresses, "name resolved");
                    entry.addresses = addresses;
                }
            }
            Err(reason) => {
                if entry.failures == 0 {
                    let kept = entry.addresses.len();
                    tracing::warn!(%name, %reason, kept, "name not resolved; what is known of it stays");
                }
                entry.due = Some(now + (FIRST_RETRY * 2_u32.pow(entry.failures.min(5))).min(LAST_RETRY));
                entry.failures = entry.failures.saturating_add(1);
            }
        }
        self.publish();
    }

    fn publish(&self) {
        let found: Found = self
            .entries
            .iter()
            .filter(|(_, entry)| !entry.addresses.is_empty())
            .map(|(name, entry)| (name.clone(), entry.addresses.clone()))
            .collect();
        self.finds.send_if_modified(|last| {
            let changed = **last != found;
            *last = Arc::new(found);
            changed
        });
        let answered = self.entries.iter().filter(|(_, entry)| entry.answered);
        self.answers.send_replace(answered.map(|(name, _)| name.clone()).collect());
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}
