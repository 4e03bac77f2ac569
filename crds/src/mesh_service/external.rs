//! A target outside of the cluster: hosts, ports, endpoints, and TLS that proxies speak in the application's place.

use super::AppProtocol;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A service outside of the cluster. In the mesh's own namespace (weft-system) it is there for the whole mesh, otherwise for
/// the pods of its namespace; of two that register the same, the namespace's own counts there. A connection to an address
/// that is nothing of the cluster means this service by what it says of itself: by SNI where a port's protocol is Tls, by the
/// authority (Host) of each request where it is Http1, Http2 or Grpc, and by the address where it is Tcp. It goes to an
/// endpoint of this service, never to another address that the application chose.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new(
        "(has(self.endpoints) && size(self.endpoints) > 0) || (size(self.hosts) == 1 && !self.hosts[0].startsWith('*.'))"
    ).message(
        "without endpoints the host itself is resolved, so target.external.hosts must name exactly one, without *.: name endpoints, or write one MeshService for each host"
    )
)]
#[x_kube(
    validation = Rule::new(
        "self.ports.all(p, !has(p.tls) || has(p.tls.sni) || has(p.tls.identity) || (size(self.hosts) == 1 && !self.hosts[0].startsWith('*.')))"
    ).message(
        "target.external.ports[].tls needs sni where hosts names several or begins with *.: say which one name the server's certificate is for"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct External {
    /// Names that applications call: `api.example.com`, or `*.example.com` for every name below.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new(
            "self.all(h, size(h) <= 253 && h.matches('^([*][.])?[a-z0-9_]([-a-z0-9_]*[a-z0-9])?([.][a-z0-9_]([-a-z0-9_]*[a-z0-9])?)*$'))"
        ).message(
            "target.external.hosts must be names in lower case such as api.example.com, or *.example.com for all names below: leave out schemes, ports and paths"
        )
    )]
    pub hosts: Vec<ExternalHost>,
    /// Ports that applications call, and what they speak there.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["port".into()]))]
    pub ports: Vec<ExternalPort>,
    /// Where the service is. Default: at the addresses of the one host, which every proxy resolves, and again when their time to
    /// live is over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub endpoints: Vec<ExternalEndpoint>,
}

/// A name of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExternalHost(pub String);

impl JsonSchema for ExternalHost {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ExternalHost".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "minLength": 1, "maxLength": 253 })
    }
}

/// A port of an external service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("!has(self.tls) || self.protocol != 'Tls'").message(
        "target.external.ports[].tls makes the proxy speak TLS, and protocol Tls says that the application does: write what is inside (Http1, Http2, Grpc or Tcp), or remove tls"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct ExternalPort {
    /// The port that applications call.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// What applications speak there, which is how a connection is found to mean this service: `Tls` by SNI; `Http1`, `Http2`
    /// and `Grpc` by the authority; `Tcp` by the address.
    pub protocol: AppProtocol,
    /// The port of the endpoints. Default: the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub target_port: Option<u16>,
    /// The proxy speaks TLS to the endpoints in the application's place. Default: it speaks what the application does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<OriginateTls>,
}

/// TLS that proxies speak to an external service. The server's chain and name, or identity, are always verified.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("!has(self.identity) || (!has(self.sni) && !has(self.caBundle))").message(
        "tls.identity is verified by the bundle of its trust domain and not by a name: remove sni and caBundle, or identity"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct OriginateTls {
    /// The name that the server's certificate must be for, also sent as SNI. Default: the one host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub sni: Option<String>,
    /// Certificates (PEM) of the authorities that may have signed the server's. They are no secret, and stand here so that they
    /// are in force together with the rest. Default: the authorities that browsers trust.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65536))]
    #[x_kube(
        validation = Rule::new("self.contains('-----BEGIN CERTIFICATE-----')").message(
            "target.external.ports[].tls.caBundle holds no certificate: paste the authority's certificates as PEM, each from -----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----"
        )
    )]
    pub ca_bundle: Option<String>,
    /// The endpoints are proxies of a mesh, the own one or another (TrustDomain), and this is who they must prove to be: a whole
    /// SPIFFE id. Proxies then speak mTLS with them, and show who they are themselves. Default: a server of the web, by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(
        validation = Rule::new("self.startsWith('spiffe://')").message(
            "tls.identity is not a SPIFFE id: write it whole, for example spiffe://partner.example/ns/shop/sa/orders"
        )
    )]
    pub identity: Option<String>,
}

/// Where an external service is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExternalEndpoint {
    /// An IP address, or a full name, which every proxy resolves, and again when its time to live is over.
    #[schemars(length(min = 1, max = 253))]
    pub address: String,
    /// Its port. Default: the port's `targetPort`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// 0 to 1000, relative to 100; with 0 it is used only when nothing else is left. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1000))]
    pub weight: Option<u32>,
}
