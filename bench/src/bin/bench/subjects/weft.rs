//! Weft in static mode, one worker. Its policy is the default one of a service nobody has written a policy for.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use weft_bench::certificates::{Files, identity};

use super::{Hop, LIMIT, Speaks, TRACED, Wire};

pub(super) fn command(hop: &Hop<'_>, program: &Path) -> Result<Command> {
    let path = hop.write("weft.yaml", &config(hop))?;
    let mut command = Command::new(program);
    command.arg("--config").arg(path).env_clear();
    Ok(command)
}

fn config(hop: &Hop<'_>) -> String {
    let mut text = format!(
        "workers: 1\nlog: warn\naccessLog: {}\nmaxConnections: {}\n",
        hop.everything(),
        hop.task.connections.max(10_000) + 100
    );
    if let Some(sink) = hop.sink {
        text += &format!("tracing: {{endpoint: \"http://{sink}\", sampling: {TRACED}}}\n");
    }
    match (hop.accepts, hop.calls) {
        (Wire::Mtls, _) => text += &certificate(&hop.certificates.back),
        (_, Wire::Mtls) => text += &certificate(&hop.certificates.front),
        (Wire::Plain, Wire::Plain) => {}
    }
    let protocol = match hop.task.speaks {
        Speaks::Http1 => "Http1",
        Speaks::Http2 | Speaks::Grpc => "Http2",
        Speaks::Tcp => "Tcp",
    };
    match hop.accepts {
        Wire::Mtls => {
            text += &format!(
                "listeners: {{inbound: [{{address: \"{}\", application: \"{}\", mtls: Strict, protocol: {protocol}}}]}}\n",
                hop.listen, hop.next
            );
            if hop.everything() {
                text += &format!(
                    "workload: {{inboundRules: [{{port: {}, service: \"bench/app:80\", rules: [{{name: limits/all, \
                     rateLimit: {{requests: {LIMIT}, perMs: 1000, key: {{identity: true}}}}}}]}}]}}\n",
                    hop.next.port()
                );
            }
        }
        Wire::Plain => {
            let identity = match hop.calls {
                Wire::Mtls => format!(", identity: \"{}\"", identity("back")),
                Wire::Plain => String::new(),
            };
            text += &format!(
                "listeners: {{outbound: [{{address: \"{}\", service: \"bench/app:80\"}}]}}\n\
                 services:\n  - namespace: bench\n    name: app\n    port: 80\n    protocol: {protocol}\n    clusters:\n      \
                 - name: bench/app:80\n        endpoints: [{{address: \"{}\"{identity}}}]\n",
                hop.listen, hop.next
            );
            if hop.everything() {
                text += "        breaker: {maxConnections: 10000, maxPendingRequests: 10000, maxConcurrentRequests: 10000, maxRetries: 100}\n        \
                         outlier: {consecutiveFailures: 5, baseEjectionMs: 1000, maxEjectionMs: 10000, maxEjectedPercent: 50}\n    \
                         routes: [{name: policy/all, timeoutMs: 15000, retry: {attempts: 2, on: [ConnectFailure, Reset, GatewayError], \
                         budgetPercent: 20, budgetMinPerSecond: 10}, backends: [{cluster: \"bench/app:80\", weight: 1}]}]\n";
            }
            let routes: String = hop
                .routes()
                .map(|path| {
                    // By whole segments, without the slash at the end.
                    let path = path.trim_end_matches('/');
                    format!(
                        "      - {{name: \"policy{path}\", matches: [{{path: {{prefix: \"{path}\"}}}}], \
                         backends: [{{cluster: \"bench/app:80\", weight: 1}}]}}\n"
                    )
                })
                .collect();
            if !routes.is_empty() {
                text = text + "    routes:\n" + &routes;
            }
        }
    }
    text
}

fn certificate(files: &Files) -> String {
    format!(
        "identity: {{certificate: \"{}\", key: \"{}\", roots: \"{}\"}}\n",
        files.certificate.display(),
        files.key.display(),
        files.roots.display()
    )
}
