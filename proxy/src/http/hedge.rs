//! Tries beside each other: when no answer to a safe request has come for a while, it is sent to another endpoint too, and
//! the first good answer wins. Each further try takes from the service's retry budget and from `maxRetries`. What
//! loses is cancelled. It decides nothing about trying again after all of them have failed.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use futures::future::LocalBoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep};

use super::client::{self, Failure, Template};
use super::clock::Clock;
use super::exchange::Answer;
use super::judge::{judge, outcome_of, refuses};
use super::outbound::try_once;
use super::pool::Destination;
use crate::balance::{self, Load, Outcome};
use crate::breaker::Permit;
use crate::metrics::Retried;
use crate::retry::Failed;
use crate::route::{Hedge, Route};
use crate::snapshot::{Cluster, Service};
use crate::worker::Worker;

/// Whether a request may be under way twice: its method is safe (RFC 9110 section 9.2.1) and it has no body.
pub(super) fn is_safe(template: &Template) -> bool {
    template.method.is_safe() && template.body.is_empty()
}

/// One request, and all tries of it that are under way.
pub(super) struct Race<'a> {
    pub(super) worker: &'a Rc<Worker>,
    pub(super) service: &'a Service,
    pub(super) cluster: &'a Arc<Cluster>,
    pub(super) key: Option<u64>,
    pub(super) route: &'a Route,
    pub(super) template: &'a Template,
    pub(super) hedge: Hedge,
}

/// The try that has decided the race.
pub(super) struct Ended {
    pub(super) load: Load,
    pub(super) permit: Option<Permit>,
    pub(super) sent: Result<Answer, Failure>,
}

/// A try under way. Dropped before it has ended, it has taken at least as long as that.
struct Entrant {
    load: Option<Load>,
    permit: Option<Permit>,
    mtls: bool,
}

type Ran = (usize, Result<Answer, Failure>);

impl Race<'_> {
    /// Runs it, the first try to `to`, until one wins, all have failed, or time is up.
    pub(super) async fn run(
        &self,
        load: Load,
        to: Destination,
        permit: Option<Permit>,
        tried: &mut Vec<SocketAddr>,
        clock: Option<&mut Clock>,
    ) -> Result<Ended, Failure> {
        let mut racing = Box::pin(self.race(load, to, permit, tried));
        let Some(clock) = clock else { return Ok(racing.await) };
        clock.touch();
        poll_fn(|cx| match racing.as_mut().poll(cx) {
            Poll::Ready(ended) => Poll::Ready(Ok(ended)),
            Poll::Pending => clock
                .poll(cx)
                .map(|reason| Err(Failure { failed: Failed::PerTryTimeout, error: reason.into() })),
        })
        .await
    }

    async fn race(
        &self,
        load: Load,
        to: Destination,
        permit: Option<Permit>,
        tried: &mut Vec<SocketAddr>,
    ) -> Ended {
        let mut entrants = Vec::with_capacity(2);
        let mut running = FuturesUnordered::new();
        self.enter(&mut entrants, &running, tried, load, to, permit);
        let mut more = self.hedge.max_attempts.saturating_sub(1);
        let mut next = pin!(sleep(self.hedge.delay));
        loop {
            tokio::select! {
                biased;
                Some((index, sent)) = running.next() => {
                    let Some(mut entrant) = entrants.get_mut(index).and_then(Option::take) else { continue };
                    let Some(load) = entrant.load.take() else { continue };
                    if self.has_failed(&sent, entrant.mtls) && !running.is_empty() {
                        self.falls(load, entrant.mtls, sent);
                        continue;
                    }
                    if index > 0 && sent.is_ok() {
                        self.worker.proxy.metrics.hedge_won(&self.service.key);
                    }
                    return Ended { load, permit: entrant.permit.take(), sent };
                }
                () = next.as_mut(), if more > 0 => match self.another(tried) {
                    Some((load, permit)) => {
                        let to = Destination::of(&self.worker.proxy, self.cluster, &load.endpoint);
                        self.enter(&mut entrants, &running, tried, load, to, Some(permit));
                        more -= 1;
                        next.as_mut().reset(Instant::now() + self.hedge.delay);
                    }
                    None => more = 0,
                },
            }
        }
    }

    fn enter<'s>(
        &'s self,
        entrants: &mut Vec<Option<Entrant>>,
        running: &FuturesUnordered<LocalBoxFuture<'s, Ran>>,
        tried: &mut Vec<SocketAddr>,
        load: Load,
        to: Destination,
        permit: Option<Permit>,
    ) {
        let index = entrants.len();
        tried.push(to.addr());
        entrants.push(Some(Entrant { load: Some(load), permit, mtls: to.identity().is_some() }));
        running.push(Box::pin(async move {
            // The others are elsewhere already.
            (index, try_once(self.worker, &to, self.template, self.route, None, &|_| false).await)
        }));
    }

    /// Another endpoint, if there is one and the limits on retries allow it.
    fn another(&self, tried: &[SocketAddr]) -> Option<(Load, Permit)> {
        let now = Instant::now();
        let load = self.worker.with_rng(|rng| balance::pick(self.cluster, self.key, tried, now, rng)).ok()?;
        if tried.contains(&load.endpoint.addr) {
            return None;
        }
        let metrics = &self.worker.proxy.metrics;
        if !self.service.live.budget.withdraw(&self.route.retry, now) {
            metrics.hedge(&self.service.key, Retried::BudgetSpent);
            return None;
        }
        let Some(permit) = self.route.admit_retry(self.cluster) else {
            metrics.hedge(&self.service.key, Retried::BreakerOpen);
            return None;
        };
        metrics.hedge(&self.service.key, Retried::Sent);
        Some((load, permit))
    }

    fn has_failed(&self, sent: &Result<Answer, Failure>, mtls: bool) -> bool {
        sent.as_ref().map_or(true, |answer| judge(answer, mtls, &self.route.retry).is_some())
    }

    /// It has failed while others are still running.
    fn falls(&self, mut load: Load, mtls: bool, sent: Result<Answer, Failure>) {
        let outcome = match sent {
            Err(Failure { failed, error }) => outcome_of(failed, &error, self.template),
            Ok(answer) => {
                let (judged, refuses) = (judge(&answer, mtls, &self.route.retry), refuses(&answer));
                client::discard(self.worker, answer.response, answer.held);
                match judged {
                    Some((_, Some(failure))) => Outcome::Failure(failure),
                    _ if refuses => Outcome::Refused,
                    _ => Outcome::Success { latency: load.started().elapsed() },
                }
            }
        };
        self.worker.report(&self.service.key, &mut load, outcome);
    }
}

impl Drop for Entrant {
    fn drop(&mut self) {
        if let Some(load) = &self.load {
            load.outlasted();
        }
    }
}
