//! Tests of `retry`: no cluster, nothing but what they make themselves.

use super::*;
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;

fn rng() -> SmallRng {
    SmallRng::seed_from_u64(7)
}

fn again(policy: &RetryPolicy, method: &Method, failed: Failed) -> bool {
    decide(
        policy,
        &Attempt { number: 1, method, failed, replayable: true, pushback: None, left: None },
        &mut rng(),
    )
    .is_some()
}

#[test]
fn by_default_failed_connects_of_everything_and_resets_of_what_is_idempotent_are_tried_again() {
    let policy = RetryPolicy::default();
    for (method, failed, expected) in [
        (Method::GET, Failed::Connect, true),
        (Method::POST, Failed::Connect, true),
        (Method::GET, Failed::Reset, true),
        (Method::PUT, Failed::Reset, true),
        (Method::DELETE, Failed::Reset, true),
        (Method::POST, Failed::Reset, false),
        (Method::PATCH, Failed::Reset, false),
        (Method::CONNECT, Failed::Reset, false),
        (Method::POST, Failed::Untouched, true),
        (Method::GET, Failed::Status(503), false),
        (Method::GET, Failed::Status(500), false),
        (Method::POST, Failed::Grpc(14), false),
    ] {
        assert_eq!(again(&policy, &method, failed), expected, "{method} {failed:?}");
    }
}

#[test]
fn each_condition_covers_its_statuses_and_no_other() {
    let none = RetryPolicy { on_connect_failure: false, on_reset: false, ..RetryPolicy::default() };
    let gateway = RetryPolicy { on_gateway_error: true, ..none };
    let all_5xx = RetryPolicy { on_5xx: true, ..none };
    for (policy, status, expected) in [
        (gateway, 500, false),
        (gateway, 501, false),
        (gateway, 502, true),
        (gateway, 504, true),
        (gateway, 505, false),
        (all_5xx, 499, false),
        (all_5xx, 500, true),
        (all_5xx, 503, true),
        (all_5xx, 599, true),
        (all_5xx, 429, false),
        (none, 503, false),
    ] {
        assert_eq!(again(&policy, &Method::GET, Failed::Status(status)), expected, "{status}");
    }
    assert!(!again(&none, &Method::GET, Failed::Connect));
    assert!(!again(&none, &Method::GET, Failed::PerTryTimeout));
    assert!(again(&gateway, &Method::GET, Failed::PerTryTimeout));
}

#[test]
fn what_may_have_had_an_effect_needs_to_be_allowed() {
    let policy = RetryPolicy { on_5xx: true, on_grpc_unavailable: true, ..RetryPolicy::default() };
    let allowed = RetryPolicy { non_idempotent: true, ..policy };
    for failed in [Failed::Status(500), Failed::Grpc(14), Failed::PerTryTimeout, Failed::Reset] {
        assert!(!again(&policy, &Method::POST, failed));
        assert!(again(&allowed, &Method::POST, failed));
    }
}

#[test]
fn what_cannot_be_sent_again_is_not() {
    let attempt = Attempt {
        number: 1,
        method: &Method::GET,
        failed: Failed::Connect,
        replayable: false,
        pushback: None,
        left: None,
    };
    assert_eq!(decide(&RetryPolicy::default(), &attempt, &mut rng()), None);
}

#[test]
fn listed_statuses_are_tried_again_besides_the_conditions() {
    let listed = RetryPolicy {
        statuses: StatusCodes::of(&[429, 503]).unwrap(),
        grpc_statuses: GrpcCodes::of(&[8]).unwrap(),
        non_idempotent: true,
        ..RetryPolicy::default()
    };
    for (failed, expected) in [
        (Failed::Status(429), true),
        (Failed::Status(503), true),
        (Failed::Status(502), false),
        (Failed::Status(404), false),
        (Failed::Grpc(8), true),
        (Failed::Grpc(14), false),
        (Failed::Reset, true),
    ] {
        assert_eq!(again(&listed, &Method::POST, failed), expected, "{failed:?}");
    }
    assert!(listed.asks_for_grpc_status());
    assert!(!RetryPolicy::default().asks_for_grpc_status());
    assert!(!RetryPolicy { attempts: 0, ..listed }.asks_for_grpc_status());
    // An effect is an effect, whatever the status.
    assert!(!again(&RetryPolicy { non_idempotent: false, ..listed }, &Method::POST, Failed::Status(429)));
}

#[test]
fn a_wait_that_the_server_asks_for_is_kept_or_nothing_is_tried() {
    let policy = RetryPolicy { backoff_max: Duration::from_secs(2), ..RetryPolicy::default() };
    let wait = |pushback, left| {
        let attempt = Attempt {
            number: 1,
            method: &Method::GET,
            failed: Failed::Reset,
            replayable: true,
            pushback,
            left,
        };
        decide(&policy, &attempt, &mut rng())
    };
    let (one, two) = (Duration::from_secs(1), Duration::from_secs(2));
    assert_eq!(wait(Some(Pushback::After(one)), None), Some(one));
    assert_eq!(wait(Some(Pushback::After(two)), None), Some(two));
    assert_eq!(wait(Some(Pushback::After(two + Duration::from_millis(1))), None), None);
    assert_eq!(wait(Some(Pushback::Never), None), None);
    // No shorter than what would have been waited anyway.
    assert_eq!(wait(Some(Pushback::After(Duration::ZERO)), None), wait(None, None));
    assert_eq!(wait(Some(Pushback::After(one)), Some(one)), None);
    assert_eq!(wait(Some(Pushback::After(one)), Some(two)), Some(one));
    assert_eq!(wait(None, Some(Duration::ZERO)), None);
}

proptest! {
    #[test]
    fn there_are_as_many_retries_as_attempts_and_waits_stay_within_their_bounds(
        attempts in 0u32..12, base in 1u64..1000, max in 1u64..10_000, seed: u64,
    ) {
        let policy = RetryPolicy {
            attempts,
            backoff_base: Duration::from_millis(base),
            backoff_max: Duration::from_millis(max),
            ..RetryPolicy::default()
        };
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut number = 1;
        while let Some(wait) = decide(
            &policy,
            &Attempt { number, method: &Method::GET, failed: Failed::Reset, replayable: true, pushback: None, left: None },
            &mut rng,
        ) {
            let bound = policy.backoff_base.saturating_mul(1 << (number - 1)).min(policy.backoff_max);
            prop_assert!(wait <= bound);
            number += 1;
        }
        prop_assert_eq!(number, attempts + 1);
    }
}

#[test]
fn waits_are_spread_over_the_whole_bound() {
    let policy = RetryPolicy::default();
    let mut rng = rng();
    let attempt = Attempt {
        number: 1,
        method: &Method::GET,
        failed: Failed::Reset,
        replayable: true,
        pushback: None,
        left: None,
    };
    let waits: Vec<_> = (0..1000).filter_map(|_| decide(&policy, &attempt, &mut rng)).collect();
    let mean = waits.iter().sum::<Duration>() / 1000;
    assert!((11..14).contains(&mean.as_millis()), "{mean:?}");
    assert!(
        waits.iter().any(|w| *w < Duration::from_millis(2))
            && waits.iter().any(|w| *w > Duration::from_millis(23))
    );
}

fn policy(percent: u32, floor: u32) -> RetryPolicy {
    RetryPolicy { budget_percent: percent, budget_min_per_second: floor, ..RetryPolicy::default() }
}

fn spend(budget: &Budget, policy: &RetryPolicy, now: Instant) -> usize {
    (0..100_000).take_while(|_| budget.withdraw(policy, now)).count()
}

#[test]
fn retries_are_a_share_of_the_requests_of_the_last_ten_seconds() {
    let (budget, policy, now) = (Budget::default(), policy(20, 0), Instant::now());
    assert_eq!(spend(&budget, &policy, now), 0);
    for _ in 0..104 {
        budget.deposit(&policy, now);
    }
    assert_eq!(spend(&budget, &policy, now), 20);
    assert_eq!(spend(&budget, &policy, now + Duration::from_secs(1)), 0);
    for _ in 0..10 {
        budget.deposit(&policy, now + Duration::from_secs(2));
    }
    // 0.8 of the first hundred were left.
    assert_eq!(spend(&budget, &policy, now + Duration::from_secs(2)), 2);
}

#[test]
fn old_requests_allow_no_retries() {
    let (budget, policy, now) = (Budget::default(), policy(20, 0), Instant::now());
    for _ in 0..1000 {
        budget.deposit(&policy, now);
    }
    assert_eq!(spend(&budget, &policy, now + Duration::from_secs(11)), 0);
}

#[test]
fn a_few_per_second_are_always_allowed_without_saving_up() {
    let (budget, policy, now) = (Budget::default(), policy(0, 10), Instant::now());
    assert_eq!(spend(&budget, &policy, now), 10);
    assert_eq!(spend(&budget, &policy, now + Duration::from_millis(500)), 5);
    assert_eq!(spend(&budget, &policy, now + Duration::from_secs(100)), 10);
}

#[test]
fn no_budget_means_no_retries() {
    let (budget, policy, now) = (Budget::default(), policy(0, 0), Instant::now());
    for _ in 0..1000 {
        budget.deposit(&policy, now);
    }
    assert_eq!(spend(&budget, &policy, now), 0);
}

#[test]
fn two_threads_never_spend_more_than_there_is() {
    let (budget, policy, now) = (Budget::default(), policy(50, 7), Instant::now());
    let spent: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    (0..5000)
                        .filter(|_| {
                            budget.deposit(&policy, now);
                            budget.withdraw(&policy, now)
                        })
                        .count()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(spent <= 5000 + 7, "{spent}");
    assert_eq!(spent + spend(&budget, &policy, now), 5007);
}

proptest! {
    #[test]
    fn over_any_time_retries_stay_within_share_and_floor(
        steps in prop::collection::vec((0u64..3000, 0usize..50, 0usize..50), 1..60),
        percent in 0u32..=100,
        floor in 0u32..20,
    ) {
        let (budget, policy, begin) = (Budget::default(), policy(percent, floor), Instant::now());
        let mut now = begin;
        let (mut requests, mut retries) = (0u64, 0u64);
        for (pause, sent, wanted) in steps {
            now += Duration::from_millis(pause);
            for _ in 0..sent {
                budget.deposit(&policy, now);
                requests += 1;
            }
            retries += (0..wanted).filter(|_| budget.withdraw(&policy, now)).count() as u64;
            let floors = u64::from(floor) * ((now - begin).as_millis() as u64 + 1000) / 1000 + 1;
            prop_assert!(retries <= requests * u64::from(percent) / 100 + floors);
        }
    }
}
