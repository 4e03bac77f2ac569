//! What the proxy counts, all in one place. Label values are names from the configuration, verified identities and words
//! of closed lists, never a path, a pod or an error's text; beyond a bound of series the rest is counted under `other`.
//! Units are seconds and bytes. A request that was seen before costs one lookup and no allocation. It decides nothing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fnv::FnvBuildHasher;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use weft_api::{Reason, v1};

use crate::authorize::{Action, Named, Refusal, Verdict};
use crate::outlier;
use crate::plaintext::Callers;
use crate::record::{Direction, HttpKind, Party, RequestRecord, TcpRecord};

mod labels;
#[cfg(test)]
pub(crate) mod tests;

use labels::{
    EndsLabels, LatencyLabels, PolicyLabels, RequestLabels, ServiceLabels, TcpBytesLabels, TcpLabels,
};

/// Content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Different sets of labels of requests, and as many of connections. What comes later is counted under `other`.
pub const MAX_SERIES: usize = 2_000;

/// A service, and one word.
type ByService = Family<(ServiceLabels, [(&'static str, &'static str); 1]), Counter>;

/// A service, and the port and subset of one of its clusters.
type ClusterLabels = (ServiceLabels, [(&'static str, String); 2]);

/// Every metric of the proxy.
pub struct Metrics {
    registry: Registry,
    requests: Series<RequestKey, RequestLabels, RequestSeries>,
    connections: Series<TcpKey, TcpLabels, TcpSeries>,
    requests_total: Family<RequestLabels, Counter>,
    request_duration: Family<LatencyLabels, Histogram, fn() -> Histogram>,
    request_bytes: Family<EndsLabels, Counter>,
    response_bytes: Family<EndsLabels, Counter>,
    tcp_total: Family<TcpLabels, Counter>,
    tcp_bytes: Family<TcpBytesLabels, Counter>,
    open: [Gauge; 2],
    accepted: [Counter; 2],
    upstream_open: Gauge,
    upstream_opened: Counter,
    refusals: Family<[(&'static str, &'static str); 2], Counter>,
    breaker_refusals: ByService,
    retries: ByService,
    hedges: ByService,
    hedges_won: Family<ServiceLabels, Counter>,
    mirrored: ByService,
    ejections: ByService,
    ejected: Family<ServiceLabels, Gauge>,
    checks: ByService,
    unhealthy: Family<ServiceLabels, Gauge>,
    detection: Histogram,
    log_dropped: Counter,
    spans: Family<[(&'static str, &'static str); 1], Counter>,
    audit_dropped: Counter,
    /// Who is served in plaintext: too many to be labels.
    pub plaintext: Callers,
    certificate_expiry: Gauge<f64, AtomicU64>,
    certificate_failures: Counter,
    operator_failures: Counter,
    config_addresses: Gauge,
    config_services: Gauge,
    config_version: Gauge<i64, AtomicI64>,
    config_rejections: Counter,
    operator_connected: Gauge,
    config_files_refused: Counter,
    adaptive: Family<ClusterLabels, Gauge>,
    memory_short: Gauge,
    interception: Family<[(&'static str, &'static str); 1], Gauge>,
    tasks: Gauge,
    policy_decisions: Family<PolicyLabels, Counter>,
    decisions: Series<PolicyKey, PolicyLabels, Counter>,
    tokens: Family<[(&'static str, &'static str); 1], Counter>,
}

/// What became of the wish to retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retried {
    /// It was sent.
    Sent,
    /// The service's budget was spent.
    BudgetSpent,
    /// `maxRetries` was reached.
    BreakerOpen,
}

impl Retried {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::BudgetSpent => "budget-spent",
            Self::BreakerOpen => "breaker-open",
        }
    }
}

/// What became of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// The collector has taken it.
    Sent,
    /// It was dropped because too many were waiting.
    NoRoom,
    /// It was dropped because the collector could not be told.
    Failed,
    /// The collector did not want it.
    Rejected,
}

impl Told {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::NoRoom => "dropped",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
        }
    }
}

/// What became of a copy of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mirrored {
    /// An answer came, whatever it was, and was thrown away.
    Answered,
    /// None came.
    Failed,
    /// It was not sent: its body was too long or broke off, or too many copies were under way.
    Dropped,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    #[must_use]
    #[allow(clippy::too_many_lines, reason = "a list: one line or two for each metric")]
    pub fn new() -> Self {
        let mut r = Registry::with_prefix("weft");
        r.register("build", "The proxy's version", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        let metrics = Self {
            requests: Series::default(),
            connections: Series::default(),
            requests_total: registered(&mut r, "requests", "HTTP requests that have ended"),
            request_duration: {
                let family = Family::new_with_constructor(latencies as fn() -> Histogram);
                let help = "From a request's head until its response's end";
                r.register_with_unit("request_duration", help, Unit::Seconds, family.clone());
                family
            },
            request_bytes: registered(&mut r, "request_bytes", "Bytes of requests' bodies"),
            response_bytes: registered(&mut r, "response_bytes", "Bytes of responses' bodies"),
            tcp_total: registered(&mut r, "tcp_connections", "Opaque connections that have ended"),
            tcp_bytes: registered(&mut r, "tcp_bytes", "Bytes of opaque connections that have ended"),
            open: Default::default(),
            accepted: Default::default(),
            upstream_open: registered(
                &mut r,
                "upstream_connections",
                "Connections open to endpoints and applications",
            ),
            upstream_opened: registered(
                &mut r,
                "upstream_connects",
                "Connections made to endpoints and applications",
            ),
            refusals: registered(
                &mut r,
                "refusals",
                "Connections refused before anything of them was served",
            ),
            breaker_refusals: registered(
                &mut r,
                "breaker_refusals",
                "Requests and connections beyond a limit of the circuit breaker",
            ),
            retries: registered(&mut r, "retries", "Retries wanted, by what became of them"),
            hedges: registered(&mut r, "hedges", "Tries wanted beside a slow one, by what became of them"),
            hedges_won: registered(&mut r, "hedges_won", "Tries beside a slow one that answered before it"),
            mirrored: registered(&mut r, "mirrored", "Copies of requests, by what became of them"),
            ejections: registered(&mut r, "ejections", "Endpoints taken out of balancing, by cause"),
            ejected: registered(&mut r, "endpoint_ejected", "Endpoints out of balancing now"),
            checks: registered(&mut r, "health_checks", "Active checks made by this proxy, by outcome"),
            unhealthy: registered(&mut r, "endpoint_unhealthy", "Endpoints that fail active checks now"),
            detection: {
                let histogram =
                    Histogram::new([0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0]);
                let help = "Until the protocol of a connection was known";
                r.register_with_unit("detection", help, Unit::Seconds, histogram.clone());
                histogram
            },
            log_dropped: registered(
                &mut r,
                "access_log_dropped",
                "Lines of the access log that were dropped because nobody read them fast enough",
            ),
            spans: registered(&mut r, "trace_spans", "Spans of traces, by what became of them"),
            plaintext: Callers::default(),
            audit_dropped: registered(
                &mut r,
                "audit_dropped",
                "Audit events that were dropped because nobody read them fast enough",
            ),
            certificate_expiry: registered(
                &mut r,
                "certificate_expiry_timestamp_seconds",
                "When the proxy's certificate expires, in seconds since 1970; 0: there is none",
            ),
            certificate_failures: registered(
                &mut r,
                "certificate_failures",
                "Attempts to have a certificate signed that failed",
            ),
            operator_failures: registered(
                &mut r,
                "operator_connect_failures",
                "Attempts to open the stream from the operator that failed",
            ),
            config_addresses: registered(&mut r, "config_addresses", "Destinations known to the proxy"),
            config_services: registered(&mut r, "config_services", "Services known to the proxy"),
            config_version: registered(
                &mut r,
                "config_version",
                "Version of the last update that was applied",
            ),
            config_rejections: registered(
                &mut r,
                "config_rejections",
                "Resources of the operator that the proxy did not take",
            ),
            operator_connected: registered(
                &mut r,
                "operator_connected",
                "1 while the stream from the operator is up",
            ),
            config_files_refused: registered(
                &mut r,
                "config_files_refused",
                "Times that a changed configuration file was not taken",
            ),
            adaptive: registered(
                &mut r,
                "adaptive_concurrency_limit",
                "Requests under way that adaptiveConcurrency allows now",
            ),
            interception: registered(
                &mut r,
                "interception",
                "Whether the last check found the pod's traffic redirected to the proxy",
            ),
            memory_short: registered(
                &mut r,
                "memory_short",
                "Workers that refuse new work because memory is short",
            ),
            tasks: registered(&mut r, "tasks", "Tasks of the data path that have not ended"),
            policy_decisions: registered(
                &mut r,
                "policy_decisions",
                "Requests and opaque connections that policies of the own workload refused, would refuse in dry run, or noted",
            ),
            decisions: Series::default(),
            tokens: registered(&mut r, "tokens", "Requests that bore a token (JWT), by what was found of it"),
            registry: Registry::default(),
        };
        let by_direction = [Direction::Inbound, Direction::Outbound];
        let (open, accepted) = (Family::<_, Gauge>::default(), Family::<_, Counter>::default());
        let open_of = by_direction.map(|d| open.get_or_create_owned(&[("direction", d.as_str())]));
        let accepted_of = by_direction.map(|d| accepted.get_or_create_owned(&[("direction", d.as_str())]));
        r.register("connections", "Connections of clients that are open", open);
        r.register("connections_accepted", "Connections of clients that were accepted", accepted);
        Self { registry: r, open: open_of, accepted: accepted_of, ..metrics }
    }

    /// The exposition, see [`CONTENT_TYPE`].
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a text cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }

    /// A request has ended.
    pub fn request(&self, record: &RequestRecord) {
        let key = RequestKey::of(record);
        let series = self.requests.of(key, RequestLabels::of, RequestLabels::other, |labels| RequestSeries {
            requests: self.requests_total.get_or_create_owned(labels),
            duration: self.request_duration.get_or_create_owned(&labels.latency()),
            request_bytes: self.request_bytes.get_or_create_owned(&labels.ends()),
            response_bytes: self.response_bytes.get_or_create_owned(&labels.ends()),
        });
        series.requests.inc();
        series.duration.observe(record.duration.as_secs_f64());
        series.request_bytes.inc_by(record.request_bytes);
        series.response_bytes.inc_by(record.response_bytes);
        self.judged(record.authorization.as_deref());
        if let Some(token) = &record.token {
            self.tokens.get_or_create(&[("result", token.as_str())]).inc();
        }
        self.breaker(&record.service, record.reason);
    }

    /// An opaque connection has ended.
    pub fn tcp(&self, record: &TcpRecord) {
        let key = TcpKey::of(record);
        let series = self.connections.of(key, TcpLabels::of, TcpLabels::other, |labels| TcpSeries {
            connections: self.tcp_total.get_or_create_owned(labels),
            sent: self.tcp_bytes.get_or_create_owned(&labels.bytes("sent")),
            received: self.tcp_bytes.get_or_create_owned(&labels.bytes("received")),
        });
        series.connections.inc();
        series.sent.inc_by(record.sent_bytes);
        series.received.inc_by(record.received_bytes);
        self.judged(record.authorization.as_deref());
        self.breaker(&record.service, record.reason);
    }

    fn judged(&self, verdict: Option<&Verdict>) {
        let Some(verdict) = verdict else { return };
        let count = |decision, policy: Arc<str>, rule: Arc<str>, action| {
            let key = PolicyKey { decision, policy, rule, action };
            let create = |labels: &PolicyLabels| self.policy_decisions.get_or_create_owned(labels);
            self.decisions.of(key, PolicyLabels::of, PolicyLabels::other, create).inc();
        };
        let by_rule = |decision, by: &Named| {
            count(decision, Arc::clone(&by.policy), Arc::clone(&by.rule), by.action.as_str());
        };
        for (decision, refusal) in [("refused", &verdict.refused), ("would-refuse", &verdict.dry_run)] {
            match refusal {
                Some(Refusal::Rule(by)) => by_rule(decision, by),
                // No single one is to blame.
                Some(Refusal::NoneAllows(_) | Refusal::Abroad(_)) => {
                    count(decision, Arc::default(), Arc::default(), Action::Allow.as_str());
                }
                Some(Refusal::Path(_)) => count(decision, Arc::default(), Arc::default(), ""),
                None => {}
            }
        }
        verdict.audited.iter().for_each(|by| by_rule("audited", by));
    }

    fn breaker(&self, service: &str, reason: Option<Reason>) {
        if let Some(
            reason @ (Reason::BreakerOpen
            | Reason::BreakerPending
            | Reason::BreakerConnections
            | Reason::AdaptiveLimit),
        ) = reason
        {
            self.breaker_refusals
                .get_or_create(&(ServiceLabels::of(service), [("reason", reason.as_str())]))
                .inc();
        }
    }

    /// A connection was refused before anything of it was served, so that there is no record of it.
    pub fn refusal(&self, direction: Direction, reason: Reason) {
        self.refusals.get_or_create(&[("direction", direction.as_str()), ("reason", reason.as_str())]).inc();
    }

    /// A worker has so many tasks, and had so many when it last said so.
    pub fn tasks(&self, now: usize, before: usize) {
        let count = |tasks: usize| i64::try_from(tasks).unwrap_or(i64::MAX);
        self.tasks.inc_by(count(now) - count(before));
    }

    /// A client's connection was accepted.
    pub fn connection_opened(&self, direction: Direction) {
        self.open[direction as usize].inc();
        self.accepted[direction as usize].inc();
    }

    /// And has ended.
    pub fn connection_closed(&self, direction: Direction) {
        self.open[direction as usize].dec();
    }

    /// A connection to an endpoint or to the application was made.
    pub fn upstream_opened(&self) {
        self.upstream_open.inc();
        self.upstream_opened.inc();
    }

    /// And has ended.
    pub fn upstream_closed(&self) {
        self.upstream_open.dec();
    }

    /// A retry was wanted. `service`: its key.
    pub fn retry(&self, service: &str, retried: Retried) {
        self.retries.get_or_create(&(ServiceLabels::of(service), [("outcome", retried.as_str())])).inc();
    }

    /// Another try was wanted beside a slow one. `service`: its key.
    pub fn hedge(&self, service: &str, retried: Retried) {
        self.hedges.get_or_create(&(ServiceLabels::of(service), [("outcome", retried.as_str())])).inc();
    }

    /// Such a try was the first to answer. `service`: its key.
    pub fn hedge_won(&self, service: &str) {
        self.hedges_won.get_or_create(&ServiceLabels::of(service)).inc();
    }

    /// A copy of a request has ended. `cluster`: where it went.
    pub fn mirrored(&self, cluster: &str, mirrored: Mirrored) {
        let outcome = match mirrored {
            Mirrored::Answered => "answered",
            Mirrored::Failed => "failed",
            Mirrored::Dropped => "dropped",
        };
        self.mirrored.get_or_create(&(ServiceLabels::of(cluster), [("outcome", outcome)])).inc();
    }

    /// What [`crate::balance::Load::report`] says. `service`: its key, or its cluster's name.
    pub fn ejection(&self, service: &str, verdict: outlier::Verdict) {
        let cause = match verdict {
            outlier::Verdict::Ejected(cause, _) => cause.as_str(),
            outlier::Verdict::Kept(..) => "probe",
            outlier::Verdict::Returned => return,
        };
        self.ejections.get_or_create(&(ServiceLabels::of(service), [("cause", cause)])).inc();
    }

    /// All that is out of balancing now.
    pub fn ejected(&self, ejected: &[v1::Ejection]) {
        count(&self.ejected, ejected);
    }

    /// All that fails active checks now.
    pub fn unhealthy(&self, unhealthy: &[v1::Ejection]) {
        count(&self.unhealthy, unhealthy);
    }

    /// An active check was made.
    pub fn checked(&self, service: &str, outcome: &'static str) {
        self.checks.get_or_create(&(ServiceLabels::of(service), [("outcome", outcome)])).inc();
    }

    /// Limits that find themselves, by cluster, as they are now.
    pub fn adaptive<'a>(&self, limits: impl Iterator<Item = (&'a str, u32)>) {
        self.adaptive.clear();
        for (cluster, limit) in limits {
            let service = crate::snapshot::service_of(cluster);
            let port = service.rsplit(':').next().unwrap_or_default().to_owned();
            let subset = cluster[service.len()..].trim_start_matches('/').to_owned();
            let labels = (ServiceLabels::of(service), [("port", port), ("subset", subset)]);
            self.adaptive.get_or_create(&labels).set(limit.into());
        }
    }

    /// How long it took to find out what a connection speaks.
    pub fn detected(&self, after: Duration) {
        self.detection.observe(after.as_secs_f64());
    }

    /// Lines of the access log were dropped.
    pub fn log_dropped(&self, lines: u64) {
        self.log_dropped.inc_by(lines);
    }

    /// An audit event was dropped.
    pub fn audit_dropped(&self) {
        self.audit_dropped.inc();
    }

    /// When the own certificate expires.
    pub fn certificate_expiry(&self, at: SystemTime) {
        self.certificate_expiry.set(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
    }

    /// A certificate could not be had.
    pub fn certificate_failed(&self) {
        self.certificate_failures.inc();
    }

    /// So many spans have come to this.
    pub fn spans(&self, told: Told, count: u64) {
        if count > 0 {
            self.spans.get_or_create(&[("result", told.as_str())]).inc_by(count);
        }
    }

    /// The stream from the operator could not be opened.
    pub fn operator_failed(&self) {
        self.operator_failures.inc();
    }

    /// How much configuration there is.
    pub fn config_held(&self, addresses: usize, services: usize) {
        self.config_addresses.set(i64::try_from(addresses).unwrap_or(i64::MAX));
        self.config_services.set(i64::try_from(services).unwrap_or(i64::MAX));
    }

    /// An update of the operator was applied.
    pub fn config_applied(&self, version: u64, rejections: usize) {
        self.config_version.set(i64::try_from(version).unwrap_or(i64::MAX));
        self.config_rejections.inc_by(rejections as u64);
    }

    /// What the last check of the redirection found. Where there is none, nothing is shown.
    pub fn intercepted(&self, family: &'static str, redirected: bool) {
        self.interception.get_or_create(&[("family", family)]).set(i64::from(redirected));
    }

    /// Memory has become short for a worker, or is not any more.
    pub fn memory_short(&self, short: bool) {
        if short {
            self.memory_short.inc();
        } else {
            self.memory_short.dec();
        }
    }

    /// A changed configuration file was not taken.
    pub fn config_file_refused(&self) {
        self.config_files_refused.inc();
    }

    /// Whether the stream from the operator is up.
    pub fn operator_connected(&self, connected: bool) {
        self.operator_connected.set(i64::from(connected));
    }
}

/// Sets a gauge of each service to how many endpoints of it there are; the others go.
fn count(gauge: &Family<ServiceLabels, Gauge>, endpoints: &[v1::Ejection]) {
    let mut counts: HashMap<ServiceLabels, i64> = HashMap::new();
    for endpoint in endpoints {
        *counts.entry(ServiceLabels::of(&endpoint.service)).or_default() += 1;
    }
    gauge.clear();
    for (labels, count) in counts {
        gauge.get_or_create(&labels).set(count);
    }
}

fn registered<M: Clone + Default + prometheus_client::registry::Metric>(
    registry: &mut Registry,
    name: &str,
    help: &str,
) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

fn latencies() -> Histogram {
    Histogram::new([
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    ])
}

struct RequestSeries {
    requests: Counter,
    duration: Histogram,
    request_bytes: Counter,
    response_bytes: Counter,
}

struct TcpSeries {
    connections: Counter,
    sent: Counter,
    received: Counter,
}

/// What tells series of requests apart, as it stands in a record: cheap to make and to compare.
#[derive(Clone, PartialEq, Eq, Hash)]
struct RequestKey {
    direction: Direction,
    kind: HttpKind,
    status: u16,
    reason: Option<Reason>,
    ends: EndsKey,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct PolicyKey {
    decision: &'static str,
    policy: Arc<str>,
    rule: Arc<str>,
    action: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct TcpKey {
    direction: Direction,
    reason: Option<Reason>,
    ends: EndsKey,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct EndsKey {
    mtls: bool,
    source: PartyKey,
    destination: PartyKey,
    service: Arc<str>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct PartyKey {
    namespace: Arc<str>,
    workload: Arc<str>,
    identity: Option<Arc<weft_api::Identity>>,
}

impl RequestKey {
    fn of(record: &RequestRecord) -> Self {
        Self {
            direction: record.direction,
            kind: record.kind,
            status: record.status,
            reason: record.reason,
            ends: EndsKey::of(record.mtls, &record.source, &record.destination, &record.service),
        }
    }
}

impl TcpKey {
    fn of(record: &TcpRecord) -> Self {
        Self {
            direction: record.direction,
            reason: record.reason,
            ends: EndsKey::of(record.mtls, &record.source, &record.destination, &record.service),
        }
    }
}

impl EndsKey {
    fn of(mtls: bool, source: &Party, destination: &Party, service: &Arc<str>) -> Self {
        let party = |p: &Party| PartyKey {
            namespace: Arc::clone(&p.namespace),
            workload: Arc::clone(&p.workload),
            // Only where it has to stand in for the names.
            identity: if p.workload.is_empty() || p.namespace.is_empty() { p.identity.clone() } else { None },
        };
        Self { mtls, source: party(source), destination: party(destination), service: Arc::clone(service) }
    }
}

/// Series by key. Different keys may come to the same labels ("a/b:80" and "a/b:81"), and then share one.
struct Series<K, L, S> {
    // Short names of the configuration and of verified identities, looked up for every request: not worth SipHash.
    by_key: RwLock<HashMap<K, Arc<S>, FnvBuildHasher>>,
    by_labels: RwLock<HashMap<L, Arc<S>>>,
}

impl<K, L, S> Default for Series<K, L, S> {
    fn default() -> Self {
        Self { by_key: RwLock::default(), by_labels: RwLock::default() }
    }
}

impl<K: Eq + std::hash::Hash, L: Clone + Eq + std::hash::Hash, S> Series<K, L, S> {
    fn of(
        &self,
        key: K,
        labels: impl FnOnce(&K) -> L,
        other: impl FnOnce(&L) -> L,
        create: impl FnOnce(&L) -> S,
    ) -> Arc<S> {
        if let Some(series) = self.by_key.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Arc::clone(series);
        }
        let mut labels = labels(&key);
        let series = {
            let mut by_labels = self.by_labels.write().unwrap_or_else(PoisonError::into_inner);
            if by_labels.len() >= MAX_SERIES && !by_labels.contains_key(&labels) {
                labels = other(&labels);
            }
            Arc::clone(by_labels.entry(labels).or_insert_with_key(|labels| Arc::new(create(labels))))
        };
        let mut by_key = self.by_key.write().unwrap_or_else(PoisonError::into_inner);
        // Only a shortcut: when it is full of keys of long ago, it starts anew.
        if by_key.len() >= 2 * MAX_SERIES {
            by_key.clear();
        }
        by_key.insert(key, Arc::clone(&series));
        series
    }
}
