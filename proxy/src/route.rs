//! Which rule a request falls under, and which cluster it goes to. Pure: everything was compiled when the snapshot was
//! built. It chooses no endpoint.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, Method};
use rand::Rng;
use regex::Regex;
use weft_api::Reason;

use crate::breaker::{Breaker, Permit};
use crate::retry::RetryPolicy;
use crate::snapshot::{Cluster, Service};

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
    pub(crate) total_weight: u64,
    /// Bounds on the rule's own requests, beside those of the cluster. Carried over updates by name.
    pub breaker: Option<Arc<Breaker>>,
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
#[derive(Debug, Default)]
pub struct RequestMatch {
    /// On the path, without the query.
    pub path: Option<PathMatch>,
    /// Case-sensitive.
    pub method: Option<Method>,
    /// All of them.
    pub headers: Vec<HeaderMatch>,
}

/// On a path.
#[derive(Debug)]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// Leading whole segments.
    Prefix(String),
    /// The whole path; compiled with anchors.
    Regex(Regex),
}

/// On a header.
#[derive(Debug)]
pub struct HeaderMatch {
    /// Its name.
    pub name: HeaderName,
    /// Its value. Of a header that comes more than once, one value that fits is enough.
    pub value: ValueMatch,
}

/// On a header's value.
#[derive(Debug)]
pub enum ValueMatch {
    /// The whole value.
    Exact(String),
    /// Its beginning.
    Prefix(String),
    /// The whole value; compiled with anchors.
    Regex(Regex),
    /// Whether the header is there at all.
    Present(bool),
}

/// The first rule that matches; the last one always does.
#[must_use]
pub fn route<'a>(service: &'a Service, method: &Method, path: &str, headers: &HeaderMap) -> &'a Route {
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    let last = service.routes.len() - 1;
    let first = service.routes[..last].iter().find(|route| route.fits(method, path, headers));
    first.unwrap_or(&service.routes[last])
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

/// Whether one of the conditions holds, or there are none.
#[must_use]
pub fn fits_any(matches: &[RequestMatch], method: &Method, path: &str, headers: &HeaderMap) -> bool {
    matches.is_empty() || matches.iter().any(|m| m.fits(method, path, headers))
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

    fn fits(&self, method: &Method, path: &str, headers: &HeaderMap) -> bool {
        fits_any(&self.matches, method, path, headers)
    }
}

impl RequestMatch {
    fn fits(&self, method: &Method, path: &str, headers: &HeaderMap) -> bool {
        self.method.as_ref().is_none_or(|wanted| wanted == method)
            && self.path.as_ref().is_none_or(|wanted| wanted.fits(path))
            && self.headers.iter().all(|wanted| wanted.fits(headers))
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
    fn fits(&self, headers: &HeaderMap) -> bool {
        if let ValueMatch::Present(wanted) = self.value {
            return headers.contains_key(&self.name) == wanted;
        }
        headers.get_all(&self.name).iter().filter_map(|value| value.to_str().ok()).any(|value| {
            match &self.value {
                ValueMatch::Exact(whole) => value == whole,
                ValueMatch::Prefix(prefix) => value.starts_with(prefix),
                ValueMatch::Regex(regex) => regex.is_match(value),
                ValueMatch::Present(_) => false,
            }
        })
    }
}
