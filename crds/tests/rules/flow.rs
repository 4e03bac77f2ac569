//! TrafficPolicy: retries, copies and tries beside others.

use super::*;

#[test]
fn retries_fit_into_the_timeout_and_their_waits_into_each_other() {
    let retry = |retry: Value| with_rule(json!({"retry": retry}));
    refused(
        POLICY,
        with_rule(json!({"timeout": "1s", "retry": {"perTryTimeout": "1001ms"}})),
        "retry.perTryTimeout must not be longer",
    );
    passes(POLICY, retry(json!({"perTryTimeout": "1h"})));
    refused(POLICY, retry(json!({"backoff": "300ms"})), "retry.backoff");
    refused(POLICY, retry(json!({"maxBackoff": "20ms"})), "retry.backoff");
    passes(POLICY, retry(json!({"backoff": "300ms", "maxBackoff": "300ms"})));
    refused(POLICY, retry(json!({"attempts": 11})), "maximum");
    refused(POLICY, retry(json!({"retryOn": ["Reset", "Reset"]})), "duplicate");
    refused(POLICY, retry(json!({"retryOn": ["Timeout"]})), "enum");
    refused(POLICY, retry(json!({"budget": {"percent": 101}})), "maximum");
    refused(POLICY, retry(json!({"budget": {"minPerSecond": 10_001}})), "maximum");
}

#[test]
fn retries_name_statuses_of_failures_once_and_grpc_ones_need_leave() {
    let retry = |retry: Value| with_rule(json!({"retry": retry}));
    passes(POLICY, retry(json!({"statusCodes": [400, 429, 599], "maxBodyBytes": 0})));
    refused(POLICY, retry(json!({"statusCodes": [399]})), "minimum");
    refused(POLICY, retry(json!({"statusCodes": [600]})), "maximum");
    refused(POLICY, retry(json!({"statusCodes": [429, 429]})), "duplicate");
    refused(POLICY, retry(json!({"statusCodes": (400..433).collect::<Vec<_>>()})), "maxItems");
    passes(
        POLICY,
        retry(json!({"grpcStatuses": ["Unavailable", "ResourceExhausted"], "nonIdempotent": true})),
    );
    refused(POLICY, retry(json!({"grpcStatuses": ["OK"], "nonIdempotent": true})), "enum");
    refused(
        POLICY,
        retry(json!({"grpcStatuses": ["Aborted", "Aborted"], "nonIdempotent": true})),
        "duplicate",
    );
    refused(POLICY, retry(json!({"grpcStatuses": ["Aborted"]})), "needs nonIdempotent: true");
    refused(
        POLICY,
        retry(json!({"grpcStatuses": ["Aborted"], "nonIdempotent": false})),
        "needs nonIdempotent: true",
    );
    passes(POLICY, retry(json!({"grpcStatuses": []})));
    passes(POLICY, retry(json!({"maxBodyBytes": 1_048_576})));
    refused(POLICY, retry(json!({"maxBodyBytes": 1_048_577})), "maximum");
}

#[test]
fn a_mirror_has_a_destination_and_a_share() {
    let mirror = |mirror: Value| with_rule(json!({"mirror": mirror}));
    passes(POLICY, mirror(json!({"service": "next"})));
    passes(POLICY, mirror(json!({"subset": "v2", "percent": 1})));
    refused(POLICY, mirror(json!({"percent": 50})), "mirror needs a destination");
    refused(POLICY, mirror(json!({"service": "a.b"})), "mirror.service is not the name of a Service");
    refused(POLICY, mirror(json!({"subset": "V2"})), "mirror.subset is not the name of a subset");
    refused(POLICY, mirror(json!({"service": "next", "percent": 0})), "minimum");
    refused(POLICY, mirror(json!({"service": "next", "percent": 101})), "maximum");
}

#[test]
fn a_hedge_has_a_delay_within_the_timeout_and_few_tries() {
    let hedge = |hedge: Value| with_rule(json!({"timeout": "1s", "hedge": hedge}));
    passes(POLICY, hedge(json!({"delay": "999ms", "maxAttempts": 5})));
    passes(POLICY, with_rule(json!({"hedge": {"delay": "1h"}})));
    refused(POLICY, hedge(json!({"delay": "1s"})), "hedge.delay must be shorter");
    refused(POLICY, hedge(json!({"maxAttempts": 2})), "required");
    refused(POLICY, hedge(json!({"delay": "1ms", "maxAttempts": 1})), "minimum");
    refused(POLICY, hedge(json!({"delay": "1ms", "maxAttempts": 6})), "maximum");
    passes(POLICY, with_rule(json!({"timeout": "1s", "idleTimeout": "1h"})));
    refused(POLICY, with_rule(json!({"idleTimeout": "0s"})), "longer than zero");
}
