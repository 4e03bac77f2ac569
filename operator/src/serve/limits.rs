//! Limits that all replicas of a Service share: what the proxies connected here are asked for, and the parts that they are
//! granted. A meeting place; who divides is `leader/limits`.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use weft_api::v1::{Demand, Grant, Share, Wanted};

use crate::index::Key;
use crate::share::Part;

/// A proxy that has not said anything for so long keeps no limit any more, or is gone. It says something once a second.
const SILENT: Duration = Duration::from_secs(10);

/// All proxies connected here.
#[derive(Debug, Default)]
pub struct Limits {
    seats: Mutex<HashMap<u64, Place>>,
}

#[derive(Debug)]
struct Place {
    pod: Key,
    wanted: BTreeMap<String, Demand>,
    said: Instant,
    granted: watch::Sender<BTreeMap<String, Part>>,
}

/// One proxy's place; it is given up on drop.
pub struct Seat {
    limits: Arc<Limits>,
    session: u64,
    granted: watch::Receiver<BTreeMap<String, Part>>,
}

impl Limits {
    /// A proxy has connected.
    pub fn enter(self: &Arc<Self>, session: u64, pod: Key) -> Seat {
        let (granted, receiver) = watch::channel(BTreeMap::new());
        self.lock().insert(session, Place { pod, wanted: BTreeMap::new(), said: Instant::now(), granted });
        Seat { limits: Arc::clone(self), session, granted: receiver }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Place>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What all of them are asked for.
    #[must_use]
    pub fn wanted(&self) -> Vec<Wanted> {
        let mut all = Vec::new();
        for place in self.lock().values().filter(|place| place.said.elapsed() < SILENT) {
            all.extend(place.wanted.iter().map(|(limit, demand)| Wanted {
                namespace: place.pod.namespace.clone(),
                pod: place.pod.name.clone(),
                limit: limit.clone(),
                demand: demand.demand,
                tally: demand.tally,
            }));
        }
        all
    }

    /// Tells those that are connected here what they are granted.
    pub fn grant(&self, grants: &[Grant]) {
        if grants.is_empty() {
            return;
        }
        let mut by_pod: HashMap<(&str, &str), BTreeMap<String, Part>> = HashMap::new();
        for grant in grants {
            let pod = by_pod.entry((&grant.namespace, &grant.pod)).or_default();
            pod.insert(
                grant.limit.clone(),
                Part { share: grant.share, credit: grant.credit, others_are_short: grant.others_are_short },
            );
        }
        for place in self.lock().values() {
            let Some(granted) = by_pod.get(&(&*place.pod.namespace, &*place.pod.name)) else { continue };
            place.granted.send_if_modified(|last| {
                let changed = last != granted;
                if changed {
                    last.clone_from(granted);
                }
                changed
            });
        }
    }
}

impl Seat {
    /// What the proxy is asked for. `keeps`: whether it keeps a limit; what others keep is none of its business.
    pub fn want(&self, demands: Vec<Demand>, keeps: impl Fn(&str) -> bool) {
        let wanted = demands.into_iter().filter(|d| keeps(&d.limit)).map(|d| (d.limit.clone(), d)).collect();
        if let Some(place) = self.limits.lock().get_mut(&self.session) {
            place.wanted = wanted;
            place.said = Instant::now();
        }
    }

    /// Waits for other parts than the last ones. Cancel safe.
    pub async fn granted(&mut self) -> Vec<Share> {
        if self.granted.changed().await.is_err() {
            // Its sender is in the map for as long as this seat is taken.
            return std::future::pending().await;
        }
        let granted = self.granted.borrow_and_update();
        let share = |(limit, part): (&String, &Part)| Share {
            limit: limit.clone(),
            share: part.share,
            credit: part.credit,
            others_are_short: part.others_are_short,
        };
        granted.iter().map(share).collect()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.limits.lock().remove(&self.session);
    }
}
