//! How often policies that are for auditors decided, for the operator, which writes Kubernetes Events of it: sums of what is the same,
//! bounded in number. Neither host, path nor headers are in it, nor an address; the events on stdout have what is told of each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use weft_api::audit::{Event, Outcome};
use weft_api::v1;

/// Sums that are kept until they are reported; what fits none of them is only counted.
const MOST: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub struct Decisions {
    kept: Mutex<Kept>,
    noted: Notify,
}

#[derive(Debug, Default)]
struct Kept {
    sums: HashMap<Sum, u64>,
    left_out: u64,
}

/// What is the same of decisions that are counted together.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Sum {
    policy: Arc<str>,
    rule: Arc<str>,
    action: &'static str,
    denied: bool,
    caller: String,
}

impl Decisions {
    /// Policies have decided.
    pub fn hear(&self, event: &Event) {
        let denied = event.result == Outcome::Denied;
        let mut kept = self.kept();
        let first = kept.is_empty();
        for by in &event.policies {
            let (policy, rule) = (Arc::clone(&by.policy), Arc::clone(&by.rule));
            let sum = Sum { policy, rule, action: by.action, denied, caller: event.who.identity.clone() };
            if kept.sums.len() < MOST || kept.sums.contains_key(&sum) {
                *kept.sums.entry(sum).or_default() += 1;
            } else {
                kept.left_out += 1;
            }
        }
        if first && !kept.is_empty() {
            self.noted.notify_one();
        }
    }

    /// Waits until there is something to report.
    pub async fn noted(&self) {
        self.noted.notified().await;
    }

    /// What was decided since the last call; `None`: nothing.
    pub fn take(&self) -> Option<v1::Decisions> {
        let kept = std::mem::take(&mut *self.kept());
        if kept.is_empty() {
            return None;
        }
        let decision = |(sum, times): (Sum, u64)| v1::Decision {
            policy: sum.policy.to_string(),
            rule: sum.rule.to_string(),
            action: sum.action.to_owned(),
            denied: sum.denied,
            caller: sum.caller,
            times,
        };
        let decisions = kept.sums.into_iter().map(decision).collect();
        Some(v1::Decisions { decisions, left_out: kept.left_out })
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn is_empty(&self) -> bool {
        self.sums.is_empty()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use weft_api::audit::{By, Kind};

    pub(crate) fn denied(caller: &str) -> Event {
        let mut event = Event::now(Kind::Authorization, Outcome::Denied);
        event.who.identity = caller.to_owned();
        event.what.path = "/planted".into();
        event.policies = vec![By { policy: "shop/p".into(), rule: "0".into(), action: "deny" }];
        event
    }

    #[tokio::test]
    async fn what_is_the_same_is_counted_together_and_told_once() {
        let decisions = Decisions::default();
        assert_eq!(decisions.take(), None);
        for _ in 0..3 {
            decisions.hear(&denied("spiffe://cluster.local/ns/shop/sa/front"));
        }
        decisions.hear(&denied(""));
        decisions.noted().await;
        let told = decisions.take().unwrap();
        let mut times: Vec<u64> = told.decisions.iter().map(|sum| sum.times).collect();
        times.sort_unstable();
        assert_eq!((times, told.left_out), (vec![1, 3], 0));
        assert!(!format!("{told:?}").contains("planted"));
        assert_eq!(decisions.take(), None);
    }

    #[test]
    fn there_is_a_bound_and_nothing_is_lost_beyond_it() {
        let decisions = Decisions::default();
        for n in 0..10 * MOST {
            decisions.hear(&denied(&n.to_string()));
            decisions.hear(&denied("0"));
        }
        let told = decisions.take().unwrap();
        assert_eq!(told.decisions.len(), MOST);
        let counted: u64 = told.decisions.iter().map(|sum| sum.times).sum();
        assert_eq!(counted + told.left_out, 20 * MOST as u64);
    }
}
