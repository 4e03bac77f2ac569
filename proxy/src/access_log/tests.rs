//! Tests of `access_log`: no cluster, nothing but what they make themselves.

use super::*;
use crate::metrics::tests::record;
use http::{HeaderValue, Uri};
use weft_api::Reason;
use weft_api::audit::timestamp;
use weft_api::lines::WAITING;
use weft_api::lines::sink::Sink;

fn patiently(log: &AccessLog) {
    log.flush(Duration::from_secs(20));
}

#[test]
fn a_request_becomes_one_line_that_says_who_what_where_and_how() {
    let sink = Sink::default();
    let log = AccessLog::to(sink.clone(), Arc::default()).unwrap();
    log.request(&RequestRecord { reason: Some(Reason::ConnectFailed), status: 503, ..record() });
    patiently(&log);
    let lines = sink.lines().unwrap();
    assert_eq!(lines.len(), 1);
    for (field, value) in [
        ("log", "request"),
        ("direction", "outbound"),
        ("request_id", "6f9"),
        ("method", "GET"),
        ("path", "/cart?item=1"),
        ("host", "back"),
        ("reason", "connect-failed"),
        ("source_identity", "spiffe://cluster.local/ns/shop/sa/front"),
        ("service", "shop/back:80"),
        ("route", "split/0"),
        ("endpoint", "10.0.0.2:8080"),
    ] {
        assert_eq!(lines[0][field], value, "{field}");
    }
    assert_eq!(lines[0]["code"], 503);
    assert_eq!(lines[0]["duration_ms"], 1.5);
    assert_eq!(lines[0]["mtls"], true);
    assert!(lines[0].get("detail").is_none());
}

#[test]
fn an_unread_log_holds_nobody_up_and_counts_what_it_drops() {
    let (sink, metrics) = (Sink::default(), Arc::new(Metrics::new()));
    let log = AccessLog::to(sink.clone(), Arc::clone(&metrics)).unwrap();
    sink.shut(true);
    let all = 3 * WAITING;
    for _ in 0..all {
        log.request(&record());
    }
    sink.shut(false);
    patiently(&log);
    let written = sink.lines().unwrap().len();
    let dropped = all - written;
    assert!((WAITING..all).contains(&written), "{written} written");
    assert!(metrics.encode().contains(&format!("weft_access_log_dropped_total {dropped}\n")));
}

#[test]
fn texts_of_clients_are_bounded_and_always_json() {
    let sink = Sink::default();
    let log = AccessLog::to(sink.clone(), Arc::default()).unwrap();
    let uri: Uri = format!("/{}", "ä".repeat(10_000))
        .parse()
        .unwrap_or_else(|_| format!("/{}", "a".repeat(10_000)).parse().unwrap());
    let host = HeaderValue::from_bytes(b"\xff\xfe\"\\x").unwrap();
    log.request(&RequestRecord { uri, host: Some(host), detail: Some("x\ny\u{1}".into()), ..record() });
    patiently(&log);
    let line = &sink.lines().unwrap()[0];
    assert!(line["path"].as_str().unwrap().len() <= 2048);
    assert_eq!(line["detail"], "x\ny\u{1}");
}

#[test]
fn moments_are_written_as_the_calendar_has_them() {
    for (seconds, text) in [
        (0, "1970-01-01T00:00:00.000Z"),
        (951_782_400, "2000-02-29T00:00:00.000Z"),
        (1_709_251_199, "2024-02-29T23:59:59.000Z"),
        (1_772_323_199, "2026-02-28T23:59:59.000Z"),
        (4_102_444_800, "2100-01-01T00:00:00.000Z"),
    ] {
        assert_eq!(timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)), text);
    }
}

#[test]
fn off_means_off() {
    let log = AccessLog::off();
    log.request(&record());
    log.flush(Duration::from_secs(1));
}
