//! A limit that replicas share, simulated: ten clients that call at random times, the replicas' real buckets, the real
//! division, and the delays of both reports and grants. How far what is admitted is from the limit.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the report")]
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use weft_operator::share::{Ledger, Wants};
use weft_proxy::limit::gcra::Rate;
use weft_proxy::limit::share::{Granted, Shared};

const SECOND: u64 = 1_000_000_000;
const EVERY: u64 = SECOND / 5;
/// From a report until its grant is in force, at most: the leader's next look.
const DELAY: u64 = EVERY;

struct Replica {
    shared: Shared,
    bucket: AtomicU64,
}

/// A client: requests per second, and to which replica each of them goes.
struct Client<'a> {
    rate: f64,
    to: &'a dyn Fn(u64, &mut SmallRng) -> usize,
}

struct Run {
    /// Requests that came, and those that were admitted.
    asked: u64,
    admitted: u64,
    /// Of those admitted, by replica.
    by_replica: Vec<u64>,
}

fn simulate(whole: Rate, replicas: usize, clients: &[Client<'_>], seconds: u64, seed: u64) -> Run {
    let mut rng = SmallRng::seed_from_u64(seed);
    let replicas: Vec<_> = (0..replicas)
        .map(|_| Replica { shared: Shared::new(whole, None), bucket: AtomicU64::new(0) })
        .collect();
    let start = 1000 * SECOND;
    let wait =
        |rate: f64, rng: &mut SmallRng| (-(1.0 - rng.random::<f64>()).ln() / rate * SECOND as f64) as u64;
    let mut next: Vec<u64> = clients.iter().map(|client| start + wait(client.rate, &mut rng)).collect();
    let mut under_way = VecDeque::new();
    let mut run = Run { asked: 0, admitted: 0, by_replica: vec![0; replicas.len()] };
    let (mut look, mut ledger) = (start, Ledger::default());
    loop {
        let (client, now) = next.iter().copied().enumerate().min_by_key(|(_, at)| *at).unwrap();
        if now >= start + seconds * SECOND {
            return run;
        }
        while look <= now {
            let wants = replicas.iter().enumerate().map(|(replica, one)| Wants {
                limit: "limit".to_owned(),
                replica,
                demand: one.shared.demand(Duration::from_nanos(EVERY)),
                tally: Some(one.shared.tally(&one.bucket, look)),
            });
            under_way.push_back((look + DELAY, ledger.divide(wants.collect())));
            look += EVERY;
        }
        while under_way.front().is_some_and(|(at, _)| *at <= now) {
            let (at, grants) = under_way.pop_front().unwrap();
            for (_, i, part) in grants {
                let (share, credit) = (part.share, part.credit);
                let granted = Granted { share, credit, others_are_short: part.others_are_short };
                replicas[i].shared.grant(granted, &replicas[i].bucket, at);
            }
        }
        let to = (clients[client].to)(now - start, &mut rng);
        run.asked += 1;
        if replicas[to].shared.draw(&replicas[to].bucket, now).wait.is_none() {
            run.admitted += 1;
            run.by_replica[to] += 1;
        }
        next[client] = now + wait(clients[client].rate, &mut rng);
    }
}

/// The replica by weights.
fn weighted(weights: &[f64], rng: &mut SmallRng) -> usize {
    let mut point = rng.random::<f64>() * weights.iter().sum::<f64>();
    weights
        .iter()
        .position(|weight| {
            point -= weight;
            point < 0.0
        })
        .unwrap_or(0)
}

fn ten(rate: f64, to: &dyn Fn(u64, &mut SmallRng) -> usize) -> Vec<Client<'_>> {
    // Uneven: the busiest sends ten times as much as the quietest.
    (1..=10).map(|n| Client { rate: rate * f64::from(n) / 55.0, to }).collect()
}

/// How far from the limit, as a share of it; the worst of three runs, above the limit by 10 % to 200 %.
fn error(limit: u32, replicas: usize, to: &dyn Fn(u64, &mut SmallRng) -> usize) -> f64 {
    const SECONDS: u64 = 60;
    let whole = Rate::new(limit, Duration::from_secs(1), limit);
    let mut worst: f64 = 0.0;
    for over in [1.1, 1.5, 3.0] {
        for seed in 0..3 {
            let run = simulate(whole, replicas, &ten(f64::from(limit) * over, to), SECONDS, seed);
            let wanted = (u64::from(limit) * SECONDS) as f64;
            let error = (run.admitted as f64 - wanted) / wanted;
            worst = if error.abs() > worst.abs() { error } else { worst };
        }
    }
    worst
}

#[test]
fn ten_clients_over_uneven_replicas_get_the_limit_within_five_percent() {
    let even = |_: u64, rng: &mut SmallRng| rng.random_range(0..3);
    let uneven = |_: u64, rng: &mut SmallRng| weighted(&[70.0, 25.0, 5.0], rng);
    let one = |_: u64, _: &mut SmallRng| 0;
    let ten_replicas =
        |_: u64, rng: &mut SmallRng| weighted(&[30.0, 20.0, 10.0, 10.0, 10.0, 5.0, 5.0, 5.0, 5.0, 0.0], rng);
    let moving = |every: u64| {
        move |at: u64, rng: &mut SmallRng| {
            (weighted(&[80.0, 15.0, 5.0], rng) + (at / (every * SECOND)) as usize) % 3
        }
    };
    let errors = [
        ("even", error(500, 3, &even)),
        ("70/25/5", error(500, 3, &uneven)),
        ("one replica only", error(500, 3, &one)),
        ("ten replicas, from none to 30 %", error(500, 10, &ten_replicas)),
        ("70/25/5 of 2000", error(2000, 3, &uneven)),
        ("70/25/5 of 50", error(50, 3, &uneven)),
        // So few that chance counts, and it takes seconds to tell the load.
        ("70/25/5 of 20", error(20, 3, &uneven)),
        ("80/15/5, moving every 20 s", error(500, 3, &moving(20))),
        // Half a second of every five the load is not where it was.
        ("80/15/5, moving every 5 s", error(500, 3, &moving(5))),
        ("80/15/5 of 50, moving every 5 s", error(50, 3, &moving(5))),
        ("80/15/5 of 20, moving every 5 s", error(20, 3, &moving(5))),
    ];
    println!("error, worst of 9 runs: {errors:.4?}");
    for (load, error) in errors {
        assert!(error.abs() <= 0.05, "{load}: {:.2} %", error * 100.0);
    }
}

#[test]
fn below_the_limit_hardly_anything_is_refused_and_above_it_every_replica_refuses_alike() {
    let whole = Rate::new(500, Duration::from_secs(1), 100);
    let to = |_: u64, rng: &mut SmallRng| weighted(&[70.0, 25.0, 5.0], rng);
    let below = simulate(whole, 3, &ten(300.0, &to), 60, 1);
    assert!(
        (below.asked - below.admitted) as f64 <= 0.01 * below.asked as f64,
        "{}",
        below.asked - below.admitted
    );
    let above = simulate(whole, 3, &ten(1500.0, &to), 60, 1);
    for (admitted, weight) in above.by_replica.iter().zip([0.70, 0.25, 0.05]) {
        let share = *admitted as f64 / above.admitted as f64;
        assert!(
            (share - weight).abs() < 0.02,
            "{share} of what was admitted, for {weight} of what was asked"
        );
    }
}

#[test]
fn without_the_operator_no_replica_gives_away_more_than_its_last_part() {
    let whole = Rate::new(1000, Duration::from_secs(1), 100);
    let (shared, bucket) = (Shared::new(whole, None), AtomicU64::new(0));
    shared.grant(Granted { share: 250_000, ..Granted::default() }, &bucket, SECOND);
    let admitted = (0..100_000_u64)
        .filter(|n| shared.draw(&bucket, SECOND + n * SECOND / 10_000).wait.is_none())
        .count();
    // Ten seconds of a quarter, and what the bucket held.
    assert!((2500..=2525).contains(&admitted), "{admitted}");
}
