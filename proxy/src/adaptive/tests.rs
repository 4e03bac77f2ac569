//! Tests of `adaptive`: a service with so many places and a queue before them, simulated; more requests than it can serve.

#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use super::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

const SERVICE: f64 = 0.010;

fn config() -> Config {
    Config { min: 3, max: 1000, tolerance: 0.25, baseline_every: Duration::from_secs(20) }
}

/// What came of a stretch of time.
#[derive(Debug, Default)]
struct Stretch {
    /// Mean of the limit, while it follows.
    limit: f64,
    /// Requests answered, as a share of what the service can do.
    used: f64,
    /// Mean time of a request, in service times.
    time: f64,
}

/// A service with `places(second)` requests served at a time, each for a random time, the others waiting in turn. Requests
/// come at random, `load` times as many as it can serve. A stretch for each of `seconds`.
fn simulate(load: f64, places: impl Fn(u64) -> usize, seconds: u64, seed: u64) -> Vec<Stretch> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let start = Instant::now();
    let (mut gradient, mut at) = (Gradient::new(config()), 0.0_f64);
    let exponential = |mean: f64, rng: &mut SmallRng| -(1.0 - rng.random::<f64>()).ln() * mean;
    let moment = |at: f64| start + Duration::from_secs_f64(at);
    // (end in ns, began) of what is served, and what waits.
    let mut served: BinaryHeap<Reverse<(u64, u64)>> = BinaryHeap::new();
    let mut waiting: VecDeque<f64> = VecDeque::new();
    let mut stretches: Vec<Stretch> = (0..seconds).map(|_| Stretch::default()).collect();
    let mut counts = vec![(0_u32, 0_u32); seconds as usize];
    let nanos = |at: f64| (at * 1e9) as u64;
    let mut next = 0.0;
    loop {
        let open = places((at as u64).min(seconds - 1));
        while served.len() < open
            && let Some(began) = waiting.pop_front()
        {
            served.push(Reverse((nanos(at + exponential(SERVICE, &mut rng)), nanos(began))));
        }
        let ends = served.peek().map(|Reverse((end, _))| *end as f64 / 1e9);
        at = ends.map_or(next, |end| end.min(next));
        let second = at as usize;
        if second >= seconds as usize {
            break;
        }
        let in_flight = (served.len() + waiting.len()) as u32;
        if ends.is_some_and(|end| end <= next) {
            let Some(Reverse((_, began))) = served.pop() else { unreachable!() };
            let began = began as f64 / 1e9;
            gradient.sample(moment(began), moment(at), in_flight, &mut rng);
            stretches[second].used += SERVICE / open as f64;
            stretches[second].time += (at - began) / SERVICE;
            counts[second].0 += 1;
            if matches!(gradient.phase, Phase::Following { .. }) {
                stretches[second].limit += f64::from(gradient.limit());
                counts[second].1 += 1;
            }
        } else {
            if in_flight < gradient.limit() {
                waiting.push_back(at);
            }
            next = at + exponential(SERVICE / (places(second as u64) as f64 * load), &mut rng);
        }
    }
    for (stretch, (ended, following)) in stretches.iter_mut().zip(counts) {
        stretch.time /= f64::from(ended.max(1));
        stretch.limit /= f64::from(following.max(1));
    }
    stretches
}

fn mean(stretches: &[Stretch], of: impl Fn(&Stretch) -> f64) -> f64 {
    stretches.iter().map(of).sum::<f64>() / stretches.len() as f64
}

#[test]
fn under_overload_the_limit_settles_near_what_the_service_can_serve_at_a_time() {
    for places in [20, 50, 100] {
        for (load, seed) in [(1.5, 1), (1.5, 2), (1.5, 3), (3.0, 4), (3.0, 5)] {
            let run = simulate(load, |_| places, 25, seed);
            let settled = &run[5..];
            let (limit, used, time) =
                (mean(settled, |s| s.limit), mean(settled, |s| s.used), mean(settled, |s| s.time));
            println!(
                "{places} places, load {load}: limit {limit:.0}, used {used:.2}, time {time:.2} service times"
            );
            let places = places as f64;
            assert!((0.8 * places..=1.8 * places).contains(&limit), "limit {limit} for {places} places");
            assert!(used > 0.8, "{used} of the service was used");
            assert!(time < 2.0, "a request took {time} service times");
        }
    }
}

#[test]
fn a_service_that_loses_places_is_followed_down_and_one_that_gains_them_up() {
    let run = simulate(5.0, |second| if (15..30).contains(&second) { 20 } else { 100 }, 45, 7);
    let limit = |seconds: std::ops::Range<usize>| mean(&run[seconds], |s| s.limit);
    assert!((90.0..=180.0).contains(&limit(5..15)), "{}", limit(5..15));
    assert!((18.0..=40.0).contains(&limit(18..30)), "{}", limit(18..30));
    assert!((90.0..=180.0).contains(&limit(35..45)), "{}", limit(35..45));
    // Two seconds after each change the service is in full use again, with a short queue.
    for stretch in [&run[17..19], &run[33..35]] {
        assert!(mean(stretch, |s| s.used) > 0.8 && mean(stretch, |s| s.time) < 2.0, "{stretch:?}");
    }
}

#[test]
fn below_its_capacity_hardly_anything_is_refused() {
    let run = simulate(0.5, |_| 100, 30, 3);
    // The baseline is measured twice in this time, and refuses while it is.
    let used = mean(&run[2..], |s| s.used);
    assert!((0.47..=0.53).contains(&used), "{used}");
}

#[test]
fn the_limit_stays_within_its_bounds_and_does_not_grow_unused() {
    let mut rng = SmallRng::seed_from_u64(1);
    let start = Instant::now();
    let mut gradient = Gradient::new(Config { max: 40, ..config() });
    let mut now = start;
    let mut run = |gradient: &mut Gradient, requests: u32, time_ms: u64, in_flight: u32| {
        for _ in 0..requests {
            now += Duration::from_millis(5);
            let began = now.checked_sub(Duration::from_millis(time_ms)).unwrap_or(start);
            gradient.sample(began, now, in_flight, &mut rng);
        }
        gradient.limit()
    };
    assert_eq!(run(&mut gradient, 99, 1, 3), 3);
    // Fast, and in use: up to the bound. Fast, and hardly in use: no further.
    let grown = run(&mut gradient, 40, 1, 2);
    assert!(grown < 12, "{grown}");
    assert_eq!(run(&mut gradient, 1000, 1, 40), 40);
    // Slow: down to the bound, and then the baseline is measured anew, after which the same time is right.
    assert_eq!(run(&mut gradient, 260, 100, 40), 3);
    assert!(run(&mut gradient, 1000, 100, 40) > 30);
}

#[test]
fn without_requests_it_waits_and_few_are_enough_in_the_end() {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut gradient = Gradient::new(config());
    let start = Instant::now() + Duration::from_secs(1000);
    for n in 0..6_u32 {
        assert_eq!(gradient.phase == Phase::Baseline(None), n == 0);
        let now = start + Duration::from_millis(300) * n;
        gradient.sample(now - Duration::from_millis(10), now, 1, &mut rng);
    }
    assert!(matches!(gradient.phase, Phase::Following { .. }));
    assert_eq!(gradient.baseline, Some(Duration::from_millis(10)));
}
