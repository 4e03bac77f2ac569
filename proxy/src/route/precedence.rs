//! The order in which matches are tried where the most specific one counts. Pure, and only when a snapshot is built.
//! Source: Gateway API, HTTPRoute `hostnames` and `rules[].matches`.

use super::{PathMatch, RequestMatch};

/// A match, and the rule that it leads to.
#[derive(Debug)]
pub struct Ranked {
    /// Its place among the rules.
    pub rule: usize,
    /// `None`: everything.
    pub matching: Option<RequestMatch>,
}

/// Every match of every rule, the most specific one first; of equal ones the one that was written first. A match of several
/// hosts stands once for each, since they are not of the same rank.
#[must_use]
pub fn ranked<'a>(rules: impl Iterator<Item = &'a [RequestMatch]>) -> Vec<Ranked> {
    let mut all: Vec<Ranked> = Vec::new();
    for (rule, matches) in rules.enumerate() {
        if matches.is_empty() {
            all.push(Ranked { rule, matching: None });
        }
        for matching in matches {
            let each = |hosts| Ranked { rule, matching: Some(RequestMatch { hosts, ..matching.clone() }) };
            match matching.hosts.as_slice() {
                [] => all.push(each(Vec::new())),
                hosts => all.extend(hosts.iter().map(|host| each(vec![host.clone()]))),
            }
        }
    }
    // Stable: equal ones stay as written.
    all.sort_by_key(|ranked| std::cmp::Reverse(ranked.matching.as_ref().map_or_else(Default::default, rank)));
    all
}

/// By host, path, method, number of headers, number of query parameters, in this order.
type Rank = ((u8, usize), (u8, usize), bool, usize, usize);

fn rank(matching: &RequestMatch) -> Rank {
    let host = matching.hosts.first().map_or((0, 0), |host| host.rank());
    let path = match &matching.path {
        Some(PathMatch::Exact(whole)) => (3, whole.len()),
        // "/" is what no condition on the path means, too.
        Some(PathMatch::Prefix(prefix)) if prefix.len() > 1 => (2, prefix.trim_end_matches('/').len()),
        // Its place is the implementation's own choice.
        Some(PathMatch::Regex(_)) => (1, 0),
        Some(PathMatch::Prefix(_)) | None => (0, 0),
    };
    (host, path, matching.method.is_some(), matching.headers.len(), matching.query.len())
}
