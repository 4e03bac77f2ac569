//! The trust bundle once more as a ClusterTrustBundle, where the cluster serves that API: pods without a proxy mount it, in any
//! namespace. It comes back when somebody deletes or changes it. The mesh itself never reads it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::TryStreamExt;
use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::{Value, json};
use tokio::time::sleep;
use weft_api::names;

use super::served::{self, CERTIFICATES};
use super::{Leader, MANAGER};
use crate::watch::{Patience, not_found};

const RETRY: Duration = Duration::from_secs(1);
const CHECK: Duration = Duration::from_secs(300);

/// Keeps it right for ever, where there is such a thing.
pub async fn keep(leader: Leader) {
    loop {
        served::wait_for(&leader.writer, "clustertrustbundles").await;
        hold(&leader).await;
        // The API has gone, as by a downgrade.
        sleep(RETRY).await;
    }
}

async fn hold(leader: &Leader) {
    let api: Api<ClusterTrustBundle> = Api::all(leader.client.clone());
    let name = format!("metadata.name={}", names::CLUSTER_BUNDLE);
    let config = watcher::Config::default().fields(&name).timeout(120);
    let mut events = std::pin::pin!(watcher(api, config).backoff(Patience::default()));
    let mut changes = leader.shared.authority.changes();
    let (mut found, mut listing) = (None, None);
    let mut listed = false;
    let mut pause = CHECK;
    loop {
        tokio::select! {
            event = events.try_next() => match event {
                Ok(Some(Event::Init)) => listing = None,
                Ok(Some(Event::InitApply(bundle))) => listing = Some(bundle.spec.trust_bundle),
                Ok(Some(Event::InitDone)) => {
                    found = listing.take();
                    listed = true;
                }
                Ok(Some(Event::Apply(bundle))) => found = Some(bundle.spec.trust_bundle),
                Ok(Some(Event::Delete(_))) => found = None,
                Ok(None) => return,
                Err(error) if not_found(&error) => return,
                Err(error) => tracing::warn!(error = %error, "watching the cluster's trust bundle failed; trying again"),
            },
            _ = changes.changed() => {}
            () = sleep(pause) => {}
        }
        if !listed {
            continue;
        }
        let roots = leader.shared.authority.roots();
        let pem = roots.bundle_pem();
        pause = CHECK;
        if found.as_ref() != Some(&pem) {
            if let Err(error) = write(leader, &pem).await {
                tracing::warn!(error = %error, "cannot write the cluster's trust bundle; trying again");
                pause = RETRY;
                continue;
            }
            tracing::info!(name = names::CLUSTER_BUNDLE, "wrote the cluster's trust bundle");
            found = Some(pem);
        }
        leader.published.cluster.store(roots.epoch, Ordering::Release);
    }
}

async fn write(leader: &Leader, pem: &str) -> kube::Result<()> {
    let api: Api<ClusterTrustBundle> = Api::all(leader.writer.clone());
    let params = PatchParams::apply(MANAGER).force();
    api.patch(names::CLUSTER_BUNDLE, &params, &Patch::Apply(bundle(pem))).await.map(|_| ())
}

fn bundle(pem: &str) -> Value {
    json!({
        "apiVersion": CERTIFICATES,
        "kind": "ClusterTrustBundle",
        "metadata": { "name": names::CLUSTER_BUNDLE, "labels": { names::MANAGED_BY: names::OPERATOR } },
        "spec": { "signerName": names::SIGNER, "trustBundle": pem },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The API server refuses a bundle whose name does not begin with its signer's, and parses what is in it.
    #[test]
    fn it_is_a_bundle_of_the_signers_by_name() {
        let object: ClusterTrustBundle = serde_json::from_value(bundle("PEM\n")).unwrap();
        let prefix = format!("{}:", object.spec.signer_name.unwrap().replace('/', ":"));
        assert!(object.metadata.name.unwrap().starts_with(&prefix), "{prefix}");
        assert_eq!(object.spec.trust_bundle, "PEM\n");
    }
}
