//! The label sets of the metrics, and how they come from a record. Written once per series, not per request.

use prometheus_client::encoding::EncodeLabelSet;

use super::{EndsKey, PartyKey, PolicyKey, RequestKey, TcpKey};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RequestLabels {
    direction: &'static str,
    source_workload: String,
    source_namespace: String,
    destination_workload: String,
    destination_service: String,
    destination_namespace: String,
    code: String,
    reason: &'static str,
    mtls: &'static str,
    protocol: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct LatencyLabels {
    direction: &'static str,
    destination_workload: String,
    destination_service: String,
    destination_namespace: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct EndsLabels {
    direction: &'static str,
    source_workload: String,
    source_namespace: String,
    destination_workload: String,
    destination_service: String,
    destination_namespace: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct TcpLabels {
    direction: &'static str,
    source_workload: String,
    source_namespace: String,
    destination_workload: String,
    destination_service: String,
    destination_namespace: String,
    reason: &'static str,
    mtls: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct TcpBytesLabels {
    flow: &'static str,
    direction: &'static str,
    source_workload: String,
    source_namespace: String,
    destination_workload: String,
    destination_service: String,
    destination_namespace: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ServiceLabels {
    destination_service: String,
    destination_namespace: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct PolicyLabels {
    decision: &'static str,
    policy: String,
    policy_namespace: String,
    policy_rule: String,
    action: &'static str,
}

const OTHER: &str = "other";
const UNKNOWN: &str = "unknown";

impl RequestLabels {
    pub(super) fn of(key: &RequestKey) -> Self {
        let ends = Ends::of(&key.ends);
        Self {
            direction: key.direction.as_str(),
            source_workload: ends.source.0,
            source_namespace: ends.source.1,
            destination_workload: ends.destination.0,
            destination_service: ends.service,
            destination_namespace: ends.destination.1,
            // 0: the client left before there was an answer.
            code: if (100..600).contains(&key.status) { key.status.to_string() } else { "0".to_owned() },
            reason: key.reason.map_or("", weft_api::Reason::as_str),
            mtls: word(key.ends.mtls),
            protocol: key.kind.as_str(),
        }
    }

    /// Without names, and the code by class: few, whatever comes.
    pub(super) fn other(&self) -> Self {
        let class = self.code.chars().next().unwrap_or('0');
        Self {
            source_workload: OTHER.to_owned(),
            source_namespace: OTHER.to_owned(),
            destination_workload: OTHER.to_owned(),
            destination_service: OTHER.to_owned(),
            destination_namespace: OTHER.to_owned(),
            code: if class == '0' { "0".to_owned() } else { format!("{class}xx") },
            ..self.clone()
        }
    }

    pub(super) fn latency(&self) -> LatencyLabels {
        LatencyLabels {
            direction: self.direction,
            destination_workload: self.destination_workload.clone(),
            destination_service: self.destination_service.clone(),
            destination_namespace: self.destination_namespace.clone(),
        }
    }

    pub(super) fn ends(&self) -> EndsLabels {
        EndsLabels {
            direction: self.direction,
            source_workload: self.source_workload.clone(),
            source_namespace: self.source_namespace.clone(),
            destination_workload: self.destination_workload.clone(),
            destination_service: self.destination_service.clone(),
            destination_namespace: self.destination_namespace.clone(),
        }
    }
}

impl TcpLabels {
    pub(super) fn of(key: &TcpKey) -> Self {
        let ends = Ends::of(&key.ends);
        Self {
            direction: key.direction.as_str(),
            source_workload: ends.source.0,
            source_namespace: ends.source.1,
            destination_workload: ends.destination.0,
            destination_service: ends.service,
            destination_namespace: ends.destination.1,
            reason: key.reason.map_or("", weft_api::Reason::as_str),
            mtls: word(key.ends.mtls),
        }
    }

    pub(super) fn other(&self) -> Self {
        Self {
            source_workload: OTHER.to_owned(),
            source_namespace: OTHER.to_owned(),
            destination_workload: OTHER.to_owned(),
            destination_service: OTHER.to_owned(),
            destination_namespace: OTHER.to_owned(),
            ..self.clone()
        }
    }

    pub(super) fn bytes(&self, flow: &'static str) -> TcpBytesLabels {
        TcpBytesLabels {
            flow,
            direction: self.direction,
            source_workload: self.source_workload.clone(),
            source_namespace: self.source_namespace.clone(),
            destination_workload: self.destination_workload.clone(),
            destination_service: self.destination_service.clone(),
            destination_namespace: self.destination_namespace.clone(),
        }
    }
}

impl PolicyLabels {
    pub(super) fn of(key: &PolicyKey) -> Self {
        let (namespace, name) = key.policy.split_once('/').unwrap_or_default();
        Self {
            decision: key.decision,
            policy: name.to_owned(),
            policy_namespace: namespace.to_owned(),
            policy_rule: key.rule.as_ref().to_owned(),
            action: key.action,
        }
    }

    pub(super) fn other(&self) -> Self {
        Self {
            policy: OTHER.to_owned(),
            policy_namespace: OTHER.to_owned(),
            policy_rule: OTHER.to_owned(),
            ..self.clone()
        }
    }
}

impl ServiceLabels {
    /// From a service's key or a cluster's name.
    pub(super) fn of(key: &str) -> Self {
        let (namespace, name) = split(key);
        Self { destination_service: name.to_owned(), destination_namespace: namespace.to_owned() }
    }
}

/// Workload and namespace of both ends, and the service's name.
struct Ends {
    source: (String, String),
    destination: (String, String),
    service: String,
}

impl Ends {
    fn of(key: &EndsKey) -> Self {
        let (namespace, service) = split(&key.service);
        let mut destination = names(&key.destination);
        if !namespace.is_empty() && destination.1 == UNKNOWN {
            namespace.clone_into(&mut destination.1);
        }
        Self { source: names(&key.source), destination, service: service.to_owned() }
    }
}

/// Where the workload is not known, its ServiceAccount, which mTLS has proved.
fn names(party: &PartyKey) -> (String, String) {
    let identity = party.identity.as_deref();
    let or = |name: &str, proved: Option<&String>| match name {
        "" => proved.map_or(UNKNOWN, String::as_str).to_owned(),
        name => name.to_owned(),
    };
    (
        or(&party.workload, identity.map(|i| &i.service_account)),
        or(&party.namespace, identity.map(|i| &i.namespace)),
    )
}

/// Namespace and name of "namespace/name", "namespace/name:port" or "namespace/name:port/subset".
fn split(service: &str) -> (&str, &str) {
    let Some((namespace, rest)) = service.split_once('/') else { return ("", service) };
    (namespace, rest.split([':', '/']).next().unwrap_or(rest))
}

const fn word(mtls: bool) -> &'static str {
    if mtls { "true" } else { "false" }
}
