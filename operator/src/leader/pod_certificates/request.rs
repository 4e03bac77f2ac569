//! Kubernetes' PodCertificateRequest, as far as a signer needs it, and what of a pod has to agree with it. Values only.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use kube::core::{ApiResource, GroupVersionKind, Object};
use serde::Deserialize;
use serde_json::Value;
use weft_api::names;

/// The object.
pub type Request = Object<Spec, Status>;

/// What is asked for. The API server lets a kubelet say nothing but the truth about its own pods; whoever else may create
/// requests says what he likes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// Who is to sign.
    pub signer_name: String,
    /// For which pod of the request's namespace.
    pub pod_name: String,
    /// Its uid.
    #[serde(rename = "podUID")]
    pub pod_uid: String,
    /// Its ServiceAccount.
    pub service_account_name: String,
    /// Its node.
    pub node_name: String,
    /// The certificate may not live longer, in seconds; the API server fills in a day.
    pub max_expiration_seconds: Option<u32>,
    /// The public key (PKIX); whoever asks has proved to the API server that he has the private one.
    #[serde(rename = "pkixPublicKey")]
    pub pkix_public_key: Option<ByteString>,
    /// In its place, in later versions: a PKCS#10 request with nothing in it but the key.
    #[serde(rename = "stubPKCS10Request")]
    pub stub_pkcs10_request: Option<ByteString>,
    /// What the pod's author tells the signer.
    pub unverified_user_annotations: Option<BTreeMap<String, String>>,
}

/// What became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Status {
    /// One of `Issued`, `Denied` and `Failed`, once it is settled.
    pub conditions: Option<Vec<Condition>>,
}

/// One of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Condition {
    /// Which.
    #[serde(rename = "type")]
    pub kind: String,
}

/// Whether it waits for Weft.
pub fn is_open(request: &Request) -> bool {
    let settled = request.status.as_ref().and_then(|status| status.conditions.as_ref());
    request.spec.signer_name == names::SIGNER && settled.is_none_or(Vec::is_empty)
}

/// The API.
pub fn resource() -> ApiResource {
    let kind = GroupVersionKind::gvk("certificates.k8s.io", "v1beta1", "PodCertificateRequest");
    ApiResource::from_gvk_with_plural(&kind, "podcertificaterequests")
}

/// A pod as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asker {
    /// Its uid.
    pub uid: String,
    /// Its ServiceAccount.
    pub service_account: String,
    /// The node that it was given to.
    pub node: String,
    /// It will never run again.
    pub ended: bool,
    /// A volume of it asks for a certificate of Weft's.
    pub asks: bool,
}

impl Asker {
    /// Reads a pod. From JSON, because the types of older APIs do not know such volumes.
    pub fn read(pod: &Value) -> Self {
        let text = |at: &str| pod.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
        let volumes = pod.pointer("/spec/volumes").and_then(Value::as_array).into_iter().flatten();
        let sources = volumes.filter_map(|volume| volume.pointer("/projected/sources")?.as_array()).flatten();
        let mut signers = sources.filter_map(|source| source.pointer("/podCertificate/signerName")?.as_str());
        Self {
            uid: text("/metadata/uid"),
            service_account: text("/spec/serviceAccountName"),
            node: text("/spec/nodeName"),
            ended: matches!(text("/status/phase").as_str(), "Succeeded" | "Failed"),
            asks: signers.any(|signer| signer == names::SIGNER),
        }
    }
}
