//! Which Events are written, and when. A note that is new is an Event at once; while it goes on to be told, the same Event counts it
//! (`series`), and is written again now and then. New Events come out of a bucket for all, and one for each namespace, so that no
//! namespace uses up what there is for others. Pure: it is told the time, and counts each thing exactly once, as written or as
//! dropped.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::Note;

/// New Events: so many at once, and one more after each of that time.
pub const OF_ALL: (u32, Duration) = (60, Duration::from_secs(2));
/// The same of one namespace.
pub const OF_A_NAMESPACE: (u32, Duration) = (30, Duration::from_secs(4));
/// Between two writes of an Event.
pub const WINDOW: Duration = Duration::from_secs(10);
/// Events that are written again at one look, those first that were not for longest.
pub const AGAIN: usize = 2;
/// Notes that are kept.
pub const MOST: usize = 512;
/// A note that was not told for so long is forgotten, and another Event the next time (KEP-383).
const IDLE: Duration = Duration::from_secs(360);

/// See the module.
#[derive(Debug, Default)]
pub struct Sums {
    series: HashMap<Arc<Note>, Series>,
    all: Bucket,
    namespaces: HashMap<String, Bucket>,
}

#[derive(Debug)]
struct Series {
    first: SystemTime,
    last: SystemTime,
    heard: Instant,
    /// What its Event counts, and what it does not count yet.
    written: u64,
    waiting: u64,
    /// The name of its Event, and when that was written.
    event: Option<(String, Instant)>,
}

/// An Event to be written.
#[derive(Clone, Debug)]
pub struct Write {
    /// What it says.
    pub note: Arc<Note>,
    /// Its name, if there is one.
    pub event: Option<String>,
    /// What it counts then.
    pub count: u64,
    /// What of that is new.
    pub more: u64,
    /// When it was so first.
    pub first: SystemTime,
    /// When it was so last.
    pub last: SystemTime,
}

impl Sums {
    /// It was so, `times` times, the last time `at`. What of it is dropped.
    #[must_use]
    pub fn hear(&mut self, note: Note, times: u64, at: SystemTime, now: Instant) -> u64 {
        if let Some(series) = self.series.get_mut(&note) {
            series.waiting = series.waiting.saturating_add(times);
            (series.last, series.heard) = (at, now);
            return 0;
        }
        if self.series.len() >= MOST || !self.admit(&note.regarding.namespace, now) {
            return times;
        }
        let series = Series { first: at, last: at, heard: now, written: 0, waiting: times, event: None };
        self.series.insert(Arc::new(note), series);
        0
    }

    fn admit(&mut self, namespace: &str, now: Instant) -> bool {
        let own = self.namespaces.get(namespace).copied().unwrap_or_default().after_one(OF_A_NAMESPACE, now);
        let (Some(own), Some(all)) = (own, self.all.after_one(OF_ALL, now)) else { return false };
        self.all = all;
        // One that is not full again was taken from lately, so that there are never more than there were new Events in that time.
        self.namespaces.retain(|_, bucket| !bucket.is_full(now));
        self.namespaces.insert(namespace.to_owned(), own);
        true
    }

    /// What is to be written now. Each has to be settled.
    pub fn due(&mut self, now: Instant) -> Vec<Write> {
        self.series.retain(|_, series| series.waiting > 0 || now < series.heard + IDLE);
        let write = |(note, series): (&Arc<Note>, &Series)| Write {
            note: Arc::clone(note),
            event: series.event.as_ref().map(|(name, _)| name.clone()),
            count: series.written.saturating_add(series.waiting),
            more: series.waiting,
            first: series.first,
            last: series.last,
        };
        let mut again: Vec<_> = self
            .series
            .iter()
            .filter(|(_, series)| series.waiting > 0)
            .filter_map(|both| both.1.event.as_ref().map(|(_, at)| (*at, both)))
            .filter(|(at, _)| *at + WINDOW <= now)
            .collect();
        again.sort_by_key(|(at, _)| *at);
        let new = self.series.iter().filter(|(_, series)| series.event.is_none());
        new.chain(again.into_iter().take(AGAIN).map(|(_, both)| both)).map(write).collect()
    }

    /// The Event of this name says so now.
    pub fn written(&mut self, write: &Write, event: String, now: Instant) {
        if let Some(series) = self.series.get_mut(&write.note) {
            series.waiting = series.waiting.saturating_sub(write.more);
            series.written = write.count;
            series.event = Some((event, now));
        }
    }

    /// It could not be written: what of it is dropped. The next time it is another Event.
    #[must_use]
    pub fn failed(&mut self, write: &Write) -> u64 {
        self.series.remove(&write.note).map_or(0, |series| series.waiting)
    }
}

/// So many at once, and one more after each time: when it would be full again (GCRA). `None`: it is.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket(Option<Instant>);

impl Bucket {
    /// The bucket without one; `None`: it is empty.
    fn after_one(self, (burst, each): (u32, Duration), now: Instant) -> Option<Self> {
        let full = self.0.map_or(now, |at| at.max(now)) + each;
        (full <= now + each * burst).then_some(Self(Some(full)))
    }

    fn is_full(self, now: Instant) -> bool {
        self.0.is_none_or(|at| at <= now)
    }
}

#[cfg(test)]
mod tests;
