//! What auditors hear of a request or connection that a policy of theirs allowed or denied: pure, from the record as far as it
//! is filled in. Neither a query nor a header is in it, but the host that was named and the id of the request; of a token, whose it is.

use std::sync::Arc;

use weft_api::audit::{By, Event, Kind, Outcome, What, Who, text};

use crate::authorize::{Named, Refusal, Verdict};
use crate::record::{Party, RequestRecord, TcpRecord};
use crate::token::Seen;

/// `None`: no policy wants it.
pub(crate) fn request(record: &RequestRecord) -> Option<Event> {
    let mut event = decision(record.authorization.as_deref()?)?;
    event.who = who(&record.source, record.client.ip());
    if let Some(token) = record.token.as_ref().and_then(Seen::good) {
        event.who.token_issuer = text(&token.claims.issuer);
        event.who.token_subject = token.claims.subject.as_deref().map(text).unwrap_or_default();
    }
    let host = record.host.as_ref().map(|host| String::from_utf8_lossy(host.as_bytes()));
    event.what = What {
        kind: "request".into(),
        operation: text(record.method.as_str()),
        // What stands before an `@` is no part of a host, and may be a password.
        host: host.map(|host| text(host.rsplit('@').next().unwrap_or_default())).unwrap_or_default(),
        path: text(record.uri.path()),
        port: record.upstream.map(|at| at.port()),
        request_id: text(&String::from_utf8_lossy(record.request_id.as_bytes())),
        ..asked(&record.destination)
    };
    Some(event)
}

/// `None`: no policy wants it.
pub(crate) fn connection(record: &TcpRecord) -> Option<Event> {
    let mut event = decision(record.authorization.as_deref()?)?;
    event.who = who(&record.source, record.client.ip());
    event.what =
        What { kind: "connection".into(), port: Some(record.original.port()), ..asked(&record.destination) };
    Some(event)
}

fn decision(verdict: &Verdict) -> Option<Event> {
    if !verdict.is_audited() {
        return None;
    }
    let outcome = if verdict.refused.is_some() { Outcome::Denied } else { Outcome::Allowed };
    let mut event = Event::now(Kind::Authorization, outcome);
    let by = |named: &Arc<Named>| By {
        policy: Arc::clone(&named.policy),
        rule: Arc::clone(&named.rule),
        action: named.action.as_str(),
    };
    event.policies.extend(verdict.allowed.iter().chain(&verdict.audited).map(by));
    if let Some(refusal) = &verdict.refused {
        event.reason = refusal.reason().as_str();
        match refusal {
            Refusal::Rule(named) => event.policies.push(by(named)),
            Refusal::NoneAllows(names) => {
                event.policies.push(By { policy: Arc::clone(names), rule: Arc::default(), action: "allow" });
            }
            Refusal::Abroad(_) | Refusal::Path(_) => {}
        }
    }
    Some(event)
}

fn who(source: &Party, address: std::net::IpAddr) -> Who {
    let identity = source.identity.as_ref().map(ToString::to_string).unwrap_or_default();
    Who { identity, address: Some(address.to_canonical()), ..Who::default() }
}

fn asked(destination: &Party) -> What {
    What {
        namespace: destination.namespace.to_string(),
        name: destination.workload.to_string(),
        ..What::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authorize::Action;
    use crate::metrics::tests::record;

    fn named(action: Action, audit: bool) -> Arc<Named> {
        Arc::new(Named { policy: "shop/p".into(), rule: "r".into(), action, audit })
    }

    #[test]
    fn neither_query_nor_password_of_a_host_is_told() {
        let refused = Some(Refusal::Rule(named(Action::Deny, true)));
        let verdict = Verdict { refused, refusal_audited: true, ..Verdict::default() };
        let record = RequestRecord {
            authorization: Some(Box::new(verdict)),
            uri: "/cart?token=planted".parse().unwrap(),
            host: Some("user:planted@back".parse().unwrap()),
            ..record()
        };
        let event = request(&record).unwrap();
        assert_eq!((event.what.path.as_str(), event.what.host.as_str()), ("/cart", "back"));
        assert_eq!((event.result, event.reason), (Outcome::Denied, "policy-denied"));
        assert!(!serde_json::to_string(&event).unwrap().contains("planted"));
    }

    #[test]
    fn only_what_a_policy_wants_told_is() {
        let told = |verdict: Verdict| {
            let record = RequestRecord { authorization: Some(Box::new(verdict)), ..record() };
            request(&record).map(|event| (event.result, event.policies.len()))
        };
        let refused = |audit| Some(Refusal::Rule(named(Action::Deny, audit)));
        assert_eq!(told(Verdict { refused: refused(false), ..Verdict::default() }), None);
        let dry_run = refused(true);
        assert_eq!(told(Verdict { dry_run, ..Verdict::default() }), None);
        let allowed = Some(named(Action::Allow, true));
        assert_eq!(told(Verdict { allowed, ..Verdict::default() }), Some((Outcome::Allowed, 1)));
        let audited = vec![named(Action::Audit, true)];
        let both = Verdict { refused: refused(false), audited, ..Verdict::default() };
        assert_eq!(told(both), Some((Outcome::Denied, 2)));
    }
}
