//! The `caBundle` of Weft's two webhook configurations: written by nobody else, and written again when it drifts.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures::TryStreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::sleep;
use weft_api::names;

use super::Leader;
use crate::watch::Patience;

const RETRY: Duration = Duration::from_secs(1);
const CHECK: Duration = Duration::from_secs(300);

/// A webhook configuration: names of its webhooks, each with its caBundle.
trait Configuration:
    Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static
{
    fn bundles(&self) -> Vec<(&str, Option<&ByteString>)>;
}

impl Configuration for MutatingWebhookConfiguration {
    fn bundles(&self) -> Vec<(&str, Option<&ByteString>)> {
        let all = self.webhooks.iter().flatten();
        all.map(|w| (w.name.as_str(), w.client_config.ca_bundle.as_ref())).collect()
    }
}

impl Configuration for ValidatingWebhookConfiguration {
    fn bundles(&self) -> Vec<(&str, Option<&ByteString>)> {
        let all = self.webhooks.iter().flatten();
        all.map(|w| (w.name.as_str(), w.client_config.ca_bundle.as_ref())).collect()
    }
}

/// Keeps both right for ever.
pub async fn keep(leader: Leader) {
    let (injector, validator) = (&leader.published.injector, &leader.published.validator);
    let mutating = keep_one::<MutatingWebhookConfiguration>(&leader, names::INJECTOR_CONFIGURATION, injector);
    let validating =
        keep_one::<ValidatingWebhookConfiguration>(&leader, names::VALIDATOR_CONFIGURATION, validator);
    tokio::join!(mutating, validating);
}

async fn keep_one<K: Configuration>(leader: &Leader, name: &str, published: &AtomicI64) {
    let api: Api<K> = Api::all(leader.client.clone());
    let config = watcher::Config::default().fields(&format!("metadata.name={name}")).timeout(120);
    let mut events = std::pin::pin!(watcher(api.clone(), config).backoff(Patience::default()));
    let writer: Api<K> = Api::all(leader.writer.clone());
    let mut changes = leader.shared.authority.changes();
    let mut current: Option<K> = None;
    let mut listed = false;
    let mut pause = CHECK;
    loop {
        tokio::select! {
            event = events.try_next() => match event {
                Ok(Some(Event::Apply(found) | Event::InitApply(found))) => current = Some(found),
                Ok(Some(Event::Delete(_) | Event::Init)) => current = None,
                Ok(Some(Event::InitDone)) => listed = true,
                Ok(None) => return,
                Err(error) => tracing::warn!(error = %error, name, "watching a webhook configuration failed; trying again"),
            },
            _ = changes.changed() => {}
            () = sleep(pause) => {}
        }
        pause = CHECK;
        let roots = leader.shared.authority.roots();
        let pem = roots.bundle_pem();
        let Some(patch) = current.as_ref().and_then(|c| plan(&c.bundles(), &pem)) else {
            if listed {
                published.store(roots.epoch, Ordering::Release);
            }
            continue;
        };
        match writer.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(patched) => {
                tracing::info!(name, "wrote the caBundle");
                current = Some(patched);
                published.store(roots.epoch, Ordering::Release);
            }
            Err(kube::Error::Api(status)) if status.code == 404 => current = None,
            Err(error) => {
                tracing::warn!(error = %error, name, "cannot write the caBundle; trying again");
                pause = RETRY;
            }
        }
    }
}

/// A strategic merge patch (lists of webhooks merge by name) for those whose caBundle is another.
fn plan(bundles: &[(&str, Option<&ByteString>)], pem: &str) -> Option<Value> {
    let wrong = bundles.iter().filter(|(_, bundle)| bundle.is_none_or(|b| b.0 != pem.as_bytes()));
    let webhooks: Vec<Value> = wrong
        .map(|(name, _)| json!({ "name": name, "clientConfig": { "caBundle": ByteString(pem.as_bytes().to_vec()) } }))
        .collect();
    (!webhooks.is_empty()).then(|| json!({ "webhooks": webhooks }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_webhooks_with_another_bundle_are_patched() {
        let right = ByteString(b"pem".to_vec());
        let wrong = ByteString(b"old".to_vec());
        assert_eq!(plan(&[("a", Some(&right))], "pem"), None);
        let patch = plan(&[("a", Some(&right)), ("b", Some(&wrong)), ("c", None)], "pem").unwrap();
        let names: Vec<_> = patch["webhooks"].as_array().unwrap().iter().map(|w| w["name"].clone()).collect();
        assert_eq!(names, ["b", "c"]);
        assert_eq!(patch["webhooks"][0]["clientConfig"]["caBundle"], "cGVt");
    }
}
