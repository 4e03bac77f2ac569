//! A simulation in discrete events: open arrivals, ten replicas that serve a few requests at a time, one of them sick. All time
//! is virtual and all chance is seeded, so that it comes out the same on every machine.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::*;
use rand::Rng;

const REPLICAS: usize = 10;
/// What a replica serves at the same time.
const SLOTS: usize = 16;
const REQUESTS: usize = 30_000;
/// While averages settle.
const WARM_UP: usize = 3_000;
/// Requests per second: little for what ten healthy replicas could do, and more than half of what a slow one can if it gets a tenth.
const RATE: f64 = 900.0;
const SERVICE_MS: f64 = 10.0;

/// What ails the last replica.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sick {
    /// Ten times as slow.
    Slow,
    /// It refuses three requests of four at once, with 429 or 503.
    Refuses(Outcome),
}

#[derive(Debug)]
struct Result {
    p50: f64,
    p99: f64,
    /// Of all requests.
    at_sick: f64,
    refused: f64,
}

struct Request {
    load: Load,
    replica: usize,
    arrived: f64,
    service: f64,
    refused: bool,
}

/// Milliseconds.
fn exponential(mean: f64, rng: &mut SmallRng) -> f64 {
    -mean * (1.0 - rng.random::<f64>()).ln()
}

fn simulate(balancer: v1::Balancer, sick: Sick) -> Result {
    let mut rng = SmallRng::seed_from_u64(7);
    // Ejection would help every algorithm, and is not what is compared.
    let mut message = service(&[]);
    message.clusters[0].outlier = None;
    message.clusters[0].balancer = balancer.into();
    message.clusters[0].hash = Some(v1::Hash { key: Some(v1::hash::Key::SourceIp(true)), ring_points: 0 });
    message.clusters[0].endpoints = (0..REPLICAS).map(|i| endpoint(&address(i).to_string(), 100)).collect();
    let update = v1::ToProxy { services: vec![message], ..Default::default() };
    let cluster = cluster_of(&applied(&Snapshot::default(), &update));

    let begin = Instant::now();
    let at = |ms: f64| begin + Duration::from_secs_f64(ms / 1000.0);
    let mut under_way: Vec<Option<Request>> = Vec::new();
    // When, and which request ends then. Nanoseconds, because floats have no order.
    let mut ends: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
    let mut queues: Vec<VecDeque<usize>> = vec![VecDeque::new(); REPLICAS];
    let mut busy = [0; REPLICAS];
    let (mut waits, mut at_sick, mut refused) = (Vec::new(), 0, 0);
    let mut arrival = 0.0;
    let start = |id: usize, now: f64, under_way: &[Option<Request>], ends: &mut BinaryHeap<_>| {
        let service = under_way[id].as_ref().unwrap().service;
        ends.push(Reverse((((now + service) * 1e6) as u64, id)));
    };
    while under_way.len() < REQUESTS || !ends.is_empty() {
        let next_end = ends.peek().map(|Reverse((ns, _))| *ns as f64 / 1e6);
        if under_way.len() < REQUESTS && next_end.is_none_or(|end| arrival <= end) {
            let now = arrival;
            arrival += exponential(1000.0 / RATE, &mut rng);
            let key = Some(rng.random());
            let load = pick(&cluster, key, &[], at(now), &mut rng).unwrap();
            let replica = cluster.endpoints.iter().position(|e| e.addr == load.endpoint.addr).unwrap();
            let ill = replica == REPLICAS - 1;
            let refuses = ill && matches!(sick, Sick::Refuses(_)) && rng.random_bool(0.75);
            let mean = if ill && sick == Sick::Slow { 10.0 * SERVICE_MS } else { SERVICE_MS };
            let service = if refuses { 0.1 } else { exponential(mean, &mut rng) };
            let id = under_way.len();
            if id >= WARM_UP {
                at_sick += u32::from(ill);
                refused += u32::from(refuses);
            }
            under_way.push(Some(Request { load, replica, arrived: now, service, refused: refuses }));
            if refuses || busy[replica] < SLOTS {
                busy[replica] += usize::from(!refuses);
                start(id, now, &under_way, &mut ends);
            } else {
                queues[replica].push_back(id);
            }
            continue;
        }
        let Reverse((ns, id)) = ends.pop().unwrap();
        let now = ns as f64 / 1e6;
        let Request { mut load, replica, arrived, refused, .. } = under_way[id].take().unwrap();
        let latency = Duration::from_secs_f64((now - arrived).max(0.0) / 1000.0);
        let outcome = match sick {
            Sick::Refuses(outcome) if refused => outcome,
            _ => Outcome::Success { latency },
        };
        let _ = load.report_at(outcome, at(now));
        drop(load);
        if refused {
            continue;
        }
        if id >= WARM_UP {
            waits.push(now - arrived);
        }
        match queues[replica].pop_front() {
            Some(next) => start(next, now, &under_way, &mut ends),
            None => busy[replica] -= 1,
        }
    }
    waits.sort_by(f64::total_cmp);
    let percentile = |p: f64| waits[((waits.len() - 1) as f64 * p) as usize];
    let share = |n: u32| f64::from(n) / (REQUESTS - WARM_UP) as f64;
    Result { p50: percentile(0.5), p99: percentile(0.99), at_sick: share(at_sick), refused: share(refused) }
}

#[test]
fn with_one_slow_replica_of_ten_peak_ewma_has_a_third_of_round_robins_p99_at_most() {
    println!("one of ten replicas ten times as slow, {RATE} requests/s, {REQUESTS} requests");
    println!("| algorithm | p50 ms | p99 ms | at the slow one |");
    println!("|---|---|---|---|");
    let results = ALL.map(|balancer| {
        let result = simulate(balancer, Sick::Slow);
        println!(
            "| {balancer:?} | {:.1} | {:.1} | {:.2} % |",
            result.p50,
            result.p99,
            result.at_sick * 100.0
        );
        (balancer, result)
    });
    let of = |wanted: v1::Balancer| &results.iter().find(|(b, _)| *b == wanted).unwrap().1;
    let (ewma, least) = (of(v1::Balancer::PeakEwma), of(v1::Balancer::LeastRequest));
    let turns = of(v1::Balancer::RoundRobin);
    assert!(ewma.p99 * 3.0 <= turns.p99, "{ewma:?} {turns:?}");
    assert!(least.p99 < turns.p99, "{least:?} {turns:?}");
    assert!(ewma.at_sick < 0.02 && turns.at_sick > 0.09, "{ewma:?} {turns:?}");
}

#[test]
fn a_replica_that_refuses_fast_attracts_nothing() {
    let too_many = Outcome::Refused;
    let unavailable = Outcome::Failure(Failure::Status);
    for outcome in [too_many, unavailable] {
        let [ewma, least, turns] =
            [v1::Balancer::PeakEwma, v1::Balancer::LeastRequest, v1::Balancer::RoundRobin]
                .map(|balancer| simulate(balancer, Sick::Refuses(outcome)));
        println!("{outcome:?}: PeakEwma {ewma:?}, LeastRequest {least:?}, RoundRobin {turns:?}");
        assert!(turns.at_sick > 0.09, "{turns:?}");
        // It would have more than its tenth if it looked idle.
        assert!(ewma.at_sick < 0.05 && ewma.refused < 0.035, "{ewma:?}");
        assert!(least.at_sick < 0.05 && least.refused < 0.035, "{least:?}");
    }
}
