//! TrafficPolicy: how requests to a service go. Matching, weighted split, timeout, retry, rate limit; what else a rule does
//! is in `filters`.

use crate::common::{Conditions, Duration};
use crate::filters::{Cors, DirectResponse, Fault, HeaderChanges, Redirect, Rewrite};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod flow;

pub use crate::breaking::RuleCircuitBreaker;
pub use crate::rate_limit::{RateLimit, RateLimitKey, RateLimitKeyType, RateLimitScope};
pub use flow::{Destination, GrpcStatus, Hedge, Mirror};

/// How requests to a Service are matched, split, timed out and retried. One TrafficPolicy at most governs a port of a Service:
/// put all the rules for it into that one. A second policy for the same port is refused.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(group = "weft.dev", version = "v1alpha1", kind = "TrafficPolicy", namespaced, status = "Conditions")]
#[kube(derive = "PartialEq", shortname = "tpol", category = "weft")]
#[kube(
    doc = "How requests to a Service go: matching, weighted split, timeout, retry. At most one per port of a Service."
)]
#[kube(
    printcolumn = r#"{"name":"Target", "type":"string", "jsonPath":".spec.targetRefs[0].name", "description":"the first target"}"#
)]
#[kube(
    printcolumn = r#"{"name":"Applied", "type":"string", "jsonPath":".status.applied", "description":"proxies that have this in force / connected proxies that need it"}"#
)]
#[kube(
    printcolumn = r#"{"name":"Accepted", "type":"string", "jsonPath":".status.conditions[?(@.type==\"Accepted\")].status"}"#
)]
#[kube(printcolumn = r#"{"name":"Age", "type":"date", "jsonPath":".metadata.creationTimestamp"}"#)]
#[serde(rename_all = "camelCase")]
pub struct TrafficPolicySpec {
    /// The Services (of the same namespace) whose requests this governs.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(
        merge_strategy = ListMerge::Atomic,
        validation = Rule::new(
            "self.all(a, self.exists_one(b, a.kind == b.kind && a.name == b.name && (!has(a.port) || !has(b.port) || a.port == b.port)))"
        ).message(
            "targetRefs names the same target twice: keep one entry for each, and note that an entry without port means every port"
        )
    )]
    pub target_refs: Vec<TargetRef>,
    /// The first rule that matches a request counts (see `precedence`). A request that no rule matches goes to the Service as a whole.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(
        merge_strategy = ListMerge::Atomic,
        validation = Rule::new(
            "self.all(a, !has(a.name) || self.exists_one(b, has(b.name) && a.name == b.name))"
        ).message(
            "rules[].name is given twice: names tell rules apart in logs and metrics, so make each unique or leave it out"
        )
    )]
    // `self::`: inside the derived schema code `Rule` is a CEL rule.
    pub rules: Vec<self::Rule>,
    /// Which rule counts when several match. `Written`: the first one. `Specificity`: the one with the most specific match, as in
    /// Gateway API: by host (a name before a wildcard, then the longer), by path (exact, then the longer prefix, then a regular
    /// expression, then none), with a method before without, by more headers, by more query parameters; of equal ones the first.
    /// Default: Written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precedence: Option<Precedence>,
}

/// Which rule counts when several match.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Precedence {
    /// The first one.
    #[default]
    Written,
    /// The most specific one.
    Specificity,
}

/// A target of a policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetRef {
    /// `Service`, or `MeshService` for the Service that one describes.
    pub kind: TargetKind,
    /// Its name, in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')").message(
            "targetRefs[].name is not the name of a Service or MeshService: write only its name, in lower-case letters, digits and dashes"
        )
    )]
    pub name: String,
    /// Only this port of the Service. Default: all of its ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
}

/// Kinds that a policy can target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TargetKind {
    /// A Kubernetes Service.
    Service,
    /// The Service that a MeshService targets.
    MeshService,
}

/// One rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new(
        "!has(self.timeout) || !has(self.retry) || !has(self.retry.perTryTimeout) || duration(self.retry.perTryTimeout) <= duration(self.timeout)"
    ).message(
        "retry.perTryTimeout must not be longer than the rule's timeout, which covers all tries together: lower perTryTimeout or raise timeout"
    ),
    validation = Rule::new("!has(self.redirect) || !has(self.response)").message(
        "a rule answers either with redirect or with response: keep one and remove the other"
    ),
    validation = Rule::new(
        "!(has(self.redirect) || has(self.response)) || !(has(self.rewrite) || has(self.rateLimit) || has(self.circuitBreaker) || has(self.fault) || has(self.timeout) || has(self.idleTimeout) || has(self.retry) || has(self.mirror) || has(self.hedge) || (has(self.split) && size(self.split) > 0) || (has(self.headers) && has(self.headers.request)))"
    ).message(
        "a rule with redirect or response sends the request nowhere: remove split, timeout, idleTimeout, retry, mirror, hedge, rateLimit, circuitBreaker, rewrite, fault and headers.request from it"
    ),
    validation = Rule::new(
        "!((has(self.rewrite) && has(self.rewrite.path) && has(self.rewrite.path.prefix)) || (has(self.redirect) && has(self.redirect.path) && has(self.redirect.path.prefix))) || (has(self.match) && size(self.match) > 0 && self.match.all(m, has(m.path) && has(m.path.prefix)))"
    ).message(
        "path.prefix of rewrite and redirect replaces the prefix that matched: give every entry of the rule's match a path.prefix, or use path.full"
    )
)]
#[x_kube(
    validation = Rule::new("!has(self.timeout) || !has(self.hedge) || duration(self.hedge.delay) < duration(self.timeout)").message(
        "hedge.delay must be shorter than the rule's timeout, or no second try could ever be sent: lower hedge.delay or raise timeout"
    )
)]
#[x_kube(
    validation = Rule::new("!has(self.rateLimit) || !has(self.split) || self.split.all(b, !has(b.service))").message(
        "rateLimit is kept by the pods behind the target Service, so it cannot stand in a rule whose split names another service: put it into a TrafficPolicy of that Service"
    ),
    validation = Rule::new("!has(self.rateLimit) || !has(self.rewrite)").message(
        "rateLimit is kept by the pods behind the target Service, which get the rewritten request and would not know it by this rule's match: put rateLimit into a rule without rewrite that matches the rewritten request"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Name in logs and metrics. Default: its position, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message(
            "rules[].name must be lower-case letters, digits and dashes, and begin and end with a letter or digit, for example canary"
        )
    )]
    pub name: Option<String>,
    /// Conditions on the request, of which one must hold. Default: every request.
    #[serde(rename = "match", default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub matches: Vec<Match>,
    /// Where requests go, by weight. A split to another Service keeps that Service's own balancing and breakers. Default: the
    /// Service as a whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(
        merge_strategy = ListMerge::Atomic,
        validation = Rule::new("size(self) == 0 || self.exists(b, b.weight > 0)").message(
            "split gives every destination weight 0, so requests could go nowhere: give at least one a weight above 0"
        ),
        validation = Rule::new(
            "self.all(a, self.exists_one(b, has(a.subset) == has(b.subset) && (!has(a.subset) || a.subset == b.subset) && has(a.service) == has(b.service) && (!has(a.service) || a.service == b.service)))"
        ).message(
            "split names the same destination twice: merge the entries into one with the sum of their weights"
        )
    )]
    pub split: Vec<Backend>,
    /// Whole request, retries included, until the response's end. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// When a request is tried again. Default: twice, on failed connects and resets of idempotent requests, within a budget of 20 %.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// How many requests of this rule the pods behind the target Service take. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// How much of this rule may be under way. Default: only the bounds of the MeshService.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<RuleCircuitBreaker>,
    /// Header changes both ways. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<HeaderChanges>,
    /// Another host or path for the application. Default: those of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<Rewrite>,
    /// Sends the client elsewhere. Default: the request goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<Redirect>,
    /// An answer of the proxy's own. Default: the request goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<DirectResponse>,
    /// Made-up failures, for experiments. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// Which pages of other origins may call from a browser. Default: what the application says of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
    /// How long neither side may send a byte, from the request's head until the response's end; also of WebSockets and event streams.
    /// Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Duration>,
    /// Where copies of requests go, of which nobody gets the answers. Default: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Mirror>,
    /// Another try beside one that takes long, and the first good answer counts. Only GET, HEAD, OPTIONS and TRACE without a body.
    /// Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedge: Option<Hedge>,
}

/// Conditions that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new(
        "has(self.path) || has(self.method) || (has(self.headers) && size(self.headers) > 0) || (has(self.query) && size(self.query) > 0) || (has(self.hosts) && size(self.hosts) > 0) || has(self.source)"
    ).message(
        "an entry of match without any condition would match every request: give it a path, method, headers, query, hosts or source, or leave match out"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct Match {
    /// The path, without the query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// The method, in capitals, for example GET.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Z][A-Z0-9_-]*$')").message(
            "method must be an HTTP method in capital letters, for example GET: methods are case-sensitive"
        )
    )]
    pub method: Option<String>,
    /// Headers, all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub headers: Vec<HeaderMatch>,
    /// Query parameters, all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub query: Vec<QueryMatch>,
    /// Hosts that the request names (Host, or `:authority` in HTTP/2, without the port), of which one must fit: a name, or
    /// `*.example.com` for every name below `example.com`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 253)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(host, host.matches('^([*][.])?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$'))").message(
            "hosts lists something that is not a host: write a name in lower case without scheme and port, for example shop.example or *.shop.example"
        )
    )]
    pub hosts: Vec<String>,
    /// Who calls. Default: everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceMatch>,
}

/// A query parameter, decoded, and exactly one of the four conditions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new(
        "[has(self.exact), has(self.prefix), has(self.regex), has(self.present)].exists_one(given, given)"
    ).message(
        "an entry of query needs exactly one of exact, prefix, regex and present: keep one and remove the others"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct QueryMatch {
    /// Its name, case-sensitive.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// The whole value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub exact: Option<String>,
    /// The value's beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub prefix: Option<String>,
    /// A regular expression (RE2 syntax) for the whole value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub regex: Option<String>,
    /// `true`: the parameter must be there; `false`: it must not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub present: Option<bool>,
}

/// Callers: one of the identities, or of one of the namespaces. Callers outside of the mesh have no proxy, so no rule applies to
/// them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new(
        "(has(self.identities) && size(self.identities) > 0) || (has(self.namespaces) && size(self.namespaces) > 0)"
    ).message(
        "source names nobody: give it identities or namespaces, or leave it out"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct SourceMatch {
    /// SPIFFE ids of callers, for example `spiffe://cluster.local/ns/shop/sa/front`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 320)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        // The rest of its form the webhook judges: a whole expression would cost the API server too much here.
        validation = Rule::new("self.all(id, id.startsWith('spiffe://'))").message(
            "source.identities lists something that is not the SPIFFE id of a workload: write spiffe://<trust domain>/ns/<namespace>/sa/<service account>"
        )
    )]
    pub identities: Vec<String>,
    /// Namespaces of callers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 63)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(name, name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$'))").message(
            "source.namespaces lists something that is not the name of a namespace: write lower-case letters, digits and dashes"
        )
    )]
    pub namespaces: Vec<String>,
}

/// Exactly one of the three.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("[has(self.exact), has(self.prefix), has(self.regex)].exists_one(given, given)").message(
        "path needs exactly one of exact, prefix and regex: keep one and remove the others"
    ),
    validation = Rule::new(
        "(!has(self.exact) || self.exact.startsWith('/')) && (!has(self.prefix) || self.prefix.startsWith('/'))"
    ).message(
        "path.exact and path.prefix must begin with '/': write for example /api"
    ),
    validation = Rule::new(
        "(!has(self.exact) || !self.exact.contains('?')) && (!has(self.prefix) || !self.prefix.contains('?'))"
    ).message(
        "path.exact and path.prefix are compared with the path without its query: remove '?' and what follows"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct PathMatch {
    /// The whole path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub exact: Option<String>,
    /// Leading whole segments: `/a` fits `/a` and `/a/b`, not `/ab`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub prefix: Option<String>,
    /// A regular expression (RE2 syntax) for the whole path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub regex: Option<String>,
}

/// A header, and exactly one of the four conditions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new(
        "[has(self.exact), has(self.prefix), has(self.regex), has(self.present)].exists_one(given, given)"
    ).message(
        "an entry of headers needs exactly one of exact, prefix, regex and present: keep one and remove the others"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct HeaderMatch {
    /// Its name; upper and lower case are the same.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z0-9!#$%&\\'*+.^_`|~-]+$')").message(
            "headers[].name is not the name of an HTTP header: use letters, digits and dashes, without colon or spaces, for example x-user"
        )
    )]
    pub name: String,
    /// The whole value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub exact: Option<String>,
    /// The value's beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub prefix: Option<String>,
    /// A regular expression (RE2 syntax) for the whole value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub regex: Option<String>,
    /// `true`: the header must be there; `false`: it must not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub present: Option<bool>,
}

/// Where a share of the requests goes: a subset of the target's MeshService, or another Service of the namespace. Without
/// both, the target as a whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// Name of a subset of the MeshService that describes the Service (the target, or `service` where given).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message(
            "split[].subset is not the name of a subset: write the name that the MeshService gives it in subsets[].name"
        )
    )]
    pub subset: Option<String>,
    /// Another Service of the same namespace, at the same port. Default: the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message(
            "split[].service is not the name of a Service: write only its name, in lower-case letters, digits and dashes; it must be in the same namespace"
        )
    )]
    pub service: Option<String>,
    /// Share relative to the sum of all weights, 0 to 1000000.
    #[schemars(range(max = 1_000_000))]
    pub weight: u32,
}

/// When and how often a request is tried again. Never after a byte of the response went to the client.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new(
        "duration(has(self.backoff) ? self.backoff : '25ms') <= duration(has(self.maxBackoff) ? self.maxBackoff : '250ms')"
    ).message(
        "retry.backoff (25ms when not given) must not be longer than maxBackoff (250ms when not given): lower backoff or raise maxBackoff"
    ),
    validation = Rule::new(
        "!has(self.grpcStatuses) || size(self.grpcStatuses) == 0 || (has(self.nonIdempotent) && self.nonIdempotent)"
    ).message(
        "retry.grpcStatuses needs nonIdempotent: true, because every gRPC call is a POST: add it if your calls may run twice, or remove grpcStatuses"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// Tries beyond the first, 0 to 10; 0 switches retries off. Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 10))]
    pub attempts: Option<u32>,
    /// Until the response's head, of each try; not longer than the rule's `timeout`. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<Duration>,
    /// On what. `ConnectFailure`: the endpoint could not be reached. `Reset`: the connection was lost before the response's head.
    /// `GatewayError`: 502, 503 or 504. `ServerError`: any 5xx. `GrpcUnavailable`: gRPC status UNAVAILABLE in a response without
    /// messages. Default: ConnectFailure and Reset.
    // Not `on`: YAML 1.1 reads an unquoted `on` as `true`, in keys too.
    #[serde(rename = "retryOn", default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub on: Vec<RetryOn>,
    /// Also requests that may have had an effect (POST, PATCH). With false, those are tried again only when nothing of them can
    /// have reached the application. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub non_idempotent: Option<bool>,
    /// Wait before the first retry; doubled each time, with jitter. Default: 25ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Duration>,
    /// Longest wait; not shorter than `backoff`. A server that asks for a longer one (`retry-after`, `grpc-retry-pushback-ms`) is not
    /// tried again; a shorter one is kept. Default: 250ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_backoff: Option<Duration>,
    /// A bound on the retries of all requests together, so that retries never make an overload worse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<RetryBudget>,
    /// Responses with these statuses too, 400 to 599, besides `retryOn`. For example 429, together with a `maxBackoff` that is as long as
    /// the `retry-after` that the server gives.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(range(min = 400, max = 599)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub status_codes: Vec<u16>,
    /// gRPC calls that end with one of these statuses before their first message, besides `retryOn`. The response's head is held
    /// back for at most one second to see whether a message follows. Needs `nonIdempotent: true`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub grpc_statuses: Vec<GrpcStatus>,
    /// Bytes of a request's body that are kept so that it can be sent again, 0 to 1048576. A longer body streams through, and its
    /// request is not tried again once any of it was read. Default: 65536.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1_048_576))]
    pub max_body_bytes: Option<u32>,
}

/// Retries that one client proxy may send to the service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RetryBudget {
    /// Retries per 100 requests, 0 to 100. Default: 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub percent: Option<u32>,
    /// Retries per second that are always allowed. Default: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 10_000))]
    pub min_per_second: Option<u32>,
}

/// A failure that is worth another try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RetryOn {
    /// The endpoint could not be reached.
    ConnectFailure,
    /// The connection was lost before the response's head.
    Reset,
    /// 502, 503 or 504.
    GatewayError,
    /// Any 5xx.
    ServerError,
    /// gRPC status UNAVAILABLE in a response without messages.
    GrpcUnavailable,
}
