//! Keys of issuers that RequestAuthentications say where to fetch: fetched here, by each replica for itself, and told to proxies, none
//! of which ever asks an issuer. Each set is fetched when it is first wanted and then again and again; while that fails, the last
//! good one stays. A proxy that meets a token whose key it does not know says so, and the set is fetched sooner: a new key counts within
//! seconds, and whoever makes up names of keys gains a fetch every [`AGAIN`]. Bounded in sets, in fetches at once, in time and in
//! bytes. What is in force it does not decide: it puts what it has found into the index.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use weft_crds::validate::jwks;

use crate::index::{Change, KeySet, KeySource};
use crate::metrics::{Fetch, Fetched, Metrics};
use crate::store::Store;

pub mod fetch;

use fetch::{Fetcher, Got};

/// Sets that are fetched. Those beyond are said to be too many.
pub const MAX_SETS: usize = 256;
/// Fetches under way at the same time.
const AT_ONCE: usize = 8;
/// Where the answer does not say how long it may be kept, and the bounds of what it may say.
const USUALLY: Duration = Duration::from_secs(300);
const OFTENEST: Duration = Duration::from_secs(60);
const SELDOMEST: Duration = Duration::from_secs(3600);
/// After a failure, doubled with each one in a row.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);
/// Between two fetches of a set because keys were missed, however many proxies say so and however often.
pub const AGAIN: Duration = Duration::from_secs(10);

/// Where proxies say that keys may be missing. No more than [`MAX_SETS`] at a time: which of them there are is not known here.
#[derive(Debug, Default)]
pub struct Missed {
    sources: Mutex<BTreeSet<String>>,
    noted: Notify,
}

impl Missed {
    /// A token has come whose key is not among those of this `jwksUri`.
    pub fn note(&self, source: String) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if sources.len() < MAX_SETS && sources.insert(source) {
            self.noted.notify_one();
        }
    }

    /// What was said since the last call.
    pub fn take(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.sources.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// When a set is fetched of which keys were missed. `due`: when it would be anyway. `last`: when it was; after a failure it is tried
/// again soon as it is.
#[must_use]
pub fn hurried(due: Instant, last: Option<Instant>, failures: u32, now: Instant) -> Instant {
    match last {
        Some(last) if failures == 0 => due.min((last + AGAIN).max(now)),
        _ => due,
    }
}

/// When a set is fetched next. Pure but for the jitter, so that not all replicas ask at the same moment. `failures`: in a row.
#[must_use]
pub fn pause(failures: u32, max_age: Option<Duration>, jitter: f64) -> Duration {
    let usual = match failures {
        0 => max_age.unwrap_or(USUALLY).clamp(OFTENEST, SELDOMEST),
        failures => FIRST_RETRY.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(LAST_RETRY),
    };
    usual.mul_f64(1.0 - 0.2 * jitter.clamp(0.0, 1.0))
}

struct Entry {
    due: Instant,
    last: Option<Instant>,
    under_way: bool,
    failures: u32,
    keys: Option<Arc<Vec<jwks::Key>>>,
}

/// Fetches what the index wants, for ever.
pub async fn keep(store: Arc<Store>, metrics: Arc<Metrics>, missed: Arc<Missed>, fetcher: Fetcher) {
    let mut changes = store.changes();
    let mut entries: BTreeMap<KeySource, Entry> = BTreeMap::new();
    let mut under_way: JoinSet<(KeySource, Result<Got, String>)> = JoinSet::new();
    loop {
        changes.mark_unchanged();
        let wanted = store.view(|view| view.index.key_sources());
        let gone: Vec<KeySource> =
            entries.keys().filter(|source| !wanted.contains(*source)).cloned().collect();
        for source in gone {
            entries.remove(&source);
            store.apply(Change::<KeySet>::Delete(source.key()));
        }
        for source in wanted {
            if entries.contains_key(&source) {
                continue;
            }
            if entries.len() >= MAX_SETS {
                let problem =
                    format!("more than {MAX_SETS} key sets are wanted, and this one is not fetched");
                store.apply(Change::Apply(KeySet { source, keys: None, problem: Some(problem) }));
                continue;
            }
            let entry = Entry { due: Instant::now(), last: None, under_way: false, failures: 0, keys: None };
            entries.insert(source, entry);
        }
        let now = Instant::now();
        let asked = missed.take();
        for (_, entry) in entries.iter_mut().filter(|(source, _)| asked.contains(&source.uri)) {
            entry.due = hurried(entry.due, entry.last, entry.failures, now);
        }
        for (source, entry) in &mut entries {
            if entry.under_way || entry.due > now || under_way.len() >= AT_ONCE {
                continue;
            }
            entry.under_way = true;
            let (source, fetcher) = (source.clone(), fetcher.clone());
            under_way.spawn(async move {
                let got = fetcher.fetch(&source).await;
                (source, got)
            });
        }
        let next = entries.values().filter(|entry| !entry.under_way).map(|entry| entry.due).min();
        // A place among those under way is waited for below.
        let next = next.filter(|_| under_way.len() < AT_ONCE).unwrap_or_else(|| now + SELDOMEST);
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = sleep_until(next) => {}
            () = missed.noted.notified() => {}
            Some(ended) = under_way.join_next() => if let Ok((source, got)) = ended {
                let Some(entry) = entries.get_mut(&source) else { continue };
                entry.under_way = false;
                settle(&store, &metrics, source, entry, got);
            },
        }
    }
}

fn settle(store: &Store, metrics: &Metrics, source: KeySource, entry: &mut Entry, got: Result<Got, String>) {
    let (result, max_age, problem) = match got {
        Ok(got) => {
            entry.failures = 0;
            entry.keys = Some(Arc::new(got.keys));
            (Fetch::Fetched, got.max_age, None)
        }
        Err(problem) => {
            entry.failures = entry.failures.saturating_add(1);
            tracing::warn!(
                uri = source.uri,
                problem,
                "the keys of an issuer cannot be fetched; trying again"
            );
            (Fetch::Failed, None, Some(problem))
        }
    };
    metrics.key_fetches.get_or_create(&Fetched { result }).inc();
    let now = Instant::now();
    (entry.last, entry.due) = (Some(now), now + pause(entry.failures, max_age, rand::random()));
    store.apply(Change::Apply(KeySet { source, keys: entry.keys.clone(), problem }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_fetch_is_as_the_answer_says_within_bounds_and_soon_after_a_failure() {
        let seconds =
            |failures, age: Option<u64>| pause(failures, age.map(Duration::from_secs), 0.0).as_secs();
        assert_eq!(
            (seconds(0, None), seconds(0, Some(0)), seconds(0, Some(600)), seconds(0, Some(u64::MAX))),
            (300, 60, 600, 3600)
        );
        assert_eq!((1..9).map(|n| seconds(n, None)).collect::<Vec<_>>(), [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(seconds(u32::MAX, Some(5)), 60);
        assert_eq!(pause(0, None, 1.0), Duration::from_secs(240));
    }

    #[test]
    fn missed_keys_are_fetched_at_once_or_when_the_last_fetch_is_long_enough_ago_and_never_later_than_anyway()
    {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let due = now + 300 * second;
        assert_eq!(hurried(due, Some(now - AGAIN), 0, now), now);
        assert_eq!(hurried(due, Some(now - 2 * AGAIN), 0, now), now);
        assert_eq!(hurried(due, Some(now - second), 0, now), now + AGAIN - second);
        assert_eq!(hurried(now + second, Some(now), 0, now), now + second, "it is due before that");
        assert_eq!(hurried(due, Some(now - AGAIN), 1, now), due, "it fails, and has its own pace");
        assert_eq!(hurried(now, None, 0, now), now, "it is about to be fetched");
    }

    #[test]
    fn what_proxies_say_is_kept_once_and_never_without_bound() {
        let missed = Missed::default();
        for n in 0..10 * MAX_SETS {
            missed.note(format!("https://{n}.example"));
            missed.note(format!("https://{n}.example"));
        }
        assert_eq!(missed.take().len(), MAX_SETS);
        assert!(missed.take().is_empty());
    }
}
