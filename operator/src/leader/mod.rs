//! What only one replica may do: the rotation of the root, trust bundles, certificates that kubelets ask for, the mirror label, the webhooks' caBundle, the CA Secret when it is deleted,
//! the status of resources, Events, dividing shared limits. Each is observe → plan (pure) → apply; none is needed for running traffic.

mod bundle;
mod changes;
mod cluster_bundle;
mod conditions;
mod ejections;
pub(crate) mod events;
mod federation;
mod lease;
pub(crate) mod limits;
mod mirror;
mod pod_certificates;
pub(crate) mod replicas;
mod root;
mod rotation;
mod served;
mod status;
mod tell;
mod webhooks;

use std::sync::Arc;

use kube::Client;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use weft_api::audit::Event;

use crate::ca::Root;
use crate::ca::secret::Standing;
use crate::keys::fetch::Fetcher;
use crate::serve::Shared;
use crate::settings::Settings;
use events::Events;
pub use rotation::Published;

/// Field manager of everything that the operator applies.
pub const MANAGER: &str = weft_api::names::OPERATOR;

/// What the leader's parts need.
#[derive(Clone)]
pub struct Leader {
    /// The API server, for watches.
    pub client: Client,
    /// The API server, for requests that have to be answered soon.
    pub writer: Client,
    /// The other parts of the operator.
    pub shared: Arc<Shared>,
    /// Settings.
    pub settings: Settings,
    /// Whether the CA Secret is gone.
    pub root_missing: watch::Receiver<bool>,
    /// The CA Secret.
    pub standing: watch::Receiver<Option<Arc<Standing>>>,
    /// The root in the Secret of another authority, when one is configured.
    pub given: Option<watch::Receiver<Option<Arc<Root>>>>,
    /// Which roots the cluster was told of.
    pub published: Arc<Published>,
}

impl Leader {
    /// Tells auditors what this replica has done, or has seen.
    fn audit(&self, mut event: Event) {
        event.who.pod = format!("{}/{}", self.settings.namespace, self.settings.pod_name);
        self.shared.audit.event(event);
    }

    /// Stands for election until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let client = self.writer.clone();
        let (namespace, holder) = (self.settings.namespace.clone(), self.settings.pod_name.clone());
        lease::lead(client, &namespace, &holder, stop, |term| self.clone().term(term)).await;
    }

    async fn term(self, term: CancellationToken) {
        self.shared.metrics.leader.set(1);
        let events = Events::new(&self.writer, &self.settings.pod_name);
        let mut parts = JoinSet::new();
        parts.spawn(bundle::keep(self.clone()));
        parts.spawn(cluster_bundle::keep(self.clone()));
        parts.spawn(pod_certificates::keep(self.clone()));
        parts.spawn(mirror::keep(self.clone()));
        parts.spawn(webhooks::keep(self.clone()));
        parts.spawn(root::keep(self.clone(), events.clone()));
        parts.spawn(rotation::keep(self.clone(), events.clone()));
        parts.spawn(limits::keep(self.clone()));
        parts.spawn(federation::keep(self.clone(), Fetcher::new()));
        parts.spawn(status::keep(self.clone(), events));
        tokio::select! {
            () = term.cancelled() => {}
            ended = parts.join_next() => tracing::error!(?ended, "a part of the leader's work ended"),
        }
        parts.shutdown().await;
        self.shared.metrics.leader.set(0);
    }
}
