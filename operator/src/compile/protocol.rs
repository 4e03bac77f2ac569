//! What a port speaks: `appProtocol`, then the port's name, then the MeshService, then nobody knows and the proxy looks.
//! Sources: Kubernetes "Application protocol" of Services (kubernetes.io/h2c, /ws, /wss), IANA service names.

use weft_api::v1::Protocol;
use weft_crds::mesh_service::AppProtocol;

use crate::index::{Service, ServicePort};

/// The DNS port: its TCP side is never HTTP.
const DNS: u16 = 53;

/// Protocol of a port of a Service.
pub fn of_port(port: &ServicePort, described: Option<AppProtocol>) -> Protocol {
    port.app_protocol
        .as_deref()
        .and_then(by_app_protocol)
        .or_else(|| by_name(&port.name))
        .or_else(|| described.map(by_resource))
        .unwrap_or(if port.port == DNS { Protocol::Tcp } else { Protocol::Detect })
}

/// Protocol that a MeshService says.
pub fn described(space: &crate::index::Space, service: &Service) -> Option<AppProtocol> {
    space.described(&service.key.name)?.spec.connection.as_ref()?.protocol
}

fn by_app_protocol(word: &str) -> Option<Protocol> {
    let word = word.to_ascii_lowercase();
    match word.strip_prefix("kubernetes.io/").unwrap_or(&word) {
        "ws" => Some(Protocol::Http1),
        "wss" => Some(Protocol::Tls),
        plain => by_word(plain),
    }
}

/// By the name of a port: the whole of it, or what stands before the first dash (`http-admin`).
pub fn by_name(name: &str) -> Option<Protocol> {
    let name = name.to_ascii_lowercase();
    by_word(name.split('-').next().unwrap_or_default())
}

fn by_word(word: &str) -> Option<Protocol> {
    Some(match word {
        "http" | "http1" | "ws" => Protocol::Http1,
        "http2" | "h2c" | "grpc" => Protocol::Http2,
        "https" | "tls" | "grpcs" | "wss" => Protocol::Tls,
        "tcp" | "dns" | "mongo" | "mongodb" | "mysql" | "postgres" | "postgresql" | "redis" | "kafka"
        | "amqp" | "smtp" | "ftp" | "ssh" | "ldap" | "memcached" | "cassandra" | "zookeeper" | "mqtt"
        | "nats" => Protocol::Tcp,
        _ => return None,
    })
}

const fn by_resource(protocol: AppProtocol) -> Protocol {
    match protocol {
        AppProtocol::Http1 => Protocol::Http1,
        AppProtocol::Http2 | AppProtocol::Grpc => Protocol::Http2,
        AppProtocol::Tls => Protocol::Tls,
        AppProtocol::Tcp => Protocol::Tcp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::TargetPort;

    fn port(name: &str, app: Option<&str>, number: u16) -> ServicePort {
        ServicePort {
            name: name.into(),
            port: number,
            target: TargetPort::Number(number),
            app_protocol: app.map(Into::into),
        }
    }

    #[test]
    fn app_protocol_counts_before_name_before_mesh_service() {
        assert_eq!(of_port(&port("http", Some("tcp"), 80), Some(AppProtocol::Grpc)), Protocol::Tcp);
        assert_eq!(of_port(&port("http-web", None, 80), Some(AppProtocol::Grpc)), Protocol::Http1);
        assert_eq!(of_port(&port("web", None, 80), Some(AppProtocol::Grpc)), Protocol::Http2);
        assert_eq!(of_port(&port("web", Some("example.com/own"), 80), None), Protocol::Detect);
    }

    #[test]
    fn the_kubernetes_words_are_known() {
        for (word, protocol) in [
            ("kubernetes.io/h2c", Protocol::Http2),
            ("kubernetes.io/ws", Protocol::Http1),
            ("kubernetes.io/wss", Protocol::Tls),
            ("grpc", Protocol::Http2),
            ("HTTPS", Protocol::Tls),
        ] {
            assert_eq!(of_port(&port("", Some(word), 80), None), protocol, "{word}");
        }
    }

    #[test]
    fn dns_over_tcp_is_never_peeked() {
        assert_eq!(of_port(&port("dns-tcp", None, 53), None), Protocol::Tcp);
        assert_eq!(of_port(&port("", None, 53), None), Protocol::Tcp);
        assert_eq!(of_port(&port("httpd", None, 80), None), Protocol::Detect);
    }
}
