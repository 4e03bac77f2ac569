//! What a try has come to: whether it has failed, how, and whether that is held against its endpoint. Pure; whether another
//! try follows is decided by `retry`.

use http::StatusCode;
use hyper::body::Body;
use weft_api::Reason;

use super::client::{Failure, Template};
use super::exchange::Answer;
use super::headers;
use crate::balance::Outcome;
use crate::error::{Error, Side};
use crate::outlier;
use crate::retry::{Failed, GRPC_UNAVAILABLE, RetryPolicy};

/// Whether the answer to a gRPC call may still turn out to be a failure that is worth another try.
pub(super) fn may_fail_late(
    sent: &Result<Answer, Failure>,
    policy: &RetryPolicy,
    template: &Template,
) -> bool {
    let begun = |answer: &Answer| {
        let response = &answer.response;
        response.status() == StatusCode::OK && !response.body().is_end_stream()
    };
    policy.asks_for_grpc_status() && template.body.replayable() && sent.as_ref().is_ok_and(begun)
}

/// Whether a try has failed although there is a response, and whether that is held against its endpoint.
pub(super) fn judge(
    answer: &Answer,
    mtls: bool,
    policy: &RetryPolicy,
) -> Option<(Failed, Option<outlier::Failure>)> {
    let response = &answer.response;
    // What the proxy there says of its application.
    match headers::reason_of(response.headers()).filter(|_| mtls) {
        // It could not be reached: nothing has happened.
        Some(Reason::ConnectFailed | Reason::ConnectTimeout | Reason::Draining) => {
            return Some((Failed::Connect, Some(outlier::Failure::Connect)));
        }
        // It broke off without an answer, as if it had done so to us.
        Some(Reason::UpstreamReset) => return Some((Failed::Reset, Some(outlier::Failure::Reset))),
        _ => {}
    }
    let status = response.status().as_u16();
    if status >= 500 {
        let gateway = matches!(status, 502..=504);
        let failure = if gateway { outlier::Failure::Gateway } else { outlier::Failure::Status };
        return Some((Failed::Status(status), Some(failure)));
    }
    if policy.statuses.contains(status) {
        return Some((Failed::Status(status), None));
    }
    // In the head of a trailers-only response, or in trailers before any message.
    let trailers = answer.first.as_ref().and_then(|first| first.trailers_ref());
    match headers::grpc_status(trailers.unwrap_or(response.headers()))? {
        GRPC_UNAVAILABLE => Some((Failed::Grpc(GRPC_UNAVAILABLE), Some(outlier::Failure::Gateway))),
        status => policy.wants_grpc(status).then_some((Failed::Grpc(status), None)),
    }
}

/// Source: gRPC's statuscodes.md.
const GRPC_RESOURCE_EXHAUSTED: u16 = 8;

/// Whether an answer that is no failure says that its endpoint takes no more for now.
pub(super) fn refuses(answer: &Answer) -> bool {
    let trailers = answer.first.as_ref().and_then(|first| first.trailers_ref());
    let headers = trailers.unwrap_or(answer.response.headers());
    answer.response.status() == StatusCode::TOO_MANY_REQUESTS
        || headers::grpc_status(headers) == Some(GRPC_RESOURCE_EXHAUSTED)
}

/// What a try without a response says of its endpoint.
pub(super) fn outcome_of(failed: Failed, error: &Error, template: &Template) -> Outcome {
    match failed {
        // A limit of ours was reached, or the client broke off.
        _ if error.side() != Side::Upstream || template.body.broken() => Outcome::Neutral,
        // It may have been waiting for the client all the time.
        _ if error.reason() == Reason::IdleTimeout && !template.body.ended() => Outcome::Neutral,
        Failed::Connect => Outcome::Failure(outlier::Failure::Connect),
        Failed::Untouched => Outcome::Neutral,
        Failed::PerTryTimeout => Outcome::Failure(outlier::Failure::Timeout),
        Failed::Reset | Failed::Status(_) | Failed::Grpc(_) => Outcome::Failure(outlier::Failure::Reset),
    }
}

/// Whether the time of the whole request is up, so that no other try follows.
pub(super) const fn is_final(reason: Reason) -> bool {
    matches!(reason, Reason::RequestTimeout | Reason::IdleTimeout | Reason::GrpcDeadline)
}
