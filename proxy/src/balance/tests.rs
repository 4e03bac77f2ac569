//! Tests of `balance`: no cluster, nothing but what they make themselves.

use super::*;
use crate::snapshot::Snapshot;
use crate::snapshot::tests::{applied, endpoint, service};
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use std::collections::HashMap;
use weft_api::v1;

mod keys;
mod order;
mod simulation;

const ALL: [v1::Balancer; 6] = [
    v1::Balancer::PeakEwma,
    v1::Balancer::LeastRequest,
    v1::Balancer::RoundRobin,
    v1::Balancer::Random,
    v1::Balancer::RingHash,
    v1::Balancer::Maglev,
];

fn address(i: usize) -> SocketAddr {
    format!("10.0.{}.{}:80", i / 250, i % 250 + 1).parse().unwrap()
}

fn updated(snapshot: &Snapshot, balancer: v1::Balancer, weights: &[u32], percent: u32) -> Snapshot {
    let mut message = service(&[]);
    let cluster = &mut message.clusters[0];
    cluster.balancer = balancer.into();
    cluster.hash = Some(v1::Hash { key: Some(v1::hash::Key::SourceIp(true)), ring_points: 0 });
    cluster.endpoints =
        weights.iter().enumerate().map(|(i, w)| endpoint(&address(i).to_string(), *w)).collect();
    cluster.outlier.as_mut().unwrap().max_ejected_percent = percent;
    applied(snapshot, &v1::ToProxy { services: vec![message], ..Default::default() })
}

fn cluster_of(snapshot: &Snapshot) -> Arc<Cluster> {
    Arc::clone(&snapshot.services["shop/back:80"].default_cluster)
}

fn cluster(balancer: v1::Balancer, weights: &[u32]) -> Arc<Cluster> {
    cluster_of(&updated(&Snapshot::default(), balancer, weights, 100))
}

fn rng() -> SmallRng {
    SmallRng::seed_from_u64(42)
}

/// One request after the other, none at the same time.
fn spread(cluster: &Arc<Cluster>, n: usize) -> Vec<u32> {
    spread_at(cluster, n, Instant::now())
}

fn spread_at(cluster: &Arc<Cluster>, n: usize, now: Instant) -> Vec<u32> {
    let mut rng = rng();
    let mut counts: HashMap<SocketAddr, u32> = HashMap::new();
    for _ in 0..n {
        *counts.entry(pick(cluster, None, &[], now, &mut rng).unwrap().endpoint.addr).or_default() += 1;
    }
    cluster.endpoints.iter().map(|e| counts.get(&e.addr).copied().unwrap_or(0)).collect()
}

fn eject(cluster: &Arc<Cluster>, i: usize, now: Instant) {
    pinned(cluster, &cluster.endpoints[i], now).report_at(Outcome::Failure(Failure::Connect), now).unwrap();
}

#[test]
fn every_balancer_shares_by_weight() {
    for balancer in ALL {
        for weights in [&[100, 100, 100][..], &[100, 300], &[50, 100, 200, 1000], &[100]] {
            let cluster = cluster(balancer, weights);
            let n = 20_000;
            let total: u32 = weights.iter().sum();
            for (got, weight) in spread(&cluster, n).into_iter().zip(weights) {
                let share = f64::from(*weight) / f64::from(total);
                let deviation = (n as f64 * share * (1.0 - share)).sqrt();
                let off = (f64::from(got) - n as f64 * share).abs();
                assert!(off <= 5.0 * deviation + 1.0, "{balancer:?} {weights:?}: {got} for {weight}");
            }
        }
    }
}

#[test]
fn round_robin_is_exact_with_two_workers_at_once() {
    let cluster = cluster(v1::Balancer::RoundRobin, &[300, 100, 200]);
    let now = Instant::now();
    let picked: Vec<SocketAddr> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut rng = rng();
                    (0..6000)
                        .map(|_| pick(&cluster, None, &[], now, &mut rng).unwrap().endpoint.addr)
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    let count = |i| picked.iter().filter(|addr| **addr == address(i)).count();
    assert_eq!((count(0), count(1), count(2)), (6000, 2000, 4000));
}

#[test]
fn round_robin_over_an_ejected_one_doubles_nobodys_share() {
    let cluster = cluster(v1::Balancer::RoundRobin, &[100; 5]);
    eject(&cluster, 2, Instant::now());
    let counts = spread(&cluster, 4000);
    assert_eq!(counts[2], 0);
    assert!(counts.iter().enumerate().all(|(i, &n)| i == 2 || (990..=1010).contains(&n)), "{counts:?}");
}

#[test]
fn weight_0_is_used_only_when_nothing_else_is_left() {
    for balancer in ALL {
        let cluster = cluster(balancer, &[0, 100, 0]);
        assert_eq!(spread(&cluster, 500), [0, 500, 0]);
        let (now, mut rng) = (Instant::now(), rng());
        for _ in 0..100 {
            let load = pick(&cluster, None, &[address(1)], now, &mut rng).unwrap();
            assert_ne!(load.endpoint.addr, address(1));
        }
        eject(&cluster, 1, now);
        let counts = spread(&cluster, 500);
        assert!(counts[0] > 150 && counts[1] == 0 && counts[2] > 150, "{counts:?}");
    }
    for balancer in ALL {
        let counts = spread(&cluster(balancer, &[0, 0]), 1000);
        assert!(counts.iter().all(|&n| n > 350), "{counts:?}");
    }
}

#[test]
fn an_empty_cluster_has_no_healthy_endpoint() {
    for balancer in ALL {
        let picked = pick(&cluster(balancer, &[]), None, &[], Instant::now(), &mut rng());
        assert_eq!(picked.err(), Some(Reason::NoHealthyEndpoint));
    }
}

#[test]
fn tried_ones_are_avoided_until_nothing_else_is_left() {
    for balancer in ALL {
        let cluster = cluster(balancer, &[100, 100]);
        let (now, mut rng) = (Instant::now(), rng());
        for _ in 0..200 {
            assert_eq!(pick(&cluster, None, &[address(0)], now, &mut rng).unwrap().endpoint.addr, address(1));
        }
        assert!(pick(&cluster, None, &[address(0), address(1)], now, &mut rng).is_ok());
    }
}

#[test]
fn when_all_are_out_all_are_used() {
    for balancer in ALL {
        // The share of ejected ones was higher before the others went.
        let before = updated(&Snapshot::default(), balancer, &[100; 6], 50);
        let now = Instant::now();
        for i in 0..3 {
            eject(&cluster_of(&before), i, now);
        }
        let cluster = cluster_of(&updated(&before, balancer, &[100; 3], 50));
        let counts = spread(&cluster, 900);
        assert!(counts.iter().all(|&n| n > 200), "{balancer:?} {counts:?}");
        // A success of one brings that one back, and then it takes everything.
        let load = pick(&cluster, None, &[], now, &mut rng()).unwrap();
        let back = load.endpoint.addr;
        assert_eq!(
            load.finish(Outcome::Success { latency: Duration::from_millis(1) }),
            Some(Verdict::Returned)
        );
        for _ in 0..100 {
            assert_eq!(pick(&cluster, None, &[], now, &mut rng()).unwrap().endpoint.addr, back);
        }
    }
}

#[test]
fn a_due_endpoint_gets_one_probe_at_a_time_and_then_its_share() {
    for balancer in ALL {
        let cluster = cluster(balancer, &[100; 4]);
        let begin = Instant::now();
        eject(&cluster, 0, begin);
        let (mut rng, now) = (rng(), begin + Duration::from_millis(1100));
        let mut probes = Vec::new();
        for _ in 0..400 {
            let load = pick(&cluster, None, &[], now, &mut rng).unwrap();
            if load.endpoint.addr == address(0) {
                probes.push(load);
            }
        }
        assert_eq!(probes.len(), 1, "{balancer:?}");
        let verdict = probes.remove(0).finish(Outcome::Success { latency: Duration::from_millis(1) });
        assert_eq!(verdict, Some(Verdict::Returned));
        assert!(spread(&cluster, 400)[0] > 50);
    }
}

#[test]
fn a_dropped_probe_makes_room_for_the_next() {
    let cluster = cluster(v1::Balancer::Random, &[100, 100]);
    let begin = Instant::now();
    eject(&cluster, 0, begin);
    let (mut rng, now) = (rng(), begin + Duration::from_millis(1100));
    let mut probe = || {
        (0..200)
            .map(|_| pick(&cluster, None, &[], now, &mut rng).unwrap())
            .find(|load| load.endpoint.addr == address(0))
            .unwrap()
    };
    drop(probe());
    let _second = probe();
}

#[test]
fn a_retry_is_no_probe_while_a_healthy_one_is_left() {
    let cluster = cluster(v1::Balancer::PeakEwma, &[100; 3]);
    let begin = Instant::now();
    eject(&cluster, 0, begin);
    let (mut rng, now) = (rng(), begin + Duration::from_secs(5));
    for _ in 0..200 {
        assert_eq!(pick(&cluster, None, &[address(1)], now, &mut rng).unwrap().endpoint.addr, address(2));
    }
    // But rather a probe than one that has just failed this very request.
    assert_eq!(
        pick(&cluster, None, &[address(1), address(2)], now, &mut rng).unwrap().endpoint.addr,
        address(0)
    );
}

#[test]
fn least_request_avoids_the_busy_one() {
    let cluster = cluster(v1::Balancer::LeastRequest, &[100, 100]);
    let now = Instant::now();
    let _busy = pinned(&cluster, &cluster.endpoints[0], now);
    assert_eq!(spread(&cluster, 100), [0, 100]);
}

#[test]
fn requests_in_flight_are_shared_by_weight() {
    for balancer in [v1::Balancer::LeastRequest, v1::Balancer::PeakEwma] {
        let cluster = cluster(balancer, &[100, 300]);
        let (mut rng, now) = (rng(), Instant::now());
        let held: Vec<_> = (0..400).map(|_| pick(&cluster, None, &[], now, &mut rng).unwrap()).collect();
        let light = cluster.endpoints[0].live.in_flight();
        assert!((80..=120).contains(&light), "{balancer:?}: {light} of {}", held.len());
    }
}

/// Serves requests one by one: endpoint i answers after `latency(i)`.
async fn serve(cluster: &Arc<Cluster>, n: usize, latency: impl Fn(usize) -> u64) -> Vec<u32> {
    let mut rng = rng();
    let mut counts = vec![0; cluster.endpoints.len()];
    for _ in 0..n {
        let load = pick(cluster, None, &[], Instant::now(), &mut rng).unwrap();
        let i = cluster.endpoints.iter().position(|e| e.addr == load.endpoint.addr).unwrap();
        counts[i] += 1;
        let latency = Duration::from_millis(latency(i));
        tokio::time::sleep(latency).await;
        load.finish(Outcome::Success { latency });
    }
    counts
}

#[tokio::test(start_paused = true)]
async fn peak_ewma_prefers_the_faster_and_tries_the_slower_again_now_and_then() {
    let cluster = cluster(v1::Balancer::PeakEwma, &[100; 2]);
    let counts = serve(&cluster, 2000, |i| if i == 0 { 10 } else { 100 }).await;
    assert!(counts[0] > 1900, "{counts:?}");
    assert!(counts[1] > 1, "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn peak_ewma_shares_evenly_what_is_equally_fast() {
    let cluster = cluster(v1::Balancer::PeakEwma, &[100; 3]);
    let counts = serve(&cluster, 3000, |i| 20 + i as u64).await;
    assert!(counts.iter().all(|n| (850..1150).contains(n)), "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn peak_ewma_feels_one_slow_answer_at_once() {
    let cluster = cluster(v1::Balancer::PeakEwma, &[100; 2]);
    serve(&cluster, 100, |_| 5).await;
    pinned(&cluster, &cluster.endpoints[0], Instant::now())
        .finish(Outcome::Success { latency: Duration::from_secs(1) });
    assert_eq!(serve(&cluster, 100, |_| 5).await[0], 0);
}

#[tokio::test(start_paused = true)]
async fn a_fast_failure_makes_nobody_look_fast() {
    let cluster = cluster(v1::Balancer::PeakEwma, &[100; 2]);
    serve(&cluster, 200, |_| 50).await;
    let before = cluster.endpoints[0].live.latency().unwrap();
    for _ in 0..3 {
        pinned(&cluster, &cluster.endpoints[0], Instant::now()).finish(Outcome::Failure(Failure::Status));
    }
    assert_eq!(cluster.endpoints[0].live.latency().unwrap(), before);
}

#[tokio::test(start_paused = true)]
async fn a_new_endpoint_gets_its_share_from_the_start_and_no_more() {
    let snapshot = updated(&Snapshot::default(), v1::Balancer::PeakEwma, &[100; 2], 50);
    serve(&cluster_of(&snapshot), 200, |_| 50).await;
    let cluster = cluster_of(&updated(&snapshot, v1::Balancer::PeakEwma, &[100; 3], 50));
    let (mut rng, now) = (rng(), Instant::now());
    let held: Vec<_> = (0..300).map(|_| pick(&cluster, None, &[], now, &mut rng).unwrap()).collect();
    let new = cluster.endpoints[2].live.in_flight();
    assert!((60..=140).contains(&new), "{new} of {}", held.len());
}

#[test]
fn an_outlier_that_was_switched_off_ejects_nobody() {
    let mut message = service(&["10.0.0.1:80", "10.0.0.2:80"]);
    message.clusters[0].outlier = None;
    // It looks at nothing but ejections.
    message.clusters[0].balancer = v1::Balancer::Random.into();
    let snapshot =
        applied(&Snapshot::default(), &v1::ToProxy { services: vec![message], ..Default::default() });
    let cluster = cluster_of(&snapshot);
    for _ in 0..100 {
        let load = pinned(&cluster, &cluster.endpoints[0], Instant::now());
        assert_eq!(load.finish(Outcome::Failure(Failure::Connect)), None);
    }
    assert!(snapshot.ejections().is_empty());
    assert!(spread(&cluster, 100)[0] > 20);
}

#[derive(Clone, Debug)]
enum Step {
    Pick { tried: Vec<usize> },
    Finish { which: usize, outcome: u8 },
    Wait(u64),
    Update(Vec<u32>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => prop::collection::vec(0usize..6, 0..3).prop_map(|tried| Step::Pick { tried }),
        5 => (any::<usize>(), 0u8..8).prop_map(|(which, outcome)| Step::Finish { which, outcome }),
        1 => (0u64..5000).prop_map(Step::Wait),
        1 => prop::collection::vec(prop_oneof![Just(0u32), Just(100), 1u32..1000], 0..6).prop_map(Step::Update),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_counts_are_right_and_healthy_untried_endpoints_come_first(
        balancer in 0usize..4,
        percent in 0u32..=100,
        steps in prop::collection::vec(step(), 1..150),
        seed: u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut snapshot = updated(&Snapshot::default(), ALL[balancer], &[100, 100, 100], percent);
            let mut held: Vec<Load> = Vec::new();
            for step in steps {
                let cluster = cluster_of(&snapshot);
                match step {
                    Step::Pick { tried } => {
                        let tried: Vec<_> = tried.into_iter().map(address).collect();
                        let now = Instant::now();
                        let healthy: Vec<_> = cluster
                            .endpoints
                            .iter()
                            .filter(|e| e.live.ejected().is_none() && !tried.contains(&e.addr))
                            .map(|e| (e.addr, e.weight))
                            .collect();
                        let Ok(load) = pick(&cluster, None, &tried, now, &mut rng) else {
                            assert!(cluster.endpoints.is_empty());
                            continue;
                        };
                        let is_probe = matches!(load.pass, Pass::Probe(_));
                        if let Some((_, weight)) = healthy.iter().find(|(addr, _)| *addr == load.endpoint.addr) {
                            assert!(*weight > 0 || healthy.iter().all(|(_, w)| *w == 0));
                        } else if !healthy.is_empty() {
                            assert!(is_probe && tried.is_empty(), "{:?} of {healthy:?}", load.endpoint.addr);
                        }
                        held.push(load);
                    }
                    Step::Finish { which, outcome } if !held.is_empty() => {
                        let load = held.swap_remove(which % held.len());
                        match outcome {
                            0..=2 => drop(load.finish(Outcome::Success { latency: Duration::from_millis(3) })),
                            3 | 4 => drop(load.finish(Outcome::Failure(Failure::Connect))),
                            5 => drop(load.finish(Outcome::Failure(Failure::Status))),
                            6 => drop(load.finish(Outcome::Neutral)),
                            _ => drop(load),
                        }
                    }
                    Step::Finish { .. } => {}
                    Step::Wait(ms) => tokio::time::advance(Duration::from_millis(ms)).await,
                    Step::Update(weights) => snapshot = updated(&snapshot, ALL[balancer], &weights, percent),
                }
                for endpoint in &cluster_of(&snapshot).endpoints {
                    let under_way = held.iter().filter(|l| Arc::ptr_eq(&l.endpoint.live, &endpoint.live)).count();
                    assert_eq!(endpoint.live.in_flight() as usize, under_way);
                }
            }
        });
    }
}

fn judged_cluster(n: usize, percent: u32) -> Arc<Cluster> {
    let mut message = service(&[]);
    let cluster = &mut message.clusters[0];
    cluster.endpoints = (0..n).map(|i| endpoint(&address(i).to_string(), 100)).collect();
    cluster.outlier = Some(v1::Outlier {
        consecutive_failures: 0,
        base_ejection_ms: 10_000,
        max_ejected_percent: percent,
        interval_ms: 1000,
        success_rate: Some(v1::SuccessRate {
            min_requests: 10,
            min_hosts: 5,
            stdev_factor_thousandths: 1000,
        }),
        latency: Some(v1::LatencyRule { min_requests: 10, factor_thousandths: 3000 }),
        ..Default::default()
    });
    let update = v1::ToProxy { services: vec![message], ..Default::default() };
    cluster_of(&applied(&Snapshot::default(), &update))
}

fn answers(cluster: &Arc<Cluster>, i: usize, n: usize, outcome: Outcome) {
    for _ in 0..n {
        assert_eq!(pinned(cluster, &cluster.endpoints[i], Instant::now()).finish(outcome), None);
    }
}

const FAST: Outcome = Outcome::Success { latency: Duration::from_millis(2) };
const SLOW: Outcome = Outcome::Success { latency: Duration::from_millis(40) };

#[tokio::test(start_paused = true)]
async fn endpoints_are_judged_beside_each_other_once_an_interval() {
    let cluster = judged_cluster(6, 50);
    let judged = || -> Vec<(SocketAddr, Verdict)> {
        judge(&cluster, Instant::now()).into_iter().map(|(e, verdict)| (e.addr, verdict)).collect()
    };
    // The first interval begins with the first look.
    assert_eq!(judged(), []);
    (0..4).for_each(|i| answers(&cluster, i, 20, FAST));
    answers(&cluster, 4, 20, SLOW);
    answers(&cluster, 5, 20, Outcome::Failure(Failure::Status));
    tokio::time::advance(Duration::from_millis(900)).await;
    assert_eq!(judged(), [], "before its time");
    tokio::time::advance(Duration::from_millis(200)).await;
    let ten = Duration::from_secs(10);
    assert_eq!(
        judged(),
        [
            (address(5), Verdict::Ejected(outlier::Cause::SuccessRate { own: 0, mean: 83 }, ten)),
            (address(4), Verdict::Ejected(outlier::Cause::Latency { own: 40, median: 2 }, ten)),
        ]
    );
    // What was counted once counts no more.
    tokio::time::advance(Duration::from_millis(1100)).await;
    assert_eq!(judged(), []);
}

#[tokio::test(start_paused = true)]
async fn no_more_are_judged_away_than_the_share_allows_and_the_worst_goes_first() {
    let cluster = judged_cluster(8, 13);
    assert!(judge(&cluster, Instant::now()).is_empty());
    (0..6).for_each(|i| answers(&cluster, i, 20, FAST));
    answers(&cluster, 6, 20, SLOW);
    answers(&cluster, 7, 20, Outcome::Success { latency: Duration::from_millis(400) });
    tokio::time::advance(Duration::from_millis(1100)).await;
    let gone = judge(&cluster, Instant::now());
    assert_eq!(gone.iter().map(|(endpoint, _)| endpoint.addr).collect::<Vec<_>>(), [address(7)]);
}
