//! A service, as its callers are told: routes, and every cluster that they send to.

use std::net::SocketAddr;

use weft_api::v1::{self, Source};

use super::cluster::{Maker, source};
use super::endpoints::Member;
use super::{external, protocol, route};
use crate::index::{Index, Key, Pod, Service, ServiceId, ServicePort, Space};

/// The service of that id; `None` when there is no such Service, port or pod.
#[must_use]
pub fn service(index: &Index, id: &ServiceId) -> Option<v1::Service> {
    match id {
        ServiceId::Service(key, port) => {
            let space = index.space(&key.namespace)?;
            let Some(service) = space.services.get(&key.name) else {
                return external::service(index, space, key, *port);
            };
            let port = service.port(*port)?;
            Some(of_service(index, space, service, port))
        }
        ServiceId::Pod(key, port) => of_pod(index, index.pod(key)?, *port),
    }
}

fn of_service(index: &Index, space: &Space, service: &Service, port: &ServicePort) -> v1::Service {
    let key = &service.key;
    let mut sources = Vec::new();
    let maker = Maker::new(index, space, service, port);
    let whole = maker.whole(&mut sources);
    let default_cluster = whole.name.clone();
    let mut clusters = vec![whole];
    for subset in space.described(&key.name).iter().flat_map(|m| &m.spec.subsets) {
        clusters.push(maker.subset(&subset.name, &subset.labels, &mut sources));
    }

    let mut routes = Vec::new();
    let mut precedence = v1::Precedence::Written;
    if let Some(policy) = space.governing(&key.name, port.port) {
        sources.push(source("TrafficPolicy", policy));
        precedence = route::precedence(policy.spec.precedence);
        for (position, rule) in policy.spec.rules.iter().enumerate() {
            routes.push(route::rule(&policy.key.name, position, rule, &default_cluster, |backend| {
                let of = backend.service.as_deref().unwrap_or(&key.name);
                let subset = backend.subset.as_deref();
                cluster(index, space, &maker, key, of, port.port, subset, &mut clusters, &mut sources)
            }));
        }
    }
    routes.push(route::catch_all(&default_cluster));

    v1::Service {
        key: ServiceId::Service(key.clone(), port.port).to_string(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        port: port.port.into(),
        protocol: protocol::of_port(port, protocol::described(space, service)).into(),
        routes,
        clusters,
        sources: tidy(sources),
        default_cluster,
        hosts: hosts(key),
        precedence: precedence.into(),
        ..v1::Service::default()
    }
}

/// The name of the cluster that a backend means; made unless it is there already.
#[allow(clippy::too_many_arguments)]
fn cluster<'a>(
    index: &'a Index,
    space: &'a Space,
    own: &Maker<'a>,
    own_key: &Key,
    of: &str,
    port: u16,
    subset: Option<&str>,
    clusters: &mut Vec<v1::Cluster>,
    sources: &mut Vec<Source>,
) -> Option<String> {
    let name = match subset {
        Some(subset) => format!("{}/{of}:{port}/{subset}", own_key.namespace),
        None => format!("{}/{of}:{port}", own_key.namespace),
    };
    if clusters.iter().any(|c| c.name == name) {
        return Some(name);
    }
    let labels = match subset {
        Some(subset) => Some((subset, space.subset(of, subset)?)),
        None => None,
    };
    let other;
    let maker = if of == own_key.name {
        own
    } else {
        let service = space.service_or_remembered(of)?;
        other = Maker::new(index, space, service, service.port(port)?);
        &other
    };
    let cluster = match labels {
        Some((subset, labels)) => maker.subset(subset, labels, sources),
        None => maker.whole(sources),
    };
    // A Service that is gone counts only while pods of it are left.
    if of != own_key.name && !space.services.contains_key(of) && cluster.endpoints.is_empty() {
        return None;
    }
    clusters.push(cluster);
    Some(name)
}

/// A pod that is called by its own address and belongs to no Service there: one endpoint, all defaults.
fn of_pod(index: &Index, pod: &std::sync::Arc<Pod>, port: u16) -> Option<v1::Service> {
    let mut sources = Vec::new();
    let key = ServiceId::Pod(pod.key.clone(), port).to_string();
    let ip = *pod.ips.first()?;
    let mut clusters = Vec::new();
    // Every address of the pod, so that whichever is called can be pinned.
    let mut cluster = Maker::single(index, member(pod, ip, port), key.clone()).whole(&mut sources);
    for ip in &pod.ips[1..] {
        let more = Maker::single(index, member(pod, *ip, port), key.clone()).whole(&mut sources);
        cluster.endpoints.extend(more.endpoints);
    }
    clusters.push(cluster);
    let name = pod.ports.iter().find(|(_, number)| *number == port).map(|(name, _)| name.as_str());
    let protocol = name.and_then(protocol::by_name).unwrap_or(v1::Protocol::Detect);
    Some(v1::Service {
        namespace: pod.key.namespace.clone(),
        name: pod.key.name.clone(),
        port: port.into(),
        protocol: protocol.into(),
        routes: vec![route::catch_all(&key)],
        clusters,
        sources: tidy(sources),
        default_cluster: key.clone(),
        key,
        ..v1::Service::default()
    })
}

const fn member(pod: &std::sync::Arc<Pod>, ip: std::net::IpAddr, port: u16) -> Member<'_> {
    Member { at: SocketAddr::new(ip, port), pod: Some(pod), zone: "" }
}

fn hosts(key: &Key) -> Vec<String> {
    let Key { namespace, name } = key;
    vec![
        format!("{name}.{namespace}.svc.cluster.local"),
        format!("{name}.{namespace}.svc"),
        format!("{name}.{namespace}"),
        name.clone(),
    ]
}

/// Each source once, in a fixed order.
pub fn tidy(mut sources: Vec<Source>) -> Vec<Source> {
    let order = |s: &Source| (s.kind.clone(), s.namespace.clone(), s.name.clone(), s.generation);
    sources.sort_by_key(order);
    sources.dedup();
    sources
}
