//! Watches of the API server, each feeding the index: a list at first, then changes; a new list whenever the watch is lost.
//! Objects are cut down to what the index needs before the lock is taken. A watch never gives up.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::TryStreamExt;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::core::{ApiResource, DynamicObject, PartialObjectMeta};
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Error, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use weft_crds::{
    AuthorizationPolicy, MeshService, PeerAuthentication, RequestAuthentication, TrafficPolicy, TrustDomain,
};
use weft_crds::{
    AuthorizationPolicySpec, MeshServiceSpec, PeerAuthenticationSpec, RequestAuthenticationSpec,
    TrafficPolicySpec, TrustDomainSpec,
};

use crate::index::policy::Resource;
use crate::index::{Change, Entry, Key, Namespace, Node, Pod, Service, Slice};
use crate::metrics::{Kind, Metrics};
use crate::store::Store;

/// Objects in one answer of the API server.
const PAGE: u32 = 250;
/// A connection that died silently is noticed after this, in seconds.
const WATCH_TIMEOUT: u32 = 120;
const KINDS: usize = 11;

/// How many kinds have not been listed yet.
#[derive(Clone, Debug)]
pub struct Synced(Arc<AtomicUsize>);

impl Default for Synced {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(KINDS)))
    }
}

impl Synced {
    /// All kinds have been listed: the index is whole.
    #[must_use]
    pub fn all(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }
}

/// Starts all watches.
pub fn start(
    client: &Client,
    store: &Arc<Store>,
    metrics: &Arc<Metrics>,
    synced: &Synced,
    tasks: &mut JoinSet<()>,
) {
    let feed =
        |kind| Feed { store: Arc::clone(store), metrics: Arc::clone(metrics), synced: synced.clone(), kind };
    let c = || client.clone();
    tasks.spawn(feed("namespaces").run(Api::<core::Namespace>::all(c()), Namespace::read));
    tasks.spawn(feed("services").run(Api::<core::Service>::all(c()), Service::read));
    tasks.spawn(feed("endpointslices").run(Api::<EndpointSlice>::all(c()), Slice::read));
    tasks.spawn(feed("pods").run(Api::<core::Pod>::all(c()), Pod::read));
    // Labels are all that is wanted of them, and metadata all that is asked for.
    tasks.spawn(feed("nodes").run(Api::<PartialObjectMeta<core::Node>>::all(c()), Node::read));

    let mesh_services = ApiResource::erase::<MeshService>(&());
    let api = Api::<DynamicObject>::all_with(c(), &mesh_services);
    tasks.spawn(feed("meshservices").run(api, Resource::<MeshServiceSpec>::read));
    let policies = ApiResource::erase::<TrafficPolicy>(&());
    let api = Api::<DynamicObject>::all_with(c(), &policies);
    tasks.spawn(feed("trafficpolicies").run(api, Resource::<TrafficPolicySpec>::read));
    let authentications = ApiResource::erase::<PeerAuthentication>(&());
    let api = Api::<DynamicObject>::all_with(c(), &authentications);
    tasks.spawn(feed("peerauthentications").run(api, Resource::<PeerAuthenticationSpec>::read));
    let authorizations = ApiResource::erase::<AuthorizationPolicy>(&());
    let api = Api::<DynamicObject>::all_with(c(), &authorizations);
    tasks.spawn(feed("authorizationpolicies").run(api, Resource::<AuthorizationPolicySpec>::read));
    let requests = ApiResource::erase::<RequestAuthentication>(&());
    let api = Api::<DynamicObject>::all_with(c(), &requests);
    tasks.spawn(feed("requestauthentications").run(api, Resource::<RequestAuthenticationSpec>::read));
    let domains = ApiResource::erase::<TrustDomain>(&());
    let api = Api::<DynamicObject>::all_with(c(), &domains);
    tasks.spawn(feed("trustdomains").run(api, Resource::<TrustDomainSpec>::read));
}

/// Between attempts of a watch: doubled each time up to five seconds, so that an API server that comes back is noticed soon.
#[derive(Debug)]
pub struct Patience(Duration);

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(5);

impl Default for Patience {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}

impl Iterator for Patience {
    type Item = Duration;
    fn next(&mut self) -> Option<Duration> {
        // Not all watches at the same moment.
        let pause = self.0.mul_f64(rand::random_range(0.7..1.3));
        self.0 = (self.0 * 2).min(LAST_PAUSE);
        Some(pause)
    }
}

impl Backoff for Patience {
    fn reset(&mut self) {
        *self = Self::default();
    }
}

struct Feed {
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    synced: Synced,
    kind: &'static str,
}

impl Feed {
    async fn run<K, E>(self, api: Api<K>, read: fn(K) -> Option<E>)
    where
        K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
        E: Entry + Send,
    {
        let config = watcher::Config::default().page_size(PAGE).timeout(WATCH_TIMEOUT);
        let mut events = std::pin::pin!(watch(api, config).backoff(Patience::default()));
        let mut listing: Vec<E> = Vec::new();
        let mut first = true;
        loop {
            match events.try_next().await {
                Ok(Some(Event::Init)) => listing.clear(),
                Ok(Some(Event::InitApply(object))) => listing.extend(read(object)),
                Ok(Some(Event::InitDone)) => {
                    let count = listing.len();
                    self.store.apply(Change::Reset(std::mem::take(&mut listing)));
                    if first {
                        first = false;
                        self.synced.0.fetch_sub(1, Ordering::AcqRel);
                        tracing::info!(kind = self.kind, count, "listed");
                    }
                }
                Ok(Some(Event::Apply(object))) => {
                    let key = key_of(&object);
                    // What is of no use to the index may have been of use before.
                    self.store.apply(read(object).map_or(Change::Delete(key), Change::Apply));
                }
                Ok(Some(Event::Delete(object))) => self.store.apply(Change::<E>::Delete(key_of(&object))),
                Ok(None) => return,
                Err(error) => self.complain(&error),
            }
        }
    }

    /// The stream goes on by itself, after a pause.
    fn complain(&self, error: &Error) {
        self.metrics.watch_errors.get_or_create(&Kind { kind: self.kind }).inc();
        if not_found(error) {
            tracing::warn!(
                kind = self.kind,
                "the API server does not know this kind: is its CustomResourceDefinition installed? Trying again"
            );
        } else {
            tracing::warn!(kind = self.kind, error = %error, "watch failed; trying again");
        }
    }
}

fn key_of<K: kube::Resource>(object: &K) -> Key {
    let meta = object.meta();
    Key::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// Whether the API server does not serve what was watched.
pub(crate) fn not_found(error: &Error) -> bool {
    match error {
        Error::InitialListFailed(kube::Error::Api(status)) => status.code == 404,
        Error::WatchStartFailed(kube::Error::Api(status)) | Error::WatchFailed(kube::Error::Api(status)) => {
            status.code == 404
        }
        Error::WatchError(status) => status.code == 404,
        _ => false,
    }
}
