//! Bounds on requests under way beside `circuitBreaker` of a MeshService: those of a rule, and one that finds itself.

use crate::common::Duration;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Bounds on the requests of one rule, each counted per client proxy, beside those of the MeshService, which count all rules
/// together. A missing one does not bound.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("has(self.maxPendingRequests) || has(self.maxConcurrentRequests) || has(self.maxRetries)").message(
        "rules[].circuitBreaker bounds nothing: give it maxPendingRequests, maxConcurrentRequests or maxRetries, or leave it out; connections are shared by all rules, so they are bounded in the MeshService"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct RuleCircuitBreaker {
    /// Requests of the rule that wait for a connection at a time; beyond it 503 `breaker-pending`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_pending_requests: Option<u32>,
    /// Requests of the rule under way at a time; beyond it 503 `breaker-open`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_concurrent_requests: Option<u32>,
    /// Retries of the rule under way at a time; beyond it the first failure stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_retries: Option<u32>,
}

/// A limit on requests under way that each client proxy finds by itself, for each subset: as many as the service takes before they
/// begin to wait for each other. What goes beyond is refused at once with 503 `adaptive-limit`. Below `circuitBreaker`, which
/// stays in force. Not for opaque TCP.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("(has(self.minLimit) ? self.minLimit : 3) <= (has(self.maxLimit) ? self.maxLimit : 1000)").message(
        "adaptiveConcurrency.minLimit (3 when not given) must not be above maxLimit (1000 when not given): lower minLimit or raise maxLimit"
    ),
    validation = Rule::new("!has(self.baselineInterval) || duration(self.baselineInterval) >= duration('5s')").message(
        "adaptiveConcurrency.baselineInterval must not be below 5s: requests are refused while the baseline is measured"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct AdaptiveConcurrency {
    /// Always allowed, and all that is allowed while the baseline is measured. Default: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub min_limit: Option<u32>,
    /// Never more. Default: 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_limit: Option<u32>,
    /// By how many percent requests may take longer than the baseline before the limit goes down, 1 to 200. Default: 25.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 200))]
    pub tolerance_percent: Option<u32>,
    /// How often the baseline is measured: the time of a request while no more than `minLimit` are under way. Not below 5s.
    /// Default: 60s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline_interval: Option<Duration>,
}
