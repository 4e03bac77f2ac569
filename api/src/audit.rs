//! Audit events: who did what, when, and with which result. One schema for operator, webhook and proxy, one line of JSON
//! for each event, marked by `"log":"audit"`. An event holds names, numbers and closed words, never a token, a key, a query,
//! a header's value (but the request's host and id) or a sentence that could quote what somebody wrote.

use std::io::Write;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

use crate::lines::Lines;

#[cfg(test)]
mod tests;

/// What marks an event among the lines of a log, in the field `log`.
pub const LOG: &str = "audit";
/// Longest text in an event, in bytes.
const LONGEST: usize = 1024;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// When.
    #[serde(rename = "time", serialize_with = "moment")]
    pub at: SystemTime,
    /// What kind of thing.
    pub event: Kind,
    /// How it ended.
    pub result: Outcome,
    /// Why, in one closed word; empty: nothing is to be said.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub reason: &'static str,
    /// Who did it, or asked for it.
    pub who: Who,
    /// What it was done to.
    pub what: What,
    /// The policies that had a part in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<By>,
}

/// Who writes events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Component {
    /// `weft-operator`.
    Operator,
    /// `weft-webhook`.
    Webhook,
    /// `weft-proxy`.
    Proxy,
}

/// Kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A policy that is to be audited allowed or denied a request or a connection.
    Authorization,
    /// The webhook answered an admission review.
    Admission,
    /// A certificate was asked for.
    Issuance,
    /// The rotation of the root took a step.
    Rotation,
    /// The operator has seen another generation of one of Weft's resources.
    Configuration,
}

/// Results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It may.
    Allowed,
    /// It may not.
    Denied,
    /// A certificate was signed.
    Issued,
    /// It was not done, or is not in force.
    Refused,
    /// It is in force.
    Accepted,
    /// It is gone.
    Removed,
    /// A step was taken.
    Done,
    /// A step could not be taken.
    Failed,
}

/// Who; what is not known is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Who {
    /// SPIFFE id, proved by mTLS or given by the certificate.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub identity: String,
    /// `iss` of the request's token (JWT), which was verified.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub token_issuer: String,
    /// `sub` of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub token_subject: String,
    /// User of the Kubernetes API.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// "namespace/name".
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pod: String,
    /// The other end of the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
}

/// What; what has no meaning for an event is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct What {
    /// Kind of the object, `request`, `connection` or `certificate`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Its namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Its name; of a request, the workload that was asked.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What is done to it: CREATE, the step of a rotation, the method of a request.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub operation: String,
    /// Of the admission review.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Of the object that a Kubernetes Event of this is about, where it is known; in no line.
    #[serde(skip)]
    pub object_uid: String,
    /// Of the resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// The host that the caller named.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// The path, as sent, without its query.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// Where the application listens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// `x-request-id`, by which the access log and `weft explain` find it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub request_id: String,
}

/// A policy's part in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct By {
    /// "namespace/name"; several, where none of them allows it.
    #[serde(serialize_with = "shared")]
    pub policy: Arc<str>,
    /// Its rule; empty: none fitted.
    #[serde(skip_serializing_if = "str::is_empty", serialize_with = "shared")]
    pub rule: Arc<str>,
    /// `allow`, `deny` or `audit`.
    pub action: &'static str,
}

impl Event {
    /// Now; the rest is to be filled in.
    #[must_use]
    pub fn now(event: Kind, result: Outcome) -> Self {
        let (who, what) = (Who::default(), What::default());
        Self { at: SystemTime::now(), event, result, reason: "", who, what, policies: Vec::new() }
    }
}

/// A text that somebody else chose, at a bounded length.
#[must_use]
pub fn text(given: &str) -> String {
    given[..given.floor_char_boundary(LONGEST)].to_owned()
}

/// Where events go. Cheap to clone. Nothing is started, and costs anything, before the first event.
#[derive(Clone)]
pub struct Audit(Option<Arc<Inner>>);

type Ear = Box<dyn Fn(&Event) + Send + Sync>;

struct Inner {
    component: Component,
    out: Mutex<Option<Box<dyn Write + Send>>>,
    /// `None`: there is no writing here.
    lines: OnceLock<Option<Lines<Event>>>,
    dropped: Arc<dyn Fn() + Send + Sync>,
    also: OnceLock<Ear>,
}

impl Audit {
    /// Events go nowhere.
    #[must_use]
    pub const fn off() -> Self {
        Self(None)
    }

    /// To stdout; `dropped` is called for each event that nobody read fast enough.
    #[must_use]
    pub fn stdout(component: Component, dropped: impl Fn() + Send + Sync + 'static) -> Self {
        Self::to(component, std::io::stdout(), dropped)
    }

    /// To `out`, whole lines at a time.
    #[must_use]
    pub fn to(
        component: Component,
        out: impl Write + Send + 'static,
        dropped: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let out: Box<dyn Write + Send> = Box::new(out);
        let (out, lines, dropped) = (Mutex::new(Some(out)), OnceLock::new(), Arc::new(dropped));
        Self(Some(Arc::new(Inner { component, out, lines, dropped, also: OnceLock::new() })))
    }

    /// From now on `ear` hears each event too, whether or not it is written. It must not wait. Only the first one counts.
    pub fn also(&self, ear: impl Fn(&Event) + Send + Sync + 'static) {
        if let Some(inner) = &self.0 {
            let _ = inner.also.set(Box::new(ear));
        }
    }

    /// Whether anybody hears of an event. Who has to work to make one may ask before.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// It has happened. Never waits.
    pub fn event(&self, event: Event) {
        let Some(inner) = &self.0 else { return };
        if let Some(ear) = inner.also.get() {
            ear(&event);
        }
        match inner.lines.get_or_init(|| inner.start()) {
            Some(lines) => lines.send(event),
            None => (inner.dropped)(),
        }
    }

    /// Waits, not longer than this, until all events are written. Blocks: for the end of the process.
    pub fn flush(&self, patience: Duration) {
        if let Some(Some(lines)) = self.0.as_ref().and_then(|inner| inner.lines.get()) {
            lines.flush(patience);
        }
    }
}

impl Inner {
    fn start(&self) -> Option<Lines<Event>> {
        let out = self.out.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let component = self.component;
        let append = move |line: &mut Vec<u8>, event: &Event| append(line, component, event);
        Lines::to("audit", out, append, Arc::clone(&self.dropped)).ok()
    }
}

#[derive(Serialize)]
struct Line<'a> {
    log: &'static str,
    component: Component,
    #[serde(flatten)]
    event: &'a Event,
}

fn append(line: &mut Vec<u8>, component: Component, event: &Event) {
    let before = line.len();
    if serde_json::to_writer(&mut *line, &Line { log: LOG, component, event }).is_err() {
        // No half lines.
        line.truncate(before);
        return;
    }
    line.push(b'\n');
}

fn shared<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

fn moment<S: Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&timestamp(*at))
}

/// RFC 3339 in UTC with milliseconds, e.g. `2026-02-28T23:59:59.999Z`. The calendar: Howard Hinnant,
/// "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
#[must_use]
pub fn timestamp(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_millis()
    )
}
