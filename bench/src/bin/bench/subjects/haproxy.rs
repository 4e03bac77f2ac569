//! haproxy, one thread, connections to servers shared between clients (`http-reuse always`).

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::{Hop, LIMIT, NAME, Speaks, Wire};

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
    let routes: String =
        hop.routes().map(|path| format!("  use_backend out if {{ path_beg {path} }}\n")).collect();
    let (mut log, mut front, mut back) = ("", String::new(), "");
    if hop.everything() {
        log = "  log stdout format raw local0\n";
        front = format!(
            "  option httplog\n  log global\n  stick-table type ip size 100k expire 30s store http_req_rate(1s)\n  http-request track-sc0 src\n  \
             http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt {LIMIT} }}\n  http-request deny unless {{ src 127.0.0.1 }}\n"
        );
        if hop.accepts == Wire::Mtls {
            front += &format!("  http-request deny unless {{ ssl_c_s_dn(cn) -m str {NAME} }}\n");
        }
        back = "  retries 2\n  retry-on conn-failure empty-response 502 503 504\n";
    }
    format!(
        "global\n  nbthread 1\n{log}\
         defaults\n  mode {mode}\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n  timeout http-request 1h\n\
         frontend in\n  bind {listen}{bind}\n{front}{routes}  default_backend out\n\
         backend out\n{reuse}{back}  server next {next}{server}\n"
    )
}
