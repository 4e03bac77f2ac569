//! Active checks of a cluster, as its callers' proxies are told: the defaults of the MeshService live here. Who checks and what
//! was found is not known here, see `checks`.

use weft_api::v1::{self, Source, active_check::Kind};
use weft_crds::MeshServiceSpec;
use weft_crds::mesh_service::ActiveCheck;

use super::endpoints::{self, Member};
use crate::index::Index;

/// Adds the checks to a cluster of these members, in the order of its endpoints.
pub fn fill<'a>(
    cluster: &mut v1::Cluster,
    index: &Index,
    spec: Option<&MeshServiceSpec>,
    members: impl Iterator<Item = &'a Member<'a>>,
    sources: &mut Vec<Source>,
) {
    let Some(active) = spec.and_then(|s| s.health.as_ref()).and_then(|h| h.active.as_ref()) else { return };
    for (endpoint, member) in cluster.endpoints.iter_mut().zip(members) {
        endpoint.check = Some(endpoints::checked(index, member, active.port, sources));
    }
    cluster.active = Some(compile(active));
}

fn compile(active: &ActiveCheck) -> v1::ActiveCheck {
    let http = active.http.as_ref().map(|http| {
        Kind::Http(v1::HttpCheck {
            path: http.path.clone(),
            expected_statuses: http.expected_statuses.iter().map(|status| (*status).into()).collect(),
            host: http.host.clone().unwrap_or_default(),
        })
    });
    let grpc = active
        .grpc
        .as_ref()
        .map(|grpc| Kind::Grpc(v1::GrpcCheck { service: grpc.service.clone().unwrap_or_default() }));
    v1::ActiveCheck {
        // One is given: the schema says so.
        kind: Some(http.or(grpc).unwrap_or(Kind::Tcp(v1::TcpCheck {}))),
        port: active.port.unwrap_or(0).into(),
        interval_ms: active.interval.map_or(10_000, |d| d.as_millis()),
        timeout_ms: active.timeout.map_or(1_000, |d| d.as_millis()),
        unhealthy_threshold: active.unhealthy_threshold.unwrap_or(3),
        healthy_threshold: active.healthy_threshold.unwrap_or(2),
        jitter_percent: active.jitter.unwrap_or(10),
        max_checkers: active.max_checkers.unwrap_or(3),
    }
}
