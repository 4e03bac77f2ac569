//! The stream of configuration from the operator: subscribes to what the workload calls, puts updates in force whole,
//! acknowledges or rejects them, reports ejections and audited decisions, and connects again for ever. It is the only writer of the
//! snapshot. Losing the operator changes nothing in force.

use std::collections::HashSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use weft_api::TrustDomain;
use weft_api::spiffe::ParseError;
use weft_api::v1::config_client::ConfigClient;
use weft_api::v1::from_proxy::Message;
use weft_api::v1::{
    Ack, Checked, CheckedEndpoint, Ejection, Ejections, Federation, FromProxy, Hello, KeysMissed, Rejection,
    Subscribe, ToProxy,
};

use crate::backoff::Backoff;
use crate::decisions::Decisions;
use crate::dial::{self, DialError, chain};
use crate::dns;
use crate::named::Named;
use crate::settings::Settings;
use crate::snapshot::{Snapshot, Target};
use crate::status::Status;
use crate::store::{Changes, SnapshotStore};
use crate::tls::{Bundle, Foreign, Tls};

mod demands;
#[cfg(test)]
mod tests;

use demands::Demands;

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// A new destination is wanted while disconnected: the wait is cut short, but never below this.
const HURRIED_RETRY: Duration = Duration::from_secs(1);
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// The operator takes messages at once; one that does not is as good as gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
const SAY_AGAIN: Duration = Duration::from_secs(60);
const EJECTIONS_EVERY: Duration = Duration::from_secs(1);
/// Between two reports of what policies for auditors decided.
const DECISIONS_EVERY: Duration = Duration::from_secs(10);
/// Between two reports of keys that are missing.
const KEYS_EVERY: Duration = Duration::from_secs(2);
const EXPIRE_EVERY: Duration = Duration::from_secs(60);
/// Ten thousand services with a hundred endpoints each would fit; anything more is a mistake.
const MAX_UPDATE: usize = 128 << 20;

/// Why a stream ended or did not come about.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The operator cannot be reached, or is not the operator.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// It answered with an error, or the connection broke.
    #[error("the operator ended the stream ({0:?}): {1}")]
    Answer(tonic::Code, String),
    /// It closed the stream in good order, e.g. because it stops.
    #[error("the operator closed the stream")]
    Closed,
    /// Nothing came in time.
    #[error("the operator did not open the stream in time")]
    OpenTimeout,
    /// It does not read what this proxy sends.
    #[error("the operator does not take messages")]
    Stuck,
}

impl From<tonic::Status> for StreamError {
    fn from(status: tonic::Status) -> Self {
        Self::Answer(status.code(), status.message().to_owned())
    }
}

/// What the stream works with.
pub struct Control {
    /// Whose configuration, and from where.
    pub settings: Arc<Settings>,
    /// The own certificate; takes new roots.
    pub tls: Arc<Tls>,
    /// Where updates go to and new destinations come from.
    pub store: Arc<SnapshotStore>,
    /// Told how it goes.
    pub status: Arc<Status>,
    /// What it was told by name.
    pub names: Names,
    /// What policies for auditors decided.
    pub decisions: Arc<Decisions>,
}

/// Endpoints by name; nothing is looked up before there is one.
#[derive(Debug, Default)]
pub struct Names {
    told: Mutex<Named>,
    lookups: OnceLock<dns::Names>,
    wanted: Notify,
}

impl Control {
    /// Keeps the stream up, and names resolved, for ever. One task, so that there is one writer of the snapshot.
    pub async fn run(self) {
        tokio::select! {
            () = self.keep_stream() => {}
            () = self.keep_names() => {}
        }
    }

    // Also while there is no operator: names change without it.
    async fn keep_names(&self) {
        let lookups = loop {
            match self.names.lookups.get() {
                Some(lookups) => break lookups,
                None => self.names.wanted.notified().await,
            }
        };
        let mut changes = lookups.changes();
        while changes.changed().await.is_ok() {
            let found = Arc::clone(&changes.borrow_and_update());
            let update = self.names.told().update(&found);
            let (next, rejections) = self.store.load().apply(&update);
            self.store.publish(next);
            for rejection in &rejections {
                tracing::warn!(resource = %rejection.resource, reason = %rejection.message, "the addresses of a name are of no use");
            }
        }
        // Its task has ended, which it never does by itself.
        std::future::pending().await
    }

    async fn keep_stream(&self) {
        let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        let mut said = Said::default();
        loop {
            self.until_certified().await;
            let Err(error) = self.stream(&mut backoff).await;
            let wait = backoff.wait();
            let reason = chain(&error);
            if said.is_new(&reason) {
                tracing::warn!(%reason, "no configuration stream; what is known stays in force, trying again");
            }
            if self.status.is_connected() {
                self.status.disconnected(reason);
            } else {
                self.status.connection(Err(reason));
            }
            self.pause(wait).await;
        }
    }

    async fn until_certified(&self) {
        let mut changed = self.tls.changed();
        while self.tls.own().is_none() && changed.changed().await.is_ok() {}
    }

    async fn pause(&self, wait: Duration) {
        let hurried = async {
            sleep(HURRIED_RETRY).await;
            self.store.asked().await;
        };
        tokio::select! {
            () = sleep(wait) => {}
            () = hurried => {}
        }
    }

    // One stream, from its opening to its end.
    async fn stream(&self, backoff: &mut Backoff) -> Result<Infallible, StreamError> {
        let (mut to_operator, mut updates) =
            timeout(OPEN_TIMEOUT, self.open()).await.map_err(|_| StreamError::OpenTimeout)??;
        self.status.connection(Ok(()));
        tracing::info!("configuration stream is up");

        let mut told = Told::default();
        let mut ejection_changes = self.store.load().ejection_changes();
        let mut report_at = Some(Instant::now());
        let (mut keys_at, mut keys_told) = (None, None::<Instant>);
        // There may be some of before.
        let (mut decisions_at, mut decisions_told) = (Some(Instant::now()), None::<Instant>);
        let mut demands = Demands::new();
        demands.follow(&self.store.load());
        let mut expiry = interval_at(Instant::now() + EXPIRE_EVERY, EXPIRE_EVERY);
        expiry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                update = updates.message() => {
                    let update = update?.ok_or(StreamError::Closed)?;
                    backoff.reset();
                    demands::grant(&self.store.load(), &update.rate_shares);
                    // Shares come several times a second, by themselves, and are not acknowledged.
                    if update.version == 0 {
                        continue;
                    }
                    let ack = self.apply(update, &mut told);
                    to_operator.tell(Message::Ack(ack)).await?;
                    demands.follow(&self.store.load());
                    // An endpoint that went may have been ejected, or one that stays is said to be unhealthy.
                    if !told.ejected.is_empty() || !told.checked.is_empty() || told.unhealthy {
                        report_at.get_or_insert(told.reported + EJECTIONS_EVERY);
                    }
                }
                () = at(demands.at) => {
                    if let Some(wanted) = demands.look(&self.store.load()) {
                        to_operator.tell(Message::Demands(wanted)).await?;
                    }
                }
                changes = self.store.changes() => {
                    to_operator.tell(Message::Subscribe(self.change(changes))).await?;
                }
                Ok(()) = ejection_changes.changed() => {
                    report_at.get_or_insert(told.reported + EJECTIONS_EVERY);
                }
                () = at(report_at) => {
                    report_at = None;
                    let snapshot = self.store.load();
                    if let Some(report) = told.report(&snapshot) {
                        to_operator.tell(Message::Ejections(report)).await?;
                    }
                    if let Some(checked) = told.report_checked(&snapshot) {
                        to_operator.tell(Message::Checked(checked)).await?;
                    }
                }
                () = self.store.keys_missed(), if keys_at.is_none() => {
                    let now = Instant::now();
                    keys_at = Some(keys_told.map_or(now, |last| (last + KEYS_EVERY).max(now)));
                }
                () = at(keys_at) => {
                    (keys_at, keys_told) = (None, Some(Instant::now()));
                    if let Some(missed) = self.missed() {
                        to_operator.tell(Message::KeysMissed(missed)).await?;
                    }
                }
                () = self.decisions.noted(), if decisions_at.is_none() => {
                    let now = Instant::now();
                    decisions_at = Some(decisions_told.map_or(now, |last| (last + DECISIONS_EVERY).max(now)));
                }
                () = at(decisions_at) => {
                    decisions_at = None;
                    if let Some(decisions) = self.decisions.take() {
                        decisions_told = Some(Instant::now());
                        to_operator.tell(Message::Decisions(decisions)).await?;
                    }
                }
                _ = expiry.tick() => {
                    self.store.expire();
                    self.forget_services(&told);
                }
            }
        }
    }

    fn missed(&self) -> Option<KeysMissed> {
        let workload = self.store.load().workload.clone()?;
        let key_sources = workload.tokens.as_ref()?.missed();
        (!key_sources.is_empty()).then_some(KeysMissed { key_sources })
    }

    async fn open(&self) -> Result<(ToOperator, Streaming<ToProxy>), StreamError> {
        let roots = dial::trusted_roots(&self.settings, &self.tls).await?;
        let channel = dial::operator(&self.settings.operator, &roots, Some(self.tls.resolver())).await?;
        let (sender, receiver) = mpsc::channel(32);
        let mut to_operator = ToOperator(sender);
        to_operator
            .tell(Message::Hello(Hello {
                namespace: self.settings.pod.namespace.clone(),
                pod: self.settings.pod.name.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            }))
            .await?;
        let held = self.held();
        if !held.is_empty() {
            to_operator.tell(Message::Subscribe(Subscribe { add: texts(&held), drop: Vec::new() })).await?;
        }
        let mut client = ConfigClient::new(channel).max_decoding_message_size(MAX_UPDATE);
        let updates = client.stream(ReceiverStream::new(receiver)).await?.into_inner();
        Ok((to_operator, updates))
    }

    // Everything to subscribe to; what was evicted meanwhile leaves the snapshot too.
    fn held(&self) -> Vec<SocketAddr> {
        let held = self.store.held();
        let snapshot = self.store.load();
        let kept: HashSet<&SocketAddr> = held.iter().collect();
        let gone: Vec<SocketAddr> =
            snapshot.addresses.keys().filter(|at| !kept.contains(at)).copied().collect();
        if !gone.is_empty() {
            self.store.publish(snapshot.without(&gone));
        }
        held
    }

    fn change(&self, changes: Changes) -> Subscribe {
        if !changes.drop.is_empty() {
            let rest = self.store.load().without(&changes.drop);
            self.status.held(rest.addresses.len(), rest.services.len());
            self.store.publish(rest);
        }
        Subscribe { add: texts(&changes.add), drop: texts(&changes.drop) }
    }

    fn apply(&self, mut update: ToProxy, told: &mut Told) -> Ack {
        // An answer that crossed with the address being dropped would otherwise stay for ever.
        update.addresses.retain(|entry| match entry.address.parse() {
            Ok(address) => self.store.holds(address),
            Err(_) => true,
        });
        told.note(&update);
        self.names.resolve(&mut update);
        let (next, mut rejections) = self.store.load().apply(&update);
        let (addresses, services) = (next.addresses.len(), next.services.len());
        self.store.publish(next);
        if !update.roots_der.is_empty() {
            let roots = update.roots_der.iter().map(|der| der.to_vec().into()).collect();
            if let Err(error) = self.tls.set_roots(Bundle { roots, epoch: update.roots_epoch }) {
                rejections.push(Rejection { resource: "roots".to_owned(), message: chain(&error) });
            }
        }
        if let Some(federation) = &update.federation
            && let Err(message) = federate(&self.tls, federation)
        {
            rejections.push(Rejection { resource: "federation".to_owned(), message });
        }
        for rejection in &rejections {
            tracing::warn!(resource = %rejection.resource, reason = %rejection.message, "configuration rejected, the last good one stays");
        }
        tracing::debug!(version = update.version, addresses, services, "configuration applied");
        self.status.updated(update.version, rejections.len(), addresses, services);
        Ack { version: update.version, rejections }
    }

    // Services of an earlier stream that no address leads to any more. Those of this stream the operator removes.
    fn forget_services(&self, told: &Told) {
        let snapshot = self.store.load();
        let led_to: HashSet<&str> = snapshot
            .addresses
            .values()
            .filter_map(|target| match target {
                Target::Service(service) | Target::Pinned(service, _) => Some(&*service.key),
                Target::External => None,
            })
            .collect();
        let stale = |key: &str| !led_to.contains(key) && !told.services.contains(key);
        if snapshot.services.keys().any(|key| stale(key)) {
            let mut rest = Snapshot::clone(&snapshot);
            rest.services.retain(|key, _| !stale(key));
            self.names.told().retain(|key| !stale(key));
            self.status.held(rest.addresses.len(), rest.services.len());
            self.store.publish(rest);
        }
    }
}

/// Takes the bundles of other trust domains, all or none.
fn federate(tls: &Tls, federation: &Federation) -> Result<(), String> {
    let mut foreign = Foreign::new();
    for bundle in &federation.bundles {
        let domain: TrustDomain = bundle.trust_domain.parse().map_err(|e: ParseError| e.to_string())?;
        let roots = bundle.roots_der.iter().map(|der| der.to_vec().into()).collect();
        if foreign.insert(domain, roots).is_some() {
            return Err(format!("trust domain {} has two bundles", bundle.trust_domain));
        }
    }
    tls.set_foreign(foreign).map_err(|error| chain(&error))
}

impl Names {
    fn told(&self) -> MutexGuard<'_, Named> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // Puts addresses in place of names, as far as they are known, and has the others looked up.
    fn resolve(&self, update: &mut ToProxy) {
        let found = self.lookups.get().map(dns::Names::found).unwrap_or_default();
        let mut told = self.told();
        if !told.absorb(update, &found) {
            return;
        }
        if self.lookups.get().is_none() {
            match dns::Resolver::new(&[]) {
                Ok(resolver) => {
                    let (lookups, task) = dns::Names::new(resolver);
                    tokio::spawn(task);
                    if self.lookups.set(lookups).is_ok() {
                        self.wanted.notify_one();
                    }
                }
                Err(reason) => {
                    tracing::error!(%reason, "names cannot be resolved: how, the system does not say")
                }
            }
        }
        if let Some(lookups) = self.lookups.get() {
            lookups.want(told.wanted());
        }
    }
}

/// What was logged last: an operator that is away for hours is told of once a minute, not with every attempt.
#[derive(Default)]
struct Said(Option<(String, Instant)>);

impl Said {
    fn is_new(&mut self, reason: &str) -> bool {
        let again = self.0.as_ref().is_some_and(|(last, at)| last == reason && at.elapsed() < SAY_AGAIN);
        if !again {
            self.0 = Some((reason.to_owned(), Instant::now()));
        }
        !again
    }
}

/// What was said on this stream.
struct Told {
    // By the operator.
    services: HashSet<String>,
    // By this proxy.
    ejected: Vec<Ejection>,
    checked: Vec<CheckedEndpoint>,
    reported: Instant,
    // By the operator: an endpoint of the last services that came.
    unhealthy: bool,
}

impl Default for Told {
    fn default() -> Self {
        Self {
            services: HashSet::new(),
            ejected: Vec::new(),
            checked: Vec::new(),
            reported: Instant::now(),
            unhealthy: false,
        }
    }
}

impl Told {
    fn note(&mut self, update: &ToProxy) {
        self.services.extend(update.services.iter().map(|service| service.key.clone()));
        let clusters = update.services.iter().flat_map(|service| &service.clusters);
        let mut checks = clusters.flat_map(|c| &c.endpoints).filter_map(|endpoint| endpoint.check.as_ref());
        self.unhealthy = checks.any(|check| check.unhealthy);
        for key in &update.removed_services {
            self.services.remove(key);
        }
    }

    // The whole set, if it is another than was told last.
    fn report(&mut self, snapshot: &Snapshot) -> Option<Ejections> {
        let ejected = snapshot.ejections();
        self.reported = Instant::now();
        if ejected == self.ejected {
            return None;
        }
        self.ejected.clone_from(&ejected);
        Some(Ejections { ejected })
    }
}

impl Told {
    // What the own checks found, the whole of it, if that is something else than was told last.
    fn report_checked(&mut self, snapshot: &Snapshot) -> Option<Checked> {
        let unhealthy = snapshot.checked();
        if unhealthy == self.checked {
            return None;
        }
        self.checked.clone_from(&unhealthy);
        Some(Checked { unhealthy })
    }
}

struct ToOperator(mpsc::Sender<FromProxy>);

impl ToOperator {
    async fn tell(&mut self, message: Message) -> Result<(), StreamError> {
        use mpsc::error::SendTimeoutError;
        match self.0.send_timeout(FromProxy { message: Some(message) }, SEND_TIMEOUT).await {
            Ok(()) => Ok(()),
            Err(SendTimeoutError::Timeout(_)) => Err(StreamError::Stuck),
            Err(SendTimeoutError::Closed(_)) => Err(StreamError::Closed),
        }
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

fn texts(addresses: &[SocketAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}
