//! haproxy, one thread, connections to servers shared between clients (`http-reuse always`).

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::{Hop, NAME, Speaks, Wire};

pub(super) fn command(hop: &Hop<'_>, program: &Path) -> Result<Command> {
    let path = hop.write("haproxy.cfg", &config(hop))?;
    let mut command = Command::new(program);
    // In the foreground, and no word at the start.
    command.arg("-db").arg("-q").arg("-f").arg(path);
    Ok(command)
}

fn config(hop: &Hop<'_>) -> String {
    let (listen, next) = (hop.listen, hop.next);
    let pem = hop.certificates.named_pem.display();
    let roots = hop.certificates.named.roots.display();
    let (mode, alpn) = match hop.task.speaks {
        Speaks::Http1 => ("http", " alpn http/1.1"),
        Speaks::Http2 | Speaks::Grpc => ("http", " alpn h2"),
        Speaks::Tcp => ("tcp", ""),
    };
    let plain = match hop.task.speaks {
        Speaks::Http2 | Speaks::Grpc => " proto h2",
        Speaks::Http1 | Speaks::Tcp => "",
    };
    let reuse = if hop.task.speaks == Speaks::Tcp { "" } else { "  http-reuse always\n" };
    let bind = match hop.accepts {
        Wire::Plain => plain.to_owned(),
        Wire::Mtls => {
            format!(" ssl crt {pem} ca-file {roots} verify required ssl-min-ver TLSv1.3{alpn}")
        }
    };
    let server = match hop.calls {
        Wire::Plain => plain.to_owned(),
        Wire::Mtls => format!(
            " ssl crt {pem} ca-file {roots} verify required verifyhost {NAME} sni str({NAME}) ssl-min-ver TLSv1.3{alpn}"
        ),
    };
    format!(
        "global\n  nbthread 1\n\
         defaults\n  mode {mode}\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n  timeout http-request 1h\n\
         frontend in\n  bind {listen}{bind}\n  default_backend out\n\
         backend out\n{reuse}  server next {next}{server}\n"
    )
}
