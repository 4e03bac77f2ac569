//! Which Service a reference means, and which of two rivals counts. It compares names; it never looks one up elsewhere.

use crate::MeshService;
use crate::mesh_service::{AppProtocol, ExternalEndpoint, ExternalPort, Target};
use crate::traffic_policy::{TargetKind, TargetRef};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::borrow::{Borrow, Cow};
use std::cmp::Ordering;

/// Which of two resources counts when both claim the same thing: the one that was created first, then the lower name.
/// `Less` says that `a` counts. A resource that was not created yet never counts over one that was.
#[must_use]
pub fn older(a: &ObjectMeta, b: &ObjectMeta) -> Ordering {
    let created = match (&a.creation_timestamp, &b.creation_timestamp) {
        (Some(a), Some(b)) => a.cmp(b),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => Ordering::Equal,
    };
    created.then_with(|| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)))
}

/// Whether two MeshServices describe the same Service.
#[must_use]
pub fn same_target(a: &MeshService, b: &MeshService) -> bool {
    a.metadata.namespace == b.metadata.namespace
        && a.metadata.name != b.metadata.name
        && a.spec.target.service.is_some()
        && a.spec.target.service == b.spec.target.service
}

/// A port and what two external services of one namespace are both found by there; the older one would get it.
#[must_use]
pub fn same_external(a: &Target, b: &Target) -> Option<(u16, String)> {
    let (a, b) = (a.external.as_ref()?, b.external.as_ref()?);
    let meeting =
        |p: &&ExternalPort| b.ports.iter().any(|q| p.port == q.port && by(p.protocol) == by(q.protocol));
    a.ports.iter().filter(meeting).find_map(|port| {
        let shared = match by(port.protocol) {
            By::Address => {
                let address = |at: &&ExternalEndpoint| b.endpoints.iter().any(|e| e.address == at.address);
                a.endpoints.iter().find(address).map(|e| e.address.clone())
            }
            By::Authority | By::ServerName => {
                a.hosts.iter().find(|h| b.hosts.contains(h)).map(|h| h.0.clone())
            }
        };
        shared.map(|shared| (port.port, shared))
    })
}

/// What a connection is found to mean a service by.
#[derive(PartialEq)]
enum By {
    ServerName,
    Authority,
    Address,
}

const fn by(protocol: AppProtocol) -> By {
    match protocol {
        AppProtocol::Tls => By::ServerName,
        AppProtocol::Http1 | AppProtocol::Http2 | AppProtocol::Grpc => By::Authority,
        AppProtocol::Tcp => By::Address,
    }
}

/// What a target means: the Service itself, or what the MeshService of that name describes ([`Target::key`]); `None` when
/// there is none.
#[must_use]
pub fn target_service<'a, M: Borrow<MeshService>>(
    namespace: Option<&str>,
    target: &'a TargetRef,
    mesh_services: &'a [M],
) -> Option<Cow<'a, str>> {
    match target.kind {
        TargetKind::Service => Some(Cow::Borrowed(&*target.name)),
        TargetKind::MeshService => mesh_services
            .iter()
            .map(Borrow::borrow)
            .find(|m| {
                m.metadata.namespace.as_deref() == namespace
                    && m.metadata.name.as_deref() == Some(&target.name)
            })
            .map(|m| m.spec.target.key(&target.name)),
    }
}

/// The MeshService that counts for a Service.
pub(super) fn describing<'a, M: Borrow<MeshService>>(
    namespace: Option<&str>,
    service: &str,
    mesh_services: &'a [M],
) -> Option<&'a MeshService> {
    mesh_services
        .iter()
        .map(Borrow::borrow)
        .filter(|m| {
            m.metadata.namespace.as_deref() == namespace && m.spec.target.service.as_deref() == Some(service)
        })
        .min_by(|a, b| older(&a.metadata, &b.metadata))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(name: &str, created: Option<&str>) -> ObjectMeta {
        serde_json::from_value(serde_json::json!({"name": name, "creationTimestamp": created})).unwrap()
    }

    #[test]
    fn the_one_created_first_counts_then_the_lower_name() {
        let (early, late) = (Some("2026-01-01T00:00:00Z"), Some("2026-01-01T00:00:01Z"));
        assert_eq!(older(&meta("b", early), &meta("a", late)), Ordering::Less);
        assert_eq!(older(&meta("b", early), &meta("a", early)), Ordering::Greater);
        assert_eq!(older(&meta("a", None), &meta("b", late)), Ordering::Greater);
    }
}
