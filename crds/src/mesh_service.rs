//! MeshService: what a service is. Subsets, balancing, health, breakers, connections. At most one per Service.

use crate::common::Duration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;

mod balancer;
mod external;

pub use crate::breaking::AdaptiveConcurrency;
pub use balancer::{
    Balancer, BalancerPolicy, Boundary, EndpointWeight, Hash, HashCookie, Locality, LocalityMode, Priority,
    SlowStart,
};
pub use external::{External, ExternalEndpoint, ExternalHost, ExternalPort, OriginateTls};

/// How a Service is balanced, protected and divided into subsets; or what a service outside of the cluster is. At most one
/// MeshService per Service: a second one is refused. Without any, the defaults that are named at each field hold.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "MeshService",
    namespaced,
    status = "MeshServiceStatus"
)]
#[kube(derive = "PartialEq", shortname = "msvc", category = "weft")]
#[kube(
    doc = "What a Service is to the mesh: its subsets, and how it is balanced and protected. At most one per Service."
)]
#[kube(printcolumn = r#"{"name":"Service", "type":"string", "jsonPath":".spec.target.service"}"#)]
#[kube(
    printcolumn = r#"{"name":"External", "type":"string", "jsonPath":".spec.target.external.hosts[0]", "description":"the first host of a service outside of the cluster"}"#
)]
#[kube(
    printcolumn = r#"{"name":"Endpoints", "type":"string", "jsonPath":".status.endpoints", "description":"ready/total endpoints"}"#
)]
#[kube(
    printcolumn = r#"{"name":"In-Mesh", "type":"integer", "jsonPath":".status.inMesh", "description":"endpoints that run a Weft proxy"}"#
)]
#[kube(
    printcolumn = r#"{"name":"Ejected", "type":"integer", "jsonPath":".status.ejected", "description":"endpoints that at least one client proxy holds ejected, or finds unhealthy"}"#
)]
#[kube(
    printcolumn = r#"{"name":"Applied", "type":"string", "jsonPath":".status.applied", "description":"proxies that have this in force / connected proxies that need it"}"#
)]
#[kube(
    printcolumn = r#"{"name":"Accepted", "type":"string", "jsonPath":".status.conditions[?(@.type==\"Accepted\")].status"}"#
)]
#[kube(printcolumn = r#"{"name":"Age", "type":"date", "jsonPath":".metadata.creationTimestamp"}"#)]
#[x_kube(
    validation = Rule::new(
        "!has(self.target.external) || ((!has(self.subsets) || size(self.subsets) == 0) && (!has(self.balancer) || ((!has(self.balancer.weights) || size(self.balancer.weights) == 0) && (!has(self.balancer.failover) || size(self.balancer.failover) == 0) && !has(self.balancer.locality))))"
    ).message(
        "subsets, balancer.weights, failover and locality choose pods by their labels and zones, and an external service has none: remove them, and give target.external.endpoints[].weight where weights are wanted"
    )
)]
#[x_kube(
    validation = Rule::new("!has(self.target.external) || !has(self.connection) || !has(self.connection.protocol)").message(
        "connection.protocol is for Services: an external service says at each of target.external.ports what it speaks, so remove it here"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct MeshServiceSpec {
    /// The Service of the same namespace, or the service outside of the cluster, that this describes.
    pub target: Target,
    /// Named parts of the service, chosen by pod labels, that TrafficPolicies can send to. A pod may be in several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub subsets: Vec<Subset>,
    /// How an endpoint is chosen for each request (or connection, for opaque TCP).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balancer: Option<Balancer>,
    /// When an endpoint is taken out of balancing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// Bounds on what one client proxy may have open towards this service; what goes beyond is refused at once with a reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<CircuitBreaker>,
    /// Connections to the service's endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<Connection>,
    /// A limit on requests under way that follows how long they take. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptive_concurrency: Option<AdaptiveConcurrency>,
}

/// A Service by name, or a service outside of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("has(self.service) != has(self.external)").message(
        "target names neither or both of service and external: write exactly one, service for a Service of this namespace, external for what is outside of the cluster"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Name of a Service in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message(
            "target.service is not the name of a Service: write only its name, in lower-case letters, digits and dashes, without a namespace or domain"
        )
    )]
    pub service: Option<String>,
    /// A service outside of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<External>,
}

/// What the key of an external service ends with. Names of Services have no dots, so it can never be that of one.
const EXTERNAL_SUFFIX: &str = ".external";

impl Target {
    /// What this describes, within its namespace: the name of the Service, or, if it is external, that of the MeshService with a
    /// suffix that no Service's name can have.
    #[must_use]
    pub fn key<'a>(&'a self, mesh_service: &str) -> Cow<'a, str> {
        match &self.service {
            Some(service) => Cow::Borrowed(service),
            None => Cow::Owned(format!("{mesh_service}{EXTERNAL_SUFFIX}")),
        }
    }

    /// The MeshService's name, if the key is that of an external service.
    #[must_use]
    pub fn external_of(key: &str) -> Option<&str> {
        key.strip_suffix(EXTERNAL_SUFFIX)
    }
}

/// A named part of the service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Subset {
    /// Unique within the MeshService. TrafficPolicies name it in `split[].subset`.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message(
            "subsets[].name must be lower-case letters, digits and dashes, and begin and end with a letter or digit, for example v1"
        )
    )]
    pub name: String,
    /// Pods of the service that carry all of these labels.
    #[schemars(schema_with = "crate::common::labels_schema")]
    pub labels: BTreeMap<String, String>,
}

/// Health of endpoints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// Passive: judged by the answers to real requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier: Option<Outlier>,
    /// Active: judged by requests that are made for it. Default: none are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<ActiveCheck>,
}

/// Checks of every endpoint, made by the proxies of some of those that call the service, in the same way as their requests (mTLS,
/// when the endpoint is in the mesh). An endpoint that fails them gets requests only when nothing else is left.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("[has(self.http), has(self.grpc), has(self.tcp)].filter(given, given).size() == 1").message(
        "health.active needs exactly one of http, grpc and tcp: say what the endpoints are asked, for example http: {path: /healthz}"
    )
)]
#[x_kube(
    validation = Rule::new("duration(has(self.timeout) ? self.timeout : '1s') <= duration(has(self.interval) ? self.interval : '10s')").message(
        "health.active.timeout (1s when not given) must not be longer than interval (10s when not given): lower timeout or raise interval"
    )
)]
#[x_kube(
    validation = Rule::new("!has(self.interval) || duration(self.interval) >= duration('100ms')").message(
        "health.active.interval must be at least 100ms: checks are not to be a load; take health.outlier for what has to be noticed sooner"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct ActiveCheck {
    /// A GET over HTTP/1.1 without TLS of the application's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheck>,
    /// A call of `grpc.health.v1.Health/Check`; `SERVING` passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcCheck>,
    /// A connection: `tcp: {}`. It passes when the application accepts it, and does not close it at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpCheck>,
    /// Port of the pods that is checked. Default: the one that requests go to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<u16>,
    /// From one check of an endpoint to the next, by each of its checkers; at least 100ms. Default: 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
    /// Until a check without an answer has failed; not longer than `interval`. Default: 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Failures in a row until an endpoint is unhealthy. Default: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub unhealthy_threshold: Option<u32>,
    /// Successes in a row until it is healthy again. Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub healthy_threshold: Option<u32>,
    /// How far each interval is shortened or lengthened by chance, in percent, so that checks do not come together. Default: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub jitter: Option<u32>,
    /// Callers that check one endpoint at most; what most of them find holds for all other callers. Default: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub max_checkers: Option<u32>,
}

/// A GET over HTTP/1.1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpCheck {
    /// Path, with a query if there is one; begins with a slash.
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(
        validation = Rule::new("self.matches('^/[!-~]*$')").message(
            "health.active.http.path must begin with a slash and be printable ASCII without spaces: write for example /healthz, and escape the rest as in a URL"
        )
    )]
    pub path: String,
    /// Statuses that pass. 429 is neither a success nor a failure unless it stands here. Default: all from 200 to 399.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(range(min = 100, max = 599)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub expected_statuses: Vec<u16>,
    /// The Host header. Default: the endpoint's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z0-9.:_-]+$')").message(
            "health.active.http.host must be the name of a host, with a port if need be: write for example back.shop.svc"
        )
    )]
    pub host: Option<String>,
}

/// A call of grpc.health.v1.Health/Check.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GrpcCheck {
    /// The service that is asked about. Default: the server as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub service: Option<String>,
}

/// A connection. There is nothing to set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
pub struct TcpCheck {}

/// Ejection of failing endpoints. In force with these defaults even when not written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new(
        "duration(has(self.maxEjectionTime) ? self.maxEjectionTime : '5m') >= duration(has(self.ejectionTime) ? self.ejectionTime : '10s')"
    ).message(
        "health.outlier.maxEjectionTime (5m when not given) must not be shorter than ejectionTime (10s when not given): raise maxEjectionTime or lower ejectionTime"
    )
)]
#[x_kube(
    validation = Rule::new("!has(self.interval) || has(self.successRate) || has(self.latency)").message(
        "health.outlier.interval is that of successRate and latency: give one of them too, or leave interval out"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct Outlier {
    /// Failures in a row (5xx, failed connects, resets, per-try timeouts) until ejection; 0: not judged by this. When nothing
    /// else is to be judged by, nothing is ever ejected then, for failed connects neither. Default: 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1000))]
    pub consecutive_failures: Option<u32>,
    /// First ejection's length; it grows by as much with each ejection in a row. Default: 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ejection_time: Option<Duration>,
    /// Longest ejection; not shorter than `ejectionTime`. Default: 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ejection_time: Option<Duration>,
    /// Share of the endpoints that may be ejected at a time, in percent; one may always be, if another is left. Default: 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub max_ejected_percent: Option<u32>,
    /// Gateway errors in a row until ejection: 502, 503, 504, gRPC UNAVAILABLE, failed connects, resets and per-try timeouts.
    /// Any other answer ends the row, also a 500. Default: not judged by this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub consecutive_gateway_errors: Option<u32>,
    /// How often `successRate` and `latency` are judged, each time by the requests since the time before. Default: 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
    /// Ejects an endpoint that fails more often than the others do. Default: not judged by this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<SuccessRate>,
    /// Ejects an endpoint that is much slower than the others are. Default: not judged by this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<LatencyRule>,
}

/// Ejects an endpoint whose share of successes is below the mean of all by more than `stdevFactor` standard deviations, and by at
/// least 5 percentage points. `successRate: {}` takes the defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new(
        "double(has(self.stdevFactor) ? self.stdevFactor : 1.9) * double(has(self.stdevFactor) ? self.stdevFactor : 1.9) < double((has(self.minHosts) ? self.minHosts : 5) - 1)"
    ).message(
        "health.outlier.successRate could never eject one of so few: no endpoint is further from the mean than the root of minHosts - 1 standard deviations; raise minHosts (5 when not given) or lower stdevFactor (1.9 when not given)"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct SuccessRate {
    /// Requests that an endpoint must have had in an interval to be judged. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_requests: Option<u32>,
    /// Endpoints with so many requests that there must be, so that any is judged. Default: 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 3, max = 1000))]
    pub min_hosts: Option<u32>,
    /// Standard deviations below the mean, 0.1 to 10. Default: 1.9.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.1, max = 10.0))]
    pub stdev_factor: Option<f64>,
}

/// Ejects an endpoint whose mean latency is more than `factor` times the median of those of the others; 1 ms is added to both, so
/// that differences of less are not judged. Two others must have had enough requests. `latency: {}` takes the defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LatencyRule {
    /// Successful requests that an endpoint must have had in an interval to be judged. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_requests: Option<u32>,
    /// Times the median of the others, 1.5 to 1000. Default: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1.5, max = 1000.0))]
    pub factor: Option<f64>,
}

/// Bounds, each counted per client proxy. A missing one has the default named; 0 is not allowed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CircuitBreaker {
    /// Connections open at a time. Default: 1024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_connections: Option<u32>,
    /// Requests waiting for a connection at a time. Default: 1024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_pending_requests: Option<u32>,
    /// Requests under way at a time. Default: 4096.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_concurrent_requests: Option<u32>,
    /// Retries under way at a time. Default: 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_retries: Option<u32>,
}

/// Connections to endpoints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// Until TCP and mTLS are established. Default: 2s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<Duration>,
    /// After which an unused pooled connection is closed. Default: 60s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Duration>,
    /// Requests after which a connection is closed and a new one made. Default: unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_requests: Option<u32>,
    /// What the service's ports speak, where neither `appProtocol` nor the port's name says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<AppProtocol>,
}

/// What the service's ports speak, where neither `appProtocol` nor the port's name says so. `Http1`: HTTP/1.1. `Http2`: HTTP/2
/// without TLS (prior knowledge). `Grpc`: the same as Http2. `Tls`: the application's own TLS, passed through. `Tcp`: opaque bytes.
/// Default: found out from the first bytes.
// An optional enum shows its type's description in the schema, not the field's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AppProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS (prior knowledge).
    Http2,
    /// gRPC; the same as Http2.
    Grpc,
    /// The application's own TLS.
    Tls,
    /// Opaque bytes.
    Tcp,
}

/// What is known of a MeshService. Written by the operator only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeshServiceStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// "ready/total" endpoints of the Service; ejected ones do not count as ready. Of an external service: those that are
    /// written, where one by name counts once, however many addresses it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub endpoints: Option<String>,
    /// Endpoints that run a Weft proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_mesh: Option<u32>,
    /// Endpoints that at least one client proxy holds ejected, or finds unhealthy by active checks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ejected: Option<u32>,
    /// "N/M": how many of the connected proxies that need this resource have it in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub applied: Option<String>,
    /// `Accepted`, `ResolvedRefs` and `Programmed`, each with a sentence that says why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
