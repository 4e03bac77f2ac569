//! Services with endpoints by name, as the operator tells of them, and the same with the addresses that the names have now:
//! the snapshot only ever sees addresses. Pure: `dns` looks names up, `control` puts the outcome in force.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use weft_api::v1;

use crate::dns::Found;

/// The services that were told with names, by key.
#[derive(Debug, Default)]
pub struct Named {
    told: BTreeMap<String, v1::Service>,
}

impl Named {
    /// Keeps what an update says by name, and puts addresses in its place. Whether the names that are wanted may be others.
    pub fn absorb(&mut self, update: &mut v1::ToProxy, found: &Found) -> bool {
        let mut changed = false;
        for key in &update.removed_services {
            changed |= self.told.remove(key).is_some();
        }
        for service in &mut update.services {
            if by_name(service) {
                let told = std::mem::take(service);
                *service = resolved(&told, found);
                self.told.insert(told.key.clone(), told);
                changed = true;
            } else if !self.told.is_empty() {
                changed |= self.told.remove(&service.key).is_some();
            }
        }
        changed
    }

    /// Those that are not told any more have no names either.
    pub fn retain(&mut self, kept: impl Fn(&str) -> bool) {
        self.told.retain(|key, _| kept(key));
    }

    /// Every name that has to be looked up.
    #[must_use]
    pub fn wanted(&self) -> BTreeSet<String> {
        let clusters = self.told.values().flat_map(|service| &service.clusters);
        let endpoints = clusters.flat_map(|cluster| &cluster.endpoints);
        endpoints
            .filter(|endpoint| !endpoint.host.is_empty())
            .map(|endpoint| question(&endpoint.host))
            .collect()
    }

    /// All of them with the addresses that are known now. Those that are as before make no difference to the snapshot.
    #[must_use]
    pub fn update(&self, found: &Found) -> v1::ToProxy {
        v1::ToProxy {
            services: self.told.values().map(|service| resolved(service, found)).collect(),
            ..v1::ToProxy::default()
        }
    }
}

fn by_name(service: &v1::Service) -> bool {
    let mut endpoints = service.clusters.iter().flat_map(|cluster| &cluster.endpoints);
    endpoints.any(|endpoint| !endpoint.host.is_empty())
}

/// Names are whole: the search domains of the pod would have each looked up several times, and let whoever can make a Service
/// of such a name take it.
fn question(host: &str) -> String {
    if host.ends_with('.') { host.to_owned() } else { format!("{host}.") }
}

/// One endpoint for each address of a name, of which each has the name's weight.
fn resolved(service: &v1::Service, found: &Found) -> v1::Service {
    let mut service = service.clone();
    for cluster in &mut service.clusters {
        let mut seen = BTreeSet::new();
        let told = std::mem::take(&mut cluster.endpoints);
        for endpoint in told {
            if endpoint.host.is_empty() {
                if seen.insert(endpoint.address.clone()) {
                    cluster.endpoints.push(endpoint);
                }
                continue;
            }
            let Ok(port) = u16::try_from(endpoint.host_port) else { continue };
            let addresses = found.get(&question(&endpoint.host)).map(Vec::as_slice).unwrap_or_default();
            for ip in addresses {
                let address = SocketAddr::new(ip.to_canonical(), port).to_string();
                // Two names may lead to the same place.
                if seen.insert(address.clone()) {
                    let host = String::new();
                    cluster.endpoints.push(v1::Endpoint { address, host, host_port: 0, ..endpoint.clone() });
                }
            }
        }
    }
    service
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(endpoints: &[(&str, &str)]) -> v1::Service {
        let endpoint = |(address, host): &(&str, &str)| v1::Endpoint {
            address: (*address).into(),
            host: (*host).into(),
            host_port: if host.is_empty() { 0 } else { 443 },
            weight: 7,
            ..Default::default()
        };
        let endpoints = endpoints.iter().map(endpoint).collect();
        v1::Service {
            key: "shop/api.external:443".into(),
            clusters: vec![v1::Cluster { endpoints, ..Default::default() }],
            ..Default::default()
        }
    }

    fn found(name: &str, addresses: &[&str]) -> Found {
        Found::from([(name.to_owned(), addresses.iter().map(|a| a.parse().unwrap()).collect())])
    }

    fn addresses(update: &v1::ToProxy) -> Vec<&str> {
        let endpoints = update.services.iter().flat_map(|s| &s.clusters).flat_map(|c| &c.endpoints);
        endpoints.map(|e| e.address.as_str()).collect()
    }

    fn told(service: v1::Service) -> v1::ToProxy {
        v1::ToProxy { services: vec![service], ..Default::default() }
    }

    #[test]
    fn a_name_becomes_its_addresses_and_follows_them() {
        let mut named = Named::default();
        let mut update = told(service(&[("192.0.2.9:443", ""), ("", "api.example.com")]));
        assert!(named.absorb(&mut update, &Found::new()));
        assert_eq!(addresses(&update), ["192.0.2.9:443"], "not known yet");
        assert_eq!(named.wanted(), BTreeSet::from(["api.example.com.".to_owned()]));
        let first = named.update(&found("api.example.com.", &["192.0.2.1", "2001:db8::1"]));
        assert_eq!(addresses(&first), ["192.0.2.9:443", "192.0.2.1:443", "[2001:db8::1]:443"]);
        assert!(first.services[0].clusters[0].endpoints.iter().all(|e| e.host.is_empty() && e.weight == 7));
        let second = named.update(&found("api.example.com.", &["192.0.2.9"]));
        assert_eq!(addresses(&second), ["192.0.2.9:443"], "each address once");
    }

    #[test]
    fn what_is_known_already_is_used_at_once() {
        let mut update = told(service(&[("", "api.example.com")]));
        Named::default().absorb(&mut update, &found("api.example.com.", &["192.0.2.1"]));
        assert_eq!(addresses(&update), ["192.0.2.1:443"]);
    }

    #[test]
    fn names_that_are_told_no_more_are_wanted_no_more() {
        let mut named = Named::default();
        named.absorb(&mut told(service(&[("", "a.example")])), &Found::new());
        assert!(named.absorb(&mut told(service(&[("192.0.2.1:443", "")])), &Found::new()));
        assert!(named.wanted().is_empty());
        named.absorb(&mut told(service(&[("", "a.example")])), &Found::new());
        let gone = vec!["shop/api.external:443".to_owned()];
        assert!(
            named.absorb(&mut v1::ToProxy { removed_services: gone, ..Default::default() }, &Found::new())
        );
        assert!(named.wanted().is_empty());
    }

    #[test]
    fn an_update_without_names_is_left_alone() {
        let mut update = told(service(&[("192.0.2.1:443", "")]));
        let before = update.clone();
        assert!(!Named::default().absorb(&mut update, &Found::new()));
        assert_eq!(update, before);
    }
}
