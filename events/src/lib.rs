//! Kubernetes Events (events.k8s.io/v1) of what auditors hear, for those parts of Weft that may write them. What is said of what,
//! they decide; here equal notes become one Event with a count ([`sums`], pure), and are written ([`write`]). Nobody ever waits:
//! what there is no room for is counted.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::mpsc;

pub mod sums;
pub mod write;

use write::Writer;

/// Notes that wait to be summed.
const WAITING: usize = 1024;
/// Longest text, in bytes; the API's bound is 1024.
const LONGEST: usize = 1000;

/// What an Event is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Regarding {
    /// API version, such as `v1`.
    pub api_version: &'static str,
    /// Kind.
    pub kind: String,
    /// Its namespace, in which the Event is written.
    pub namespace: String,
    /// Its name. There need not be such an object (any more).
    pub name: String,
    /// Its uid, by which `kubectl describe` finds the Event; empty: not known.
    pub uid: String,
}

/// Something to be told. Equal ones are one Event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Note {
    /// Of what.
    pub regarding: Regarding,
    /// Whether it is a warning.
    pub warning: bool,
    /// Why, in one word such as `CertificateIssued`.
    pub reason: &'static str,
    /// What was done, in one word such as `Sign`.
    pub action: &'static str,
    /// A sentence.
    pub text: String,
}

impl Note {
    /// The text on one line, at a length that the API takes.
    fn bounded(mut self) -> Self {
        self.text.truncate(self.text.floor_char_boundary(LONGEST));
        if self.text.contains(char::is_control) {
            self.text = self.text.replace(char::is_control, " ");
        }
        self
    }
}

/// Whether a namespace may have that name (RFC 1123, as the API server wants it).
fn is_label(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// What becomes of what is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// An Event counts it.
    Written,
    /// No Event does.
    Dropped,
}

type Count = Arc<dyn Fn(Fate, u64) + Send + Sync>;

/// Where notes are told. Cheap to clone.
#[derive(Clone)]
pub struct Sink(Option<(mpsc::Sender<Heard>, Count)>);

/// A note, how often it is to be counted, and when it was so last.
#[derive(Debug)]
struct Heard {
    note: Note,
    times: u64,
    at: SystemTime,
}

impl Sink {
    /// Nothing is written.
    #[must_use]
    pub const fn off() -> Self {
        Self(None)
    }

    /// With what writes; `count` hears what becomes of each thing that was told.
    #[must_use]
    pub fn new(count: impl Fn(Fate, u64) + Send + Sync + 'static) -> (Self, Writer) {
        let count: Count = Arc::new(count);
        let (sender, from) = mpsc::channel(WAITING);
        (Self(Some((sender, Arc::clone(&count)))), Writer::new(from, count))
    }

    /// Has it written that this was so `times` times until now. Never waits.
    pub fn tell(&self, note: Note, times: u64) {
        let Some((sender, count)) = &self.0 else { return };
        // It becomes a part of the path that is asked for, and who made it up may have meant another path.
        let place = sender.try_reserve().ok().filter(|_| is_label(&note.regarding.namespace));
        match place {
            Some(place) => place.send(Heard { note: note.bounded(), times, at: SystemTime::now() }),
            None => count(Fate::Dropped, times),
        }
    }

    /// Counts what cannot be told.
    pub fn lose(&self, times: u64) {
        if let Some((_, count)) = &self.0
            && times > 0
        {
            count(Fate::Dropped, times);
        }
    }
}
