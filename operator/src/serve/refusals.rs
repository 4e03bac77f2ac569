//! Certificates that were refused to a pod whose token was believed, as Events of that pod, so that `kubectl describe pod` says why its
//! proxy does not get ready. Bounded: an Event of a pod in a minute, and few of all of them; what is beyond is in log, metric and
//! audit events alone. Of a token that nobody believes there is no pod to write of.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::pace::Pace;
use super::review::BoundPod;
use crate::leader::events::{About, Events};

/// Events of one pod.
const OF_A_POD: (u32, Duration) = (1, Duration::from_secs(60));
/// Of all of them.
const OF_ALL: (u32, Duration) = (20, Duration::from_secs(2));
/// Refusals that wait to be written.
const WAITING: usize = 64;

/// A refusal.
#[derive(Debug)]
pub struct Refusal {
    /// Whose token it was.
    pub pod: BoundPod,
    /// What it was told.
    pub why: String,
}

/// Where refusals are told. Never waits.
#[derive(Debug)]
pub struct Refusals(mpsc::Sender<Refusal>);

impl Refusals {
    /// With the end where they come out.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Refusal>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), receiver)
    }

    /// One more, if there is room.
    pub fn tell(&self, pod: &BoundPod, why: &str) {
        if let Ok(place) = self.0.try_reserve() {
            place.send(Refusal { pod: pod.clone(), why: why.to_owned() });
        }
    }
}

/// Which of them are written.
#[derive(Debug)]
pub struct Bounds {
    pods: Pace<String>,
    all: Pace<()>,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { pods: Pace::new(OF_A_POD.0, OF_A_POD.1), all: Pace::new(OF_ALL.0, OF_ALL.1) }
    }
}

impl Bounds {
    /// Whether one of this pod is.
    pub fn admit(&self, uid: &str, now: Instant) -> bool {
        // The pods' first: one that cries must not use up what is there for others.
        self.pods.take(uid.to_owned(), now).is_ok() && self.all.take((), now).is_ok()
    }
}

/// Writes them, for ever.
pub async fn write(mut refusals: mpsc::Receiver<Refusal>, events: Events) {
    let bounds = Bounds::default();
    while let Some(Refusal { pod, why }) = refusals.recv().await {
        if bounds.admit(&pod.uid, Instant::now()) {
            let about = About { version: "v1", kind: "Pod", key: pod.key, uid: pod.uid };
            let note = format!("the operator refused a certificate to this pod's proxy: {why}");
            events.write(&about, true, "CertificateRefused", "Sign", &note).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_a_pod_in_a_minute_and_few_of_all_and_one_that_cries_takes_nothing_from_others() {
        let (bounds, now) = (Bounds::default(), Instant::now());
        assert!(bounds.admit("mad", now));
        for _ in 0..1000 {
            assert!(!bounds.admit("mad", now));
        }
        let others = (0..100).filter(|n| bounds.admit(&format!("pod-{n}"), now)).count();
        assert_eq!(others, OF_ALL.0 as usize - 1);
        let later = now + OF_A_POD.1;
        assert!(bounds.admit("mad", later));
    }

    #[tokio::test]
    async fn nobody_waits_for_whoever_writes_them() {
        let (told, mut heard) = Refusals::new();
        let pod = BoundPod {
            key: crate::index::Key::new("shop", "back-1"),
            uid: "u".into(),
            service_account: "back".into(),
        };
        for _ in 0..10 * WAITING {
            told.tell(&pod, "too many");
        }
        drop(told);
        let mut count = 0;
        while heard.recv().await.is_some() {
            count += 1;
        }
        assert_eq!(count, WAITING);
    }
}
