//! Kubernetes Events. One that cannot be written is a line in the log, nothing more.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use weft_api::names;

use crate::index::Key;

/// The API's bound.
const LONGEST_NOTE: usize = 1000;

/// Writes Events.
#[derive(Clone)]
pub struct Events(Recorder);

/// What an Event is about.
#[derive(Clone, Debug)]
pub struct About {
    /// API version, such as `v1`.
    pub version: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// Namespace and name.
    pub key: Key,
    /// Uid, by which `kubectl describe` finds it.
    pub uid: String,
}

impl Events {
    /// Written by this replica.
    pub fn new(client: &Client, pod_name: &str) -> Self {
        let reporter = Reporter {
            controller: format!("weft.dev/{}", names::OPERATOR),
            instance: Some(pod_name.to_owned()),
        };
        Self(Recorder::new(client.clone(), reporter))
    }

    /// Writes one. `action` is what the operator or a proxy did.
    pub async fn write(&self, about: &About, warning: bool, reason: &str, action: &str, note: &str) {
        let event = Event {
            type_: if warning { EventType::Warning } else { EventType::Normal },
            reason: reason.to_owned(),
            note: Some(note.chars().take(LONGEST_NOTE).collect()),
            action: action.to_owned(),
            secondary: None,
        };
        let reference = ObjectReference {
            api_version: Some(about.version.into()),
            kind: Some(about.kind.into()),
            namespace: Some(about.key.namespace.clone()),
            name: Some(about.key.name.clone()),
            uid: Some(about.uid.clone()).filter(|uid| !uid.is_empty()),
            ..ObjectReference::default()
        };
        if let Err(error) = self.0.publish(&event, &reference).await {
            tracing::warn!(error = %error, reason, about = %about.key, "cannot write an Event");
        }
    }
}
