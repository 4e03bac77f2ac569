//! Tests of `route`: no cluster, nothing but what they make themselves.

use super::*;
use crate::snapshot::Snapshot;
use crate::snapshot::tests::{applied, cluster, endpoint, service};
use http::HeaderValue;
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use weft_api::v1;
use weft_api::v1::header_match::Value;
use weft_api::v1::r#match::Path;

fn compiled(routes: Vec<v1::Route>) -> Arc<Service> {
    let mut message = service(&["10.0.0.1:80"]);
    for subset in ["v1", "v2", "v3"] {
        let name = format!("shop/back:80/{subset}");
        message.clusters.push(cluster(&name, vec![endpoint("10.0.0.1:80", 100)]));
    }
    message.routes.splice(0..0, routes);
    let update = v1::ToProxy { services: vec![message], ..Default::default() };
    Arc::clone(&applied(&Snapshot::default(), &update).services["shop/back:80"])
}

fn rule(name: &str, matches: Vec<v1::Match>) -> v1::Route {
    let backends = vec![v1::Backend { cluster: "shop/back:80".into(), weight: 1 }];
    v1::Route { name: name.into(), matches, backends, ..Default::default() }
}

fn on_path(path: Path) -> v1::Match {
    v1::Match { path: Some(path), ..Default::default() }
}

fn on_header(name: &str, value: Value) -> v1::Match {
    let header = v1::HeaderMatch { name: name.into(), value: Some(value) };
    v1::Match { headers: vec![header], ..Default::default() }
}

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
        .collect()
}

fn name_of(service: &Service, method: &Method, path: &str, headers: &HeaderMap) -> String {
    route(service, method, path, headers).name.to_string()
}

#[test]
fn paths_match_whole_by_segments_or_by_expression_without_their_query() {
    for (path, request, fits) in [
        (Path::PathExact("/a".into()), "/a", true),
        (Path::PathExact("/a".into()), "/a?b=/c", true),
        (Path::PathExact("/a".into()), "/a/", false),
        (Path::PathExact("/a".into()), "/A", false),
        (Path::PathPrefix("/a".into()), "/a", true),
        (Path::PathPrefix("/a".into()), "/a/", true),
        (Path::PathPrefix("/a".into()), "/a/b", true),
        (Path::PathPrefix("/a".into()), "/a?x", true),
        (Path::PathPrefix("/a".into()), "/ab", false),
        (Path::PathPrefix("/a/".into()), "/a", true),
        (Path::PathPrefix("/a/".into()), "/a/b", true),
        (Path::PathPrefix("/".into()), "/", true),
        (Path::PathPrefix("/".into()), "/anything/at/all", true),
        (Path::PathPrefix("/".into()), "*", false),
        (Path::PathRegex("/[0-9]+".into()), "/42", true),
        (Path::PathRegex("/[0-9]+".into()), "/42/x", false),
        (Path::PathRegex("/[0-9]+".into()), "/x/42", false),
        (Path::PathRegex("/a|/b".into()), "/a/../b", false),
        (Path::PathRegex("/a|/b".into()), "/b", true),
        (Path::PathRegex("(?s).*".into()), "/a", true),
    ] {
        let service = compiled(vec![rule("hit", vec![on_path(path.clone())])]);
        let hit = name_of(&service, &Method::GET, request, &HeaderMap::new()) == "hit";
        assert_eq!(hit, fits, "{path:?} on {request}");
    }
}

#[test]
fn headers_match_by_any_of_their_values() {
    let given = headers(&[("x-user", "ann"), ("x-user", "bob"), ("x-empty", "")]);
    for (name, value, fits) in [
        ("x-user", Value::Exact("bob".into()), true),
        ("x-user", Value::Exact("Bob".into()), false),
        ("X-User", Value::Exact("ann".into()), true),
        ("x-user", Value::Prefix("an".into()), true),
        ("x-user", Value::Prefix("nn".into()), false),
        ("x-user", Value::Regex("b.b".into()), true),
        ("x-user", Value::Regex("b".into()), false),
        ("x-user", Value::Present(true), true),
        ("x-user", Value::Present(false), false),
        ("x-none", Value::Present(true), false),
        ("x-none", Value::Present(false), true),
        ("x-empty", Value::Exact(String::new()), true),
        ("x-none", Value::Exact(String::new()), false),
    ] {
        let service = compiled(vec![rule("hit", vec![on_header(name, value.clone())])]);
        let hit = name_of(&service, &Method::GET, "/", &given) == "hit";
        assert_eq!(hit, fits, "{name} {value:?}");
    }
}

#[test]
fn all_conditions_of_a_match_must_hold_and_one_match_of_a_rule_is_enough() {
    let both = v1::Match { method: "POST".into(), ..on_header("x-canary", Value::Exact("1".into())) };
    let service = compiled(vec![rule("hit", vec![on_path(Path::PathExact("/x".into())), both])]);
    let canary = headers(&[("x-canary", "1")]);
    assert_eq!(name_of(&service, &Method::GET, "/x", &HeaderMap::new()), "hit");
    assert_eq!(name_of(&service, &Method::POST, "/y", &canary), "hit");
    assert_eq!(name_of(&service, &Method::GET, "/y", &canary), "all");
    assert_eq!(name_of(&service, &Method::POST, "/y", &HeaderMap::new()), "all");
}

#[test]
fn the_first_rule_that_fits_counts_and_the_last_one_always_fits() {
    let service = compiled(vec![
        rule("one", vec![on_path(Path::PathPrefix("/a".into()))]),
        rule("two", vec![on_path(Path::PathPrefix("/a/b".into()))]),
    ]);
    assert_eq!(name_of(&service, &Method::GET, "/a/b", &HeaderMap::new()), "one");
    assert_eq!(name_of(&service, &Method::GET, "/", &HeaderMap::new()), "all");
}

#[test]
fn a_split_is_within_five_standard_deviations_of_its_weights() {
    let shares = [("shop/back:80/v1", 90u32), ("shop/back:80/v2", 10), ("shop/back:80/v3", 0)];
    let backends = shares.map(|(cluster, weight)| v1::Backend { cluster: cluster.into(), weight }).to_vec();
    let service = compiled(vec![v1::Route { backends, ..rule("split", vec![]) }]);
    let mut rng = SmallRng::seed_from_u64(1);
    let chosen = route(&service, &Method::GET, "/", &HeaderMap::new());
    let n = 100_000u32;
    let mut canary = 0u32;
    for _ in 0..n {
        let cluster = backend(chosen, &mut rng);
        assert_ne!(&*cluster.name, "shop/back:80/v3", "weight 0 gets nothing");
        canary += u32::from(&*cluster.name == "shop/back:80/v2");
    }
    let deviation = (f64::from(n) * 0.1 * 0.9).sqrt();
    assert!((f64::from(canary) - f64::from(n) * 0.1).abs() < 5.0 * deviation, "{canary} of {n}");
}

proptest! {
    #[test]
    fn a_prefix_takes_its_own_segments_and_nothing_else(prefix in "(/[a-c]{1,2}){1,3}/?", path in "(/[a-c]{1,2}){0,5}/?") {
        let expected = {
            let parts = |text: &str| text.split('/').skip(1).map(str::to_owned).collect::<Vec<_>>();
            let wanted = parts(prefix.trim_end_matches('/'));
            let given = parts(&path);
            given.len() >= wanted.len() && given[..wanted.len()] == wanted[..]
        };
        prop_assert_eq!(PathMatch::Prefix(prefix).fits(&path), expected);
    }

    #[test]
    fn any_request_gets_a_route(path in "\\PC{0,60}", method in "[A-Z]{1,10}", value in prop::collection::vec(any::<u8>(), 0..20)) {
        let service = compiled(vec![
            rule("one", vec![on_path(Path::PathRegex("/(a+)+".into())), on_header("x", Value::Regex("b+".into()))]),
            rule("two", vec![v1::Match { method: "GET".into(), ..on_path(Path::PathPrefix("/".into())) }]),
        ]);
        let mut headers = HeaderMap::new();
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            headers.insert("x", value);
        }
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let route = route(&service, &method, &path, &headers);
        prop_assert!(!route.backends.is_empty());
    }
}
