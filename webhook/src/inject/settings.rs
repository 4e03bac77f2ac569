//! What the injected proxy looks like when a pod asks for nothing else. Parsed once at start.

use super::overrides::Quantity;
use clap::ValueEnum;
use weft_api::tracing::Endpoint;

/// The injected proxy's defaults.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Weft's own namespace.
    pub namespace: String,
    /// Image of proxy and init step.
    pub image: String,
    /// When the kubelet pulls it.
    pub pull_policy: PullPolicy,
    /// `host:port` of the operator.
    pub operator_address: String,
    /// Trust domain of the identities.
    pub trust_domain: String,
    /// Whether the cluster keeps init containers with `restartPolicy: Always` running.
    pub native_sidecar: bool,
    /// Whether a CNI plugin on the nodes writes the redirection rules, in place of an init container.
    pub cni: bool,
    /// CPU and memory.
    pub resources: Resources,
    /// The proxy's log filter.
    pub log: String,
    /// Whether the proxy logs each request.
    pub access_log: bool,
    /// Whether the proxy tells auditors what policies for them decide.
    pub audit: bool,
    /// Where the proxy tells of traces. `None`: nowhere.
    pub tracing: Option<Endpoint>,
    /// Percent of new traces that it tells of.
    pub sampling: String,
    /// The proxy's worker threads.
    pub workers: u16,
}

/// Requests and limits; none: not set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resources {
    /// `requests.cpu`.
    pub cpu_request: Option<Quantity>,
    /// `limits.cpu`.
    pub cpu_limit: Option<Quantity>,
    /// `requests.memory`.
    pub memory_request: Option<Quantity>,
    /// `limits.memory`.
    pub memory_limit: Option<Quantity>,
}

/// `imagePullPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PullPolicy {
    /// Only when the node lacks it.
    #[default]
    #[value(name = "IfNotPresent")]
    IfNotPresent,
    /// Each time.
    #[value(name = "Always")]
    Always,
    /// Never.
    #[value(name = "Never")]
    Never,
}

impl PullPolicy {
    /// As Kubernetes writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::IfNotPresent => "IfNotPresent",
            Self::Always => "Always",
            Self::Never => "Never",
        }
    }
}
