//! Who leads: one holder of a Lease. Others take it over when it has not been renewed for its duration, measured by their own
//! clock from when they saw it change (as client-go does), so that clocks of nodes may differ. Released on shutdown.
//! Two may never lead: a holder that cannot renew stops leading before the Lease runs out.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use weft_api::names;

const DURATION: Duration = Duration::from_secs(15);
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);

/// The Lease as a candidate sees it.
struct Candidate {
    api: Api<Lease>,
    holder: String,
    /// What was seen last, and when it was first seen so.
    seen: Option<(LeaseSpec, Instant)>,
}

/// What to do about the Lease.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// There is none.
    Create,
    /// It is ours.
    Renew,
    /// It is free, or has run out.
    Take,
    /// Somebody else holds it.
    Wait,
}

/// Leads whenever it can, until told to stop. `work` runs while leading and must end soon after its token is cancelled.
pub async fn lead<F: Future<Output = ()>>(
    client: Client,
    namespace: &str,
    holder: &str,
    stop: CancellationToken,
    work: impl Fn(CancellationToken) -> F,
) {
    let mut candidate =
        Candidate { api: Api::namespaced(client, namespace), holder: holder.to_owned(), seen: None };
    loop {
        let acquired = tokio::select! {
            () = stop.cancelled() => false,
            () = candidate.acquire() => true,
        };
        if !acquired {
            return;
        }
        tracing::info!(holder, "leading");
        let term = CancellationToken::new();
        {
            let mut working = std::pin::pin!(work(term.clone()));
            tokio::select! {
                () = stop.cancelled() => {}
                () = candidate.keep() => tracing::error!("the Lease could not be renewed: not leading any more"),
                () = &mut working => tracing::error!("the leader's work ended by itself; beginning it anew"),
            }
            term.cancel();
            if timeout(RETRY, working).await.is_err() {
                tracing::warn!("the leader's work did not end in time");
            }
        }
        if stop.is_cancelled() {
            candidate.release().await;
            return;
        }
        sleep(RETRY).await;
    }
}

impl Candidate {
    async fn acquire(&mut self) {
        loop {
            match self.attempt().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::warn!(error = %error, "cannot read or write the Lease"),
            }
            // Not all at the same moment.
            sleep(RETRY.mul_f64(rand::random_range(0.8..1.2))).await;
        }
    }

    /// Renews until it fails for too long.
    async fn keep(&mut self) {
        let mut renewed = Instant::now();
        while renewed.elapsed() < RENEW_DEADLINE {
            sleep(RETRY).await;
            match timeout(RETRY * 2, self.attempt()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => return,
                Ok(Err(error)) => tracing::warn!(error = %error, "cannot renew the Lease"),
                Err(_) => tracing::warn!("cannot renew the Lease: the API server does not answer"),
            }
        }
    }

    /// One step; true when the Lease is ours after it.
    async fn attempt(&mut self) -> kube::Result<bool> {
        let found = self.api.get_opt(names::OPERATOR).await?;
        let spec = found.as_ref().map(|l| l.spec.clone().unwrap_or_default());
        let now = Instant::now();
        if let Some(spec) = &spec
            && self.seen.as_ref().is_none_or(|(seen, _)| seen != spec)
        {
            self.seen = Some((spec.clone(), now));
        }
        let since = self.seen.as_ref().map_or(now, |(_, since)| *since);
        let step = decide(spec.as_ref(), now.duration_since(since), &self.holder);
        let written = match step {
            Step::Wait => return Ok(false),
            Step::Create => {
                let lease = Lease { metadata: self.metadata(), spec: Some(self.held(None)) };
                self.api.create(&PostParams::default(), &lease).await
            }
            Step::Renew | Step::Take => {
                let mut lease = found.unwrap_or_default();
                lease.spec = Some(self.held(spec.as_ref()));
                // With the resourceVersion that was read: of two that take it, one is refused.
                self.api.replace(names::OPERATOR, &PostParams::default(), &lease).await
            }
        };
        match written {
            Ok(lease) => {
                self.seen = Some((lease.spec.unwrap_or_default(), now));
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn metadata(&self) -> ObjectMeta {
        ObjectMeta {
            name: Some(names::OPERATOR.into()),
            labels: Some([(names::MANAGED_BY.to_owned(), names::OPERATOR.to_owned())].into()),
            ..ObjectMeta::default()
        }
    }

    fn held(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let own = before.is_some_and(|b| b.holder_identity.as_deref() == Some(&self.holder));
        let transitions = before.and_then(|b| b.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.holder.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: before
                .filter(|_| own)
                .and_then(|b| b.acquire_time.clone())
                .or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(if own || before.is_none() {
                transitions
            } else {
                transitions.saturating_add(1)
            }),
            ..LeaseSpec::default()
        }
    }

    async fn release(&mut self) {
        let attempt = async {
            let Some(mut lease) = self.api.get_opt(names::OPERATOR).await? else { return Ok(()) };
            let mut spec = lease.spec.unwrap_or_default();
            if spec.holder_identity.as_deref() != Some(&self.holder) {
                return Ok(());
            }
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            spec.renew_time = Some(MicroTime(Timestamp::now()));
            lease.spec = Some(spec);
            self.api.replace(names::OPERATOR, &PostParams::default(), &lease).await.map(|_| ())
        };
        match timeout(RETRY, attempt).await {
            Ok(Ok(())) => tracing::info!("released the Lease"),
            Ok(Err(error)) => {
                let error: kube::Error = error;
                tracing::warn!(error = %error, "cannot release the Lease; it will run out");
            }
            Err(_) => tracing::warn!("cannot release the Lease in time; it will run out"),
        }
    }
}

/// `unchanged`: for how long the Lease has been seen as it is.
fn decide(spec: Option<&LeaseSpec>, unchanged: Duration, holder: &str) -> Step {
    let Some(spec) = spec else { return Step::Create };
    match spec.holder_identity.as_deref() {
        None | Some("") => Step::Take,
        Some(other) if other == holder => Step::Renew,
        Some(_) => {
            let seconds = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(0);
            if unchanged > Duration::from_secs(seconds) { Step::Take } else { Step::Wait }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(holder: &str) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_lease_is_taken_only_when_free_or_unchanged_for_its_duration() {
        let s = Duration::from_secs;
        assert_eq!(decide(None, s(0), "a"), Step::Create);
        assert_eq!(decide(Some(&held_by("a")), s(100), "a"), Step::Renew);
        assert_eq!(decide(Some(&held_by("b")), s(15), "a"), Step::Wait);
        assert_eq!(decide(Some(&held_by("b")), s(16), "a"), Step::Take);
        assert_eq!(decide(Some(&held_by("")), s(0), "a"), Step::Take);
    }
}
