//! Fetches the bundles of other trust domains, and notes each in the status of its TrustDomain, from where every replica takes it.
//! While that fails the last good one stays. Bounded in fetches at once; each of them in time and bytes. Which bundle is in
//! force it does not decide.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use weft_crds::trust_domain::FetchedBundle;
use weft_crds::{TrustDomain, TrustDomainSpec};

use super::Leader;
use crate::federation::document::Document;
use crate::federation::fetch::fetch;
use crate::federation::pem;
use crate::index::{Key, Wanted};
use crate::keys::fetch::Fetcher;
use crate::keys::pause;
use crate::metrics::{Fetch, Fetched};

const LOOK: Duration = Duration::from_secs(1);
/// Fetches under way at the same time.
const AT_ONCE: usize = 8;
/// Of a sentence in the status.
const MAX_PROBLEM: usize = 500;

struct Entry {
    spec: Arc<TrustDomainSpec>,
    due: Instant,
    under_way: bool,
    failures: u32,
}

type Got = Result<(Document, Option<Duration>), String>;

/// Fetches for ever.
pub async fn keep(leader: Leader, fetcher: Fetcher) {
    let mut entries: HashMap<Key, Entry> = HashMap::new();
    let mut under_way: JoinSet<(Wanted, Got)> = JoinSet::new();
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            Some(ended) = under_way.join_next() => if let Ok((wanted, got)) = ended {
                settle(&leader, &mut entries, wanted, got).await;
            },
        }
        let wanted = leader.shared.store.view(|view| view.index.wanted_bundles());
        entries.retain(|key, entry| wanted.iter().any(|w| w.key == *key && w.spec == entry.spec));
        for wanted in wanted {
            let entry = entries.entry(wanted.key.clone()).or_insert_with(|| Entry {
                spec: Arc::clone(&wanted.spec),
                due: Instant::now(),
                under_way: false,
                failures: 0,
            });
            if entry.under_way || entry.due > Instant::now() || under_way.len() >= AT_ONCE {
                continue;
            }
            entry.under_way = true;
            let fetcher = fetcher.clone();
            under_way.spawn(async move {
                let got = fetch(&fetcher, &wanted.spec, &wanted.roots).await;
                (wanted, got)
            });
        }
    }
}

async fn settle(leader: &Leader, entries: &mut HashMap<Key, Entry>, wanted: Wanted, got: Got) {
    // Of a spec that is no more: what it has come to is of no use.
    let Some(entry) = entries.get_mut(&wanted.key).filter(|entry| entry.spec == wanted.spec) else { return };
    entry.under_way = false;
    let (result, age) = match &got {
        Ok((_, age)) => {
            entry.failures = 0;
            (Fetch::Fetched, *age)
        }
        Err(problem) => {
            entry.failures = entry.failures.saturating_add(1);
            let trust_domain = &wanted.spec.trust_domain;
            tracing::warn!(trust_domain, problem, "a bundle cannot be fetched; trying again");
            (Fetch::Failed, None)
        }
    };
    leader.shared.metrics.bundle_fetches.get_or_create(&Fetched { result }).inc();
    entry.due = Instant::now() + pause(entry.failures, age, rand::random());
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let Some(bundle) = note(&wanted, got.map(|(document, _)| document), &now) else { return };
    let api: Api<TrustDomain> = Api::namespaced(leader.writer.clone(), &wanted.key.namespace);
    let patch = Patch::Merge(json!({ "status": { "bundle": bundle } }));
    match api.patch_status(&wanted.key.name, &PatchParams::default(), &patch).await {
        Ok(_) => {
            leader.shared.metrics.status_writes.inc();
        }
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => {
            entry.due = Instant::now() + LOOK;
            tracing::warn!(error = %error, key = %wanted.key, "cannot note a bundle; trying again");
        }
    }
}

/// What to write into `status.bundle`; `None`: it stands there already. Pure.
fn note(wanted: &Wanted, got: Result<Document, String>, now: &str) -> Option<Value> {
    let known = wanted.fetched.clone().unwrap_or_default();
    let mut next = FetchedBundle {
        trust_domain: wanted.spec.trust_domain.clone(),
        url: wanted.spec.endpoint.as_ref().map(|endpoint| endpoint.url.clone()).unwrap_or_default(),
        ..known.clone()
    };
    match got {
        Ok(document) => {
            let text: String = document.roots.iter().map(|der| pem(der)).collect();
            if known.pem.as_ref() != Some(&text) {
                next.since = Some(now.to_owned());
            }
            next.pem = Some(text);
            next.sequence = document.sequence.and_then(|sequence| i64::try_from(sequence).ok());
            next.problem = None;
        }
        Err(problem) => next.problem = Some(problem.chars().take(MAX_PROBLEM).collect()),
    }
    if wanted.fetched.as_ref() == Some(&next) {
        return None;
    }
    // Each by name, so that a merge takes away what is not there any more.
    Some(json!({
        "trustDomain": next.trust_domain,
        "url": next.url,
        "pem": next.pem,
        "sequence": next.sequence,
        "since": next.since,
        "problem": next.problem,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::Root;

    #[test]
    fn a_failure_keeps_the_last_bundle_and_what_says_the_same_is_not_written() {
        let spec = json!({ "trustDomain": "partner.example", "endpoint": { "url": "https://a/", "profile": "HttpsWeb" } });
        let spec: Arc<TrustDomainSpec> = Arc::new(serde_json::from_value(spec).unwrap());
        let root = Root::generate(&"partner.example".parse().unwrap(), Duration::from_secs(86_400)).unwrap();
        let document = |sequence| Document {
            roots: vec![root.der.to_vec()],
            sequence: Some(sequence),
            refresh_hint: None,
        };
        let wanted = |fetched| Wanted {
            key: Key::new("weft-system", "p"),
            spec: Arc::clone(&spec),
            fetched,
            roots: Vec::new(),
        };
        let read = |value: &Value| serde_json::from_value::<FetchedBundle>(value.clone()).unwrap();

        let failed = note(&wanted(None), Err("took too long".into()), "t1").unwrap();
        assert!(
            failed["pem"].is_null() && failed["problem"] == "took too long" && read(&failed).is_of(&spec)
        );
        let first = note(&wanted(Some(read(&failed))), Ok(document(1)), "t2").unwrap();
        assert_eq!((first["since"].as_str(), first["sequence"].as_i64()), (Some("t2"), Some(1)));
        assert_eq!(
            weft_crds::validate::certificates(first["pem"].as_str().unwrap()).unwrap(),
            [root.der.to_vec()]
        );
        assert!(first["problem"].is_null());
        assert_eq!(note(&wanted(Some(read(&first))), Ok(document(1)), "t3"), None);
        let later = note(&wanted(Some(read(&first))), Ok(document(2)), "t3").unwrap();
        assert_eq!((later["since"].as_str(), later["sequence"].as_i64()), (Some("t2"), Some(2)));
        let again = note(&wanted(Some(read(&later))), Err("answered 500".into()), "t4").unwrap();
        assert_eq!((&again["pem"], &again["problem"]), (&first["pem"], &"answered 500".into()));
        assert_eq!(note(&wanted(Some(read(&again))), Err("answered 500".into()), "t5"), None);
    }
}
