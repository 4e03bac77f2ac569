//! Tests of `compile` (policies): no cluster, nothing but what they make themselves.

use serde_json::json;

use super::{addresses, backends, cluster, compiled, shop};
use crate::index::space::Refusal;
use crate::index::testing::*;
use crate::index::{Index, Key};

fn subsets(names: &[&str]) -> Object {
    let subsets: Vec<_> = names.iter().map(|n| json!({ "name": n, "labels": { "version": n } })).collect();
    mesh_service("shop/back", 1, 0, json!({ "target": { "service": "back" }, "subsets": subsets }))
}

fn verdict<'a>(index: &'a Index, name: &str) -> &'a crate::index::space::Verdict {
    &index.space("shop").unwrap().settled.policies[name]
}

#[test]
fn rules_become_routes_in_order_and_the_last_route_takes_the_rest() {
    let mut objects = shop();
    objects.push(subsets(&["v1", "v2"]));
    objects.push(policy("shop/canary", 3, 0, json!({
        "targetRefs": [{ "kind": "Service", "name": "back" }],
        "rules": [
            { "name": "beta", "match": [{ "path": { "prefix": "/b" }, "method": "GET", "headers": [{ "name": "X-Beta", "exact": "1" }] }],
              "split": [{ "subset": "v2", "weight": 1 }], "timeout": "1s500ms", "circuitBreaker": { "maxConcurrentRequests": 7, "maxPendingRequests": 3 },
              "retry": { "attempts": 5, "retryOn": ["GatewayError"], "perTryTimeout": "100ms" } },
            { "split": [{ "subset": "v1", "weight": 90 }, { "subset": "v2", "weight": 10 }, { "weight": 0 }] },
        ],
    })));
    let service = compiled(&index_of(objects), "shop/back:80");
    let names: Vec<_> = service.routes.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["canary/beta", "canary/1", "default"]);
    let beta = &service.routes[0];
    assert_eq!(beta.matches[0].headers[0].name, "x-beta", "header names are sent in lower case");
    assert_eq!((beta.timeout_ms, beta.retry.as_ref().unwrap().attempts), (1_500, 5));
    assert_eq!(beta.retry.as_ref().unwrap().per_try_timeout_ms, 100);
    assert_eq!(
        beta.breaker,
        Some(weft_api::v1::Breaker {
            max_concurrent_requests: 7,
            max_pending_requests: 3,
            ..Default::default()
        })
    );
    assert_eq!(service.routes[1].breaker, None);
    assert_eq!(backends(&service.routes[1]), [("shop/back:80/v1", 90), ("shop/back:80/v2", 10)]);
    for route in &service.routes {
        for backend in &route.backends {
            cluster(&service, &backend.cluster);
        }
    }
    assert!(service.sources.iter().any(|s| s.kind == "TrafficPolicy" && s.generation == 3));
}

#[test]
fn a_split_to_another_service_brings_its_clusters_with_its_own_settings() {
    let mut objects = shop();
    objects.extend([
        service("shop/next", "10.96.0.7", &[("http", 80, 9090)]),
        slice("shop/next", &[("http", 9090)], &[("10.0.0.7", "next-1", true)]),
        pod_of("shop/next-1", json!({"app": "next", "version": "v9"}), "10.0.0.7", true, json!({})),
        mesh_service("shop/next", 1, 0, json!({
            "target": { "service": "next" }, "balancer": { "policy": "Random" },
            "subsets": [{ "name": "v9", "labels": { "version": "v9" } }],
        })),
        policy("shop/split", 1, 0, json!({
            "targetRefs": [{ "kind": "Service", "name": "back", "port": 80 }],
            "rules": [{ "split": [{ "weight": 1 }, { "service": "next", "weight": 2 }, { "service": "next", "subset": "v9", "weight": 3 }] }],
        })),
    ]);
    let mut index = index_of(objects);
    let service = compiled(&index, "shop/back:80");
    assert_eq!(
        backends(&service.routes[0]),
        [("shop/back:80", 1), ("shop/next:80", 2), ("shop/next:80/v9", 3)]
    );
    let next = cluster(&service, "shop/next:80");
    assert_eq!(next.balancer(), weft_api::v1::Balancer::Random);
    assert_eq!(addresses(next), ["10.0.0.7:9090"]);
    // Whoever sends to it hears of its endpoints.
    let dirty = slice("shop/next", &[("http", 9090)], &[]).apply(&mut index);
    assert!(dirty.services.contains(&Key::new("shop", "back")));
}

#[test]
fn a_rule_says_how_long_how_often_and_where_copies_go() {
    let mut objects = shop();
    objects.extend([
        subsets(&["v1", "v2"]),
        service("shop/next", "10.96.0.7", &[("http", 80, 9090)]),
        slice("shop/next", &[("http", 9090)], &[("10.0.0.7", "next-1", true)]),
        pod_of("shop/next-1", json!({"app": "next"}), "10.0.0.7", true, json!({})),
        policy("shop/flow", 1, 0, json!({
            "targetRefs": [{ "kind": "Service", "name": "back" }],
            "rules": [
                { "idleTimeout": "30s", "mirror": { "service": "next" }, "hedge": { "delay": "50ms" },
                  "retry": { "statusCodes": [429], "grpcStatuses": ["ResourceExhausted", "Unavailable"], "nonIdempotent": true, "maxBodyBytes": 0 } },
                { "mirror": { "subset": "v2", "percent": 5 }, "hedge": { "delay": "1s", "maxAttempts": 3 } },
                { "mirror": { "service": "gone" } },
            ],
        })),
    ]);
    let mut index = index_of(objects);
    let compiled = compiled(&index, "shop/back:80");
    let [first, second, third, rest] = compiled.routes.as_slice() else { panic!("{:?}", compiled.routes) };
    assert_eq!(first.idle_timeout_ms, 30_000);
    let mirror = first.mirror.as_ref().unwrap();
    assert_eq!((mirror.cluster.as_str(), mirror.percent), ("shop/next:80", 100));
    assert_eq!(addresses(cluster(&compiled, "shop/next:80")), ["10.0.0.7:9090"]);
    let hedge = first.hedge.as_ref().unwrap();
    assert_eq!((hedge.delay_ms, hedge.max_attempts), (50, 2));
    let retry = first.retry.as_ref().unwrap();
    assert_eq!((retry.status_codes.as_slice(), retry.grpc_statuses.as_slice()), (&[429][..], &[8, 14][..]));
    assert_eq!(retry.max_body_bytes, Some(0));
    let mirror = second.mirror.as_ref().unwrap();
    assert_eq!((mirror.cluster.as_str(), mirror.percent), ("shop/back:80/v2", 5));
    assert_eq!(second.hedge.as_ref().unwrap().max_attempts, 3);
    assert_eq!(third.mirror, None, "what is not there gets no copies");
    assert_eq!((rest.idle_timeout_ms, rest.mirror.as_ref(), rest.hedge.as_ref()), (0, None, None));
    // Whoever copies to it hears of its endpoints.
    let dirty = slice("shop/next", &[("http", 9090)], &[]).apply(&mut index);
    assert!(dirty.services.contains(&Key::new("shop", "back")));
}

#[test]
fn a_policy_may_target_the_service_that_a_mesh_service_describes_or_one_port_of_it() {
    let mut objects = shop();
    objects[0] = service("shop/back", "10.96.0.1", &[("http", 80, 8080), ("admin", 81, 8081)]);
    objects.push(mesh_service("shop/about-back", 1, 0, json!({ "target": { "service": "back" } })));
    objects.push(policy("shop/p", 1, 0, json!({
        "targetRefs": [{ "kind": "MeshService", "name": "about-back", "port": 81 }], "rules": [{ "timeout": "1s" }],
    })));
    let index = index_of(objects);
    assert_eq!(compiled(&index, "shop/back:80").routes.len(), 1);
    assert_eq!(compiled(&index, "shop/back:81").routes[0].name, "p/0");
}

#[test]
fn of_two_policies_for_one_port_the_older_counts_and_the_other_is_told_so() {
    let targets = |name: &str, created| {
        policy(
            &format!("shop/{name}"),
            1,
            created,
            json!({
                "targetRefs": [{ "kind": "Service", "name": "back" }], "rules": [{ "name": name, "timeout": "1s" }],
            }),
        )
    };
    let mut objects = shop();
    objects.extend([targets("b-young", 9), targets("c-old", 1)]);
    let mut index = index_of(objects);
    assert_eq!(compiled(&index, "shop/back:80").routes[0].name, "c-old/c-old");
    assert!(
        matches!(&verdict(&index, "b-young").refused, Some(Refusal::Conflicted(why)) if why.contains("c-old"))
    );
    assert_eq!(verdict(&index, "c-old").refused, None);
    let dirty = targets("c-old", 1).delete(&mut index);
    assert!(dirty.services.contains(&Key::new("shop", "back")));
    assert_eq!(compiled(&index, "shop/back:80").routes[0].name, "b-young/b-young");
}

#[test]
fn of_two_mesh_services_for_one_service_the_older_counts() {
    let about = |name: &str, created, limit| {
        mesh_service(
            &format!("shop/{name}"),
            1,
            created,
            json!({
                "target": { "service": "back" }, "circuitBreaker": { "maxConnections": limit },
            }),
        )
    };
    let mut objects = shop();
    objects.extend([about("a", 5, 1), about("b", 2, 2)]);
    let index = index_of(objects);
    assert_eq!(compiled(&index, "shop/back:80").clusters[0].breaker.unwrap().max_connections, 2);
    assert!(index.space("shop").unwrap().settled.mesh_services["a"].refused.is_some());
}

#[test]
fn policies_act_only_within_their_namespace() {
    let mut objects = shop();
    objects.push(service("bank/back", "10.96.9.1", &[("http", 80, 8080)]));
    objects.push(policy(
        "bank/p",
        1,
        0,
        json!({
            "targetRefs": [{ "kind": "Service", "name": "back" }], "rules": [{ "timeout": "1s" }],
        }),
    ));
    let index = index_of(objects);
    assert_eq!(compiled(&index, "shop/back:80").routes.len(), 1);
    assert_eq!(compiled(&index, "bank/back:80").routes.len(), 2);
}
