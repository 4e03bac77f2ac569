//! Weft in static mode, one worker. Its policy is the default one of a service nobody has written a policy for.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use weft_bench::certificates::{Files, identity};

use super::{Hop, Speaks, Wire};

pub(super) fn command(hop: &Hop<'_>, program: &Path) -> Result<Command> {
    let path = hop.write("weft.yaml", &config(hop))?;
    let mut command = Command::new(program);
    command.arg("--config").arg(path).env_clear();
    Ok(command)
}

fn config(hop: &Hop<'_>) -> String {
    let mut text = "workers: 1\nlog: warn\naccessLog: false\nmaxConnections: 30000\n".to_owned();
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
