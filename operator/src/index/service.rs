//! What the index keeps of a Service and of an EndpointSlice. Reads Kubernetes objects; UDP and SCTP ports are left out.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Key;

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub key: Key,
    /// Its uid.
    pub uid: String,
    /// Its cluster IPs: the API server gives each to one Service only. Empty when headless.
    pub cluster_ips: Vec<IpAddr>,
    /// External IPs, which anybody may claim, and those of load balancers.
    pub outer_ips: Vec<IpAddr>,
    /// `clusterIP: None`.
    pub headless: bool,
    /// IPv6 is the first of its address families.
    pub ipv6_first: bool,
    /// Pods that it selects; empty: endpoints are written by others.
    pub selector: BTreeMap<String, String>,
    /// Its TCP ports.
    pub ports: Vec<ServicePort>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name, empty when there is none.
    pub name: String,
    /// Number.
    pub port: u16,
    /// The port of its pods.
    pub target: TargetPort,
    /// `appProtocol`.
    pub app_protocol: Option<String>,
}

/// A port of a pod, by number or by the name of a container port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// By number.
    Number(u16),
    /// By name.
    Name(String),
}

impl Service {
    /// What the index needs of the object; `None` for ExternalName and for objects without a name.
    #[must_use]
    pub fn read(object: core::Service) -> Option<Self> {
        let key = Key::new(object.metadata.namespace?, object.metadata.name?);
        let spec = object.spec.unwrap_or_default();
        if spec.type_.as_deref() == Some("ExternalName") {
            return None;
        }
        let headless = spec.cluster_ip.as_deref() == Some("None");
        let ingress = object.status.and_then(|s| s.load_balancer).and_then(|l| l.ingress).unwrap_or_default();
        let cluster_ips = addresses(spec.cluster_ips.unwrap_or_default().into_iter().chain(spec.cluster_ip));
        let external = spec.external_ips.unwrap_or_default().into_iter();
        let outer_ips = addresses(external.chain(ingress.into_iter().filter_map(|i| i.ip)));
        let ports = spec.ports.unwrap_or_default().into_iter().filter_map(|p| {
            let port = u16::try_from(p.port).ok().filter(|n| *n > 0)?;
            if p.protocol.as_deref().unwrap_or("TCP") != "TCP" {
                return None;
            }
            let target = match p.target_port {
                None => TargetPort::Number(port),
                Some(IntOrString::Int(n)) => {
                    TargetPort::Number(u16::try_from(n).ok().filter(|n| *n > 0).unwrap_or(port))
                }
                Some(IntOrString::String(name)) => TargetPort::Name(name),
            };
            Some(ServicePort { name: p.name.unwrap_or_default(), port, target, app_protocol: p.app_protocol })
        });
        Some(Self {
            key,
            uid: object.metadata.uid.unwrap_or_default(),
            headless,
            ipv6_first: spec
                .ip_families
                .unwrap_or_default()
                .first()
                .map_or_else(|| cluster_ips.first().is_some_and(IpAddr::is_ipv6), |f| f == "IPv6"),
            cluster_ips,
            outer_ips,
            selector: spec.selector.unwrap_or_default(),
            ports: ports.collect(),
        })
    }

    /// Every address that stands for it.
    pub fn ips(&self) -> impl Iterator<Item = &IpAddr> {
        self.cluster_ips.iter().chain(&self.outer_ips)
    }

    /// Its port of that number.
    #[must_use]
    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|p| p.port == port)
    }
}

/// Those of the texts that are addresses, each once.
pub(super) fn addresses(texts: impl Iterator<Item = String>) -> Vec<IpAddr> {
    let mut all = Vec::new();
    for ip in texts.filter_map(|text| text.parse().ok()) {
        if !all.contains(&ip) {
            all.push(ip);
        }
    }
    all
}

/// An EndpointSlice of one Service and address family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Namespace and name.
    pub key: Key,
    /// Name of the Service, in the same namespace.
    pub service: String,
    /// Name of the Service's port, and the number that the endpoints listen on.
    pub ports: Vec<(String, u16)>,
    /// The endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

/// One address of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Where.
    pub ip: IpAddr,
    /// Takes new connections. An endpoint that still serves while it terminates is not ready, and left out.
    pub ready: bool,
    /// The pod, by name, in the namespace of the slice.
    pub pod: Option<String>,
    /// Topology zone, empty when unknown.
    pub zone: String,
}

impl Slice {
    /// What the index needs of the object; `None` for slices of names, and for those of no Service.
    #[must_use]
    pub fn read(object: discovery::EndpointSlice) -> Option<Self> {
        let key = Key::new(object.metadata.namespace?, object.metadata.name?);
        let service = object.metadata.labels?.remove("kubernetes.io/service-name")?;
        if !matches!(object.address_type.as_str(), "IPv4" | "IPv6") {
            return None;
        }
        let ports = object.ports.unwrap_or_default().into_iter().filter_map(|p| {
            let tcp = p.protocol.as_deref().unwrap_or("TCP") == "TCP";
            let port = u16::try_from(p.port?).ok().filter(|n| *n > 0 && tcp)?;
            Some((p.name.unwrap_or_default(), port))
        });
        let endpoints = object.endpoints.into_iter().filter_map(|e| {
            // The API says: clients take the first address only.
            let ip = e.addresses.first()?.parse().ok()?;
            Some(SliceEndpoint {
                ip,
                // nil means ready.
                ready: e.conditions.and_then(|c| c.ready).unwrap_or(true),
                pod: e.target_ref.filter(|r| r.kind.as_deref() == Some("Pod")).and_then(|r| r.name),
                zone: e.zone.unwrap_or_default(),
            })
        });
        Some(Self { key, service, ports: ports.collect(), endpoints: endpoints.collect() })
    }
}
