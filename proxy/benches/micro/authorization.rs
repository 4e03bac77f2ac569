//! What AuthorizationPolicies cost: a connection, which looks up caller, address and port; a request on it; and taking them over.
//! Three shapes: each policy for a path of its own, for a caller of its own, and all for anybody with a header of its own.

use super::*;
use std::sync::Arc;
use weft_api::Identity;
use weft_api::v1::authorization_condition::Of;
use weft_api::v1::authorization_path::Path;
use weft_api::v1::header_match::Value;
use weft_proxy::authorize::{Asked, Authorization};

/// How many policies there are.
const POLICIES: [u32; 3] = [1, 100, 1_000];
const CALLER: &str = "spiffe://cluster.local/ns/shop/sa/front-0";

/// Every tenth denies.
fn policies(count: u32, rule: impl Fn(u32) -> v1::AuthorizationRule) -> v1::ToProxy {
    let policy = |n: u32| {
        let deny = n % 10 == 9;
        let action = if deny { v1::AuthorizationAction::Deny } else { v1::AuthorizationAction::Allow };
        v1::AuthorizationPolicy {
            namespace: "shop".into(),
            name: format!("p{n}"),
            action: action.into(),
            dry_run: false,
            audit: false,
            rules: vec![rule(n)],
        }
    };
    let policies = (0..count).map(policy).collect();
    let workload = v1::Workload { authorization: Some(v1::Authorization { policies, level: 1 }), ..back() };
    v1::ToProxy { version: 1, workload: Some(workload), ..Default::default() }
}

fn named(n: u32) -> v1::AuthorizationRule {
    v1::AuthorizationRule { name: n.to_string(), ..Default::default() }
}

/// Each for a path of its own.
fn by_path(n: u32) -> v1::AuthorizationRule {
    let path = |path| v1::AuthorizationPath { path: Some(path) };
    let paths = vec![
        path(Path::Prefix(format!("/api/v1/things-{n}"))),
        path(Path::Template(format!("/users/{{id}}/items-{n}"))),
    ];
    let to = v1::AuthorizationTarget { methods: vec!["GET".into()], paths, ..Default::default() };
    let from = v1::AuthorizationSource { namespaces: vec!["shop".into()], ..Default::default() };
    v1::AuthorizationRule { from: vec![from], to: vec![to], ..named(n) }
}

/// Each for a caller of its own.
fn by_caller(n: u32) -> v1::AuthorizationRule {
    let identities = vec![format!("spiffe://cluster.local/ns/shop/sa/front-{n}")];
    let from = v1::AuthorizationSource { identities, ..Default::default() };
    v1::AuthorizationRule { from: vec![from], ..named(n) }
}

/// Each for a header of its own.
fn by_header(n: u32) -> v1::AuthorizationRule {
    let header = v1::HeaderMatch { name: "x-user".into(), value: Some(Value::Exact(format!("user-{n}"))) };
    v1::AuthorizationRule {
        when: vec![v1::AuthorizationCondition { of: Some(Of::Header(header)) }],
        ..named(n)
    }
}

fn applied(update: &v1::ToProxy) -> Arc<Authorization> {
    let (snapshot, rejections) = Snapshot::default().apply(update);
    assert!(rejections.is_empty(), "{rejections:?}");
    snapshot.workload.as_ref().and_then(|own| own.authorization.clone()).unwrap()
}

fn request(bencher: Bencher<'_, '_>, update: &v1::ToProxy, path: &str, allowed: bool) {
    let caller: Identity = CALLER.parse().unwrap();
    let admitted = applied(update).admit(Some(&caller), [10, 0, 0, 1].into(), 8080);
    let (uri, headers) = (path.parse().unwrap(), head(20));
    let asked = Asked { method: &Method::GET, uri: &uri, headers: &headers, claims: None };
    assert_eq!(admitted.request(&asked).verdict.refused.is_none(), allowed);
    bencher.bench(|| admitted.request(black_box(&asked)));
}

#[divan::bench(args = POLICIES)]
fn request_by_path(bencher: Bencher<'_, '_>, count: u32) {
    request(bencher, &policies(count, by_path), "/api/v1/things-0/7?q=1", true);
}

#[divan::bench(args = POLICIES)]
fn request_by_path_refused(bencher: Bencher<'_, '_>, count: u32) {
    request(bencher, &policies(count, by_path), "/api/v2/things-0/7?q=1", false);
}

#[divan::bench(args = POLICIES)]
fn request_by_caller(bencher: Bencher<'_, '_>, count: u32) {
    request(bencher, &policies(count, by_caller), "/api/v1/things-0/7?q=1", true);
}

#[divan::bench(args = POLICIES)]
fn request_by_header_refused(bencher: Bencher<'_, '_>, count: u32) {
    request(bencher, &policies(count, by_header), "/api/v1/things-0/7?q=1", false);
}

fn connection(bencher: Bencher<'_, '_>, update: &v1::ToProxy) {
    let caller: Identity = CALLER.parse().unwrap();
    let authorization = applied(update);
    bencher.bench(|| authorization.admit(black_box(Some(&caller)), [10, 0, 0, 1].into(), 8080));
}

#[divan::bench(args = POLICIES)]
fn connection_by_path(bencher: Bencher<'_, '_>, count: u32) {
    connection(bencher, &policies(count, by_path));
}

#[divan::bench(args = POLICIES)]
fn connection_by_caller(bencher: Bencher<'_, '_>, count: u32) {
    connection(bencher, &policies(count, by_caller));
}

#[divan::bench(args = POLICIES, sample_count = 20)]
fn take_over(bencher: Bencher<'_, '_>, count: u32) {
    let update = policies(count, by_path);
    bencher.bench(|| Snapshot::default().apply(black_box(&update)));
}
