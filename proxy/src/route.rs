//! Which rule a request falls under, and which cluster it goes to. Pure: everything was compiled when the snapshot was
//! built. It chooses no endpoint.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use rand::Rng;
use regex::Regex;
use weft_api::{Identity, Reason};

use crate::breaker::{Breaker, Permit};
use crate::filter::Filters;
use crate::path::normalised;
use crate::retry::RetryPolicy;
use crate::snapshot::{Cluster, Service};
use host::HostMatch;
use query::QueryMatch;

pub mod host;
pub mod precedence;
pub mod query;
#[cfg(test)]
mod tests;

/// A rule.
#[derive(Debug)]
pub struct Route {
    /// "policy/rule", for logs and metrics.
    pub name: Arc<str>,
    /// Any of them; none: everything.
    pub matches: Vec<RequestMatch>,
    /// Where requests go. Never empty, and never all of weight 0.
    pub backends: Vec<Backend>,
    /// Whole request until the response's end.
    pub timeout: Option<Duration>,
    /// When a request is tried again.
    pub retry: RetryPolicy,
    /// Without a byte either way.
    pub idle_timeout: Option<Duration>,
    /// Where copies go.
    pub mirror: Option<Mirror>,
    /// Another try beside one that takes long.
    pub hedge: Option<Hedge>,
    pub(crate) total_weight: u64,
    /// Bounds on the rule's own requests, beside those of the cluster. Carried over updates by name.
    pub breaker: Option<Arc<Breaker>>,
    /// What else it does to a request. `None`: nothing.
    pub filters: Option<Arc<Filters>>,
}

/// Copies of a route's requests, of which nobody gets the answers.
#[derive(Debug)]
pub struct Mirror {
    /// Where they go.
    pub cluster: Arc<Cluster>,
    /// Of the requests, 1 to 100.
    pub percent: u32,
}

/// When a further try is sent beside those that are under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hedge {
    /// After the last one was sent.
    pub delay: Duration,
    /// In all, the first included.
    pub max_attempts: u32,
}

/// A share of a route's requests.
#[derive(Debug)]
pub struct Backend {
    /// Where they go.
    pub cluster: Arc<Cluster>,
    /// Relative to the others.
    pub weight: u32,
}

/// Conditions that must all hold.
#[derive(Clone, Debug, Default)]
pub struct RequestMatch {
    /// On the path, without the query, in its normalised form.
    pub path: Option<PathMatch>,
    /// Case-sensitive.
    pub method: Option<Method>,
    /// All of them.
    pub headers: Vec<HeaderMatch>,
    /// All of them.
    pub query: Vec<QueryMatch>,
    /// Any of them; none: every host.
    pub hosts: Vec<HostMatch>,
    /// Who calls. `None`: everybody, and in the routes of the caller's own proxy, where it was judged when the snapshot was
    /// built.
    pub source: Option<Box<SourceMatch>>,
}

/// On the caller: one of these, or of one of these namespaces of the own trust domain.
#[derive(Clone, Debug, Default)]
pub struct SourceMatch {
    /// Whole identities.
    pub identities: Vec<Arc<Identity>>,
    /// Of whatever account.
    pub namespaces: Vec<String>,
}

/// On a path.
#[derive(Clone, Debug)]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// Leading whole segments.
    Prefix(String),
    /// The whole path; compiled with anchors.
    Regex(Regex),
}

/// On a header.
#[derive(Clone, Debug)]
pub struct HeaderMatch {
    /// Its name.
    pub name: HeaderName,
    /// Its value. Of a header that comes more than once, one value that fits is enough.
    pub value: ValueMatch,
}

/// On the value of a header or of a query parameter.
#[derive(Clone, Debug)]
pub enum ValueMatch {
    /// The whole value.
    Exact(String),
    /// Its beginning.
    Prefix(String),
    /// The whole value; compiled with anchors.
    Regex(Regex),
    /// Whether there is any at all.
    Present(bool),
}

/// The rule that a request falls under, and the match that says so; none where the rule takes everything.
#[derive(Clone, Copy, Debug)]
pub struct Hit<'a> {
    /// The rule.
    pub route: &'a Route,
    /// Its match.
    pub matching: Option<&'a RequestMatch>,
}

impl Hit<'_> {
    /// The prefix that the request's path fitted.
    #[must_use]
    pub fn prefix(&self) -> Option<&str> {
        match &self.matching?.path {
            Some(PathMatch::Prefix(prefix)) => Some(prefix),
            _ => None,
        }
    }
}

/// What a request is matched by.
#[derive(Debug)]
pub struct Asked<'a> {
    /// In its normalised form, without the query.
    pub path: Cow<'a, str>,
    method: &'a Method,
    uri: &'a Uri,
    headers: &'a HeaderMap,
    caller: Option<&'a Identity>,
    /// The caller is of another trust domain.
    pub abroad: bool,
}

impl<'a> Asked<'a> {
    /// Of a request's head. `caller`: as proved by mTLS; for conditions that were not judged when the snapshot was built.
    #[must_use]
    pub fn new(
        method: &'a Method,
        uri: &'a Uri,
        headers: &'a HeaderMap,
        caller: Option<&'a Identity>,
    ) -> Self {
        Self { path: normalised(uri.path()), method, uri, headers, caller, abroad: false }
    }
}

/// The first rule that matches, or the one that matches most specifically; the last one always does.
#[must_use]
pub fn route<'a>(service: &'a Service, method: &Method, uri: &Uri, headers: &HeaderMap) -> Hit<'a> {
    let last = service.routes.len() - 1;
    let rest = Hit { route: &service.routes[last], matching: None };
    if last == 0 {
        return rest;
    }
    let asked = Asked::new(method, uri, headers, None);
    let hit = match &service.ranked {
        None => service.routes[..last].iter().find_map(|route| route.hit(&asked)),
        Some(ranked) => ranked
            .iter()
            .find(|one| one.matching.as_ref().is_none_or(|m| m.fits(&asked)))
            .map(|one| Hit { route: &service.routes[one.rule], matching: one.matching.as_ref() }),
    };
    hit.unwrap_or(rest)
}

/// One of the route's clusters, by weight.
#[must_use]
pub fn backend<'a>(route: &'a Route, rng: &mut impl Rng) -> &'a Arc<Cluster> {
    if let [only] = route.backends.as_slice() {
        return &only.cluster;
    }
    let mut point = rng.random_range(0..route.total_weight);
    for backend in &route.backends {
        let weight = u64::from(backend.weight);
        if point < weight {
            return &backend.cluster;
        }
        point -= weight;
    }
    &route.backends[0].cluster
}

/// The first of the conditions that holds; `Some(None)` where there are none.
#[must_use]
pub fn hit<'a>(matches: &'a [RequestMatch], asked: &Asked<'_>) -> Option<Option<&'a RequestMatch>> {
    if matches.is_empty() { Some(None) } else { matches.iter().find(|m| m.fits(asked)).map(Some) }
}

impl Route {
    /// One more request: a place at its cluster, and one of the rule's where that has bounds of its own.
    ///
    /// # Errors
    /// Which bound is reached.
    pub fn admit(&self, cluster: &Cluster) -> Result<Permit, Reason> {
        let permit = cluster.breaker.request()?;
        if let Some(adaptive) = &cluster.adaptive
            && cluster.breaker.requests() > adaptive.limit()
        {
            return Err(Reason::AdaptiveLimit);
        }
        match &self.breaker {
            None => Ok(permit),
            Some(own) => Ok(permit.and(own.request()?)),
        }
    }

    /// One more retry, in the same way. `None` where a bound is reached.
    #[must_use]
    pub fn admit_retry(&self, cluster: &Cluster) -> Option<Permit> {
        let permit = cluster.breaker.retry()?;
        match &self.breaker {
            None => Some(permit),
            Some(own) => Some(permit.and(own.retry()?)),
        }
    }

    /// The rule's own breaker, where it bounds how many of its requests wait for a connection.
    #[must_use]
    pub fn bound_on_waiting(&self) -> Option<Arc<Breaker>> {
        self.breaker.as_ref().filter(|own| own.limits().pending.is_some()).map(Arc::clone)
    }

    fn hit(&self, asked: &Asked<'_>) -> Option<Hit<'_>> {
        hit(&self.matches, asked).map(|matching| Hit { route: self, matching })
    }
}

impl RequestMatch {
    fn fits(&self, asked: &Asked<'_>) -> bool {
        self.method.as_ref().is_none_or(|wanted| wanted == asked.method)
            && self.path.as_ref().is_none_or(|wanted| wanted.fits(&asked.path))
            && self.headers.iter().all(|wanted| wanted.fits(asked.headers))
            && self.query.iter().all(|wanted| wanted.fits(asked.uri.query()))
            && (self.hosts.is_empty() || self.fits_host(asked))
            && self
                .source
                .as_ref()
                .is_none_or(|wanted| asked.caller.is_some_and(|caller| wanted.fits(caller, asked.abroad)))
    }

    fn fits_host(&self, asked: &Asked<'_>) -> bool {
        host::of_request(asked.uri, asked.headers)
            .is_some_and(|host| self.hosts.iter().any(|wanted| wanted.fits(host)))
    }
}

impl SourceMatch {
    /// Whether it is the caller. `abroad`: who is of another trust domain, whose namespaces are not ours.
    #[must_use]
    pub fn fits(&self, caller: &Identity, abroad: bool) -> bool {
        self.identities.iter().any(|known| **known == *caller)
            || (!abroad && self.namespaces.contains(&caller.namespace))
    }
}

impl PathMatch {
    fn fits(&self, path: &str) -> bool {
        match self {
            Self::Exact(whole) => path == whole,
            Self::Prefix(prefix) => {
                // Gateway API, HTTPPathMatch PathPrefix: element by element; a trailing slash of the prefix is ignored.
                let prefix = prefix.trim_end_matches('/');
                path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::Regex(regex) => regex.is_match(path),
        }
    }
}

impl HeaderMatch {
    /// Whether any of the values fits, of whatever bytes it is.
    pub(crate) fn fits(&self, headers: &HeaderMap) -> bool {
        if let ValueMatch::Present(wanted) = self.value {
            return headers.contains_key(&self.name) == wanted;
        }
        headers.get_all(&self.name).iter().any(|value| self.value.fits(&text_of(value)))
    }

    /// Whether there is one, and each fits: so does the one that the application reads, whichever of several that is.
    pub(crate) fn fits_each(&self, headers: &HeaderMap) -> bool {
        let each = || headers.get_all(&self.name).iter().all(|value| self.value.fits(&text_of(value)));
        self.fits(headers) && (matches!(self.value, ValueMatch::Present(_)) || each())
    }
}

/// A value of whatever bytes.
pub(crate) fn text_of(value: &HeaderValue) -> Cow<'_, str> {
    value.to_str().map_or_else(|_| String::from_utf8_lossy(value.as_bytes()), Cow::Borrowed)
}

impl ValueMatch {
    /// Whether a value that is there fits.
    pub(crate) fn fits(&self, value: &str) -> bool {
        match self {
            Self::Exact(whole) => value == whole,
            Self::Prefix(prefix) => value.starts_with(prefix),
            Self::Regex(regex) => regex.is_match(value),
            Self::Present(wanted) => *wanted,
        }
    }
}
