//! Envoy with one worker. Between two hops it verifies the other side's SPIFFE id, as Istio's do.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};
use weft_bench::certificates::{Files, identity};

use super::{Hop, LIMIT, Speaks, TRACED, Wire};

pub(super) fn command(hop: &Hop<'_>, program: &Path, http2_between: bool) -> Result<Command> {
    let path = hop.write("envoy.json", &format!("{:#}", config(hop, http2_between)))?;
    let mut command = Command::new(program);
    command.arg("-c").arg(path).args(["--concurrency", "1", "--disable-hot-restart", "-l", "warn"]);
    Ok(command)
}

fn config(hop: &Hop<'_>, http2_between: bool) -> Value {
    let certificates = hop.certificates;
    let spoken = match hop.task.speaks {
        Speaks::Http1 => Spoken::Http1,
        Speaks::Http2 | Speaks::Grpc => Spoken::Http2,
        Speaks::Tcp => Spoken::Tcp,
    };
    let on = |wire| if wire == Wire::Mtls && http2_between { Spoken::Http2 } else { spoken };
    let mut listener = json!({
        "name": "in",
        "address": address(hop.listen),
        "filter_chains": [{"filters": [filter(hop, on(hop.accepts))]}],
    });
    if hop.accepts == Wire::Mtls {
        listener["filter_chains"][0]["transport_socket"] = json!({
            "name": "tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "require_client_certificate": true,
                "common_tls_context": tls(&certificates.back, "front", on(hop.accepts)),
            }
        });
    }
    let unlimited =
        json!({"max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000});
    let mut cluster = json!({
        "name": "next",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [unlimited]},
        "load_assignment": {
            "cluster_name": "next",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(hop.next)}}]}],
        },
    });
    if hop.everything() {
        cluster["outlier_detection"] = json!({"consecutive_5xx": 5, "base_ejection_time": "1s"});
    }
    if let Some(version) = on(hop.calls).options() {
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {version: {}},
            }
        });
    }
    if hop.calls == Wire::Mtls {
        cluster["transport_socket"] = json!({
            "name": "tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": tls(&certificates.front, "back", on(hop.calls)),
            }
        });
    }
    let clusters = [Some(cluster), hop.sink.map(sink)];
    let clusters: Vec<Value> = clusters.into_iter().flatten().collect();
    json!({"static_resources": {"listeners": [listener], "clusters": clusters}})
}

/// What is on one side of a proxy.
#[derive(Clone, Copy, PartialEq)]
enum Spoken {
    Http1,
    Http2,
    Tcp,
}

impl Spoken {
    fn options(self) -> Option<&'static str> {
        match self {
            Self::Http1 => Some("http_protocol_options"),
            Self::Http2 => Some("http2_protocol_options"),
            Self::Tcp => None,
        }
    }
}

fn filter(hop: &Hop<'_>, spoken: Spoken) -> Value {
    let codec = match spoken {
        Spoken::Http1 => "HTTP1",
        Spoken::Http2 => "HTTP2",
        Spoken::Tcp => {
            return json!({
                "name": "tcp",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                    "stat_prefix": "in",
                    "cluster": "next",
                }
            });
        }
    };
    let mut route = json!({"cluster": "next", "timeout": "0s"});
    let mut filters = Vec::new();
    if hop.everything() {
        route = json!({
            "cluster": "next",
            "timeout": "15s",
            "retry_policy": {"retry_on": "connect-failure,reset,gateway-error", "num_retries": 2},
        });
        filters = everything(hop);
    }
    filters.push(json!({
        "name": "router",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
    }));
    let to = |prefix: &str| json!({"match": {"prefix": prefix}, "route": route});
    let routes: Vec<Value> = hop.routes().map(|path| to(&path)).chain([to("/")]).collect();
    let mut http = json!({
        "name": "http",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "in",
            "codec_type": codec,
            "route_config": {
                "virtual_hosts": [{
                    "name": "all",
                    "domains": ["*"],
                    "routes": routes,
                }]
            },
            "http_filters": filters,
            "access_log": if hop.everything() { access_log() } else { json!([]) },
        }
    });
    if let Some(sink) = hop.sink {
        http["typed_config"]["tracing"] = tracing(sink);
    }
    http
}

/// As many as Weft tells of, to the same place in the same protocol; spans are of every hop, as in a mesh.
fn tracing(sink: SocketAddr) -> Value {
    json!({
        "random_sampling": {"value": TRACED},
        "spawn_upstream_span": false,
        "provider": {
            "name": "envoy.tracers.opentelemetry",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
                "service_name": "bench",
                "http_service": {
                    "http_uri": {"uri": format!("http://{sink}/v1/traces"), "cluster": "traces", "timeout": "1s"},
                },
            },
        },
    })
}

fn sink(sink: SocketAddr) -> Value {
    json!({
        "name": "traces",
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": "traces",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(sink)}}]}],
        },
    })
}

fn access_log() -> Value {
    json!([{
        "name": "stdout",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog"},
    }])
}

/// A limit; and on the called side, that the caller is who may call.
fn everything(hop: &Hop<'_>) -> Vec<Value> {
    let all = json!({"default_value": {"numerator": 100, "denominator": "HUNDRED"}});
    let mut filters = vec![json!({
        "name": "limit",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            "stat_prefix": "limit",
            "token_bucket": {"max_tokens": LIMIT, "tokens_per_fill": LIMIT, "fill_interval": "1s"},
            "filter_enabled": all,
            "filter_enforced": all,
        }
    })];
    if hop.accepts == Wire::Mtls {
        let caller = json!({"authenticated": {"principal_name": {"exact": identity("front")}}});
        filters.push(json!({
            "name": "rbac",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
                "rules": {"action": "ALLOW", "policies": {"callers": {"permissions": [{"any": true}], "principals": [caller]}}},
            }
        }));
    }
    filters
}

fn tls(own: &Files, other: &str, spoken: Spoken) -> Value {
    let protocols = match spoken {
        Spoken::Http1 => json!(["http/1.1"]),
        Spoken::Http2 => json!(["h2"]),
        Spoken::Tcp => json!([]),
    };
    json!({
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{
            "certificate_chain": {"filename": own.certificate},
            "private_key": {"filename": own.key},
        }],
        "validation_context": {
            "trusted_ca": {"filename": own.roots},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": identity(other)}}],
        },
        "alpn_protocols": protocols,
    })
}

fn address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip(), "port_value": address.port()}})
}
