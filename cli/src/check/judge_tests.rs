//! Tests of `judge`: no cluster, nothing but what they make themselves.

use super::*;
use crate::mesh_pod::tests::pod;
use serde_json::{Value, json};

fn root_pem(not_after_year: i32) -> String {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.not_after = rcgen::date_time_ymd(not_after_year, 1, 1);
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
}

fn deployment(replicas: i32, ready: i32, tag: &str) -> Deployment {
    serde_json::from_value(
        json!({"metadata": {"name": "d"}, "spec": {"replicas": replicas, "selector": {}, "template": {
        "spec": {"containers": [{"name": "c", "image": format!("ghcr.io/weft-mesh/x:{tag}")}]}}},
        "status": {"readyReplicas": ready}}),
    )
    .unwrap()
}

fn webhooks(names: &[&str], pem: Option<&str>, policy: &str) -> Value {
    let bundle = pem.map(|p| ByteString(p.as_bytes().to_vec()));
    let webhooks: Vec<Value> = names
        .iter()
        .map(|name| {
            let mut client = json!({"service": {"name": "weft-webhook", "namespace": "weft-system"}});
            if let Some(bundle) = &bundle {
                client["caBundle"] = serde_json::to_value(bundle).unwrap();
            }
            json!({"name": name, "failurePolicy": policy, "sideEffects": "None", "admissionReviewVersions": ["v1"], "clientConfig": client})
        })
        .collect();
    json!({"metadata": {"name": "w"}, "webhooks": webhooks})
}

fn definition(name: &str) -> CustomResourceDefinition {
    serde_json::from_value(json!({"metadata": {"name": name},
        "spec": {"group": "weft.dev", "names": {"kind": "X", "plural": "x"}, "scope": "Namespaced",
                 "versions": [{"name": "v1alpha1", "served": true, "storage": true}]},
        "status": {"conditions": [{"type": "Established", "status": "True"}]}}))
    .unwrap()
}

fn bundle(namespace: &str, pem: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": "weft-trust-bundle", "namespace": namespace}, "data": {"roots.pem": pem}}))
        .unwrap()
}

/// A mesh in which everything is well: one namespace, one proxy.
fn healthy() -> Observed {
    let pem = root_pem(2040);
    Observed {
        weft_namespace: "weft-system".into(),
        cli_version: "0.1.0".into(),
        now_unix_s: 1_800_000_000,
        server: Ok(("1".into(), "36".into(), "v1.36.3".into())),
        crds: Ok([
            "meshservices",
            "trafficpolicies",
            "peerauthentications",
            "authorizationpolicies",
            "requestauthentications",
            "trustdomains",
        ]
        .map(|p| definition(&format!("{p}.weft.dev")))
        .into()),
        operator: Ok(Some(deployment(2, 2, "0.1.0"))),
        webhook: Ok(Some(deployment(2, 2, "0.1.0"))),
        cni: Ok(None),
        injector: Ok(Some(serde_json::from_value(webhooks(&["a", "b", "c"], Some(&pem), "Fail")).unwrap())),
        validator: Ok(Some(serde_json::from_value(webhooks(&["v"], Some(&pem), "Fail")).unwrap())),
        bundle: Ok(Some(bundle("weft-system", &pem))),
        namespaces: Ok(vec![
            serde_json::from_value(
                json!({"metadata": {"name": "shop", "annotations": {"weft.dev/inject": "enabled"}}}),
            )
            .unwrap(),
        ]),
        bundles: Ok(vec![bundle("shop", &pem)]),
        pods: Ok(vec![pod("back-1", json!({}), true)]),
        resources: Ok(Vec::new()),
    }
}

fn only(observed: &Observed, subject: &str) -> Finding {
    let found: Vec<Finding> = judge(observed).into_iter().filter(|f| f.subject == subject).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().unwrap()
}

#[test]
fn a_healthy_mesh_is_all_ok() {
    let findings = judge(&healthy());
    assert!(findings.iter().all(|f| f.level == Level::Ok), "{findings:#?}");
}

#[test]
fn whatever_is_not_ok_has_a_remedy() {
    let error = || "forbidden".to_owned();
    let observed = Observed {
        crds: Err(error()),
        operator: Err(error()),
        webhook: Ok(None),
        injector: Err(error()),
        validator: Ok(None),
        bundle: Err(error()),
        namespaces: Err(error()),
        bundles: Err(error()),
        pods: Err(error()),
        resources: Err(error()),
        ..healthy()
    };
    let findings = judge(&observed);
    assert!(findings.iter().filter(|f| f.level != Level::Ok).all(|f| f.remedy.is_some()), "{findings:#?}");
    assert!(findings.iter().filter(|f| f.level == Level::Fail).count() >= 6);
}

#[test]
fn without_an_api_server_that_is_the_only_finding() {
    let findings = judge(&Observed { server: Err("connection refused".into()), ..healthy() });
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].level, Level::Fail);
}

#[test]
fn some_replicas_are_a_warning_and_none_a_failure() {
    let with = |ready| Observed { operator: Ok(Some(deployment(2, ready, "0.1.0"))), ..healthy() };
    assert_eq!(only(&with(1), "operator").level, Level::Warn);
    assert_eq!(only(&with(0), "operator").level, Level::Fail);
}

#[test]
fn a_missing_or_foreign_ca_bundle_is_a_failure() {
    let with = |pem: Option<&str>| Observed {
        injector: Ok(Some(serde_json::from_value(webhooks(&["a"], pem, "Fail")).unwrap())),
        ..healthy()
    };
    assert!(only(&with(None), "injector").message.contains("empty"));
    assert!(only(&with(Some(&root_pem(2040))), "injector").message.contains("no root of the trust bundle"));
}

#[test]
fn a_failure_policy_of_ignore_is_a_warning() {
    let mut observed = healthy();
    if let Ok(Some(injector)) = &mut observed.injector {
        injector.webhooks.as_mut().unwrap()[0].failure_policy = Some("Ignore".into());
    }
    assert_eq!(only(&observed, "injector").level, Level::Warn);
}

#[test]
fn roots_that_end_soon_warn_and_expired_ones_fail() {
    // 2027-01-15 is "now".
    let with = |year| Observed { bundle: Ok(Some(bundle("weft-system", &root_pem(year)))), ..healthy() };
    assert_eq!(only(&with(2026), "trust-bundle").level, Level::Fail);
    let soon = Observed {
        now_unix_s: 1_798_000_000,
        bundle: Ok(Some(bundle("weft-system", &root_pem(2027)))),
        ..healthy()
    };
    assert_eq!(only(&soon, "trust-bundle").level, Level::Warn);
    let broken = Observed {
        bundle: Ok(Some(bundle(
            "weft-system",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ))),
        ..healthy()
    };
    assert_eq!(only(&broken, "trust-bundle").level, Level::Fail);
}

#[test]
fn pods_without_a_proxy_and_proxies_that_are_not_ready_are_named() {
    let mut unready = pod("slow", json!({}), true);
    unready.status.as_mut().unwrap().init_container_statuses.as_mut().unwrap()[0].ready = false;
    let observed = Observed { pods: Ok(vec![pod("old", json!({}), false), unready]), ..healthy() };
    let found: Vec<Finding> =
        judge(&observed).into_iter().filter(|f| f.subject == "namespace shop").collect();
    assert!(found.iter().any(|f| f.level == Level::Warn && f.message.contains("old")));
    assert!(found.iter().any(|f| f.level == Level::Fail && f.message.contains("slow")));
}

#[test]
fn a_plugin_that_is_not_on_every_node_is_told_and_the_pods_that_it_missed_are_named() {
    let set = |ready: i32, nodes: i32| -> Seen<Option<DaemonSet>> {
        let status = json!({ "currentNumberScheduled": nodes, "desiredNumberScheduled": nodes, "numberMisscheduled": 0, "numberReady": ready });
        Ok(Some(
            serde_json::from_value(json!({ "metadata": { "name": "weft-cni" }, "status": status })).unwrap(),
        ))
    };
    let of = |cni| only(&Observed { cni, ..healthy() }, "cni");
    assert_eq!(of(set(3, 3)).level, Level::Ok);
    let some = of(set(2, 3));
    assert!(some.level == Level::Warn && some.message.contains("2 of 3 nodes"), "{some:?}");
    for none in [of(set(0, 3)), of(set(0, 0)), of(Err("no".into()))] {
        assert_eq!(none.level, Level::Fail, "{none:?}");
    }
    assert!(judge(&healthy()).iter().all(|found| found.subject != "cni"), "nobody has asked for it");

    // Running and not ready for long; just made; not running; redirected by its own init container.
    let made = |name: &str, age: i64, running: bool, annotated: bool| {
        let mut pod = pod(name, json!({}), true);
        let at = k8s_openapi::jiff::Timestamp::from_second(healthy().now_unix_s - age).unwrap();
        pod.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at));
        if annotated {
            pod.annotations_mut().insert(names::REDIRECTION.into(), "{}".into());
        }
        let proxy = &mut pod.status.as_mut().unwrap().init_container_statuses.as_mut().unwrap()[0];
        proxy.ready = false;
        let state = if running {
            json!({ "running": {} })
        } else {
            json!({ "waiting": { "reason": "ImagePullBackOff" } })
        };
        proxy.state = serde_json::from_value(state).unwrap();
        pod
    };
    let pods = vec![
        made("missed-1", 300, true, true),
        made("missed-2", 31, true, true),
        made("young", 5, true, true),
        made("pulling", 300, false, true),
        made("other", 300, true, false),
    ];
    let found = judge(&Observed { cni: set(1, 1), pods: Ok(pods.clone()), ..healthy() });
    let [missed, rest] = &found.iter().filter(|f| f.subject == "namespace shop").collect::<Vec<_>>()[..]
    else {
        panic!("{found:?}")
    };
    assert!(missed.level == Level::Fail && missed.message.contains("2 pod(s)"), "{missed:?}");
    let remedy = missed.remedy.as_ref().unwrap();
    assert!(remedy.contains("kubectl -n shop delete pod missed-1 missed-2:"), "{remedy}");
    assert!(["young", "pulling", "other"].iter().all(|name| rest.message.contains(name)), "{rest:?}");
    // Without the plugin nobody writes their rules.
    let gone = only(&Observed { pods: Ok(pods), ..healthy() }, "cni");
    assert!(gone.level == Level::Fail && gone.message.contains("4 pod(s)"), "{gone:?}");
}

#[test]
fn pods_that_could_send_past_their_proxy_are_a_warning_that_names_them() {
    let mut strong = pod("strong", json!({}), true);
    let context = json!({ "capabilities": { "add": ["NET_ADMIN"] } });
    strong.spec.as_mut().unwrap().containers[0].security_context = serde_json::from_value(context).unwrap();
    let observed = Observed { pods: Ok(vec![strong, pod("plain", json!({}), true)]), ..healthy() };
    let found = only(&observed, "namespace shop");
    assert_eq!(found.level, Level::Warn);
    assert!(
        found.message.contains("1 pod(s)") && found.message.contains("strong (container app has NET_ADMIN)")
    );
}

#[test]
fn an_enabled_namespace_without_a_bundle_fails_and_a_mesh_without_namespaces_warns() {
    let observed = Observed { bundles: Ok(Vec::new()), ..healthy() };
    assert_eq!(only(&observed, "namespace shop").level, Level::Fail);
    let observed = Observed { namespaces: Ok(Vec::new()), pods: Ok(Vec::new()), ..healthy() };
    assert_eq!(only(&observed, "namespaces").level, Level::Warn);
}

#[test]
fn proxies_of_another_version_are_a_warning() {
    let observed = Observed {
        operator: Ok(Some(deployment(2, 2, "0.2.0"))),
        webhook: Ok(Some(deployment(2, 2, "0.2.0"))),
        ..healthy()
    };
    assert!(only(&observed, "versions").message.contains("0.1.0 (1)"));
    assert_eq!(only(&observed, "versions").level, Level::Warn);
}

#[test]
fn conditions_that_are_false_or_old_are_a_warning() {
    let condition = |status: &str, generation: i64| -> Condition {
        serde_json::from_value(
            json!({"type": "Accepted", "status": status, "reason": "Conflicted", "message": "an older one",
            "observedGeneration": generation, "lastTransitionTime": "2026-01-01T00:00:00Z"}),
        )
        .unwrap()
    };
    let with = |condition: Condition| Observed {
        resources: Ok(vec![Verdict {
            resource: "TrafficPolicy shop/canary".into(),
            generation: 2,
            conditions: vec![condition],
        }]),
        ..healthy()
    };
    assert_eq!(only(&with(condition("True", 2)), "resources").level, Level::Ok);
    assert!(only(&with(condition("False", 2)), "TrafficPolicy shop/canary").message.contains("an older one"));
    assert!(only(&with(condition("False", 1)), "TrafficPolicy shop/canary").message.contains("not judged"));
}
