//! `weft-operator cleanup`: removes what the operator made at run time. Runs after the release is gone; idempotent.
//! It first waits until no operator is left, which would make it all again.

use std::time::{Duration, Instant};

use anyhow::Context;
use futures::{TryStreamExt, stream};
use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client, CustomResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::sleep;
use weft_api::names;
use weft_crds::{
    AuthorizationPolicy, MeshService, PeerAuthentication, RequestAuthentication, TrafficPolicy, TrustDomain,
};

const POLL: Duration = Duration::from_millis(500);
/// Pods get 30 s to end by default.
const LONGEST_WAIT: Duration = Duration::from_secs(90);
const AT_A_TIME: usize = 8;

/// Settings of `weft-operator cleanup`.
#[derive(clap::Args, Clone, Debug)]
pub struct Cleanup {
    /// Weft's own namespace.
    #[arg(long, env = "WEFT_NAMESPACE", default_value = "weft-system")]
    pub namespace: String,
    /// Leave the CustomResourceDefinitions, and with them all resources.
    #[arg(long)]
    pub keep_crds: bool,
}

/// Removes everything.
///
/// # Errors
/// When something is left.
pub async fn run(settings: Cleanup) -> anyhow::Result<()> {
    let client = Client::try_default().await.context("no way to reach the API server is configured")?;
    wait_for_operators(&client, &settings.namespace).await?;

    let namespaces: Api<Namespace> = Api::all(client.clone());
    let all = namespaces.list(&ListParams::default()).await.context("namespaces cannot be listed")?;
    stream::iter(all.items.into_iter().map(anyhow::Ok))
        .try_for_each_concurrent(AT_A_TIME, |namespace| clean_namespace(&client, &namespaces, namespace))
        .await?;

    let own = &settings.namespace;
    delete::<Secret>(&Api::namespaced(client.clone(), own), names::CA_SECRET).await?;
    delete::<ConfigMap>(&Api::namespaced(client.clone(), own), names::CA_STATUS).await?;
    delete::<Lease>(&Api::namespaced(client.clone(), own), names::OPERATOR).await?;
    // Where the cluster serves them.
    delete::<ClusterTrustBundle>(&Api::all(client.clone()), names::CLUSTER_BUNDLE).await?;
    if !settings.keep_crds {
        let api: Api<CustomResourceDefinition> = Api::all(client);
        for name in [
            MeshService::crd_name(),
            TrafficPolicy::crd_name(),
            PeerAuthentication::crd_name(),
            AuthorizationPolicy::crd_name(),
            RequestAuthentication::crd_name(),
            TrustDomain::crd_name(),
        ] {
            delete(&api, name).await?;
        }
    }
    tracing::info!("everything that the operator made is removed");
    Ok(())
}

async fn wait_for_operators(client: &Client, namespace: &str) -> anyhow::Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let selector = ListParams::default().labels(&format!("app.kubernetes.io/name={}", names::OPERATOR));
    let begin = Instant::now();
    loop {
        let left = pods.list(&selector).await.context("pods cannot be listed")?.items;
        let left = left.into_iter().filter_map(crate::index::Pod::read).filter(|p| !p.ended).count();
        if left == 0 {
            return Ok(());
        }
        if begin.elapsed() > LONGEST_WAIT {
            anyhow::bail!(
                "{left} operator pods are still there: delete the Deployment {} first",
                names::OPERATOR
            );
        }
        tracing::info!(left, "waiting for the operator to end");
        sleep(POLL).await;
    }
}

async fn clean_namespace(
    client: &Client,
    namespaces: &Api<Namespace>,
    namespace: Namespace,
) -> anyhow::Result<()> {
    let Some(name) = namespace.metadata.name else { return Ok(()) };
    delete::<ConfigMap>(&Api::namespaced(client.clone(), &name), names::BUNDLE_CONFIGMAP).await?;
    if namespace.metadata.labels.is_some_and(|l| l.contains_key(names::INJECT_MIRROR)) {
        let patch = json!({ "metadata": { "labels": { names::INJECT_MIRROR: null } } });
        match namespaces.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => tracing::info!(namespace = name, "removed the mirror label"),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error).with_context(|| format!("namespace {name} cannot be patched")),
        }
    }
    Ok(())
}

/// Not being there is success.
async fn delete<K>(api: &Api<K>, name: &str) -> anyhow::Result<()>
where
    K: kube::Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => {
            tracing::info!(name, at = api.resource_url(), "removed");
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error).with_context(|| format!("{}/{name} cannot be deleted", api.resource_url())),
    }
}
