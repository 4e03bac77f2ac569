//! Tests of `egress`: which service a name or an address means.

use super::*;
use crate::snapshot::Snapshot;
use proptest::prelude::*;
use weft_api::v1;

fn external(namespace: &str, name: &str, port: u16, protocol: v1::Protocol, hosts: &[&str]) -> v1::Service {
    let key = format!("{namespace}/{name}.external:{port}");
    let endpoints = vec![v1::Endpoint { address: "192.0.2.1:443".into(), weight: 1, ..Default::default() }];
    v1::Service {
        key: key.clone(),
        namespace: namespace.into(),
        name: format!("{name}.external"),
        port: port.into(),
        protocol: protocol.into(),
        routes: vec![v1::Route {
            backends: vec![v1::Backend { cluster: key.clone(), weight: 1 }],
            ..Default::default()
        }],
        clusters: vec![v1::Cluster { name: key.clone(), endpoints, ..Default::default() }],
        default_cluster: key,
        egress: Some(v1::Egress { hosts: hosts.iter().map(|host| (*host).into()).collect() }),
        ..Default::default()
    }
}

fn snapshot(services: Vec<v1::Service>) -> Snapshot {
    let workload = v1::Workload {
        namespace: "shop".into(),
        pod: "front-1".into(),
        name: "front".into(),
        identity: "spiffe://cluster.local/ns/shop/sa/front".into(),
        mtls: v1::MtlsMode::Permissive.into(),
        ..Default::default()
    };
    let update = v1::ToProxy { workload: Some(workload), services, ..Default::default() };
    let (snapshot, rejections) = Snapshot::default().apply(&update);
    assert_eq!(rejections, []);
    snapshot
}

fn key(service: Option<&Arc<Service>>) -> &str {
    service.map_or("-", |service| &service.key)
}

#[test]
fn the_most_precise_name_counts_and_none_is_below_itself() {
    let tls = |name: &str, host: &str| external("shop", name, 443, v1::Protocol::Tls, &[host]);
    let all = snapshot(vec![
        tls("api", "api.example.com"),
        tls("any", "*.example.com"),
        tls("deep", "*.eu.example.com"),
    ]);
    let port = all.egress.port(443).unwrap();
    for (name, wanted) in [
        ("api.example.com", "shop/api.external:443"),
        ("API.Example.com.", "shop/api.external:443"),
        ("x.api.example.com", "shop/any.external:443"),
        ("a.eu.example.com", "shop/deep.external:443"),
        ("eu.example.com", "shop/any.external:443"),
        ("example.com", "-"),
        ("badexample.com", "-"),
        ("com", "-"),
        ("", "-"),
        (".", "-"),
    ] {
        assert_eq!(key(port.by_server_name(name)), wanted, "{name}");
    }
    assert!(port.by_authority("api.example.com").is_none(), "a name in another protocol is another name");
    assert!(all.egress.port(80).is_none());
}

#[test]
fn the_port_in_an_authority_does_not_count() {
    let all =
        snapshot(vec![external("shop", "api", 80, v1::Protocol::Http1, &["api.example.com", "192.0.2.7"])]);
    let port = all.egress.port(80).unwrap();
    for known in ["api.example.com", "api.example.com:80", "API.example.com:8080", "192.0.2.7:80"] {
        assert_eq!(key(port.by_authority(known)), "shop/api.external:80", "{known}");
    }
    for other in ["x@api.example.com", "api.example.com:80x", "[::1]:80", "::1", ":80", "api.example.com/"] {
        assert!(port.by_authority(other).is_none(), "{other}");
    }
}

#[test]
fn the_own_namespace_counts_before_the_mesh() {
    let of = |namespace: &str| external(namespace, "api", 443, v1::Protocol::Tls, &["api.example.com"]);
    let all = snapshot(vec![of("aaa"), of("shop")]);
    assert_eq!(key(all.egress.port(443).unwrap().by_server_name("api.example.com")), "shop/api.external:443");
}

#[test]
fn opaque_bytes_are_known_by_their_address_only() {
    let all = snapshot(vec![external("shop", "db", 5432, v1::Protocol::Tcp, &["db.example.com"])]);
    let port = all.egress.port(5432).unwrap();
    assert!(!port.by_name());
    assert_eq!(key(port.by_address("::ffff:192.0.2.1".parse().unwrap())), "shop/db.external:5432");
    assert!(port.by_address("192.0.2.2".parse().unwrap()).is_none());
}

#[test]
fn a_service_that_is_removed_or_no_longer_external_is_not_found() {
    let one = external("shop", "api", 443, v1::Protocol::Tls, &["api.example.com"]);
    let before = snapshot(vec![one.clone()]);
    let gone = v1::ToProxy { removed_services: vec![one.key.clone()], ..Default::default() };
    assert!(before.apply(&gone).0.egress.port(443).is_none());
    let other = v1::Service { egress: None, ..one };
    let (after, _) = before.apply(&v1::ToProxy { services: vec![other], ..Default::default() });
    assert!(after.egress.port(443).is_none());
}

#[test]
fn a_host_or_tls_that_makes_no_sense_is_rejected_by_a_sentence() {
    let rejection = |service: v1::Service| {
        let update = v1::ToProxy { services: vec![service], ..Default::default() };
        Snapshot::default().apply(&update).1.remove(0).message
    };
    let bad = external("shop", "api", 443, v1::Protocol::Tls, &["https://api"]);
    assert_eq!(rejection(bad), "egress.hosts[0]: `https://api` is not the name of a host");
    let mut bad = external("shop", "api", 80, v1::Protocol::Http1, &["api.example.com"]);
    bad.clusters[0].tls = Some(v1::OriginateTls { sni: "a b".into(), roots_der: Vec::new() });
    assert!(rejection(bad.clone()).ends_with("tls: `a b` is no name of a server"));
    bad.clusters[0].tls =
        Some(v1::OriginateTls { sni: "api".into(), roots_der: vec![bytes::Bytes::from_static(b"no")] });
    assert!(rejection(bad).contains("tls: certificate 0 is unusable"));
}

proptest! {
    #[test]
    fn no_name_makes_it_panic(name in "\\PC{0,300}") {
        let all = snapshot(vec![external("shop", "any", 443, v1::Protocol::Tls, &["*.example.com"])]);
        let _ = all.egress.port(443).unwrap().by_server_name(&name);
        let _ = all.egress.port(443).unwrap().by_authority(&name);
    }
}
