//! Which endpoints are ejected, by Service, and what is new since the last look.

use std::collections::{BTreeMap, BTreeSet};

use weft_api::v1::EjectedRow;

use crate::index::{Key, ServiceId};
use crate::serve::fleet::prefer;

/// An ejected endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ejected {
    /// How many proxies hold it ejected.
    pub proxies: u32,
    /// As one of them said.
    pub cause: String,
}

/// By Service, then by endpoint.
pub type EjectedBy = BTreeMap<Key, BTreeMap<String, Ejected>>;

/// Sorts the rows by Service; those of pods without a Service are nobody's.
pub fn by_service(rows: &[EjectedRow]) -> EjectedBy {
    let mut all = EjectedBy::new();
    for row in rows {
        // Of a subset the key is that of its service, with "/subset" behind the port.
        let of_service = match row.service.match_indices('/').nth(1) {
            Some((end, _)) => &row.service[..end],
            None => &row.service,
        };
        let Ok(ServiceId::Service(key, _)) = of_service.parse() else { continue };
        let sum = all
            .entry(key)
            .or_default()
            .entry(row.endpoint.clone())
            .or_insert_with(|| Ejected { proxies: 0, cause: row.cause.clone() });
        sum.proxies = sum.proxies.max(row.proxies);
        prefer(&mut sum.cause, &row.cause);
    }
    all
}

/// Something that happened to an endpoint.
#[derive(Debug, PartialEq, Eq)]
pub enum Happened<'a> {
    /// The first proxy ejected it.
    Ejected(&'a Key, &'a str, &'a Ejected),
    /// The last proxy took it back.
    Returned(&'a Key, &'a str),
}

/// What is new.
pub fn compare<'a>(before: &'a EjectedBy, now: &'a EjectedBy) -> Vec<Happened<'a>> {
    let empty = || None;
    let services: BTreeSet<&Key> = before.keys().chain(now.keys()).collect();
    let mut happened = Vec::new();
    for service in services {
        let (old, new) = (before.get(service).or_else(empty), now.get(service).or_else(empty));
        for (endpoint, ejected) in new.into_iter().flatten() {
            if !old.is_some_and(|o| o.contains_key(endpoint)) {
                happened.push(Happened::Ejected(service, endpoint, ejected));
            }
        }
        for endpoint in old.into_iter().flat_map(BTreeMap::keys) {
            if !new.is_some_and(|n| n.contains_key(endpoint)) {
                happened.push(Happened::Returned(service, endpoint));
            }
        }
    }
    happened
}

/// How many Events may still be written: a burst, and then so many with each look. Whatever many endpoints do at once,
/// the API server is not to feel it.
#[derive(Debug)]
pub struct Quota {
    left: usize,
    most: usize,
    each_look: usize,
}

impl Quota {
    /// Full.
    pub const fn new(most: usize, each_look: usize) -> Self {
        Self { left: most, most, each_look }
    }

    /// Another look at the world.
    pub fn look(&mut self) {
        self.left = (self.left + self.each_look).min(self.most);
    }

    /// Whether one more may be written.
    pub const fn take(&mut self) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_api::names;

    #[test]
    fn a_quota_allows_a_burst_and_then_so_many_with_each_look() {
        let mut quota = Quota::new(3, 1);
        let taken = |quota: &mut Quota, wanted: usize| (0..wanted).filter(|_| quota.take()).count();
        assert_eq!(taken(&mut quota, 5), 3);
        quota.look();
        assert_eq!(taken(&mut quota, 5), 1);
        (0..10).for_each(|_| quota.look());
        assert_eq!(taken(&mut quota, 5), 3);
    }

    fn row(service: &str, endpoint: &str) -> EjectedRow {
        EjectedRow { service: service.into(), endpoint: endpoint.into(), proxies: 1, cause: "c".into() }
    }

    #[test]
    fn the_cause_is_that_of_a_proxy_that_has_seen_it() {
        let hearsay = EjectedRow { cause: format!("unhealthy: {}", names::HEARSAY), ..row("a/b:80", "x") };
        let seen = EjectedRow { cause: "unhealthy: status 503".into(), ..row("a/b:80/v1", "x") };
        for rows in [[hearsay.clone(), seen.clone()], [seen, hearsay]] {
            assert_eq!(by_service(&rows)[&Key::new("a", "b")]["x"].cause, "unhealthy: status 503");
        }
    }

    #[test]
    fn an_endpoint_is_told_of_once_when_it_goes_and_once_when_it_returns() {
        let one = by_service(&[
            row("a/b:80", "10.0.0.1:80"),
            row("a/b:80/v1", "10.0.0.1:80"),
            row("a/p.pod:80", "x"),
        ]);
        let none = EjectedBy::new();
        let key = Key::new("a", "b");
        assert!(matches!(compare(&none, &one)[..], [Happened::Ejected(k, "10.0.0.1:80", _)] if *k == key));
        assert_eq!(compare(&one, &one), []);
        assert_eq!(compare(&one, &none), [Happened::Returned(&key, "10.0.0.1:80")]);
    }
}
