//! Tests of `outlier`: no cluster, nothing but what they make themselves.

use super::*;
use proptest::prelude::*;

const CONFIG: OutlierConfig = OutlierConfig {
    consecutive_failures: Some(3),
    consecutive_gateway_errors: None,
    interval: None,
    success_rate: None,
    latency: None,
    base_ejection: Duration::from_secs(10),
    max_ejection: Duration::from_secs(60),
    max_ejected_percent: 50,
};

/// An endpoint and a clock.
struct Endpoint {
    health: Health,
    now: Instant,
}

impl Endpoint {
    fn new() -> Self {
        Self { health: Health::new(Arc::new(watch::Sender::new(0))), now: Instant::now() }
    }

    fn wait(&mut self, time: Duration) {
        // What is due is due within a millisecond.
        self.now += time + Duration::from_millis(1);
    }

    fn succeed(&self, pass: Pass) -> Option<Verdict> {
        self.health.success(pass, &CONFIG, self.now)
    }

    fn fail(&self, pass: Pass, failure: Failure) -> Option<Verdict> {
        self.health.failure(pass, failure, &CONFIG, || true, self.now)
    }

    fn is(&self) -> Admission {
        self.health.admits(self.now)
    }

    fn eject(&self) {
        for _ in 0..3 {
            self.fail(Pass::Normal, Failure::Status);
        }
        assert_eq!(self.is(), Admission::Out);
    }

    fn probe(&self) -> Pass {
        self.health.probe(self.now).unwrap()
    }
}

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn the_last_of_the_failures_in_a_row_ejects_and_none_before() {
    let endpoint = Endpoint::new();
    assert_eq!(endpoint.fail(Pass::Normal, Failure::Status), None);
    assert_eq!(endpoint.fail(Pass::Normal, Failure::Reset), None);
    assert_eq!(endpoint.is(), Admission::In);
    assert_eq!(
        endpoint.fail(Pass::Normal, Failure::Timeout),
        Some(Verdict::Ejected(Cause::Failures(3), secs(10)))
    );
    assert_eq!(endpoint.is(), Admission::Out);
    assert_eq!(endpoint.health.ejected().unwrap().to_string(), "3 consecutive failures");
}

#[test]
fn a_success_ends_the_row() {
    let endpoint = Endpoint::new();
    for _ in 0..10 {
        endpoint.fail(Pass::Normal, Failure::Status);
        endpoint.fail(Pass::Normal, Failure::Status);
        assert_eq!(endpoint.succeed(Pass::Normal), None);
    }
    assert_eq!(endpoint.is(), Admission::In);
}

#[test]
fn one_failed_connect_ejects_for_a_second() {
    let mut endpoint = Endpoint::new();
    let verdict = endpoint.fail(Pass::Normal, Failure::Connect);
    assert_eq!(verdict, Some(Verdict::Ejected(Cause::Connect, secs(1))));
    assert_eq!(endpoint.health.probe(endpoint.now), None);
    endpoint.wait(secs(1));
    assert_eq!(endpoint.is(), Admission::Due);
}

#[test]
fn exactly_one_request_at_a_time_is_the_probe() {
    let mut endpoint = Endpoint::new();
    endpoint.eject();
    endpoint.wait(secs(10));
    let probe = endpoint.probe();
    assert_eq!(endpoint.is(), Admission::Out);
    assert_eq!(endpoint.health.probe(endpoint.now), None);
    // It came to nothing: the next one may.
    endpoint.health.neutral(probe);
    assert_eq!(endpoint.is(), Admission::Due);
    let probe = endpoint.probe();
    assert_eq!(endpoint.succeed(probe), Some(Verdict::Returned));
    assert_eq!(endpoint.is(), Admission::In);
}

#[test]
fn ejections_in_a_row_grow_up_to_the_maximum() {
    let mut endpoint = Endpoint::new();
    endpoint.eject();
    for length in [20, 30, 40, 50, 60, 60] {
        endpoint.wait(secs(60));
        let probe = endpoint.probe();
        let verdict = endpoint.fail(probe, Failure::Status);
        assert_eq!(verdict, Some(Verdict::Kept(Cause::Failures(3), secs(length))));
    }
}

#[test]
fn failed_connects_double_up_to_the_maximum() {
    let mut endpoint = Endpoint::new();
    endpoint.fail(Pass::Normal, Failure::Connect);
    for length in [2, 4, 8, 16, 32, 60, 60] {
        endpoint.wait(secs(60));
        let probe = endpoint.probe();
        let verdict = endpoint.fail(probe, Failure::Connect);
        assert_eq!(verdict, Some(Verdict::Kept(Cause::Connect, secs(length))));
    }
}

#[test]
fn a_clean_period_ends_the_row_of_ejections_and_a_shorter_one_does_not() {
    // (time back, length of the next ejection)
    for (clean, next) in [(9, 20), (10, 10), (100, 10)] {
        let mut endpoint = Endpoint::new();
        endpoint.eject();
        endpoint.wait(secs(10));
        let probe = endpoint.probe();
        endpoint.succeed(probe);
        endpoint.wait(secs(clean));
        for _ in 0..2 {
            endpoint.fail(Pass::Normal, Failure::Status);
        }
        let verdict = endpoint.fail(Pass::Normal, Failure::Status);
        assert_eq!(verdict, Some(Verdict::Ejected(Cause::Failures(3), secs(next))), "{clean} s clean");
    }
}

#[test]
fn answers_to_requests_from_before_the_ejection_change_nothing() {
    let mut endpoint = Endpoint::new();
    endpoint.eject();
    for _ in 0..10 {
        assert_eq!(endpoint.succeed(Pass::Normal), None);
        assert_eq!(endpoint.fail(Pass::Normal, Failure::Connect), None);
    }
    assert_eq!(endpoint.is(), Admission::Out);
    endpoint.wait(secs(10));
    assert_eq!(endpoint.is(), Admission::Due);
}

#[test]
fn a_probe_of_an_earlier_ejection_changes_nothing() {
    let mut endpoint = Endpoint::new();
    endpoint.eject();
    endpoint.wait(secs(10));
    let old = endpoint.probe();
    endpoint.health.neutral(old);
    let failed = endpoint.probe();
    endpoint.fail(failed, Failure::Status);
    endpoint.wait(secs(20));
    let fresh = endpoint.probe();
    for stale in [old, failed] {
        if stale != fresh {
            assert_eq!(endpoint.succeed(stale), None);
            assert_eq!(endpoint.fail(stale, Failure::Status), None);
            endpoint.health.neutral(stale);
            assert_eq!(endpoint.health.probe(endpoint.now), None, "the fresh probe is still under way");
        }
    }
    assert_eq!(endpoint.succeed(fresh), Some(Verdict::Returned));
}

#[test]
fn a_probe_that_succeeds_and_breaks_off_later_is_a_failure_of_an_endpoint_that_is_back() {
    let mut endpoint = Endpoint::new();
    endpoint.eject();
    endpoint.wait(secs(10));
    let probe = endpoint.probe();
    endpoint.succeed(probe);
    assert_eq!(endpoint.fail(probe, Failure::Reset), None);
    assert_eq!(endpoint.fail(Pass::Normal, Failure::Reset), None);
    assert!(matches!(
        endpoint.fail(Pass::Normal, Failure::Reset),
        Some(Verdict::Ejected(Cause::Failures(3), _))
    ));
}

#[test]
fn a_request_that_went_there_for_want_of_another_brings_it_back_but_never_keeps_it_out() {
    let endpoint = Endpoint::new();
    endpoint.eject();
    let pass = endpoint.health.pass();
    assert_eq!(endpoint.fail(pass, Failure::Connect), None);
    assert_eq!(endpoint.succeed(pass), Some(Verdict::Returned));
}

#[test]
fn a_failure_that_the_share_does_not_allow_to_eject_ejects_later() {
    let endpoint = Endpoint::new();
    for _ in 0..5 {
        let verdict =
            endpoint.health.failure(Pass::Normal, Failure::Connect, &CONFIG, || false, endpoint.now);
        assert_eq!(verdict, None);
    }
    assert_eq!(
        endpoint.fail(Pass::Normal, Failure::Status),
        Some(Verdict::Ejected(Cause::Failures(6), secs(10)))
    );
}

#[test]
fn every_ejection_and_return_is_announced_and_nothing_else() {
    let changes = Arc::new(watch::Sender::new(0));
    let mut endpoint = Endpoint { health: Health::new(Arc::clone(&changes)), now: Instant::now() };
    endpoint.succeed(Pass::Normal);
    endpoint.fail(Pass::Normal, Failure::Status);
    assert_eq!(*changes.borrow(), 0);
    endpoint.fail(Pass::Normal, Failure::Connect);
    assert_eq!(*changes.borrow(), 1);
    endpoint.wait(secs(1));
    let probe = endpoint.probe();
    endpoint.succeed(probe);
    assert_eq!(*changes.borrow(), 2);
}

#[test]
fn the_share_is_rounded_down_but_one_may_always_go_if_another_is_left() {
    for (total, out, percent, may) in [
        (0, 0, 50, false),
        (1, 0, 100, false),
        (2, 0, 50, true),
        (2, 1, 50, false),
        (2, 0, 0, true),
        (3, 1, 50, false),
        (4, 1, 50, true),
        (4, 2, 50, false),
        (10, 4, 50, true),
        (10, 5, 50, false),
        (3, 2, 100, true),
        (3, 3, 1000, false),
    ] {
        assert_eq!(may_eject(total, out, percent), may, "{out} of {total} out, {percent} %");
    }
}

/// What may happen to an endpoint, in any order.
#[derive(Clone, Debug)]
enum Event {
    Send,
    Succeed(usize),
    Fail(usize, bool, bool),
    Cancel(usize),
    Wait(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => Just(Event::Send),
        3 => any::<usize>().prop_map(Event::Succeed),
        4 => (any::<usize>(), any::<bool>(), any::<bool>()).prop_map(|(i, c, m)| Event::Fail(i, c, m)),
        1 => any::<usize>().prop_map(Event::Cancel),
        2 => (0u64..30_000).prop_map(Event::Wait),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_it_comes_back_with_the_next_probe_that_succeeds(events in prop::collection::vec(event(), 0..200)) {
        let mut endpoint = Endpoint::new();
        let mut under_way: Vec<Pass> = Vec::new();
        for event in events {
            let take = |under_way: &mut Vec<Pass>, i: usize| {
                (!under_way.is_empty()).then(|| under_way.swap_remove(i % under_way.len()))
            };
            match event {
                Event::Send => {
                    let pass = endpoint.health.probe(endpoint.now).unwrap_or_else(|| endpoint.health.pass());
                    under_way.push(pass);
                }
                Event::Succeed(i) => if let Some(pass) = take(&mut under_way, i) { endpoint.succeed(pass); },
                Event::Fail(i, connect, may) => if let Some(pass) = take(&mut under_way, i) {
                    let failure = if connect { Failure::Connect } else { Failure::Status };
                    let was_out = endpoint.is() != Admission::In;
                    let verdict = endpoint.health.failure(pass, failure, &CONFIG, || may, endpoint.now);
                    if let Some(Verdict::Ejected(_, length) | Verdict::Kept(_, length)) = verdict {
                        prop_assert!(length >= secs(1) && length <= CONFIG.max_ejection);
                        prop_assert_eq!(was_out, matches!(verdict, Some(Verdict::Kept(..))));
                    }
                },
                Event::Cancel(i) => if let Some(pass) = take(&mut under_way, i) { endpoint.health.neutral(pass); },
                Event::Wait(ms) => endpoint.now += Duration::from_millis(ms),
            }
            let probes = under_way.iter().filter(|pass| matches!(pass, Pass::Probe(_)
                if *pass == &Pass::Probe(endpoint.health.state().number))).count();
            prop_assert!(probes <= 1, "{probes} probes of one ejection");
            prop_assert_eq!(endpoint.health.ejected().is_some(), endpoint.is() != Admission::In);
        }
        for pass in under_way.drain(..) {
            endpoint.health.neutral(pass);
        }
        endpoint.wait(CONFIG.max_ejection);
        if endpoint.is() != Admission::In {
            prop_assert_eq!(endpoint.is(), Admission::Due);
            let probe = endpoint.probe();
            prop_assert_eq!(endpoint.succeed(probe), Some(Verdict::Returned));
        }
    }
}
