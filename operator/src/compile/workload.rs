//! How a proxy treats connections to its own pod.

use std::collections::HashMap;

use weft_api::v1::{self, MtlsMode, Protocol, Source};

use super::authentication::authentication;
use super::authorization::authorization;
use super::service::tidy;
use super::tokens::tokens;
use super::{limits, protocol};
use crate::index::{Index, Pod, ProbeKind, Service, ServicePort};

/// The configuration of a pod's own proxy.
#[must_use]
pub fn workload(index: &Index, pod: &Pod) -> v1::Workload {
    let authentication = authentication(index, pod);
    let mut port_protocol: HashMap<u32, i32> = HashMap::new();
    let mut port_service: HashMap<u32, (bool, String)> = HashMap::new();
    for (name, number) in &pod.ports {
        if let Some(protocol) = protocol::by_name(name) {
            port_protocol.entry((*number).into()).or_insert_with(|| protocol.into());
        }
    }
    let mut by_service: HashMap<u32, Protocol> = HashMap::new();
    let mut inbound_rules = Vec::new();
    let mut sources: Vec<Source> = authentication.source.into_iter().collect();
    for (service, port, number) in ports_of(index, pod) {
        let Some(space) = index.space(&service.key.namespace) else { continue };
        inbound_rules.extend(limits::inbound(space, service, port, number, &mut sources));
        let number = u32::from(number);
        let protocol = protocol::of_port(port, protocol::described(space, service));
        if protocol != Protocol::Detect {
            // Services that disagree about a port: nobody can say, so the proxy looks.
            by_service
                .entry(number)
                .and_modify(|known| *known = if *known == protocol { protocol } else { Protocol::Detect })
                .or_insert(protocol);
        }
        let name = (service.headless, service.key.to_string());
        port_service
            .entry(number)
            .and_modify(|known| *known = known.clone().min(name.clone()))
            .or_insert(name);
    }
    port_protocol.extend(by_service.into_iter().map(|(port, protocol)| (port, i32::from(protocol))));

    let authorization = authorization(index, pod, &mut sources);
    let tokens = tokens(index, pod, &mut sources);
    let (zone, region) = index.place_of(pod);
    v1::Workload {
        namespace: pod.key.namespace.clone(),
        pod: pod.key.name.clone(),
        name: pod.workload.clone(),
        identity: index.identity(pod).to_string(),
        mtls: authentication.mode.into(),
        port_mtls: port_modes(&authentication.ports),
        port_protocol,
        probes: pod.probes.iter().map(probe).collect(),
        sources: tidy(sources),
        port_service: port_service.into_iter().map(|(port, (_, name))| (port, name)).collect(),
        inbound_rules: in_order(inbound_rules),
        outbound_policy: v1::OutboundPolicy::from(index.outbound_policy_of(pod)).into(),
        zone: zone.to_owned(),
        region: region.to_owned(),
        authorization,
        tokens,
    }
}

/// Each once, whatever the order of Services and slices.
fn in_order(mut rules: Vec<v1::InboundRules>) -> Vec<v1::InboundRules> {
    rules.sort_by(|a, b| (a.port, &a.service).cmp(&(b.port, &b.service)));
    rules.dedup();
    rules
}

/// Ports of Services that lead to the pod, with the pod's port.
fn ports_of<'a>(index: &'a Index, pod: &Pod) -> Vec<(&'a Service, &'a ServicePort, u16)> {
    let mut found = Vec::new();
    let Some(space) = index.space(&pod.key.namespace) else { return found };
    let Some(services) = space.services_of_pod.get(&pod.key.name) else { return found };
    for service in services.iter().filter_map(|name| space.services.get(name)) {
        for slice in space.slices_of(&service.key.name) {
            if !slice.endpoints.iter().any(|e| e.pod.as_ref() == Some(&pod.key.name)) {
                continue;
            }
            for port in &service.ports {
                if let Some((_, number)) = slice.ports.iter().find(|(name, _)| name == &port.name) {
                    found.push((&**service, port, *number));
                }
            }
        }
    }
    found
}

fn port_modes(ports: &std::collections::BTreeMap<u16, MtlsMode>) -> HashMap<u32, i32> {
    ports.iter().map(|(port, mode)| (u32::from(*port), i32::from(*mode))).collect()
}

fn probe(probe: &crate::index::Probe) -> v1::Probe {
    use v1::probe::Kind;
    let kind = match &probe.kind {
        ProbeKind::Http(path) => Kind::HttpPath(path.clone()),
        ProbeKind::Grpc(service) => Kind::GrpcService(service.clone()),
    };
    v1::Probe { port: probe.port.into(), kind: Some(kind) }
}
