//! Redirection by the CNI plugin, as far as the API server knows of it: is it on every node, and which pods has it missed? Pure.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use weft_api::names;

use super::judge::{Finding, Seen, fail, ok, unreadable, warn};
use crate::mesh_pod;

/// A proxy that is younger may still find out that it is redirected to.
const YOUNG_S: i64 = 30;

/// Nothing where there is no plugin, and no pod that counts on one.
pub fn plugin(seen: &Seen<Option<DaemonSet>>, pods: &Seen<Vec<Pod>>, namespace: &str) -> Option<Finding> {
    let subject = "cni";
    let set = match seen {
        Ok(Some(set)) => set,
        Ok(None) => {
            // Pods that are there keep the rules that they have.
            let waiting: usize =
                pods.iter().flatten().filter(|pod| relies(pod) && !mesh_pod::proxy_ready(pod)).count();
            return (waiting > 0).then(|| {
                fail(
                    subject,
                    format!(
                        "there is no DaemonSet {namespace}/{}, and {waiting} pod(s) that are not ready count on it",
                        names::CNI
                    ),
                    "helm upgrade with cni.enabled=true; or restart them, so that they are injected without it",
                )
            });
        }
        Err(error) => return Some(unreadable(subject, error)),
    };
    let status = set.status.clone().unwrap_or_default();
    let (ready, nodes) = (status.number_ready, status.desired_number_scheduled);
    let message = format!("the plugin is on {ready} of {nodes} nodes");
    let remedy = format!(
        "kubectl -n {namespace} logs daemonset/{} says why; new pods on the others never get ready",
        names::CNI
    );
    Some(match ready {
        _ if nodes == 0 => {
            fail(subject, "the plugin is meant for no node", "look at cni.nodeSelector and cni.tolerations")
        }
        0 => fail(subject, message, remedy),
        ready if ready < nodes => warn(subject, message, remedy),
        _ => ok(subject, message),
    })
}

/// Whether its rules are the plugin's to write.
fn relies(pod: &Pod) -> bool {
    mesh_pod::is_injected(pod) && pod.annotations().contains_key(names::REDIRECTION)
}

/// Its proxy runs, and has not found for a while that anything is redirected to it: restarting it does not help, because the
/// network of a pod is made once.
pub fn missed(pod: &Pod, now_unix_s: i64) -> bool {
    let made = pod.metadata.creation_timestamp.as_ref().map_or(now_unix_s, |at| at.0.as_second());
    relies(pod) && !mesh_pod::proxy_ready(pod) && mesh_pod::proxy_runs(pod) && now_unix_s - made > YOUNG_S
}
