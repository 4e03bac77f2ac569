//! Admission webhooks select namespaces by label only: the annotation `weft.dev/inject: enabled` is mirrored to a label.

use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::time::sleep;
use weft_api::names;

use super::Leader;

const RETRY: Duration = Duration::from_secs(1);
const CHECK: Duration = Duration::from_secs(300);

/// Keeps the mirror labels right for ever.
pub async fn keep(leader: Leader) {
    let api: Api<Namespace> = Api::all(leader.writer.clone());
    let mut changes = leader.shared.store.changes();
    loop {
        changes.borrow_and_update();
        let wrong = leader.shared.store.view(|view| {
            let all = view.index.namespaces.values().filter(|n| !n.terminating);
            let wrong = all.filter(|n| n.mirror.as_deref() != n.wanted_mirror());
            wrong.map(|n| (n.key.name.clone(), n.wanted_mirror())).collect::<Vec<_>>()
        });
        let mut pause = CHECK;
        for (namespace, label) in wrong {
            let patch = json!({ "metadata": { "labels": { names::INJECT_MIRROR: label } } });
            match api.patch(&namespace, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => tracing::info!(namespace, label, "mirrored the annotation for injection"),
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => {
                    tracing::warn!(error = %error, namespace, "cannot label the namespace; trying again")
                }
            }
            // The watch tells of the new label; until then it would be written again.
            pause = RETRY;
        }
        tokio::select! {
            _ = changes.changed(), if pause == CHECK => {}
            () = sleep(pause) => {}
        }
    }
}
