//! The endpoints behind a port of a Service: from its slices, or, when the Service is gone but still sent to, from the
//! pods that it selected.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use weft_api::v1::{Endpoint, EndpointCheck, MtlsMode, Source};

use super::authentication::authentication;
use crate::index::{Index, Pod, Service, ServicePort, Space, TargetPort, selects};

/// An endpoint with what is known of its pod.
pub struct Member<'a> {
    /// Where.
    pub at: SocketAddr,
    /// Its pod, if it has one.
    pub pod: Option<&'a Arc<Pod>>,
    /// Topology zone.
    pub zone: &'a str,
}

/// The ready endpoints of a port, by address; of one address family if there are two.
pub fn members<'a>(
    index: &'a Index,
    space: &'a Space,
    service: &Service,
    port: &ServicePort,
) -> BTreeMap<SocketAddr, Member<'a>> {
    let live = space.services.contains_key(&service.key.name);
    let mut all =
        if live { from_slices(index, space, service, port) } else { from_pods(space, service, port) };
    // A pod of a dual-stack Service stands in the slices of both families: one address for each pod is enough.
    if all.keys().any(|at| at.is_ipv6() == service.ipv6_first) {
        all.retain(|at, _| at.is_ipv6() == service.ipv6_first);
    }
    all
}

fn from_slices<'a>(
    index: &'a Index,
    space: &'a Space,
    service: &Service,
    port: &ServicePort,
) -> BTreeMap<SocketAddr, Member<'a>> {
    let mut all = BTreeMap::new();
    for slice in space.slices_of(&service.key.name) {
        let Some((_, target)) = slice.ports.iter().find(|(name, _)| name == &port.name) else { continue };
        for endpoint in slice.endpoints.iter().filter(|e| e.ready) {
            let pod = match &endpoint.pod {
                // Whether it is in the mesh, and as whom, is not known yet: it comes with its pod.
                Some(name) => match space.pods.get(name) {
                    Some(pod) => Some(pod),
                    None => continue,
                },
                None => index.pods_at(endpoint.ip).find(|p| !p.host_network),
            };
            let at = SocketAddr::new(endpoint.ip, *target);
            all.insert(at, Member { at, pod, zone: &endpoint.zone });
        }
    }
    all
}

fn from_pods<'a>(
    space: &'a Space,
    service: &Service,
    port: &ServicePort,
) -> BTreeMap<SocketAddr, Member<'a>> {
    if service.selector.is_empty() {
        return BTreeMap::new();
    }
    let ready = space
        .pods
        .values()
        .filter(|p| p.ready && !p.ended && selects(&service.selector, &p.labels))
        .filter_map(|pod| {
            let target = match &port.target {
                TargetPort::Number(n) => *n,
                TargetPort::Name(name) => pod.named_port(name)?,
            };
            Some(pod.ips.iter().map(move |ip| {
                let at = SocketAddr::new(*ip, target);
                (at, Member { at, pod: Some(pod), zone: "" })
            }))
        });
    ready.flatten().collect()
}

/// What a caller is told of an endpoint. An identity only where the callee takes mTLS.
pub fn compile(index: &Index, member: &Member<'_>, weight: u32, sources: &mut Vec<Source>) -> Endpoint {
    let mut endpoint = Endpoint {
        address: member.at.to_string(),
        weight,
        zone: member.zone.to_owned(),
        ..Endpoint::default()
    };
    let Some(pod) = member.pod else { return endpoint };
    endpoint.pod.clone_from(&pod.key.name);
    endpoint.workload.clone_from(&pod.workload);
    let (zone, region) = index.place_of(pod);
    if endpoint.zone.is_empty() {
        zone.clone_into(&mut endpoint.zone);
    }
    region.clone_into(&mut endpoint.region);
    endpoint.identity = identity_at(index, pod, member.at.port(), sources);
    endpoint
}

/// Who a caller must find at a port of a pod; nobody in particular where the pod takes no mTLS.
fn identity_at(index: &Index, pod: &Pod, port: u16, sources: &mut Vec<Source>) -> String {
    if !pod.mesh {
        return String::new();
    }
    let authentication = authentication(index, pod);
    if authentication.at(port) == MtlsMode::Disable {
        sources.extend(authentication.source);
        return String::new();
    }
    index.identity(pod).to_string()
}

/// What a checker is told of an endpoint, of which this port is checked. Whether it is healthy is not known here.
pub fn checked(
    index: &Index,
    member: &Member<'_>,
    port: Option<u16>,
    sources: &mut Vec<Source>,
) -> EndpointCheck {
    let port = port.unwrap_or(member.at.port());
    let identity = member.pod.map(|pod| identity_at(index, pod, port, sources)).unwrap_or_default();
    EndpointCheck { identity, unhealthy: false }
}

/// Endpoints of a Service, counted for its status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointState {
    /// All, ready or not.
    pub total: usize,
    /// Ready.
    pub ready: usize,
    /// Ready or not, with a proxy.
    pub in_mesh: usize,
}

/// Counts the endpoints of a Service by address, of one family if there are two.
#[must_use]
pub fn endpoint_states(space: &Space, service: &Service) -> EndpointState {
    let mut by_ip = BTreeMap::new();
    for endpoint in space.slices_of(&service.key.name).flat_map(|s| &s.endpoints) {
        let mesh = endpoint.pod.as_ref().and_then(|p| space.pods.get(p)).is_some_and(|p| p.mesh);
        let known = by_ip.entry(endpoint.ip).or_insert((false, false));
        *known = (known.0 || endpoint.ready, known.1 || mesh);
    }
    if by_ip.keys().any(|ip| ip.is_ipv6() == service.ipv6_first) {
        by_ip.retain(|ip, _| ip.is_ipv6() == service.ipv6_first);
    }
    EndpointState {
        total: by_ip.len(),
        ready: by_ip.values().filter(|(ready, _)| *ready).count(),
        in_mesh: by_ip.values().filter(|(_, mesh)| *mesh).count(),
    }
}
