//! nginx, one process, with pools of kept connections to where it sends. It speaks HTTP/1.1 to upstreams (HTTP/2 came with
//! 1.29, gRPC excepted), and verifies peers by DNS name.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::{Hop, LIMIT, NAME, Speaks, Wire};

pub(super) fn command(hop: &Hop<'_>, program: &Path) -> Result<Command> {
    let path = hop.write("nginx.conf", &config(hop))?;
    let mut command = Command::new(program);
    command.arg("-p").arg(hop.directory).arg("-c").arg(path).arg("-e").arg(hop.directory.join("error.log"));
    Ok(command)
}

fn config(hop: &Hop<'_>) -> String {
    let (listen, next) = (hop.listen, hop.next);
    let files = &hop.certificates.named;
    let (certificate, key, roots) = (files.certificate.display(), files.key.display(), files.roots.display());
    let server_tls = match hop.accepts {
        Wire::Plain => String::new(),
        Wire::Mtls => format!(
            "ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_protocols TLSv1.3;\n\
             ssl_client_certificate {roots}; ssl_verify_client on; ssl_session_cache shared:s:4m;\n"
        ),
    };
    let listen_flags = match (hop.accepts, hop.task.speaks, hop.task.enters == hop.accepts) {
        // gRPC is HTTP/2 all the way; otherwise only where clients come in.
        (Wire::Plain, Speaks::Http2, _) | (Wire::Plain, Speaks::Grpc, _) => " http2",
        (Wire::Mtls, Speaks::Grpc, _) | (Wire::Mtls, Speaks::Http2, true) => " ssl http2",
        (Wire::Plain, _, _) => "",
        (Wire::Mtls, _, _) => " ssl",
    };
    let client_tls = |prefix: &str| match hop.calls {
        Wire::Plain => String::new(),
        Wire::Mtls => format!(
            "{prefix}_ssl_certificate {certificate}; {prefix}_ssl_certificate_key {key}; {prefix}_ssl_protocols TLSv1.3;\n\
             {prefix}_ssl_trusted_certificate {roots}; {prefix}_ssl_verify on; {prefix}_ssl_name {NAME}; {prefix}_ssl_server_name on;\n"
        ),
    };
    let scheme = match hop.calls {
        Wire::Plain => "http",
        Wire::Mtls => "https",
    };
    let everything = match (hop.everything(), hop.accepts) {
        (false, _) => String::new(),
        (true, accepts) => {
            let subject = if accepts == Wire::Mtls {
                "if ($ssl_client_s_dn != \"CN=bench.local\") { return 403; }\n"
            } else {
                ""
            };
            format!(
                "proxy_next_upstream error timeout http_502 http_503 http_504; proxy_next_upstream_tries 3; proxy_read_timeout 15s;\n\
                 limit_req zone=all burst=10000 nodelay; limit_conn conn 10000; allow 127.0.0.1; deny all;\n{subject}"
            )
        }
    };
    let log = if hop.everything() {
        // The most that `rate` takes is far above what one core answers.
        format!(
            "access_log /dev/stdout; limit_req_zone $remote_addr zone=all:1m rate={LIMIT}r/s; limit_conn_zone $remote_addr zone=conn:1m;"
        )
    } else {
        "access_log off;".to_owned()
    };
    let location = match hop.task.speaks {
        Speaks::Tcp => return stream(hop, &server_tls, &client_tls("proxy")),
        Speaks::Grpc => {
            let scheme = if hop.calls == Wire::Mtls { "grpcs" } else { "grpc" };
            format!(
                "grpc_pass {scheme}://next; grpc_read_timeout 1h; grpc_send_timeout 1h;\n{}",
                client_tls("grpc")
            )
        }
        Speaks::Http1 | Speaks::Http2 => format!(
            "proxy_pass {scheme}://next; proxy_http_version 1.1; proxy_set_header Connection \"\"; \
             proxy_set_header Host $http_host; proxy_max_temp_file_size 0;\n{}{everything}",
            client_tls("proxy")
        ),
    };
    let mut locations = format!("location / {{\n{location}}}\n");
    for path in hop.routes() {
        locations += &format!("location {path} {{\n{location}}}\n");
    }
    let connections = 2 * hop.task.connections + 100;
    format!(
        "daemon off; master_process off; worker_processes 1; pid nginx.pid;\n\
         events {{ worker_connections {connections}; }}\n\
         http {{\n\
         {log} keepalive_requests 1000000000; keepalive_timeout 3600s; tcp_nodelay on; client_max_body_size 0;\n\
         client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;\n\
         upstream next {{ server {next}; keepalive 256; keepalive_requests 1000000000; }}\n\
         server {{\nlisten {listen}{listen_flags};\n{server_tls}{locations}}}\n}}\n"
    )
}

/// Opaque bytes are another module's business, which Debian packages apart.
fn stream(hop: &Hop<'_>, server_tls: &str, client_tls: &str) -> String {
    let ssl = if hop.accepts == Wire::Mtls { " ssl" } else { "" };
    let proxy_ssl = if hop.calls == Wire::Mtls { "proxy_ssl on; " } else { "" };
    format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n\
         daemon off; master_process off; worker_processes 1; pid nginx.pid;\n\
         events {{ worker_connections {}; }}\n\
         stream {{\n\
         server {{\nlisten {}{ssl};\n{server_tls}proxy_pass {}; {proxy_ssl}proxy_timeout 1h;\n{client_tls}}}\n}}\n",
        2 * hop.task.connections + 100,
        hop.listen,
        hop.next
    )
}
