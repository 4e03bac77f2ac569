//! TCP probes. The kernel completes every TCP handshake with the redirected pod, so a TCP probe would always succeed, even
//! with the application dead. It is turned into an HTTP probe of the proxy, which connects to the application's port itself.
//! HTTP and gRPC probes stay as they are: the proxy lets exactly those through, also under Strict.

use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use weft_api::names;

const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];

/// Rewrites the TCP probes of all long-running containers, but for ports that are not captured.
pub fn rewrite(spec: &mut Map<String, Value>, skipped: &BTreeSet<u16>, warnings: &mut Vec<String>) {
    for list in ["initContainers", "containers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for container in containers.filter_map(Value::as_object_mut) {
            if container.get("name").and_then(Value::as_str) != Some(names::PROXY_CONTAINER) {
                rewrite_container(container, skipped, warnings);
            }
        }
    }
}

fn rewrite_container(
    container: &mut Map<String, Value>,
    skipped: &BTreeSet<u16>,
    warnings: &mut Vec<String>,
) {
    let name = container.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let ports = container.get("ports").cloned().unwrap_or_default();
    for kind in PROBES {
        let Some(probe) = container.get_mut(kind).and_then(Value::as_object_mut) else { continue };
        if probe.get("httpGet").and_then(|get| get.get("scheme")).and_then(Value::as_str) == Some("HTTPS") {
            warnings.push(format!(
                "the {kind} of container {name} speaks HTTPS, so under Strict the proxy cannot tell it from other TLS and refuses it: probe by HTTP or TCP, or name its port in {}",
                super::overrides::SKIP_INBOUND_PORTS
            ));
        }
        let Some(socket) = probe.get("tcpSocket").filter(|socket| !socket.is_null()) else { continue };
        if socket.get("host").and_then(Value::as_str).is_some_and(|host| !host.is_empty()) {
            continue; // Another host's port is not ours to judge.
        }
        let Some(port) = socket.get("port").and_then(|port| number(port, &ports)) else {
            warnings.push(format!(
                "the {kind} of container {name} names a port that the container does not declare, so it stays as it is: declare it in ports"
            ));
            continue;
        };
        if skipped.contains(&port) {
            continue;
        }
        probe.remove("tcpSocket");
        let path = format!("/probe/tcp/{port}");
        probe
            .insert("httpGet".into(), json!({ "path": path, "port": names::METRICS_PORT, "scheme": "HTTP" }));
    }
}

/// A port by number, or by the name that the container gives it.
fn number(port: &Value, ports: &Value) -> Option<u16> {
    let number = match port {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => match text.parse::<u64>() {
            Ok(number) => Some(number),
            Err(_) => ports
                .as_array()?
                .iter()
                .find(|p| p.get("name").and_then(Value::as_str) == Some(text))?
                .get("containerPort")?
                .as_u64(),
        },
        _ => None,
    };
    number.and_then(|number| u16::try_from(number).ok()).filter(|number| *number > 0)
}
