//! With paused time: no test here waits for real.

use super::*;
use weft_api::v1;

fn at(n: u32) -> SocketAddr {
    SocketAddr::new(std::net::Ipv4Addr::from(0x0a00_0000 + n).into(), 80)
}

fn external(addresses: &[SocketAddr]) -> v1::ToProxy {
    let entry = |at: &SocketAddr| v1::Address {
        address: at.to_string(),
        target: Some(v1::address::Target::External(v1::External {})),
    };
    v1::ToProxy { addresses: addresses.iter().map(entry).collect(), ..Default::default() }
}

fn answer(store: &SnapshotStore, addresses: &[SocketAddr]) {
    let (next, rejections) = store.load().apply(&external(addresses));
    assert!(rejections.is_empty());
    store.publish(next);
}

#[tokio::test(start_paused = true)]
async fn many_who_wait_for_one_address_cost_one_subscription_and_all_get_the_answer() {
    let store = Arc::new(SnapshotStore::new());
    let waiters: Vec<_> = (0..100)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.resolve(at(1)).await })
        })
        .collect();
    assert_eq!(store.changes().await, Changes { add: vec![at(1)], drop: vec![] });
    // Something else first: they go on waiting.
    answer(&store, &[at(2)]);
    answer(&store, &[at(1)]);
    for waiter in waiters {
        assert!(matches!(waiter.await.unwrap(), Ok(Target::External)));
    }
    assert_eq!(store.take_changes(), Changes::default());
    assert_eq!(store.waiting.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_the_wait_ends_after_two_seconds_with_a_reason() {
    let store = SnapshotStore::new();
    let start = Instant::now();
    assert!(matches!(store.resolve(at(1)).await, Err(Reason::ConfigUnavailable)));
    assert_eq!(start.elapsed(), PATIENCE);
    // Whoever comes right after it does not wait again; later ones do.
    assert!(matches!(store.resolve(at(1)).await, Err(Reason::ConfigUnavailable)));
    assert_eq!(start.elapsed(), PATIENCE);
    tokio::time::advance(NO_MORE_PATIENCE).await;
    assert!(store.resolve(at(1)).await.is_err());
    assert_eq!(start.elapsed(), PATIENCE + NO_MORE_PATIENCE + PATIENCE);
    // It stays wanted: a later answer serves the next one.
    assert!(store.holds(at(1)));
    answer(&store, &[at(1)]);
    assert!(store.resolve(at(1)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn ipv4_in_ipv6_is_the_same_address() {
    let store = SnapshotStore::new();
    answer(&store, &[at(1)]);
    let mapped = SocketAddr::new(std::net::Ipv4Addr::from(0x0a00_0001).to_ipv6_mapped().into(), 80);
    assert!(store.resolve(mapped).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_number_of_waiters_is_bounded() {
    let store = Arc::new(SnapshotStore::new());
    store.waiting.store(MAX_WAITING, Ordering::Relaxed);
    let start = Instant::now();
    assert!(matches!(store.resolve(at(1)).await, Err(Reason::ConfigUnavailable)));
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(store.waiting.load(Ordering::Relaxed), MAX_WAITING);
}

#[tokio::test(start_paused = true)]
async fn idle_addresses_are_given_up_but_not_those_with_an_open_connection() {
    let store = Arc::new(SnapshotStore::new());
    answer(&store, &[at(1), at(2), at(3)]);
    for n in 1..=3 {
        store.resolve(at(n)).await.unwrap();
    }
    store.take_changes();
    let lease = store.lease(at(2));
    tokio::time::advance(IDLE / 2).await;
    store.resolve(at(3)).await.unwrap();
    tokio::time::advance(IDLE / 2).await;
    store.expire();
    assert_eq!(store.changes().await, Changes { add: vec![], drop: vec![at(1)] });
    // The end of the connection counts as a use.
    drop(lease);
    tokio::time::advance(IDLE / 2).await;
    store.expire();
    assert_eq!(store.take_changes().drop, [at(3)]);
    tokio::time::advance(IDLE / 2).await;
    store.expire();
    assert_eq!(store.take_changes().drop, [at(2)]);
    assert!(store.held().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_address_that_is_wanted_again_before_the_operator_was_told_is_not_dropped() {
    let store = SnapshotStore::new();
    answer(&store, &[at(1)]);
    store.resolve(at(1)).await.unwrap();
    store.take_changes();
    tokio::time::advance(IDLE).await;
    store.expire();
    store.resolve(at(1)).await.unwrap();
    assert_eq!(store.take_changes(), Changes { add: vec![at(1)], drop: vec![] });
}

#[tokio::test(start_paused = true)]
async fn beyond_the_limit_those_unused_for_longest_go() {
    let store = Arc::new(SnapshotStore::new());
    let max = u32::try_from(MAX_ADDRESSES).unwrap();
    let oldest = store.lease(at(0));
    for n in 1..max {
        store.touch(at(n), 0);
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    store.take_changes();
    store.touch(at(max), 0);
    let changes = store.take_changes();
    assert_eq!(changes.add, [at(max)]);
    let mut dropped = changes.drop;
    dropped.sort();
    let expected: Vec<_> = (1..=u32::try_from(EVICTED_AT_ONCE).unwrap()).map(at).collect();
    assert_eq!(dropped, expected);
    assert!(store.holds(at(0)));
    drop(oldest);
}

#[tokio::test(start_paused = true)]
async fn everything_held_is_told_once_after_a_reconnect() {
    let store = SnapshotStore::new();
    answer(&store, &[at(1), at(2)]);
    store.resolve(at(1)).await.unwrap();
    store.resolve(at(2)).await.unwrap();
    let mut held = store.held();
    held.sort();
    assert_eq!(held, [at(1), at(2)]);
    assert_eq!(store.take_changes(), Changes::default());
}

#[tokio::test(start_paused = true)]
async fn a_table_full_of_open_connections_refuses_what_is_new_with_a_reason() {
    let store = Arc::new(SnapshotStore::new());
    let leases: Vec<_> = (0..u32::try_from(MAX_ADDRESSES).unwrap()).map(|n| store.lease(at(n))).collect();
    let new = at(u32::MAX >> 8);
    assert!(matches!(store.resolve(new).await, Err(Reason::Overloaded)));
    let without = store.lease(new);
    assert!(!store.holds(new));
    drop(without);
    drop(leases);
    assert!(matches!(store.resolve(new).await, Err(Reason::ConfigUnavailable)));
    assert!(store.holds(new));
}
