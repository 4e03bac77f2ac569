//! Tests of tiers in balancing: failover, locality, panic, and slow start.

use super::*;

const ADAPTIVE: [v1::Balancer; 3] =
    [v1::Balancer::PeakEwma, v1::Balancer::LeastRequest, v1::Balancer::Random];

/// Endpoints as (zone, region, priority), seen from zone `a` of region `r`.
fn update(places: &[(&str, &str, u32)], change: impl FnOnce(&mut v1::Cluster)) -> v1::ToProxy {
    let mut message = service(&[]);
    let cluster = &mut message.clusters[0];
    cluster.endpoints = places
        .iter()
        .enumerate()
        .map(|(i, (zone, region, priority))| v1::Endpoint {
            zone: (*zone).into(),
            region: (*region).into(),
            priority: *priority,
            ..endpoint(&address(i).to_string(), 100)
        })
        .collect();
    cluster.outlier.as_mut().unwrap().max_ejected_percent = 100;
    change(cluster);
    v1::ToProxy { services: vec![message], workload: Some(own("a", "r")), ..Default::default() }
}

fn own(zone: &str, region: &str) -> v1::Workload {
    v1::Workload { zone: zone.into(), region: region.into(), ..crate::snapshot::tests::workload() }
}

fn of(places: &[(&str, &str, u32)], change: impl FnOnce(&mut v1::Cluster)) -> Arc<Cluster> {
    cluster_of(&applied(&Snapshot::default(), &update(places, change)))
}

fn with(balancer: v1::Balancer, locality: v1::Locality) -> impl FnOnce(&mut v1::Cluster) {
    move |cluster| {
        cluster.balancer = balancer.into();
        cluster.locality = locality.into();
        cluster.hash = Some(v1::Hash { key: Some(v1::hash::Key::SourceIp(true)), ring_points: 0 });
    }
}

/// A moment, and later ones: each of them after shares have been worked out anew, and before an ejection is over.
fn moments() -> (Instant, impl FnMut() -> Instant) {
    let begin = Instant::now();
    let mut steps = 0;
    let later = move || {
        steps += 1;
        begin + Duration::from_millis(steps * 11 % 900)
    };
    (begin, later)
}

const FOUR: [(&str, &str, u32); 4] = [("b", "r", 0), ("a", "r", 0), ("z", "s", 0), ("a", "r", 0)];

#[test]
fn the_own_zone_comes_first_then_the_region_then_the_rest() {
    let (begin, mut later) = moments();
    for balancer in ALL {
        let cluster = of(&FOUR, with(balancer, v1::Locality::Prefer));
        let counts = spread_at(&cluster, 400, later());
        assert_eq!((counts[0], counts[2]), (0, 0), "{balancer:?} {counts:?}");
        assert!(counts[1] > 100 && counts[3] > 100, "{balancer:?} {counts:?}");
        for i in [1, 3] {
            eject(&cluster, i, begin);
        }
        assert_eq!(spread_at(&cluster, 100, later()), [100, 0, 0, 0], "{balancer:?}");
        eject(&cluster, 0, begin);
        assert_eq!(spread_at(&cluster, 100, later()), [0, 0, 100, 0], "{balancer:?}");
    }
}

#[test]
fn strict_keeps_within_its_boundary_even_if_nothing_is_left_there() {
    let (begin, mut later) = moments();
    let cluster = of(&FOUR, with(v1::Balancer::PeakEwma, v1::Locality::Zone));
    for i in [1, 3] {
        eject(&cluster, i, begin);
    }
    // Ejected ones of the zone rather than others.
    let counts = spread_at(&cluster, 100, later());
    assert_eq!(counts[1] + counts[3], 100, "{counts:?}");
    let cluster = of(&FOUR, with(v1::Balancer::Random, v1::Locality::Region));
    let tried: Vec<_> = [1, 3].map(address).to_vec();
    let at = pick(&cluster, None, &tried, begin, &mut rng()).unwrap().endpoint.addr;
    assert_eq!(at, address(0));
    for balancer in ALL {
        let elsewhere = of(&[("b", "r", 0), ("z", "s", 0)], with(balancer, v1::Locality::Zone));
        let picked = pick(&elsewhere, Some(1), &[], begin, &mut rng());
        assert_eq!(picked.err(), Some(Reason::NoHealthyEndpoint));
    }
}

#[test]
fn who_learns_where_it_is_orders_what_it_has_anew() {
    let mut first = update(&FOUR, with(v1::Balancer::Random, v1::Locality::Prefer));
    first.workload = Some(own("", ""));
    let unknown = applied(&Snapshot::default(), &first);
    assert!(spread(&cluster_of(&unknown), 400).iter().all(|n| *n > 50));
    let moved = v1::ToProxy { workload: Some(own("z", "s")), ..Default::default() };
    let known = applied(&unknown, &moved);
    assert_eq!(spread(&cluster_of(&known), 100), [0, 0, 100, 0]);
    // Live state stays.
    assert!(Arc::ptr_eq(&cluster_of(&known).endpoints[0].live, &cluster_of(&unknown).endpoints[0].live));
}

#[test]
fn what_the_first_tier_cannot_carry_spills_over() {
    let (begin, mut later) = moments();
    // Five of ten are out: 0.5 × 1.4 of the requests stay.
    let places: Vec<_> = (0..20).map(|i| ("", "", u32::from(i >= 10))).collect();
    for balancer in ADAPTIVE {
        let cluster = of(&places, with(balancer, v1::Locality::None));
        for i in 0..2 {
            eject(&cluster, i, begin);
        }
        assert_eq!(
            spread_at(&cluster, 1000, later())[10..].iter().sum::<u32>(),
            0,
            "its reserve is not used up"
        );
        for i in 2..5 {
            eject(&cluster, i, begin);
        }
        let counts = spread_at(&cluster, 4000, later());
        let spilled = counts[10..].iter().sum::<u32>();
        assert!((1050..1350).contains(&spilled), "{balancer:?}: {spilled}");
        assert_eq!(counts[..5].iter().sum::<u32>(), 0);
    }
}

#[test]
fn spilled_keys_keep_to_one_endpoint() {
    let begin = Instant::now();
    let places: Vec<_> = (0..8).map(|i| ("", "", u32::from(i >= 4))).collect();
    for balancer in [v1::Balancer::RingHash, v1::Balancer::Maglev] {
        let cluster = of(&places, with(balancer, v1::Locality::None));
        for i in 0..2 {
            eject(&cluster, i, begin);
        }
        let (mut rng, now) = (rng(), begin);
        let mut spilled = 0;
        for key in (0..500).map(hash::mix) {
            let at = pick(&cluster, Some(key), &[], now, &mut rng).unwrap().endpoint.addr;
            assert_eq!(pick(&cluster, Some(key), &[], now, &mut rng).unwrap().endpoint.addr, at);
            spilled += u32::from((4..8).any(|i| address(i) == at));
        }
        assert!((100..200).contains(&spilled), "{balancer:?}: {spilled}");
    }
}

#[test]
fn a_retry_goes_to_the_next_tier_when_its_own_is_used_up() {
    for balancer in ALL {
        let cluster = of(&[("", "", 0), ("", "", 1), ("", "", 2)], with(balancer, v1::Locality::None));
        let (mut rng, now) = (rng(), Instant::now());
        let mut next =
            |tried: &[SocketAddr]| pick(&cluster, Some(7), tried, now, &mut rng).unwrap().endpoint.addr;
        assert_eq!(next(&[]), address(0));
        assert_eq!(next(&[address(0)]), address(1));
        assert_eq!(next(&[address(0), address(1)]), address(2));
        assert_eq!(next(&[address(0), address(1), address(2)]), address(0));
    }
}

#[test]
fn below_the_panic_threshold_health_does_not_count() {
    let (begin, mut later) = moments();
    for balancer in ALL {
        let cluster = of(&[("", "", 0); 4], |cluster| {
            with(balancer, v1::Locality::None)(cluster);
            cluster.panic_threshold_percent = 50;
        });
        for i in 0..2 {
            eject(&cluster, i, begin);
        }
        let counts = spread_at(&cluster, 400, later());
        assert_eq!(counts[0] + counts[1], 0, "{balancer:?}: half of them are enough");
        eject(&cluster, 2, begin);
        // No load reports anything: failures would make the dead look bad to those who look.
        let counts = spread_at(&cluster, 400, later());
        match balancer {
            v1::Balancer::PeakEwma | v1::Balancer::LeastRequest => {
                assert!(counts[..3].iter().all(|n| *n > 0), "{balancer:?} {counts:?}");
            }
            _ => assert!(counts.iter().all(|n| *n > 50), "{balancer:?} {counts:?}"),
        }
    }
}

#[test]
fn a_new_endpoint_grows_into_its_share_and_one_of_the_first_has_it_at_once() {
    for balancer in ALL {
        let message = |n: usize| {
            update(&vec![("", "", 0); n], |cluster| {
                with(balancer, v1::Locality::None)(cluster);
                cluster.slow_start = Some(v1::SlowStart { window_ms: 100_000, aggression: 1 });
            })
        };
        let first = applied(&Snapshot::default(), &message(3));
        assert!(spread(&cluster_of(&first), 600).iter().all(|n| *n > 100), "{balancer:?}");
        let cluster = cluster_of(&applied(&first, &message(4)));
        let (begin, mut rng) = (Instant::now(), rng());
        let mut share = |second| {
            let now = begin + Duration::from_secs(second);
            let at_new =
                |_: &u32| pick(&cluster, None, &[], now, &mut rng).unwrap().endpoint.addr == address(3);
            f64::from(u32::try_from((0..4000).filter(at_new).count()).unwrap()) / 4000.0
        };
        // Of weights 1, 1, 1 and its own.
        for (second, own) in [(1, 0.1), (50, 0.5), (101, 1.0)] {
            let (got, due) = (share(second), own / (3.0 + own));
            assert!((got - due).abs() < 0.04, "{balancer:?} after {second}: {got} instead of {due}");
        }
    }
}

#[test]
fn an_update_does_not_make_anybody_new() {
    let message = |n: usize| {
        update(&vec![("", "", 0); n], |cluster| {
            cluster.slow_start = Some(v1::SlowStart { window_ms: 100_000, aggression: 1 });
        })
    };
    let first = applied(&Snapshot::default(), &message(2));
    let second = applied(&first, &message(3));
    let third = applied(&second, &message(4));
    let since = |snapshot: &Snapshot| -> Vec<_> {
        cluster_of(snapshot).endpoints.iter().map(|e| e.live.since).collect()
    };
    assert_eq!(since(&first), [None, None]);
    assert!(since(&second)[2].is_some());
    assert_eq!(since(&third)[..3], since(&second)[..]);
}
