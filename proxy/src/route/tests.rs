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
    route(service, method, &path.parse().unwrap(), headers).route.name.to_string()
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
        (Path::PathRegex("/a|/b".into()), "/a/b", false),
        (Path::PathRegex("/a|/b".into()), "/a/../b", true),
        (Path::PathExact("/a/b".into()), "//a/%62", true),
        (Path::PathPrefix("/a".into()), "/x/%2e%2e/a/c", true),
        (Path::PathPrefix("/a".into()), "/a/../b", false),
        (Path::PathPrefix("/a".into()), "/a%2Fb", false),
        (Path::PathExact("/caf%c3%a9".into()), "/caf%C3%A9", true),
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
fn a_rule_may_look_at_query_and_host() {
    let query = v1::QueryMatch { name: "v".into(), value: Some(v1::query_match::Value::Exact("2".into())) };
    let hosts = vec!["shop.example".into(), "*.back.example".into()];
    let service = compiled(vec![
        rule("query", vec![v1::Match { query: vec![query], ..Default::default() }]),
        rule("host", vec![v1::Match { hosts, ..Default::default() }]),
    ]);
    for (uri, host, name) in [
        ("/?v=2", "x", "query"),
        ("/?v=1", "x", "all"),
        ("/", "shop.example:8080", "host"),
        ("/", "a.Back.example", "host"),
        ("/", "back.example", "all"),
        ("http://shop.example/", "x", "host"),
        ("http://x/", "shop.example", "all"),
    ] {
        let given = headers(&[("host", host)]);
        assert_eq!(name_of(&service, &Method::GET, uri, &given), name, "{uri} {host}");
    }
}

/// The order of Gateway API, HTTPRoute: `hostnames`, then `rules[].matches`.
#[test]
fn the_most_specific_match_counts_where_that_is_asked_for() {
    let path = |path: Path| on_path(path);
    let prefix = |text: &str| path(Path::PathPrefix(text.into()));
    let hosts = |host: &str, inner: v1::Match| v1::Match { hosts: vec![host.into()], ..inner };
    let method = |inner: v1::Match| v1::Match { method: "GET".into(), ..inner };
    let with_headers = |names: &[&str], inner: v1::Match| v1::Match {
        headers: names
            .iter()
            .map(|name| v1::HeaderMatch { name: (*name).into(), value: Some(Value::Present(true)) })
            .collect(),
        ..inner
    };
    let with_query = |names: &[&str], inner: v1::Match| v1::Match {
        query: names
            .iter()
            .map(|name| v1::QueryMatch {
                name: (*name).into(),
                value: Some(v1::query_match::Value::Present(true)),
            })
            .collect(),
        ..inner
    };
    // Each beats the next, and all fit the same request.
    let ladder = [
        hosts("a.shop.example", v1::Match::default()),
        hosts("*.shop.example", path(Path::PathExact("/a/b".into()))),
        hosts("*.example", path(Path::PathExact("/a/b".into()))),
        path(Path::PathExact("/a/b".into())),
        method(prefix("/a/b")),
        with_headers(&["x", "y"], prefix("/a/b")),
        with_query(&["p", "q"], with_headers(&["x"], prefix("/a/b"))),
        with_query(&["p"], with_headers(&["x"], prefix("/a/b/"))),
        with_query(&["p", "q"], prefix("/a/b")),
        prefix("/a/b"),
        method(with_headers(&["x", "y"], prefix("/a"))),
        path(Path::PathRegex("/a/.".into())),
        method(prefix("/")),
        with_headers(&["x"], v1::Match::default()),
        with_query(&["p"], v1::Match::default()),
        prefix("/"),
    ];
    let given = headers(&[("host", "a.shop.example"), ("x", "1"), ("y", "1")]);
    for (n, stronger) in ladder.iter().enumerate() {
        for (m, weaker) in ladder.iter().enumerate().skip(n + 1) {
            let name = |service: &Service| name_of(service, &Method::GET, "/a/b?p=1&q=1", &given);
            let rules = vec![rule("weaker", vec![weaker.clone()]), rule("stronger", vec![stronger.clone()])];
            let both = |precedence: v1::Precedence| {
                let mut message = service(&["10.0.0.1:80"]);
                message.routes.splice(0..0, rules.clone());
                message.precedence = precedence.into();
                let update = v1::ToProxy { services: vec![message], ..Default::default() };
                Arc::clone(&applied(&Snapshot::default(), &update).services["shop/back:80"])
            };
            assert_eq!(name(&both(v1::Precedence::Specificity)), "stronger", "{n} against {m}");
            assert_eq!(name(&both(v1::Precedence::Written)), "weaker", "{n} against {m}");
        }
    }
}

#[test]
fn of_equally_specific_matches_the_first_counts_and_each_match_of_a_rule_stands_for_itself() {
    let prefix = |text: &str| on_path(Path::PathPrefix(text.into()));
    let mut message = service(&["10.0.0.1:80"]);
    let hosts = v1::Match { hosts: vec!["*.x".into(), "b.y".into()], ..Default::default() };
    let wide = v1::Match { hosts: vec!["*.b.y".into(), "*.y".into()], ..prefix("/") };
    message.routes.splice(
        0..0,
        [
            rule("first", vec![prefix("/a"), prefix("/c/d")]),
            rule("second", vec![prefix("/a"), prefix("/c"), prefix("/a/b")]),
            rule("wide", vec![wide]),
            rule("hosts", vec![hosts]),
            rule("rest", vec![]),
        ],
    );
    message.precedence = v1::Precedence::Specificity.into();
    let update = v1::ToProxy { services: vec![message], ..Default::default() };
    let service = Arc::clone(&applied(&Snapshot::default(), &update).services["shop/back:80"]);
    for (path, host, name, prefix) in [
        ("/a", "h", "first", Some("/a")),
        ("/a/b", "h", "second", Some("/a/b")),
        ("/c/d/e", "h", "first", Some("/c/d")),
        ("/c", "h", "second", Some("/c")),
        ("/", "b.y", "hosts", None),
        ("/", "c.b.y", "wide", Some("/")),
        ("/z", "h", "rest", None),
    ] {
        let given = headers(&[("host", host)]);
        let hit = route(&service, &Method::GET, &path.parse().unwrap(), &given);
        assert_eq!((&*hit.route.name, hit.prefix()), (name, prefix), "{path} {host}");
    }
}

#[test]
fn a_split_is_within_five_standard_deviations_of_its_weights() {
    let shares = [("shop/back:80/v1", 90u32), ("shop/back:80/v2", 10), ("shop/back:80/v3", 0)];
    let backends = shares.map(|(cluster, weight)| v1::Backend { cluster: cluster.into(), weight }).to_vec();
    let service = compiled(vec![v1::Route { backends, ..rule("split", vec![]) }]);
    let mut rng = SmallRng::seed_from_u64(1);
    let chosen = route(&service, &Method::GET, &Uri::from_static("/"), &HeaderMap::new()).route;
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
    fn any_request_gets_a_route(path in "/\\PC{0,60}", method in "[A-Z]{1,10}", value in prop::collection::vec(any::<u8>(), 0..20)) {
        let service = compiled(vec![
            rule("one", vec![on_path(Path::PathRegex("/(a+)+".into())), on_header("x", Value::Regex("b+".into()))]),
            rule("two", vec![v1::Match { method: "GET".into(), ..on_path(Path::PathPrefix("/".into())) }]),
        ]);
        let mut headers = HeaderMap::new();
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            headers.insert("x", value);
        }
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        if let Ok(uri) = path.parse::<Uri>() {
            prop_assert!(!route(&service, &method, &uri, &headers).route.backends.is_empty());
        }
    }
}
