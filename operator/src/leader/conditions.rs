//! What a resource's status should say: pure, from its verdict and from what the proxies acknowledged.

use std::collections::HashMap;

use serde_json::{Map, Value, json};
use weft_api::v1::AppliedReply;

use crate::index::Key;
use crate::index::space::{Refusal, Verdict};

/// How many proxies need a resource, and how many have its newest generation in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Proxies by generation in force.
    by_generation: HashMap<i64, u32>,
    /// Proxies that need it in any generation.
    total: u32,
    /// The latest rejection by a proxy, empty when there is none.
    rejection: String,
}

/// By kind and key.
pub type AppliedBy = HashMap<(String, Key), Applied>;

/// Sorts the rows by resource.
pub fn by_resource(reply: &AppliedReply) -> AppliedBy {
    let mut all = AppliedBy::new();
    for row in &reply.rows {
        let Some(source) = &row.source else { continue };
        let key = (source.kind.clone(), Key::new(&source.namespace, &source.name));
        let applied = all.entry(key).or_default();
        *applied.by_generation.entry(source.generation).or_default() += row.applied;
        applied.total += row.total;
        if !row.rejection.is_empty() {
            applied.rejection.clone_from(&row.rejection);
        }
    }
    all
}

/// Of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    True,
    False,
    Unknown,
}

impl Status {
    const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Status {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// A condition without its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    kind: &'static str,
    status: Status,
    reason: &'static str,
    message: String,
}

/// The three conditions, and "N/M".
pub fn conditions(generation: i64, verdict: &Verdict, applied: Option<&Applied>) -> (Vec<Condition>, String) {
    let none = Applied::default();
    let applied = applied.unwrap_or(&none);
    let newest = applied.by_generation.get(&generation).copied().unwrap_or(0);
    let text = format!("{newest}/{}", applied.total);
    (
        vec![
            accepted(generation, verdict),
            resolved(generation, verdict),
            programmed(generation, verdict, applied, newest),
        ],
        text,
    )
}

fn accepted(generation: i64, verdict: &Verdict) -> Condition {
    let kept = match verdict.in_force {
        Some(old) if old != generation => format!(". Generation {old} stays in force"),
        _ => String::new(),
    };
    let (status, reason, message) = match &verdict.refused {
        None => (true, "Accepted", "the specification makes sense".to_owned()),
        Some(Refusal::Invalid(why)) => (false, "Invalid", format!("{why}{kept}")),
        Some(Refusal::Conflicted(why)) => (false, "Conflicted", why.clone()),
    };
    Condition { kind: "Accepted", status: status.into(), reason, message }
}

fn resolved(generation: i64, verdict: &Verdict) -> Condition {
    if matches!(verdict.refused, Some(Refusal::Invalid(_))) {
        let message = "not looked at, because the specification makes no sense".to_owned();
        return Condition { kind: "ResolvedRefs", status: Status::Unknown, reason: "Invalid", message };
    }
    if verdict.missing.is_empty() {
        let message = "everything that it names exists".to_owned();
        return Condition { kind: "ResolvedRefs", status: Status::True, reason: "ResolvedRefs", message };
    }
    let what = match verdict.in_force {
        Some(old) if old != generation => format!("; generation {old}, the last good one, stays in force"),
        Some(_) => "; what was last good stays in force, and what never existed gets no requests".to_owned(),
        None => String::new(),
    };
    let message = format!("{}{what}", verdict.missing.join("; "));
    Condition { kind: "ResolvedRefs", status: Status::False, reason: "RefNotFound", message }
}

fn programmed(generation: i64, verdict: &Verdict, applied: &Applied, newest: u32) -> Condition {
    let total = applied.total;
    let count = format!("applied on {newest} of {total} proxies");
    let (status, reason, message) = match verdict.in_force {
        None => (false, "NotInForce", "nothing of it is in force".to_owned()),
        Some(old) if old != generation => {
            let has = applied.by_generation.get(&old).copied().unwrap_or(0);
            (
                false,
                "LastGood",
                format!("generation {old} is applied on {has} of {total} proxies in its place"),
            )
        }
        Some(_) if !applied.rejection.is_empty() => {
            (false, "Rejected", format!("{count}; a proxy rejected it: {}", applied.rejection))
        }
        Some(_) if newest < total => (false, "Pending", count),
        Some(_) if total == 0 => (true, "Programmed", format!("{count}: no connected proxy needs it yet")),
        Some(_) => (true, "Programmed", count),
    };
    Condition { kind: "Programmed", status: status.into(), reason, message }
}

/// The status to write, with `now` as the time of what changed; `None` when it is written already.
pub fn status(
    generation: i64,
    conditions: &[Condition],
    applied: &str,
    more: Map<String, Value>,
    stored: &Value,
    now: &str,
) -> Option<Value> {
    let mut wanted = json!({ "observedGeneration": generation, "applied": applied });
    if let Some(fields) = wanted.as_object_mut() {
        fields.extend(more);
    }
    let found = stored.get("conditions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let list: Vec<Value> = conditions
        .iter()
        .map(|c| {
            let status = c.status.as_str();
            // The time is that of the last change of the status, not of the message.
            let same = found.iter().find(|f| f["type"] == c.kind && f["status"] == status);
            let since = same.and_then(|f| f["lastTransitionTime"].as_str()).unwrap_or(now);
            json!({
                "type": c.kind,
                "status": status,
                "reason": c.reason,
                "message": c.message,
                "lastTransitionTime": since,
                "observedGeneration": generation,
            })
        })
        .collect();
    wanted["conditions"] = Value::Array(list);
    (!says(stored, &wanted)).then_some(wanted)
}

/// What was fetched of a TrustDomain: another part of the leader writes it into the same status, and it stays as it is.
const FETCHED: &str = "bundle";

fn says(stored: &Value, wanted: &Value) -> bool {
    let (Some(stored), Some(wanted)) = (stored.as_object(), wanted.as_object()) else { return false };
    let mut own = stored.iter().filter(|(name, _)| *name != FETCHED);
    own.clone().count() == wanted.len() && own.all(|(name, value)| wanted.get(name) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_api::v1::{AppliedRow, Source};

    fn row(generation: i64, applied: u32, total: u32, rejection: &str) -> AppliedRow {
        let source =
            Source { kind: "TrafficPolicy".into(), namespace: "a".into(), name: "p".into(), generation };
        AppliedRow { source: Some(source), applied, total, rejection: rejection.into() }
    }

    fn programmed_of(generation: i64, verdict: &Verdict, rows: Vec<AppliedRow>) -> (Condition, String) {
        let all = by_resource(&AppliedReply { rows, ..AppliedReply::default() });
        let (conditions, text) =
            conditions(generation, verdict, all.get(&("TrafficPolicy".into(), Key::new("a", "p"))));
        (conditions[2].clone(), text)
    }

    #[test]
    fn programmed_counts_only_the_newest_generation() {
        let verdict = Verdict { in_force: Some(2), ..Verdict::default() };
        let (condition, text) = programmed_of(2, &verdict, vec![row(1, 3, 3, ""), row(2, 4, 5, "")]);
        assert_eq!((condition.status, text.as_str()), (Status::False, "4/8"));
        assert_eq!(condition.message, "applied on 4 of 8 proxies");
        let (condition, text) = programmed_of(2, &verdict, vec![row(2, 5, 5, "")]);
        assert_eq!((condition.status, text.as_str()), (Status::True, "5/5"));
    }

    #[test]
    fn a_rejection_and_a_last_good_generation_are_said() {
        let verdict = Verdict { in_force: Some(2), ..Verdict::default() };
        let (condition, _) = programmed_of(2, &verdict, vec![row(2, 1, 2, "no regex")]);
        assert_eq!((condition.reason, condition.status), ("Rejected", Status::False));
        assert!(condition.message.contains("no regex"), "{}", condition.message);
        let verdict = Verdict {
            in_force: Some(1),
            refused: Some(Refusal::Invalid("bad".into())),
            ..Verdict::default()
        };
        let (conditions, _) = conditions(2, &verdict, None);
        assert_eq!(conditions[0].message, "bad. Generation 1 stays in force");
        assert_eq!(conditions[1].status, Status::Unknown);
        assert_eq!(conditions[2].reason, "LastGood");
    }

    #[test]
    fn a_status_that_says_the_same_is_not_written_and_times_move_only_with_the_status() {
        let verdict = Verdict { in_force: Some(1), ..Verdict::default() };
        let (list, text) = conditions(1, &verdict, None);
        let first = status(1, &list, &text, Map::new(), &Value::Null, "t1").unwrap();
        assert_eq!(status(1, &list, &text, Map::new(), &first, "t2"), None);
        let verdict = Verdict { missing: vec!["x".into()], ..verdict };
        let (list, text) = conditions(1, &verdict, None);
        let second = status(1, &list, &text, Map::new(), &first, "t2").unwrap();
        assert_eq!(second["conditions"][0]["lastTransitionTime"], "t1");
        assert_eq!(second["conditions"][1]["lastTransitionTime"], "t2");
    }
}
