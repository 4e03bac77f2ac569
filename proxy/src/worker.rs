//! One thread of the data path: its runtime, its accept loops, its pool of upstream connections. Nothing in it is shared
//! with other workers but what [`Proxy`] holds, so nothing in it needs a lock.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::spawn_local;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::balance::{self, Load, Outcome};
use crate::http::pool::Pool;
use crate::http::server::Leave;
use crate::listener::{Change, Key, Listening};
use crate::lost::Lost;
use crate::original_dst::OriginalDst;
use crate::outlier::Verdict;
use crate::proxy::{Leaving, Proxy};
use crate::record::Direction;
use crate::shed::{Shed, Want, is_out_of_files};
use crate::snapshot::{Cluster, Endpoint};
use crate::token::memory::Memory;
use crate::{inbound, memory, outbound};

/// How often connections that are not needed any more are looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// After so many sweeps the start is over, as far as this worker goes, and certificates and configuration have come.
const STARTED: [u64; 2] = [2, 30];
/// Wait after a failed accept: the usual causes (out of files or memory) pass by themselves.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// Connections that are accepted in a row.
const ACCEPTS_PER_TURN: u32 = 32;

/// What is left to do once it is known what a connection is, boxed: all that it holds for as long as it lasts.
pub(crate) type Rest<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// State of one worker.
pub struct Worker {
    /// What all workers share.
    pub proxy: Arc<Proxy>,
    /// Connections to upstreams.
    pub pool: Pool,
    /// Who notices peers that are gone without a word.
    pub(crate) lost: Lost,
    /// Set when the pod is stopping.
    pub drain: CancellationToken,
    /// What to do when there is no room.
    pub(crate) shed: Shed,
    cut_off: Cell<bool>,
    /// Copies of requests that are under way.
    pub(crate) mirrored: Cell<u32>,
    /// Tokens that were good a moment ago.
    pub(crate) tokens: RefCell<Memory>,
    rng: RefCell<SmallRng>,
    tasks: TaskTracker,
}

impl Worker {
    pub(crate) fn new(proxy: Arc<Proxy>, drain: CancellationToken) -> Rc<Self> {
        Rc::new(Self {
            proxy,
            pool: Pool::default(),
            lost: Lost::default(),
            drain,
            shed: Shed::default(),
            cut_off: Cell::new(false),
            mirrored: Cell::new(0),
            tokens: RefCell::default(),
            rng: RefCell::new(SmallRng::from_os_rng()),
            tasks: TaskTracker::new(),
        })
    }

    /// With the worker's source of randomness. It must not be used inside.
    pub fn with_rng<T>(&self, f: impl FnOnce(&mut SmallRng) -> T) -> T {
        f(&mut self.rng.borrow_mut())
    }

    /// Tells the balancer how an endpoint of a service does, and everybody what it makes of it.
    pub fn report(&self, service: &str, load: &mut Load, outcome: Outcome) {
        if let Some(verdict) = load.report(outcome) {
            self.tell(service, &load.endpoint, verdict);
        }
        if load.cluster().is_judged() {
            for (endpoint, verdict) in balance::judge(load.cluster(), Instant::now()) {
                self.tell(service, &endpoint, verdict);
            }
        }
    }

    /// An endpoint acknowledges nothing any more.
    pub(crate) fn gone(&self, cluster: &Cluster, endpoint: &Endpoint) {
        if let Some(verdict) = balance::gone(cluster, endpoint, Instant::now()) {
            self.tell(&cluster.name, endpoint, verdict);
        }
    }

    /// An endpoint could be connected after all.
    pub(crate) fn reached(&self, cluster: &Cluster, endpoint: &Endpoint) {
        if let Some(verdict) = balance::reached(cluster, endpoint, Instant::now()) {
            self.tell(&cluster.name, endpoint, verdict);
        }
    }

    fn tell(&self, service: &str, endpoint: &Endpoint, verdict: Verdict) {
        self.proxy.metrics.ejection(service, verdict);
        let (endpoint, pod) = (endpoint.addr, &*endpoint.pod);
        match verdict {
            Verdict::Ejected(cause, time) => {
                tracing::warn!(%service, %endpoint, pod, %cause, for_ms = time.as_millis(), "endpoint ejected");
            }
            Verdict::Kept(cause, time) => {
                tracing::info!(%service, %endpoint, pod, %cause, for_ms = time.as_millis(), "endpoint stays ejected");
            }
            Verdict::Returned => tracing::info!(%service, %endpoint, pod, "endpoint is back"),
        }
    }

    /// Runs a task that draining waits for.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        spawn_local(self.tasks.track_future(task));
    }

    /// How a client's connection is brought to its end.
    pub(crate) fn leaving(&self, direction: Direction) -> Option<Leave<'_>> {
        let patience = match (self.proxy.leaving, direction) {
            (Leaving::Pod, Direction::Outbound) => return None,
            (Leaving::Pod, Direction::Inbound) => Duration::ZERO,
            (Leaving::Gently(patience), _) => patience,
        };
        Some(Leave { drain: &self.drain, patience })
    }

    /// Accepts and serves until drained. In a pod: inbound until `drain`, outbound until nothing is open any more.
    pub(crate) async fn run(
        self: Rc<Self>,
        listeners: Vec<Listening>,
        mut changes: mpsc::Receiver<Change>,
        places: Arc<Semaphore>,
        exit: CancellationToken,
    ) {
        let mut accepting =
            Accepting { worker: Rc::clone(&self), places, exit: exit.clone(), open: HashMap::new() };
        for listening in listeners {
            accepting.apply(Change::Open(listening));
        }
        spawn_local(async move {
            while let Some(change) = changes.recv().await {
                accepting.apply(change);
            }
        });
        let looking = Rc::clone(&self);
        spawn_local(async move { looking.look_at_memory().await });
        let sweeping = Rc::clone(&self);
        spawn_local(async move { sweeping.sweep().await });
        let looking = Rc::clone(&self);
        spawn_local(async move { looking.lost.run().await });
        let counting = Rc::clone(&self);
        spawn_local(async move { counting.count_tasks().await });
        let drained = async {
            self.drain.cancelled().await;
            self.tasks.close();
            self.tasks.wait().await;
        };
        if exit.run_until_cancelled(drained).await.is_none() {
            // What is open is dropped with the runtime.
            self.cut_off.set(true);
        }
    }

    async fn count_tasks(&self) {
        let (runtime, mut tasks) = (tokio::runtime::Handle::current().metrics(), 0);
        loop {
            let before = std::mem::replace(&mut tasks, runtime.num_alive_tasks());
            self.proxy.metrics.tasks(tasks, before);
            tokio::time::sleep(SWEEP).await;
        }
    }

    /// Whether what ends now was cut off because draining took too long.
    pub(crate) const fn cuts_off(&self) -> bool {
        self.cut_off.get()
    }

    async fn accept(
        self: Rc<Self>,
        direction: Direction,
        listener: TcpListener,
        original_dst: OriginalDst,
        places: Arc<Semaphore>,
    ) {
        let mut turn = 0;
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    if turn >= ACCEPTS_PER_TURN {
                        // Those who are being served have their turn too, however many come.
                        turn = 0;
                        tokio::task::yield_now().await;
                    }
                    turn += 1;
                    if self.shed.memory_is_short() {
                        self.refuse(stream, direction, Want::Memory);
                        continue;
                    }
                    let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                        self.refuse(stream, direction, Want::Connections);
                        continue;
                    };
                    let connection = Connection::open(&self.proxy, direction, place);
                    // Fails only when the client is gone already; the first read will tell.
                    let _ = stream.set_nodelay(true);
                    let (worker, original_dst) = (Rc::clone(&self), original_dst.clone());
                    self.spawn(async move {
                        serve(&worker, direction, stream, peer, &original_dst).await;
                        drop(connection);
                    });
                }
                Err(e) if is_of_one_connection(&e) => {}
                Err(e) if is_out_of_files(&e) => {
                    self.out_of_files(&listener, direction);
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
                Err(e) => {
                    tracing::warn!(direction = direction.as_str(), error = %e, "cannot accept");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }

    async fn sweep(&self) {
        let mut changed = self.proxy.store.changed();
        let mut tick = tokio::time::interval(SWEEP);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut tide, mut ticks) = (memory::Tide::default(), 0_u64);
        loop {
            tokio::select! {
                _ = tick.tick() => ticks += 1,
                Ok(()) = changed.changed() => {}
            }
            self.pool.sweep();
            if STARTED.contains(&ticks) {
                memory::forget_code();
            }
            if tide.has_gone_out(self.tasks.len()) {
                memory::give_back();
                memory::forget_code();
            }
        }
    }
}

/// Serves one connection to its end.
async fn serve(
    worker: &Rc<Worker>,
    direction: Direction,
    client: TcpStream,
    peer: SocketAddr,
    original_dst: &OriginalDst,
) {
    // Boxed, and gone before the rest begins: a connection that lasts shall not hold the room for its beginning.
    let rest = match direction {
        Direction::Inbound => Box::pin(inbound::begin(worker, client, peer, original_dst)).await,
        Direction::Outbound => Box::pin(outbound::begin(worker, client, peer, original_dst)).await,
    };
    if let Some(rest) = rest {
        rest.await;
    }
}

/// The listeners of one worker.
struct Accepting {
    worker: Rc<Worker>,
    places: Arc<Semaphore>,
    exit: CancellationToken,
    open: HashMap<Key, CancellationToken>,
}

impl Accepting {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Open(listening) => self.open(listening),
            Change::Close(key) => {
                if let Some(stop) = self.open.remove(&key) {
                    stop.cancel();
                }
            }
        }
    }

    fn open(&mut self, listening: Listening) {
        let Listening { key, original_dst, socket } = listening;
        let listener = match TcpListener::from_std(socket) {
            Ok(listener) => listener,
            Err(e) => return tracing::error!(address = %key.1, error = %e, "cannot accept on a listener"),
        };
        let end = match (self.worker.proxy.leaving, key.0) {
            (Leaving::Pod, Direction::Outbound) => &self.exit,
            _ => &self.worker.drain,
        };
        // More than one of a kind, where another process with more workers has handed its sockets over.
        let stop = self.open.entry(key).or_insert_with(|| end.child_token()).clone();
        let accepting =
            Rc::clone(&self.worker).accept(key.0, listener, original_dst, Arc::clone(&self.places));
        spawn_local(async move { stop.run_until_cancelled(accepting).await });
    }
}

/// accept(2): these are errors of the connection that was about to be accepted, not of the listener.
fn is_of_one_connection(e: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(e.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// An accepted connection's place, and its count.
struct Connection {
    proxy: Arc<Proxy>,
    direction: Direction,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    fn open(proxy: &Arc<Proxy>, direction: Direction, place: OwnedSemaphorePermit) -> Self {
        proxy.metrics.connection_opened(direction);
        Self { proxy: Arc::clone(proxy), direction, _place: place }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.proxy.metrics.connection_closed(self.direction);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access_log::AccessLog;
    use crate::metrics::Metrics;
    use crate::store::SnapshotStore;
    use crate::tls::Tls;

    /// A connection that lasts holds this beside what it turned out to be, so it is not to grow unnoticed.
    #[tokio::test]
    async fn the_task_of_a_connection_is_small() {
        let metrics = Arc::new(Metrics::new());
        let proxy = Proxy {
            store: Arc::new(SnapshotStore::new()),
            tls: Arc::new(Tls::new()),
            metrics,
            access_log: AccessLog::off(),
            traces: crate::trace::Traces::off(),
            audit: weft_api::audit::Audit::off(),
            identity: Arc::new(crate::testing::identity("shop", "front")),
            pod_ips: Vec::new(),
            max_connections: 1,
            original_dst: OriginalDst::Kernel,
            interception: Arc::default(),
            leaving: Leaving::Pod,
            memory_limit: None,
        };
        let worker = Worker::new(Arc::new(proxy), CancellationToken::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let stream = || async { TcpStream::connect(addr).await.unwrap() };
        for direction in [Direction::Inbound, Direction::Outbound] {
            let size = size_of_val(&serve(&worker, direction, stream().await, addr, &OriginalDst::Kernel));
            assert!(size <= 192, "{}: {size} bytes", direction.as_str());
        }
    }
}
