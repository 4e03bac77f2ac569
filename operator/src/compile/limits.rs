//! Rate limits of a pod: for each port of a Service that leads to it, the rules of the TrafficPolicy in force, as far as it
//! takes to tell which requests are limited. Pure.

use weft_api::v1::{self, Source, rate_limit::Key};
use weft_crds::TrafficPolicySpec;
use weft_crds::traffic_policy as crd;

use super::cluster::source;
use super::route;
use crate::index::{Service, ServicePort, Space};

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
    // What comes after the last rule with a limit makes no difference.
    let last = policy.spec.rules.iter().rposition(|rule| rule.rate_limit.is_some())?;
    sources.push(source("TrafficPolicy", policy));
    let rules = policy.spec.rules[..=last].iter().enumerate();
    Some(v1::InboundRules {
        port: number.into(),
        service: format!("{}:{}", service.key, port.port),
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
        mesh: false,
    }
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
