//! Calls from a client pod, and what came back, as the test application reports it in JSON lines.

use crate::app::Client;
use crate::command::Running;
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;
use weft_api::names;

/// One response, or the failure to get one.
#[derive(Clone, Debug, Deserialize)]
pub struct Reply {
    /// HTTP status; 0 when there was no response.
    pub status: u16,
    /// From the start until the end of the body.
    pub ms: f64,
    /// Response headers, lower case.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The body: JSON where it is JSON, otherwise text.
    #[serde(default)]
    pub body: Value,
    /// Why there was no response.
    #[serde(default)]
    pub error: Option<String>,
}

impl Reply {
    /// `weft-reason`, or nothing.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.headers.get(names::REASON_HEADER).map_or("", String::as_str)
    }

    /// The pod that answered.
    #[must_use]
    pub fn pod(&self) -> &str {
        self.body["pod"].as_str().unwrap_or_default()
    }

    /// The version that answered.
    #[must_use]
    pub fn version(&self) -> &str {
        self.body["version"].as_str().unwrap_or_default()
    }

    /// A header of the request, as the application got it.
    #[must_use]
    pub fn seen_header(&self, name: &str) -> Option<&str> {
        match &self.body["headers"][name] {
            Value::String(value) => Some(value),
            Value::Array(values) => values.first()?.as_str(),
            _ => None,
        }
    }

    /// The caller's identity, as the application was told it.
    #[must_use]
    pub fn seen_identity(&self) -> Option<&str> {
        self.seen_header(names::IDENTITY_HEADER)
    }

    /// Refuses anything but this status.
    pub fn expect(self, status: u16) -> Result<Self> {
        ensure!(self.status == status, "expected status {status}, got {self}");
        Ok(self)
    }

    /// Refuses anything but this status with this reason.
    pub fn expect_reason(self, status: u16, reason: weft_api::Reason) -> Result<Self> {
        ensure!(
            self.status == status && self.reason() == reason.as_str(),
            "expected {status} {reason}, got {self}"
        );
        Ok(self)
    }
}

impl std::fmt::Display for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body: String = self.body.to_string().chars().take(200).collect();
        let error = self.error.as_deref().unwrap_or_default();
        write!(
            f,
            "status {} reason `{}` after {:.0} ms {error} body {body}",
            self.status,
            self.reason(),
            self.ms
        )
    }
}

/// What a constant load met.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Load {
    /// Requests sent.
    pub sent: u64,
    /// Responses by status.
    #[serde(default)]
    pub statuses: BTreeMap<u16, u64>,
    /// Successful responses by pod.
    #[serde(default)]
    pub pods: BTreeMap<String, u64>,
    /// Successful responses by version.
    #[serde(default)]
    pub versions: BTreeMap<String, u64>,
    /// Refusals by the mesh, by reason.
    #[serde(default)]
    pub reasons: BTreeMap<String, u64>,
    /// Requests without a response, by the error's text.
    #[serde(default)]
    pub errors: BTreeMap<String, u64>,
    /// Median latency.
    #[serde(default)]
    pub p50_ms: f64,
    /// Latency of the slowest tenth.
    #[serde(default)]
    pub p90_ms: f64,
    /// Latency of the slowest hundredth.
    #[serde(default)]
    pub p99_ms: f64,
    /// The slowest.
    #[serde(default)]
    pub max_ms: f64,
}

impl Load {
    /// Responses with status 200.
    #[must_use]
    pub fn ok(&self) -> u64 {
        self.statuses.get(&200).copied().unwrap_or_default()
    }

    /// Everything that is not a response with status 200.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.sent.saturating_sub(self.ok())
    }

    /// Refuses a load of which anything failed, or which did not run as it should.
    pub fn expect_no_failure(&self, at_least: u64) -> Result<()> {
        ensure!(self.sent >= at_least, "only {} requests were sent, not {at_least}", self.sent);
        ensure!(self.failed() == 0, "{} of {} requests failed: {}", self.failed(), self.sent, self.summary());
        Ok(())
    }

    /// One line.
    #[must_use]
    pub fn summary(&self) -> String {
        format!(
            "statuses {:?} reasons {:?} errors {:?} pods {:?}",
            self.statuses, self.reasons, self.errors, self.pods
        )
    }
}

/// A load that is under way in a pod.
#[derive(Debug)]
pub struct Loading {
    running: Running,
    duration: Duration,
}

impl Loading {
    /// Waits for its end.
    pub fn finish(self) -> Result<Load> {
        let printed = self.running.wait(self.duration + Duration::from_secs(60))?.success()?;
        last_object(&printed)
    }
}

/// Answers by pod.
#[derive(Clone, Debug, Deserialize)]
pub struct Shares {
    /// Answers by pod.
    #[serde(default)]
    pub pods: BTreeMap<String, u64>,
    /// Failures by text.
    #[serde(default)]
    pub errors: BTreeMap<String, u64>,
}

fn last_object<T: for<'de> Deserialize<'de>>(printed: &str) -> Result<T> {
    let line =
        printed.lines().rfind(|l| l.starts_with('{')).with_context(|| format!("no JSON in `{printed}`"))?;
    serde_json::from_str(line).with_context(|| format!("reading `{line}`"))
}

impl Client<'_> {
    /// `count` requests, `concurrency` at a time, with more arguments of `testapp get`.
    pub fn get_many(&self, url: &str, count: u32, concurrency: u32, more: &[&str]) -> Result<Vec<Reply>> {
        let (n, c) = (count.to_string(), concurrency.to_string());
        let mut command = vec!["/testapp", "get", url, "-n", &n, "-c", &c, "--json"];
        command.extend(more);
        let printed = self.run(&command)?;
        let replies = printed
            .lines()
            .filter(|line| line.starts_with('{'))
            .map(|line| serde_json::from_str(line).with_context(|| format!("reading `{line}`")))
            .collect::<Result<Vec<Reply>>>()?;
        if replies.len() != count as usize {
            bail!("{} replies to {count} requests: {printed}", replies.len());
        }
        Ok(replies)
    }

    /// One request with more arguments of `testapp get`.
    pub fn get_with(&self, url: &str, more: &[&str]) -> Result<Reply> {
        self.get_many(url, 1, 1, more)?.pop().context("no reply")
    }

    /// One GET.
    pub fn get(&self, url: &str) -> Result<Reply> {
        self.get_with(url, &[])
    }

    /// Starts a constant load (open loop).
    pub fn load(&self, url: &str, per_second: u32, duration: Duration, more: &[&str]) -> Result<Loading> {
        let (rps, length) = (per_second.to_string(), format!("{}ms", duration.as_millis()));
        let mut command = vec!["/testapp", "load", url, "--rps", &rps, "--duration", &length, "--json"];
        command.extend(more);
        Ok(Loading { running: self.start(&command)?, duration })
    }

    /// gRPC echo calls over one connection; who answered.
    pub fn grpc(&self, address: &str, count: u32) -> Result<Shares> {
        last_object(&self.run(&["/testapp", "grpc", address, "-n", &count.to_string(), "--json"])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_and_loads_are_read() {
        let reply: Reply = serde_json::from_str(
            r#"{"status":503,"ms":1.5,"headers":{"weft-reason":"breaker-open"},"body":{"pod":"p","headers":{"weft-client-identity":"spiffe://a/ns/b/sa/c"}},"error":null}"#,
        )
        .unwrap();
        assert_eq!(
            (reply.reason(), reply.pod(), reply.seen_identity()),
            ("breaker-open", "p", Some("spiffe://a/ns/b/sa/c"))
        );
        assert!(reply.clone().expect_reason(503, weft_api::Reason::BreakerOpen).is_ok());
        assert!(reply.expect(200).is_err());
        let load: Load =
            last_object("noise\n{\"sent\":10,\"statuses\":{\"200\":9,\"503\":1},\"p99_ms\":2.5}\n").unwrap();
        assert_eq!((load.ok(), load.failed()), (9, 1));
        assert!(load.expect_no_failure(1).is_err());
    }
}
