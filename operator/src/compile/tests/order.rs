//! Tests of `compile` (order): no cluster, nothing but what they make themselves.

use std::collections::HashMap;

use proptest::prelude::*;
use serde_json::json;
use weft_api::v1;

use crate::compile::{self, address, workload};
use crate::index::testing::*;
use crate::index::{Index, Key, ServiceId};

/// A small cluster in which everything that is named exists.
fn world() -> Vec<Object> {
    let versioned = |name: &str, version: &str, ip: &str| {
        pod_of(&format!("shop/{name}"), json!({"app": "back", "version": version}), ip, true, json!({}))
    };
    vec![
        namespace("shop", json!({ "weft.dev/inject": "enabled" }), json!({})),
        service("shop/back", "10.96.0.1", &[("http", 80, 8080), ("tcp", 90, 9090)]),
        service("shop/next", "10.96.0.2", &[("grpc", 80, 8080)]),
        service("shop/peers", "None", &[("tcp", 9090, 9090)]),
        slice(
            "shop/back",
            &[("http", 8080), ("tcp", 9090)],
            &[("10.0.0.1", "b-1", true), ("10.0.0.2", "b-2", true), ("10.0.0.3", "b-3", false)],
        ),
        slice("shop/next", &[("grpc", 8080)], &[("10.0.0.4", "n-1", true)]),
        slice("shop/peers", &[("tcp", 9090)], &[("10.0.0.1", "b-1", true)]),
        node("n1", "a", "r"),
        pod_of(
            "shop/b-1",
            json!({"app": "back", "version": "v1"}),
            "10.0.0.1",
            true,
            json!({ "nodeName": "n1" }),
        ),
        versioned("b-2", "v2", "10.0.0.2"),
        versioned("b-3", "v2", "10.0.0.3"),
        plain_pod("shop/n-1", "next", "10.0.0.4"),
        mesh_service(
            "shop/back",
            4,
            1,
            json!({ "target": { "service": "back" }, "subsets": [{ "name": "v1", "labels": { "version": "v1" } }, { "name": "v2", "labels": { "version": "v2" } }] }),
        ),
        mesh_service("shop/rival", 1, 2, json!({ "target": { "service": "back" } })),
        policy(
            "shop/canary",
            2,
            1,
            json!({ "targetRefs": [{ "kind": "MeshService", "name": "back", "port": 80 }], "rules": [{ "split": [{ "subset": "v1", "weight": 9 }, { "subset": "v2", "weight": 1 }, { "service": "next", "weight": 1 }] }] }),
        ),
        policy(
            "shop/rival",
            2,
            2,
            json!({ "targetRefs": [{ "kind": "Service", "name": "back" }], "rules": [{ "timeout": "1s" }] }),
        ),
        authorization("weft-system/mesh", 1, json!({ "action": "Audit", "rules": [{}] })),
        authorization(
            "shop/back",
            2,
            json!({ "action": "Allow", "selector": { "matchLabels": { "version": "v2" } }, "rules": [{ "from": [{ "namespaces": ["shop"] }] }] }),
        ),
        authentication("weft-system/mesh", 1, json!({ "mtls": { "mode": "Strict" } })),
        authentication(
            "shop/back",
            1,
            json!({ "selector": { "matchLabels": { "version": "v2" } }, "mtls": { "mode": "Permissive" }, "portLevelMtls": { "9090": { "mode": "Disable" } } }),
        ),
    ]
}

/// Everything that a proxy could ask for.
#[derive(Debug, PartialEq)]
struct Everything {
    addresses: Vec<v1::Address>,
    services: Vec<Option<v1::Service>>,
    workloads: Vec<v1::Workload>,
}

const IDS: [&str; 6] = [
    "shop/back:80",
    "shop/back:90",
    "shop/next:80",
    "shop/peers:9090",
    "shop/b-3.pod:8080",
    "shop/n-1.pod:7",
];

fn everything(index: &Index) -> Everything {
    let mut addresses = Vec::new();
    for ip in ["10.96.0.1", "10.96.0.2", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "192.0.2.1"] {
        for port in [80, 90, 8080, 9090] {
            let text = format!("{ip}:{port}");
            addresses.push(address(index, &text, text.parse().unwrap()));
        }
    }
    let workloads = ["b-1", "b-2", "b-3", "n-1"].iter().filter_map(|p| index.pod(&Key::new("shop", *p)));
    Everything {
        addresses,
        services: IDS.iter().map(|id| compile::service(index, &id.parse().unwrap())).collect(),
        workloads: workloads.map(|p| workload(index, p)).collect(),
    }
}

proptest! {

    /// Objects come in any order, some twice, some with a detour over another state.
    #[test]
    fn any_order_of_events_gives_the_same_result(
        order in Just((0..world().len()).collect::<Vec<_>>()).prop_shuffle(),
        again in proptest::collection::vec(0..world().len(), 0..12),
    ) {
        let all = world();
        let wanted = everything(&index_of(all.clone()));
        let mut index = index();
        for i in order {
            all[i].clone().apply(&mut index);
        }
        for i in again {
            // Pods and slices come and go; what the others were is remembered on purpose.
            if matches!(all[i], Object::Pod(_) | Object::Slice(_) | Object::Authentication(_) | Object::Authorization(_)) {
                all[i].delete(&mut index);
            }
            all[i].clone().apply(&mut index);
        }
        prop_assert_eq!(everything(&index), wanted);
    }

    /// Whatever is not marked as affected has not changed: proxies hear of every change that concerns them.
    #[test]
    fn what_is_not_marked_has_not_changed(steps in proptest::collection::vec((0..world().len(), any::<bool>()), 1..60)) {
        let all = world();
        let mut index = index_of(all.clone());
        let mut before: HashMap<&str, Option<v1::Service>> = HashMap::new();
        for id in IDS {
            before.insert(id, compile::service(&index, &id.parse().unwrap()));
        }
        let mut known = everything(&index).addresses;
        let pods = ["b-1", "b-2", "b-3", "n-1"].map(|p| Key::new("shop", p));
        let workload_of = |index: &Index, key: &Key| index.pod(key).filter(|p| p.mesh).map(|p| workload(index, p));
        let mut workloads: HashMap<Key, _> = pods.iter().map(|p| (p.clone(), workload_of(&index, p))).collect();
        for (i, delete) in steps {
            let dirty = if delete { all[i].delete(&mut index) } else { all[i].clone().apply(&mut index) };
            for id in IDS {
                let marked = match id.parse::<ServiceId>().unwrap() {
                    ServiceId::Service(key, _) => dirty.services.contains(&key),
                    ServiceId::Pod(key, _) => dirty.pods.contains(&key),
                };
                let now = compile::service(&index, &id.parse().unwrap());
                if !marked {
                    prop_assert_eq!(&now, &before[id], "{} changed unmarked by {:?}", id, &all[i]);
                }
                before.insert(id, now);
            }
            let now = everything(&index).addresses;
            for (old, new) in known.iter().zip(&now) {
                let ip = new.address.parse::<std::net::SocketAddr>().unwrap().ip();
                if !dirty.ips.contains(&ip) {
                    prop_assert_eq!(old, new, "unmarked by {:?}", &all[i]);
                }
            }
            known = now;
            for pod in &pods {
                let now = workload_of(&index, pod);
                if !dirty.pods.contains(pod) {
                    prop_assert_eq!(&now, &workloads[pod], "{} changed unmarked by {:?}", pod, &all[i]);
                }
                workloads.insert(pod.clone(), now);
            }
        }
    }

    /// When everything is gone, nothing is left behind.
    #[test]
    fn nothing_is_left_when_all_is_deleted(order in Just((0..world().len()).collect::<Vec<_>>()).prop_shuffle()) {
        let all = world();
        let mut index = index_of(all.clone());
        for i in order {
            all[i].delete(&mut index);
        }
        prop_assert!(index.is_empty());
    }
}
