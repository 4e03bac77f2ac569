//! A cluster that does not exist: which services, pods, policies and proxies it has, and who calls whom. The same sizes always
//! give the same cluster. It knows names and addresses; `objects` makes Kubernetes objects of them.
//!
//! Namespaces have 20 services each. Services have few pods or many, as found in real clusters: of ten services two have 2
//! pods, two 3, two 5, two 10, one 20 and one 40, scaled to the wanted number. One service, the first, is called by every
//! proxy and has ten times as many pods as the average: whoever checks logins, or keeps flags. A proxy calls it, one service of
//! another namespace, and otherwise those of its own namespace. So a service has as many callers in a large cluster as in a small
//! one with the same number of proxies for each service, but for the first.

use std::collections::BTreeSet;

/// Services in a namespace.
const PER_NAMESPACE: usize = 20;
/// Pods of ten services, in a cluster with ten pods for each service.
const SHAPE: [usize; 10] = [2, 10, 3, 5, 40, 2, 10, 3, 5, 20];
/// Pods on a node.
const PER_NODE: usize = 50;

/// How much there is of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Services; at least 2.
    pub services: usize,
    /// Pods, about.
    pub pods: usize,
    /// Proxies that connect; at most as many as pods.
    pub proxies: usize,
    /// Services that each proxy calls; at most as many as there are in a namespace.
    pub calls: usize,
}

impl Sizes {
    /// Twice as much of everything; a proxy calls as many as before.
    #[must_use]
    pub const fn doubled(self) -> Self {
        Self { services: self.services * 2, pods: self.pods * 2, proxies: self.proxies * 2, ..self }
    }
}

/// A service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its cluster IP.
    pub ip: String,
    /// Behind it.
    pub pods: Vec<Pod>,
    /// It has a MeshService.
    pub described: bool,
    /// It has a TrafficPolicy.
    pub governed: bool,
}

/// A pod of a service; its ServiceAccount has the service's name.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its address.
    pub ip: String,
    /// Its node.
    pub node: usize,
}

/// A pod whose proxy connects.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// Its namespace.
    pub namespace: String,
    /// Its pod.
    pub pod: String,
    /// Its ServiceAccount.
    pub account: String,
    /// Which services it calls.
    pub calls: Vec<usize>,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// As asked for.
    pub sizes: Sizes,
    /// In order of their names.
    pub services: Vec<Service>,
    /// By number.
    pub proxies: Vec<Proxy>,
}

impl Service {
    /// "namespace/name:port", as the protocol names it.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}:80", self.namespace, self.name)
    }

    /// What a proxy subscribes to in order to call it.
    #[must_use]
    pub fn address(&self) -> String {
        format!("{}:80", self.ip)
    }
}

impl Pod {
    /// Where a service sends to.
    #[must_use]
    pub fn address(&self) -> String {
        format!("{}:8080", self.ip)
    }
}

impl Cluster {
    /// Of these sizes.
    #[must_use]
    pub fn new(sizes: Sizes) -> Self {
        let each = sizes.pods / sizes.services.max(1);
        let mut number = 0;
        let services: Vec<Service> = (0..sizes.services)
            .map(|s| {
                let count = if s == 0 { each * 10 } else { (SHAPE[s % 10] * each / 10).max(1) };
                let pods = (0..count).map(|p| {
                    number += 1;
                    pod(s, p, number)
                });
                Service {
                    namespace: format!("team-{:03}", s / PER_NAMESPACE),
                    name: format!("svc-{s:05}"),
                    ip: ip(96, s),
                    pods: pods.collect(),
                    described: s % 10 < 3,
                    governed: s % 5 == 0,
                }
            })
            .collect();
        let proxies = proxies(sizes, &services);
        Self { sizes, services, proxies }
    }

    /// Services that are beside those of any other cluster: in namespaces of their own, at other addresses. No proxies.
    #[must_use]
    pub fn beside(sizes: Sizes) -> Self {
        let mut cluster = Self::new(Sizes { proxies: 0, ..sizes });
        let mut number = 0;
        for (s, service) in cluster.services.iter_mut().enumerate() {
            service.namespace = format!("other-{:03}", s / PER_NAMESPACE);
            service.ip = ip(112, s);
            for pod in &mut service.pods {
                number += 1;
                pod.ip = ip(192, number);
            }
        }
        cluster
    }

    /// All namespaces.
    #[must_use]
    pub fn namespaces(&self) -> BTreeSet<&str> {
        self.services.iter().map(|service| service.namespace.as_str()).collect()
    }

    /// How many pods there are in fact.
    #[must_use]
    pub fn pods(&self) -> usize {
        self.services.iter().map(|service| service.pods.len()).sum()
    }

    /// How many nodes.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.pods() / PER_NODE + 1
    }

    /// The proxies that call a service.
    #[must_use]
    pub fn callers(&self, service: usize) -> BTreeSet<usize> {
        (0..self.proxies.len()).filter(|proxy| self.proxies[*proxy].calls.contains(&service)).collect()
    }

    /// A pod that a service does not have yet.
    #[must_use]
    pub fn another_pod(&self, service: usize) -> Pod {
        pod(service, self.services[service].pods.len(), self.pods() + 1 + service)
    }
}

fn pod(service: usize, position: usize, number: usize) -> Pod {
    Pod {
        name: format!("svc-{service:05}-7d4b9c6f5d-{position:05}"),
        ip: ip(128, number),
        node: number / PER_NODE,
    }
}

/// The nth address of 10.FIRST.0.0 and what follows.
fn ip(first: usize, n: usize) -> String {
    format!("10.{}.{}.{}", first + n / 62_500, n / 250 % 250, n % 250 + 1)
}

fn proxies(sizes: Sizes, services: &[Service]) -> Vec<Proxy> {
    let places: Vec<(usize, &Pod)> = services
        .iter()
        .enumerate()
        .flat_map(|(s, service)| service.pods.iter().map(move |p| (s, p)))
        .collect();
    let count = sizes.proxies.min(places.len());
    (0..count)
        .map(|k| {
            let (own, pod) = places[k * places.len() / count];
            let service = &services[own];
            let start = own / PER_NAMESPACE * PER_NAMESPACE;
            let beside = PER_NAMESPACE.min(services.len() - start);
            let mut calls = BTreeSet::from([0, (k * 7919 + 13) % services.len()]);
            for step in 0..beside {
                if calls.len() < sizes.calls {
                    calls.insert(start + (k + step) % beside);
                }
            }
            Proxy {
                namespace: service.namespace.clone(),
                pod: pod.name.clone(),
                account: service.name.clone(),
                calls: calls.into_iter().collect(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_has_about_the_wanted_sizes_and_no_address_twice() {
        let sizes = Sizes { services: 1000, pods: 10_000, proxies: 1000, calls: 10 };
        let cluster = Cluster::new(sizes);
        assert_eq!((cluster.services.len(), cluster.proxies.len()), (1000, 1000));
        assert!((9_900..=10_300).contains(&cluster.pods()), "{}", cluster.pods());
        let more: Vec<Pod> = (0..1000).map(|s| cluster.another_pod(s)).collect();
        let all = cluster.services.iter().flat_map(|s| &s.pods).chain(&more);
        let ips: BTreeSet<&str> =
            all.map(|p| p.ip.as_str()).chain(cluster.services.iter().map(|s| s.ip.as_str())).collect();
        assert_eq!(ips.len(), cluster.pods() + 2000);
        assert!(ips.iter().all(|ip| ip.parse::<std::net::Ipv4Addr>().is_ok()));
        assert!(cluster.proxies.iter().all(|proxy| proxy.calls.len() == 10));
    }

    #[test]
    fn an_ordinary_service_has_as_many_callers_in_a_cluster_twice_as_large() {
        let sizes = Sizes { services: 200, pods: 2000, proxies: 200, calls: 10 };
        let mean = |cluster: &Cluster| {
            let callers: usize = (1..cluster.services.len()).map(|s| cluster.callers(s).len()).sum();
            callers as f64 / (cluster.services.len() - 1) as f64
        };
        let (one, two) = (Cluster::new(sizes), Cluster::new(sizes.doubled()));
        assert!((mean(&one) - mean(&two)).abs() < 0.5, "{} {}", mean(&one), mean(&two));
        assert_eq!(one.callers(0).len(), 200);
    }
}
