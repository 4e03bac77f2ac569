//! The containers and volumes that injection adds: `weft-init`, which redirects the pod's traffic and ends, unless a CNI plugin
//! does that; and `weft-proxy`.
//!
//! As a native sidecar both go first, so that the user's own init containers can call the mesh. Without native sidecars the
//! init step goes last, because nothing could serve the redirected traffic of init containers that come after it, and the
//! proxy is the first of the ordinary containers.

use super::overrides::{Overrides, Quantity};
use super::settings::{Resources, Settings};
use super::{BUNDLE_VOLUME, TOKEN_VOLUME, list};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use weft_api::names;

/// Adds them to a pod's spec.
pub fn add(spec: &mut Map<String, Value>, settings: &Settings, overrides: &Overrides) {
    let init = (!settings.cni).then(|| init(settings, overrides));
    let proxy = proxy(settings, overrides);
    if settings.native_sidecar {
        if let Some(containers) = list(spec, "initContainers") {
            containers.splice(0..0, init.into_iter().chain([proxy]));
        }
    } else {
        if let Some(init) = init
            && let Some(containers) = list(spec, "initContainers")
        {
            containers.push(init);
        }
        if let Some(containers) = list(spec, "containers") {
            containers.insert(0, proxy);
        }
    }
    if let Some(volumes) = list(spec, "volumes") {
        volumes.extend(self::volumes());
    }
}

fn init(settings: &Settings, overrides: &Overrides) -> Value {
    let mut command = vec!["/weft-proxy".to_owned(), "init".to_owned()];
    let mut flag = |name: &str, value: String| {
        if !value.is_empty() {
            command.extend([name.to_owned(), value]);
        }
    };
    flag("--skip-inbound-ports", joined(&overrides.skip_inbound_ports));
    flag("--skip-outbound-ports", joined(&overrides.skip_outbound_ports));
    flag("--skip-outbound-cidrs", overrides.skip_outbound_cidrs.join(","));
    let mut container = json!({
        "name": names::INIT_CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.pull_policy.as_str(),
        "command": command,
        "env": [{ "name": "WEFT_LOG", "value": overrides.log }],
        // The one thing that the `restricted` Pod Security Standard does not allow: NET_ADMIN, to write the rules.
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "add": ["NET_ADMIN"], "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
    });
    set_resources(&mut container, &overrides.resources);
    container
}

fn proxy(settings: &Settings, overrides: &Overrides) -> Value {
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": path } } });
    let value = |name: &str, value: &str| json!({ "name": name, "value": value });
    // By the port that only redirection leads to the proxy from: without the rules it is not ready, whatever it says.
    let ready = json!({ "path": "/ready", "port": names::CHECK_PORT, "scheme": "HTTP" });
    let mut container = json!({
        "name": names::PROXY_CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.pull_policy.as_str(),
        "command": ["/weft-proxy", "run"],
        "env": [
            field("WEFT_POD_NAME", "metadata.name"),
            field("WEFT_POD_NAMESPACE", "metadata.namespace"),
            field("WEFT_POD_UID", "metadata.uid"),
            field("WEFT_POD_IPS", "status.podIPs"),
            field("WEFT_SERVICE_ACCOUNT", "spec.serviceAccountName"),
            value("WEFT_OPERATOR_ADDRESS", &settings.operator_address),
            value("WEFT_TRUST_DOMAIN", &settings.trust_domain),
            value("WEFT_LOG", &overrides.log),
            value("WEFT_ACCESS_LOG", if overrides.access_log { "on" } else { "off" }),
            value("WEFT_WORKERS", &overrides.workers.to_string()),
        ],
        "ports": [{ "name": "weft-metrics", "containerPort": names::METRICS_PORT, "protocol": "TCP" }],
        // The next container starts when this succeeds: with an identity and its listeners, so that the application's first
        // call works. Ten minutes, because an operator that is away is no reason to restart the proxy.
        "startupProbe": { "httpGet": ready, "periodSeconds": 1, "timeoutSeconds": 3, "failureThreshold": 600 },
        "readinessProbe": { "httpGet": ready, "periodSeconds": 5, "timeoutSeconds": 3, "failureThreshold": 3 },
        "securityContext": {
            "runAsUser": names::PROXY_UID,
            "runAsGroup": names::PROXY_UID,
            "runAsNonRoot": true,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "volumeMounts": [
            { "name": TOKEN_VOLUME, "mountPath": folder(names::TOKEN_PATH), "readOnly": true },
            { "name": BUNDLE_VOLUME, "mountPath": folder(names::BUNDLE_PATH), "readOnly": true },
        ],
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    // Otherwise they are: policies say which.
    if !settings.audit
        && let Some(env) = container["env"].as_array_mut()
    {
        env.push(value("WEFT_AUDIT", "off"));
    }
    if let Some(endpoint) = &overrides.tracing
        && let Some(env) = container["env"].as_array_mut()
    {
        env.push(value("WEFT_TRACING_ENDPOINT", &endpoint.to_string()));
        env.push(value("WEFT_TRACING_SAMPLING", &overrides.sampling));
    }
    if settings.native_sidecar {
        container["restartPolicy"] = "Always".into();
    }
    set_resources(&mut container, &overrides.resources);
    container
}

/// The token proves to the operator whose pod this is; the API server does not take it. The bundle's ConfigMap is made by the
/// operator in every injected namespace; until it is there the kubelet waits, and says so in the pod's events.
fn volumes() -> [Value; 2] {
    [
        json!({ "name": TOKEN_VOLUME, "projected": { "sources": [
            { "serviceAccountToken": { "audience": names::TOKEN_AUDIENCE, "expirationSeconds": 3600, "path": file(names::TOKEN_PATH) } },
        ] } }),
        json!({ "name": BUNDLE_VOLUME, "configMap": {
            "name": names::BUNDLE_CONFIGMAP,
            "items": [{ "key": names::BUNDLE_KEY, "path": file(names::BUNDLE_PATH) }],
        } }),
    ]
}

fn set_resources(container: &mut Value, resources: &Resources) {
    let mut side = |side: &str, cpu: &Option<Quantity>, memory: &Option<Quantity>| {
        for (name, quantity) in [("cpu", cpu), ("memory", memory)] {
            if let Some(quantity) = quantity {
                container["resources"][side][name] = quantity.to_string().into();
            }
        }
    };
    side("requests", &resources.cpu_request, &resources.memory_request);
    side("limits", &resources.cpu_limit, &resources.memory_limit);
}

fn joined(ports: &BTreeSet<u16>) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",")
}

fn folder(path: &str) -> &str {
    path.rsplit_once('/').map_or("/", |(folder, _)| folder)
}

fn file(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, file)| file)
}
