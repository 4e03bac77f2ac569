//! Copies of requests for another cluster: sent once the body of the request has gone by whole, and forgotten. A copy is
//! never waited for, never tried again, and tells nothing of its endpoint but that a request is there; it takes a place of
//! its own cluster's breaker. What cannot be copied within bounds is dropped, never the request.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use rand::Rng;
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout_at};
use weft_api::names;

use super::body::Source;
use super::client::{self, Template, Wire};
use super::headers;
use super::pool::Destination;
use crate::balance;
use crate::metrics::Mirrored;
use crate::route::Mirror;
use crate::snapshot::Cluster;
use crate::worker::Worker;

/// Bodies up to this size are copied.
const MAX_BODY: usize = 64 * 1024;
/// Copies of one worker that wait for an answer.
const MAX_UNDER_WAY: u32 = 256;
/// For an answer to a copy of a request that has no deadline of its own.
const PATIENCE: Duration = Duration::from_secs(15);
const MARK: HeaderName = HeaderName::from_static(names::MIRROR_HEADER);

/// Draws whether this request is copied, and sees to it.
pub(super) fn begin(worker: &Rc<Worker>, mirror: &Mirror, template: &Template, deadline: Option<Instant>) {
    if mirror.percent < 100 && worker.with_rng(|rng| rng.random_range(0..100)) >= mirror.percent {
        return;
    }
    let body = template.body.copy(MAX_BODY);
    let mut head = template.headers.clone();
    head.insert(MARK, HeaderValue::from_static(names::MIRRORED));
    let mut copy = Template {
        method: template.method.clone(),
        uri: template.uri.clone(),
        headers: head,
        body: Source::empty(),
        version: template.version,
        repeatable: false,
        grpc_deadline: template.grpc_deadline,
        rule: None,
    };
    if copy.version == Wire::Http2 && mirror.cluster.tls.is_some() {
        headers::to_https(&mut copy.uri);
    }
    let (worker, cluster) = (Rc::clone(worker), Arc::clone(&mirror.cluster));
    // Not among the tasks that draining waits for.
    spawn_local(async move {
        let outcome = match body.await {
            Ok(body) => {
                copy.body = body;
                send(&worker, &cluster, &copy, deadline).await
            }
            Err(_) => Mirrored::Dropped,
        };
        worker.proxy.metrics.mirrored(&cluster.name, outcome);
    });
}

async fn send(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    copy: &Template,
    deadline: Option<Instant>,
) -> Mirrored {
    let (Some(_place), Ok(_permit)) = (Place::take(&worker.mirrored), cluster.breaker.request()) else {
        return Mirrored::Dropped;
    };
    let now = Instant::now();
    // Dropped without a report: what becomes of copies says nothing to those who balance the rest.
    let Ok(load) = worker.with_rng(|rng| balance::pick(cluster, None, &[], now, rng)) else {
        return Mirrored::Failed;
    };
    let to = Destination::of(&worker.proxy, cluster, &load.endpoint);
    let until = deadline.unwrap_or(now + PATIENCE);
    match timeout_at(until, client::send(worker, &to, copy, &|_| false)).await {
        Ok(Ok((response, held))) => {
            client::discard(worker, response, held);
            Mirrored::Answered
        }
        Ok(Err(_)) | Err(_) => Mirrored::Failed,
    }
}

/// One of the copies that may be under way.
struct Place<'a>(&'a Cell<u32>);

impl<'a> Place<'a> {
    fn take(count: &'a Cell<u32>) -> Option<Self> {
        (count.get() < MAX_UNDER_WAY).then(|| {
            count.set(count.get() + 1);
            Self(count)
        })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}
