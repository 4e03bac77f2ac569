//! How a cluster is balanced: from the message to policy, key, tiers and tables. It keeps nothing.

use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderName;
use weft_api::v1;

use super::{Invalid, Result, millis, required, unknown};
use crate::balance::hash::HashOn;
use crate::balance::ramp::SlowStart;
use crate::balance::table::{Kind, MAX_ENDPOINTS, RING_POINTS, Table};
use crate::balance::tiers::{Locality, Place, Plan};
use crate::snapshot::apply::Carried;
use crate::snapshot::{Balancer, Endpoint};

/// Priorities that are told apart; with three distances each, tiers stay few.
const MAX_PRIORITY: u32 = 64;

pub(super) fn balancer(message: &v1::Cluster) -> Result<Balancer> {
    match v1::Balancer::try_from(message.balancer) {
        Ok(v1::Balancer::PeakEwma) => Ok(Balancer::PeakEwma),
        Ok(v1::Balancer::LeastRequest) => Ok(Balancer::LeastRequest),
        Ok(v1::Balancer::RoundRobin) => Ok(Balancer::RoundRobin),
        Ok(v1::Balancer::Random) => Ok(Balancer::Random),
        Ok(v1::Balancer::RingHash) => Ok(Balancer::RingHash),
        Ok(v1::Balancer::Maglev) => Ok(Balancer::Maglev),
        Err(_) => Err(unknown("balancer", message.balancer)),
    }
}

pub(super) fn hash(balancer: Balancer, message: &v1::Cluster) -> Result<Option<HashOn>> {
    use v1::hash::Key;
    if !matches!(balancer, Balancer::RingHash | Balancer::Maglev) {
        return Ok(None);
    }
    let key = message.hash.as_ref().and_then(|hash| hash.key.as_ref());
    let on = match key {
        None => return Err(Invalid::new("hash", format!("{balancer:?} needs a key to hash by"))),
        Some(Key::Header(name)) => HashOn::Header(
            HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| Invalid::new("hash.header", format!("`{name}` is not the name of a header")))?,
        ),
        Some(Key::Cookie(cookie)) => {
            HashOn::Cookie { name: cookie_name(&cookie.name)?.into(), ttl: millis(cookie.ttl_ms) }
        }
        Some(Key::SourceIp(_)) => HashOn::SourceIp,
        Some(Key::Query(name)) => HashOn::Query(required("hash.query", name)?.into()),
    };
    Ok(Some(on))
}

/// RFC 6265 section 4.1.1: a token of RFC 9110, which is what a header's name is too.
fn cookie_name(name: &str) -> Result<&str> {
    let bad = || Invalid::new("hash.cookie.name", format!("`{name}` is not the name of a cookie"));
    HeaderName::from_bytes(name.as_bytes()).map(|_| name).map_err(|_| bad())
}

pub(super) fn slow_start(message: &v1::SlowStart) -> Option<SlowStart> {
    millis(message.window_ms).map(|window| SlowStart { window, aggression: message.aggression.clamp(1, 100) })
}

pub(super) fn locality(value: i32) -> Result<Option<Locality>> {
    match v1::Locality::try_from(value) {
        Ok(v1::Locality::None) => Ok(None),
        Ok(v1::Locality::Prefer) => Ok(Some(Locality::Prefer)),
        Ok(v1::Locality::Zone) => Ok(Some(Locality::Zone)),
        Ok(v1::Locality::Region) => Ok(Some(Locality::Region)),
        Err(_) => Err(unknown("locality", value)),
    }
}

pub(super) fn priority(value: u32) -> Result<u32> {
    let bad = || Invalid::new("priority", format!("{value} is not below {MAX_PRIORITY}"));
    (value < MAX_PRIORITY).then_some(value).ok_or_else(bad)
}

/// The tiers of a cluster, and their tables; a table that would come out the same is taken from the last snapshot.
pub(super) fn plan(
    cluster: &str,
    message: &v1::Cluster,
    balancer: Balancer,
    locality: Option<Locality>,
    endpoints: &[Arc<Endpoint>],
    carried: &Carried,
) -> Result<Plan> {
    let kind = match balancer {
        Balancer::RingHash => {
            let points = message.hash.as_ref().map_or(0, |hash| hash.ring_points).min(4096);
            Some(Kind::Ring(if points == 0 { RING_POINTS } else { points }))
        }
        Balancer::Maglev => Some(Kind::Maglev),
        _ => None,
    };
    if kind.is_some() && endpoints.len() > MAX_ENDPOINTS {
        let problem =
            format!("{balancer:?} takes at most {MAX_ENDPOINTS}, and these are {}", endpoints.len());
        return Err(Invalid::new("endpoints", problem));
    }
    let here = carried.here();
    let ranks: Vec<Option<(u32, u8)>> = endpoints
        .iter()
        .map(|endpoint| {
            let there = Place { zone: &endpoint.zone, region: &endpoint.region };
            let distance = locality.map_or(Some(0), |locality| locality.distance(here, there))?;
            Some((endpoint.priority, distance))
        })
        .collect();
    let weights: Vec<u32> = endpoints.iter().map(|endpoint| endpoint.weight).collect();
    let table = |members: &[usize]| {
        let kind = kind?;
        let share = |&place: &usize| -> (SocketAddr, u32) { (endpoints[place].addr, weights[place]) };
        let shares: Vec<_> = members.iter().map(share).collect();
        Some(carried.table(cluster, kind, &shares).unwrap_or_else(|| Arc::new(Table::new(kind, &shares))))
    };
    Ok(Plan::new(&ranks, &weights, message.panic_threshold_percent.min(100), table))
}
