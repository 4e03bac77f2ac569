//! The snapshot and the certificate as JSON for a reader. Pure; no secret ever gets here.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use tokio::time::Instant;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Admin;
use crate::plaintext::{Caller, Callers};
use crate::retry::RetryPolicy;
use crate::route::{PathMatch, RequestMatch, Route, ValueMatch};
use crate::snapshot::{
    Cluster, Endpoint, HashOn, MtlsMode, Probe, Protocol, Service, Snapshot, Target, Workload,
};
use crate::status::Status;
use crate::tls::Tls;

pub(super) fn config(admin: &Admin) -> Value {
    let snapshot = admin.store.load();
    let mut addresses: Vec<_> = snapshot.addresses.iter().collect();
    addresses.sort_by_key(|(address, _)| **address);
    let addresses: serde_json::Map<String, Value> =
        addresses.into_iter().map(|(address, target)| (address.to_string(), view_target(target))).collect();
    json!({
        "version": admin.status.version(),
        "connected": admin.status.is_connected(),
        "error": admin.status.control_error(),
        "identity": admin.identity.to_string(),
        "pod": { "namespace": admin.pod.namespace, "name": admin.pod.name, "ips": admin.pod.ips },
        "workload": snapshot.workload.as_deref().map(view_workload),
        "addresses": addresses,
        "services": in_order(&snapshot).map(view_service).collect::<Vec<_>>(),
    })
}

pub(super) fn clusters(snapshot: &Snapshot) -> Value {
    in_order(snapshot)
        .flat_map(|service| service.clusters.iter().map(move |cluster| view_cluster(service, cluster)))
        .collect()
}

pub(super) fn certs(tls: &Tls, status: &Status) -> Value {
    let roots = tls.roots();
    let own = tls.own();
    let leaf = own.as_ref().map(|own| &own.leaf);
    let foreign: serde_json::Map<String, Value> = tls
        .foreign()
        .iter()
        .map(|(domain, roots)| (domain.to_string(), roots.iter().map(view_root).collect()))
        .collect();
    json!({
        "identity": leaf.map(|leaf| leaf.identity.to_string()),
        "serial": leaf.map(|leaf| leaf.serial.clone()),
        "not_before_unix_s": leaf.map(|leaf| unix(leaf.not_before)),
        "not_after_unix_s": leaf.map(|leaf| unix(leaf.not_after)),
        "error": status.identity_error(),
        "roots": roots.len(),
        "root_certificates": roots.iter().map(view_root).collect::<Vec<_>>(),
        "foreign": foreign,
    })
}

pub(super) fn plaintext(callers: &Callers) -> Value {
    let (all, forgotten) = callers.all();
    let row = |caller: &Caller| {
        json!({
            "address": caller.address,
            "port": caller.port,
            "connections": caller.connections,
            "last_unix_s": unix(caller.last),
        })
    };
    json!({
        "since_unix_s": unix(callers.since()),
        "forgotten": forgotten,
        "callers": all.iter().map(row).collect::<Vec<_>>(),
    })
}

fn in_order(snapshot: &Snapshot) -> impl Iterator<Item = &Service> {
    let mut services: Vec<&Service> = snapshot.services.values().map(AsRef::as_ref).collect();
    services.sort_by(|a, b| a.key.cmp(&b.key));
    services.into_iter()
}

fn view_root(der: &CertificateDer<'_>) -> Value {
    match X509Certificate::from_der(der) {
        Ok((_, root)) => json!({
            "subject": root.subject().to_string(),
            "serial": root.raw_serial_as_string(),
            "not_before_unix_s": root.validity.not_before.timestamp(),
            "not_after_unix_s": root.validity.not_after.timestamp(),
        }),
        Err(_) => json!({ "subject": null }),
    }
}

fn view_target(target: &Target) -> Value {
    match target {
        Target::Service(service) => json!({ "service": &*service.key }),
        Target::Pinned(service, endpoint) => {
            json!({ "service": &*service.key, "endpoint": endpoint.addr.to_string() })
        }
        Target::External => json!("external"),
    }
}

fn view_workload(workload: &Workload) -> Value {
    let by_port = |ports: Vec<(u16, Value)>| {
        ports.into_iter().map(|(port, value)| (port.to_string(), value)).collect::<serde_json::Map<_, _>>()
    };
    json!({
        "namespace": &*workload.namespace,
        "pod": &*workload.pod,
        "name": &*workload.name,
        "identity": workload.identity.to_string(),
        "mtls": mtls(workload.mtls),
        "port_mtls": by_port(workload.port_mtls.iter().map(|(p, m)| (*p, mtls(*m))).collect()),
        "port_protocol": by_port(workload.port_protocol.iter().map(|(p, x)| (*p, protocol(*x))).collect()),
        "port_service": by_port(workload.port_service.iter().map(|(p, s)| (*p, json!(&**s))).collect()),
        "probes": workload.probes.iter().map(|probe| match probe {
            Probe::Http(port, path) => json!({ "port": port, "http_path": path }),
            Probe::Grpc(port, service) => json!({ "port": port, "grpc_service": service }),
        }).collect::<Vec<_>>(),
        "sources": sources(&workload.sources),
        "registered_only": workload.registered_only,
        "authorization": workload.authorization.as_deref().map(|policies| policies.message()),
        "tokens": workload.tokens.as_deref().map(|tokens| tokens.message()),
        "zone": &*workload.zone,
        "region": &*workload.region,
    })
}

fn view_service(service: &Service) -> Value {
    json!({
        "key": &*service.key,
        "namespace": &*service.namespace,
        "name": &*service.name,
        "port": service.port,
        "protocol": protocol(service.protocol),
        "learned_protocol": protocol(service.live.learned()),
        "hosts": service.hosts,
        "external": service.external.is_some(),
        "default_cluster": &*service.default_cluster.name,
        "routes": service.routes.iter().map(view_route).collect::<Vec<_>>(),
        "precedence": if service.ranked.is_some() { "specificity" } else { "written" },
        "clusters": service.clusters.iter().map(|cluster| view_cluster(service, cluster)).collect::<Vec<_>>(),
        "sources": sources(&service.sources),
    })
}

fn view_route(route: &Route) -> Value {
    json!({
        "name": &*route.name,
        "matches": route.matches.iter().map(view_match).collect::<Vec<_>>(),
        "backends": route.backends.iter().map(|backend| json!({
            "cluster": &*backend.cluster.name,
            "weight": backend.weight,
        })).collect::<Vec<_>>(),
        "timeout_ms": route.timeout.map(millis),
        "retry": view_retry(&route.retry),
        "filters": route.filters.as_ref().map(|filters| filters.words()),
        "idle_timeout_ms": route.idle_timeout.map(millis),
        "mirror": route.mirror.as_ref().map(|mirror| json!({
            "cluster": &*mirror.cluster.name,
            "percent": mirror.percent,
        })),
        "hedge": route.hedge.map(|hedge| json!({
            "delay_ms": millis(hedge.delay),
            "max_attempts": hedge.max_attempts,
        })),
    })
}

fn view_retry(retry: &RetryPolicy) -> Value {
    json!({
        "attempts": retry.attempts,
        "per_try_timeout_ms": retry.per_try_timeout.map(millis),
        "connect_failure": retry.on_connect_failure,
        "reset": retry.on_reset,
        "gateway_error": retry.on_gateway_error,
        "5xx": retry.on_5xx,
        "grpc_unavailable": retry.on_grpc_unavailable,
        "non_idempotent": retry.non_idempotent,
        "backoff_base_ms": millis(retry.backoff_base),
        "backoff_max_ms": millis(retry.backoff_max),
        "budget_percent": retry.budget_percent,
        "budget_min_per_second": retry.budget_min_per_second,
        "status_codes": retry.statuses.iter().collect::<Vec<_>>(),
        "grpc_statuses": retry.grpc_statuses.iter().collect::<Vec<_>>(),
        "max_body_bytes": retry.max_body,
    })
}

fn view_match(matching: &RequestMatch) -> Value {
    let path = matching.path.as_ref().map(|path| match path {
        PathMatch::Exact(path) => json!({ "exact": path }),
        PathMatch::Prefix(path) => json!({ "prefix": path }),
        PathMatch::Regex(regex) => json!({ "regex": regex.as_str() }),
    });
    let headers = matching
        .headers
        .iter()
        .map(|header| json!({ "name": header.name.as_str(), "value": view_value(&header.value) }));
    let query =
        matching.query.iter().map(|param| json!({ "name": param.name, "value": view_value(&param.value) }));
    json!({
        "path": path,
        "method": matching.method.as_ref().map(|method| method.as_str()),
        "headers": headers.collect::<Vec<_>>(),
        "query": query.collect::<Vec<_>>(),
        "hosts": matching.hosts.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

fn view_value(value: &ValueMatch) -> Value {
    match value {
        ValueMatch::Exact(value) => json!({ "exact": value }),
        ValueMatch::Prefix(value) => json!({ "prefix": value }),
        ValueMatch::Regex(regex) => json!({ "regex": regex.as_str() }),
        ValueMatch::Present(present) => json!({ "present": present }),
    }
}

fn view_cluster(service: &Service, cluster: &Cluster) -> Value {
    let limits = cluster.breaker.limits();
    let [connections, pending, requests, retries] = cluster.breaker.open();
    json!({
        "service": &*service.key,
        "cluster": &*cluster.name,
        "balancer": format!("{:?}", cluster.balancer),
        "connect_timeout_ms": millis(cluster.connect_timeout),
        "idle_timeout_ms": millis(cluster.idle_timeout),
        "max_requests_per_connection": cluster.max_requests_per_connection,
        "breaker": {
            "connections": { "open": connections, "max": limits.connections },
            "pending": { "open": pending, "max": limits.pending },
            "requests": { "open": requests, "max": limits.requests },
            "retries": { "open": retries, "max": limits.retries },
        },
        "adaptive_limit": cluster.adaptive.as_ref().map(|adaptive| adaptive.limit()),
        "outlier": cluster.outlier.map(|outlier| json!({
            "consecutive_failures": outlier.consecutive_failures,
            "base_ejection_ms": millis(outlier.base_ejection),
            "max_ejection_ms": millis(outlier.max_ejection),
            "max_ejected_percent": outlier.max_ejected_percent,
            "consecutive_gateway_errors": outlier.consecutive_gateway_errors,
            "interval_ms": outlier.interval.map(millis),
            "success_rate": outlier.success_rate.map(|rule| json!({
                "min_requests": rule.min_requests,
                "min_hosts": rule.min_hosts,
                "stdev_factor": f64::from(rule.stdev_factor_thousandths) / 1e3,
            })),
            "latency": outlier.latency.map(|rule| json!({
                "min_requests": rule.min_requests,
                "factor": f64::from(rule.factor_thousandths) / 1e3,
            })),
        })),
        "active": cluster.active.as_ref().map(|check| json!({
            "kind": format!("{:?}", check.kind),
            "port": check.port,
            "interval_ms": millis(check.interval),
            "timeout_ms": millis(check.timeout),
            "unhealthy_threshold": check.unhealthy_threshold,
            "healthy_threshold": check.healthy_threshold,
            "jitter_percent": check.jitter_percent,
            "checkers": check.checkers,
            "max_checkers": check.max_checkers,
        })),
        "endpoints": cluster.endpoints.iter().map(|endpoint| view_endpoint(endpoint)).collect::<Vec<_>>(),
        "hash": cluster.hash.as_ref().map(|on| match on {
            HashOn::Header(name) => json!({ "header": name.as_str() }),
            HashOn::Cookie { name, ttl } => json!({ "cookie": &**name, "ttl_ms": ttl.map(millis) }),
            HashOn::SourceIp => json!("source-ip"),
            HashOn::Query(name) => json!({ "query": &**name }),
        }),
        "slow_start": cluster.slow_start.map(|slow| json!({
            "window_ms": millis(slow.window),
            "aggression": slow.aggression,
        })),
        "locality": cluster.locality.map(|locality| format!("{locality:?}")),
        "panic_threshold": cluster.panic_threshold,
        // What each tier gets, of 1; empty when there is one only.
        "tiers": cluster.plan.loads(),
    })
}

fn view_endpoint(endpoint: &Endpoint) -> Value {
    let ejection = endpoint.live.ejection(Instant::now());
    json!({
        "address": endpoint.addr.to_string(),
        "weight": endpoint.weight,
        "identity": endpoint.identity.as_ref().map(ToString::to_string),
        "pod": &*endpoint.pod,
        "workload": &*endpoint.workload,
        "zone": &*endpoint.zone,
        "region": &*endpoint.region,
        "priority": endpoint.priority,
        "in_flight": endpoint.live.in_flight(),
        "ewma_ms": endpoint.live.latency().map(|latency| latency.as_secs_f64() * 1e3),
        // Milliseconds left; 0: it waits for the request that tries it.
        "ejected": ejection.map(|(_, left)| millis(left)),
        "ejections": endpoint.live.ejections(),
        "cause": ejection.map(|(cause, _)| cause.to_string()),
        // By active checks: why, if it is; and whether this proxy makes them.
        "unhealthy": endpoint.unhealthy(),
        "checked_here": endpoint.live.checked.is_unhealthy().is_some(),
    })
}

fn sources(sources: &[weft_api::v1::Source]) -> Value {
    sources
        .iter()
        .map(|s| json!({ "kind": s.kind, "namespace": s.namespace, "name": s.name, "generation": s.generation }))
        .collect()
}

fn mtls(mode: MtlsMode) -> Value {
    json!(format!("{mode:?}"))
}

fn protocol(protocol: Protocol) -> Value {
    json!(format!("{protocol:?}").to_lowercase())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
