//! What Prometheus is told. Labels are closed lists: never a name, a namespace or a text of the user.

use crate::inject::Skip;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::Duration;
use weft_events::Fate;

/// Bounds of the duration histogram, in seconds.
const DURATIONS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];

/// What was reviewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs)]
pub enum Kind {
    Pod,
    MeshService,
    TrafficPolicy,
    PeerAuthentication,
    AuthorizationPolicy,
    RequestAuthentication,
    TrustDomain,
    Other,
}

impl Kind {
    /// From the review.
    #[must_use]
    pub fn of(kind: &str) -> Self {
        match kind {
            "Pod" => Self::Pod,
            "MeshService" => Self::MeshService,
            "TrafficPolicy" => Self::TrafficPolicy,
            "PeerAuthentication" => Self::PeerAuthentication,
            "AuthorizationPolicy" => Self::AuthorizationPolicy,
            "RequestAuthentication" => Self::RequestAuthentication,
            "TrustDomain" => Self::TrustDomain,
            _ => Self::Other,
        }
    }
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    /// The pod got the proxy.
    Injected,
    /// The pod is in a namespace that is never injected.
    SkippedSystemNamespace,
    /// The pod opted out.
    SkippedOptedOut,
    /// The pod uses its node's network.
    SkippedHostNetwork,
    /// The pod has the proxy.
    SkippedAlreadyInjected,
    /// The pod is not for Linux.
    SkippedOtherSystem,
    /// The resource was allowed.
    Allowed,
    /// Refused by a sentence.
    Refused,
    /// Could not be judged now.
    Unavailable,
    /// No review at all.
    Malformed,
}

impl Outcome {
    /// The word in audit events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::SkippedSystemNamespace => "skipped-system-namespace",
            Self::SkippedOptedOut => "skipped-opted-out",
            Self::SkippedHostNetwork => "skipped-host-network",
            Self::SkippedAlreadyInjected => "skipped-already-injected",
            Self::SkippedOtherSystem => "skipped-other-system",
            Self::Allowed => "",
            Self::Refused => "invalid",
            Self::Unavailable => "unavailable",
            Self::Malformed => "malformed",
        }
    }
}

impl From<Skip> for Outcome {
    fn from(skip: Skip) -> Self {
        match skip {
            Skip::SystemNamespace => Self::SkippedSystemNamespace,
            Skip::OptedOut => Self::SkippedOptedOut,
            Skip::HostNetwork => Self::SkippedHostNetwork,
            Skip::AlreadyInjected => Self::SkippedAlreadyInjected,
            Skip::OtherSystem => Self::SkippedOtherSystem,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Review {
    kind: Kind,
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Renewal {
    outcome: RenewalOutcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum RenewalOutcome {
    Success,
    Failure,
}

/// What became of what was to be told by Kubernetes Events.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InEvents {
    result: Told,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Told {
    Written,
    Dropped,
}

/// All of the webhook's metrics.
pub struct Metrics {
    registry: Registry,
    reviews: Family<Review, Counter>,
    durations: Family<OfKind, Histogram>,
    renewals: Family<Renewal, Counter>,
    expiry: Gauge,
    /// TLS connections open now.
    pub connections: Gauge,
    /// TLS handshakes that failed.
    pub failed_handshakes: Counter,
    /// Audit events that nobody read fast enough.
    pub audit_dropped: Counter,
    audit_kubernetes_events: Family<InEvents, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Registry::default(),
            reviews: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(DURATIONS)),
            renewals: Family::default(),
            expiry: Gauge::default(),
            connections: Gauge::default(),
            failed_handshakes: Counter::default(),
            audit_dropped: Counter::default(),
            audit_kubernetes_events: Family::default(),
        };
        metrics.registered()
    }
}

impl Metrics {
    fn registered(mut self) -> Self {
        let own = self.registry.sub_registry_with_prefix("weft_webhook");
        own.register("reviews", "Admission reviews answered", self.reviews.clone());
        own.register(
            "review_duration_seconds",
            "From the review's last byte to its answer",
            self.durations.clone(),
        );
        own.register("certificate_renewals", "Requests for the serving certificate", self.renewals.clone());
        own.register(
            "certificate_expiry_timestamp_seconds",
            "When the serving certificate ends; 0: there is none",
            self.expiry.clone(),
        );
        own.register("connections", "TLS connections open", self.connections.clone());
        let dropped = "Audit events that were dropped because nobody read them fast enough";
        own.register("audit_dropped", dropped, self.audit_dropped.clone());
        let events = "Audit events that were to be told by Kubernetes Events, by what became of them";
        own.register("audit_kubernetes_events", events, self.audit_kubernetes_events.clone());
        own.register("failed_handshakes", "TLS handshakes that failed", self.failed_handshakes.clone());
        self
    }

    /// A review was answered.
    pub fn reviewed(&self, kind: Kind, outcome: Outcome, took: Duration) {
        self.reviews.get_or_create(&Review { kind, outcome }).inc();
        self.durations.get_or_create(&OfKind { kind }).observe(took.as_secs_f64());
    }

    /// So many audit events are counted by Kubernetes Events, or by none.
    pub fn told_by_events(&self, fate: Fate, times: u64) {
        let result = match fate {
            Fate::Written => Told::Written,
            Fate::Dropped => Told::Dropped,
        };
        self.audit_kubernetes_events.get_or_create(&InEvents { result }).inc_by(times);
    }

    /// A serving certificate came, or did not.
    pub fn renewed(&self, not_after: Option<i64>) {
        let outcome = if not_after.is_some() { RenewalOutcome::Success } else { RenewalOutcome::Failure };
        self.renewals.get_or_create(&Renewal { outcome }).inc();
        if let Some(not_after) = not_after {
            self.expiry.set(not_after);
        }
    }

    /// The exposition text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}
