//! Rotates the root: looks once a second what is so, takes the step that [`crate::ca::rotation`] decides on, and says in a
//! ConfigMap, a metric and Events where it stands. All that it has to remember is in the Secret.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};
use weft_api::audit::{Event, Kind, Outcome, What};
use weft_api::names;
use weft_api::v1::AppliedReply;

use super::events::{About, Events};
use super::replicas::Replicas;
use super::{Leader, MANAGER};
use crate::ca::rotation::{self, Facts, Maker, Next, Step, Trusted};
use crate::ca::secret::{self, Standing};
use crate::ca::{Phase, Root, Roots};
use crate::federation::SPREAD;
use crate::index::Key;
use crate::metrics::{InPhase, Took};
use crate::serve::bundle_source;

const LOOK: Duration = Duration::from_secs(1);
/// The ConfigMap is written again after that, should somebody have deleted it.
const SAY_AGAIN: Duration = Duration::from_secs(300);

/// The roots, by their epoch, that the cluster was told of.
#[derive(Debug, Default)]
pub struct Published {
    /// In every trust bundle.
    pub bundles: AtomicI64,
    /// In the `caBundle` that injects.
    pub injector: AtomicI64,
    /// In the `caBundle` that validates.
    pub validator: AtomicI64,
    /// In the cluster's trust bundle, where there is one. Waited for only when pods read it.
    pub cluster: AtomicI64,
}

impl Published {
    fn everywhere(&self, epoch: i64, readers: bool) -> bool {
        let cluster = readers.then_some(&self.cluster);
        let told = [&self.bundles, &self.injector, &self.validator].into_iter().chain(cluster);
        told.into_iter().all(|told| told.load(Ordering::Acquire) == epoch)
    }
}

/// Rotates for ever.
pub async fn keep(leader: Leader, events: Events) {
    let mut replicas = Replicas::default();
    let mut said: Option<(Instant, Value)> = None;
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(standing) = leader.standing.borrow().clone() else { continue };
        let roots = &standing.roots;
        let trusted = match roots.phase() {
            // Only then is it of interest.
            Phase::Distributing => {
                let reply = replicas.applied(&leader.shared, &leader.settings).await;
                let (pods, readers) =
                    leader.shared.store.view(|view| (view.index.proxies(), view.index.bundle_is_read()));
                trusted(roots, &reply, &leader.published, pods, readers)
            }
            Phase::Stable | Phase::Retiring => Trusted::default(),
        };
        let now = SystemTime::now();
        let given = leader.given.as_ref().map(|given| given.borrow().clone());
        let facts = Facts {
            now,
            maker: Maker::of(roots, given.as_ref().map(Option::as_deref), now),
            wanted: standing.wants_weft(),
            unmarked: standing.unmarked(),
            leaf_lifetime: leader.shared.authority.lifetime(),
            trusted,
            abroad: leader.settings.bundle_port.map_or(Duration::ZERO, |_| SPREAD),
        };
        let next = rotation::next(roots, &facts);
        count(&leader, roots);
        if let Next::Do(step) = next {
            take(&leader, &events, &standing, step, given.flatten()).await;
            continue;
        }
        let Next::Wait(why) = next else { continue };
        let data = status(roots, &why, trusted, leader.settings.root_secret.as_deref());
        let known = said.as_ref().is_some_and(|(at, last)| *last == data && at.elapsed() < SAY_AGAIN);
        if !known && write(&leader, &data).await {
            said = Some((Instant::now(), data));
        }
    }
}

fn trusted(roots: &Roots, reply: &AppliedReply, published: &Published, pods: u32, readers: bool) -> Trusted {
    let source = bundle_source(roots);
    let row = reply.rows.iter().find(|row| row.source.as_ref() == Some(&source));
    Trusted {
        published: reply.roots_epoch == roots.epoch && published.everywhere(roots.epoch, readers),
        connected: reply.proxies,
        acknowledged: row.map_or(0, |row| row.applied),
        pods,
        readers,
    }
}

async fn take(leader: &Leader, events: &Events, standing: &Standing, step: Step, given: Option<Arc<Root>>) {
    let make = || match given {
        Some(root) => Ok(root),
        None => Root::generate(&leader.settings.trust_domain, leader.settings.root_lifetime).map(Arc::new),
    };
    let roots = match standing.after(step, make, SystemTime::now()) {
        Ok(roots) => roots,
        Err(error) => return tracing::error!(error = %error, "a root cannot be made; trying again"),
    };
    let phase = roots.phase();
    if let Err(error) =
        secret::step(leader.writer.clone(), &leader.settings.namespace, standing, &roots).await
    {
        leader.audit(told(leader, step, phase, Outcome::Failed));
        // Somebody else may have written it: then the watch brings what there is now.
        return tracing::warn!(error = %error, ?step, "a step of the root's rotation could not be written; trying again");
    }
    leader.audit(told(leader, step, phase, Outcome::Done));
    tracing::info!(?step, phase = roots.phase().as_str(), "rotating the root");
    leader.shared.metrics.rotation_steps.get_or_create(&Took { step }).inc();
    let (reason, note) = match step {
        Step::Stamp => return settled(leader, &roots).await,
        Step::Begin => (
            "RootRotationBegan",
            "another root is being made known to every proxy; the present one signs until all of them trust it",
        ),
        Step::Switch => (
            "RootSwitched",
            "the new root signs; the old one stays trusted until nothing that it signed is good any more",
        ),
        Step::Retire => ("RootRetired", "the old root is not trusted any more: the rotation is complete"),
        Step::Replace => (
            "RootReplaced",
            "the root had expired and was replaced: proxies get new certificates as soon as they have read the new trust bundle",
        ),
    };
    let about = About {
        version: "v1",
        kind: "Secret",
        key: Key::new(&leader.settings.namespace, names::CA_SECRET),
        uid: standing.uid().to_owned(),
    };
    events.write(&about, step == Step::Replace, reason, "Rotate", note).await;
    settled(leader, &roots).await;
}

/// What auditors hear; `phase`: the one that the step leads to.
fn told(leader: &Leader, step: Step, phase: Phase, outcome: Outcome) -> Event {
    let mut event = Event::now(Kind::Rotation, outcome);
    event.reason = phase.as_str();
    event.what = What {
        kind: "Secret".into(),
        namespace: leader.settings.namespace.clone(),
        name: names::CA_SECRET.into(),
        operation: format!("{step:?}"),
        ..What::default()
    };
    event
}

/// Waits until the watch has brought what was written, so that no step is taken twice.
async fn settled(leader: &Leader, roots: &Roots) {
    let mut standing = leader.standing.clone();
    let brought =
        standing.wait_for(|standing| standing.as_ref().is_none_or(|now| now.roots.epoch >= roots.epoch));
    let _ = tokio::time::timeout(LOOK * 5, brought).await;
}

fn count(leader: &Leader, roots: &Roots) {
    for phase in Phase::ALL {
        let one = i64::from(phase == roots.phase());
        leader.shared.metrics.rotation_phase.get_or_create(&InPhase { phase }).set(one);
    }
}

/// What `kubectl -n weft-system get configmap weft-ca-status -o yaml` shows.
fn status(roots: &Roots, why: &str, trusted: Trusted, other: Option<&str>) -> Value {
    let source = match other {
        Some(name) => format!("Secret {name}"),
        None if roots.signing.is_weft() => "Weft".to_owned(),
        None => "by hand".to_owned(),
    };
    let line = |root: &Arc<Root>| format!("expires {}", rotation::date(rotation::expiry(root)));
    let mut data = json!({
        "phase": roots.phase().as_str(),
        "since": rotation::date(roots.since()),
        "waiting": why,
        "source": source,
        "signing": line(&roots.signing),
        "trusted": roots.bundle().len().to_string(),
    });
    if let Some(next) = &roots.next {
        data["next"] = line(next).into();
        data["acknowledged"] = format!("{} of {}", trusted.acknowledged, trusted.connected).into();
    }
    data
}

async fn write(leader: &Leader, data: &Value) -> bool {
    let api: Api<ConfigMap> = Api::namespaced(leader.writer.clone(), &leader.settings.namespace);
    let map = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": names::CA_STATUS, "labels": { names::MANAGED_BY: names::OPERATOR } },
        "data": data,
    });
    match api.patch(names::CA_STATUS, &PatchParams::apply(MANAGER).force(), &Patch::Apply(map)).await {
        Ok(_) => true,
        Err(error) => {
            tracing::warn!(error = %error, "cannot write ConfigMap {}; trying again", names::CA_STATUS);
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_api::v1::AppliedRow;

    #[test]
    fn only_acknowledgements_of_this_very_bundle_count() {
        let root = || Root::generate(&"cluster.local".parse().unwrap(), Duration::from_secs(86_400)).unwrap();
        let before = Roots::from(root()).stamp(SystemTime::now());
        let roots = before.begin(root(), SystemTime::now());
        let row = |roots: &Roots, applied| AppliedRow {
            source: Some(bundle_source(roots)),
            applied,
            total: 3,
            rejection: String::new(),
        };
        let reply = AppliedReply {
            rows: vec![row(&before, 1), row(&roots, 2)],
            proxies: 3,
            roots_epoch: roots.epoch,
            ..AppliedReply::default()
        };
        let published = Published::default();
        for told in [&published.bundles, &published.injector, &published.validator] {
            assert!(!trusted(&roots, &reply, &published, 4, false).published);
            told.store(roots.epoch, Ordering::Release);
        }
        let all = Trusted { published: true, connected: 3, acknowledged: 2, pods: 4, readers: false };
        assert_eq!(trusted(&roots, &reply, &published, 4, false), all);
        assert!(
            !trusted(&roots, &reply, &published, 4, true).published,
            "pods read the cluster's, which is not written"
        );
        published.cluster.store(roots.epoch, Ordering::Release);
        assert_eq!(trusted(&roots, &reply, &published, 4, true), Trusted { readers: true, ..all });
        let behind = AppliedReply { roots_epoch: before.epoch, ..reply };
        assert!(
            !trusted(&roots, &behind, &published, 4, false).published,
            "a replica does not know of it yet"
        );
    }
}
