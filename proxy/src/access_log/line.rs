//! How a record looks as a line of JSON. A field that is not known is left out; texts that clients choose are bounded.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};
use weft_api::audit::timestamp;
use weft_api::{Identity, Reason};

use crate::authorize::{Refusal, Verdict};
use crate::record::{Party, RequestRecord, TcpRecord};
use crate::token::Seen;

/// Longest text of a client in a line, in bytes.
const LONGEST: usize = 2048;

#[derive(Serialize)]
struct Request<'a> {
    log: &'static str,
    time: String,
    direction: &'static str,
    request_id: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<&'a str>,
    method: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<Cow<'a, str>>,
    path: &'a str,
    protocol: &'static str,
    code: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    #[serde(serialize_with = "millis")]
    duration_ms: Duration,
    request_bytes: u64,
    response_bytes: u64,
    retries: u32,
    mtls: bool,
    #[serde(flatten)]
    ends: Ends<'a>,
    #[serde(skip_serializing_if = "str::is_empty")]
    route: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    action: &'static str,
    #[serde(flatten)]
    policies: Policies<'a>,
    #[serde(flatten)]
    token: Token<'a>,
    client: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<SocketAddr>,
}

#[derive(Serialize)]
struct Connection<'a> {
    log: &'static str,
    time: String,
    direction: &'static str,
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    #[serde(serialize_with = "millis")]
    duration_ms: Duration,
    sent_bytes: u64,
    received_bytes: u64,
    mtls: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    sni: Option<&'a str>,
    #[serde(flatten)]
    ends: Ends<'a>,
    #[serde(flatten)]
    policies: Policies<'a>,
    client: SocketAddr,
    original: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<SocketAddr>,
}

/// What policies of the own workload say.
#[derive(Default, Serialize)]
struct Policies<'a> {
    /// Which refused it.
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy_rule: Option<&'a str>,
    /// What would have, were it not in dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    dry_run: Option<String>,
    /// Those that want it noted, as "namespace/name/rule".
    #[serde(skip_serializing_if = "Option::is_none")]
    audit: Option<String>,
}

/// What a good token says of whose it is. Never the token itself.
#[derive(Default, Serialize)]
struct Token<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    token_issuer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_subject: Option<&'a str>,
}

#[derive(Serialize)]
struct Ends<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    source_namespace: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    source_workload: &'a str,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "displayed")]
    source_identity: Option<&'a Identity>,
    #[serde(skip_serializing_if = "str::is_empty")]
    destination_namespace: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    destination_workload: &'a str,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "displayed")]
    destination_identity: Option<&'a Identity>,
    #[serde(skip_serializing_if = "str::is_empty")]
    service: &'a str,
}

pub(super) fn request(line: &mut Vec<u8>, at: SystemTime, record: &RequestRecord) {
    let trace = record.trace.map(|trace| trace.digits());
    let path = record.uri.path_and_query().map_or("", |path| path.as_str());
    append(
        line,
        &Request {
            log: "request",
            time: timestamp(at),
            direction: record.direction.as_str(),
            request_id: bounded(record.request_id.as_bytes()),
            trace_id: trace.as_ref().and_then(|digits| std::str::from_utf8(digits).ok()),
            method: record.method.as_str(),
            host: record.host.as_ref().map(|host| bounded(host.as_bytes())),
            path: clipped(path),
            protocol: record.kind.as_str(),
            code: record.status,
            grpc_status: record.grpc_status,
            reason: record.reason,
            detail: record.detail.as_deref().map(clipped),
            duration_ms: record.duration,
            request_bytes: record.request_bytes,
            response_bytes: record.response_bytes,
            retries: record.retries,
            mtls: record.mtls,
            ends: ends(&record.source, &record.destination, &record.service),
            route: &record.route,
            action: record.action,
            policies: policies(record.authorization.as_deref()),
            token: token(record.token.as_ref()),
            client: record.client,
            endpoint: record.upstream,
        },
    );
}

pub(super) fn tcp(line: &mut Vec<u8>, at: SystemTime, record: &TcpRecord) {
    append(
        line,
        &Connection {
            log: "connection",
            time: timestamp(at),
            direction: record.direction.as_str(),
            protocol: if record.sni.is_some() { "tls" } else { "tcp" },
            reason: record.reason,
            detail: record.detail.as_deref().map(clipped),
            duration_ms: record.duration,
            sent_bytes: record.sent_bytes,
            received_bytes: record.received_bytes,
            mtls: record.mtls,
            sni: record.sni.as_deref().map(clipped),
            ends: ends(&record.source, &record.destination, &record.service),
            policies: policies(record.authorization.as_deref()),
            client: record.client,
            original: record.original,
            endpoint: record.upstream,
        },
    );
}

fn append(line: &mut Vec<u8>, fields: &impl Serialize) {
    let before = line.len();
    if serde_json::to_writer(&mut *line, fields).is_err() {
        // No half lines.
        line.truncate(before);
        return;
    }
    line.push(b'\n');
}

fn ends<'a>(source: &'a Party, destination: &'a Party, service: &'a str) -> Ends<'a> {
    Ends {
        source_namespace: &source.namespace,
        source_workload: &source.workload,
        source_identity: source.identity.as_deref(),
        destination_namespace: &destination.namespace,
        destination_workload: &destination.workload,
        destination_identity: destination.identity.as_deref(),
        service,
    }
}

fn policies(verdict: Option<&Verdict>) -> Policies<'_> {
    let Some(verdict) = verdict else { return Policies::default() };
    let by = match &verdict.refused {
        Some(Refusal::Rule(by)) => Some(by),
        _ => None,
    };
    let audited = verdict.audited.iter().map(|by| format!("{}/{}", by.policy, by.rule));
    Policies {
        policy: by.map(|by| &*by.policy),
        policy_rule: by.map(|by| &*by.rule),
        dry_run: verdict.dry_run.as_ref().map(ToString::to_string),
        audit: (!verdict.audited.is_empty()).then(|| audited.collect::<Vec<_>>().join(", ")),
    }
}

fn token(seen: Option<&Seen>) -> Token<'_> {
    let Some(good) = seen.and_then(Seen::good) else { return Token::default() };
    Token {
        token_issuer: Some(clipped(&good.claims.issuer)),
        token_subject: good.claims.subject.as_deref().map(clipped),
    }
}

fn displayed<S: Serializer>(identity: &Option<&Identity>, serializer: S) -> Result<S::Ok, S::Error> {
    match identity {
        Some(identity) => serializer.collect_str(identity),
        None => serializer.serialize_none(),
    }
}

/// With microseconds.
fn millis<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    #[allow(clippy::cast_precision_loss)]
    serializer.serialize_f64(duration.as_micros() as f64 / 1000.0)
}

fn bounded(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes.get(..LONGEST).unwrap_or(bytes))
}

fn clipped(text: &str) -> &str {
    &text[..text.floor_char_boundary(LONGEST)]
}
