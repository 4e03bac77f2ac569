//! Rate limits of a pod: for each port of a Service that leads to it, the rules of the TrafficPolicy in force, as far as it
//! takes to tell which requests are limited. Pure.

use weft_api::names;
use weft_api::v1::{self, Source, rate_limit::Key};
use weft_crds::TrafficPolicySpec;
use weft_crds::traffic_policy as crd;

use super::cluster::source;
use super::route;
use crate::index::{Index, Service, ServicePort, Space};

/// Whether any rule limits.
#[must_use]
pub fn any(policy: &TrafficPolicySpec) -> bool {
    policy.rules.iter().any(|rule| rule.rate_limit.is_some())
}

/// The rules for a port of the pod that a port of a Service leads to; `None` when nothing is limited.
pub fn inbound(
    space: &Space,
    service: &Service,
    port: &ServicePort,
    number: u16,
    sources: &mut Vec<Source>,
) -> Option<v1::InboundRules> {
    let policy = space.governing(&service.key.name, port.port)?;
    // In written order, what comes after the last rule with a limit makes no difference.
    let precedence = route::precedence(policy.spec.precedence);
    let last = match (policy.spec.rules.iter().rposition(|rule| rule.rate_limit.is_some())?, precedence) {
        (last, v1::Precedence::Written) => last,
        (_, v1::Precedence::Specificity) => policy.spec.rules.len() - 1,
    };
    sources.push(source("TrafficPolicy", policy));
    let rules = policy.spec.rules[..=last].iter().enumerate();
    Some(v1::InboundRules {
        port: number.into(),
        service: format!("{}:{}", service.key, port.port),
        precedence: precedence.into(),
        rules: rules
            .map(|(position, rule)| v1::InboundRule {
                name: route::name(&policy.key.name, position, rule),
                matches: rule.matches.iter().map(route::matching).collect(),
                rate_limit: rule.rate_limit.as_ref().map(rate_limit),
            })
            .collect(),
    })
}

fn rate_limit(given: &crd::RateLimit) -> v1::RateLimit {
    v1::RateLimit {
        requests: given.requests,
        per_ms: given.per.as_millis(),
        burst: given.burst.unwrap_or(given.requests),
        key: given.key.as_ref().and_then(key),
        mesh: shared(given),
    }
}

/// Whether all replicas keep it together.
fn shared(given: &crd::RateLimit) -> bool {
    given.scope == Some(crd::RateLimitScope::Mesh)
}

/// Whether there is any limit that replicas keep together.
#[must_use]
pub fn any_shared(index: &Index) -> bool {
    let governing = index.spaces().flat_map(|(_, space)| space.settled.governed.values().flatten());
    let mut rules = governing.flat_map(|governing| &governing.policy.spec.rules);
    rules.any(|rule| rule.rate_limit.as_ref().is_some_and(shared))
}

/// Whether a pod keeps a limit of that id together with others.
#[must_use]
pub fn keeps(workload: &v1::Workload, id: &str) -> bool {
    workload.inbound_rules.iter().any(|port| {
        let mut shared =
            port.rules.iter().filter(|rule| rule.rate_limit.as_ref().is_some_and(|limit| limit.mesh));
        shared.any(|rule| names::limit_id(&port.service, &rule.name) == id)
    })
}

fn key(given: &crd::RateLimitKey) -> Option<Key> {
    match given.kind {
        crd::RateLimitKeyType::Identity => Some(Key::Identity(true)),
        crd::RateLimitKeyType::SourceIp => Some(Key::SourceIp(true)),
        crd::RateLimitKeyType::Header => {
            given.header.as_ref().map(|name| Key::Header(name.to_ascii_lowercase()))
        }
        crd::RateLimitKeyType::Path => given.path.clone().map(Key::PathTemplate),
    }
}
