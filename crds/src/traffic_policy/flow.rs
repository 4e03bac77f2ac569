//! Parts of a TrafficPolicy's rule that say how long a request may take and how often it is sent. Types only.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
