//! The state machine as tables: when, what a request got, in what state the endpoint is then, and what was said of it.
//! A request is sent and answered at the same moment: it is the probe when one is due, and otherwise goes there whatever
//! the state is. `late-*` is an answer to one that was sent before the ejection.

use super::judge::{Counts, judge};
use super::*;

const BASE: OutlierConfig = OutlierConfig {
    consecutive_failures: Some(5),
    consecutive_gateway_errors: Some(3),
    interval: None,
    success_rate: None,
    latency: None,
    base_ejection: Duration::from_secs(10),
    max_ejection: Duration::from_secs(25),
    max_ejected_percent: 50,
};

#[track_caller]
fn check(config: &OutlierConfig, table: &str) {
    let health = Health::new(Arc::new(watch::Sender::new(0)));
    let begin = Instant::now();
    for (number, line) in table.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty()) {
        let mut words = line.split_whitespace();
        let (at, event, state) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
        let now = begin + Duration::from_millis(at.parse().unwrap());
        let (late, event) = match event.strip_prefix("late-") {
            Some(event) => (true, event),
            None => (false, event),
        };
        let may = event != "500-denied";
        let pass = match late {
            true => Pass::Normal,
            false => health.probe(now).unwrap_or_else(|| health.pass()),
        };
        let fails = |failure| health.failure(pass, failure, config, || may, now);
        let verdict = match event {
            "ok" => health.success(pass, config, now),
            "500" | "500-denied" => fails(Failure::Status),
            "503" => fails(Failure::Gateway),
            "reset" => fails(Failure::Reset),
            "timeout" => fails(Failure::Timeout),
            "refused" => fails(Failure::Connect),
            "gone" => fails(Failure::Gone),
            "slow" => health.judged(Cause::Latency { own: 90, median: 3 }, config, || may, now),
            "left" => {
                health.neutral(pass);
                None
            }
            "-" => {
                health.neutral(pass);
                None
            }
            other => panic!("{other}?"),
        };
        let is = match health.admits(now) {
            Admission::In => "in",
            Admission::Due => "due",
            Admission::Out => "out",
        };
        let said = match verdict {
            Some(Verdict::Ejected(cause, time)) => format!("ejected {time:?}: {cause}"),
            Some(Verdict::Kept(cause, time)) => format!("kept {time:?}: {cause}"),
            Some(Verdict::Returned) => "back".to_owned(),
            None => String::new(),
        };
        let expected = words.collect::<Vec<_>>().join(" ");
        assert_eq!((is, said.as_str()), (state, expected.as_str()), "line {number}: {line}");
    }
}

#[test]
fn failures_in_a_row_of_any_kind() {
    check(
        &OutlierConfig { consecutive_gateway_errors: None, ..BASE },
        "
        0      500      in
        1      503      in
        2      reset    in
        3      timeout  in
        4      ok       in
        5      500      in
        6      503      in
        7      left     in
        8      reset    in
        9      timeout  in
        10     500      out  ejected 10s: 5 consecutive failures
        11     late-500 out
        12     late-ok  out
        10010  -        out
        10011  -        due
        ",
    );
}

#[test]
fn gateway_errors_have_a_row_of_their_own_that_a_500_ends() {
    check(
        &BASE,
        "
        0      503      in
        1      timeout  in
        2      500      in
        3      503      in
        4      reset    out  ejected 10s: 5 consecutive failures
        10006  ok       in   back
        10007  503      in
        10008  503      in
        10009  reset    out  ejected 20s: 3 consecutive gateway errors
        ",
    );
    check(
        &OutlierConfig { consecutive_failures: None, ..BASE },
        "
        0      500      in
        1      500      in
        2      500      in
        3      500      in
        4      500      in
        5      500      in
        6      503      in
        7      503      in
        8      503      out  ejected 10s: 3 consecutive gateway errors
        ",
    );
}

#[test]
fn one_failed_connect_is_enough_and_its_ejections_double() {
    check(
        &BASE,
        "
        0      ok       in
        1      refused  out  ejected 1s: failed to connect
        1002   refused  out  kept 2s: failed to connect
        3003   refused  out  kept 4s: failed to connect
        7004   refused  out  kept 8s: failed to connect
        15005  refused  out  kept 16s: failed to connect
        31006  refused  out  kept 25s: failed to connect
        56007  ok       in   back
        ",
    );
}

#[test]
fn one_that_is_gone_is_out_at_once_like_one_that_cannot_be_connected() {
    check(
        &BASE,
        "
        0      ok       in
        1      gone     out  ejected 1s: acknowledges nothing any more
        2      late-gone out
        1002   refused  out  kept 2s: failed to connect
        3003   500      out  kept 4s: failed to connect
        7004   ok       in   back
        7005   gone     out  ejected 8s: acknowledges nothing any more
        ",
    );
}

#[test]
fn ejections_grow_until_it_was_back_for_long_enough() {
    check(
        &OutlierConfig { consecutive_failures: Some(1), ..BASE },
        "
        0      500      out  ejected 10s: 1 consecutive failures
        10001  500      out  kept 20s: 1 consecutive failures
        30002  500      out  kept 25s: 1 consecutive failures
        55003  left     due
        55004  ok       in   back
        80003  500      out  ejected 25s: 1 consecutive failures
        105004 ok       in   back
        130004 500      out  ejected 10s: 1 consecutive failures
        ",
    );
}

#[test]
fn a_failure_that_may_not_eject_is_remembered() {
    check(
        &OutlierConfig { consecutive_failures: Some(2), ..BASE },
        "
        0      500-denied in
        1      500-denied in
        2      500-denied in
        3      500        out  ejected 10s: 4 consecutive failures
        ",
    );
}

#[test]
fn a_judgement_ejects_once_and_a_row_of_them_grows() {
    let judged = OutlierConfig { interval: Some(Duration::from_secs(10)), ..BASE };
    check(
        &judged,
        "
        0      slow     out  ejected 10s: mean latency 90 ms, its peers' 3 ms
        1      slow     out
        10001  ok       in   back
        29000  ok       in
        30000  slow     out  ejected 20s: mean latency 90 ms, its peers' 3 ms
        50001  ok       in   back
        90001  slow     out  ejected 10s: mean latency 90 ms, its peers' 3 ms
        ",
    );
}

#[test]
fn nothing_else_is_judged_where_nothing_is_to_be_judged_by() {
    check(
        &OutlierConfig { consecutive_failures: None, consecutive_gateway_errors: None, ..BASE },
        "
        0      500      in
        1      503      in
        2      503      in
        3      503      in
        4      503      in
        5      503      in
        6      refused  out  ejected 1s: failed to connect
        ",
    );
}

// --- Beside its peers

/// Successes, failures, mean latency in ms.
fn counts(all: &[(u32, u32, u64)]) -> Vec<Option<Counts>> {
    let one = |&(successes, failures, ms): &(u32, u32, u64)| {
        Some(Counts { successes, failures, micros: u64::from(successes) * ms * 1000 })
    };
    all.iter().map(one).collect()
}

const RATE: OutlierConfig = OutlierConfig {
    success_rate: Some(SuccessRate { min_requests: 100, min_hosts: 5, stdev_factor_thousandths: 1900 }),
    ..BASE
};

const LATENCY: OutlierConfig =
    OutlierConfig { latency: Some(LatencyRule { min_requests: 100, factor_thousandths: 3000 }), ..BASE };

#[test]
fn a_share_of_successes_is_compared_with_that_of_all() {
    let good = (100, 0, 1);
    for (name, all, ejected) in [
        ("all fail alike", vec![(50, 50, 1); 6], vec![]),
        ("one fails half", vec![good, good, good, good, (50, 50, 1)], vec![(4, 50, 90)]),
        ("one fails all", vec![(0, 100, 0), good, good, good, good], vec![(0, 0, 80)]),
        ("one of too few", vec![(0, 100, 0), good, good, good], vec![]),
        ("one with too few requests", vec![(0, 99, 0), good, good, good, good], vec![]),
        ("others with too few requests", vec![(0, 100, 0), good, good, good, (99, 0, 1)], vec![]),
        ("less than five points below", vec![(945, 55, 1), (990, 10, 1), good, good, good, good], vec![]),
        ("a little more", vec![(930, 70, 1), (990, 10, 1), good, good, good, good], vec![(0, 93, 99)]),
        ("half of them fail", vec![(0, 100, 0), (0, 100, 0), (0, 100, 0), good, good, good], vec![]),
    ] {
        let found: Vec<_> = judge(&counts(&all), &RATE)
            .into_iter()
            .map(|(index, cause)| match cause {
                Cause::SuccessRate { own, mean } => (index, own, mean),
                other => panic!("{other}"),
            })
            .collect();
        assert_eq!(found, ejected, "{name}");
    }
}

#[test]
fn a_latency_is_compared_with_the_median_of_the_others() {
    let at = |ms| (100, 0, ms);
    for (name, all, ejected) in [
        ("all alike", vec![at(5); 4], vec![]),
        ("one slower by the factor, to the millisecond", vec![at(5), at(5), at(17)], vec![]),
        ("and a millisecond more", vec![at(5), at(5), at(18)], vec![(2, 18, 5)]),
        ("noise", vec![at(0), at(0), at(2)], vec![]),
        ("of two nobody can tell", vec![at(1), at(1000)], vec![]),
        ("too few requests", vec![at(5), at(5), (99, 0, 1000)], vec![]),
        ("failures are not fast answers", vec![at(5), at(5), (99, 500, 1000)], vec![]),
        ("the worst first", vec![at(50), at(5), at(100), at(5), at(5)], vec![(2, 100, 5), (0, 50, 5)]),
        ("an even number of others", vec![at(4), at(6), at(6), at(8), at(22)], vec![(4, 22, 6)]),
    ] {
        let found: Vec<_> = judge(&counts(&all), &LATENCY)
            .into_iter()
            .map(|(index, cause)| match cause {
                Cause::Latency { own, median } => (index, own, median),
                other => panic!("{other}"),
            })
            .collect();
        assert_eq!(found, ejected, "{name}");
    }
}

#[test]
fn who_is_out_is_no_peer() {
    let mut all = counts(&[(100, 0, 1); 5]);
    all.push(None);
    all[0] = counts(&[(0, 100, 0)])[0];
    assert_eq!(judge(&all, &RATE).len(), 1);
    all.remove(1);
    assert_eq!(judge(&all, &RATE), []);
}
