//! Every metric of the operator, declared in one place. Labels are closed sets; never a name of a pod or service.

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::ca::Phase;
use crate::ca::rotation::Step;

/// Kind of a Kubernetes object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    /// Plural, lower case.
    pub kind: &'static str,
}

/// Why a certificate was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Refused {
    /// The request cannot be read, or its signature is wrong.
    Request,
    /// The token is not genuine, expired, or for another audience.
    Token,
    /// The token is not that of a living pod.
    Pod,
    /// Too many at a time.
    Busy,
    /// Too many for one pod, or too many bad tokens from one address.
    Rate,
    /// The API server cannot be asked, or signing failed.
    Unavailable,
}

impl Refused {
    /// The word in audit events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Token => "token",
            Self::Pod => "pod",
            Self::Busy => "busy",
            Self::Rate => "rate",
            Self::Unavailable => "unavailable",
        }
    }
}

/// Label of refusals.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Why {
    /// The reason.
    pub reason: Refused,
}

/// Label of the phase of the root's rotation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct InPhase {
    /// The phase.
    pub phase: Phase,
}

/// Label of a step of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Took {
    /// The step.
    pub step: Step,
}

/// How fetching an issuer's keys went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Fetch {
    /// There were keys.
    Fetched,
    /// There were none, or nobody answered.
    Failed,
}

/// Label of fetches.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Fetched {
    /// How it went.
    pub result: Fetch,
}

/// What became of what was to be told by Kubernetes Events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Told {
    /// An Event counts it.
    Written,
    /// No Event does.
    Dropped,
}

/// Label of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct InEvents {
    /// What became of it.
    pub result: Told,
}

impl InEvents {
    /// As the writer of Events says it.
    #[must_use]
    pub const fn new(fate: weft_events::Fate) -> Self {
        let result = match fate {
            weft_events::Fate::Written => Told::Written,
            weft_events::Fate::Dropped => Told::Dropped,
        };
        Self { result }
    }
}

/// All metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Proxies with a configuration stream.
    pub proxies: Gauge,
    /// Messages pushed to proxies.
    pub pushes: Counter,
    /// Messages acknowledged.
    pub acks: Counter,
    /// Resources that a proxy rejected.
    pub rejections: Counter,
    /// Streams refused, by wrong identity or message.
    pub streams_refused: Counter,
    /// Services compiled.
    pub compiled: Counter,
    /// Time to compile one service.
    pub compile_seconds: Histogram,
    /// Time from a change in the index to its message being queued.
    pub push_seconds: Histogram,
    /// Objects in the index.
    pub objects: Family<Kind, Gauge>,
    /// Watches that failed and were begun again.
    pub watch_errors: Family<Kind, Counter>,
    /// Certificates signed.
    pub issued: Counter,
    /// Certificates refused.
    pub refused: Family<Why, Counter>,
    /// Expiry of the root.
    pub root_expiry: Gauge<i64, AtomicI64>,
    /// 1 for the phase in which the rotation of the root is; on the leader.
    pub rotation_phase: Family<InPhase, Gauge>,
    /// Steps of it that this replica took.
    pub rotation_steps: Family<Took, Counter>,
    /// Expiry of the operator's own certificate.
    pub leaf_expiry: Gauge<i64, AtomicI64>,
    /// 1 on the leader.
    pub leader: Gauge,
    /// TLS handshakes that failed: a certificate that is not of the mesh, an older TLS, or none at all.
    pub failed_handshakes: Counter,
    /// Fetches of keys of issuers.
    pub key_fetches: Family<Fetched, Counter>,
    /// Fetches of bundles of other trust domains.
    pub bundle_fetches: Family<Fetched, Counter>,
    /// Writes to the status of resources.
    pub status_writes: Counter<u64, AtomicU64>,
    /// Audit events that nobody read fast enough.
    pub audit_dropped: Counter,
    /// What was to be told by Kubernetes Events.
    pub audit_kubernetes_events: Family<InEvents, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.000_05, 3.0, 10));
        let mut all = Self {
            registry: Registry::with_prefix("weft_operator"),
            proxies: Gauge::default(),
            pushes: Counter::default(),
            acks: Counter::default(),
            rejections: Counter::default(),
            streams_refused: Counter::default(),
            compiled: Counter::default(),
            compile_seconds: seconds(),
            push_seconds: seconds(),
            objects: Family::default(),
            watch_errors: Family::default(),
            issued: Counter::default(),
            refused: Family::default(),
            root_expiry: Gauge::default(),
            leaf_expiry: Gauge::default(),
            leader: Gauge::default(),
            failed_handshakes: Counter::default(),
            key_fetches: Family::default(),
            bundle_fetches: Family::default(),
            status_writes: Counter::default(),
            audit_dropped: Counter::default(),
            audit_kubernetes_events: Family::default(),
            rotation_phase: Family::default(),
            rotation_steps: Family::default(),
        };
        let r = &mut all.registry;
        r.register("proxies", "Proxies with a configuration stream to this replica", all.proxies.clone());
        r.register("pushes", "Messages pushed to proxies", all.pushes.clone());
        r.register("acks", "Messages that proxies acknowledged", all.acks.clone());
        r.register(
            "rejections",
            "Resources that a proxy rejected, keeping its last good one",
            all.rejections.clone(),
        );
        r.register("streams_refused", "Configuration streams refused", all.streams_refused.clone());
        r.register(
            "services_compiled",
            "Services compiled, each for all proxies that call it",
            all.compiled.clone(),
        );
        r.register_with_unit(
            "compile",
            "Time to compile one service",
            Unit::Seconds,
            all.compile_seconds.clone(),
        );
        r.register_with_unit(
            "push",
            "Time from a change in the index until its message is queued for a proxy",
            Unit::Seconds,
            all.push_seconds.clone(),
        );
        r.register("objects", "Objects in the index", all.objects.clone());
        r.register(
            "watch_errors",
            "Watches of the API server that failed and were begun again",
            all.watch_errors.clone(),
        );
        r.register("certificates_issued", "Certificates signed for workloads", all.issued.clone());
        r.register("certificates_refused", "Requests for certificates refused", all.refused.clone());
        r.register_with_unit(
            "root_expiry_timestamp",
            "When the root certificate expires",
            Unit::Seconds,
            all.root_expiry.clone(),
        );
        r.register_with_unit(
            "serving_expiry_timestamp",
            "When the operator's own certificate expires",
            Unit::Seconds,
            all.leaf_expiry.clone(),
        );
        r.register(
            "root_rotation_phase",
            "1 for the phase in which the rotation of the root is (on the replica that leads)",
            all.rotation_phase.clone(),
        );
        r.register("root_rotation_steps", "Steps of the root's rotation taken", all.rotation_steps.clone());
        r.register("leader", "1 on the replica that leads", all.leader.clone());
        let dropped = "Audit events that were dropped because nobody read them fast enough";
        r.register("audit_dropped", dropped, all.audit_dropped.clone());
        let events = "Audit events that were to be told by Kubernetes Events, by what became of them";
        r.register("audit_kubernetes_events", events, all.audit_kubernetes_events.clone());
        let failed = "TLS handshakes that failed or took too long";
        r.register("failed_handshakes", failed, all.failed_handshakes.clone());
        r.register(
            "key_fetches",
            "Fetches of the keys of issuers of tokens (jwksUri)",
            all.key_fetches.clone(),
        );
        r.register(
            "bundle_fetches",
            "Fetches of the bundles of other trust domains (TrustDomain)",
            all.bundle_fetches.clone(),
        );
        r.register("status_writes", "Writes to the status of resources", all.status_writes.clone());
        all
    }
}

impl Metrics {
    /// A refusal.
    pub fn refuse(&self, reason: Refused) {
        self.refused.get_or_create(&Why { reason }).inc();
    }

    /// The text that Prometheus reads (OpenMetrics).
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
