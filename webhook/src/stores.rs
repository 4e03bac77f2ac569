//! What resources are judged against: reflectors over Weft's resources and Services, and a second look straight at the API
//! server before a refusal, because a cache may not have seen what was applied a moment ago in the same file.
//! It never writes to the cluster.

use crate::judge::Known;
use anyhow::{Context, Result};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, ListParams};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_crds::{MeshService, PeerAuthentication, RequestAuthentication, TrafficPolicy, TrustDomain};

/// Kinds that are watched.
const KINDS: usize = 6;
/// A second look takes no longer.
const SECOND_LOOK: Duration = Duration::from_secs(3);

/// Caches of what exists.
#[derive(Clone)]
pub struct Stores(Source);

#[derive(Clone)]
enum Source {
    Cluster(Box<Cluster>),
    /// For tests without a cluster.
    Fixed(Arc<Known>),
}

#[derive(Clone)]
struct Cluster {
    client: Client,
    mesh_services: Store<MeshService>,
    traffic_policies: Store<TrafficPolicy>,
    peer_authentications: Store<PeerAuthentication>,
    request_authentications: Store<RequestAuthentication>,
    trust_domains: Store<TrustDomain>,
    services: Store<Service>,
    synced: Arc<AtomicUsize>,
}

impl Stores {
    /// Starts watching; the tasks end with `stop`.
    #[must_use]
    pub fn watch(client: &Client, tasks: &TaskTracker, stop: &CancellationToken) -> Self {
        let synced = Arc::new(AtomicUsize::new(0));
        let cluster = Cluster {
            client: client.clone(),
            mesh_services: follow(client, tasks, stop, &synced, |r: &mut MeshService| r.status = None),
            traffic_policies: follow(client, tasks, stop, &synced, |r: &mut TrafficPolicy| r.status = None),
            peer_authentications: follow(client, tasks, stop, &synced, |r: &mut PeerAuthentication| {
                r.status = None
            }),
            request_authentications: follow(client, tasks, stop, &synced, |r: &mut RequestAuthentication| {
                r.status = None
            }),
            trust_domains: follow(client, tasks, stop, &synced, |r: &mut TrustDomain| r.status = None),
            services: follow(client, tasks, stop, &synced, |service: &mut Service| {
                service.status = None;
                service.metadata.labels = None;
                if let Some(spec) = &mut service.spec {
                    *spec = k8s_openapi::api::core::v1::ServiceSpec {
                        ports: spec.ports.take(),
                        ..Default::default()
                    };
                }
            }),
            synced,
        };
        Self(Source::Cluster(Box::new(cluster)))
    }

    /// Exactly this, for ever.
    #[must_use]
    pub fn fixed(known: Known) -> Self {
        Self(Source::Fixed(Arc::new(known)))
    }

    /// Whether every kind was listed once.
    #[must_use]
    pub fn synced(&self) -> bool {
        match &self.0 {
            Source::Cluster(cluster) => cluster.synced.load(Ordering::Acquire) >= KINDS,
            Source::Fixed(_) => true,
        }
    }

    /// What the caches hold; `None` until they are filled.
    #[must_use]
    pub fn cached(&self, namespace: &str) -> Option<Known> {
        match &self.0 {
            Source::Fixed(known) => Some((**known).clone()),
            Source::Cluster(_) if !self.synced() => None,
            Source::Cluster(cluster) => Some(Known {
                mesh_services: within(&cluster.mesh_services, namespace),
                traffic_policies: within(&cluster.traffic_policies, namespace),
                peer_authentications: cluster.peer_authentications.state(),
                request_authentications: within(&cluster.request_authentications, namespace),
                trust_domains: within(&cluster.trust_domains, namespace),
                services: ports(within(&cluster.services, namespace).iter().map(AsRef::as_ref)),
                trust_domain: String::new(),
            }),
        }
    }

    /// What the API server holds of the namespace at this moment.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn fresh(&self, namespace: &str) -> Result<Known> {
        let cluster = match &self.0 {
            Source::Fixed(known) => return Ok((**known).clone()),
            Source::Cluster(cluster) => cluster,
        };
        tokio::time::timeout(SECOND_LOOK, cluster.fresh(namespace))
            .await
            .context("the API server does not answer")?
    }
}

impl Cluster {
    async fn fresh(&self, namespace: &str) -> Result<Known> {
        let (mesh_services, traffic_policies, own, request_authentications, trust_domains, services) = tokio::try_join!(
            list::<MeshService>(&self.client, namespace),
            list::<TrafficPolicy>(&self.client, namespace),
            list::<PeerAuthentication>(&self.client, namespace),
            list::<RequestAuthentication>(&self.client, namespace),
            list::<TrustDomain>(&self.client, namespace),
            list::<Service>(&self.client, namespace),
        )?;
        let elsewhere = |p: &PeerAuthentication| p.metadata.namespace.as_deref() != Some(namespace);
        let mut peer_authentications = self.peer_authentications.state_filter(elsewhere);
        peer_authentications.extend(own);
        let services = ports(services.iter().map(AsRef::as_ref));
        Ok(Known {
            mesh_services,
            traffic_policies,
            peer_authentications,
            request_authentications,
            trust_domains,
            services,
            trust_domain: String::new(),
        })
    }
}

async fn list<T>(client: &Client, namespace: &str) -> Result<Vec<Arc<T>>>
where
    T: Resource<Scope = k8s_openapi::NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    T::DynamicType: Default,
{
    let api: Api<T> = Api::namespaced(client.clone(), namespace);
    Ok(api.list(&ListParams::default()).await?.items.into_iter().map(Arc::new).collect())
}

fn follow<T>(
    client: &Client,
    tasks: &TaskTracker,
    stop: &CancellationToken,
    synced: &Arc<AtomicUsize>,
    lean: impl Fn(&mut T) + Send + 'static,
) -> Store<T>
where
    T: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    T::DynamicType: Default + Eq + Hash + Clone + Send + Sync + Unpin,
{
    let writer = reflector::store::Writer::<T>::default();
    let store = writer.as_reader();
    let api: Api<T> = Api::all(client.clone());
    let kind = T::kind(&T::DynamicType::default()).into_owned();
    let events = watcher(api, watcher::Config::default())
        .default_backoff()
        .modify(move |resource| {
            resource.meta_mut().managed_fields = None;
            resource.meta_mut().annotations = None;
            lean(resource);
        })
        .reflect(writer);
    let stop_watching = stop.clone();
    tasks.spawn(async move {
        let mut events = std::pin::pin!(events);
        while let Some(Some(event)) = stop_watching.run_until_cancelled(events.next()).await {
            if let Err(error) = event {
                tracing::warn!(kind, error = %format!("{:#}", anyhow::Error::from(error)), "watch interrupted, retrying");
            }
        }
    });
    let (reader, synced, stop) = (store.clone(), synced.clone(), stop.clone());
    tasks.spawn(async move {
        if let Some(Ok(())) = stop.run_until_cancelled(reader.wait_until_ready()).await {
            synced.fetch_add(1, Ordering::AcqRel);
        }
    });
    store
}

fn within<T>(store: &Store<T>, namespace: &str) -> Vec<Arc<T>>
where
    T: Resource + Clone + 'static,
    T::DynamicType: Eq + Hash + Clone,
{
    store.state_filter(|resource| resource.meta().namespace.as_deref() == Some(namespace))
}

fn ports<'a>(services: impl Iterator<Item = &'a Service>) -> std::collections::BTreeMap<String, Vec<u16>> {
    services
        .map(|service| {
            let name = service.metadata.name.clone().unwrap_or_default();
            let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
            (name, ports.filter_map(|port| u16::try_from(port.port).ok()).collect())
        })
        .collect()
}
