//! What auditors hear of Weft's own resources: each generation that the leader has seen, whether it was accepted, and what is
//! gone. Pure. Who wrote a generation, the webhook's events say; why it was refused, the resource's status.

use std::collections::HashMap;

use serde_json::Value;
use weft_api::audit::{Event, Kind, Outcome, What};

use crate::index::resources::View;
use crate::index::space::{Refusal, Space, Verdict};
use crate::index::{Index, Key};

/// A generation, and the word for its refusal; empty: it was accepted.
type Seen = (i64, &'static str);

/// What was told of each resource, by kind.
#[derive(Debug, Default)]
pub struct Changes {
    told: HashMap<&'static str, HashMap<Key, Told>>,
    looks: u64,
}

#[derive(Debug)]
struct Told {
    seen: Seen,
    uid: String,
    /// The last look at which it was there.
    look: u64,
}

impl Changes {
    /// Looks, and says what is other than at the last look. At the first one, what the stored statuses do not say yet: a leader
    /// before this one has told the rest.
    pub fn look(&mut self, index: &Index) -> Vec<Event> {
        self.looks += 1;
        let mut events = Vec::new();
        for view in index.spaces().flat_map(|(_, space)| Space::resources(space)) {
            events.extend(self.one(&view));
        }
        for (kind, told) in &mut self.told {
            told.retain(|key, last| {
                let stays = last.look == self.looks;
                if !stays {
                    events.push(event(kind, key, &last.uid, last.seen.0, Outcome::Removed, ""));
                }
                stays
            });
        }
        events
    }

    fn one(&mut self, view: &View<'_>) -> Option<Event> {
        let look = self.looks;
        let told = self.told.entry(view.kind).or_default();
        let before = told.get_mut(view.key).map(|last| {
            last.look = look;
            last.seen
        });
        let word = word(view.verdict?);
        let seen = (view.generation, word);
        if before == Some(seen) {
            return None;
        }
        told.insert(view.key.clone(), Told { seen, uid: view.uid.to_owned(), look });
        let outcome = if word.is_empty() { Outcome::Accepted } else { Outcome::Refused };
        let news = before.is_some() || look > 1 || !says(view.status, seen);
        news.then(|| event(view.kind, view.key, view.uid, seen.0, outcome, word))
    }
}

const fn word(verdict: &Verdict) -> &'static str {
    match verdict.refused {
        None => "",
        Some(Refusal::Invalid(_)) => "invalid",
        Some(Refusal::Conflicted(_)) => "conflicted",
    }
}

/// Whether a status, as stored, tells of this generation and what became of it.
fn says(status: &Value, (generation, word): Seen) -> bool {
    let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let accepted = conditions.iter().find(|condition| condition["type"] == "Accepted");
    status["observedGeneration"] == generation
        && accepted.is_some_and(|condition| (condition["status"] == "True") == word.is_empty())
}

fn event(kind: &str, key: &Key, uid: &str, generation: i64, outcome: Outcome, reason: &'static str) -> Event {
    let mut event = Event::now(Kind::Configuration, outcome);
    event.reason = reason;
    event.what = What {
        kind: kind.to_owned(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        generation: Some(generation),
        object_uid: uid.to_owned(),
        ..What::default()
    };
    event
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::testing::{authentication, authorization, index_of, mesh_service, policy, requests};
    use serde_json::json;
    use std::collections::BTreeSet;

    fn told(changes: &mut Changes, index: &Index) -> Vec<(String, Option<i64>, Outcome, &'static str)> {
        let all = changes.look(index).into_iter();
        all.map(|e| (format!("{} {}", e.what.kind, e.what.name), e.what.generation, e.result, e.reason))
            .collect()
    }

    #[test]
    fn each_generation_is_told_once_with_what_became_of_it_until_it_is_gone() {
        let mut index = index_of(Vec::new());
        let mut changes = Changes::default();
        assert!(told(&mut changes, &index).is_empty());
        let name = || "AuthorizationPolicy a".to_owned();
        authorization("shop/a", 1, json!({"action": "Allow"})).apply(&mut index);
        assert_eq!(told(&mut changes, &index), [(name(), Some(1), Outcome::Accepted, "")]);
        assert!(told(&mut changes, &index).is_empty());
        let bad = json!({"action": "Allow", "rules": [{"from": [{"identities": ["planted-secret"]}]}]});
        authorization("shop/a", 2, bad).apply(&mut index);
        let events = changes.look(&index);
        assert_eq!((events[0].result, events[0].reason), (Outcome::Refused, "invalid"));
        assert!(!serde_json::to_string(&events).unwrap().contains("planted"), "what was written is quoted");
        assert_eq!(events.len(), 1);
        authorization("shop/a", 2, json!({"action": "Allow"})).delete(&mut index);
        authorization("shop/b", 1, json!({"action": "Allow"})).apply(&mut index);
        let mut events = told(&mut changes, &index);
        events.sort();
        let gone = (name(), Some(2), Outcome::Removed, "");
        assert_eq!(events, [gone, ("AuthorizationPolicy b".into(), Some(1), Outcome::Accepted, "")]);
    }

    #[test]
    fn each_kind_of_resource_is_told_of_when_it_comes_and_when_it_goes() {
        // What is wrong about them does not matter here.
        let all = || {
            [
                mesh_service("shop/a", 1, 1, json!({ "target": { "service": "back" } })),
                policy("shop/a", 1, 1, json!({ "targetRefs": [{ "kind": "Service", "name": "back" }] })),
                authentication("shop/a", 1, json!({})),
                authorization("shop/a", 1, json!({ "action": "Allow" })),
                requests("shop/a", 1, json!({ "issuers": [] })),
            ]
        };
        let kinds = |events: Vec<Event>| events.into_iter().map(|e| e.what.kind).collect::<BTreeSet<_>>();
        let mut index = index_of(all());
        let mut changes = Changes::default();
        let told = kinds(changes.look(&index));
        assert_eq!(told.len(), all().len(), "{told:?}");
        for object in all() {
            object.delete(&mut index);
        }
        assert_eq!(kinds(changes.look(&index)), told);
    }

    #[test]
    fn another_leader_tells_only_what_the_status_does_not_say() {
        let condition =
            |status| json!({"observedGeneration": 2, "conditions": [{"type": "Accepted", "status": status}]});
        assert!(says(&condition("True"), (2, "")));
        assert!(!says(&condition("True"), (2, "invalid")));
        assert!(says(&condition("False"), (2, "conflicted")));
        assert!(!says(&condition("True"), (3, "")));
        assert!(!says(&Value::Null, (1, "")));
    }
}
