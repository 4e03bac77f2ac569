//! Whole pods through injection: what they become, what is said, and what is never touched.

// clippy.toml lets tests unwrap; this says that their helper functions are tests too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;
use serde_json::{Value, json};
use weft_webhook::inject::{Outcome, PullPolicy, Resources, Settings, Skip, review};

fn settings() -> Settings {
    Settings {
        namespace: "weft-system".into(),
        image: "ghcr.io/weft-mesh/weft-proxy:0.1.0".into(),
        pull_policy: PullPolicy::IfNotPresent,
        operator_address: "weft-operator.weft-system.svc.cluster.local:15010".into(),
        trust_domain: "cluster.local".into(),
        native_sidecar: true,
        cni: false,
        resources: Resources {
            cpu_request: Some("10m".parse().unwrap()),
            cpu_limit: None,
            memory_request: Some("32Mi".parse().unwrap()),
            memory_limit: Some("128Mi".parse().unwrap()),
        },
        log: "info".into(),
        access_log: true,
        tracing: None,
        sampling: "1".to_owned(),
        audit: true,
        workers: 1,
    }
}

fn without_native_sidecars() -> Settings {
    Settings { native_sidecar: false, ..settings() }
}

fn pod(name: &str) -> Value {
    let path = format!("{}/tests/pods/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
    serde_yaml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The injected pod and its warnings, as a snapshot.
fn snapshot(name: &str, settings: &Settings) -> String {
    let outcome = review(&pod(name), "shop", settings);
    let Outcome::Inject { pod, warnings } = outcome else { panic!("{name} was not injected: {outcome:?}") };
    let text = serde_yaml::to_string(&json!({ "warnings": warnings, "pod": pod })).unwrap();
    text.replace(&format!("\"version\":\"{}\"", env!("CARGO_PKG_VERSION")), "\"version\":\"[version]\"")
}

fn skipped(pod: &Value, namespace: &str) -> (Skip, usize) {
    match review(pod, namespace, &settings()) {
        Outcome::Skip { why, warnings } => (why, warnings.len()),
        other => panic!("not skipped: {other:?}"),
    }
}

fn refusal(pod: &Value) -> String {
    match review(pod, "shop", &settings()) {
        Outcome::Refuse(sentence) => sentence,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_simple_pod_gets_the_proxy_and_keeps_its_http_and_grpc_probes() {
    insta::assert_snapshot!(snapshot("simple", &settings()));
}

#[test]
fn without_native_sidecars_the_init_step_is_last_and_the_proxy_the_first_container() {
    insta::assert_snapshot!(snapshot("init-containers", &without_native_sidecars()));
}

#[test]
fn init_containers_come_after_the_proxy_so_that_they_can_call_the_mesh() {
    insta::assert_snapshot!(snapshot("init-containers", &settings()));
}

#[test]
fn a_job_needs_nothing_special_with_native_sidecars() {
    insta::assert_snapshot!(snapshot("job", &settings()));
}

#[test]
fn a_job_without_native_sidecars_is_a_warning() {
    let Outcome::Inject { warnings, .. } = review(&pod("job"), "shop", &without_native_sidecars()) else {
        panic!()
    };
    assert!(warnings.len() == 1 && warnings[0].contains("does not complete"), "{warnings:?}");
}

#[test]
fn tcp_probes_go_through_the_proxy_unless_their_port_is_not_captured() {
    insta::assert_snapshot!(snapshot("probes", &settings()));
}

#[test]
fn annotations_override_the_defaults() {
    insta::assert_snapshot!(snapshot("overrides", &settings()));
}

#[test]
fn annotations_that_mean_nothing_are_warnings_with_a_remedy() {
    insta::assert_snapshot!(snapshot("bad-overrides", &settings()));
}

/// What the `restricted` Pod Security Standard asks of every container (kubernetes.io/docs/concepts/security/pod-security-standards).
fn restricted(container: &Value) -> bool {
    let context = &container["securityContext"];
    context["runAsNonRoot"] == true
        && context["allowPrivilegeEscalation"] == false
        && context["capabilities"] == json!({ "drop": ["ALL"] })
        && context["seccompProfile"]["type"] == "RuntimeDefault"
        && context["runAsUser"] != 0
}

#[test]
fn where_a_cni_plugin_redirects_nothing_is_added_that_restricted_forbids() {
    let settings = Settings { cni: true, ..settings() };
    let Outcome::Inject { pod: injected, warnings } = review(&pod("overrides"), "shop", &settings) else {
        panic!()
    };
    let added: Vec<_> = injected["spec"]["initContainers"].as_array().unwrap().iter().collect();
    assert_eq!(added.iter().map(|c| &c["name"]).collect::<Vec<_>>(), ["weft-proxy"]);
    assert!(restricted(added[0]), "{}", added[0]);
    assert_eq!(warnings, Vec::<String>::new());
    // What an init container is told by its arguments, the plugin is told by an annotation.
    let Outcome::Inject { pod: by_init, .. } = review(&pod("overrides"), "shop", &self::settings()) else {
        panic!()
    };
    let arguments = by_init["spec"]["initContainers"][0]["command"].to_string();
    let told: Value =
        serde_json::from_str(injected["metadata"]["annotations"]["weft.dev/redirection"].as_str().unwrap())
            .unwrap();
    for list in ["skipInboundPorts", "skipOutboundPorts", "skipOutboundCidrs"] {
        let list = told[list].as_array().unwrap();
        assert!(!list.is_empty(), "{told}");
        for entry in list {
            let entry = entry.as_str().map_or(entry.to_string(), str::to_owned);
            assert!(arguments.contains(&entry), "{entry} is not in {arguments}");
        }
    }
    assert!(by_init["metadata"]["annotations"]["weft.dev/redirection"].is_null());
    assert!(matches!(review(&injected, "shop", &settings), Outcome::Skip { why: Skip::AlreadyInjected, .. }));

    let without = Settings { native_sidecar: false, ..settings };
    let Outcome::Inject { warnings, .. } = review(&pod("init-containers"), "shop", &without) else {
        panic!()
    };
    assert!(warnings.iter().any(|w| w.contains("they reach nothing")), "{warnings:?}");
}

#[test]
fn a_container_that_can_send_past_the_proxy_is_a_warning_that_names_it() {
    let warned = |context: Value| {
        let mut pod = pod("simple");
        pod["spec"]["containers"][0]["securityContext"] = context;
        let Outcome::Inject { warnings, .. } = review(&pod, "shop", &settings()) else { panic!() };
        warnings
    };
    for (context, means) in [
        (json!({ "privileged": true }), "is privileged"),
        (json!({ "capabilities": { "add": ["NET_ADMIN"], "drop": ["ALL"] } }), "capability NET_ADMIN"),
        (json!({ "capabilities": { "add": ["CHOWN", "CAP_NET_RAW"] } }), "capability NET_RAW"),
        (json!({ "capabilities": { "add": ["ALL"] } }), "capability ALL"),
    ] {
        let warnings = warned(context);
        assert!(
            warnings.len() == 1 && warnings[0].contains(means) && warnings[0].contains("container app"),
            "{warnings:?}"
        );
    }
    for harmless in [
        json!({}),
        json!({ "privileged": false, "capabilities": { "add": ["NET_BIND_SERVICE"], "drop": ["ALL"] } }),
    ] {
        assert_eq!(warned(harmless), Vec::<String>::new());
    }
}

#[test]
fn an_injected_pod_is_left_alone() {
    for settings in [settings(), without_native_sidecars()] {
        let Outcome::Inject { pod, .. } = review(&pod("probes"), "shop", &settings) else { panic!() };
        assert!(matches!(review(&pod, "shop", &settings), Outcome::Skip { why: Skip::AlreadyInjected, .. }));
    }
}

#[test]
fn a_container_that_came_after_injection_gets_its_tcp_probe_rewritten() {
    let Outcome::Inject { mut pod, .. } = review(&pod("simple"), "shop", &settings()) else { panic!() };
    let late = json!({"name": "late", "image": "x", "livenessProbe": {"tcpSocket": {"port": 7000}}});
    pod["spec"]["containers"].as_array_mut().unwrap().push(late);
    let Outcome::Inject { pod: again, .. } = review(&pod, "shop", &settings()) else { panic!() };
    assert_eq!(again["spec"]["containers"][1]["livenessProbe"]["httpGet"]["path"], "/probe/tcp/7000");
    assert_eq!(again["spec"]["initContainers"], pod["spec"]["initContainers"]);
}

#[test]
fn some_pods_are_never_injected() {
    let simple = pod("simple");
    for namespace in ["weft-system", "kube-system", "kube-public", "kube-node-lease"] {
        assert_eq!(skipped(&simple, namespace), (Skip::SystemNamespace, 0));
    }
    let mut host = simple.clone();
    host["spec"]["hostNetwork"] = true.into();
    assert_eq!(skipped(&host, "shop"), (Skip::HostNetwork, 1));
    let mut windows = simple.clone();
    windows["spec"]["os"] = json!({"name": "windows"});
    assert_eq!(skipped(&windows, "shop"), (Skip::OtherSystem, 1));
    for kind in ["labels", "annotations"] {
        let mut out = simple.clone();
        out["metadata"][kind]["weft.dev/inject"] = "disabled".into();
        assert_eq!(skipped(&out, "shop"), (Skip::OptedOut, 0));
    }
    let mut label_first = simple;
    label_first["metadata"]["labels"]["weft.dev/inject"] = "enabled".into();
    label_first["metadata"]["annotations"] = json!({"weft.dev/inject": "disabled"});
    assert!(matches!(review(&label_first, "shop", &settings()), Outcome::Inject { .. }));
}

#[test]
fn a_pod_that_cannot_live_with_the_proxy_is_refused_by_a_sentence() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut pod = pod("simple");
        change(&mut pod);
        refusal(&pod)
    };
    let uid = with(&|pod| pod["spec"]["containers"][0]["securityContext"] = json!({"runAsUser": 2102}));
    assert!(uid.contains("container app has runAsUser 2102"), "{uid}");
    let uid = with(&|pod| pod["spec"]["securityContext"] = json!({"runAsUser": 2102}));
    assert!(uid.contains("spec.securityContext.runAsUser"), "{uid}");
    let port = with(&|pod| pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 15020}]));
    assert!(port.contains("port 15020"), "{port}");
    let name = with(&|pod| pod["spec"]["containers"][0]["name"] = "weft-proxy".into());
    assert!(name.contains("rename the container"), "{name}");
    let volume = with(&|pod| pod["spec"]["volumes"] = json!([{"name": "weft-token", "emptyDir": {}}]));
    assert!(volume.contains("rename the volume"), "{volume}");
    assert!(refusal(&json!({"metadata": {}})).contains("no spec"));
}

#[test]
fn a_default_limit_follows_a_higher_request_of_the_pod() {
    let mut asks = pod("simple");
    asks["metadata"]["annotations"] = json!({"weft.dev/proxy-memory-request": "0.5Gi"});
    let Outcome::Inject { pod, warnings } = review(&asks, "shop", &settings()) else { panic!() };
    let resources = &pod["spec"]["initContainers"][1]["resources"];
    assert_eq!(
        (&resources["requests"]["memory"], &resources["limits"]["memory"]),
        (&json!("0.5Gi"), &json!("0.5Gi"))
    );
    assert_eq!(warnings, Vec::<String>::new());
}

/// Pods of many shapes, also ones that the API server would not let through.
fn any_pod() -> impl Strategy<Value = Value> {
    let port = prop_oneof![
        (1u16..20000).prop_map(Value::from),
        Just(json!("http")),
        Just(json!("missing")),
        Just(Value::Null),
        Just(json!(-1)),
    ];
    let probe = prop_oneof![
        port.clone().prop_map(|port| json!({"tcpSocket": {"port": port}, "periodSeconds": 3})),
        port.prop_map(|port| json!({"httpGet": {"path": "/", "port": port, "scheme": "HTTP"}})),
        Just(json!({"exec": {"command": ["true"]}})),
        Just(Value::Null),
    ];
    let container =
        ("[a-z]{1,8}", proptest::option::of(probe.clone()), proptest::option::of(probe), any::<bool>())
            .prop_map(|(name, ready, live, ports)| {
                let mut container = json!({"name": name, "image": "x", "unknownField": {"a": [1, null]}});
                if let Some(probe) = ready {
                    container["readinessProbe"] = probe;
                }
                if let Some(probe) = live {
                    container["livenessProbe"] = probe;
                }
                if ports {
                    container["ports"] = json!([{"name": "http", "containerPort": 8080}]);
                }
                container
            });
    let containers = || proptest::collection::vec(container.clone(), 0..4);
    let annotations = proptest::collection::btree_map(
        "(weft.dev/(skip-inbound-ports|log-level|x)|prometheus.io/port|a~b/c)",
        "[0-9a-z,~/]{0,9}",
        0..4,
    );
    (containers(), containers(), annotations, any::<bool>(), any::<bool>()).prop_map(
        |(init, main, annotations, has_init, has_meta)| {
            let mut pod =
                json!({"metadata": {"name": "p"}, "spec": {"containers": main, "futureField": {"x": 1}}});
            if has_init {
                pod["spec"]["initContainers"] = init.into();
            }
            if has_meta {
                pod["metadata"]["annotations"] = json!(annotations);
                pod["metadata"]["labels"] = Value::Null;
            }
            pod
        },
    )
}

/// Containers of the user, without probes.
fn users(pod: &Value, list: &str) -> Vec<Value> {
    let containers = pod["spec"][list].as_array().cloned().unwrap_or_default();
    let own = |c: &Value| ["weft-proxy", "weft-init"].contains(&c["name"].as_str().unwrap_or_default());
    let bare = |mut c: Value| {
        for probe in ["readinessProbe", "livenessProbe"] {
            c.as_object_mut().unwrap().remove(probe);
        }
        c
    };
    containers.into_iter().filter(|c| !own(c)).map(bare).collect()
}

proptest! {
    #[test]
    fn injection_is_idempotent_and_its_patch_says_exactly_what_it_does(before in any_pod(), native in any::<bool>()) {
        let settings = Settings { native_sidecar: native, ..settings() };
        let Outcome::Inject { pod: after, .. } = review(&before, "shop", &settings) else { panic!("not injected") };
        let mut patched = before.clone();
        // As the API server does it: the patch goes over the wire.
        let patch: json_patch::Patch = serde_json::from_slice(&serde_json::to_vec(&json_patch::diff(&before, &after)).unwrap()).unwrap();
        json_patch::patch(&mut patched, &patch).unwrap();
        prop_assert_eq!(&patched, &after);
        let again = matches!(review(&after, "shop", &settings), Outcome::Skip { why: Skip::AlreadyInjected, .. });
        prop_assert!(again);
    }

    #[test]
    fn the_users_containers_are_never_removed_reordered_or_changed(before in any_pod(), native in any::<bool>()) {
        let settings = Settings { native_sidecar: native, ..settings() };
        let Outcome::Inject { pod: after, .. } = review(&before, "shop", &settings) else { panic!("not injected") };
        for list in ["initContainers", "containers"] {
            prop_assert_eq!(users(&before, list), users(&after, list));
        }
        prop_assert_eq!(&before["spec"]["futureField"], &after["spec"]["futureField"]);
    }

    #[test]
    fn no_json_makes_it_panic(text in "\\PC{0,40}", number in any::<i64>()) {
        for spec in [json!(text), json!(number), json!([text]), json!({"containers": text}), json!({"containers": [number, null, {"ports": number, "livenessProbe": {"tcpSocket": text}}], "initContainers": {}, "volumes": text, "securityContext": []})] {
            for metadata in [Value::Null, json!(text), json!({"annotations": text, "labels": [number]})] {
                let _ = review(&json!({"metadata": metadata, "spec": spec}), "shop", &settings());
            }
        }
    }
}

/// Of the proxy in any form, nothing is left open; the init step alone has the one capability that it needs.
#[test]
fn what_is_injected_is_confined() {
    for (settings, name) in [settings(), without_native_sidecars()].into_iter().flat_map(|settings| {
        ["simple", "init-containers", "job", "overrides"].map(|name| (settings.clone(), name))
    }) {
        let Outcome::Inject { pod, .. } = review(&pod(name), "shop", &settings) else {
            panic!("{name} was not injected")
        };
        let lists = ["initContainers", "containers"].map(|list| pod["spec"][list].as_array());
        let ours: Vec<&Value> = lists
            .into_iter()
            .flatten()
            .flatten()
            .filter(|c| c["name"].as_str().unwrap().starts_with("weft-"))
            .collect();
        assert_eq!(ours.len(), 2, "{name}");
        for container in ours {
            let context = &container["securityContext"];
            let init = container["name"] == "weft-init";
            let confined =
                ["allowPrivilegeEscalation", "readOnlyRootFilesystem"].map(|field| context[field].clone());
            assert_eq!(confined, [json!(false), json!(true)], "{name}: {context}");
            assert_eq!(context["seccompProfile"], json!({"type": "RuntimeDefault"}), "{name}: {context}");
            assert_eq!(context["capabilities"]["drop"], json!(["ALL"]), "{name}: {context}");
            let added = if init { json!(["NET_ADMIN"]) } else { Value::Null };
            assert_eq!(context["capabilities"]["add"], added, "{name}: {context}");
            if !init {
                assert_eq!((&context["runAsNonRoot"], &context["runAsUser"]), (&json!(true), &json!(2102)));
            }
            assert!(context.get("privileged").is_none(), "{name}: {context}");
        }
    }
}
