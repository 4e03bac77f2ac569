//! PeerAuthentication: which connections a workload takes: mTLS only, both, or plaintext only.

use crate::common::Conditions;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Which connections workloads accept. With a selector it governs those workloads; without one its whole namespace; without
/// one in Weft's own namespace, the whole mesh. The narrowest counts, and it counts alone: modes are not merged; of two
/// selectors that fit a pod, the older resource counts. Without any, `Permissive` holds.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "PeerAuthentication",
    namespaced,
    status = "Conditions"
)]
#[kube(derive = "PartialEq", shortname = "pauth", category = "weft")]
#[kube(doc = "Which connections workloads accept: mTLS only, both, or plaintext only.")]
#[kube(printcolumn = r#"{"name":"Mode", "type":"string", "jsonPath":".spec.mtls.mode"}"#)]
#[kube(
    printcolumn = r#"{"name":"Applied", "type":"string", "jsonPath":".status.applied", "description":"proxies that have this in force / connected proxies that need it"}"#
)]
#[kube(
    printcolumn = r#"{"name":"Accepted", "type":"string", "jsonPath":".status.conditions[?(@.type==\"Accepted\")].status"}"#
)]
#[kube(printcolumn = r#"{"name":"Age", "type":"date", "jsonPath":".metadata.creationTimestamp"}"#)]
#[x_kube(
    validation = Rule::new("!has(self.portLevelMtls) || size(self.portLevelMtls) == 0 || has(self.selector)").message(
        "portLevelMtls needs a selector, because ports belong to workloads: add selector.matchLabels, or remove portLevelMtls"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct PeerAuthenticationSpec {
    /// The workloads, by pod labels. Default: every workload of the namespace (of the mesh, in Weft's own namespace).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// For every port that `portLevelMtls` does not name.
    pub mtls: Mtls,
    /// By container port number, for example "8080". Needs a selector.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    #[x_kube(
        validation = Rule::new(
            "self.all(port, int(port) >= 1 && int(port) <= 65535 && !port.startsWith('0') && !port.startsWith('+'))"
        ).message(
            "the keys of portLevelMtls are container port numbers: write each as a number from 1 to 65535 in quotes, for example \"8080\""
        )
    )]
    pub port_level_mtls: BTreeMap<String, Mtls>,
}

/// Workloads by labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Selector {
    /// Pods that carry all of these labels. For the whole namespace leave `selector` out.
    #[schemars(schema_with = "crate::common::labels_schema")]
    pub match_labels: BTreeMap<String, String>,
}

/// A mode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Mtls {
    /// `Strict`: mTLS only, others are refused (kubelet probes declared in the pod pass). `Permissive`: mTLS and plaintext.
    /// `Disable`: plaintext only; callers in the mesh send plaintext.
    pub mode: MtlsMode,
}

/// Which connections are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MtlsMode {
    /// mTLS only; others are refused (kubelet probes declared in the pod pass).
    Strict,
    /// mTLS and plaintext.
    Permissive,
    /// Plaintext only; callers in the mesh send plaintext.
    Disable,
}
