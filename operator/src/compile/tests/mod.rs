//! What the compiled messages promise, from hand-fed indexes.

mod addresses;
mod authorization;
mod balance;
mod external;
mod federation;
mod fields;
mod filters;
mod last_good;
mod limits;
mod order;
mod outbound;
mod policies;
mod services;
mod tokens;
mod workloads;

use std::net::SocketAddr;

use weft_api::v1;

use crate::index::testing::{Object, pod, service, slice};
use crate::index::{Index, ServiceId};

/// The Service shop/back on port 80 with two pods on port 8080.
fn shop() -> Vec<Object> {
    vec![
        service("shop/back", "10.96.0.1", &[("http", 80, 8080)]),
        slice("shop/back", &[("http", 8080)], &[("10.0.0.1", "back-1", true), ("10.0.0.2", "back-2", true)]),
        pod("shop/back-1", "back", "10.0.0.1"),
        pod("shop/back-2", "back", "10.0.0.2"),
    ]
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn compiled(index: &Index, id: &str) -> v1::Service {
    super::service(index, &id.parse::<ServiceId>().unwrap()).unwrap()
}

fn cluster<'a>(service: &'a v1::Service, name: &str) -> &'a v1::Cluster {
    service
        .clusters
        .iter()
        .find(|c| c.name == name)
        .unwrap_or_else(|| panic!("no cluster {name} in {service:?}"))
}

fn addresses(cluster: &v1::Cluster) -> Vec<&str> {
    cluster.endpoints.iter().map(|e| e.address.as_str()).collect()
}

/// Names and weights of where a route sends.
fn backends(route: &v1::Route) -> Vec<(&str, u32)> {
    route.backends.iter().map(|b| (b.cluster.as_str(), b.weight)).collect()
}
