//! From what was observed to findings, each with a remedy. Pure; the order is that in which one would repair.

use super::{cni, roots};
use crate::mesh_pod::{self, Membership};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use weft_api::names;

/// What was read, or why it could not be.
pub type Seen<T> = Result<T, String>;

/// One observation of the cluster.
pub struct Observed {
    pub weft_namespace: String,
    pub cli_version: String,
    pub now_unix_s: i64,
    /// major, minor, full version
    pub server: Seen<(String, String, String)>,
    pub crds: Seen<Vec<CustomResourceDefinition>>,
    pub operator: Seen<Option<Deployment>>,
    pub webhook: Seen<Option<Deployment>>,
    /// The CNI plugin's, where there is one.
    pub cni: Seen<Option<DaemonSet>>,
    pub injector: Seen<Option<MutatingWebhookConfiguration>>,
    pub validator: Seen<Option<ValidatingWebhookConfiguration>>,
    /// The trust bundle in Weft's own namespace.
    pub bundle: Seen<Option<ConfigMap>>,
    pub namespaces: Seen<Vec<Namespace>>,
    /// The trust bundles of all namespaces.
    pub bundles: Seen<Vec<ConfigMap>>,
    pub pods: Seen<Vec<Pod>>,
    pub resources: Seen<Vec<Verdict>>,
}

/// What the operator says of one resource.
pub struct Verdict {
    pub resource: String,
    pub generation: i64,
    pub conditions: Vec<Condition>,
}

/// How bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    Warn,
    Fail,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        })
    }
}

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub level: Level,
    pub subject: String,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

pub(super) fn ok(subject: &str, message: impl Into<String>) -> Finding {
    Finding { level: Level::Ok, subject: subject.to_owned(), message: message.into(), remedy: None }
}
pub(super) fn warn(subject: &str, message: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding {
        level: Level::Warn,
        subject: subject.to_owned(),
        message: message.into(),
        remedy: Some(remedy.into()),
    }
}
pub(super) fn fail(subject: &str, message: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding {
        level: Level::Fail,
        subject: subject.to_owned(),
        message: message.into(),
        remedy: Some(remedy.into()),
    }
}
pub(super) fn unreadable(subject: &str, error: &str) -> Finding {
    fail(subject, format!("cannot be read: {error}"), "check the kubeconfig's permissions and the connection")
}

/// All findings.
pub fn judge(o: &Observed) -> Vec<Finding> {
    let server = api_server(&o.server);
    if server.level == Level::Fail {
        return vec![server];
    }
    let mut findings = vec![server, definitions(&o.crds)];
    findings.push(deployment("operator", names::OPERATOR, &o.operator, &o.weft_namespace));
    findings.push(deployment("webhook", names::WEBHOOK, &o.webhook, &o.weft_namespace));
    findings.extend(cni::plugin(&o.cni, &o.pods, &o.weft_namespace));
    findings.push(versions(o));
    let (bundle, roots) = trust_bundle(o);
    findings.push(bundle);
    findings.push(configuration("injector", injector_webhooks(&o.injector), &roots, &o.weft_namespace));
    findings.push(configuration("validator", validator_webhooks(&o.validator), &roots, &o.weft_namespace));
    findings.extend(members(o));
    findings.extend(resources(&o.resources));
    findings
}

fn api_server(server: &Seen<(String, String, String)>) -> Finding {
    let (major, minor, version) = match server {
        Ok(server) => server,
        Err(error) => {
            return fail("api-server", error.clone(), "check the kubeconfig and that the cluster runs");
        }
    };
    let number =
        |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().unwrap_or(0);
    if (number(major), number(minor)) < (1, 28) {
        return warn("api-server", format!("Kubernetes {version}"), "Weft needs Kubernetes 1.28 or newer");
    }
    ok("api-server", format!("Kubernetes {version}"))
}

fn definitions(crds: &Seen<Vec<CustomResourceDefinition>>) -> Finding {
    let crds = match crds {
        Ok(crds) => crds,
        Err(error) => return unreadable("definitions", error),
    };
    let established = |name: &str| {
        crds.iter().filter(|crd| crd.name_any() == name).any(|crd| {
            let conditions = crd.status.as_ref().and_then(|s| s.conditions.as_ref());
            let established = conditions
                .is_some_and(|cs| cs.iter().any(|c| c.type_ == "Established" && c.status == "True"));
            established && crd.spec.versions.iter().any(|v| v.name == weft_crds::VERSION && v.served)
        })
    };
    let wanted = [
        "meshservices",
        "trafficpolicies",
        "peerauthentications",
        "authorizationpolicies",
        "requestauthentications",
        "trustdomains",
    ]
    .map(|p| format!("{p}.{}", weft_crds::GROUP));
    let missing: Vec<&str> = wanted.iter().filter(|n| !established(n)).map(String::as_str).collect();
    if missing.is_empty() {
        return ok("definitions", format!("{} in version {}", wanted.join(", "), weft_crds::VERSION));
    }
    fail(
        "definitions",
        format!("not served in version {}: {}", weft_crds::VERSION, missing.join(", ")),
        "install the chart with crds.install=true, or apply charts/weft/files/crds",
    )
}

fn deployment(subject: &str, name: &str, deployment: &Seen<Option<Deployment>>, namespace: &str) -> Finding {
    let deployment = match deployment {
        Ok(Some(deployment)) => deployment,
        Ok(None) => {
            return fail(
                subject,
                format!("there is no Deployment {namespace}/{name}"),
                "helm install weft charts/weft -n weft-system --create-namespace, or name the namespace with --weft-namespace",
            );
        }
        Err(error) => return unreadable(subject, error),
    };
    let desired = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let ready = deployment.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0);
    let message = format!("{ready} of {desired} replicas ready");
    let remedy = format!("kubectl -n {namespace} describe pods -l app.kubernetes.io/name={name}");
    match ready {
        0 => fail(subject, message, remedy),
        n if n < desired => warn(subject, message, remedy),
        _ => ok(subject, message),
    }
}

fn deployed_version(deployment: &Seen<Option<Deployment>>) -> Option<&str> {
    let spec = deployment.as_ref().ok()?.as_ref()?.spec.as_ref()?.template.spec.as_ref()?;
    mesh_pod::image_tag(spec.containers.first()?.image.as_deref()?)
}

fn versions(o: &Observed) -> Finding {
    let (operator, webhook) = (deployed_version(&o.operator), deployed_version(&o.webhook));
    let mut proxies: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in o.pods.iter().flatten().filter(|p| mesh_pod::is_injected(p)) {
        *proxies.entry(mesh_pod::proxy_version(pod).unwrap_or("unknown")).or_default() += 1;
    }
    let (Some(operator), Some(webhook)) = (operator, webhook) else {
        return warn("versions", "the control plane's version is unknown", "see the lines above");
    };
    let listed: Vec<String> = proxies.iter().map(|(version, count)| format!("{version} ({count})")).collect();
    let listed = if listed.is_empty() { "none yet".to_owned() } else { listed.join(", ") };
    let message = format!("operator {operator}, webhook {webhook}, proxies {listed}, weft {}", o.cli_version);
    if operator != webhook {
        return warn("versions", message, "finish the upgrade: operator and webhook belong to one version");
    }
    if proxies.keys().any(|&version| version != operator) {
        return warn(
            "versions",
            message,
            "restart the workloads whose proxies are of another version: weft status -A",
        );
    }
    ok("versions", message)
}

/// A root that ends within this time is worth a word.
const ROOT_WARNING_S: i64 = 30 * 86_400;

fn trust_bundle(o: &Observed) -> (Finding, Vec<Vec<u8>>) {
    let subject = "trust-bundle";
    let remedy = format!("kubectl -n {} logs deployment/{}", o.weft_namespace, names::OPERATOR);
    let pem = match &o.bundle {
        Ok(Some(map)) => map.data.as_ref().and_then(|d| d.get(names::BUNDLE_KEY)),
        Ok(None) => None,
        Err(error) => return (unreadable(subject, error), Vec::new()),
    };
    let Some(pem) = pem else {
        let message = format!("there is no ConfigMap {} in {}", names::BUNDLE_CONFIGMAP, o.weft_namespace);
        return (fail(subject, format!("{message}: the operator has not written it"), remedy), Vec::new());
    };
    let roots = match roots::parse(pem.as_bytes()) {
        Ok(roots) if !roots.is_empty() => roots,
        Ok(_) => return (fail(subject, "holds no certificate", remedy), Vec::new()),
        Err(error) => return (fail(subject, error, remedy), Vec::new()),
    };
    let left = roots.iter().map(|r| r.not_after_unix_s).max().unwrap_or(0) - o.now_unix_s;
    let ders = roots.iter().map(|r| r.der.clone()).collect();
    let message =
        format!("{} root(s), the last one valid for {} more days", roots.len(), left.max(0) / 86_400);
    let finding = match left {
        i64::MIN..=0 => fail(subject, "every root has expired", remedy),
        1..=ROOT_WARNING_S => warn(subject, message, remedy),
        _ => ok(subject, message),
    };
    (finding, ders)
}

/// A webhook's name, caBundle and failurePolicy.
type WebhookFacts<'a> = (&'a str, Option<&'a ByteString>, Option<&'a str>);

fn injector_webhooks(
    seen: &Seen<Option<MutatingWebhookConfiguration>>,
) -> Seen<Option<Vec<WebhookFacts<'_>>>> {
    let found = seen.as_ref().map_err(Clone::clone)?.as_ref();
    Ok(found.map(|c| {
        let webhooks = c.webhooks.iter().flatten();
        webhooks
            .map(|w| (w.name.as_str(), w.client_config.ca_bundle.as_ref(), w.failure_policy.as_deref()))
            .collect()
    }))
}

fn validator_webhooks(
    seen: &Seen<Option<ValidatingWebhookConfiguration>>,
) -> Seen<Option<Vec<WebhookFacts<'_>>>> {
    let found = seen.as_ref().map_err(Clone::clone)?.as_ref();
    Ok(found.map(|c| {
        let webhooks = c.webhooks.iter().flatten();
        webhooks
            .map(|w| (w.name.as_str(), w.client_config.ca_bundle.as_ref(), w.failure_policy.as_deref()))
            .collect()
    }))
}

fn configuration(
    subject: &str,
    webhooks: Seen<Option<Vec<WebhookFacts<'_>>>>,
    roots: &[Vec<u8>],
    namespace: &str,
) -> Finding {
    let webhooks = match webhooks {
        Ok(Some(webhooks)) if !webhooks.is_empty() => webhooks,
        Ok(_) => {
            return fail(
                subject,
                format!("there is no webhook configuration weft-{subject}"),
                "helm upgrade weft charts/weft: the chart creates it",
            );
        }
        Err(error) => return unreadable(subject, &error),
    };
    for (name, bundle, _) in &webhooks {
        let remedy = format!(
            "the operator's leader writes it: kubectl -n {namespace} logs deployment/{}",
            names::OPERATOR
        );
        let trusted = bundle.map(|b| roots::parse(&b.0)).unwrap_or(Ok(Vec::new()));
        match trusted {
            Err(error) => return fail(subject, format!("caBundle of {name}: {error}"), remedy),
            Ok(trusted) if trusted.is_empty() => {
                return fail(subject, format!("caBundle of {name} is empty"), remedy);
            }
            Ok(trusted) if !roots.is_empty() && !trusted.iter().any(|r| roots.contains(&r.der)) => {
                return fail(subject, format!("caBundle of {name} has no root of the trust bundle"), remedy);
            }
            Ok(_) => {}
        }
    }
    if webhooks.iter().any(|(_, _, policy)| *policy == Some("Ignore")) {
        return warn(
            subject,
            "failurePolicy is Ignore: pods created while the webhook is down have no proxy",
            "helm upgrade with webhook.failurePolicy=Fail",
        );
    }
    ok(subject, format!("{} webhook(s) with the mesh's caBundle", webhooks.len()))
}

/// Namespaces that are in the mesh, and their pods.
fn members(o: &Observed) -> Vec<Finding> {
    let (namespaces, pods) = match (&o.namespaces, &o.pods) {
        (Ok(namespaces), Ok(pods)) => (namespaces, pods),
        (Err(error), _) => return vec![unreadable("namespaces", error)],
        (_, Err(error)) => return vec![unreadable("pods", error)],
    };
    let never = ["kube-system", "kube-public", "kube-node-lease", o.weft_namespace.as_str()];
    let enabled: BTreeSet<String> = namespaces
        .iter()
        .filter(|n| mesh_pod::namespace_enabled(n))
        .map(|n| n.name_any())
        .filter(|n| !never.contains(&n.as_str()))
        .collect();
    let bundled: BTreeSet<String> = o.bundles.iter().flatten().filter_map(ResourceExt::namespace).collect();
    let mut by_namespace: BTreeMap<String, Vec<(&Pod, Membership)>> =
        enabled.iter().map(|n| (n.clone(), Vec::new())).collect();
    for pod in pods {
        let namespace = pod.namespace().unwrap_or_default();
        if never.contains(&namespace.as_str()) {
            continue;
        }
        let membership = mesh_pod::membership(pod, enabled.contains(&namespace));
        if membership != Membership::Outside {
            by_namespace.entry(namespace).or_default().push((pod, membership));
        }
    }
    if by_namespace.is_empty() {
        return vec![warn(
            "namespaces",
            "none is in the mesh",
            "kubectl annotate namespace <name> weft.dev/inject=enabled, then restart its workloads",
        )];
    }
    let mut findings = Vec::new();
    for (namespace, pods) in &by_namespace {
        let has_bundle = o.bundles.is_err() || bundled.contains(namespace);
        findings.extend(member(namespace, pods, has_bundle, o));
    }
    findings
}

fn member(namespace: &str, pods: &[(&Pod, Membership)], has_bundle: bool, o: &Observed) -> Vec<Finding> {
    let weft = &o.weft_namespace;
    let subject = format!("namespace {namespace}");
    let mut findings = Vec::new();
    if !has_bundle {
        findings.push(fail(
            &subject,
            format!("ConfigMap {} is missing: new pods cannot start", names::BUNDLE_CONFIGMAP),
            format!("the operator's leader writes it: kubectl -n {weft} logs deployment/{}", names::OPERATOR),
        ));
    }
    let missing: Vec<String> =
        pods.iter().filter(|(_, m)| *m == Membership::Missing).map(|(p, _)| p.name_any()).collect();
    if !missing.is_empty() {
        findings.push(warn(
            &subject,
            format!("{} pod(s) without a proxy: {}", missing.len(), some_of(&missing)),
            format!("they are older than the mesh: kubectl -n {namespace} rollout restart deployment (or statefulset, daemonset)"),
        ));
    }
    let live = |p: &&Pod| {
        !matches!(mesh_pod::phase(p), "Succeeded" | "Failed") && p.metadata.deletion_timestamp.is_none()
    };
    let injected: Vec<&Pod> =
        pods.iter().filter(|(_, m)| *m == Membership::Injected).map(|(p, _)| *p).filter(live).collect();
    let (missed, others): (Vec<&Pod>, Vec<&Pod>) =
        injected.iter().partition(|pod| cni::missed(pod, o.now_unix_s));
    if !missed.is_empty() {
        let names: Vec<String> = missed.iter().map(|pod| pod.name_any()).collect();
        findings.push(fail(
            &subject,
            format!(
                "{} pod(s) that the CNI plugin has to redirect are not ready, so it has probably missed them: {}",
                names.len(),
                some_of(&names)
            ),
            format!("kubectl -n {namespace} delete pod {}: they are made anew with their rules", names.join(" ")),
        ));
    }
    let unready: Vec<String> = others
        .iter()
        .filter(|p| !mesh_pod::proxy_ready(p))
        .map(|p| match mesh_pod::proxy_trouble(p) {
            Some(trouble) => format!("{} ({trouble})", p.name_any()),
            None => p.name_any(),
        })
        .collect();
    if !unready.is_empty() {
        findings.push(fail(
            &subject,
            format!("{} proxies not ready: {}", unready.len(), some_of(&unready)),
            format!(
                "kubectl -n {namespace} logs <pod> -c {}; where it says that redirection rules are missing, delete the pod",
                names::PROXY_CONTAINER
            ),
        ));
    }
    let around: Vec<String> = injected
        .iter()
        .filter_map(|p| Some(format!("{} ({})", p.name_any(), mesh_pod::ways_around(p)?)))
        .collect();
    if !around.is_empty() {
        findings.push(warn(
            &subject,
            format!("{} pod(s) could send past their proxy: {}", around.len(), some_of(&around)),
            "take that away, or do not count on the mesh to bound what they send: docs/security.md",
        ));
    }
    if findings.is_empty() {
        findings.push(ok(&subject, format!("{} proxies, all ready", injected.len())));
    }
    findings
}

fn some_of(names: &[String]) -> String {
    let shown = names.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > 5 { format!("{shown} and {} more", names.len() - 5) } else { shown }
}

fn resources(resources: &Seen<Vec<Verdict>>) -> Vec<Finding> {
    let verdicts = match resources {
        Ok(verdicts) => verdicts,
        // Without definitions there are none; that is a finding already.
        Err(_) => return Vec::new(),
    };
    let mut findings = Vec::new();
    for Verdict { resource, generation, conditions } in verdicts {
        let current = |c: &&Condition| c.observed_generation.is_none_or(|g| g >= *generation);
        if conditions.iter().filter(current).count() == 0 {
            findings.push(warn(
                resource,
                "the operator has not judged it yet",
                "wait a moment; is the operator ready?",
            ));
        }
        for condition in conditions.iter().filter(current).filter(|c| c.status == "False") {
            let message =
                format!("{} is False ({}): {}", condition.type_, condition.reason, condition.message);
            findings.push(warn(
                resource,
                message,
                "change the resource, or what it refers to, as the message says",
            ));
        }
    }
    if findings.is_empty() {
        let message = match verdicts.len() {
            0 => "none applied yet: the defaults hold".to_owned(),
            n => format!("{n}, each accepted and in force"),
        };
        findings.push(ok("resources", message));
    }
    findings
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
