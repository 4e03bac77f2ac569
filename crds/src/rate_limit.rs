//! `rules[].rateLimit` of a TrafficPolicy: how many requests the pods behind the Service take.

use crate::common::Duration;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A token bucket, kept by the proxies of the pods behind the target Service, which no caller can go around. What goes beyond
/// it is answered with 429, reason `rate-limited`, `retry-after`, and the fields `RateLimit` and `RateLimit-Policy`
/// (draft-ietf-httpapi-ratelimit-headers-09), which responses within the limit have too; to a gRPC client with
/// RESOURCE_EXHAUSTED. Pods without a proxy do not limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("duration(self.per) >= duration('1s') && duration(self.per) <= duration('1h')").message(
        "rateLimit.per must be between 1s and 1h: for 10 in 100ms write requests: 100, per: 1s, burst: 10"
    ),
    validation = Rule::new("!has(self.scope) || self.scope != 'Mesh' || !has(self.key)").message(
        "rateLimit with scope: Mesh counts all requests together, because only one number is shared among the replicas: remove key, or use scope: Pod"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// Requests that the bucket gains in each `per`, evenly.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests: u32,
    /// In which time; 1s to 1h.
    pub per: Duration,
    /// The bucket's size: as many requests may come at once after a pause. Default: as many as `requests`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: Option<u32>,
    /// A bucket for each value of a part of the request. Default: one bucket for all requests of the rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<RateLimitKey>,
    /// `Pod`: each pod has buckets of its own, so that a Service takes as many times more as it has pods. `Mesh`: the limit is that
    /// of all pods behind a port of the Service together; the operator shares it out among them by demand, several times a
    /// second. Default: Pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<RateLimitScope>,
}

/// What tells buckets apart. About 8,000 values have a bucket of their own at a time; beyond that the least used ones share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("(self.type == 'Header') == has(self.header)").message(
        "rateLimit.key needs header with type Header, and only then: write type: Header and header: x-user, or remove header"
    ),
    validation = Rule::new("(self.type == 'Path') == has(self.path)").message(
        "rateLimit.key needs path with type Path, and only then: write type: Path and path: /users/{id}, or remove path"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct RateLimitKey {
    /// `Identity`: the client's SPIFFE id, proved by mTLS; all clients outside of the mesh share one bucket. `SourceIp`: the address
    /// of the client's pod. `Header`: the values of `header`; as trustworthy as whoever sets it. `Path`: what stands for the names
    /// in the template `path`. Requests that lack the part share one bucket.
    #[serde(rename = "type")]
    pub kind: RateLimitKeyType,
    /// Name of a header, with type Header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z0-9!#$%&\\'*+.^_`|~-]+$')").message(
            "rateLimit.key.header is not the name of an HTTP header: use letters, digits and dashes, without colon or spaces, for example x-user"
        )
    )]
    pub header: Option<String>,
    /// A template for the whole path, with type Path: `{name}` stands for one segment, the rest is compared. With `/users/{id}`
    /// the paths `/users/7` and `/users/8` have a bucket each; all paths that do not fit share one more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 1024))]
    #[x_kube(
        validation = Rule::new("self.matches('^(/([^/{}?#]*|[{][A-Za-z0-9_-]+[}]))+$') && self.contains('{')").message(
            "rateLimit.key.path must be a path with at least one whole segment in braces, for example /users/{id}"
        )
    )]
    pub path: Option<String>,
}

/// A part of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RateLimitKeyType {
    /// The client's SPIFFE id.
    Identity,
    /// The address of the client's pod.
    SourceIp,
    /// The values of a header.
    Header,
    /// Segments of the path.
    Path,
}

/// Whose requests are counted together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RateLimitScope {
    /// Those of each pod.
    #[default]
    Pod,
    /// Those of all pods behind a port of the Service.
    Mesh,
}
