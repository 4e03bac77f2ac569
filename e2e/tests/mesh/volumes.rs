//! Identity and trust bundle from Kubernetes' own volumes: pods without a proxy that mount a podCertificate of Weft's signer and
//! the cluster's trust bundle, and speak mTLS by themselves, with OpenSSL. Needs a cluster that serves both APIs.

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use serde_json::{Value, json};
use std::time::Duration;
use weft_api::names;
use weft_e2e::app::{CURL_IMAGE, pod};
use weft_e2e::{App, Client, Injection, Namespace, eventually, scenario};

use crate::strictness::peer_authentication;

const SOON: Duration = Duration::from_secs(20);

/// A pod without a proxy that mounts key, certificate and bundle at `/mesh`.
fn with_volume(name: &str, key_type: &str) -> Value {
    let mut pod = pod(name, CURL_IMAGE, &["/bin/sh", "-c", "exec sleep 100000"]);
    pod["metadata"]["labels"]["weft.dev/inject"] = "disabled".into();
    pod["spec"]["volumes"] = json!([{ "name": "mesh", "projected": { "sources": [
        { "podCertificate": { "signerName": names::SIGNER, "keyType": key_type, "keyPath": "key.pem", "certificateChainPath": "chain.pem" } },
        { "clusterTrustBundle": { "name": names::CLUSTER_BUNDLE, "path": "roots.pem" } },
    ] } }]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "mesh", "mountPath": "/mesh" }]);
    pod
}

/// What the workload at `address` answers to a request over mTLS with what is mounted.
fn call(client: &Client<'_>, address: &str) -> Result<String> {
    let script = format!(
        "printf 'GET / HTTP/1.1\\r\\nhost: back\\r\\nconnection: close\\r\\n\\r\\n' | openssl s_client -quiet -connect {address} \
         -alpn weft/http1 -cert /mesh/chain.pem -key /mesh/key.pem -CAfile /mesh/roots.pem -verify_return_error 2>&1; true"
    );
    Ok(client.shell(&script)?.stdout)
}

fn spiffe(ns: &Namespace, account: &str) -> String {
    format!("spiffe://cluster.local/ns/{}/sa/{account}", ns.name)
}

#[test]
fn a_pod_without_a_proxy_has_its_identity_from_a_volume_and_is_authorized_by_it() {
    scenario("volumes", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        ns.apply_json(&peer_authentication("Strict"))?;
        ns.apply_json(&json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": { "name": "back" },
            "spec": { "action": "Allow", "selector": { "matchLabels": { "app": "back" } },
                "rules": [{ "name": "batch", "from": [{ "identities": [spiffe(ns, "batch")] }] }] } }))?;
        let batch = Client::deploy_pod(ns, "batch", with_volume("batch", "ECDSAP256"))?;
        let other = Client::deploy_pod(ns, "other", with_volume("other", "ED25519"))?;

        let said = batch
            .shell(
                "openssl verify -partial_chain -CAfile /mesh/roots.pem /mesh/chain.pem && \
            openssl x509 -in /mesh/chain.pem -noout -ext subjectAltName",
            )?
            .success()?;
        ensure!(said.contains(&spiffe(ns, "batch")), "whose it is: {said}");
        eventually("it is let in by its identity, and the application is told of it", SOON, || {
            let said = call(&batch, "back:80")?;
            ensure!(said.contains("200 OK") && said.contains(&spiffe(ns, "batch")), "{said}");
            Ok(())
        })?;
        eventually("another one's identity is not let in", SOON, || {
            let said = call(&other, "back:80")?;
            ensure!(said.contains("403") && said.contains("policy-denied"), "{said}");
            Ok(())
        })?;
        let plain = batch.shell("curl -s -m 5 -o /dev/null -w '%{http_code}' http://back/")?.stdout;
        ensure!(plain.contains("403"), "plaintext got {plain}");

        let told = weft_e2e::chart::pods(ns.cluster, "weft-operator")?;
        let told: String = told
            .iter()
            .map(|pod| ns.cluster.logs(weft_e2e::chart::NAMESPACE, pod, "operator", 20_000))
            .collect();
        let event = told.lines().find(|line| {
            line.contains("\"log\":\"audit\"") && line.contains(&format!("{}/batch\"", ns.name))
        });
        let event = event.context("auditors were not told")?;
        ensure!(event.contains("PodCertificateRequest") && event.contains("issued"), "{event}");
        Ok(())
    });
}

#[test]
fn the_clusters_bundle_is_that_of_the_config_maps_and_comes_back() {
    scenario("cluster-bundle", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let same = || {
            let bundle = ns.cluster.object("", "clustertrustbundle", names::CLUSTER_BUNDLE)?;
            let map = ns.object("configmap", names::BUNDLE_CONFIGMAP)?;
            ensure!(bundle["spec"]["signerName"] == names::SIGNER, "{bundle}");
            ensure!(bundle["spec"]["trustBundle"] == map["data"][names::BUNDLE_KEY], "they differ");
            Ok(bundle["metadata"]["uid"].clone())
        };
        let before = eventually("it is there", SOON, same)?;
        ns.cluster.kubectl(&["delete", "clustertrustbundle", names::CLUSTER_BUNDLE])?;
        eventually("it has come back", SOON, || {
            ensure!(same()? != before, "the old one is still there");
            Ok(())
        })
    });
}

/// A request in the name of a pod, by whoever may create requests.
fn request(ns: &Namespace, name: &str, signer: &str, pod: &Value) -> Result<Value> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let stub = rcgen::CertificateParams::default().serialize_request(&key)?;
    Ok(json!({
        "apiVersion": "certificates.k8s.io/v1beta1", "kind": "PodCertificateRequest", "metadata": { "name": name, "namespace": ns.name },
        "spec": { "signerName": signer, "podName": pod["metadata"]["name"], "podUID": pod["metadata"]["uid"],
            "serviceAccountName": pod["spec"]["serviceAccountName"], "serviceAccountUID": "unknown",
            "nodeName": pod["spec"]["nodeName"], "nodeUID": "unknown", "maxExpirationSeconds": 86400,
            "stubPKCS10Request": base64::engine::general_purpose::STANDARD.encode(stub.der()) },
    }))
}

#[test]
fn a_request_in_the_name_of_a_pod_that_never_asked_is_denied_and_another_signers_is_left_alone() {
    scenario("pod-requests", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let back = ns.pod("app=back")?;
        ns.apply_json(&request(ns, "other", "example.com/other", &back)?)?;
        ns.apply_json(&request(ns, "theft", names::SIGNER, &back)?)?;
        let mut gone = back.clone();
        gone["metadata"]["uid"] = "00000000-0000-0000-0000-000000000000".into();
        ns.apply_json(&request(ns, "replaced", names::SIGNER, &gone)?)?;
        for (name, reason) in [("theft", "NotRequestedByPod"), ("replaced", "PodMismatch")] {
            eventually(name, SOON, || {
                let status = ns.object("podcertificaterequest", name)?["status"].clone();
                let condition = &status["conditions"][0];
                ensure!(condition["type"] == "Denied" && condition["reason"] == reason, "{status}");
                ensure!(status["certificateChain"].is_null(), "a certificate: {status}");
                Ok(())
            })?;
        }
        let other = ns.object("podcertificaterequest", "other")?["status"].clone();
        ensure!(other["conditions"].is_null(), "not Weft's to answer: {other}");
        Ok(())
    });
}

#[test]
fn a_pod_whose_key_is_not_supported_is_told_so_by_the_kubelet() {
    scenario("pod-key", Injection::Label, |ns| {
        let list = json!({ "apiVersion": "v1", "kind": "List",
            "items": [weft_e2e::app::service_account("rsa"), with_volume("rsa", "RSA3072")] });
        ns.apply_json(&list)?;
        eventually("an Event on the pod", Duration::from_secs(60), || {
            let events = ns.cluster.kubectl(&[
                "get",
                "events",
                "-n",
                &ns.name,
                "--field-selector=involvedObject.name=rsa",
            ])?;
            ensure!(events.contains("UnsupportedKeyType") && events.contains("ECDSAP256"), "{events}");
            Ok(())
        })
    });
}
