//! From two readings of the proxies' counters to flows between workloads. Pure. Success is what an application answered
//! below 500; quantiles are upper bounds of the histogram's buckets, over all codes.

use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

/// Who calls whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    from: String,
    to: String,
    workload: String,
}

/// One kind of outcome.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Outcome {
    code: u16,
    reason: String,
    mtls: bool,
}

/// What is read of one proxy: outgoing requests only, each of which the caller's proxy counts once.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    requests: BTreeMap<(Key, Outcome), f64>,
    /// By destination; upper bound in the order of the exposition (infinity last) and cumulated count.
    buckets: BTreeMap<(String, String), Vec<(f64, f64)>>,
}

/// One line of the answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Flow {
    /// `namespace/workload` of the caller.
    pub from: String,
    /// `namespace/service` that was called.
    pub to: String,
    /// Workload that answered; `unknown` where none did.
    pub workload: String,
    pub per_second: f64,
    /// Share of answers below 500 that no proxy made.
    pub success: f64,
    /// Share that went to another proxy by mTLS.
    pub mtls: f64,
    pub p50_s: Option<f64>,
    pub p99_s: Option<f64>,
    /// Refusals per second, by reason.
    pub reasons: BTreeMap<String, f64>,
}

impl Counters {
    /// Reads an OpenMetrics text; what it does not know it passes over.
    pub fn parse(text: &str) -> Self {
        let mut counters = Self::default();
        for line in text.lines() {
            if line.starts_with("weft_requests_total{") {
                counters.request(line);
            } else if line.starts_with("weft_request_duration_seconds_bucket{") {
                counters.bucket(line);
            }
        }
        counters
    }

    fn request(&mut self, line: &str) {
        let Some((labels, value)) = sample(line) else { return };
        if labels.get("direction").map(String::as_str) != Some("outbound") {
            return;
        }
        let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
        let key = Key {
            from: format!("{}/{}", label("source_namespace"), label("source_workload")),
            to: format!("{}/{}", label("destination_namespace"), label("destination_service")),
            workload: label("destination_workload"),
        };
        let outcome = Outcome {
            code: label("code").parse().unwrap_or(0),
            reason: label("reason"),
            mtls: label("mtls") == "true",
        };
        *self.requests.entry((key, outcome)).or_default() += value;
    }

    fn bucket(&mut self, line: &str) {
        let Some((labels, value)) = sample(line) else { return };
        let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
        let bound = match label("le").as_str() {
            "+Inf" => f64::INFINITY,
            text => text.parse().unwrap_or(f64::NAN),
        };
        if label("direction") != "outbound" || bound.is_nan() {
            return;
        }
        let to = format!("{}/{}", label("destination_namespace"), label("destination_service"));
        self.buckets.entry((to, label("destination_workload"))).or_default().push((bound, value));
    }
}

/// What happened between two readings, the busiest first. A proxy that restarted in between counts from zero.
pub fn between(
    before: &BTreeMap<String, (Instant, Counters)>,
    after: &BTreeMap<String, (Instant, Counters)>,
) -> Vec<Flow> {
    let mut sums: BTreeMap<Key, Sum> = BTreeMap::new();
    for (pod, (end, now)) in after {
        let Some((begin, then)) = before.get(pod) else { continue };
        let seconds = end.duration_since(*begin).as_secs_f64().max(1e-3);
        for ((key, outcome), &count) in &now.requests {
            let earlier = then.requests.get(&(key.clone(), outcome.clone())).copied().unwrap_or(0.0);
            let grown = if count >= earlier { count - earlier } else { count };
            if grown > 0.0 {
                sums.entry(key.clone()).or_default().add(outcome, grown / seconds);
            }
        }
        // A proxy serves one workload: its buckets are of that caller.
        for (key, sum) in &mut sums {
            let destination = (key.to.clone(), key.workload.clone());
            if now.requests.keys().any(|(own, _)| own == key)
                && let Some(buckets) = now.buckets.get(&destination)
            {
                sum.buckets(buckets, then.buckets.get(&destination).map_or(&[], Vec::as_slice));
            }
        }
    }
    let mut flows: Vec<Flow> = sums.into_iter().map(|(key, sum)| sum.flow(key)).collect();
    flows.sort_by(|a, b| b.per_second.total_cmp(&a.per_second));
    flows
}

#[derive(Default)]
struct Sum {
    all: f64,
    good: f64,
    mtls: f64,
    reasons: BTreeMap<String, f64>,
    buckets: Vec<(f64, f64)>,
}

impl Sum {
    fn add(&mut self, outcome: &Outcome, rate: f64) {
        self.all += rate;
        if outcome.mtls {
            self.mtls += rate;
        }
        if !outcome.reason.is_empty() {
            *self.reasons.entry(outcome.reason.clone()).or_default() += rate;
        } else if (100..500).contains(&outcome.code) {
            self.good += rate;
        }
    }

    fn buckets(&mut self, now: &[(f64, f64)], then: &[(f64, f64)]) {
        for (i, &(bound, count)) in now.iter().enumerate() {
            let earlier = then.get(i).filter(|(b, _)| *b == bound).map_or(0.0, |(_, c)| *c);
            let grown = if count >= earlier { count - earlier } else { count };
            match self.buckets.get_mut(i) {
                Some((b, sum)) if *b == bound => *sum += grown,
                Some(_) => {}
                None => self.buckets.push((bound, grown)),
            }
        }
    }

    fn quantile(&self, share: f64) -> Option<f64> {
        let (_, total) = self.buckets.last()?;
        if *total <= 0.0 {
            return None;
        }
        self.buckets.iter().find(|(_, count)| *count >= share * total).map(|(bound, _)| *bound)
    }

    fn flow(self, key: Key) -> Flow {
        Flow {
            p50_s: self.quantile(0.5),
            p99_s: self.quantile(0.99),
            from: key.from,
            to: key.to,
            workload: key.workload,
            per_second: self.all,
            success: self.good / self.all,
            mtls: self.mtls / self.all,
            reasons: self.reasons,
        }
    }
}

/// The labels and the value of a line of the exposition.
fn sample(line: &str) -> Option<(HashMap<String, String>, f64)> {
    let (_, mut rest) = line.split_once('{')?;
    let mut labels = HashMap::new();
    while !rest.starts_with('}') {
        let (name, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = after.char_indices();
        let end = loop {
            match characters.next()? {
                (_, '\\') => match characters.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (i, '"') => break i,
                (_, other) => value.push(other),
            }
        };
        labels.insert(name.to_owned(), value);
        rest = &after[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    let value = rest[1..].split_whitespace().next()?.parse().ok()?;
    Some((labels, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn text(ok: u32, refused: u32, fast: u32) -> String {
        let labels = r#"direction="outbound",source_workload="front",source_namespace="shop",destination_service="back",destination_namespace="shop""#;
        let to = r#"direction="outbound",destination_workload="back-v1",destination_service="back",destination_namespace="shop""#;
        format!(
            "# TYPE weft_requests counter\n\
             weft_requests_total{{{labels},destination_workload=\"back-v1\",code=\"200\",reason=\"\",mtls=\"true\"}} {ok}\n\
             weft_requests_total{{{labels},destination_workload=\"unknown\",code=\"503\",reason=\"breaker-open\",mtls=\"false\"}} {refused}\n\
             weft_requests_total{{direction=\"inbound\",source_workload=\"x\",code=\"200\"}} 99\n\
             weft_request_duration_seconds_bucket{{le=\"0.001\",{to}}} {fast}\n\
             weft_request_duration_seconds_bucket{{le=\"0.01\",{to}}} {ok}\n\
             weft_request_duration_seconds_bucket{{le=\"+Inf\",{to}}} {ok}\n# EOF\n"
        )
    }

    fn flows(before: &[String], after: &[String]) -> Vec<Flow> {
        let begin = Instant::now();
        let reading = |texts: &[String], at: Instant| {
            texts.iter().enumerate().map(|(i, t)| (format!("pod-{i}"), (at, Counters::parse(t)))).collect()
        };
        between(&reading(before, begin), &reading(after, begin + Duration::from_secs(2)))
    }

    #[test]
    fn replicas_of_a_caller_are_one_flow_with_rates_and_quantiles() {
        let flows = flows(&[text(100, 0, 100), text(0, 0, 0)], &[text(120, 4, 120), text(20, 0, 0)]);
        assert_eq!(flows.len(), 2);
        let served = &flows[0];
        assert_eq!(
            (served.from.as_str(), served.to.as_str(), served.workload.as_str()),
            ("shop/front", "shop/back", "back-v1")
        );
        assert_eq!((served.per_second, served.success, served.mtls), (20.0, 1.0, 1.0));
        assert_eq!((served.p50_s, served.p99_s), (Some(0.001), Some(0.01)));
        assert_eq!(flows[1].reasons.get("breaker-open"), Some(&2.0));
        assert_eq!(flows[1].success, 0.0);
    }

    #[test]
    fn a_proxy_that_restarted_counts_from_zero_and_one_that_is_new_does_not_count() {
        let restarted = flows(&[text(1000, 0, 0)], &[text(10, 0, 10)]);
        assert_eq!(restarted[0].per_second, 5.0);
        assert!(flows(&[], &[text(10, 0, 10)]).is_empty());
    }

    #[test]
    fn labels_with_escapes_are_read_and_broken_lines_are_passed_over() {
        let (labels, value) = sample(r#"m{a="x\"y\\z",b=""} 1.5 123"#).unwrap();
        assert_eq!((labels["a"].as_str(), labels["b"].as_str(), value), (r#"x"y\z"#, "", 1.5));
        for broken in [
            "m",
            "m{",
            "m{a",
            "m{a=\"",
            "m{a=\"b",
            "m{a=\"b\"",
            "m{a=\"b\"}",
            "m{a=\"b\"} x",
            "m{}",
            "m{é=\"é\"} 1é",
        ] {
            assert!(sample(broken).is_none(), "{broken}");
        }
    }
}
