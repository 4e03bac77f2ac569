//! Access-log lines of one request, put in order and read: who refused it, and why. Pure. The lines are those that
//! `proxy/src/access_log/line.rs` writes; an unknown field or reason of a newer proxy is no error.

use crate::output;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use weft_api::Reason;

/// What one proxy says of the request.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Hop {
    /// `namespace/name`; not part of the line.
    #[serde(default)]
    pub pod: String,
    /// When the proxy was done with it.
    pub time: DateTime<Utc>,
    pub direction: String,
    pub request_id: String,
    #[serde(default)]
    pub method: String,
    #[serde(default)]
    pub path: String,
    pub code: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    pub duration_ms: f64,
    #[serde(default)]
    pub retries: u32,
    #[serde(default)]
    pub mtls: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source_workload: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_identity: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub destination_workload: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub route: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// What the rule did in place of, or before, sending it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub action: String,
    /// The AuthorizationPolicy that refused it, and its rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_rule: Option<String>,
    /// What an AuthorizationPolicy in dry run would have done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<String>,
    /// The AuthorizationPolicies that want it noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<String>,
}

impl Hop {
    /// A line of a pod's proxy, when it is of that very request.
    pub fn parse(pod: &str, request_id: &str, line: &str) -> Option<Self> {
        let hop: Self = serde_json::from_str(line).ok()?;
        (hop.request_id == request_id).then(|| Self { pod: pod.to_owned(), ..hop })
    }

    fn began(&self) -> DateTime<Utc> {
        let micros = (self.duration_ms.clamp(0.0, 1e12) * 1e3) as i64;
        self.time.checked_sub_signed(TimeDelta::microseconds(micros)).unwrap_or(self.time)
    }

    fn causes(&self, other: &Hop) -> bool {
        match (self.direction.as_str(), other.direction.as_str()) {
            ("inbound", "outbound") => self.pod == other.pod,
            ("outbound", "inbound") => self.endpoint.is_some() && self.endpoint == other.endpoint,
            _ => false,
        }
    }

    fn destination(&self) -> &str {
        [self.service.as_str(), self.destination_workload.as_str(), "?"]
            .into_iter()
            .find(|s| !s.is_empty())
            .unwrap_or("?")
    }
}

/// The request's way, first hop first, and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Trail {
    pub request_id: String,
    pub verdict: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    pub hops: Vec<Hop>,
}

impl Trail {
    /// Puts the hops in order, see [`in_order`].
    pub fn new(request_id: &str, hops: Vec<Hop>) -> Self {
        let hops = in_order(hops);
        let (verdict, remedy) = judge(&hops);
        Self { request_id: request_id.to_owned(), verdict, remedy, hops }
    }

    /// For people.
    pub fn text(&self, proxies: usize) -> String {
        let mut text = String::new();
        if let Some(first) = self.hops.first() {
            let _ = writeln!(text, "{} {} {}\n", self.request_id, first.method, first.path);
            let rows: Vec<Vec<String>> = self.hops.iter().map(row).collect();
            let heading =
                ["BEGAN", "TOOK", "PROXY OF", "WAY", "FROM", "TO", "ENDPOINT", "MTLS", "RETRIES", "ANSWER"];
            text.push_str(&output::table(&heading, &rows));
            text.push('\n');
        }
        let _ = writeln!(text, "{}", self.verdict);
        if let Some(remedy) = &self.remedy {
            let _ = writeln!(text, "-> {remedy}");
        }
        if self.hops.is_empty() {
            let _ = writeln!(text, "   ({proxies} proxies were asked)");
        }
        text
    }
}

/// Each hop before those that it caused. Times of different nodes differ by more than a hop takes, so they only decide
/// between hops that nothing else tells apart: what a pod sends out was caused by what came in there, and what comes in
/// at an endpoint by what was sent to it. A cause takes longer than what it causes; where it gave up earlier, time decides.
fn in_order(mut hops: Vec<Hop>) -> Vec<Hop> {
    hops.sort_by(|a, b| b.duration_ms.total_cmp(&a.duration_ms).then_with(|| a.began().cmp(&b.began())));
    let mut caused: Vec<Vec<usize>> = vec![Vec::new(); hops.len()];
    let mut roots = Vec::new();
    for (i, hop) in hops.iter().enumerate() {
        let causes = hops[..i].iter().enumerate().filter(|(_, cause)| cause.causes(hop));
        match causes.min_by_key(|(_, cause)| (cause.began() - hop.began()).abs()) {
            Some((cause, _)) => caused[cause].push(i),
            None => roots.push(i),
        }
    }
    let by_time = |hops: &[Hop], mut some: Vec<usize>| {
        // Latest first: it is a stack.
        some.sort_by_key(|&i| std::cmp::Reverse(hops[i].began()));
        some
    };
    let mut stack = by_time(&hops, roots);
    let mut order = Vec::with_capacity(hops.len());
    while let Some(next) = stack.pop() {
        order.push(next);
        stack.extend(by_time(&hops, std::mem::take(&mut caused[next])));
    }
    let mut hops: Vec<Option<Hop>> = hops.into_iter().map(Some).collect();
    order.into_iter().filter_map(|i| hops[i].take()).collect()
}

fn row(hop: &Hop) -> Vec<String> {
    let answer = match (&hop.reason, hop.grpc_status) {
        (Some(reason), _) => format!("{} {reason}", hop.code),
        (None, Some(grpc)) => format!("{} grpc {grpc}", hop.code),
        (None, None) => hop.code.to_string(),
    };
    let answer = if hop.action.is_empty() { answer } else { format!("{answer} ({})", hop.action) };
    let source = hop.source_identity.as_deref().map(short).unwrap_or(hop.source_workload.as_str());
    vec![
        hop.began().format("%H:%M:%S%.3f").to_string(),
        format!("{:.1}ms", hop.duration_ms),
        hop.pod.clone(),
        hop.direction.clone(),
        output::or_dash(Some(source)),
        hop.destination().to_owned(),
        output::or_dash(hop.endpoint.clone()),
        if hop.mtls { "yes" } else { "no" }.to_owned(),
        hop.retries.to_string(),
        answer,
    ]
}

/// An identity without its trust domain.
fn short(identity: &str) -> &str {
    identity
        .strip_prefix("spiffe://")
        .and_then(|rest| rest.split_once('/'))
        .map_or(identity, |(_, path)| path)
}

/// The innermost hop that refused is where it happened; the outer ones passed the answer on.
fn judge(hops: &[Hop]) -> (String, Option<String>) {
    let Some(last) = hops.last() else {
        return (
            "no proxy knows this request".to_owned(),
            Some(
                "is it older than --since, in another namespace (-n, -A), or is the access log off?"
                    .to_owned(),
            ),
        );
    };
    if let Some(hop) = hops.iter().rev().find(|h| h.reason.is_some()) {
        let word = hop.reason.as_deref().unwrap_or_default();
        let help = Reason::ALL.iter().find(|r| r.as_str() == word).map(|r| r.help().to_owned());
        let mut verdict = format!(
            "the proxy of {} ({} to {}) answered {} itself: {word}",
            hop.pod,
            hop.direction,
            hop.destination(),
            hop.code
        );
        if !hop.route.is_empty() {
            let _ = write!(verdict, ", by route {}", hop.route);
        }
        if let Some(detail) = &hop.detail {
            let _ = write!(verdict, " ({detail})");
        }
        return (verdict, policy_remedy(hop).or(help));
    }
    // What a rule answers goes no further.
    if matches!(last.action.as_str(), "preflight" | "redirect" | "response") {
        let (pod, route, code) = (&last.pod, &last.route, last.code);
        let verdict =
            format!("the proxy of {pod} answered {code} itself, as route {route} says: {}", last.action);
        return (verdict, None);
    }
    let who = match last.direction.as_str() {
        "inbound" => format!("the application in {}", last.pod),
        _ => format!("{}, which has no proxy of this namespace's logs,", last.destination()),
    };
    let would = hops.iter().find_map(|hop| Some((hop, hop.dry_run.as_ref()?)));
    if let Some((hop, would)) = would {
        return (
            format!(
                "{who} answered {}; in force, a policy in dry run would have refused it at {}",
                last.code, hop.pod
            ),
            Some(format!("before dryRun is removed: {would}")),
        );
    }
    match last.code {
        0 => (format!("the client left before {who} had answered"), None),
        code => (format!("{who} answered {code}; no proxy refused anything"), None),
    }
}

/// Which policy to look at.
fn policy_remedy(hop: &Hop) -> Option<String> {
    if hop.reason.as_deref() != Some(Reason::PolicyDenied.as_str()) {
        return None;
    }
    let caller = hop.source_identity.as_deref().unwrap_or("a caller without identity (plaintext)");
    Some(match (&hop.policy, &hop.policy_rule) {
        (Some(policy), Some(rule)) => {
            let (namespace, name) = policy.split_once('/').unwrap_or(("", policy));
            format!(
                "AuthorizationPolicy {name} in namespace {namespace} denies it by rule {rule} to {caller}: kubectl -n {namespace} get authorizationpolicy {name} -o yaml"
            )
        }
        _ => format!(
            "no Allow rule fits, and there are Allow policies for {}: add a rule for {caller}, or look with weft inspect pod/{}",
            hop.pod,
            hop.pod.split_once('/').map_or(hop.pod.as_str(), |(_, name)| name)
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn hop(pod: &str, direction: &str, ended: &str, took: f64, more: Value) -> Hop {
        let mut line = json!({"log": "request", "time": ended, "direction": direction, "request_id": "r1", "method": "GET",
            "path": "/", "protocol": "http1", "code": 200, "duration_ms": took, "request_bytes": 0, "response_bytes": 0,
            "retries": 0, "mtls": true, "client": "10.0.0.1:1", "service": "shop/back:80"});
        line.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Hop::parse(pod, "r1", &line.to_string()).unwrap()
    }

    fn refused() -> Trail {
        let refusal = json!({"code": 503, "reason": "breaker-open", "route": "canary/0", "detail": "4 of 4"});
        let at = |endpoint: &str| json!({"code": 503, "service": "shop/front", "endpoint": endpoint});
        // All within the millisecond that the log tells apart.
        Trail::new(
            "r1",
            vec![
                hop("shop/front", "outbound", "2026-01-01T00:00:00.010Z", 0.01, refusal),
                hop("shop/client", "outbound", "2026-01-01T00:00:00.011Z", 0.9, at("10.0.0.1:80")),
                hop("shop/front", "inbound", "2026-01-01T00:00:00.011Z", 0.6, at("10.0.0.1:80")),
            ],
        )
    }

    fn order(trail: &Trail) -> Vec<String> {
        trail.hops.iter().map(|h| format!("{} {}", h.pod, h.direction)).collect()
    }

    #[test]
    fn each_hop_comes_after_the_one_that_caused_it_even_when_the_clocks_differ() {
        assert_eq!(order(&refused()), ["shop/client outbound", "shop/front inbound", "shop/front outbound"]);
        let at = || json!({"endpoint": "10.0.0.1:80"});
        let skewed = Trail::new(
            "r1",
            vec![
                hop("shop/back", "inbound", "2026-01-01T00:00:00Z", 1.0, at()),
                hop("shop/client", "outbound", "2026-01-01T00:00:07Z", 2.0, at()),
            ],
        );
        assert_eq!(order(&skewed), ["shop/client outbound", "shop/back inbound"]);
    }

    #[test]
    fn a_caller_that_gave_up_and_a_pod_that_calls_itself_are_in_order_too() {
        let at = || json!({"endpoint": "10.0.0.1:80"});
        let gave_up = Trail::new(
            "r1",
            vec![
                hop("shop/back", "inbound", "2026-01-01T00:00:03Z", 2900.0, at()),
                hop("shop/client", "outbound", "2026-01-01T00:00:01Z", 1000.0, at()),
            ],
        );
        assert_eq!(order(&gave_up), ["shop/client outbound", "shop/back inbound"]);
        let itself = Trail::new(
            "r1",
            vec![
                hop("shop/a", "inbound", "2026-01-01T00:00:00.010Z", 1.0, at()),
                hop("shop/a", "outbound", "2026-01-01T00:00:00.010Z", 1.5, at()),
            ],
        );
        assert_eq!(order(&itself), ["shop/a outbound", "shop/a inbound"]);
    }

    #[test]
    fn the_innermost_refusal_is_named_with_its_remedy() {
        let trail = refused();
        assert_eq!(
            trail.verdict,
            "the proxy of shop/front (outbound to shop/back:80) answered 503 itself: breaker-open, by route canary/0 (4 of 4)"
        );
        assert_eq!(trail.remedy.as_deref(), Some(Reason::BreakerOpen.help()));
        assert!(trail.text(3).contains("503 breaker-open"));
    }

    #[test]
    fn without_a_refusal_the_application_has_answered() {
        let trail = Trail::new(
            "r1",
            vec![hop("shop/back", "inbound", "2026-01-01T00:00:00Z", 1.0, json!({"code": 500}))],
        );
        assert_eq!(trail.verdict, "the application in shop/back answered 500; no proxy refused anything");
        assert!(trail.remedy.is_none());
    }

    #[test]
    fn an_answer_that_a_rule_gives_is_no_answer_of_the_application() {
        let answered = |action: &str| {
            let more = json!({"code": 302, "route": "moved/0", "action": action});
            Trail::new("r1", vec![hop("shop/front", "outbound", "2026-01-01T00:00:00Z", 0.1, more)])
        };
        let trail = answered("redirect");
        assert_eq!(
            trail.verdict,
            "the proxy of shop/front answered 302 itself, as route moved/0 says: redirect"
        );
        assert!(trail.text(1).contains("302 (redirect)"));
        assert!(
            answered("delay").verdict.contains("answered 302; no proxy refused"),
            "a delayed one goes on"
        );
    }

    #[test]
    fn a_policys_refusal_names_policy_rule_and_caller() {
        let denied = |more: Value| {
            let mut line = json!({"code": 403, "reason": "policy-denied", "source_identity": "spiffe://cluster.local/ns/shop/sa/front"});
            line.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            Trail::new("r1", vec![hop("shop/back-1", "inbound", "2026-01-01T00:00:00Z", 0.1, line)])
        };
        let trail = denied(
            json!({"policy": "shop/admins", "policy_rule": "0", "detail": "refused by rule 0 of AuthorizationPolicy shop/admins"}),
        );
        assert!(
            trail.verdict.contains("refused by rule 0 of AuthorizationPolicy shop/admins"),
            "{}",
            trail.verdict
        );
        let remedy = trail.remedy.unwrap();
        assert!(
            remedy.contains("AuthorizationPolicy admins in namespace shop denies it by rule 0"),
            "{remedy}"
        );
        let remedy = denied(json!({})).remedy.unwrap();
        assert!(
            remedy.starts_with("no Allow rule fits")
                && remedy.contains("sa/front")
                && remedy.contains("pod/back-1"),
            "{remedy}"
        );
    }

    #[test]
    fn what_a_dry_run_would_have_refused_is_said() {
        let more = json!({"dry_run": "refused by rule 0 of AuthorizationPolicy shop/admins"});
        let trail = Trail::new("r1", vec![hop("shop/back-1", "inbound", "2026-01-01T00:00:00Z", 0.1, more)]);
        assert!(trail.verdict.contains("dry run would have refused it at shop/back-1"), "{}", trail.verdict);
        assert!(trail.remedy.unwrap().contains("shop/admins"));
    }

    #[test]
    fn a_request_that_nobody_knows_says_where_else_to_look() {
        let trail = Trail::new("r2", Vec::new());
        assert!(trail.text(7).contains("--since") && trail.text(7).contains("7 proxies"));
    }

    #[test]
    fn other_lines_are_no_hops() {
        for line in ["", "not json r1", r#"{"request_id":"r1"}"#, r#"{"level":"INFO","request_id":"r1"}"#] {
            assert!(Hop::parse("p", "r1", line).is_none(), "{line}");
        }
        let other = r#"{"time":"2026-01-01T00:00:00Z","direction":"inbound","request_id":"r12","code":200,"duration_ms":1}"#;
        assert!(Hop::parse("p", "r1", other).is_none(), "only the very same id");
    }

    #[test]
    fn a_reason_of_a_newer_proxy_is_shown_without_a_remedy() {
        let hop =
            hop("p", "outbound", "2026-01-01T00:00:00Z", 1e300, json!({"reason": "brand-new", "code": 503}));
        let trail = Trail::new("r1", vec![hop]);
        assert!(trail.verdict.contains("brand-new") && trail.remedy.is_none());
    }
}
