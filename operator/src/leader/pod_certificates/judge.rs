//! Whether a pod gets the certificate that a PodCertificateRequest asks for, and for how long. Pure. A denial is for good: the
//! kubelet never asks again for that pod, so what may be otherwise a moment later is none.

use std::time::Duration;

use rcgen::SubjectPublicKeyInfo;

use super::request::{Asker, Spec};
use crate::ca::{BadRequest, bare_public_key, public_key};
use crate::metrics::Refused;

/// Certificates are dated back by that: the API server takes none that begins five minutes or more from its own time, either
/// way. So the operator's clock may be behind it by that, and ahead by as much and five minutes.
pub const BACKDATE: Duration = Duration::from_secs(150);
/// The API server takes none that lives shorter, from its beginning to its end.
pub const SHORTEST: Duration = Duration::from_secs(3600);
/// What the API server fills in.
const DAY: u32 = 24 * 3600;

/// No, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// Of the condition; some are Kubernetes' own words.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// The word in metrics and audit events.
    pub counts_as: Refused,
}

/// What can be granted, if the pod is what the request says.
#[derive(Debug)]
pub struct Grant {
    /// The key.
    pub key: SubjectPublicKeyInfo,
    /// From its beginning, which lies [`BACKDATE`] ago, to its end.
    pub life: Duration,
}

fn no<T>(counts_as: Refused, reason: &'static str, message: impl Into<String>) -> Result<T, Denial> {
    Err(Denial { reason, message: message.into(), counts_as })
}

/// Judges by the request alone.
pub fn grant(spec: &Spec, leaf_lifetime: Duration) -> Result<Grant, Denial> {
    if let Some(name) = spec.unverified_user_annotations.iter().flatten().map(|(name, _)| name).next() {
        let message = format!("Weft knows no userAnnotations, and so not {name}");
        return no(Refused::Request, "InvalidUnverifiedUserAnnotations", message);
    }
    let key = match (&spec.stub_pkcs10_request, &spec.pkix_public_key) {
        (Some(request), _) if !request.0.is_empty() => public_key(&request.0),
        (_, Some(key)) => bare_public_key(&key.0),
        _ => Err(BadRequest::Unreadable),
    };
    let key = match key {
        Ok(key) => key,
        Err(BadRequest::Key) => {
            let message = "use keyType ECDSAP256 (or ECDSAP384, ED25519)";
            return no(Refused::Request, "UnsupportedKeyType", message);
        }
        Err(error) => return no(Refused::Request, "InvalidRequest", error.to_string()),
    };
    let most = Duration::from_secs(spec.max_expiration_seconds.unwrap_or(DAY).into());
    let life = (leaf_lifetime + BACKDATE).min(most);
    if life < SHORTEST {
        let message = format!(
            "Weft's certificates live {} s (leafLifetime) here, and Kubernetes takes none of less than an hour",
            leaf_lifetime.as_secs()
        );
        return no(Refused::Request, "LifetimeTooShort", message);
    }
    Ok(Grant { key, life })
}

/// Judges whether the pod is what the request says, and wants it.
pub fn agree(spec: &Spec, pod: Option<&Asker>) -> Result<(), Denial> {
    let name = &spec.pod_name;
    let differs = |what: &str| no(Refused::Pod, "PodMismatch", format!("pod {name} {what}"));
    let Some(pod) = pod else { return differs("does not exist") };
    if pod.uid.is_empty() || pod.uid != spec.pod_uid {
        return differs("has another uid: it was replaced");
    }
    if pod.service_account.is_empty() || pod.service_account != spec.service_account_name {
        return differs("has another ServiceAccount");
    }
    if pod.node.is_empty() || pod.node != spec.node_name {
        return differs("runs on another node");
    }
    if pod.ended {
        return differs("has ended");
    }
    if !pod.asks {
        let message = format!("no volume of pod {name} asks for a podCertificate of this signer");
        return no(Refused::Pod, "NotRequestedByPod", message);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, PublicKeyData};
    use serde_json::json;
    use weft_api::names;

    const HOUR: Duration = Duration::from_secs(3600);

    fn stub(key: &KeyPair) -> Option<ByteString> {
        Some(ByteString(CertificateParams::default().serialize_request(key).unwrap().der().to_vec()))
    }

    fn spec() -> Spec {
        Spec {
            signer_name: names::SIGNER.into(),
            pod_name: "back-1".into(),
            pod_uid: "u1".into(),
            service_account_name: "back".into(),
            node_name: "n1".into(),
            max_expiration_seconds: Some(DAY),
            stub_pkcs10_request: stub(&KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()),
            ..Spec::default()
        }
    }

    fn pod() -> serde_json::Value {
        json!({
            "metadata": { "uid": "u1" },
            "spec": { "serviceAccountName": "back", "nodeName": "n1", "volumes": [
                { "name": "tmp", "emptyDir": {} },
                { "name": "mesh", "projected": { "sources": [
                    { "clusterTrustBundle": { "signerName": names::SIGNER, "path": "roots.pem" } },
                    { "podCertificate": { "signerName": names::SIGNER, "keyType": "ECDSAP256" } },
                ] } },
            ] },
            "status": { "phase": "Pending" },
        })
    }

    #[test]
    fn the_pod_of_the_request_that_asks_for_it_gets_it() {
        let spec = spec();
        agree(&spec, Some(&Asker::read(&pod()))).unwrap();
        let grant = grant(&spec, HOUR * 12).unwrap();
        assert_eq!(grant.life, HOUR * 12 + BACKDATE);
    }

    #[test]
    fn whatever_of_the_pod_is_otherwise_is_a_denial_with_its_reason() {
        let cases = [
            ("/metadata/uid", json!("u2"), "another uid"),
            ("/spec/serviceAccountName", json!("admin"), "another ServiceAccount"),
            ("/spec/nodeName", json!("n2"), "another node"),
            ("/spec/nodeName", json!(""), "another node"),
            ("/status/phase", json!("Failed"), "has ended"),
            (
                "/spec/volumes/1/projected/sources/1/podCertificate/signerName",
                json!("other.dev/x"),
                "no volume",
            ),
        ];
        for (at, value, wanted) in cases {
            let mut pod = pod();
            *pod.pointer_mut(at).unwrap() = value;
            let denial = agree(&spec(), Some(&Asker::read(&pod))).unwrap_err();
            assert!(denial.message.contains(wanted), "{denial:?}");
            assert_eq!(denial.counts_as, Refused::Pod);
        }
        assert!(agree(&spec(), None).unwrap_err().message.contains("does not exist"));
        // A request that leaves things out agrees with nothing, not even with a pod that does.
        let empty = Spec { pod_name: "back-1".into(), ..Spec::default() };
        assert!(agree(&empty, Some(&Asker::default())).is_err());
    }

    #[test]
    fn keys_annotations_and_lives_that_cannot_be_are_denied_in_kubernetes_own_words() {
        let rsa =
            Spec { stub_pkcs10_request: stub(&KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap()), ..spec() };
        assert_eq!(grant(&rsa, HOUR).unwrap_err().reason, "UnsupportedKeyType");
        let rubbish = Spec { stub_pkcs10_request: Some(ByteString(vec![0x30; 99])), ..spec() };
        assert_eq!(grant(&rubbish, HOUR).unwrap_err().reason, "InvalidRequest");
        let nothing = Spec { stub_pkcs10_request: None, ..spec() };
        assert_eq!(grant(&nothing, HOUR).unwrap_err().reason, "InvalidRequest");
        let annotations = [("weft.dev/admin".to_owned(), "yes".to_owned())].into();
        let told = Spec { unverified_user_annotations: Some(annotations), ..spec() };
        assert_eq!(grant(&told, HOUR).unwrap_err().reason, "InvalidUnverifiedUserAnnotations");
        assert_eq!(grant(&spec(), Duration::from_secs(60)).unwrap_err().reason, "LifetimeTooShort");
    }

    #[test]
    fn a_bare_key_of_the_first_version_of_the_api_is_taken_too() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let bare = Some(ByteString(key.subject_public_key_info()));
        let spec =
            Spec { stub_pkcs10_request: Some(ByteString(Vec::new())), pkix_public_key: bare, ..spec() };
        assert_eq!(grant(&spec, HOUR).unwrap().key.der_bytes(), key.der_bytes());
    }

    #[test]
    fn requests_are_read_as_the_api_server_writes_them() {
        let spec: Spec = serde_json::from_value(json!({
            "signerName": "weft.dev/workload", "podName": "p", "podUID": "u", "serviceAccountName": "s", "serviceAccountUID": "x",
            "nodeName": "n", "nodeUID": "y", "maxExpirationSeconds": 86400, "pkixPublicKey": null, "proofOfPossession": null,
            "stubPKCS10Request": "MAA=",
        }))
        .unwrap();
        assert_eq!((spec.pod_uid.as_str(), spec.max_expiration_seconds), ("u", Some(DAY)));
        assert_eq!(spec.stub_pkcs10_request.unwrap().0, [0x30, 0]);
        assert!(spec.pkix_public_key.is_none());
    }

    proptest! {
        /// Never longer than the mesh's leaves nor than the pod allows, never shorter than the API server takes.
        #[test]
        fn lives_are_within_all_bounds(leaf in 60u64..400_000, most in 3600u32..8_000_000) {
            let spec = Spec { max_expiration_seconds: Some(most), ..spec() };
            match grant(&spec, Duration::from_secs(leaf)) {
                Ok(grant) => {
                    prop_assert!(grant.life >= SHORTEST && grant.life.as_secs() <= u64::from(most));
                    prop_assert!(grant.life - BACKDATE <= Duration::from_secs(leaf));
                }
                Err(denial) => {
                    prop_assert_eq!(denial.reason, "LifetimeTooShort");
                    prop_assert!(Duration::from_secs(leaf) + BACKDATE < SHORTEST);
                }
            }
        }
    }
}
