//! Who may ask a pod for what: every AuthorizationPolicy that selects it, of its own namespace and of the mesh. Pure; what
//! they come to together is worked out by the proxy.

use weft_api::v1::{
    self, Source, authorization_condition::Of, authorization_path::Path, header_match::Value,
};
use weft_crds::AuthorizationPolicySpec;
use weft_crds::authorization_policy as crd;
use weft_crds::validate;

use super::cluster::source;
use crate::index::policy::InForce;
use crate::index::{Index, Pod, selects};

/// What a proxy has to understand of it, see `Authorization.level`.
const LEVEL: u32 = 1;
/// The same, where something looks at tokens.
const LEVEL_OF_TOKENS: u32 = 2;
/// The same, where something looks at trust domains.
const LEVEL_OF_TRUST_DOMAINS: u32 = 3;

/// The policies of a pod; `None`: there are none.
pub fn authorization(index: &Index, pod: &Pod, sources: &mut Vec<Source>) -> Option<v1::Authorization> {
    let of_mesh = in_force(index, &index.own_namespace).filter(|policy| policy.spec.selector.is_none());
    let own = in_force(index, &pod.key.namespace).filter(|policy| {
        let selector = policy.spec.selector.as_ref();
        selector.is_none_or(|selector| selects(&selector.match_labels, &pod.labels))
    });
    let mut all: Vec<&InForce<AuthorizationPolicySpec>> = own.collect();
    if pod.key.namespace != index.own_namespace {
        all.extend(of_mesh);
    }
    all.sort_by(|a, b| a.key.cmp(&b.key));
    sources.extend(all.iter().map(|policy| source("AuthorizationPolicy", policy)));
    // An older proxy shall refuse only what it does not understand.
    let rules = all.iter().flat_map(|policy| &policy.spec.rules);
    let level = rules.map(level).max().unwrap_or(LEVEL);
    let policies: Vec<_> = all.into_iter().map(policy).collect();
    (!policies.is_empty()).then_some(v1::Authorization { policies, level })
}

fn level(rule: &crd::Rule) -> u32 {
    let of_token = rule.from.iter().any(|source| !source.request_principals.is_empty())
        || rule.when.iter().any(|condition| condition.claim.is_some());
    match rule.from.iter().any(|source| !source.trust_domains.is_empty()) {
        true => LEVEL_OF_TRUST_DOMAINS,
        false if of_token => LEVEL_OF_TOKENS,
        false => LEVEL,
    }
}

fn in_force<'a>(
    index: &'a Index,
    namespace: &str,
) -> impl Iterator<Item = &'a InForce<AuthorizationPolicySpec>> {
    let all = index.space(namespace).into_iter().flat_map(|space| space.authorization_policies.values());
    all.filter_map(|tracked| tracked.good.as_ref())
}

fn policy(policy: &InForce<AuthorizationPolicySpec>) -> v1::AuthorizationPolicy {
    let action = match policy.spec.action {
        crd::Action::Allow => v1::AuthorizationAction::Allow,
        crd::Action::Deny => v1::AuthorizationAction::Deny,
        crd::Action::Audit => v1::AuthorizationAction::Audit,
    };
    v1::AuthorizationPolicy {
        namespace: policy.key.namespace.clone(),
        name: policy.key.name.clone(),
        action: action.into(),
        dry_run: policy.spec.dry_run.unwrap_or_default(),
        audit: policy.spec.audit.unwrap_or_default(),
        rules: policy.spec.rules.iter().enumerate().map(|(position, given)| rule(position, given)).collect(),
    }
}

fn rule(position: usize, given: &crd::Rule) -> v1::AuthorizationRule {
    v1::AuthorizationRule {
        name: given.name.clone().unwrap_or_else(|| position.to_string()),
        from: given
            .from
            .iter()
            .map(|from| v1::AuthorizationSource {
                identities: from.identities.clone(),
                trust_domains: from.trust_domains.clone(),
                namespaces: from.namespaces.clone(),
                ip_blocks: from.ip_blocks.clone(),
                principals: from.request_principals.iter().filter_map(|text| principal(text)).collect(),
            })
            .collect(),
        to: given.to.iter().map(target).collect(),
        when: given.when.iter().map(condition).collect(),
    }
}

fn principal(text: &str) -> Option<v1::TokenPrincipal> {
    let (issuer, subject) = validate::principal(text)?;
    Some(v1::TokenPrincipal { issuer: issuer.map(str::to_owned), subject: subject.map(str::to_owned) })
}

fn target(given: &crd::Target) -> v1::AuthorizationTarget {
    let path = |path| v1::AuthorizationPath { path: Some(path) };
    let paths = given.paths.iter().filter_map(|given| {
        let exact = given.exact.clone().map(Path::Exact);
        exact
            .or_else(|| given.prefix.clone().map(Path::Prefix))
            .or_else(|| given.template.clone().map(Path::Template))
    });
    // A gRPC service is the first segment of the path, a method the second (gRPC over HTTP2, "Requests").
    let services = given.services.iter().map(|name| {
        let text = format!("/{name}");
        if name.contains('/') { Path::Exact(text) } else { Path::Prefix(text) }
    });
    v1::AuthorizationTarget {
        ports: given.ports.iter().map(|port| u32::from(*port)).collect(),
        hosts: given.hosts.clone(),
        methods: given.methods.clone(),
        paths: paths.chain(services).map(path).collect(),
    }
}

fn condition(given: &crd::Condition) -> v1::AuthorizationCondition {
    if let Some(claim) = &given.claim {
        use v1::claim_match::Value;
        let value = given.exact.clone().map(Value::Exact);
        let value = value
            .or_else(|| given.prefix.clone().map(Value::Prefix))
            .or_else(|| given.regex.clone().map(Value::Regex))
            .or_else(|| given.present.map(Value::Present));
        let claim = validate::claim_path(claim).unwrap_or_default();
        return v1::AuthorizationCondition { of: Some(Of::Claim(v1::ClaimMatch { claim, value })) };
    }
    let exact = given.exact.clone().map(Value::Exact);
    let value = exact
        .or_else(|| given.prefix.clone().map(Value::Prefix))
        .or_else(|| given.regex.clone().map(Value::Regex))
        .or_else(|| given.present.map(Value::Present));
    let header =
        v1::HeaderMatch { name: given.header.as_deref().unwrap_or_default().to_ascii_lowercase(), value };
    v1::AuthorizationCondition { of: Some(Of::Header(header)) }
}
