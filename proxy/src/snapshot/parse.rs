//! From the operator's messages to what the data path uses: every text checked, every regular expression compiled within
//! bounds. An error is one sentence that names the field; it becomes a rejection. It keeps nothing.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use regex::{Regex, RegexBuilder};
use weft_api::{Identity, v1};

use super::apply::{Carried, Known};
use super::{
    Cluster, Endpoint, EndpointCheck, MtlsMode, Probe, Protocol, Service, Target, Workload, service_of,
};
use crate::adaptive;
use crate::breaker::Limits;
use crate::checks::standing::{ActiveCheck, Kind};
use crate::egress::Host;
use crate::originate::Originate;
use crate::outlier::{LatencyRule, OutlierConfig, SuccessRate};
use crate::retry::{GrpcCodes, RetryPolicy, StatusCodes};
use crate::route::{Backend, Hedge, Mirror, Route, precedence};

mod authorization;
mod balance;
mod filters;
mod limits;
mod matches;
mod tokens;

pub(super) use authorization::authorization;
pub(super) use limits::limits;
pub(super) use tokens::tokens;

/// Why a resource is not taken.
#[derive(Debug, thiserror::Error)]
#[error("{field}: {problem}")]
pub(super) struct Invalid {
    field: String,
    problem: String,
}

impl Invalid {
    fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }

    /// The same, further inside.
    fn within(self, outer: &str) -> Self {
        let inner = self.field;
        Self { field: if inner.is_empty() { outer.to_owned() } else { format!("{outer}.{inner}") }, ..self }
    }
}

type Result<T> = std::result::Result<T, Invalid>;

fn list<T, U>(field: &str, items: &[T], mut parse: impl FnMut(&T) -> Result<U>) -> Result<Vec<U>> {
    items
        .iter()
        .enumerate()
        .map(|(i, item)| parse(item).map_err(|e| e.within(&format!("{field}[{i}]"))))
        .collect()
}

/// Without its rate limits, policies and issuers of tokens, see [`limits`], [`authorization`] and [`tokens`].
pub(super) fn workload(message: &v1::Workload) -> Result<Workload> {
    let ports = |field: &'static str, port: &u32| port_of(*port).map_err(|e| e.within(field));
    Ok(Workload {
        namespace: required("namespace", &message.namespace)?.into(),
        pod: required("pod", &message.pod)?.into(),
        name: required("name", &message.name)?.into(),
        identity: identity("identity", &message.identity)?,
        mtls: mtls("mtls", message.mtls)?,
        port_mtls: message
            .port_mtls
            .iter()
            .map(|(port, mode)| Ok((ports("port_mtls", port)?, mtls("port_mtls", *mode)?)))
            .collect::<Result<_>>()?,
        port_protocol: message
            .port_protocol
            .iter()
            .map(|(port, p)| Ok((ports("port_protocol", port)?, protocol("port_protocol", *p)?)))
            .collect::<Result<_>>()?,
        probes: list("probes", &message.probes, probe)?,
        port_service: message
            .port_service
            .iter()
            .map(|(port, service)| Ok((ports("port_service", port)?, service.as_str().into())))
            .collect::<Result<_>>()?,
        sources: message.sources.clone(),
        limits: None,
        authorization: None,
        tokens: None,
        registered_only: match v1::OutboundPolicy::try_from(message.outbound_policy) {
            Ok(v1::OutboundPolicy::AllowAny) => false,
            Ok(v1::OutboundPolicy::RegisteredOnly) => true,
            Err(_) => return Err(unknown("outbound_policy", message.outbound_policy)),
        },
        zone: message.zone.as_str().into(),
        region: message.region.as_str().into(),
    })
}

fn probe(message: &v1::Probe) -> Result<Probe> {
    let port = port_of(message.port).map_err(|e| e.within("port"))?;
    match &message.kind {
        Some(v1::probe::Kind::HttpPath(path)) => {
            // The kubelet takes a path without its slash too.
            let slash = if path.starts_with('/') { "" } else { "/" };
            Ok(Probe::Http(port, format!("{slash}{path}")))
        }
        Some(v1::probe::Kind::GrpcService(service)) => Ok(Probe::Grpc(port, service.clone())),
        None => Err(Invalid::new(
            "kind",
            "is not given: update the proxy, its operator knows a kind that it does not",
        )),
    }
}

pub(super) fn address(
    message: &v1::Address,
    services: &HashMap<Arc<str>, Arc<Service>>,
) -> Result<(SocketAddr, Target)> {
    let address = socket("address", &message.address)?;
    let known = |key: &str| {
        let service = services.get(key).cloned();
        service.ok_or_else(|| Invalid::new("service", format!("`{key}` is not known here, or was rejected")))
    };
    let target = match &message.target {
        Some(v1::address::Target::Service(key)) => Target::Service(known(key)?),
        Some(v1::address::Target::Pinned(pinned)) => {
            let service = known(&pinned.service)?;
            let addr = socket("pinned.endpoint", &pinned.endpoint)?;
            let endpoint = service.endpoint(addr).cloned().ok_or_else(|| {
                let problem = format!("`{addr}` is not an endpoint of `{}`", service.default_cluster.name);
                Invalid::new("pinned.endpoint", problem)
            })?;
            Target::Pinned(service, endpoint)
        }
        Some(v1::address::Target::External(_)) => Target::External,
        None => return Err(Invalid::new("target", "is not given")),
    };
    Ok((address, target))
}

/// `own`: the own workload, as far as it is known.
pub(super) fn service(
    message: &v1::Service,
    fingerprint: u64,
    own: Option<&Identity>,
    carried: &mut Carried,
) -> Result<Service> {
    let key: Arc<str> = required("key", &message.key)?.into();
    let clusters = list("clusters", &message.clusters, |c| cluster(c, carried).map(Arc::new))?;
    let default_cluster =
        find(&clusters, &message.default_cluster).map_err(|e| e.within("default_cluster"))?;
    let routes = list("routes", &message.routes, |r| route(r, &key, &clusters, own, carried))?;
    let routes: Vec<Route> = routes.into_iter().flatten().collect();
    if !routes.last().is_some_and(|last| last.matches.is_empty()) {
        return Err(Invalid::new("routes", "the last one must match everything"));
    }
    let kept = clusters.iter().any(|cluster| cluster.locality.is_some());
    let ranked = match v1::Precedence::try_from(message.precedence) {
        Ok(v1::Precedence::Written) => None,
        // All but the last, which takes what is left.
        Ok(v1::Precedence::Specificity) => {
            Some(precedence::ranked(routes[..routes.len() - 1].iter().map(|route| route.matches.as_slice())))
        }
        Err(_) => return Err(unknown("precedence", message.precedence)),
    };
    Ok(Service {
        namespace: required("namespace", &message.namespace)?.into(),
        name: required("name", &message.name)?.into(),
        port: port_of(message.port).map_err(|e| e.within("port"))?,
        protocol: protocol("protocol", message.protocol)?,
        routes,
        ranked,
        default_cluster,
        clusters,
        hosts: message.hosts.clone(),
        sources: message.sources.clone(),
        external: message
            .egress
            .as_ref()
            .map(|egress| {
                list("hosts", &egress.hosts, |text| Host::parse(text).map_err(|e| Invalid::new("", e)))
            })
            .transpose()
            .map_err(|e| e.within("egress"))?,
        live: carried.service(&key),
        key,
        fingerprint,
        message: kept.then(|| Arc::new(message.clone())),
    })
}

fn find(clusters: &[Arc<Cluster>], name: &str) -> Result<Arc<Cluster>> {
    let found = clusters.iter().find(|cluster| &*cluster.name == name).cloned();
    found.ok_or_else(|| Invalid::new("", format!("`{name}` is not one of the clusters")))
}

fn cluster(message: &v1::Cluster, carried: &mut Carried) -> Result<Cluster> {
    let name: Arc<str> = required("name", &message.name)?.into();
    let balancer = balance::balancer(message)?;
    let mut known = carried.lend(service_of(&name));
    let mut before: Option<Arc<Endpoint>> = None;
    let endpoints = list("endpoints", &message.endpoints, |e| {
        let endpoint = endpoint(e, message.active.is_some(), &mut known, before.as_deref())?;
        before = Some(Arc::clone(&endpoint));
        Ok(endpoint)
    });
    carried.give_back(service_of(&name), known);
    let endpoints = endpoints?;
    let (breaker, live) = carried.cluster(&name, breaker(message.breaker.as_ref()));
    let locality = balance::locality(message.locality)?;
    let plan = balance::plan(&name, message, balancer, locality, &endpoints, carried)?;
    Ok(Cluster {
        balancer,
        endpoints,
        breaker,
        outlier: message.outlier.as_ref().and_then(outlier),
        active: message.active.as_ref().map(|a| active(a, &message.checkers)).transpose()?.map(Arc::new),
        connect_timeout: millis(message.connect_timeout_ms).unwrap_or(CONNECT_TIMEOUT),
        idle_timeout: millis(message.idle_timeout_ms).unwrap_or(IDLE_TIMEOUT),
        max_requests_per_connection: unless_zero(message.max_requests_per_connection),
        tls: message.tls.as_ref().map(originate).transpose()?,
        live,
        adaptive: match &message.adaptive {
            Some(given) => {
                let config = adaptive(given).map_err(|e| e.within("adaptive"))?;
                Some(carried.adaptive(&name, config))
            }
            None => None,
        },
        name,
        hash: balance::hash(balancer, message)?,
        slow_start: message.slow_start.as_ref().and_then(balance::slow_start),
        locality,
        panic_threshold: message.panic_threshold_percent.min(100),
        plan,
    })
}

fn originate(message: &v1::OriginateTls) -> Result<Arc<Originate>> {
    Originate::new(&message.sni, &message.roots_der).map(Arc::new).map_err(|e| Invalid::new("tls", e))
}

/// A service of one endpoint, under no policy.
pub(super) fn unregistered(address: SocketAddr) -> Option<Service> {
    const NAME: &str = "unregistered";
    let endpoint = v1::Endpoint { address: address.to_string(), weight: 1, ..Default::default() };
    let cluster = v1::Cluster {
        name: NAME.into(),
        endpoints: vec![endpoint],
        connect_timeout_ms: 10_000,
        ..Default::default()
    };
    let route = v1::Route {
        backends: vec![v1::Backend { cluster: NAME.into(), weight: 1 }],
        retry: Some(v1::Retry::default()),
        ..Default::default()
    };
    let message = v1::Service {
        key: NAME.into(),
        namespace: NAME.into(),
        name: NAME.into(),
        port: address.port().into(),
        routes: vec![route],
        clusters: vec![cluster],
        default_cluster: NAME.into(),
        ..Default::default()
    };
    let service = service(&message, 0, None, &mut Carried::default()).ok()?;
    // As for opaque bytes, it has no name in logs and metrics.
    Some(Service { key: Arc::default(), namespace: Arc::default(), name: Arc::default(), ..service })
}

/// Where the operator says nothing.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

fn breaker(message: Option<&v1::Breaker>) -> Limits {
    message.map_or_else(Limits::default, |breaker| Limits {
        connections: unless_zero(breaker.max_connections),
        pending: unless_zero(breaker.max_pending_requests),
        requests: unless_zero(breaker.max_concurrent_requests),
        retries: unless_zero(breaker.max_retries),
    })
}

fn outlier(message: &v1::Outlier) -> Option<OutlierConfig> {
    let base_ejection = millis(message.base_ejection_ms).unwrap_or(Duration::from_secs(10));
    let success_rate = message.success_rate.as_ref().map(|rule| SuccessRate {
        min_requests: rule.min_requests,
        min_hosts: rule.min_hosts,
        stdev_factor_thousandths: rule.stdev_factor_thousandths,
    });
    let latency = message.latency.as_ref().map(|rule| LatencyRule {
        min_requests: rule.min_requests,
        factor_thousandths: rule.factor_thousandths.max(1000),
    });
    let beside_peers = success_rate.is_some() || latency.is_some();
    let config = OutlierConfig {
        consecutive_failures: unless_zero(message.consecutive_failures),
        consecutive_gateway_errors: unless_zero(message.consecutive_gateway_errors),
        interval: beside_peers.then(|| millis(message.interval_ms).unwrap_or(Duration::from_secs(10))),
        success_rate,
        latency,
        base_ejection,
        max_ejection: millis(message.max_ejection_ms).unwrap_or(Duration::from_secs(300)).max(base_ejection),
        max_ejected_percent: message.max_ejected_percent.min(100),
    };
    // By nothing: ejection is off, as in the resource.
    let any = config.consecutive_failures.or(config.consecutive_gateway_errors).is_some() || beside_peers;
    any.then_some(config)
}

/// `before`: the one before it in the list. `active`: the cluster's endpoints are checked.
fn endpoint(
    message: &v1::Endpoint,
    active: bool,
    known: &mut Known,
    before: Option<&Endpoint>,
) -> Result<Arc<Endpoint>> {
    let addr = socket("address", &message.address)?;
    if let Some(same) = known.same(addr, &message.pod, |last| says_the_same(last, message, active)) {
        return Ok(same);
    }
    // Neighbours mostly are of one workload: what they have in common is held once.
    let text = |text: &str, of: fn(&Endpoint) -> &Arc<str>| match before.map(of) {
        Some(shared) if **shared == *text => Arc::clone(shared),
        _ => text.into(),
    };
    let shared = before.and_then(|before| before.identity.as_ref());
    let identity = match message.identity.as_str() {
        "" => None,
        text => match shared.filter(|identity| identity.is_written(text)) {
            Some(shared) => Some(Arc::clone(shared)),
            None => Some(identity("identity", text)?),
        },
    };
    let check = message.check.as_ref().map(checked).transpose().map_err(|e| e.within("check"))?;
    let endpoint = Arc::new(Endpoint {
        addr,
        weight: message.weight,
        pod: message.pod.as_str().into(),
        workload: text(&message.workload, |e| &e.workload),
        zone: text(&message.zone, |e| &e.zone),
        region: text(&message.region, |e| &e.region),
        priority: balance::priority(message.priority)?,
        live: known.live(addr, &message.pod),
        // A file need not say it: as the endpoint's own port.
        check: check
            .or_else(|| active.then(|| EndpointCheck { identity: identity.clone(), unhealthy: false })),
        identity,
    });
    known.add(&endpoint);
    Ok(endpoint)
}

/// Whether an endpoint, of that address and pod, would come out of the message as it is.
fn says_the_same(last: &Endpoint, message: &v1::Endpoint, active: bool) -> bool {
    let identity = |identity: &Option<Arc<Identity>>, text: &str| match identity {
        Some(identity) => identity.is_written(text),
        None => text.is_empty(),
    };
    let check = match (&last.check, &message.check) {
        (None, None) => !active,
        (Some(last), None) => active && !last.unhealthy && identity(&last.identity, &message.identity),
        (Some(last), Some(now)) => last.unhealthy == now.unhealthy && identity(&last.identity, &now.identity),
        (None, Some(_)) => false,
    };
    check
        && last.weight == message.weight
        && last.priority == message.priority
        && *last.workload == *message.workload
        && *last.zone == *message.zone
        && *last.region == *message.region
        && identity(&last.identity, &message.identity)
}

fn checked(message: &v1::EndpointCheck) -> Result<EndpointCheck> {
    let identity = match message.identity.as_str() {
        "" => None,
        text => Some(identity("identity", text)?),
    };
    Ok(EndpointCheck { identity, unhealthy: message.unhealthy })
}

/// Checkers that a list may name; an operator lists 16.
const MAX_CHECKERS: usize = 64;

fn active(message: &v1::ActiveCheck, checkers: &[String]) -> Result<ActiveCheck> {
    use v1::active_check::Kind as Message;
    let kind =
        match &message.kind {
            Some(Message::Http(http)) => Kind::Http {
                path: http.path.parse().ok().filter(|_| http.path.starts_with('/')).ok_or_else(|| {
                    Invalid::new("active.http.path", format!("`{}` is not a path", http.path))
                })?,
                expected: http.expected_statuses.iter().filter_map(|s| u16::try_from(*s).ok()).collect(),
                host: match http.host.as_str() {
                    "" => None,
                    text => Some(text.parse().map_err(|_| {
                        Invalid::new("active.http.host", format!("`{text}` is not the value of a header"))
                    })?),
                },
            },
            Some(Message::Grpc(grpc)) => Kind::Grpc(grpc.service.clone()),
            Some(Message::Tcp(_)) => Kind::Tcp,
            None => {
                return Err(Invalid::new(
                    "active.kind",
                    "is not given: update the proxy, its operator knows a kind that it does not",
                ));
            }
        };
    let port = match message.port {
        0 => None,
        port => Some(port_of(port).map_err(|e| e.within("active.port"))?),
    };
    // An operator never sends less; a mistake is not to become a flood.
    let least = Duration::from_millis(50);
    let interval = millis(message.interval_ms).unwrap_or(Duration::from_secs(10)).max(least);
    Ok(ActiveCheck {
        kind,
        port,
        interval,
        timeout: millis(message.timeout_ms).unwrap_or(Duration::from_secs(1)),
        unhealthy_threshold: unless_zero(message.unhealthy_threshold).unwrap_or(3),
        healthy_threshold: unless_zero(message.healthy_threshold).unwrap_or(2),
        jitter_percent: message.jitter_percent.min(100),
        checkers: checkers.iter().take(MAX_CHECKERS).cloned().collect(),
        max_checkers: unless_zero(message.max_checkers).map_or(3, |most| most as usize),
    })
}

/// `None`: no request of the own workload can fall under it.
fn route(
    message: &v1::Route,
    service: &Arc<str>,
    clusters: &[Arc<Cluster>],
    own: Option<&Identity>,
    carried: &mut Carried,
) -> Result<Option<Route>> {
    let backends = list("backends", &message.backends, |backend| {
        let cluster = find(clusters, &backend.cluster).map_err(|e| e.within("cluster"))?;
        Ok(Backend { cluster, weight: backend.weight })
    })?;
    let total_weight = backends.iter().map(|backend| u64::from(backend.weight)).sum();
    if backends.is_empty() || (backends.len() > 1 && total_weight == 0) {
        return Err(Invalid::new("backends", "at least one must have a weight above 0"));
    }
    let filters =
        message.filters.as_ref().map(filters::filters).transpose().map_err(|e| e.within("filters"))?;
    let Some(matches) = matches::matches(&message.matches, own)? else { return Ok(None) };
    Ok(Some(Route {
        name: message.name.as_str().into(),
        matches,
        backends,
        timeout: millis(message.timeout_ms),
        retry: message
            .retry
            .as_ref()
            .map_or_else(|| Ok(RetryPolicy::default()), retry)
            .map_err(|e| e.within("retry"))?,
        idle_timeout: millis(message.idle_timeout_ms),
        mirror: message
            .mirror
            .as_ref()
            .map(|m| mirror(m, clusters))
            .transpose()
            .map_err(|e| e.within("mirror"))?,
        hedge: message.hedge.as_ref().map(hedge).transpose().map_err(|e| e.within("hedge"))?,
        total_weight,
        filters: filters.map(Arc::new),
        breaker: message
            .breaker
            .as_ref()
            .map(|limits| carried.route(service, &message.name, breaker(Some(limits)))),
    }))
}

fn adaptive(message: &v1::Adaptive) -> Result<adaptive::Config> {
    let (min, max) = (message.min_limit.max(1), message.max_limit);
    if max < min {
        return Err(Invalid::new("max_limit", format!("{max} is below min_limit, {min}")));
    }
    Ok(adaptive::Config {
        min,
        max,
        tolerance: f64::from(message.tolerance_percent.clamp(1, 1000)) / 100.0,
        baseline_every: millis(message.baseline_every_ms).unwrap_or(Duration::from_secs(60)),
    })
}

fn mirror(message: &v1::Mirror, clusters: &[Arc<Cluster>]) -> Result<Mirror> {
    let cluster = find(clusters, &message.cluster).map_err(|e| e.within("cluster"))?;
    match message.percent {
        percent @ 1..=100 => Ok(Mirror { cluster, percent }),
        percent => Err(Invalid::new("percent", format!("{percent} is not between 1 and 100"))),
    }
}

/// Nobody sends more than this beside each other, whatever the operator says.
const MAX_HEDGED: u32 = 5;

fn hedge(message: &v1::Hedge) -> Result<Hedge> {
    let delay = millis(message.delay_ms).ok_or_else(|| Invalid::new("delay_ms", "must be above 0"))?;
    if message.max_attempts < 2 {
        return Err(Invalid::new("max_attempts", "must be at least 2, the first try included"));
    }
    Ok(Hedge { delay, max_attempts: message.max_attempts.min(MAX_HEDGED) })
}

/// Bounds of a regular expression: its text, and its compiled form. Matching takes time linear in the text that is
/// matched (the crate has no backtracking).
const REGEX_TEXT: usize = 1024;
const REGEX_SIZE: usize = 256 * 1024;

fn regex(field: &str, text: &str) -> Result<Regex> {
    if text.len() > REGEX_TEXT {
        return Err(Invalid::new(field, format!("the expression is longer than {REGEX_TEXT} bytes")));
    }
    let compiled = |text: &str| {
        RegexBuilder::new(text).size_limit(REGEX_SIZE).dfa_size_limit(REGEX_SIZE).build().map_err(|error| {
            match error {
                regex::Error::CompiledTooBig(_) => {
                    Invalid::new(field, format!("`{text}` is too large when compiled"))
                }
                _ => Invalid::new(field, format!("`{text}` is not a regular expression (RE2 syntax)")),
            }
        })
    };
    // By itself first, so that `a)|(b` cannot close the group, which keeps alternatives within the anchors.
    compiled(text)?;
    compiled(&format!("^(?:{text})$"))
}

/// Nobody keeps more of a body than this, whatever the operator says.
const MAX_KEPT: u32 = 1024 * 1024;

fn retry(message: &v1::Retry) -> Result<RetryPolicy> {
    use v1::RetryOn;
    let mut on = Vec::new();
    for value in &message.on {
        match RetryOn::try_from(*value) {
            Ok(RetryOn::Unspecified) | Err(_) => return Err(unknown("on", *value)),
            Ok(known) => on.push(known),
        }
    }
    let default = RetryPolicy::default();
    let statuses = StatusCodes::of(&message.status_codes)
        .ok_or_else(|| Invalid::new("status_codes", "must be statuses of HTTP from 400 to 599"))?;
    let grpc_statuses = GrpcCodes::of(&message.grpc_statuses)
        .ok_or_else(|| Invalid::new("grpc_statuses", "must be statuses of gRPC from 1 to 16"))?;
    let backoff_base = millis(message.backoff_base_ms).unwrap_or(default.backoff_base);
    Ok(RetryPolicy {
        attempts: message.attempts.min(10),
        per_try_timeout: millis(message.per_try_timeout_ms),
        on_connect_failure: on.contains(&RetryOn::ConnectFailure),
        on_reset: on.contains(&RetryOn::Reset),
        on_gateway_error: on.contains(&RetryOn::GatewayError),
        on_5xx: on.contains(&RetryOn::RetryOn5xx),
        on_grpc_unavailable: on.contains(&RetryOn::GrpcUnavailable),
        non_idempotent: message.non_idempotent,
        backoff_base,
        backoff_max: millis(message.backoff_max_ms).unwrap_or(default.backoff_max).max(backoff_base),
        budget_percent: message.budget_percent.min(100),
        budget_min_per_second: message.budget_min_per_second.min(10_000),
        statuses,
        grpc_statuses,
        max_body: message.max_body_bytes.map_or(default.max_body, |bytes| bytes.min(MAX_KEPT) as usize),
    })
}

fn required<'a>(field: &str, text: &'a str) -> Result<&'a str> {
    if text.is_empty() { Err(Invalid::new(field, "is empty")) } else { Ok(text) }
}

fn identity(field: &str, text: &str) -> Result<Arc<Identity>> {
    text.parse::<Identity>()
        .map(Arc::new)
        .map_err(|error: weft_api::spiffe::ParseError| Invalid::new(field, error.to_string()))
}

fn socket(field: &str, text: &str) -> Result<SocketAddr> {
    let bad =
        || Invalid::new(field, format!("`{}` is not ip:port", text.chars().take(100).collect::<String>()));
    text.parse().map_err(|_| bad())
}

fn port_of(port: u32) -> Result<u16> {
    let bad = || Invalid::new("", format!("{port} is not a port"));
    u16::try_from(port).ok().filter(|&port| port > 0).ok_or_else(bad)
}

fn mtls(field: &str, value: i32) -> Result<MtlsMode> {
    match v1::MtlsMode::try_from(value) {
        Ok(v1::MtlsMode::Permissive) => Ok(MtlsMode::Permissive),
        Ok(v1::MtlsMode::Strict) => Ok(MtlsMode::Strict),
        Ok(v1::MtlsMode::Disable) => Ok(MtlsMode::Disable),
        Ok(v1::MtlsMode::Unspecified) | Err(_) => Err(unknown(field, value)),
    }
}

fn protocol(field: &str, value: i32) -> Result<Protocol> {
    match v1::Protocol::try_from(value) {
        Ok(v1::Protocol::Detect) => Ok(Protocol::Detect),
        Ok(v1::Protocol::Http1) => Ok(Protocol::Http1),
        Ok(v1::Protocol::Http2) => Ok(Protocol::Http2),
        Ok(v1::Protocol::Tls) => Ok(Protocol::Tls),
        Ok(v1::Protocol::Tcp) => Ok(Protocol::Tcp),
        Err(_) => Err(unknown(field, value)),
    }
}

fn unknown(field: &str, value: i32) -> Invalid {
    Invalid::new(field, format!("{value} is not a value that this proxy knows"))
}

fn millis(ms: u64) -> Option<Duration> {
    // Beyond a day is as good as none for a timeout, and sums with moments stay in range.
    (ms > 0).then(|| Duration::from_millis(ms.min(86_400_000)))
}

const fn unless_zero(value: u32) -> Option<u32> {
    if value == 0 { None } else { Some(value) }
}
