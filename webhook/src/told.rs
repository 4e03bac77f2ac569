//! Admissions, as Kubernetes Events: what was refused, and changes of Weft's own resources that were allowed, with the user. Pure. No
//! sentence of a refusal is in them, because it may quote what the object holds, and no dry run: it must have no effects.

use std::sync::Arc;

use weft_api::audit::{Audit, Event, Outcome};
use weft_crds::API_VERSION;
use weft_events::write::Writer;
use weft_events::{Note, Regarding, Sink};

use crate::metrics::{Kind, Metrics};

/// Has what is told to auditors from now on told by Events too, as far as it is; they are written by what comes back.
#[must_use]
pub fn to_events(audit: &Audit, metrics: Arc<Metrics>) -> Writer {
    let (sink, writer) = Sink::new(move |fate, times| metrics.told_by_events(fate, times));
    audit.also(move |event| note(event).into_iter().for_each(|note| sink.tell(note, 1)));
    writer
}

/// `None`: there is no Event of it.
#[must_use]
pub fn note(event: &Event) -> Option<Note> {
    let what = &event.what;
    let operation = ["CREATE", "UPDATE", "DELETE"].into_iter().find(|word| *word == what.operation)?;
    let (api_version, denied) = match (Kind::of(&what.kind), event.result == Outcome::Denied) {
        (Kind::Other, _) | (Kind::Pod, false) => return None,
        (Kind::Pod, true) => ("v1", true),
        (_, denied) => (API_VERSION, denied),
    };
    if what.namespace.is_empty() {
        return None;
    }
    let user = if event.who.user.is_empty() { "somebody" } else { &event.who.user };
    let (reason, text) = if denied {
        let answer = "the answer to whoever asked says why, as does the webhook's log";
        ("AdmissionDenied", format!("{operation} by {user} was denied ({}): {answer}", event.reason))
    } else {
        ("AdmissionAllowed", format!("{operation} by {user} was allowed"))
    };
    let regarding = Regarding {
        api_version,
        kind: what.kind.clone(),
        namespace: what.namespace.clone(),
        name: what.name.clone(),
        uid: what.object_uid.clone(),
    };
    Some(Note { regarding, warning: denied, reason, action: "Admit", text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_api::audit;

    fn event(kind: &str, operation: &str, result: Outcome) -> Event {
        let mut event = Event::now(audit::Kind::Admission, result);
        event.reason = "invalid";
        event.who.user = "ann".into();
        event.what.kind = kind.into();
        event.what.namespace = "shop".into();
        event.what.name = "a".into();
        event.what.operation = operation.into();
        event
    }

    #[test]
    fn refusals_and_changes_of_our_own_resources_are_told_with_the_user() {
        let denied = note(&event("Pod", "CREATE", Outcome::Denied)).unwrap();
        assert!(
            denied.warning && denied.text.starts_with("CREATE by ann was denied (invalid)"),
            "{denied:?}"
        );
        assert_eq!((denied.regarding.api_version, &*denied.regarding.kind), ("v1", "Pod"));
        let allowed = note(&event("TrafficPolicy", "UPDATE", Outcome::Allowed)).unwrap();
        assert_eq!((&*allowed.text, allowed.warning), ("UPDATE by ann was allowed", false));
        assert_eq!((allowed.regarding.api_version, &*allowed.regarding.namespace), (API_VERSION, "shop"));
    }

    #[test]
    fn dry_runs_pods_that_were_allowed_and_what_is_not_ours_are_not_told() {
        for (kind, operation, result) in [
            ("Pod", "CREATE", Outcome::Allowed),
            ("TrafficPolicy", "CREATE, dry run", Outcome::Denied),
            ("TrafficPolicy", "planted", Outcome::Denied),
            ("Secret", "CREATE", Outcome::Denied),
            ("", "", Outcome::Denied),
        ] {
            assert_eq!(note(&event(kind, operation, result)), None, "{kind} {operation}");
        }
        let mut nowhere = event("TrafficPolicy", "CREATE", Outcome::Denied);
        nowhere.what.namespace.clear();
        assert_eq!(note(&nowhere), None);
    }
}
