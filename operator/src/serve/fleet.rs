//! The proxies connected to this replica: what each has in force and holds ejected, and the sums over all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use weft_api::names;
use weft_api::v1::{AppliedReply, AppliedRow, CheckedEndpoint, ChecksReply, EjectedRow, Ejection, Source};

use crate::checks;
use crate::index::Key;

/// Endpoints that one proxy may report as ejected; what is beyond is left out.
const MAX_EJECTED: usize = 2_000;

/// Streams that one pod may have: its proxy has one, and old ones may linger until they are noticed to be dead.
const STREAMS_PER_POD: usize = 8;

/// What became of one thing that a proxy was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The resources of Kubernetes that shaped it.
    pub sources: Arc<[Source]>,
    /// It is in force.
    pub applied: bool,
    /// Why the proxy has rejected it; empty: it has not.
    pub rejection: Box<str>,
}

/// What one proxy reports.
#[derive(Debug)]
struct Report {
    pod: Key,
    applied: Vec<Standing>,
    ejected: Vec<Ejection>,
    /// Services with active checks that it calls.
    checking: BTreeSet<String>,
    /// Endpoints of those that fail its own checks, with their service.
    unhealthy: Vec<CheckedEndpoint>,
}

/// All connected proxies.
#[derive(Debug, Default)]
pub struct Fleet {
    reports: Mutex<Reports>,
    checks_changed: Notify,
}

#[derive(Debug, Default)]
struct Reports {
    by_session: HashMap<u64, Report>,
    by_pod: HashMap<Key, usize>,
    /// The sums, until something changes them.
    sum: Option<AppliedReply>,
}

/// Of all proxies, for one resource of Kubernetes.
struct Sum {
    row: AppliedRow,
    /// Who was counted last, and whether as one that has all that the resource shapes in force.
    last: Option<(u64, bool)>,
}

impl Sum {
    fn of(source: &Source) -> Self {
        Self { row: AppliedRow { source: Some(source.clone()), ..AppliedRow::default() }, last: None }
    }

    /// Several things that a proxy was sent may be shaped by the same resource: it counts once, and as in force when all are.
    fn count(&mut self, session: u64, standing: &Standing) {
        let row = &mut self.row;
        match &mut self.last {
            Some((last, all)) if *last == session => {
                if *all && !standing.applied {
                    *all = false;
                    row.applied -= 1;
                }
            }
            last => {
                *last = Some((session, standing.applied));
                row.applied += u32::from(standing.applied);
                row.total += 1;
            }
        }
        if !standing.rejection.is_empty() {
            row.rejection = standing.rejection.to_string();
        }
    }
}

/// One connected proxy; it leaves the fleet on drop.
pub struct Member {
    fleet: Arc<Fleet>,
    session: u64,
}

impl Fleet {
    /// A proxy has connected; `None` when its pod has too many streams.
    #[must_use]
    pub fn enter(self: &Arc<Self>, session: u64, pod: Key) -> Option<Member> {
        let mut reports = self.lock();
        let streams = reports.by_pod.entry(pod.clone()).or_default();
        if *streams == STREAMS_PER_POD {
            return None;
        }
        *streams += 1;
        reports.sum = None;
        let report = Report {
            pod,
            applied: Vec::new(),
            ejected: Vec::new(),
            checking: BTreeSet::new(),
            unhealthy: Vec::new(),
        };
        reports.by_session.insert(session, report);
        drop(reports);
        Some(Member { fleet: Arc::clone(self), session })
    }

    fn lock(&self) -> MutexGuard<'_, Reports> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until proxies have said something else of checks than before.
    pub async fn checks_changed(&self) {
        self.checks_changed.notified().await;
    }

    /// Who of this replica's proxies may check, and what their checks found.
    #[must_use]
    pub fn checks(&self) -> ChecksReply {
        let reports = self.lock();
        // Who is connected for longest comes first.
        let mut sessions: Vec<(&u64, &Report)> =
            reports.by_session.iter().filter(|(_, report)| !report.checking.is_empty()).collect();
        sessions.sort_unstable_by_key(|(session, _)| **session);
        let mut candidates: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut votes: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
        for (_, report) in sessions {
            let pod = report.pod.to_string();
            for service in &report.checking {
                let all = candidates.entry(service.clone()).or_default();
                if all.len() < checks::MAX_CANDIDATES && !all.contains(&pod) {
                    all.push(pod.clone());
                }
            }
            for found in report.unhealthy.iter().filter(|found| report.checking.contains(&found.service)) {
                let of = votes.entry(found.service.clone()).or_default();
                of.entry(found.endpoint.clone()).or_default().insert(pod.clone());
            }
        }
        drop(reports);
        checks::reply(candidates, votes)
    }

    /// The sums over all proxies of this replica.
    #[must_use]
    pub fn sum(&self) -> AppliedReply {
        let mut reports = self.lock();
        if let Some(sum) = &reports.sum {
            return sum.clone();
        }
        let sum = reports.add_up();
        reports.sum = Some(sum.clone());
        sum
    }
}

impl Reports {
    fn add_up(&self) -> AppliedReply {
        let mut applied: HashMap<(&str, &str, &str, i64), Sum> = HashMap::new();
        let mut ejected: BTreeMap<_, EjectedRow> = BTreeMap::new();
        for (session, report) in &self.by_session {
            for standing in &report.applied {
                for source in &*standing.sources {
                    let key = (&*source.kind, &*source.namespace, &*source.name, source.generation);
                    applied.entry(key).or_insert_with(|| Sum::of(source)).count(*session, standing);
                }
            }
            for one in &report.ejected {
                let row = ejected.entry((one.service.as_str(), one.endpoint.as_str())).or_insert_with(|| {
                    EjectedRow {
                        service: one.service.clone(),
                        endpoint: one.endpoint.clone(),
                        cause: one.cause.clone(),
                        proxies: 0,
                    }
                });
                row.proxies += 1;
                prefer(&mut row.cause, &one.cause);
            }
        }
        AppliedReply {
            proxies: u32::try_from(self.by_session.len()).unwrap_or(u32::MAX),
            rows: in_order(applied),
            ejected: ejected.into_values().collect(),
            roots_epoch: 0,
        }
    }
}

/// Of two causes the one of a proxy that has seen it, and not heard of it.
pub fn prefer(cause: &mut String, other: &str) {
    if cause.contains(names::HEARSAY) && !other.contains(names::HEARSAY) {
        other.clone_into(cause);
    }
}

/// The rows of equal reports are equal, whatever the order of the reports was.
fn in_order(applied: HashMap<(&str, &str, &str, i64), Sum>) -> Vec<AppliedRow> {
    let mut rows: Vec<_> = applied.into_iter().collect();
    rows.sort_unstable_by_key(|(key, _)| *key);
    rows.into_iter().map(|(_, sum)| sum.row).collect()
}

fn add(sum: &mut AppliedRow, row: &AppliedRow) {
    sum.applied = sum.applied.saturating_add(row.applied);
    sum.total = sum.total.saturating_add(row.total);
    if !row.rejection.is_empty() {
        sum.rejection.clone_from(&row.rejection);
    }
}

type SourceKey = (String, String, String, i64);

fn add_applied(sums: &mut BTreeMap<SourceKey, AppliedRow>, row: &AppliedRow) {
    let Some(source) = &row.source else { return };
    let key = (source.kind.clone(), source.namespace.clone(), source.name.clone(), source.generation);
    let sum = sums
        .entry(key)
        .or_insert_with(|| AppliedRow { source: Some(source.clone()), ..AppliedRow::default() });
    add(sum, row);
}

/// The sums over several replicas.
#[must_use]
pub fn merge(replies: impl IntoIterator<Item = AppliedReply>) -> AppliedReply {
    let mut applied: BTreeMap<SourceKey, AppliedRow> = BTreeMap::new();
    let mut ejected: BTreeMap<(String, String), EjectedRow> = BTreeMap::new();
    let mut proxies = 0u32;
    let mut roots_epoch = i64::MAX;
    for reply in replies {
        roots_epoch = roots_epoch.min(reply.roots_epoch);
        proxies = proxies.saturating_add(reply.proxies);
        reply.rows.iter().for_each(|row| add_applied(&mut applied, row));
        for row in reply.ejected {
            match ejected.get_mut(&(row.service.clone(), row.endpoint.clone())) {
                Some(sum) => {
                    sum.proxies = sum.proxies.saturating_add(row.proxies);
                    prefer(&mut sum.cause, &row.cause);
                }
                None => {
                    ejected.insert((row.service.clone(), row.endpoint.clone()), row);
                }
            }
        }
    }
    AppliedReply {
        proxies,
        rows: applied.into_values().collect(),
        ejected: ejected.into_values().collect(),
        roots_epoch,
    }
}

impl Member {
    /// What it has in force.
    pub fn applied(&self, standings: Vec<Standing>) {
        self.change(|report| report.applied = standings);
    }

    /// What the sums are made of.
    fn change(&self, change: impl FnOnce(&mut Report)) {
        let mut reports = self.fleet.lock();
        if let Some(report) = reports.by_session.get_mut(&self.session) {
            change(report);
            reports.sum = None;
        }
    }

    /// Which services with active checks it calls.
    pub fn checking(&self, services: BTreeSet<String>) {
        if let Some(report) = self.fleet.lock().by_session.get_mut(&self.session)
            && report.checking != services
        {
            report.checking = services;
            self.fleet.checks_changed.notify_one();
        }
    }

    /// What its own checks found.
    pub fn checked(&self, mut unhealthy: Vec<CheckedEndpoint>) {
        unhealthy.truncate(MAX_EJECTED);
        if let Some(report) = self.fleet.lock().by_session.get_mut(&self.session) {
            report.unhealthy = unhealthy;
            self.fleet.checks_changed.notify_one();
        }
    }

    /// What it holds ejected.
    pub fn ejected(&self, mut ejected: Vec<Ejection>) {
        ejected.truncate(MAX_EJECTED);
        for one in &mut ejected {
            one.cause = one.cause.chars().take(200).collect();
        }
        self.change(|report| report.ejected = ejected);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut reports = self.fleet.lock();
        let Some(report) = reports.by_session.remove(&self.session) else { return };
        reports.sum = None;
        if !report.checking.is_empty() {
            self.fleet.checks_changed.notify_one();
        }
        if let Some(streams) = reports.by_pod.get_mut(&report.pod) {
            *streams -= 1;
            if *streams == 0 {
                reports.by_pod.remove(&report.pod);
            }
        }
    }
}
