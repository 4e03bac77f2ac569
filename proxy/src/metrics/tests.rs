//! Tests of `metrics`: no cluster, nothing but what they make themselves.

use super::*;
use crate::outlier::Cause;
use crate::token::{Flaw, Seen};
use http::{HeaderValue, Method, Uri};

pub(crate) fn record() -> RequestRecord {
    let party = |workload: &str| Party {
        namespace: "shop".into(),
        workload: workload.into(),
        identity: Some(Arc::new(crate::testing::identity("shop", workload))),
    };
    RequestRecord {
        direction: Direction::Outbound,
        kind: HttpKind::Http1,
        method: Method::GET,
        uri: Uri::from_static("/cart?item=1"),
        host: Some(HeaderValue::from_static("back")),
        request_id: HeaderValue::from_static("6f9"),
        status: 200,
        grpc_status: None,
        reason: None,
        detail: None,
        duration: Duration::from_micros(1500),
        request_bytes: 3,
        response_bytes: 40,
        retries: 0,
        mtls: true,
        source: party("front"),
        destination: party("back-v1"),
        service: "shop/back:80".into(),
        route: "split/0".into(),
        client: "10.0.0.1:4711".parse().unwrap(),
        upstream: Some("10.0.0.2:8080".parse().unwrap()),
        action: "",
        authorization: None,
        token: None,
        trace: None,
    }
}

fn opaque() -> TcpRecord {
    let RequestRecord { direction, duration, mtls, source, destination, service, client, upstream, .. } =
        record();
    TcpRecord {
        direction,
        reason: None,
        detail: None,
        duration,
        sent_bytes: 5,
        received_bytes: 7,
        mtls,
        sni: None,
        source,
        destination,
        service,
        client,
        original: "10.96.0.1:5432".parse().unwrap(),
        upstream,
        authorization: None,
    }
}

#[test]
fn bytes_of_opaque_connections_are_counted_both_ways() {
    let metrics = Metrics::new();
    metrics.tcp(&opaque());
    metrics.tcp(&TcpRecord { reason: Some(Reason::ConnectFailed), ..opaque() });
    let text = metrics.encode();
    assert_eq!(value(&text, "weft_tcp_bytes_total", &[r#"flow="sent""#]), 10.0);
    assert_eq!(value(&text, "weft_tcp_bytes_total", &[r#"flow="received""#]), 14.0);
    assert_eq!(value(&text, "weft_tcp_connections_total", &[r#"reason="connect-failed""#]), 1.0);
}

fn value(text: &str, start: &str, labels: &[&str]) -> f64 {
    let lines: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with(start) && labels.iter().all(|label| line.contains(label)))
        .collect();
    assert_eq!(lines.len(), 1, "{start} {labels:?} in\n{text}");
    lines[0].rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_request_is_counted_under_both_ends_and_its_outcome() {
    let metrics = Metrics::new();
    for status in [200, 200, 503] {
        let reason = (status == 503).then_some(Reason::BreakerOpen);
        metrics.request(&RequestRecord { status, reason, ..record() });
    }
    let text = metrics.encode();
    let ends = [
        r#"source_workload="front""#,
        r#"source_namespace="shop""#,
        r#"destination_workload="back-v1""#,
        r#"destination_service="back""#,
        r#"destination_namespace="shop""#,
        r#"direction="outbound""#,
    ];
    let of = |more: &[&'static str]| [&ends[..], more].concat();
    assert_eq!(
        value(&text, "weft_requests_total", &of(&[r#"code="200""#, r#"reason="""#, r#"mtls="true""#])),
        2.0
    );
    assert_eq!(value(&text, "weft_requests_total", &of(&[r#"code="503""#, r#"reason="breaker-open""#])), 1.0);
    assert_eq!(value(&text, "weft_response_bytes_total", &ends), 120.0);
    assert_eq!(value(&text, "weft_request_duration_seconds_count", &[]), 3.0);
    assert_eq!(value(&text, "weft_breaker_refusals_total", &[r#"reason="breaker-open""#]), 1.0);
}

#[test]
fn two_ports_of_a_service_share_one_series() {
    let metrics = Metrics::new();
    metrics.request(&record());
    metrics.request(&RequestRecord { service: "shop/back:8080".into(), ..record() });
    assert_eq!(value(&metrics.encode(), "weft_requests_total", &[]), 2.0);
}

#[test]
fn a_caller_is_named_by_its_proved_identity_where_its_workload_is_not_known() {
    let metrics = Metrics::new();
    let source =
        Party { identity: Some(Arc::new(crate::testing::identity("else", "robot"))), ..Party::default() };
    metrics.request(&RequestRecord { source, direction: Direction::Inbound, ..record() });
    metrics.request(&RequestRecord { source: Party::default(), direction: Direction::Inbound, ..record() });
    let text = metrics.encode();
    value(&text, "weft_requests_total", &[r#"source_workload="robot""#, r#"source_namespace="else""#]);
    value(&text, "weft_requests_total", &[r#"source_workload="unknown""#, r#"source_namespace="unknown""#]);
}

#[test]
fn what_comes_after_the_last_series_is_counted_under_other() {
    let metrics = Metrics::new();
    for i in 0..3 * MAX_SERIES {
        metrics.request(&RequestRecord { service: format!("shop/s{i}:80").into(), ..record() });
    }
    metrics.request(&RequestRecord { service: "shop/s1:80".into(), ..record() });
    let text = metrics.encode();
    let series = text.lines().filter(|line| line.starts_with("weft_requests_total")).count();
    assert_eq!(series, MAX_SERIES + 1);
    let others = value(&text, "weft_requests_total", &[r#"destination_service="other""#, r#"code="2xx""#]);
    assert_eq!(others as usize, 2 * MAX_SERIES);
    assert_eq!(value(&text, "weft_requests_total", &[r#"destination_service="s1""#]), 2.0);
}

#[test]
fn ejected_endpoints_are_those_of_the_last_report() {
    let metrics = Metrics::new();
    let ejection = |endpoint: &str| v1::Ejection {
        service: "shop/back:80".into(),
        endpoint: endpoint.into(),
        cause: "failed to connect".into(),
    };
    metrics.ejected(&[ejection("10.0.0.1:80"), ejection("10.0.0.2:80")]);
    assert_eq!(value(&metrics.encode(), "weft_endpoint_ejected", &[r#"destination_service="back""#]), 2.0);
    metrics.ejected(&[]);
    assert!(!metrics.encode().contains("weft_endpoint_ejected{"));
}

#[test]
fn active_checks_are_counted_by_outcome_and_unhealthy_endpoints_as_they_are_now() {
    let metrics = Metrics::new();
    for outcome in ["passed", "passed", "failed"] {
        metrics.checked("shop/back:80", outcome);
    }
    metrics.unhealthy(&[v1::Ejection { service: "shop/back:80".into(), ..Default::default() }]);
    let text = metrics.encode();
    let of = |outcome| value(&text, "weft_health_checks_total", &[r#"destination_service="back""#, outcome]);
    assert_eq!((of(r#"outcome="passed""#), of(r#"outcome="failed""#)), (2.0, 1.0));
    assert_eq!(value(&text, "weft_endpoint_unhealthy", &[r#"destination_namespace="shop""#]), 1.0);
    metrics.unhealthy(&[]);
    assert!(!metrics.encode().contains("weft_endpoint_unhealthy{"));
}

#[test]
fn adaptive_limits_are_told_by_port_and_subset_as_they_are_now() {
    let metrics = Metrics::new();
    metrics.adaptive([("shop/back:80", 10), ("shop/back:80/v2", 20), ("shop/back:81", 30)].into_iter());
    let limit = |labels: &[&str]| value(&metrics.encode(), "weft_adaptive_concurrency_limit", labels);
    let back = r#"destination_service="back""#;
    assert_eq!(limit(&[back, r#"port="80""#, r#"subset="""#]), 10.0);
    assert_eq!(limit(&[back, r#"port="80""#, r#"subset="v2""#]), 20.0);
    assert_eq!(limit(&[back, r#"port="81""#]), 30.0);
    metrics.adaptive(std::iter::empty());
    assert!(!metrics.encode().contains("weft_adaptive_concurrency_limit{"));
}

#[test]
fn the_exposition_names_each_metric_once_and_ends() {
    let metrics = Metrics::new();
    metrics.connection_opened(Direction::Inbound);
    metrics.request(&record());
    metrics.certificate_expiry(UNIX_EPOCH + Duration::from_secs(1000));
    let text = metrics.encode();
    let types: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
    let mut unique = types.iter().map(|line| line.split(' ').nth(2).unwrap()).collect::<Vec<_>>();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), types.len());
    assert!(text.ends_with("# EOF\n"));
    assert_eq!(value(&text, "weft_connections{", &[r#"direction="inbound""#]), 1.0);
    assert_eq!(value(&text, "weft_certificate_expiry_timestamp_seconds", &[]), 1000.0);
}

#[test]
fn the_documentation_lists_every_metric_and_no_other() {
    let documentation = include_str!("../../../docs/metrics.md");
    let proxys = documentation.split("\n## The operator\n").next().unwrap();
    let mut documented: Vec<_> = proxys
        .lines()
        .filter_map(|line| line.strip_prefix("| `weft_")?.split_once('`'))
        .map(|(name, _)| format!("weft_{name}"))
        .collect();
    let metrics = Metrics::new();
    // A family is shown once it has a member.
    let judged = Verdict { refused: Some(Refusal::NoneAllows("shop/a".into())), ..Verdict::default() };
    metrics.request(&RequestRecord {
        reason: Some(Reason::BreakerOpen),
        authorization: judged.noted(),
        token: Some(Seen::Bad(Flaw::Signature)),
        ..record()
    });
    metrics.tcp(&opaque());
    metrics.refusal(Direction::Inbound, Reason::Overloaded);
    metrics.retry("shop/back:80", Retried::Sent);
    metrics.hedge("shop/back:80", Retried::Sent);
    metrics.hedge_won("shop/back:80");
    metrics.mirrored("shop/back:80", Mirrored::Answered);
    metrics.ejection("shop/back:80", outlier::Verdict::Ejected(Cause::Connect, Duration::from_secs(1)));
    metrics.ejected(&[v1::Ejection { service: "shop/back:80".into(), ..Default::default() }]);
    metrics.adaptive([("shop/back:80", 10)].into_iter());
    metrics.checked("shop/back:80", "passed");
    metrics.spans(Told::Sent, 1);
    metrics.intercepted("ipv4", true);
    metrics.unhealthy(&[v1::Ejection { service: "shop/back:80".into(), ..Default::default() }]);
    let text = metrics.encode();
    let mut counted: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, kind)| match kind {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        })
        .collect();
    documented.sort_unstable();
    counted.sort_unstable();
    assert_eq!(counted, documented);
}
