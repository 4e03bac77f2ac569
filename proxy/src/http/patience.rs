//! Opens a connection for a request, and gives up waiting for it early when the request could be served elsewhere. What was
//! given up goes on by itself, and is kept when it comes about after all. It chooses no other endpoint.
//!
//! Without it, an endpoint behind which packets are dropped would cost every request `connectTimeout`. Patience is three times
//! what connecting to the cluster usually takes, and never less than [`LEAST`]: far endpoints and busy nodes are waited for.
//! The idea is that of RFC 8305 (Happy Eyeballs), which begins a second attempt after 250 ms.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use weft_api::Reason;

use super::client::Elsewhere;
use super::pool::Destination;
use crate::breaker::Permit;
use crate::connect::{self, Counted};
use crate::error::Error;
use crate::retry::Failed;
use crate::tls::Alpn;
use crate::worker::Worker;

/// Nobody is given up earlier.
pub(crate) const LEAST: Duration = Duration::from_millis(250);
/// Times what is usual.
const FACTOR: u32 = 3;

/// How long connecting to a cluster's endpoints usually takes: a moving average, of the last eight or so.
#[derive(Debug, Default)]
pub(crate) struct Usual(AtomicU32);

impl Usual {
    /// It took so long.
    pub(crate) fn observe(&self, took: Duration) {
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX).max(1);
        let next = |usual: u32| match usual {
            0 => took,
            usual if took >= usual => usual + (took - usual) / 8,
            usual => (usual - (usual - took) / 8).max(1),
        };
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |usual| Some(next(usual)));
    }

    /// How long to wait while there is somebody else to go to.
    pub(crate) fn patience(&self) -> Duration {
        (Duration::from_micros(self.0.load(Ordering::Relaxed).into()) * FACTOR).max(LEAST)
    }
}

/// An attempt that nobody waits for any more.
pub(crate) struct Late(Pin<Box<dyn Future<Output = Result<Counted, Error>>>>);

impl Late {
    /// Waits for its end; the endpoint that could be connected after all is back in balancing.
    pub(crate) async fn opened(self, worker: &Worker, to: &Destination) -> Option<Counted> {
        let opened = self.0.await.ok()?;
        if let Destination::Endpoint { cluster, endpoint, .. } = to {
            worker.reached(cluster, endpoint);
        }
        Some(opened)
    }
}

/// What a request gets whose patience has ended.
pub(crate) fn too_slow() -> Error {
    Error::new(Reason::ConnectTimeout, TooSlow)
}

#[derive(Debug, thiserror::Error)]
#[error("connecting takes longer than it usually does, and there are other endpoints")]
struct TooSlow;

/// Opens; `Err` inside: it takes too long, and the request may go elsewhere.
pub(crate) async fn open(
    worker: &Rc<Worker>,
    to: &Destination,
    alpn: Alpn,
    permit: Option<Permit>,
    elsewhere: Elsewhere<'_>,
) -> Result<Result<Counted, Late>, Error> {
    let (worker, destination) = (Rc::clone(worker), to.clone());
    let mut opening = Box::pin(async move {
        let (proxy, to, begin) = (&worker.proxy, &destination, Instant::now());
        let stream = match to.originate() {
            Some(originate) => originate.open(to.addr(), alpn, to.connect_timeout()).await?,
            None => connect::open(&proxy.tls, to.addr(), to.identity(), alpn, to.connect_timeout()).await?,
        };
        let counted = Counted::new(proxy, stream).with_place(permit, &worker.pool.freed);
        Ok(match to {
            Destination::Endpoint { cluster, .. } => {
                cluster.live.usual.observe(begin.elapsed());
                counted.watch(to.identity().is_some())
            }
            Destination::App(_) => counted,
        })
    });
    let patience = match to {
        Destination::Endpoint { cluster, .. } => cluster.live.usual.patience(),
        Destination::App(_) => return opening.await.map(Ok),
    };
    if patience >= to.connect_timeout() {
        return opening.await.map(Ok);
    }
    tokio::select! {
        biased;
        opened = &mut opening => return opened.map(Ok),
        () = sleep(patience) => {}
    }
    if elsewhere(Failed::Connect) { Ok(Err(Late(opening))) } else { opening.await.map(Ok) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_follows_what_is_usual_and_never_ends_early() {
        let usual = Usual::default();
        assert_eq!(usual.patience(), LEAST);
        usual.observe(Duration::from_millis(1));
        assert_eq!(usual.patience(), LEAST);
        // One that was slow is no reason to wait three times as long for the next.
        usual.observe(Duration::from_millis(500));
        assert_eq!(usual.patience(), LEAST);
        for _ in 0..40 {
            usual.observe(Duration::from_millis(300));
        }
        assert!((850..=900).contains(&usual.patience().as_millis()), "{:?}", usual.patience());
        for _ in 0..60 {
            usual.observe(Duration::from_micros(700));
        }
        assert_eq!(usual.patience(), LEAST);
        usual.observe(Duration::MAX);
        usual.observe(Duration::ZERO);
    }
}
