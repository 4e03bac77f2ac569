//! `balancer` of a MeshService: how an endpoint is chosen. Types and rules; it chooses nothing.

use crate::common::Duration;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Choice of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new(
        "!(has(self.policy) && self.policy in ['RingHash', 'Maglev']) || has(self.hash)"
    ).message(
        "balancer.policy RingHash and Maglev need balancer.hash: say what requests are hashed by, for example hash: {header: x-user-id}"
    ),
    validation = Rule::new(
        "!has(self.hash) || (has(self.policy) && self.policy in ['RingHash', 'Maglev'])"
    ).message(
        "balancer.hash acts with the policies RingHash and Maglev only: set balancer.policy to one of them, or remove hash"
    ),
    validation = Rule::new(
        "!has(self.hash) || !has(self.hash.ringPoints) || (has(self.policy) && self.policy == 'RingHash')"
    ).message(
        "balancer.hash.ringPoints acts with the policy RingHash only: Maglev's table has a fixed size, so remove ringPoints"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct Balancer {
    /// The algorithm. `PeakEwma`: of two random endpoints, the one with the lower product of latency (a moving average that
    /// feels peaks at once) and requests in flight. `LeastRequest`: of two random endpoints, the one with fewer requests in
    /// flight. `RoundRobin`: in turn. `Random`: at random. `RingHash` and `Maglev`: by what `hash` says, so that the same key
    /// goes to the same endpoint from every client; Maglev spreads keys more evenly, RingHash moves none but the keys of the
    /// endpoint that goes or comes. `SourceIpHash`: as Maglev with `hash: {sourceIp: true}`.
    #[serde(default)]
    pub policy: BalancerPolicy,
    /// Weights of endpoints, by pod labels; the first entry that fits a pod counts, otherwise 100. Every policy honours them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub weights: Vec<EndpointWeight>,
    /// What RingHash and Maglev look at. Requests that do not have it are spread at random; opaque TCP connections have
    /// nothing but `sourceIp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<Hash>,
    /// New endpoints come to their share little by little, with every policy. Default: at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<SlowStart>,
    /// Endpoints near to the caller come first. Default: all are alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locality: Option<Locality>,
    /// Priorities: pods that fit the first entry come first, then those of the second, and so on; last those that fit
    /// none. A priority takes all requests while more than 71 % of its endpoints, by weight, are healthy; below that, the next one takes
    /// what is missing. Comes before `locality`, which orders the endpoints of one priority. Default: all are alike.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub failover: Vec<Priority>,
    /// While fewer endpoints than this are healthy, in percent by weight, health does not count, and all are used: so that the few that
    /// are left are not overrun. With several priorities or localities: while every one of them is below it. Default: 0,
    /// which is while none is healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub panic_threshold: Option<u32>,
}

/// The algorithm that chooses an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BalancerPolicy {
    /// Of two random endpoints, the one with the lower product of latency (peak-sensitive moving average) and requests in flight.
    #[default]
    PeakEwma,
    /// Of two random endpoints, the one with fewer requests in flight.
    LeastRequest,
    /// In turn.
    RoundRobin,
    /// At random.
    Random,
    /// By `hash`: the next point on a ring.
    RingHash,
    /// By `hash`: a slot of a table.
    Maglev,
    /// By the caller's address.
    SourceIpHash,
}

/// The weight of some endpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointWeight {
    /// Pods that carry all of these labels.
    #[schemars(schema_with = "crate::common::labels_schema")]
    pub labels: BTreeMap<String, String>,
    /// 0 to 1000, relative to 100; with 0 a pod is used only when nothing else is left.
    #[schemars(range(max = 1000))]
    pub weight: u32,
}

/// What requests are hashed by: exactly one of `header`, `cookie`, `sourceIp` and `query`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new(
        "[has(self.header), has(self.cookie), has(self.sourceIp), has(self.query)].exists_one(given, given)"
    ).message(
        "balancer.hash needs exactly one of header, cookie, sourceIp and query: keep one and remove the others"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct Hash {
    /// Name of a header; of several of that name, all in their order. `host` is the authority in HTTP/2 too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z0-9!#$%&*+.^_`|~-]+$')").message(
            "balancer.hash.header is not the name of an HTTP header: use letters, digits and dashes, for example x-user-id"
        )
    )]
    pub header: Option<String>,
    /// A cookie. A client that has none gets one with the response (`HttpOnly; Path=/`), and its next requests go where this one went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<HashCookie>,
    /// The address of the client's connection, without its port. An application's own proxy sees the pod's own address, which is
    /// the same for all its requests: one pod then keeps to one endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(
        validation = Rule::new("self").message(
            "balancer.hash.sourceIp can only be true: to hash by something else, remove it and give header, cookie or query"
        )
    )]
    pub source_ip: Option<bool>,
    /// Name of a parameter of the query; its value counts as it is written there, not decoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(
        validation = Rule::new("self.matches('^[^&=#?]+$')").message(
            "balancer.hash.query is not the name of a parameter: leave out ?, &, =, # and the value"
        )
    )]
    pub query: Option<String>,
    /// With RingHash: points on the ring of an endpoint of weight 100. More of them spread keys more evenly (256: within about
    /// 20 %), and take more memory (8 bytes each). Default: 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 16, max = 4096))]
    pub ring_points: Option<u32>,
}

/// A cookie.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HashCookie {
    /// Its name.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z0-9!#$%&*+.^_`|~-]+$')").message(
            "balancer.hash.cookie.name is not the name of a cookie: use letters, digits, dashes and underscores, for example weft-session"
        )
    )]
    pub name: String,
    /// How long clients keep it (`Max-Age`, in whole seconds, at least one). Default: for the client's session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,
}

/// How new endpoints come to their share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SlowStart {
    /// After this time an endpoint has its whole share. It begins when a client's proxy first sees the endpoint ready; endpoints that were
    /// there when the proxy first heard of the Service are not new.
    pub window: Duration,
    /// The share grows with (age / window) to the power of 1/aggression, from a tenth on: with 1 evenly, with more the
    /// sooner. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10))]
    pub aggression: Option<u32>,
}

/// What nearness to the caller means.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("!has(self.within) || self.mode == 'Strict'").message(
        "balancer.locality.within acts with mode Strict only: Prefer goes beyond every boundary when it has to, so remove within or set mode to Strict"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct Locality {
    /// `Prefer`: endpoints of the caller's zone, then of its region, then all others; the next ones take over as much as fewer than 71 %
    /// of those before are healthy. `Strict`: nothing outside of what `within` names, even if nothing is left there (503
    /// `no-healthy-endpoint`). Zone and region are the labels `topology.kubernetes.io/zone` and `/region` of the nodes; a
    /// caller whose node has none treats all endpoints alike.
    pub mode: LocalityMode,
    /// The boundary of `Strict`, the caller's `Zone` or its `Region`. Default: Zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<Boundary>,
}

/// How strictly nearness counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LocalityMode {
    /// Near ones first.
    Prefer,
    /// Near ones only.
    Strict,
}

/// The boundary of `Strict`: the caller's `Zone` or its `Region`. Default: Zone.
// An optional enum shows its type's description in the schema, not the field's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Boundary {
    /// `topology.kubernetes.io/zone`.
    Zone,
    /// `topology.kubernetes.io/region`.
    Region,
}

/// Endpoints of one priority.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Priority {
    /// Pods that carry all of these labels.
    #[schemars(schema_with = "crate::common::labels_schema")]
    pub labels: BTreeMap<String, String>,
}
