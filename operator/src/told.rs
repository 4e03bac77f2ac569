//! What auditors hear, as Kubernetes Events: certificates, and Weft's resources that come into force or go. Pure. What else the leader
//! writes Events of (steps of a rotation, refusals, ejections), it writes itself, in sentences.

use weft_api::audit::{Event, Kind, Outcome};
use weft_crds::API_VERSION;
use weft_events::{Note, Regarding};

/// `None`: there is no Event of it, or another part writes it.
#[must_use]
pub fn note(event: &Event) -> Option<Note> {
    let what = &event.what;
    let uid = what.object_uid.clone();
    match (event.event, event.result) {
        (Kind::Issuance, Outcome::Issued) => {
            let (namespace, name) = event.who.pod.split_once('/')?;
            let (kind, namespace, name) = ("Pod".into(), namespace.into(), name.into());
            Some(Note {
                regarding: Regarding { api_version: "v1", kind, namespace, name, uid },
                warning: false,
                reason: "CertificateIssued",
                action: "Sign",
                text: format!("the operator signed a certificate for {}", event.who.identity),
            })
        }
        (Kind::Configuration, Outcome::Accepted | Outcome::Removed) => {
            let generation = what.generation.unwrap_or_default();
            let (reason, action, text) = match event.result {
                Outcome::Accepted => ("Accepted", "Compile", format!("generation {generation} is accepted")),
                _ => ("Removed", "Remove", "it is gone, and no longer in force".to_owned()),
            };
            let (kind, namespace, name) = (what.kind.clone(), what.namespace.clone(), what.name.clone());
            let regarding = Regarding { api_version: API_VERSION, kind, namespace, name, uid };
            Some(Note { regarding, warning: false, reason, action, text })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: Kind, result: Outcome) -> Event {
        let mut event = Event::now(kind, result);
        event.who.pod = "shop/back-1".into();
        event.who.identity = "spiffe://cluster.local/ns/shop/sa/back".into();
        event.what.kind = "TrafficPolicy".into();
        event.what.namespace = "shop".into();
        event.what.name = "back".into();
        event.what.object_uid = "u1".into();
        event.what.generation = Some(3);
        event
    }

    #[test]
    fn certificates_are_told_of_their_pods_and_changes_of_their_resources() {
        let issued = note(&event(Kind::Issuance, Outcome::Issued)).unwrap();
        let about = &issued.regarding;
        assert_eq!(
            (&*about.kind, &*about.namespace, &*about.name, &*about.uid),
            ("Pod", "shop", "back-1", "u1")
        );
        assert_eq!(
            issued.text,
            "the operator signed a certificate for spiffe://cluster.local/ns/shop/sa/back"
        );
        for (result, text) in [
            (Outcome::Accepted, "generation 3 is accepted"),
            (Outcome::Removed, "it is gone, and no longer in force"),
        ] {
            let changed = note(&event(Kind::Configuration, result)).unwrap();
            assert_eq!(
                (&*changed.regarding.kind, &*changed.regarding.name, &*changed.text),
                ("TrafficPolicy", "back", text)
            );
        }
    }

    #[test]
    fn what_other_parts_write_events_of_is_not_told_twice() {
        for (kind, result) in [
            (Kind::Issuance, Outcome::Refused),
            (Kind::Configuration, Outcome::Refused),
            (Kind::Rotation, Outcome::Done),
        ] {
            assert_eq!(note(&event(kind, result)), None);
        }
        let mut nobody = event(Kind::Issuance, Outcome::Issued);
        nobody.who.pod.clear();
        assert_eq!(note(&nobody), None);
    }
}
