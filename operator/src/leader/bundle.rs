//! The trust bundle in every namespace with proxies: a ConfigMap that comes back when it is deleted or changed, and goes when
//! the last proxy has gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;
use tokio::time::sleep;
use weft_api::names;

use super::{Leader, MANAGER};
use crate::watch::Patience;

const BURST: Duration = Duration::from_millis(10);
const RETRY: Duration = Duration::from_secs(1);
const CHECK: Duration = Duration::from_secs(300);

/// A bundle as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    pem: Option<String>,
    ours: bool,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Write(String),
    Delete(String),
}

/// Keeps the bundles right for ever.
pub async fn keep(leader: Leader) {
    let api: Api<ConfigMap> = Api::all(leader.client.clone());
    let name = format!("metadata.name={}", names::BUNDLE_CONFIGMAP);
    let config = watcher::Config::default().fields(&name).timeout(120);
    let mut events = std::pin::pin!(watcher(api, config).backoff(Patience::default()));
    let mut changes = leader.shared.store.changes();
    let mut others = leader.shared.authority.changes();
    let mut found: BTreeMap<String, Found> = BTreeMap::new();
    let mut listing = BTreeMap::new();
    let mut listed = false;
    let mut pause = CHECK;
    loop {
        tokio::select! {
            event = events.try_next() => match event {
                Ok(Some(Event::Init)) => listing = BTreeMap::new(),
                Ok(Some(Event::InitApply(map))) => note(&mut listing, map),
                Ok(Some(Event::InitDone)) => {
                    found = std::mem::take(&mut listing);
                    listed = true;
                }
                Ok(Some(Event::Apply(map))) => note(&mut found, map),
                Ok(Some(Event::Delete(map))) => {
                    found.remove(&map.metadata.namespace.unwrap_or_default());
                }
                Ok(None) => return,
                Err(error) => tracing::warn!(error = %error, "watching the trust bundles failed; trying again"),
            },
            _ = changes.changed() => {}
            _ = others.changed() => {}
            () = sleep(pause) => {}
        }
        if !listed {
            continue;
        }
        sleep(BURST).await;
        let wanted = leader.shared.store.view(|view| view.index.bundle_namespaces());
        let roots = leader.shared.authority.roots();
        let pem = roots.bundle_pem();
        pause = CHECK;
        for step in plan(&wanted, &found, &pem) {
            if let Err(error) = apply(&leader, &step, &pem, &mut found).await {
                tracing::warn!(error = %error, ?step, "cannot write a trust bundle; trying again");
                pause = RETRY;
            }
        }
        if pause == CHECK {
            leader.published.bundles.store(roots.epoch, Ordering::Release);
        }
    }
}

fn note(found: &mut BTreeMap<String, Found>, map: ConfigMap) {
    let ours =
        map.metadata.labels.is_some_and(|l| l.get(names::MANAGED_BY).is_some_and(|v| v == names::OPERATOR));
    let pem = map.data.and_then(|mut d| d.remove(names::BUNDLE_KEY));
    found.insert(map.metadata.namespace.unwrap_or_default(), Found { pem, ours });
}

fn plan(wanted: &BTreeSet<String>, found: &BTreeMap<String, Found>, pem: &str) -> Vec<Step> {
    let right = Found { pem: Some(pem.to_owned()), ours: true };
    let write = wanted.iter().filter(|n| found.get(*n) != Some(&right)).cloned().map(Step::Write);
    let stale = found.iter().filter(|(n, f)| f.ours && !wanted.contains(*n));
    write.chain(stale.map(|(n, _)| Step::Delete(n.clone()))).collect()
}

async fn apply(
    leader: &Leader,
    step: &Step,
    pem: &str,
    found: &mut BTreeMap<String, Found>,
) -> kube::Result<()> {
    match step {
        Step::Write(namespace) => {
            let api: Api<ConfigMap> = Api::namespaced(leader.writer.clone(), namespace);
            let map = json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {
                    "name": names::BUNDLE_CONFIGMAP,
                    "labels": { names::MANAGED_BY: names::OPERATOR },
                },
                "data": { names::BUNDLE_KEY: pem },
            });
            let params = PatchParams::apply(MANAGER).force();
            match api.patch(names::BUNDLE_CONFIGMAP, &params, &Patch::Apply(map)).await {
                Ok(map) => note(found, map),
                // The namespace has gone, or is going.
                Err(kube::Error::Api(status))
                    if matches!(status.code, 403 | 404) && is_ending(&status.message) => {}
                Err(error) => return Err(error),
            }
            tracing::info!(namespace, "wrote the trust bundle");
        }
        Step::Delete(namespace) => {
            let api: Api<ConfigMap> = Api::namespaced(leader.writer.clone(), namespace);
            match api.delete(names::BUNDLE_CONFIGMAP, &DeleteParams::default()).await {
                Ok(_) => tracing::info!(namespace, "removed the trust bundle: no proxy is left"),
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
            found.remove(namespace);
        }
    }
    Ok(())
}

fn is_ending(message: &str) -> bool {
    message.contains("being terminated") || message.contains("not found")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundles_are_written_where_wanted_and_wrong_and_removed_where_ours_and_not_wanted() {
        let wanted = ["a", "b", "c"].map(String::from).into();
        let bundle = |pem: &str, ours| Found { pem: Some(pem.into()), ours };
        let found = BTreeMap::from([
            ("a".to_owned(), bundle("new", true)),
            ("b".to_owned(), bundle("old", true)),
            ("x".to_owned(), bundle("new", true)),
            ("y".to_owned(), bundle("new", false)),
        ]);
        assert_eq!(
            plan(&wanted, &found, "new"),
            [Step::Write("b".into()), Step::Write("c".into()), Step::Delete("x".into())]
        );
    }
}
