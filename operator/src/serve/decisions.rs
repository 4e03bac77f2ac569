//! What proxies report of the decisions of policies that are for auditors, as Kubernetes Events of those policies. A proxy is believed
//! about its own pod alone: about policies that govern it and are for auditors, by rules that they have. Pure.

use weft_api::Identity;
use weft_api::v1::{Decision, Decisions};
use weft_crds::authorization_policy::Action;
use weft_crds::{API_VERSION, AuthorizationPolicySpec};
use weft_events::{Note, Regarding};

use crate::index::policy::{Spec, Tracked};
use crate::index::{Index, Key, Pod, selects};

/// Sums of one report that are looked at.
const MOST: usize = 64;

/// What is to be told, with how often it was so, and how many decisions are not.
#[must_use]
pub fn notes(index: &Index, pod: &Key, report: &Decisions) -> (Vec<(Note, u64)>, u64) {
    let (mut told, mut lost) = (Vec::new(), report.left_out);
    let known = index.pod(pod);
    for (place, decision) in report.decisions.iter().enumerate() {
        let note = known.filter(|_| place < MOST).and_then(|pod| note(index, pod, decision));
        match note {
            Some(note) => told.push((note, decision.times)),
            None => lost = lost.saturating_add(decision.times),
        }
    }
    (told, lost)
}

fn note(index: &Index, pod: &Pod, decision: &Decision) -> Option<Note> {
    // Several, where none of those that allow something fits: the first that is for auditors stands for all.
    let mut named = decision.policy.split(", ");
    let policy = named.find_map(|name| governing(index, pod, name))?;
    let now = &policy.now;
    let caller = match decision.caller.as_str() {
        "" => "a caller without identity".to_owned(),
        caller => caller.parse::<Identity>().ok()?.to_string(),
    };
    let by = match decision.rule.as_str() {
        "" if decision.denied => "none of the policies that allow something has a rule that fits".to_owned(),
        rule => format!("by rule {}", rule_of(policy, rule)?),
    };
    let (reason, text) = match (decision.action.as_str(), decision.denied) {
        ("audit", denied) => {
            let became = if denied { "denied" } else { "allowed" };
            ("Audited", format!("{caller} was noted {by}, and {became}"))
        }
        ("allow" | "deny", true) => ("Denied", format!("{caller} was denied: {by}")),
        ("allow", false) => ("Allowed", format!("{caller} was allowed {by}")),
        _ => return None,
    };
    let regarding = Regarding {
        api_version: API_VERSION,
        kind: AuthorizationPolicySpec::KIND.to_owned(),
        namespace: now.key.namespace.clone(),
        name: now.key.name.clone(),
        uid: now.uid.clone(),
    };
    Some(Note { regarding, warning: decision.denied, reason, action: "Decide", text })
}

/// The policy of that name, if it governs the pod and is for auditors.
fn governing<'a>(index: &'a Index, pod: &Pod, name: &str) -> Option<&'a Tracked<AuthorizationPolicySpec>> {
    let (namespace, name) = name.split_once('/')?;
    let policy = index.space(namespace)?.authorization_policies.get(name)?;
    let spec = spec(policy)?;
    let selected = match &spec.selector {
        Some(selector) => pod.key.namespace == namespace && selects(&selector.match_labels, &pod.labels),
        None => pod.key.namespace == namespace || namespace == index.own_namespace,
    };
    let audited = spec.action == Action::Audit || spec.audit.unwrap_or_default();
    (selected && audited).then_some(policy)
}

/// The rule of that name, as the policy writes it.
fn rule_of<'a>(policy: &Tracked<AuthorizationPolicySpec>, rule: &'a str) -> Option<&'a str> {
    let rules = &spec(policy)?.rules;
    let named = rules.iter().any(|own| own.name.as_deref() == Some(rule));
    let counted = rule.parse::<usize>().is_ok_and(|n| rules.get(n).is_some_and(|own| own.name.is_none()));
    (named || counted).then_some(rule)
}

/// What is in force of it.
fn spec(policy: &Tracked<AuthorizationPolicySpec>) -> Option<&AuthorizationPolicySpec> {
    policy.good.as_ref().map(|good| &*good.spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::testing::{OWN, authorization, index_of, plain_pod, pod};
    use serde_json::json;

    fn index() -> Index {
        let rules = json!([{ "name": "admins", "from": [{ "namespaces": ["shop"] }] }, { "from": [{ "namespaces": ["x"] }] }]);
        let deny = |audit: bool, app: &str| json!({ "action": "Deny", "audit": audit, "selector": { "matchLabels": { "app": app } }, "rules": rules });
        index_of([
            pod("shop/back-1", "back", "10.0.0.1"),
            plain_pod("bank/other-1", "back", "10.0.0.2"),
            authorization("shop/no", 1, deny(true, "back")),
            authorization("shop/quiet", 1, deny(false, "back")),
            authorization("shop/other", 1, deny(true, "other")),
            authorization("bank/no", 1, deny(true, "back")),
            authorization(&format!("{OWN}/all"), 1, json!({ "action": "Audit", "rules": rules })),
        ])
    }

    fn decision(policy: &str, rule: &str) -> Decision {
        Decision {
            policy: policy.into(),
            rule: rule.into(),
            action: "deny".into(),
            denied: true,
            caller: "spiffe://cluster.local/ns/shop/sa/front".into(),
            times: 12,
        }
    }

    fn told(decision: Decision) -> Option<(String, &'static str, String, u64)> {
        let report = Decisions { decisions: vec![decision], left_out: 3 };
        let (mut notes, lost) = notes(&index(), &Key::new("shop", "back-1"), &report);
        let told = notes.pop().map(|(note, times)| (note.regarding.name, note.reason, note.text, times));
        assert_eq!(lost, if told.is_some() { 3 } else { 15 }, "each is told or counted as lost");
        told
    }

    #[test]
    fn a_decision_is_told_of_its_policy_with_caller_and_rule() {
        let front = "spiffe://cluster.local/ns/shop/sa/front";
        let denied = |by: &str| format!("{front} was denied: {by}");
        let of = |policy: &str, reason, text: String| Some((policy.to_owned(), reason, text, 12));
        assert_eq!(told(decision("shop/no", "admins")), of("no", "Denied", denied("by rule admins")));
        assert_eq!(told(decision("shop/no", "1")), of("no", "Denied", denied("by rule 1")));
        let none = denied("none of the policies that allow something has a rule that fits");
        let several = Decision { action: "allow".into(), ..decision("shop/quiet, shop/no", "") };
        assert_eq!(told(several), of("no", "Denied", none));
        let audit =
            Decision { action: "audit".into(), denied: false, ..decision("weft-system/all", "admins") };
        let text = format!("{front} was noted by rule admins, and allowed");
        assert_eq!(told(audit), of("all", "Audited", text));
        let nobody = Decision { caller: String::new(), ..decision("shop/no", "1") };
        assert!(told(nobody).unwrap().2.contains("a caller without identity"));
    }

    #[test]
    fn a_proxy_is_not_believed_about_what_does_not_govern_its_pod() {
        let made_up = [
            decision("shop/quiet", "admins"),
            decision("shop/other", "admins"),
            decision("bank/no", "admins"),
            decision("shop/none", "admins"),
            decision("", "admins"),
            decision("shop/no", "0"),
            decision("shop/no", "planted"),
            Decision { caller: "planted".into(), ..decision("shop/no", "admins") },
            Decision { action: "planted".into(), ..decision("shop/no", "admins") },
            Decision { denied: false, ..decision("shop/no", "admins") },
        ];
        for decision in made_up {
            assert_eq!(told(decision.clone()), None, "{decision:?}");
        }
        let report = Decisions { decisions: vec![decision("shop/no", "1"); 100], left_out: 0 };
        let (notes, lost) = notes(&index(), &Key::new("shop", "back-1"), &report);
        assert_eq!((notes.len(), lost), (MOST, 36 * 12));
        let stranger = super::notes(&index(), &Key::new("shop", "gone"), &report);
        assert_eq!((stranger.0.len(), stranger.1), (0, 1200));
    }
}
