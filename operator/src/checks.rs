//! What active checks found, over all replicas: who may check the endpoints of a service, and whom most of the checkers find
//! unhealthy. It is added to compiled services, so that every caller learns it. Pure, and one task that asks the other replicas.
//!
//! Who checks is decided nowhere: each proxy gets the same list of candidates and sees by rendezvous hashing which endpoints are its
//! own to check, and here it is known in the same way whose word counts. The candidates of a service are those connected for
//! longest, so that a caller that comes changes nothing, and one that goes makes room for the next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, sleep};
use weft_api::rendezvous;
use weft_api::v1::{self, ChecksOf, ChecksReply, Vote};

use crate::index::{Index, Key, ServiceId};
use crate::leader::replicas::Others;
use crate::serve::Shared;
use crate::settings::Settings;

/// Candidates of a service, on one replica and over all. An endpoint has at most as many checkers (`maxCheckers`).
pub const MAX_CANDIDATES: usize = 16;

const LOOK: Duration = Duration::from_secs(1);
/// Reports that come in a burst count together.
const COALESCE: Duration = Duration::from_millis(50);

/// Of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    candidates: Vec<String>,
    /// By endpoint, those who find it unhealthy.
    unhealthy: BTreeMap<String, BTreeSet<String>>,
}

/// By "namespace/name:port".
pub type Table = BTreeMap<String, Findings>;

/// What several replicas know, together. Whoever knows the same comes to the same.
#[must_use]
pub fn merge(replies: impl IntoIterator<Item = ChecksReply>) -> Table {
    let mut table = Table::new();
    for of in replies.into_iter().flat_map(|reply| reply.services) {
        let findings = table.entry(of.service).or_default();
        findings.candidates.extend(of.candidates);
        for vote in of.unhealthy {
            findings.unhealthy.entry(vote.endpoint).or_default().extend(vote.by);
        }
    }
    for (service, findings) in &mut table {
        let all = findings.candidates.iter().map(String::as_str);
        let mut few: Vec<String> =
            rendezvous::choose(all, service, MAX_CANDIDATES).into_iter().map(str::to_owned).collect();
        few.sort();
        findings.candidates = few;
    }
    table
}

/// One replica's part, for the others.
#[must_use]
pub fn reply(
    candidates: BTreeMap<String, Vec<String>>,
    votes: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
) -> ChecksReply {
    let mut votes = votes;
    let of = |(service, candidates): (String, Vec<String>)| {
        let unhealthy = votes.remove(&service).unwrap_or_default();
        let vote =
            |(endpoint, by): (String, BTreeSet<String>)| Vote { endpoint, by: by.into_iter().collect() };
        ChecksOf { service, candidates, unhealthy: unhealthy.into_iter().map(vote).collect() }
    };
    ChecksReply { services: candidates.into_iter().map(of).collect() }
}

/// The key of the service in the name of a cluster, which may be a subset's.
#[must_use]
pub fn service_of(cluster: &str) -> &str {
    cluster.match_indices('/').nth(1).map_or(cluster, |(end, _)| &cluster[..end])
}

/// Keys of the services with active checks whose clusters a message holds.
pub fn checked(service: &v1::Service) -> impl Iterator<Item = &str> {
    service
        .clusters
        .iter()
        .filter(|cluster| cluster.active.is_some())
        .map(|cluster| service_of(&cluster.name))
}

/// Adds to a service who checks, and who is unhealthy: whom more than half of its checkers find so.
fn add(service: &mut v1::Service, table: &Table) {
    for cluster in &mut service.clusters {
        let Some(active) = &cluster.active else { continue };
        // What the proxies resolve by themselves has no addresses here: everybody checks for itself.
        if cluster.endpoints.iter().any(|endpoint| !endpoint.host.is_empty()) {
            continue;
        }
        let Some(findings) = table.get(service_of(&cluster.name)) else { continue };
        let most = usize::try_from(active.max_checkers).unwrap_or(MAX_CANDIDATES);
        for endpoint in &mut cluster.endpoints {
            let Some(by) = findings.unhealthy.get(&endpoint.address) else { continue };
            let identity = &endpoint.identity;
            let check = endpoint
                .check
                .get_or_insert_with(|| v1::EndpointCheck { identity: identity.clone(), unhealthy: false });
            let all = findings.candidates.iter().map(String::as_str);
            let checkers = rendezvous::choose(all, &endpoint.address, most);
            let against = checkers.iter().filter(|checker| by.contains(**checker)).count();
            check.unhealthy = against * 2 > checkers.len();
        }
        cluster.checkers.clone_from(&findings.candidates);
    }
}

/// The table in force, and how often it changed.
#[derive(Debug, Default)]
pub struct Checks(Mutex<(u64, Table)>);

impl Checks {
    /// Adds what is known; says at which version, or nothing for a service without active checks.
    pub fn add(&self, service: &mut v1::Service) -> Option<u64> {
        checked(service).next()?;
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        add(service, &state.1);
        Some(state.0)
    }

    /// Whether what was added at that version still holds.
    pub fn is_current(&self, version: Option<u64>) -> bool {
        version.is_none_or(|version| self.0.lock().unwrap_or_else(PoisonError::into_inner).0 == version)
    }

    /// Puts another table in force; says of which Services something changed.
    pub fn set(&self, table: Table) -> BTreeSet<Key> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = &state.1;
        let changed = before.keys().chain(table.keys()).filter(|key| before.get(*key) != table.get(*key));
        let changed: BTreeSet<Key> = changed.filter_map(|key| key_of(key)).collect();
        if !changed.is_empty() {
            *state = (state.0 + 1, table);
        }
        changed
    }
}

fn key_of(service: &str) -> Option<Key> {
    match service.parse() {
        Ok(ServiceId::Service(key, _)) => Some(key),
        _ => None,
    }
}

fn is_wanted(index: &Index) -> bool {
    let mut all = index.spaces().flat_map(|(_, space)| space.mesh_services.values());
    all.any(|m| m.now.spec.as_ref().is_ok_and(|s| s.health.as_ref().is_some_and(|h| h.active.is_some())))
}

/// Keeps the table right for ever, on every replica. Where no MeshService has active checks it does nothing.
pub async fn keep(shared: Arc<Shared>, settings: Settings) {
    let mut others = Others::default();
    let mut theirs = Vec::new();
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                let wanted = shared.store.view(|view| is_wanted(view.index));
                theirs = if wanted { others.checks(&shared, &settings).await } else { Vec::new() };
            }
            () = shared.fleet.checks_changed() => sleep(COALESCE).await,
        }
        shared.store.checked(merge(theirs.iter().cloned().chain([shared.fleet.checks()])));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = "shop/back:80";

    fn part(candidates: &[&str], votes: &[(&str, &[&str])]) -> ChecksReply {
        let votes = votes.iter().map(|(endpoint, by)| {
            ((*endpoint).to_owned(), by.iter().map(|name| (*name).to_owned()).collect())
        });
        let candidates = candidates.iter().map(|name| (*name).to_owned()).collect();
        reply(
            BTreeMap::from([(SERVICE.to_owned(), candidates)]),
            BTreeMap::from([(SERVICE.to_owned(), votes.collect())]),
        )
    }

    fn service(max_checkers: u32) -> v1::Service {
        let endpoint = |address: &str| v1::Endpoint {
            address: address.into(),
            check: Some(v1::EndpointCheck::default()),
            ..Default::default()
        };
        let cluster = |name: &str| v1::Cluster {
            name: name.into(),
            active: Some(v1::ActiveCheck { max_checkers, ..Default::default() }),
            endpoints: vec![endpoint("10.0.0.1:80"), endpoint("10.0.0.2:80")],
            ..Default::default()
        };
        let clusters = vec![cluster(SERVICE), cluster("shop/back:80/v1")];
        v1::Service { key: SERVICE.into(), clusters, ..Default::default() }
    }

    /// The first endpoint, as callers are told.
    fn told(max_checkers: u32, parts: Vec<ChecksReply>) -> bool {
        let checks = Checks::default();
        checks.set(merge(parts));
        let mut service = service(max_checkers);
        checks.add(&mut service).unwrap();
        let unhealthy =
            |cluster: &v1::Cluster, i: usize| cluster.endpoints[i].check.as_ref().unwrap().unhealthy;
        assert_eq!(
            unhealthy(&service.clusters[0], 0),
            unhealthy(&service.clusters[1], 0),
            "a subset differs"
        );
        assert!(!unhealthy(&service.clusters[0], 1));
        unhealthy(&service.clusters[0], 0)
    }

    #[test]
    fn an_endpoint_is_unhealthy_when_more_than_half_of_its_checkers_find_it_so() {
        let at = "10.0.0.1:80";
        for (all, against, most, unhealthy) in [
            (&["a/a"][..], &["a/a"][..], 3, true),
            (&["a/a", "a/b"], &["a/a"], 3, false),
            (&["a/a", "a/b"], &["a/a", "a/b"], 3, true),
            (&["a/a", "a/b", "a/c"], &["a/b"], 3, false),
            (&["a/a", "a/b", "a/c"], &["a/b", "a/c"], 3, true),
            // Somebody who is no candidate has no say.
            (&["a/a", "a/b"], &["a/a", "x/y", "x/z"], 3, false),
            (&[], &["x/y"], 3, false),
        ] {
            assert_eq!(told(most, vec![part(all, &[(at, against)])]), unhealthy, "{against:?} of {all:?}");
            // The same, with every voice on a replica of its own.
            let parts = all.iter().map(|name| part(&[name], &[]));
            let votes = against.iter().map(|name| part(&[], &[(at, &[name])]));
            assert_eq!(told(most, parts.chain(votes).collect()), unhealthy, "{against:?} of {all:?}, apart");
        }
    }

    #[test]
    fn only_the_chosen_checkers_of_an_endpoint_have_a_say() {
        let all: Vec<String> = (0..10).map(|i| format!("shop/front-{i}")).collect();
        let names: Vec<&str> = all.iter().map(String::as_str).collect();
        let checkers = rendezvous::choose(names.iter().copied(), "10.0.0.1:80", 3);
        let others: Vec<&str> = names.iter().copied().filter(|name| !checkers.contains(name)).collect();
        assert!(!told(3, vec![part(&names, &[("10.0.0.1:80", &others)])]));
        assert!(told(3, vec![part(&names, &[("10.0.0.1:80", &checkers[..2])])]));
    }

    #[test]
    fn the_candidates_are_few_and_the_same_on_every_replica() {
        let name = |i: usize| format!("shop/front-{i:03}");
        let parts: Vec<ChecksReply> = (0..3)
            .map(|replica| {
                let names: Vec<String> = (0..16).map(|i| name(replica * 16 + i)).collect();
                part(&names.iter().map(String::as_str).collect::<Vec<_>>(), &[])
            })
            .collect();
        let one = merge(parts.clone());
        let other = merge(parts.into_iter().rev());
        assert_eq!(one, other);
        assert_eq!(one[SERVICE].candidates.len(), MAX_CANDIDATES);
    }

    #[test]
    fn only_what_changed_is_told() {
        let checks = Checks::default();
        let mut without = v1::Service::default();
        assert_eq!(checks.add(&mut without), None);
        assert!(checks.is_current(None));
        let changed = checks.set(merge([part(&["a/a"], &[])]));
        assert_eq!(changed, BTreeSet::from([Key::new("shop", "back")]));
        let version = checks.add(&mut service(3));
        assert!(checks.is_current(version));
        assert!(checks.set(merge([part(&["a/a"], &[])])).is_empty());
        assert!(checks.is_current(version));
        assert_eq!(checks.set(merge([])).len(), 1);
        assert!(!checks.is_current(version));
    }
}
