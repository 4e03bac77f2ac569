//! What an original destination is. Keyed by address and port together, never by the port alone.
//!
//! - A cluster IP with a port of its Service: that Service.
//! - An address of an endpoint with the port that a Service sends to, ready: pinned to that endpoint, under the policy of
//!   that Service. Of several Services the headless ones come first (their users do call pods directly), then the first
//!   by name. Several Services none of which is headless: nobody can say whose policy was meant, so it is none of theirs.
//! - Any other port, or an endpoint that is not ready: pinned to the pod itself, without policy, with its identity.
//! - An external or load balancer IP with a port of its Service: that Service.
//! - A node's address, or one that nobody has: external.
//!
//! Whoever may write Services and EndpointSlices in one namespace must not be able to put traffic of another one under
//! its own policies. So an endpoint counts only for Services of its pod's own namespace that name that very pod, and
//! external IPs, which anybody may claim, only where neither a cluster IP nor a pod has the address.

use std::net::SocketAddr;
use std::sync::Arc;

use weft_api::v1;

use super::endpoints;
use crate::index::{Index, Key, Pod, Service, ServiceId, SliceEndpoint};

/// What an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Balanced over a service's endpoints.
    Service(ServiceId),
    /// One endpoint.
    Pinned(ServiceId, SocketAddr),
    /// Nothing that Weft knows.
    External,
}

/// What an address is, for the wire; `text` as the proxy wrote it.
#[must_use]
pub fn address(index: &Index, text: &str, at: SocketAddr) -> v1::Address {
    wire(text, &target(index, at))
}

/// A target for the wire.
#[must_use]
pub fn wire(text: &str, target: &Target) -> v1::Address {
    use v1::address::Target as Wire;
    let target = match target {
        Target::Service(id) => Wire::Service(id.to_string()),
        Target::Pinned(id, endpoint) => {
            Wire::Pinned(v1::Pinned { service: id.to_string(), endpoint: endpoint.to_string() })
        }
        Target::External => Wire::External(v1::External {}),
    };
    v1::Address { address: text.to_owned(), target: Some(target) }
}

/// What an address is.
#[must_use]
pub fn target(index: &Index, at: SocketAddr) -> Target {
    let at = SocketAddr::new(at.ip().to_canonical(), at.port());
    let (inner, outer): (Vec<_>, Vec<_>) =
        index.services_at(at.ip()).partition(|s| s.cluster_ips.contains(&at.ip()));
    if !inner.is_empty() {
        return service_with_port(&inner, at.port());
    }
    if let Some(id) = service_of_endpoint(index, at) {
        return Target::Pinned(id, at);
    }
    match index.pods_at(at.ip()).find(|p| !p.host_network) {
        Some(pod) => Target::Pinned(ServiceId::Pod(pod.key.clone(), at.port()), at),
        None => service_with_port(&outer, at.port()),
    }
}

fn service_with_port(services: &[&Arc<Service>], port: u16) -> Target {
    match services.iter().find(|s| s.port(port).is_some()) {
        Some(service) => Target::Service(ServiceId::Service(service.key.clone(), port)),
        None => Target::External,
    }
}

/// The Service under whose policy a direct call to one of its endpoints stands.
fn service_of_endpoint(index: &Index, at: SocketAddr) -> Option<ServiceId> {
    let mut candidates: Vec<(bool, &Key, u16)> = Vec::new();
    for service in index.services_of_endpoint(at.ip()) {
        let Some(space) = index.space(&service.key.namespace) else { continue };
        let here = |pod: &&Arc<Pod>| pod.key.namespace == service.key.namespace;
        let owners: Vec<&Arc<Pod>> = index.pods_at(at.ip()).filter(here).collect();
        let ports = service.ports.iter().filter(|port| {
            let slices = space.slices_of(&service.key.name);
            let mut with_port = slices
                .filter(|s| s.ports.iter().any(|(name, number)| name == &port.name && *number == at.port()));
            let names_owner = |e: &SliceEndpoint| match &e.pod {
                Some(name) => owners.iter().any(|p| &p.key.name == name),
                None => owners.iter().any(|p| !p.host_network),
            };
            with_port.any(|s| s.endpoints.iter().any(|e| e.ip == at.ip() && e.ready && names_owner(e)))
                && endpoints::members(index, space, service, port).contains_key(&at)
        });
        // Several ports of one Service may lead to the same port of its pods: the lowest counts.
        if let Some(port) = ports.map(|p| p.port).min() {
            candidates.push((service.headless, &service.key, port));
        }
    }
    candidates.sort_by_key(|(headless, key, port)| (!headless, *key, *port));
    match candidates.as_slice() {
        [(_, key, port)] | [(true, key, port), ..] => Some(ServiceId::Service((*key).clone(), *port)),
        _ => None,
    }
}
