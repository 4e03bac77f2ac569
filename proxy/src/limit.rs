//! Rate limits on requests to the own pod: which rule a request falls under, which bucket it draws from, and what the client
//! is told. The callee's proxy asks here for every request, because it is the one place that no caller can go around. It
//! never waits, and knows nothing of connections.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;
use weft_api::v1;

use crate::clock;
use crate::route::{self, RequestMatch};

pub mod buckets;
pub mod gcra;
pub mod key;
pub mod share;

use buckets::Buckets;
use gcra::{Draw, Rate};
use key::{Asked, Key};
use share::{Granted, Shared};

/// draft-ietf-httpapi-ratelimit-headers-09 section 3: the policy, which does not change ...
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// ... and section 4: what is left.
const STATE: HeaderName = HeaderName::from_static("ratelimit");

/// All limits on the ports of the own pod.
#[derive(Debug, Default)]
pub struct Limits {
    ports: Vec<PortRules>,
    /// What they were made of: equal ones are the same.
    message: Vec<v1::InboundRules>,
}

/// The rules of one port of a Service for one port of the pod.
#[derive(Debug)]
pub struct PortRules {
    /// Of the container.
    pub port: u16,
    /// The first that matches counts.
    pub rules: Vec<Rule>,
}

/// Some requests, and their limit.
#[derive(Debug)]
pub struct Rule {
    /// Any of them; none: every request.
    pub matches: Vec<RequestMatch>,
    /// `None`: not limited.
    pub limit: Option<Arc<Limit>>,
}

/// A limit.
#[derive(Debug)]
pub struct Limit {
    /// Tells it apart from all others of the mesh.
    pub id: Arc<str>,
    /// "policy/rule".
    pub name: Arc<str>,
    key: Key,
    rate: Rate,
    buckets: Arc<Buckets>,
    /// Of a limit that all replicas keep together.
    shared: Option<Shared>,
    /// For the client: the name as an item of a structured field, and the whole policy.
    item: Box<str>,
    policy: HeaderValue,
}

/// What the limits make of a request.
#[derive(Debug, Default)]
pub struct Verdict {
    lines: Vec<(HeaderValue, HeaderValue)>,
    /// The limit that is used up, and for how long.
    pub refused: Option<(Arc<str>, Duration)>,
}

impl PartialEq for Limits {
    fn eq(&self, other: &Self) -> bool {
        self.message == other.message
    }
}

impl Limits {
    /// With what they were made of.
    #[must_use]
    pub const fn new(ports: Vec<PortRules>, message: Vec<v1::InboundRules>) -> Self {
        Self { ports, message }
    }

    /// Whether requests to a port of the pod are limited at all.
    #[must_use]
    pub fn on(&self, port: u16) -> bool {
        self.ports.iter().any(|rules| rules.port == port)
    }

    /// Every limit, once: several rules may share one.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Limit>> {
        let mut seen = Vec::new();
        let limits = self.ports.iter().flat_map(|port| &port.rules).filter_map(|rule| rule.limit.as_ref());
        limits.filter(move |limit| {
            let new = !seen.contains(&Arc::as_ptr(limit));
            seen.extend(new.then_some(Arc::as_ptr(limit)));
            new
        })
    }

    /// Counts a request to a port. `None`: it is under no limit. One that two Services' limits concern has to pass both.
    #[must_use]
    pub fn count(
        &self,
        port: u16,
        matched: &route::Asked<'_>,
        asked: &Asked<'_>,
        now: Instant,
    ) -> Option<Box<Verdict>> {
        let mut verdict: Option<Box<Verdict>> = None;
        for rules in self.ports.iter().filter(|rules| rules.port == port) {
            let mut matching = rules.rules.iter().filter(|rule| route::hit(&rule.matches, matched).is_some());
            if let Some(limit) = matching.next().and_then(|rule| rule.limit.as_ref()) {
                verdict.get_or_insert_default().add(limit, limit.draw(asked, now));
            }
        }
        verdict
    }
}

impl Limit {
    /// `last`: the same limit as it was before an update, whose buckets it goes on with.
    #[must_use]
    pub fn new(
        id: Arc<str>,
        name: &str,
        (requests, per, burst): (u32, Duration, u32),
        key: Key,
        mesh: bool,
        last: Option<&Self>,
    ) -> Self {
        let buckets = last.filter(|last| last.key == key).map(|last| Arc::clone(&last.buckets));
        let fresh = || Arc::new(if key == Key::All { Buckets::one() } else { Buckets::by_key() });
        let (item, rate) = (item(name), Rate::new(requests, per, burst));
        let last_share = last.and_then(|last| last.shared.as_ref());
        Self {
            policy: value(format_args!("{item};q={requests};w={}", seconds(per))),
            buckets: buckets.unwrap_or_else(fresh),
            shared: mesh.then(|| Shared::new(rate, last_share)),
            rate,
            name: name.into(),
            id,
            key,
            item: item.into(),
        }
    }

    fn draw(&self, asked: &Asked<'_>, now: Instant) -> Draw {
        let hash = match self.key {
            Key::All => None,
            _ => self.key.hash(asked, self.buckets.hasher()),
        };
        let bucket = hash.map_or_else(|| self.buckets.only(), |hash| self.buckets.of(hash));
        let now = clock::nanos(now);
        match &self.shared {
            None => self.rate.draw(bucket, now),
            Some(shared) => shared.draw(bucket, now),
        }
    }

    /// This replica's part, of a limit that all replicas keep together.
    #[must_use]
    pub const fn shared(&self) -> Option<&Shared> {
        self.shared.as_ref()
    }

    /// What has become of this replica's part.
    pub(crate) fn tally(&self, now: u64) -> Option<v1::Tally> {
        Some(self.shared.as_ref()?.tally(self.buckets.only(), now))
    }

    /// Another part of it.
    pub(crate) fn grant(&self, granted: Granted, now: u64) {
        if let Some(shared) = &self.shared {
            shared.grant(granted, self.buckets.only(), now);
        }
    }
}

impl Verdict {
    fn add(&mut self, limit: &Limit, draw: Draw) {
        let reset = seconds(draw.wait.unwrap_or(draw.full));
        let state = value(format_args!("{};r={};t={reset}", limit.item, draw.left));
        self.lines.push((limit.policy.clone(), state));
        if let Some(wait) = draw.wait
            && self.refused.as_ref().is_none_or(|(_, longest)| wait > *longest)
        {
            self.refused = Some((Arc::clone(&limit.name), wait));
        }
    }

    /// Tells the client, beside what the application says of limits of its own.
    pub fn write(&self, headers: &mut HeaderMap) {
        for (policy, state) in &self.lines {
            headers.append(POLICY, policy.clone());
            headers.append(STATE, state.clone());
        }
        if let Some((_, wait)) = self.refused {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds(wait).max(1)));
        }
    }
}

/// A string of structured fields (RFC 8941 section 3.3.3). Names of policies and rules have nothing to escape.
fn item(name: &str) -> String {
    let plain = name.chars().filter(|c| c.is_ascii_graphic() && !matches!(c, '"' | '\\'));
    format!("\"{}\"", plain.collect::<String>())
}

fn value(text: std::fmt::Arguments<'_>) -> HeaderValue {
    let mut line = String::with_capacity(64);
    // Writing to a text cannot fail, and what is written here are visible characters.
    let _ = line.write_fmt(text);
    HeaderValue::try_from(line).unwrap_or(HeaderValue::from_static(""))
}

/// Whole ones, begun ones counted: who comes back then does not come too early.
fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::PathMatch;
    use http::Method;

    fn limit(name: &str, requests: u32, burst: u32, key: Key, last: Option<&Limit>) -> Limit {
        Limit::new(name.into(), name, (requests, Duration::from_secs(1), burst), key, false, last)
    }

    fn rule(prefix: Option<&str>, limit: Option<Limit>) -> Rule {
        let under = |prefix: &str| RequestMatch {
            path: Some(PathMatch::Prefix(prefix.to_owned())),
            ..RequestMatch::default()
        };
        Rule { matches: prefix.map(under).into_iter().collect(), limit: limit.map(Arc::new) }
    }

    fn limits(ports: Vec<Vec<Rule>>) -> Limits {
        let ports = ports.into_iter().map(|rules| PortRules { port: 80, rules }).collect();
        Limits::new(ports, Vec::new())
    }

    fn count(limits: &Limits, path: &str, now: Instant) -> Option<Box<Verdict>> {
        let headers = HeaderMap::new();
        let asked = Asked { path, headers: &headers, identity: None, client: [127, 0, 0, 1].into() };
        let uri = path.parse().unwrap();
        limits.count(80, &route::Asked::new(&Method::GET, &uri, &headers, None), &asked, now)
    }

    fn headers(verdict: &Verdict) -> Vec<(String, String)> {
        let mut headers = HeaderMap::new();
        verdict.write(&mut headers);
        headers.iter().map(|(n, v)| (n.to_string(), v.to_str().unwrap().to_owned())).collect()
    }

    #[test]
    fn the_first_rule_that_matches_counts_and_others_are_not_drawn_from() {
        let limits = limits(vec![vec![
            rule(Some("/free"), None),
            rule(Some("/a"), Some(limit("p/a", 1, 1, Key::All, None))),
            rule(None, Some(limit("p/rest", 1, 1, Key::All, None))),
        ]]);
        let now = Instant::now();
        assert!(count(&limits, "/free/x", now).is_none());
        assert!(count(&limits, "/a", now).unwrap().refused.is_none());
        assert_eq!(count(&limits, "/a", now).unwrap().refused.unwrap().0.as_ref(), "p/a");
        assert!(count(&limits, "/b", now).unwrap().refused.is_none());
        assert!(limits.on(80) && !limits.on(81));
    }

    #[test]
    fn the_client_is_told_the_policy_what_is_left_and_when_to_come_back() {
        let limits = limits(vec![vec![rule(None, Some(limit("shop/0", 2, 3, Key::All, None)))]]);
        let now = Instant::now();
        let told = |verdict: Option<Box<Verdict>>| headers(&verdict.unwrap());
        let line = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let policy = || line("ratelimit-policy", "\"shop/0\";q=2;w=1");
        assert_eq!(told(count(&limits, "/", now)), [policy(), line("ratelimit", "\"shop/0\";r=2;t=1")]);
        assert_eq!(told(count(&limits, "/", now)), [policy(), line("ratelimit", "\"shop/0\";r=1;t=1")]);
        assert_eq!(told(count(&limits, "/", now)), [policy(), line("ratelimit", "\"shop/0\";r=0;t=2")]);
        let refused = [policy(), line("ratelimit", "\"shop/0\";r=0;t=1"), line("retry-after", "1")];
        assert_eq!(told(count(&limits, "/", now)), refused);
        assert!(count(&limits, "/", now + Duration::from_millis(500)).unwrap().refused.is_none());
    }

    #[test]
    fn a_request_has_to_pass_the_limits_of_every_service_that_leads_to_the_port() {
        let limits = limits(vec![
            vec![rule(None, Some(limit("wide/0", 10, 10, Key::All, None)))],
            vec![rule(None, Some(limit("narrow/0", 1, 1, Key::All, None)))],
        ]);
        let now = Instant::now();
        assert!(count(&limits, "/", now).unwrap().refused.is_none());
        let second = count(&limits, "/", now).unwrap();
        assert_eq!(second.refused.as_ref().unwrap().0.as_ref(), "narrow/0");
        assert_eq!(headers(&second).iter().filter(|(name, _)| name == "ratelimit").count(), 2);
    }

    #[test]
    fn another_rate_keeps_what_was_drawn_and_another_key_begins_anew() {
        let now = Instant::now();
        let drained = |limit: Limit| {
            let limits = limits(vec![vec![rule(None, Some(limit))]]);
            count(&limits, "/", now).unwrap().refused.is_some()
        };
        let first = limit("p/0", 1, 1, Key::All, None);
        let raised = limit("p/0", 2, 1, Key::All, Some(&first));
        let keyed = limit("p/0", 1, 1, Key::SourceIp, Some(&first));
        assert!(!drained(first));
        assert!(drained(raised));
        assert!(!drained(keyed));
    }
}
