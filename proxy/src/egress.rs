//! The external services that are registered, by what a connection to an address that nobody knows tells of itself: its
//! port, then the server name of TLS, the host of an HTTP request, or, for opaque bytes, the address. Pure look-ups; it
//! never decides what becomes of a connection that matches none.
//!
//! A name that the application chose selects a service, never an address: connections go to that service's own endpoints.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::snapshot::{Protocol, Service};

#[cfg(test)]
mod tests;

/// Longest name of a host that is looked up. RFC 1035 section 2.3.4.
const MAX_NAME: usize = 253;

/// Which names a service answers to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// This one.
    Exact(Box<str>),
    /// Every name below; without the `*.`.
    Below(Box<str>),
}

impl Host {
    /// `api.example.com`, or `*.example.com`; lower case.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, below) = text.strip_prefix("*.").map_or((text, false), |name| (name, true));
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
        };
        if name.len() > MAX_NAME || !name.split('.').all(label) {
            return Err(format!(
                "`{}` is not the name of a host",
                text.chars().take(100).collect::<String>()
            ));
        }
        Ok(if below { Self::Below(name.into()) } else { Self::Exact(name.into()) })
    }
}

/// Registered external services.
#[derive(Debug, Default)]
pub struct Egress {
    by_port: HashMap<u16, Port>,
}

/// Those of one port.
#[derive(Debug, Default)]
pub struct Port {
    http: Names,
    tls: Names,
    tcp: HashMap<IpAddr, Arc<Service>>,
}

#[derive(Debug, Default)]
struct Names {
    exact: HashMap<Box<str>, Arc<Service>>,
    below: HashMap<Box<str>, Arc<Service>>,
}

impl Egress {
    /// Of all services of a snapshot those that are external. `own` is the workload's namespace: where it and the mesh
    /// register the same, its own registration counts.
    pub fn of<'a>(services: impl Iterator<Item = &'a Arc<Service>>, own: &str) -> Self {
        let mut external: Vec<&Arc<Service>> =
            services.filter(|service| service.external.is_some()).collect();
        // The first to be put in stays.
        external.sort_by_key(|service| (&*service.namespace != own, Arc::clone(&service.key)));
        let mut by_port: HashMap<u16, Port> = HashMap::new();
        for service in external {
            by_port.entry(service.port).or_default().add(service);
        }
        Self { by_port }
    }

    /// What is registered with a port, if anything is.
    #[must_use]
    pub fn port(&self, port: u16) -> Option<&Port> {
        self.by_port.get(&port)
    }
}

impl Port {
    fn add(&mut self, service: &Arc<Service>) {
        let names = match service.protocol {
            Protocol::Tls => &mut self.tls,
            Protocol::Http1 | Protocol::Http2 => &mut self.http,
            Protocol::Tcp | Protocol::Detect => {
                for endpoint in &service.default_cluster.endpoints {
                    self.tcp.entry(endpoint.addr.ip().to_canonical()).or_insert_with(|| Arc::clone(service));
                }
                return;
            }
        };
        for host in service.external.iter().flatten() {
            match host {
                Host::Exact(name) => names.exact.entry(name.clone()).or_insert_with(|| Arc::clone(service)),
                Host::Below(name) => names.below.entry(name.clone()).or_insert_with(|| Arc::clone(service)),
            };
        }
    }

    /// The service of opaque bytes that has an endpoint at the address.
    #[must_use]
    pub fn by_address(&self, ip: IpAddr) -> Option<&Arc<Service>> {
        self.tcp.get(&ip.to_canonical())
    }

    /// The service that the server name of a ClientHello means.
    #[must_use]
    pub fn by_server_name(&self, name: &str) -> Option<&Arc<Service>> {
        self.tls.find(name)
    }

    /// The service that the authority of a request means; the port in it does not count.
    #[must_use]
    pub fn by_authority(&self, authority: &str) -> Option<&Arc<Service>> {
        self.http.find(without_port(authority))
    }

    /// Some service takes HTTP.
    #[must_use]
    pub fn speaks_http(&self) -> bool {
        !self.http.is_empty()
    }

    /// Whether the first bytes matter at all.
    #[must_use]
    pub fn by_name(&self) -> bool {
        !self.http.is_empty() || !self.tls.is_empty()
    }
}

impl Names {
    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.below.is_empty()
    }

    fn find(&self, name: &str) -> Option<&Arc<Service>> {
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.len() > MAX_NAME || self.is_empty() {
            return None;
        }
        // Nearly every name is in lower case already.
        if name.bytes().any(|b| b.is_ascii_uppercase()) {
            return self.find(&name.to_ascii_lowercase());
        }
        if let Some(service) = self.exact.get(name) {
            return Some(service);
        }
        if self.below.is_empty() {
            return None;
        }
        // The longest comes first.
        name.match_indices('.').find_map(|(dot, _)| self.below.get(&name[dot + 1..]))
    }
}

/// RFC 3986 section 3.2: user information is not part of a host, and makes none here.
fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') && port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    }
}
