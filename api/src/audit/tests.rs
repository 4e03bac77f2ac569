//! Tests of `audit`: lines in memory.

use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::lines::WAITING;
use crate::lines::sink::Sink;

fn patiently(audit: &Audit) {
    audit.flush(Duration::from_secs(20));
}

#[test]
fn an_event_says_who_what_when_and_with_which_result() {
    let sink = Sink::default();
    let audit = Audit::to(Component::Proxy, sink.clone(), || {});
    let mut event = Event::now(Kind::Authorization, Outcome::Denied);
    event.at = UNIX_EPOCH + Duration::from_secs(1_772_323_199);
    event.reason = "policy-denied";
    event.who.identity = "spiffe://cluster.local/ns/shop/sa/front".into();
    event.who.address = Some([10, 0, 0, 1].into());
    event.what = What {
        kind: "request".into(),
        name: "back".into(),
        operation: "GET".into(),
        path: "/a".into(),
        port: Some(80),
        ..What::default()
    };
    event.policies = vec![By { policy: "shop/no".into(), rule: "0".into(), action: "deny" }];
    audit.event(event);
    patiently(&audit);
    let wanted = json!({
        "log": "audit", "component": "proxy", "time": "2026-02-28T23:59:59.000Z", "event": "authorization", "result": "denied",
        "reason": "policy-denied",
        "who": {"identity": "spiffe://cluster.local/ns/shop/sa/front", "address": "10.0.0.1"},
        "what": {"kind": "request", "name": "back", "operation": "GET", "path": "/a", "port": 80},
        "policies": [{"policy": "shop/no", "rule": "0", "action": "deny"}],
    });
    assert_eq!(sink.lines().unwrap(), [wanted]);
}

#[test]
fn what_nobody_reads_is_dropped_and_counted_and_holds_nobody_up() {
    let (sink, dropped) = (Sink::default(), Arc::new(AtomicU64::new(0)));
    let counted = Arc::clone(&dropped);
    let audit = Audit::to(Component::Operator, sink.clone(), move || {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    sink.shut(true);
    let all = 3 * WAITING;
    for _ in 0..all {
        audit.event(Event::now(Kind::Issuance, Outcome::Issued));
    }
    sink.shut(false);
    patiently(&audit);
    let written = sink.lines().unwrap().len();
    assert!((WAITING..all).contains(&written), "{written} written");
    assert_eq!(dropped.load(Ordering::Relaxed), (all - written) as u64);
}

#[test]
fn another_ear_hears_each_event_also_those_that_nobody_reads() {
    let (sink, heard) = (Sink::default(), Arc::new(AtomicU64::new(0)));
    let audit = Audit::to(Component::Operator, sink.clone(), || {});
    let count = Arc::clone(&heard);
    audit.also(move |event| {
        assert_eq!(event.what.object_uid, "u1");
        count.fetch_add(1, Ordering::Relaxed);
    });
    sink.shut(true);
    for _ in 0..2 * WAITING {
        let mut event = Event::now(Kind::Issuance, Outcome::Issued);
        event.what.object_uid = "u1".into();
        audit.event(event);
    }
    sink.shut(false);
    patiently(&audit);
    assert_eq!(heard.load(Ordering::Relaxed), 2 * WAITING as u64);
    assert!(!sink.text().unwrap().contains("u1"), "it is for Kubernetes Events alone");
}

#[test]
fn off_means_off() {
    let audit = Audit::off();
    audit.event(Event::now(Kind::Rotation, Outcome::Done));
    audit.flush(Duration::from_secs(1));
    assert!(!audit.is_on());
}

proptest! {
    #[test]
    fn whatever_is_in_it_an_event_is_one_line_of_json_of_bounded_length(given in ".{0,400}", times in 1_usize..20) {
        let given = given.repeat(times);
        let mut event = Event::now(Kind::Admission, Outcome::Allowed);
        event.what.name = text(&given);
        prop_assert!(event.what.name.len() <= LONGEST && given.starts_with(&event.what.name));
        let mut line = Vec::new();
        append(&mut line, Component::Webhook, &event);
        prop_assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let read: Value = serde_json::from_slice(&line).unwrap();
        if !given.is_empty() {
            prop_assert_eq!(read["what"]["name"].as_str(), Some(&*event.what.name));
        }
    }
}
