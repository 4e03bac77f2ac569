//! A service outside of the cluster, as its callers are told: the hosts that it is found by, its endpoints by address or by
//! name, and the TLS that proxies speak to them.

use std::net::{IpAddr, SocketAddr};

use weft_api::v1;
use weft_crds::mesh_service::{AppProtocol, External, ExternalPort, OriginateTls, Target};
use weft_crds::validate;

use super::balance::DEFAULT_WEIGHT;
use super::cluster::{Maker, source};
use super::route;
use super::service::tidy;
use crate::index::{Index, Key, ServiceId, Space};

/// The external service of that key and port; `None` when there is none.
#[allow(clippy::needless_update, reason = "what the message says of Services alone stays as it is")]
pub fn service(index: &Index, space: &Space, key: &Key, port: u16) -> Option<v1::Service> {
    let mesh_service = Target::external_of(&key.name)?;
    let described = space.described(&key.name)?;
    let external = described.spec.target.external.as_ref()?;
    let given = external.ports.iter().find(|p| p.port == port)?;
    let name = ServiceId::Service(key.clone(), port).to_string();

    let mut sources = Vec::new();
    let mut cluster = Maker::external(index, described, name.clone()).whole(&mut sources);
    let identity = given.tls.as_ref().and_then(|tls| tls.identity.as_deref());
    cluster.endpoints = endpoints(external, given, mesh_service, identity.unwrap_or_default());
    // By mTLS, where an identity is expected.
    let tls = given.tls.as_ref().filter(|_| identity.is_none());
    cluster.tls = tls.map(|tls| originate(external, tls));

    let mut routes = Vec::new();
    let mut precedence = v1::Precedence::Written;
    if let Some(policy) = space.governing(&key.name, port) {
        sources.push(source("TrafficPolicy", policy));
        precedence = route::precedence(policy.spec.precedence);
        for (position, rule) in policy.spec.rules.iter().enumerate() {
            routes.push(route::rule(&policy.key.name, position, rule, &name, |_| None));
        }
    }
    routes.push(route::catch_all(&name));

    let hosts: Vec<String> = external.hosts.iter().map(|host| host.0.clone()).collect();
    Some(v1::Service {
        key: name.clone(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        port: port.into(),
        protocol: protocol(given.protocol).into(),
        routes,
        clusters: vec![cluster],
        sources: tidy(sources),
        default_cluster: name,
        hosts: hosts.clone(),
        egress: Some(v1::Egress { hosts }),
        precedence: precedence.into(),
        ..v1::Service::default()
    })
}

/// The external services that pods of a namespace see: its own, and those of the mesh.
pub fn external_for(index: &Index, namespace: &str) -> Vec<ServiceId> {
    let mut all = Vec::new();
    let of_mesh = Some(&*index.own_namespace).filter(|own| *own != namespace);
    for namespace in [Some(namespace), of_mesh].into_iter().flatten() {
        let described = index.space(namespace).into_iter().flat_map(|space| &space.settled.described);
        for (name, described) in described {
            let ports = described.spec.target.external.iter().flat_map(|external| &external.ports);
            let key = Key::new(namespace, name);
            all.extend(ports.map(|port| ServiceId::Service(key.clone(), port.port)));
        }
    }
    all
}

fn endpoints(
    external: &External,
    port: &ExternalPort,
    mesh_service: &str,
    identity: &str,
) -> Vec<v1::Endpoint> {
    let one = |address: &str, number: Option<u16>, weight: Option<u32>| {
        let number = number.or(port.target_port).unwrap_or(port.port);
        let endpoint = v1::Endpoint {
            weight: weight.unwrap_or(DEFAULT_WEIGHT),
            workload: mesh_service.to_owned(),
            identity: identity.to_owned(),
            ..v1::Endpoint::default()
        };
        match address.parse::<IpAddr>() {
            Ok(ip) => v1::Endpoint { address: SocketAddr::new(ip, number).to_string(), ..endpoint },
            Err(_) => v1::Endpoint { host: address.to_owned(), host_port: number.into(), ..endpoint },
        }
    };
    match external.endpoints.as_slice() {
        [] => external.hosts.iter().take(1).map(|host| one(&host.0, None, None)).collect(),
        given => given.iter().map(|e| one(&e.address, e.port, e.weight)).collect(),
    }
}

fn originate(external: &External, tls: &OriginateTls) -> v1::OriginateTls {
    let sni = tls.sni.clone().or_else(|| external.hosts.first().map(|host| host.0.clone()));
    let bundle = tls.ca_bundle.as_deref().and_then(validate::certificates);
    v1::OriginateTls {
        sni: sni.unwrap_or_default(),
        roots_der: bundle.into_iter().flatten().map(Into::into).collect(),
    }
}

const fn protocol(given: AppProtocol) -> v1::Protocol {
    match given {
        AppProtocol::Http1 => v1::Protocol::Http1,
        AppProtocol::Http2 | AppProtocol::Grpc => v1::Protocol::Http2,
        AppProtocol::Tls => v1::Protocol::Tls,
        AppProtocol::Tcp => v1::Protocol::Tcp,
    }
}
