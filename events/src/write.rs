//! Writes Events: a new one, or how often it was so by now. One task; what the API server does not take is dropped and counted.

use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::sums::{Sums, Write};
use crate::{Count, Fate, Heard};

/// Between two looks at what is to be written.
const LOOK: Duration = Duration::from_secs(1);
/// For one answer of the API server.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who writes.
#[derive(Clone, Debug)]
pub struct Reporter {
    /// Such as `weft.dev/weft-operator`.
    pub controller: &'static str,
    /// What Events of it are called, with more behind it.
    pub name: &'static str,
    /// The pod.
    pub instance: String,
}

/// What writes.
pub struct Writer {
    from: mpsc::Receiver<Heard>,
    count: Count,
    sums: Sums,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the API server does not take it")]
    Refused(#[source] kube::Error),
    #[error("the API server does not answer")]
    Silent,
}

impl Writer {
    pub(crate) fn new(from: mpsc::Receiver<Heard>, count: Count) -> Self {
        Self { from, count, sums: Sums::default() }
    }

    /// Until nobody can tell anything any more.
    pub async fn run(mut self, client: Client, reporter: Reporter) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                heard = self.from.recv() => {
                    let Some(Heard { note, times, at }) = heard else { return };
                    let dropped = self.sums.hear(note, times, at, Instant::now());
                    self.drop(dropped);
                }
                _ = look.tick() => self.look(&client, &reporter).await,
            }
        }
    }

    async fn look(&mut self, client: &Client, reporter: &Reporter) {
        for due in self.sums.due(Instant::now()) {
            match write(client, reporter, &due).await {
                Ok(event) => {
                    self.sums.written(&due, event, Instant::now());
                    (self.count)(Fate::Written, due.more);
                }
                Err(failure) => {
                    let dropped = self.sums.failed(&due);
                    self.drop(dropped);
                    let cause =
                        std::error::Error::source(&failure).map(ToString::to_string).unwrap_or_default();
                    tracing::warn!(error = %failure, cause, about = %due.note.regarding.name, reason = due.note.reason, "cannot write an Event");
                    // The others wait, so that one who is silent is not waited for once for each.
                    if matches!(failure, Failure::Silent) {
                        return;
                    }
                }
            }
        }
    }

    fn drop(&self, times: u64) {
        if times > 0 {
            (self.count)(Fate::Dropped, times);
        }
    }
}

/// The name of the Event.
async fn write(client: &Client, reporter: &Reporter, due: &Write) -> Result<String, Failure> {
    let api: Api<Event> = Api::namespaced(client.clone(), &due.note.regarding.namespace);
    let (create, change) = (PostParams::default(), PatchParams::default());
    let answer = async {
        match &due.event {
            None => api.create(&create, &event(reporter, due)).await,
            Some(name) => api.patch(name, &change, &Patch::Merge(json!({ "series": series(due) }))).await,
        }
    };
    match timeout(PATIENCE, answer).await {
        Ok(Ok(event)) => Ok(event.metadata.name.unwrap_or_default()),
        Ok(Err(error @ kube::Error::Api(_))) => Err(Failure::Refused(error)),
        Ok(Err(_)) | Err(_) => Err(Failure::Silent),
    }
}

fn event(reporter: &Reporter, due: &Write) -> Event {
    let note = &due.note;
    let about = &note.regarding;
    Event {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", reporter.name)),
            namespace: Some(about.namespace.clone()),
            ..ObjectMeta::default()
        },
        type_: Some(if note.warning { "Warning" } else { "Normal" }.into()),
        reason: Some(note.reason.into()),
        action: Some(note.action.into()),
        note: Some(note.text.clone()),
        event_time: Some(moment(due.first)),
        series: series(due),
        reporting_controller: Some(reporter.controller.into()),
        reporting_instance: Some(reporter.instance.clone()),
        regarding: Some(ObjectReference {
            api_version: Some(about.api_version.into()),
            kind: Some(about.kind.clone()),
            namespace: Some(about.namespace.clone()),
            name: Some(about.name.clone()),
            uid: Some(about.uid.clone()).filter(|uid| !uid.is_empty()),
            ..ObjectReference::default()
        }),
        ..Event::default()
    }
}

/// The API takes none of one.
fn series(due: &Write) -> Option<EventSeries> {
    (due.count > 1).then(|| EventSeries {
        count: i32::try_from(due.count).unwrap_or(i32::MAX),
        last_observed_time: moment(due.last),
    })
}

fn moment(at: SystemTime) -> MicroTime {
    MicroTime(Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH))
}

#[cfg(test)]
mod tests;
