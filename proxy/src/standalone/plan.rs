//! From the file to what the data path is told: the same message that the operator would send, and which listeners there
//! are. Pure, so that `check` and a reload judge alike. Every mistake is named. It binds, reads and resolves nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;

use weft_api::{Identity, v1};

use super::file::{File, InboundListener};
use crate::dns::Found;
use crate::listener::Key;
use crate::memory;
use crate::record::Direction;
use crate::retry::RetryPolicy;
use crate::settings::{duration, host_and_port};
use crate::snapshot::Snapshot;

/// What a file comes to.
#[derive(Debug)]
pub(super) struct Plan {
    /// The next snapshot.
    pub(super) snapshot: Snapshot,
    /// Where each listener's connections go. Nothing: the application's name has not been resolved yet.
    pub(super) listeners: BTreeMap<Key, Option<SocketAddr>>,
}

/// The names that the file has in place of addresses.
pub(super) fn names(file: &File) -> BTreeSet<String> {
    let endpoints = file.services.iter().flat_map(|service| &service.clusters).flat_map(|c| &c.endpoints);
    let applications = file.listeners.inbound.iter().map(|inbound| &inbound.application);
    endpoints
        .map(|endpoint| &endpoint.address)
        .chain(applications)
        .filter(|address| address.parse::<SocketAddr>().is_err())
        .filter_map(|address| host_and_port(address).ok())
        .map(|(host, _)| host)
        .collect()
}

/// The next state after `last`, or everything that is wrong. `own`: as certified; without it all is plaintext.
pub(super) fn plan(
    file: &File,
    found: &Found,
    own: Option<&Identity>,
    last: &Snapshot,
) -> Result<Plan, Vec<String>> {
    let mut problems = Vec::new();
    head(file, &mut problems);
    let services: Vec<v1::Service> =
        file.services.iter().map(|service| complete(service, found, own, &mut problems)).collect();
    let mut seen = BTreeSet::new();
    for service in &services {
        if !seen.insert(service.key.clone()) {
            problems.push(format!("services: `{}` stands twice", service.key));
        }
    }
    let mut listeners = BTreeMap::new();
    let addresses = outbound(file, &services, &mut listeners, &mut problems);
    let workload = inbound(file, found, own, &mut listeners, &mut problems);

    let gone = |key: &&str| !services.iter().any(|service| service.key == **key);
    let removed = last.services.keys().map(|key| &**key).filter(gone).map(str::to_owned).collect();
    let kept: BTreeSet<SocketAddr> =
        addresses.iter().filter_map(|entry| entry.address.parse().ok()).collect();
    let idle: Vec<SocketAddr> = last.addresses.keys().filter(|at| !kept.contains(at)).copied().collect();
    let update = v1::ToProxy {
        workload: Some(workload),
        addresses,
        services,
        removed_services: removed,
        ..Default::default()
    };
    let (snapshot, rejections) = last.without(&idle).apply(&update);
    // What leads to a service that was rejected is no mistake of its own.
    let of_service = |resource: &str| seen.contains(resource) || resource == "workload";
    problems.extend(
        rejections
            .iter()
            .filter(|rejection| of_service(&rejection.resource))
            .map(|rejection| format!("{}: {}", rejection.resource, rejection.message)),
    );
    if problems.is_empty() { Ok(Plan { snapshot, listeners }) } else { Err(problems) }
}

fn head(file: &File, problems: &mut Vec<String>) {
    if let Some(admin) = file.admin.filter(|admin| !admin.ip().is_loopback()) {
        problems.push(format!(
            "admin: {admin} is not a loopback address; the admin API changes the log level and shows the configuration, use `metrics` for what others may see"
        ));
    }
    if !(1..=64).contains(&file.workers) {
        problems.push(format!("workers: {} is not a number from 1 to 64", file.workers));
    }
    if !(1..=1_000_000).contains(&file.max_connections) {
        problems.push(format!("maxConnections: {} is not a number from 1 to 1000000", file.max_connections));
    }
    if let Some(Err(problem)) = file.memory_limit.as_deref().map(memory::quantity) {
        problems.push(format!("memoryLimit: {problem}"));
    }
    if let Err(problem) = duration(&file.drain_timeout) {
        problems.push(format!("drainTimeout: {problem}"));
    }
    if let Err(problem) = crate::logging::parse(&file.log) {
        problems.push(format!("log: {problem}"));
    }
    let mut taken = BTreeSet::new();
    let listeners = &file.listeners;
    let all = listeners.outbound.iter().map(|l| l.address).chain(listeners.inbound.iter().map(|l| l.address));
    for address in all.chain(file.admin).chain(file.metrics) {
        if address.port() == 0 {
            problems.push(format!("`{address}` has no port"));
        } else if !taken.insert(address) {
            problems.push(format!("`{address}` stands twice; each listener has an address of its own"));
        }
    }
    if listeners.outbound.is_empty() && listeners.inbound.is_empty() {
        problems.push("listeners: there is none, so that there would be nothing to do".to_owned());
    }
}

/// Fills in what may be left out, and addresses for names.
fn complete(
    service: &v1::Service,
    found: &Found,
    own: Option<&Identity>,
    problems: &mut Vec<String>,
) -> v1::Service {
    let mut service = service.clone();
    if service.key.is_empty() {
        service.key = format!("{}/{}:{}", service.namespace, service.name, service.port);
    }
    let first = service.clusters.first().map(|cluster| cluster.name.clone()).unwrap_or_default();
    if service.clusters.is_empty() {
        problems.push(format!("{}: clusters: there is none", service.key));
    }
    if service.default_cluster.is_empty() {
        service.default_cluster = first;
    }
    if service.routes.last().is_none_or(|last| !last.matches.is_empty()) {
        let backend = v1::Backend { cluster: service.default_cluster.clone(), weight: 1 };
        let rest = v1::Route { name: "default".to_owned(), backends: vec![backend], ..Default::default() };
        service.routes.push(rest);
    }
    service.routes.iter_mut().filter_map(|route| route.retry.as_mut()).for_each(complete_retry);
    let key = service.key.clone();
    for cluster in &mut service.clusters {
        let endpoints = std::mem::take(&mut cluster.endpoints);
        for (n, endpoint) in endpoints.into_iter().enumerate() {
            let at = || format!("{key}: clusters[{}].endpoints[{n}]", cluster.name);
            if own.is_none() && !endpoint.identity.is_empty() {
                problems.push(format!(
                    "{}.identity: `{}` is spoken to by mTLS, for which this proxy needs an identity of its own",
                    at(),
                    endpoint.identity
                ));
            }
            match resolved(&endpoint.address, found) {
                Ok((name, addresses)) => cluster.endpoints.extend(addresses.into_iter().map(|address| {
                    let mut endpoint = endpoint.clone();
                    endpoint.address = address.to_string();
                    if endpoint.pod.is_empty() {
                        endpoint.pod = name.unwrap_or_default().to_owned();
                    }
                    endpoint
                })),
                Err(problem) => problems.push(format!("{}.address: {problem}", at())),
            }
        }
        // Two names, or a name and an address, may lead to the same place.
        let mut seen = BTreeSet::new();
        cluster.endpoints.retain(|endpoint| seen.insert(endpoint.address.clone()));
    }
    service
}

/// A policy that says nothing of its budget, or of when, has that of the default; on the wire it would never retry.
fn complete_retry(retry: &mut v1::Retry) {
    let default = RetryPolicy::default();
    if retry.budget_percent == 0 && retry.budget_min_per_second == 0 {
        (retry.budget_percent, retry.budget_min_per_second) =
            (default.budget_percent, default.budget_min_per_second);
    }
    if retry.on.is_empty() && retry.status_codes.is_empty() && retry.grpc_statuses.is_empty() {
        retry.on = vec![v1::RetryOn::ConnectFailure.into(), v1::RetryOn::Reset.into()];
    }
}

/// The addresses, and the name that they were found by, if it was one.
fn resolved<'a>(address: &'a str, found: &Found) -> Result<(Option<&'a str>, Vec<SocketAddr>), String> {
    if let Ok(address) = address.parse() {
        return Ok((None, vec![address]));
    }
    let (host, port) =
        host_and_port(address).map_err(|_| format!("`{address}` is neither ip:port nor name:port"))?;
    let addresses = found.get(&host).map(Vec::as_slice).unwrap_or_default();
    let name = address.rsplit_once(':').map(|(name, _)| name);
    Ok((name, addresses.iter().map(|ip| SocketAddr::new(*ip, port)).collect()))
}

fn outbound(
    file: &File,
    services: &[v1::Service],
    listeners: &mut BTreeMap<Key, Option<SocketAddr>>,
    problems: &mut Vec<String>,
) -> Vec<v1::Address> {
    let mut addresses = Vec::new();
    for (n, listener) in file.listeners.outbound.iter().enumerate() {
        if services.iter().any(|service| service.key == listener.service) {
            let target = Some(v1::address::Target::Service(listener.service.clone()));
            addresses.push(v1::Address { address: listener.address.to_string(), target });
        } else {
            let known: Vec<&str> = services.iter().map(|service| service.key.as_str()).collect();
            problems.push(format!(
                "listeners.outbound[{n}].service: `{}` is none of the services ({})",
                listener.service,
                known.join(", ")
            ));
        }
        listeners.insert((Direction::Outbound, listener.address), Some(listener.address));
    }
    addresses
}

/// The workload, with what the inbound listeners say of the application's ports.
fn inbound(
    file: &File,
    found: &Found,
    own: Option<&Identity>,
    listeners: &mut BTreeMap<Key, Option<SocketAddr>>,
    problems: &mut Vec<String>,
) -> v1::Workload {
    let mut workload = file.workload.clone();
    let usual = if own.is_some() { v1::MtlsMode::Strict } else { v1::MtlsMode::Disable };
    if workload.mtls() == v1::MtlsMode::Unspecified {
        workload.mtls = usual.into();
    }
    let fallback = super::run::identity_or_default(own, &file.workload);
    for (field, value) in [
        (&mut workload.namespace, &fallback.namespace),
        (&mut workload.name, &fallback.service_account),
        (&mut workload.pod, &fallback.service_account),
    ] {
        if field.is_empty() {
            field.clone_from(value);
        }
    }
    if workload.identity.is_empty() {
        workload.identity = fallback.to_string();
    } else if own.is_some_and(|own| own.to_string() != workload.identity) {
        problems.push(format!(
            "workload.identity: it is `{}`, but the certificate says `{fallback}`; leave it out",
            workload.identity
        ));
    }
    let (mut modes, mut protocols) = (HashMap::new(), HashMap::new());
    for (n, listener) in file.listeners.inbound.iter().enumerate() {
        let at = format!("listeners.inbound[{n}]");
        let mut problem = |field: &str, text: String| problems.push(format!("{at}.{field}: {text}"));
        let port = match resolved(&listener.application, found) {
            Ok((_, addresses)) => {
                listeners.insert((Direction::Inbound, listener.address), addresses.first().copied());
                host_and_port(&listener.application).map_or(0, |(_, port)| u32::from(port))
            }
            Err(text) => {
                problem("application", text);
                continue;
            }
        };
        if addresses_itself(listener) {
            problem("application", "it is the listener itself".to_owned());
        }
        let stated = [("mtls", &listener.mtls, &mut modes), ("protocol", &listener.protocol, &mut protocols)];
        for (field, value, by_port) in stated {
            let number = match (field, value) {
                (_, None) => None,
                ("mtls", Some(name)) => number::<v1::MtlsMode>(name, &mut |text| problem(field, text)),
                (_, Some(name)) => number::<v1::Protocol>(name, &mut |text| problem(field, text)),
            };
            let Some(number) = number else { continue };
            if *by_port.entry(port).or_insert(number) != number {
                problem(field, format!("another listener in front of port {port} says otherwise"));
            }
        }
    }
    workload.port_mtls.extend(modes);
    workload.port_protocol.extend(protocols);
    let wants = |mode: i32| mode == v1::MtlsMode::Strict as i32 || mode == v1::MtlsMode::Permissive as i32;
    if own.is_none() && (wants(workload.mtls) || workload.port_mtls.values().copied().any(wants)) {
        problems.push(
            "identity: it is not given, so that mTLS cannot be taken; give it, or set mtls to Disable"
                .to_owned(),
        );
    }
    workload
}

fn addresses_itself(listener: &InboundListener) -> bool {
    listener.application.parse() == Ok(listener.address)
}

fn number<E: weft_api::text::Named>(name: &str, problem: &mut dyn FnMut(String)) -> Option<i32> {
    weft_api::text::number::<E>(name).map_err(problem).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::standalone::read::parse;

    const GOOD: &str = "
listeners:
  outbound: [{address: '127.0.0.1:9001', service: 'shop/back:80'}]
  inbound: [{address: '0.0.0.0:8443', application: 'app:8080', mtls: Permissive}]
services:
  - namespace: shop
    name: back
    port: 80
    clusters:
      - {name: all, endpoints: [{address: 'back:8443', identity: 'spiffe://cluster.local/ns/shop/sa/back'}]}
";

    fn own() -> Identity {
        crate::testing::identity("shop", "front")
    }

    fn found() -> Found {
        let ips = |list: &[&str]| list.iter().map(|ip| ip.parse().unwrap()).collect();
        [("back".to_owned(), ips(&["10.0.0.1", "10.0.0.2"])), ("app".to_owned(), ips(&["10.0.0.7"]))].into()
    }

    fn of(text: &str) -> Result<Plan, Vec<String>> {
        plan(&parse(text).unwrap(), &found(), Some(&own()), &Snapshot::default())
    }

    #[test]
    fn names_become_endpoints_and_defaults_are_filled_in() {
        assert_eq!(names(&parse(GOOD).unwrap()).into_iter().collect::<Vec<_>>(), ["app", "back"]);
        let plan = of(GOOD).unwrap();
        let service = &plan.snapshot.services["shop/back:80"];
        let endpoints: Vec<String> =
            service.default_cluster.endpoints.iter().map(|e| e.addr.to_string()).collect();
        assert_eq!(endpoints, ["10.0.0.1:8443", "10.0.0.2:8443"]);
        assert_eq!(service.routes.len(), 1);
        let workload = plan.snapshot.workload.as_ref().unwrap();
        assert_eq!((&*workload.name, &*workload.namespace), ("front", "shop"));
        assert_eq!(workload.mtls_for(8080), crate::snapshot::MtlsMode::Permissive);
        assert_eq!(workload.mtls_for(1), crate::snapshot::MtlsMode::Strict);
        let inbound = (Direction::Inbound, "0.0.0.0:8443".parse().unwrap());
        assert_eq!(plan.listeners[&inbound], Some("10.0.0.7:8080".parse().unwrap()));
    }

    #[test]
    fn a_retry_is_never_without_budget_by_saying_nothing() {
        let file =
            parse("services: [{name: a, clusters: [{name: a}], routes: [{retry: {attempts: 3}}]}]").unwrap();
        let service = complete(&file.services[0], &Found::default(), None, &mut Vec::new());
        let retry = service.routes[0].retry.as_ref().unwrap();
        assert_eq!((retry.attempts, retry.budget_percent, retry.budget_min_per_second), (3, 20, 10));
        assert_eq!(retry.on.len(), 2);
    }

    #[test]
    fn what_a_reload_takes_away_is_gone_and_what_stays_keeps_its_state() {
        let before = of(GOOD).unwrap();
        let changed = GOOD.replace("9001", "9002").replace("name: all", "name: other, balancer: Random");
        let file = parse(&changed).unwrap();
        let after = plan(&file, &found(), Some(&own()), &before.snapshot).unwrap();
        assert_eq!(after.snapshot.addresses.keys().map(|a| a.port()).collect::<Vec<_>>(), [9002]);
        let live = |plan: &Plan| std::sync::Arc::clone(&plan.snapshot.services["shop/back:80"].live);
        assert!(std::sync::Arc::ptr_eq(&live(&before), &live(&after)));
        let renamed = GOOD.replace("shop/back:80", "shop/next:80").replace("name: back", "name: next");
        let next = plan(&parse(&renamed).unwrap(), &found(), Some(&own()), &before.snapshot).unwrap();
        assert_eq!(next.snapshot.services.keys().map(|k| &**k).collect::<Vec<_>>(), ["shop/next:80"]);
    }

    #[test]
    fn a_name_without_addresses_is_a_service_without_endpoints() {
        let plan =
            plan(&parse(GOOD).unwrap(), &Found::default(), Some(&own()), &Snapshot::default()).unwrap();
        assert!(plan.snapshot.services["shop/back:80"].default_cluster.endpoints.is_empty());
        assert_eq!(plan.listeners[&(Direction::Inbound, "0.0.0.0:8443".parse().unwrap())], None);
    }

    #[test]
    fn every_mistake_is_named() {
        let text = "
admin: 0.0.0.0:15000
metrics: 127.0.0.1:9001
workers: 0
drainTimeout: soon
memoryLimit: much
log: loud
listeners:
  outbound: [{address: '127.0.0.1:9001', service: 'shop/other:80'}, {address: '127.0.0.1:0', service: 'shop/back:80'}]
  inbound:
    - {address: '127.0.0.1:1', application: '127.0.0.1:1', mtls: Perhaps}
    - {address: '127.0.0.1:2', application: app, mtls: Strict}
    - {address: '127.0.0.1:3', application: 'app:80', mtls: Strict}
    - {address: '127.0.0.1:4', application: 'app:80', mtls: Disable}
services:
  - {namespace: shop, name: back, port: 80}
  - {namespace: shop, name: two, port: 80, clusters: [{name: a, endpoints: [{address: a b}]}], routes: [{backends: [{cluster: b}]}]}
";
        let problems = of(text).unwrap_err();
        for wanted in [
            "admin: 0.0.0.0:15000 is not a loopback address",
            "`127.0.0.1:9001` stands twice",
            "workers: 0",
            "drainTimeout: `soon`",
            "memoryLimit: `much`",
            "log: ",
            "listeners.outbound[0].service: `shop/other:80` is none of the services (shop/back:80, shop/two:80)",
            "`127.0.0.1:0` has no port",
            "listeners.inbound[0].application: it is the listener itself",
            "listeners.inbound[0].mtls: `Perhaps` is none of",
            "listeners.inbound[1].application: `app` is neither ip:port nor name:port",
            "listeners.inbound[3].mtls: another listener",
            "shop/back:80: clusters: there is none",
            "clusters[a].endpoints[0].address: `a b` is neither",
            "shop/two:80: routes[0].backends[0].cluster: `b` is not one of the clusters",
        ] {
            assert!(problems.iter().any(|p| p.contains(wanted)), "{wanted} is not in {problems:#?}");
        }
    }

    #[test]
    fn without_an_identity_there_is_no_mtls() {
        let problems = plan(&parse(GOOD).unwrap(), &found(), None, &Snapshot::default()).unwrap_err();
        assert!(problems.iter().any(|p| p.contains("needs an identity of its own")), "{problems:?}");
        assert!(problems.iter().any(|p| p.starts_with("identity: it is not given")), "{problems:?}");
        let plaintext = GOOD
            .replace(", mtls: Permissive", "")
            .replace(", identity: 'spiffe://cluster.local/ns/shop/sa/back'", "");
        let plan = plan(&parse(&plaintext).unwrap(), &found(), None, &Snapshot::default()).unwrap();
        assert_eq!(plan.snapshot.workload.unwrap().mtls, crate::snapshot::MtlsMode::Disable);
    }
}
