//! How a cluster is balanced: from the MeshService's `balancer` to the message. Pure.

use weft_crds::MeshServiceSpec;
use weft_crds::mesh_service::{Balancer, BalancerPolicy, Boundary, Hash, LocalityMode};

use weft_api::v1;

use crate::index::{Pod, selects};

pub const DEFAULT_WEIGHT: u32 = 100;

fn given(spec: Option<&MeshServiceSpec>) -> Option<&Balancer> {
    spec.and_then(|spec| spec.balancer.as_ref())
}

/// What of a cluster concerns its balancing.
pub fn fill(cluster: &mut v1::Cluster, spec: Option<&MeshServiceSpec>) {
    let Some(given) = given(spec) else { return };
    let (balancer, hash) = match (given.policy, &given.hash) {
        (BalancerPolicy::PeakEwma, _) => (v1::Balancer::PeakEwma, None),
        (BalancerPolicy::LeastRequest, _) => (v1::Balancer::LeastRequest, None),
        (BalancerPolicy::RoundRobin, _) => (v1::Balancer::RoundRobin, None),
        (BalancerPolicy::Random, _) => (v1::Balancer::Random, None),
        (BalancerPolicy::SourceIpHash, _) => (v1::Balancer::Maglev, Some(source_ip())),
        (BalancerPolicy::RingHash, Some(on)) => (v1::Balancer::RingHash, hash(on)),
        (BalancerPolicy::Maglev, Some(on)) => (v1::Balancer::Maglev, hash(on)),
        // The rules of the resource refuse it; whoever stored it without them gets the default.
        (BalancerPolicy::RingHash | BalancerPolicy::Maglev, None) => (v1::Balancer::PeakEwma, None),
    };
    cluster.balancer = balancer.into();
    cluster.hash = hash;
    cluster.slow_start = given.slow_start.as_ref().map(|slow| v1::SlowStart {
        window_ms: slow.window.as_millis(),
        aggression: slow.aggression.unwrap_or(1),
    });
    let locality = match given.locality.as_ref().map(|locality| (locality.mode, locality.within)) {
        None => v1::Locality::None,
        Some((LocalityMode::Prefer, _)) => v1::Locality::Prefer,
        Some((LocalityMode::Strict, None | Some(Boundary::Zone))) => v1::Locality::Zone,
        Some((LocalityMode::Strict, Some(Boundary::Region))) => v1::Locality::Region,
    };
    cluster.locality = locality.into();
    cluster.panic_threshold_percent = given.panic_threshold.unwrap_or(0);
}

const fn source_ip() -> v1::Hash {
    v1::Hash { key: Some(v1::hash::Key::SourceIp(true)), ring_points: 0 }
}

fn hash(given: &Hash) -> Option<v1::Hash> {
    use v1::hash::Key;
    let header = || given.header.as_ref().map(|name| Key::Header(name.to_ascii_lowercase()));
    let cookie = || {
        given.cookie.as_ref().map(|cookie| {
            let ttl_ms = cookie.ttl.map_or(0, |ttl| ttl.as_millis());
            Key::Cookie(v1::HashCookie { name: cookie.name.clone(), ttl_ms })
        })
    };
    let query = || given.query.clone().map(Key::Query);
    let key = header().or_else(cookie).or_else(query).unwrap_or(Key::SourceIp(true));
    Some(v1::Hash { key: Some(key), ring_points: given.ring_points.unwrap_or(0) })
}

/// The weight of an endpoint.
pub fn weight(spec: Option<&MeshServiceSpec>, pod: Option<&Pod>) -> u32 {
    let (Some(given), Some(pod)) = (given(spec), pod) else { return DEFAULT_WEIGHT };
    given.weights.iter().find(|w| selects(&w.labels, &pod.labels)).map_or(DEFAULT_WEIGHT, |w| w.weight)
}

/// The place of an endpoint in the order of failover: 0 comes first, and who fits no entry comes last.
pub fn priority(spec: Option<&MeshServiceSpec>, pod: Option<&Pod>) -> u32 {
    let order = given(spec).map(|given| given.failover.as_slice()).unwrap_or_default();
    let fits = |pod: &Pod| order.iter().position(|entry| selects(&entry.labels, &pod.labels));
    u32::try_from(pod.and_then(fits).unwrap_or(order.len())).unwrap_or(u32::MAX)
}
