//! A cluster: endpoints with how they are balanced and protected. The defaults of the MeshService live here.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use weft_api::v1::{self, Source};
use weft_crds::MeshServiceSpec;
use weft_crds::mesh_service::AdaptiveConcurrency;

use super::active;
use super::balance;
use super::endpoints::{self, Member};
use crate::index::policy::InForce;
use crate::index::space::Labels;
use crate::index::{Index, Service, ServicePort, Space, selects};

/// All clusters of one port of a Service, made from one reading of its endpoints.
pub struct Maker<'a> {
    index: &'a Index,
    members: BTreeMap<SocketAddr, Member<'a>>,
    described: Option<&'a InForce<MeshServiceSpec>>,
    name: String,
}

impl<'a> Maker<'a> {
    /// For a port of a Service.
    pub fn new(index: &'a Index, space: &'a Space, service: &Service, port: &ServicePort) -> Self {
        Self {
            index,
            members: endpoints::members(index, space, service, port),
            described: space.described(&service.key.name),
            name: format!("{}:{}", service.key, port.port),
        }
    }

    /// For one endpoint without a Service.
    pub fn single(index: &'a Index, member: Member<'a>, name: String) -> Self {
        Self { index, members: BTreeMap::from([(member.at, member)]), described: None, name }
    }

    /// For an external service; its endpoints are not the index's business.
    pub fn external(index: &'a Index, described: &'a InForce<MeshServiceSpec>, name: String) -> Self {
        Self { index, members: BTreeMap::new(), described: Some(described), name }
    }

    /// The cluster of all endpoints.
    pub fn whole(&self, sources: &mut Vec<Source>) -> v1::Cluster {
        self.make(self.name.clone(), |_| true, sources)
    }

    /// The cluster of a subset.
    pub fn subset(&self, subset: &str, labels: &Labels, sources: &mut Vec<Source>) -> v1::Cluster {
        let name = format!("{}/{subset}", self.name);
        self.make(name, |m| m.pod.is_some_and(|pod| selects(labels, &pod.labels)), sources)
    }

    fn make(
        &self,
        name: String,
        chosen: impl Fn(&Member<'_>) -> bool,
        sources: &mut Vec<Source>,
    ) -> v1::Cluster {
        let spec = self.described.map(|d| &*d.spec);
        if let Some(described) = self.described {
            sources.push(source("MeshService", described));
        }
        let members = self.members.values().filter(|m| chosen(m));
        let checked = members.clone();
        let endpoints = members.map(|m| {
            let pod = m.pod.map(|pod| &**pod);
            let mut endpoint = endpoints::compile(self.index, m, balance::weight(spec, pod), sources);
            endpoint.priority = balance::priority(spec, pod);
            endpoint
        });
        let endpoints = endpoints.collect();
        let connection = spec.and_then(|s| s.connection.as_ref());
        let mut cluster = v1::Cluster {
            name,
            endpoints,
            breaker: Some(breaker(spec)),
            outlier: outlier(spec),
            connect_timeout_ms: connection.and_then(|c| c.connect_timeout).map_or(2_000, |d| d.as_millis()),
            idle_timeout_ms: connection.and_then(|c| c.idle_timeout).map_or(60_000, |d| d.as_millis()),
            max_requests_per_connection: connection.and_then(|c| c.max_requests).unwrap_or(0),
            adaptive: spec.and_then(|s| s.adaptive_concurrency.as_ref()).map(adaptive),
            ..v1::Cluster::default()
        };
        balance::fill(&mut cluster, spec);
        active::fill(&mut cluster, self.index, spec, checked, sources);
        cluster
    }
}

/// The resource and generation that a message was shaped by.
pub fn source<S>(kind: &str, in_force: &InForce<S>) -> Source {
    Source {
        kind: kind.into(),
        namespace: in_force.key.namespace.clone(),
        name: in_force.key.name.clone(),
        generation: in_force.generation,
    }
}

fn breaker(spec: Option<&MeshServiceSpec>) -> v1::Breaker {
    let given = spec.and_then(|s| s.circuit_breaker.clone()).unwrap_or_default();
    v1::Breaker {
        max_connections: given.max_connections.unwrap_or(1024),
        max_pending_requests: given.max_pending_requests.unwrap_or(1024),
        max_concurrent_requests: given.max_concurrent_requests.unwrap_or(4096),
        max_retries: given.max_retries.unwrap_or(64),
    }
}

fn adaptive(given: &AdaptiveConcurrency) -> v1::Adaptive {
    v1::Adaptive {
        min_limit: given.min_limit.unwrap_or(3),
        max_limit: given.max_limit.unwrap_or(1000),
        tolerance_percent: given.tolerance_percent.unwrap_or(25),
        baseline_every_ms: given.baseline_interval.map_or(60_000, |d| d.as_millis()),
    }
}

fn outlier(spec: Option<&MeshServiceSpec>) -> Option<v1::Outlier> {
    let given = spec.and_then(|s| s.health.as_ref()).and_then(|h| h.outlier.clone()).unwrap_or_default();
    let base_ejection_ms = given.ejection_time.map_or(10_000, |d| d.as_millis());
    let compiled = v1::Outlier {
        consecutive_failures: given.consecutive_failures.unwrap_or(5),
        base_ejection_ms,
        max_ejection_ms: given.max_ejection_time.map_or(300_000, |d| d.as_millis()).max(base_ejection_ms),
        max_ejected_percent: given.max_ejected_percent.unwrap_or(50),
        consecutive_gateway_errors: given.consecutive_gateway_errors.unwrap_or(0),
        interval_ms: given.interval.map_or(10_000, |d| d.as_millis()),
        success_rate: given.success_rate.map(|rule| v1::SuccessRate {
            min_requests: rule.min_requests.unwrap_or(100),
            min_hosts: rule.min_hosts.unwrap_or(5),
            stdev_factor_thousandths: thousandths(rule.stdev_factor.unwrap_or(1.9)),
        }),
        latency: given.latency.map(|rule| v1::LatencyRule {
            min_requests: rule.min_requests.unwrap_or(100),
            factor_thousandths: thousandths(rule.factor.unwrap_or(3.0)),
        }),
    };
    let any = compiled.consecutive_failures > 0
        || compiled.consecutive_gateway_errors > 0
        || compiled.success_rate.is_some()
        || compiled.latency.is_some();
    any.then_some(compiled)
}

/// The schema bounds it to 1000.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn thousandths(factor: f64) -> u32 {
    (factor * 1000.0).round().clamp(0.0, 1e6) as u32
}
