//! Rate limits of the own pod. A limit that was there before goes on with its buckets. It keeps nothing itself.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use weft_api::{names, v1};

use super::matches::request_match;
use super::{Invalid, Result, list, port_of, required, unknown};
use crate::limit::key::{Key, Template};
use crate::limit::{Limit, Limits, PortRules, Rule};
use crate::route::precedence;

/// `None` when there are none, so that a request is asked nothing. `last`: as they were before.
pub(in crate::snapshot) fn limits(
    message: &[v1::InboundRules],
    last: Option<&Arc<Limits>>,
) -> Result<Option<Arc<Limits>>> {
    if message.is_empty() {
        return Ok(None);
    }
    let ports = list("inbound_rules", message, |port| {
        let rules = list("rules", &port.rules, |rule| {
            Ok(Rule {
                matches: list("matches", &rule.matches, request_match)?,
                limit: match &rule.rate_limit {
                    Some(limit) => Some(Arc::new(
                        rate_limit(&port.service, &rule.name, limit, last)
                            .map_err(|e| e.within("rate_limit"))?,
                    )),
                    None => None,
                },
            })
        })?;
        let rules = match v1::Precedence::try_from(port.precedence) {
            Ok(v1::Precedence::Written) => rules,
            Ok(v1::Precedence::Specificity) => by_specificity(&rules),
            Err(_) => return Err(unknown("precedence", port.precedence)),
        };
        Ok(PortRules { port: port_of(port.port).map_err(|e| e.within("port"))?, rules })
    })?;
    Ok(Some(Arc::new(Limits::new(ports, message.to_vec()))))
}

/// One rule for each match, so that the first that matches is the most specific one. They share the limit.
fn by_specificity(rules: &[Rule]) -> Vec<Rule> {
    let ranked = precedence::ranked(rules.iter().map(|rule| rule.matches.as_slice()));
    let one = |one: precedence::Ranked| Rule {
        matches: one.matching.into_iter().collect(),
        limit: rules[one.rule].limit.clone(),
    };
    ranked.into_iter().map(one).collect()
}

fn rate_limit(
    service: &str,
    name: &str,
    message: &v1::RateLimit,
    last: Option<&Arc<Limits>>,
) -> Result<Limit> {
    if message.requests == 0 || message.per_ms == 0 {
        return Err(Invalid::new("requests", "and per_ms must be above 0"));
    }
    let burst = if message.burst == 0 { message.requests } else { message.burst };
    let id: Arc<str> = names::limit_id(required("service", service)?, required("name", name)?).into();
    let last = last.and_then(|last| last.all().find(|limit| limit.id == id));
    let key = key(message)?;
    if message.mesh && key != Key::All {
        return Err(Invalid::new("mesh", "is not possible together with a key"));
    }
    let per = Duration::from_millis(message.per_ms.min(86_400_000));
    Ok(Limit::new(id, name, (message.requests, per, burst), key, message.mesh, last.map(|limit| &**limit)))
}

fn key(message: &v1::RateLimit) -> Result<Key> {
    use v1::rate_limit::Key as Wire;
    Ok(match &message.key {
        None => Key::All,
        Some(Wire::Identity(_)) => Key::Identity,
        Some(Wire::SourceIp(_)) => Key::SourceIp,
        Some(Wire::Header(name)) => Key::Header(
            HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| Invalid::new("header", format!("`{name}` is not the name of a header")))?,
        ),
        Some(Wire::PathTemplate(text)) => Key::Path(
            Template::parse(text).map_err(|why| Invalid::new("path_template", format!("`{text}` {why}")))?,
        ),
    })
}
