//! The policies of the own pod, made into an index. Whatever of them cannot be understood is a reason to take none of them:
//! half a policy could allow what the whole one forbids. It keeps nothing itself.

use std::sync::Arc;

use http::Method;
use weft_api::{Identity, TrustDomain, v1};

use super::matches::{header_match, value_match};
use super::{Invalid, Result, list, port_of, required, unknown};
use crate::authorize::segments::PathRule;
use crate::authorize::{Action, Authorization, Condition, Policy, Principal, Rule, Source, Target, weight};
use crate::route::host::HostMatch;
use crate::token::claims::ClaimMatch;

/// What this proxy understands, see `Authorization.level`.
const LEVEL: u32 = 3;
/// Sources and targets of all rules together.
const MOST: usize = 100_000;

/// `None` when there are none, so that a request is asked nothing. `last`: as it was before.
pub(in crate::snapshot) fn authorization(
    message: Option<&v1::Authorization>,
    own: &Identity,
    last: Option<&Arc<Authorization>>,
) -> Result<Option<Arc<Authorization>>> {
    let Some(message) = message.filter(|message| !message.policies.is_empty()) else { return Ok(None) };
    if let Some(last) = last.filter(|last| last.message() == message) {
        return Ok(Some(Arc::clone(last)));
    }
    parsed(message, own).map(|new| Some(Arc::new(new))).map_err(|e| e.within("authorization"))
}

fn parsed(message: &v1::Authorization, own: &Identity) -> Result<Authorization> {
    if message.level > LEVEL {
        let problem =
            format!("{} is beyond what this proxy understands, {LEVEL}: update the proxy", message.level);
        return Err(Invalid::new("level", problem));
    }
    let policies = list("policies", &message.policies, policy)?;
    let rules = policies.iter().flat_map(|policy| &policy.rules);
    let parts: usize = rules.map(weight).sum();
    if parts > MOST {
        let problem =
            format!("have {parts} entries in `from` and `to` together; more than {MOST} are not taken");
        return Err(Invalid::new("policies", problem));
    }
    Ok(Authorization::new(own.trust_domain.as_str(), &policies, message.clone()))
}

fn policy(message: &v1::AuthorizationPolicy) -> Result<Policy> {
    let action = match v1::AuthorizationAction::try_from(message.action) {
        Ok(v1::AuthorizationAction::Allow) => Action::Allow,
        Ok(v1::AuthorizationAction::Deny) => Action::Deny,
        Ok(v1::AuthorizationAction::Audit) => Action::Audit,
        Ok(v1::AuthorizationAction::Unspecified) | Err(_) => return Err(unknown("action", message.action)),
    };
    let (namespace, name) = (required("namespace", &message.namespace)?, required("name", &message.name)?);
    Ok(Policy {
        name: format!("{namespace}/{name}").into(),
        action,
        dry_run: message.dry_run,
        audit: message.audit,
        rules: list("rules", &message.rules, rule)?,
    })
}

fn rule(message: &v1::AuthorizationRule) -> Result<Rule> {
    Ok(Rule {
        name: message.name.as_str().into(),
        from: list("from", &message.from, source)?,
        to: list("to", &message.to, target)?,
        when: list("when", &message.when, |condition| match &condition.of {
            Some(v1::authorization_condition::Of::Header(header)) => {
                header_match(header).map(Condition::Header).map_err(|e| e.within("header"))
            }
            Some(v1::authorization_condition::Of::Claim(claim)) => {
                claim_match(claim).map(Condition::Claim).map_err(|e| e.within("claim"))
            }
            None => Err(Invalid::new(
                "of",
                "is not given: update the proxy, its operator knows a condition that it does not",
            )),
        })?,
    })
}

fn claim_match(message: &v1::ClaimMatch) -> Result<ClaimMatch> {
    let value = value_match!(claim_match, &message.value);
    Ok(ClaimMatch { claim: super::tokens::claim("claim", &message.claim)?, value })
}

fn source(message: &v1::AuthorizationSource) -> Result<Source> {
    Ok(Source {
        identities: list("identities", &message.identities, |text| {
            weft_api::spiffe::pattern(text).map_err(|e| Invalid::new("", e.to_string()))?;
            Ok(text.clone())
        })?,
        trust_domains: list("trust_domains", &message.trust_domains, |text| {
            text.parse::<TrustDomain>().map_err(|e| Invalid::new("", e.to_string()))?;
            Ok(text.clone())
        })?,
        namespaces: list("namespaces", &message.namespaces, |text| required("", text).map(str::to_owned))?,
        principals: message
            .principals
            .iter()
            .map(|p| Principal { issuer: p.issuer.clone(), subject: p.subject.clone() })
            .collect(),
        blocks: list("ip_blocks", &message.ip_blocks, |text| {
            text.parse().map_err(|e: crate::authorize::address::NoBlock| Invalid::new("", e.to_string()))
        })?,
    })
}

fn target(message: &v1::AuthorizationTarget) -> Result<Target> {
    Ok(Target {
        ports: list("ports", &message.ports, |port| port_of(*port))?,
        hosts: list("hosts", &message.hosts, |text| {
            HostMatch::parse(text).ok_or_else(|| Invalid::new("", format!("`{text}` is not a host")))
        })?,
        methods: list("methods", &message.methods, |text| {
            Method::from_bytes(text.as_bytes())
                .map_err(|_| Invalid::new("", format!("`{text}` is not an HTTP method")))
        })?,
        paths: list("paths", &message.paths, path)?,
    })
}

fn path(message: &v1::AuthorizationPath) -> Result<PathRule> {
    use v1::authorization_path::Path;
    let (parsed, text) = match &message.path {
        Some(Path::Exact(text)) => (PathRule::exact(text), text),
        Some(Path::Prefix(text)) => (PathRule::prefix(text), text),
        Some(Path::Template(text)) => (PathRule::template(text), text),
        None => {
            return Err(Invalid::new(
                "path",
                "is not given: update the proxy, its operator knows a condition that it does not",
            ));
        }
    };
    parsed.map_err(|why| Invalid::new("path", format!("`{text}` {why}")))
}
