//! `weft plaintext`: who calls in plaintext, and so would be refused once Strict is switched on. Asks the proxies whom they have
//! seen, and says which pods and nodes those addresses are now. It changes nothing.

use crate::cluster::list;
use crate::output::{self, Format};
use crate::{Global, Scope, admin, mesh_pod};
use clap::Args;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::SystemTime;
use weft_api::names;

/// Flags of `weft plaintext`.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    scope: Scope,
}

/// Proxies asked at the same time.
const CONCURRENCY: usize = 8;

/// What a proxy says.
#[derive(Debug, Deserialize)]
struct Answer {
    since_unix_s: u64,
    forgotten: u64,
    callers: Vec<Caller>,
}

#[derive(Debug, Deserialize)]
struct Caller {
    address: IpAddr,
    port: u16,
    connections: u64,
    last_unix_s: u64,
}

/// A row.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Row {
    namespace: String,
    pod: String,
    port: u16,
    caller: String,
    address: IpAddr,
    connections: u64,
    last_unix_s: u64,
    remedy: &'static str,
}

/// Everything that is printed.
#[derive(Debug, Serialize)]
struct Report {
    callers: Vec<Row>,
    /// Proxies that could not be asked, and why.
    unknown: Vec<String>,
    /// Since when the proxy that began last has been looking.
    since_unix_s: Option<u64>,
}

/// Who an address is.
enum Whose<'a> {
    Pod(&'a Pod),
    Node(String),
}

/// Asks and prints. Exits 1 when somebody would be refused, and when that is not known of a proxy.
pub async fn run(client: Client, global: &Global, options: Options) -> anyhow::Result<ExitCode> {
    let scope: Api<Pod> = options.scope.api(&client);
    let injected = ListParams::default().labels(&format!("{}={}", names::INJECTED, names::ENABLED));
    let asked: Vec<Pod> = list(&scope, &injected).await?.into_iter().filter(mesh_pod::is_injected).collect();
    let answers: Vec<_> = futures::stream::iter(&asked)
        .map(|pod| async {
            let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
            let api = Api::namespaced(client.clone(), &namespace);
            let answer = admin::get(&api, &name, "/plaintext").await;
            (namespace, name, answer.and_then(|text| Ok(serde_json::from_str::<Answer>(&text)?)))
        })
        .buffer_unordered(CONCURRENCY)
        .collect()
        .await;
    // Who may not list everything still gets addresses.
    let pods = list(&Api::<Pod>::all(client.clone()), &ListParams::default()).await.unwrap_or_default();
    let nodes = list_nodes(&client).await;
    let report = report(answers, &owners(&pods, &nodes));
    match global.output {
        Format::Json => output::json(&report)?,
        Format::Table => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            print!("{}", text(&report, asked.len(), now));
        }
    }
    let clear = report.callers.is_empty() && report.unknown.is_empty();
    Ok(if clear { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn list_nodes(client: &Client) -> Vec<Node> {
    let api: Api<Node> = Api::all(client.clone());
    api.list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default()
}

fn owners<'a>(pods: &'a [Pod], nodes: &[Node]) -> HashMap<IpAddr, Whose<'a>> {
    let mut all = HashMap::new();
    for pod in pods {
        let status = pod.status.as_ref();
        let on_host = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
        if on_host || matches!(mesh_pod::phase(pod), "Succeeded" | "Failed") {
            continue;
        }
        let ips = status.and_then(|status| status.pod_ips.as_deref()).unwrap_or_default();
        for ip in ips.iter().filter_map(|ip| ip.ip.parse::<IpAddr>().ok()) {
            all.insert(ip, Whose::Pod(pod));
        }
    }
    for node in nodes {
        let addresses =
            node.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
        for ip in addresses.iter().filter_map(|address| address.address.parse::<IpAddr>().ok()) {
            all.insert(ip, Whose::Node(node.name_any()));
        }
    }
    all
}

fn report(
    answers: Vec<(String, String, anyhow::Result<Answer>)>,
    owners: &HashMap<IpAddr, Whose<'_>>,
) -> Report {
    let mut report = Report { callers: Vec::new(), unknown: Vec::new(), since_unix_s: None };
    for (namespace, pod, answer) in answers {
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                report.unknown.push(format!("{namespace}/{pod}: {error:#}"));
                continue;
            }
        };
        report.since_unix_s = report.since_unix_s.max(Some(answer.since_unix_s));
        if answer.forgotten > 0 {
            let more = answer.forgotten;
            report.unknown.push(format!("{namespace}/{pod}: {more} callers more than it can remember"));
        }
        report.callers.extend(answer.callers.into_iter().map(|caller| {
            let (who, remedy) = named(owners.get(&caller.address));
            Row {
                namespace: namespace.clone(),
                pod: pod.clone(),
                port: caller.port,
                caller: who,
                address: caller.address,
                connections: caller.connections,
                last_unix_s: caller.last_unix_s,
                remedy,
            }
        }));
    }
    report.callers.sort_by(|a, b| {
        (&a.namespace, &a.pod, a.port, a.address).cmp(&(&b.namespace, &b.pod, b.port, b.address))
    });
    report.unknown.sort();
    report
}

fn named(whose: Option<&Whose<'_>>) -> (String, &'static str) {
    match whose {
        Some(Whose::Pod(pod)) => {
            let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
            let remedy = if mesh_pod::is_injected(pod) {
                "it has a proxy that this call goes past: see its annotations weft.dev/skip-outbound-*"
            } else {
                "bring it into the mesh: inject its namespace, and restart it"
            };
            (name, remedy)
        }
        Some(Whose::Node(name)) => (
            format!("node {name}"),
            "a pod on the host's network, a NodePort, or a probe that the pod does not declare: portLevelMtls for its port",
        ),
        None => (
            "-".to_owned(),
            "outside of the cluster, or gone: portLevelMtls for its port, or let it come through the mesh",
        ),
    }
}

fn text(report: &Report, asked: usize, now: u64) -> String {
    let mut out = String::new();
    if !report.callers.is_empty() {
        let rows: Vec<Vec<String>> = report
            .callers
            .iter()
            .map(|row| {
                vec![
                    row.namespace.clone(),
                    row.pod.clone(),
                    row.port.to_string(),
                    row.caller.clone(),
                    row.address.to_string(),
                    row.connections.to_string(),
                    ago(now.saturating_sub(row.last_unix_s)),
                    row.remedy.to_owned(),
                ]
            })
            .collect();
        let heading =
            ["NAMESPACE", "POD", "PORT", "CALLER", "ADDRESS", "CONNECTIONS", "LAST", "BEFORE STRICT"];
        out += &output::table(&heading, &rows);
    }
    for unknown in &report.unknown {
        out += &format!("not known: {unknown}\n");
    }
    let since = report.since_unix_s.map_or_else(String::new, |since| {
        format!(" (all of them have been looking for {})", ago(now.saturating_sub(since)))
    });
    out += &match report.callers.len() {
        0 => format!("{asked} proxies{since} have served nobody in plaintext whom Strict would refuse\n"),
        n => format!("{n} callers of {asked} proxies{since} would be refused under Strict\n"),
    };
    out
}

fn ago(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, ip: &str, more: serde_json::Value) -> Pod {
        let mut object = json!({ "metadata": { "namespace": "old", "name": name }, "spec": { "containers": [] },
            "status": { "phase": "Running", "podIPs": [{ "ip": ip }] } });
        json_merge(&mut object, more);
        serde_json::from_value(object).unwrap()
    }

    fn json_merge(into: &mut serde_json::Value, more: serde_json::Value) {
        for (key, value) in more.as_object().into_iter().flatten() {
            into[key] = value.clone();
        }
    }

    fn answer(callers: serde_json::Value, forgotten: u64) -> anyhow::Result<Answer> {
        Ok(serde_json::from_value(
            json!({ "since_unix_s": 1000, "forgotten": forgotten, "callers": callers }),
        )?)
    }

    #[test]
    fn each_caller_is_named_with_what_to_do_before_strict() {
        let pods = [
            pod("legacy", "10.0.0.5", json!({})),
            pod("scraper", "192.0.2.1", json!({ "spec": { "hostNetwork": true, "containers": [] } })),
        ];
        let nodes: Vec<Node> = serde_json::from_value(json!([{ "metadata": { "name": "n1" },
            "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }, { "type": "Hostname", "address": "n1" }] } }]))
        .unwrap();
        let owners = owners(&pods, &nodes);
        let seen = json!([
            { "address": "10.0.0.5", "port": 80, "connections": 3, "last_unix_s": 1990 },
            { "address": "192.0.2.1", "port": 80, "connections": 1, "last_unix_s": 1500 },
            { "address": "203.0.113.7", "port": 81, "connections": 1, "last_unix_s": 1500 },
        ]);
        let answers = vec![
            ("shop".to_owned(), "back-1".to_owned(), answer(seen, 0)),
            ("shop".to_owned(), "front-1".to_owned(), answer(json!([]), 2)),
            ("shop".to_owned(), "gone".to_owned(), Err(anyhow::anyhow!("port-forward"))),
        ];
        let report = report(answers, &owners);
        let brief: Vec<_> = report.callers.iter().map(|row| (row.port, row.caller.as_str())).collect();
        assert_eq!(brief, [(80, "old/legacy"), (80, "node n1"), (81, "-")]);
        assert_eq!(report.unknown.len(), 2, "{:?}", report.unknown);
        let text = text(&report, 3, 2000);
        assert!(text.contains("bring it into the mesh") && text.contains("10s"), "{text}");
        assert!(text.ends_with("3 callers of 3 proxies (all of them have been looking for 16m) would be refused under Strict\n"), "{text}");
    }

    #[test]
    fn nobody_is_said_so() {
        let report =
            report(vec![("shop".to_owned(), "back-1".to_owned(), answer(json!([]), 0))], &HashMap::new());
        assert!(text(&report, 1, 1060).contains("have served nobody in plaintext"));
    }
}
