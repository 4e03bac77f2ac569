//! Routes of a port: the rules of the TrafficPolicy in force, with what they send to, and last the Service as a whole.

use weft_api::v1::{self, header_match, r#match, query_match};
use weft_crds::traffic_policy as crd;

use super::filters;

/// The name of the last route.
pub const DEFAULT_ROUTE: &str = "default";

/// One route of a rule. `cluster_of` says which cluster a backend means; `None` when there is nothing any more: its share
/// goes to the others, and without others the rule sends to the Service as a whole.
pub fn rule(
    policy: &str,
    position: usize,
    rule: &crd::Rule,
    default_cluster: &str,
    mut cluster_of: impl FnMut(&crd::Backend) -> Option<String>,
) -> v1::Route {
    let mut backends: Vec<v1::Backend> = Vec::new();
    for given in rule.split.iter().filter(|b| b.weight > 0) {
        let Some(cluster) = cluster_of(given) else { continue };
        match backends.iter_mut().find(|b| b.cluster == cluster) {
            Some(same) => same.weight = same.weight.saturating_add(given.weight),
            None => backends.push(v1::Backend { cluster, weight: given.weight }),
        }
    }
    if backends.is_empty() {
        backends.push(v1::Backend { cluster: default_cluster.to_owned(), weight: 1 });
    }
    let mirror = rule.mirror.as_ref().and_then(|given| {
        let backend =
            crd::Backend { service: given.service.clone(), subset: given.subset.clone(), weight: 1 };
        // What is gone gets no copies.
        Some(v1::Mirror { cluster: cluster_of(&backend)?, percent: given.percent.unwrap_or(100) })
    });
    v1::Route {
        name: name(policy, position, rule),
        matches: rule.matches.iter().map(matching).collect(),
        backends,
        timeout_ms: rule.timeout.map_or(0, |d| d.as_millis()),
        retry: Some(retry(rule.retry.as_ref())),
        filters: filters::of(rule),
        breaker: rule.circuit_breaker.as_ref().map(breaker),
        idle_timeout_ms: rule.idle_timeout.map_or(0, |d| d.as_millis()),
        mirror,
        hedge: rule.hedge.as_ref().map(hedge),
    }
}

fn breaker(given: &crd::RuleCircuitBreaker) -> v1::Breaker {
    v1::Breaker {
        // Connections are shared by all rules.
        max_connections: 0,
        max_pending_requests: given.max_pending_requests.unwrap_or(0),
        max_concurrent_requests: given.max_concurrent_requests.unwrap_or(0),
        max_retries: given.max_retries.unwrap_or(0),
    }
}

/// The name of a rule's route.
pub fn name(policy: &str, position: usize, rule: &crd::Rule) -> String {
    format!("{policy}/{}", rule.name.clone().unwrap_or_else(|| position.to_string()))
}

/// What no rule matches.
pub fn catch_all(default_cluster: &str) -> v1::Route {
    v1::Route {
        name: DEFAULT_ROUTE.into(),
        matches: Vec::new(),
        backends: vec![v1::Backend { cluster: default_cluster.to_owned(), weight: 1 }],
        timeout_ms: 0,
        retry: Some(retry(None)),
        ..Default::default()
    }
}

fn hedge(given: &crd::Hedge) -> v1::Hedge {
    v1::Hedge { delay_ms: given.delay.as_millis(), max_attempts: given.max_attempts.unwrap_or(2) }
}

/// Conditions of a rule.
pub fn matching(given: &crd::Match) -> v1::Match {
    let path = given.path.as_ref().and_then(|p| {
        let exact = p.exact.clone().map(r#match::Path::PathExact);
        let prefix = || p.prefix.clone().map(r#match::Path::PathPrefix);
        let regex = || p.regex.clone().map(r#match::Path::PathRegex);
        exact.or_else(prefix).or_else(regex)
    });
    v1::Match {
        path,
        method: given.method.clone().unwrap_or_default(),
        headers: given.headers.iter().map(header).collect(),
        query: given.query.iter().map(query).collect(),
        hosts: given.hosts.clone(),
        source: given.source.as_ref().map(|source| v1::SourceMatch {
            identities: source.identities.clone(),
            namespaces: source.namespaces.clone(),
        }),
    }
}

fn query(given: &crd::QueryMatch) -> v1::QueryMatch {
    let exact = given.exact.clone().map(query_match::Value::Exact);
    let prefix = || given.prefix.clone().map(query_match::Value::Prefix);
    let regex = || given.regex.clone().map(query_match::Value::Regex);
    let present = || Some(query_match::Value::Present(given.present.unwrap_or(true)));
    v1::QueryMatch { name: given.name.clone(), value: exact.or_else(prefix).or_else(regex).or_else(present) }
}

/// Of a policy's rules.
pub const fn precedence(given: Option<crd::Precedence>) -> v1::Precedence {
    match given {
        None | Some(crd::Precedence::Written) => v1::Precedence::Written,
        Some(crd::Precedence::Specificity) => v1::Precedence::Specificity,
    }
}

fn header(given: &crd::HeaderMatch) -> v1::HeaderMatch {
    let exact = given.exact.clone().map(header_match::Value::Exact);
    let prefix = || given.prefix.clone().map(header_match::Value::Prefix);
    let regex = || given.regex.clone().map(header_match::Value::Regex);
    let present = || Some(header_match::Value::Present(given.present.unwrap_or(true)));
    v1::HeaderMatch {
        name: given.name.to_ascii_lowercase(),
        value: exact.or_else(prefix).or_else(regex).or_else(present),
    }
}

fn retry(given: Option<&crd::Retry>) -> v1::Retry {
    let given = given.cloned().unwrap_or_default();
    let budget = given.budget.unwrap_or_default();
    let on: Vec<i32> = if given.on.is_empty() {
        vec![v1::RetryOn::ConnectFailure.into(), v1::RetryOn::Reset.into()]
    } else {
        given.on.iter().map(|on| i32::from(retry_on(*on))).collect()
    };
    let backoff_base_ms = given.backoff.map_or(25, |d| d.as_millis());
    v1::Retry {
        attempts: given.attempts.unwrap_or(2),
        per_try_timeout_ms: given.per_try_timeout.map_or(0, |d| d.as_millis()),
        on,
        non_idempotent: given.non_idempotent.unwrap_or(false),
        backoff_base_ms,
        backoff_max_ms: given.max_backoff.map_or(250, |d| d.as_millis()).max(backoff_base_ms),
        budget_percent: budget.percent.unwrap_or(20),
        budget_min_per_second: budget.min_per_second.unwrap_or(10),
        status_codes: given.status_codes.iter().map(|code| (*code).into()).collect(),
        grpc_statuses: given.grpc_statuses.iter().map(|status| status.code()).collect(),
        max_body_bytes: given.max_body_bytes,
    }
}

const fn retry_on(on: crd::RetryOn) -> v1::RetryOn {
    match on {
        crd::RetryOn::ConnectFailure => v1::RetryOn::ConnectFailure,
        crd::RetryOn::Reset => v1::RetryOn::Reset,
        crd::RetryOn::GatewayError => v1::RetryOn::GatewayError,
        crd::RetryOn::ServerError => v1::RetryOn::RetryOn5xx,
        crd::RetryOn::GrpcUnavailable => v1::RetryOn::GrpcUnavailable,
    }
}
