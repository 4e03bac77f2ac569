//! Parts of a TrafficPolicy's rule that say how long a request may take, how often it is sent and where copies go.
//! Types only.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Rule as PolicyRule;
use crate::common::Duration;

/// Copies of a share of the requests. A copy is sent once the request's body has gone by, at most 64 KiB of it, with the header
/// `weft-mirror: true`. It is never tried again, delays nothing, and its answer is thrown away.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("has(self.service) || has(self.subset)").message(
        "mirror needs a destination: name a service, a subset, or both"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct Mirror {
    /// Another Service of the same namespace, at the same port. Default: the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message(
            "mirror.service is not the name of a Service: write only its name, in lower-case letters, digits and dashes; it must be in the same namespace"
        )
    )]
    pub service: Option<String>,
    /// Name of a subset of the MeshService that describes the Service (the target, or `service` where given).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message(
            "mirror.subset is not the name of a subset: write the name that the MeshService gives it in subsets[].name"
        )
    )]
    pub subset: Option<String>,
    /// Of the requests, 1 to 100. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub percent: Option<u32>,
}

/// When a request is sent to another endpoint too. Each further try counts against the retry budget and `maxRetries`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hedge {
    /// Without an answer for so long, a further try is sent. Choose what only few requests take, for example the 95th percentile of
    /// the latency.
    pub delay: Duration,
    /// Tries beside each other, the first included, 2 to 5. Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 5))]
    pub max_attempts: Option<u32>,
}

/// A place that a rule sends requests to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination<'a> {
    /// `split` or `mirror`.
    pub part: &'static str,
    /// The field within the rule, for example `split[1]`.
    pub field: String,
    /// Another Service than the target.
    pub service: Option<&'a String>,
    /// A subset of it.
    pub subset: Option<&'a String>,
}

impl PolicyRule {
    /// Every place that it names.
    pub fn destinations(&self) -> impl Iterator<Item = Destination<'_>> {
        let split = self.split.iter().enumerate().map(|(b, backend)| Destination {
            part: "split",
            field: format!("split[{b}]"),
            service: backend.service.as_ref(),
            subset: backend.subset.as_ref(),
        });
        split.chain(self.mirror.iter().map(|mirror| Destination {
            part: "mirror",
            field: "mirror".into(),
            service: mirror.service.as_ref(),
            subset: mirror.subset.as_ref(),
        }))
    }
}

/// Statuses with which a gRPC call can fail (grpc/grpc doc/statuscodes.md), in the order of their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum GrpcStatus {
    /// 1: somebody cancelled the call.
    Cancelled,
    /// 2: an error without a status of its own.
    Unknown,
    /// 3: the request is wrong, whatever the state of the server.
    InvalidArgument,
    /// 4: the deadline passed.
    DeadlineExceeded,
    /// 5: what was asked for does not exist.
    NotFound,
    /// 6: what was to be made exists already.
    AlreadyExists,
    /// 7: the caller may not do this.
    PermissionDenied,
    /// 8: a quota or a resource is used up.
    ResourceExhausted,
    /// 9: the server is not in the state that this needs.
    FailedPrecondition,
    /// 10: a conflict with something else at the same time.
    Aborted,
    /// 11: beyond the valid range.
    OutOfRange,
    /// 12: the server does not know this call.
    Unimplemented,
    /// 13: something is broken.
    Internal,
    /// 14: not now; try again.
    Unavailable,
    /// 15: data is lost.
    DataLoss,
    /// 16: the caller is not known.
    Unauthenticated,
}

impl GrpcStatus {
    /// Its number.
    #[must_use]
    pub const fn code(self) -> u32 {
        self as u32 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_grpc() {
        for (status, code) in [
            (GrpcStatus::Cancelled, 1),
            (GrpcStatus::DeadlineExceeded, 4),
            (GrpcStatus::ResourceExhausted, 8),
            (GrpcStatus::Unavailable, 14),
            (GrpcStatus::Unauthenticated, 16),
        ] {
            assert_eq!(status.code(), code);
        }
    }
}
