//! `weft-proxy run`: builds the parts, starts their threads, and brings the process to its end. The data path has the
//! calling thread and its workers; certificates and configuration have a thread, and so has the admin API, so that
//! neither ever stalls traffic. It serves nothing itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use weft_api::audit::{Audit, Component};

use crate::access_log::AccessLog;
use crate::admin::{self, Admin};
use crate::checks::Checker;
use crate::control::{Control, Names};
use crate::decisions::Decisions;
use crate::identity;
use crate::listener::{self, Bound, Listen};
use crate::logging::{self, LogLevel};
use crate::memory;
use crate::metrics::Metrics;
use crate::original_dst::OriginalDst;
use crate::proxy::{Leaving, Proxy};
use crate::settings::Settings;
use crate::status::Status;
use crate::store::SnapshotStore;
use crate::tls::Tls;
use crate::trace;

/// After `exit` everything is closed at once; a worker that still hangs is not waited for.
const EXIT_PATIENCE: Duration = Duration::from_secs(5);
pub(crate) const LOG_PATIENCE: Duration = Duration::from_secs(1);
/// How often it is looked whether the data path listens, at the start.
const LISTENING: Duration = Duration::from_millis(10);
/// A connection has two ends; the rest is for the control plane, admin and probes.
const SPARE_FILES: u64 = 512;

/// Runs until told to stop. The first stop signal drains, the second one ends at once.
pub fn run(settings: Settings) -> anyhow::Result<()> {
    let log = logging::start(&settings.log).context("cannot start logging")?;
    let max_connections = connections_within_files(settings.max_connections);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), cryptography = weft_api::crypto::MODULE, identity = %settings.identity, "starting");

    let settings = Arc::new(settings);
    let metrics = Arc::new(Metrics::new());
    let access_log = match settings.access_log {
        true => AccessLog::stdout(Arc::clone(&metrics)).context("cannot start the access log")?,
        false => AccessLog::off(),
    };
    let audit = match settings.audit {
        true => audit_to_stdout(&metrics),
        false => Audit::off(),
    };
    let decisions = Arc::new(Decisions::default());
    let heard = Arc::clone(&decisions);
    audit.also(move |event| heard.hear(event));
    let parts = Parts {
        store: Arc::new(SnapshotStore::new()),
        tls: Arc::new(Tls::new()),
        status: Arc::new(Status::new(Arc::clone(&metrics)).redirected(settings.ports.check)),
        metrics,
        settings,
        decisions,
    };
    let (drain, exit) = (CancellationToken::new(), CancellationToken::new());
    parts.start_admin(log)?;
    parts.start_control(&drain, &exit)?;

    let pod = &parts.settings.pod;
    let resource = trace::Resource {
        store: Arc::clone(&parts.store),
        name: parts.settings.identity.service_account.clone(),
        namespace: pod.namespace.clone(),
        pod: pod.name.clone(),
        uid: pod.uid.clone(),
    };
    let traces = trace::start(parts.settings.tracing.as_ref(), resource, Arc::clone(&parts.metrics))
        .context("cannot start the tracing")?;
    let proxy = Arc::new(Proxy {
        store: Arc::clone(&parts.store),
        tls: Arc::clone(&parts.tls),
        metrics: Arc::clone(&parts.metrics),
        access_log,
        traces,
        audit,
        identity: Arc::new(parts.settings.identity.clone()),
        pod_ips: parts.settings.pod.ips.clone(),
        max_connections,
        original_dst: OriginalDst::default(),
        interception: Arc::clone(&parts.status.interception),
        leaving: Leaving::Pod,
        memory_limit: parts.settings.memory_limit.or_else(memory::limit_of_group),
    });
    let listen = Listen {
        outbound: parts.settings.ports.outbound,
        inbound: parts.settings.ports.inbound,
        workers: parts.settings.workers,
        loopback: false,
    };
    let bound = |bound: Bound| {
        tracing::info!(outbound = %bound.outbound, inbound = %bound.inbound, "listening");
        parts.status.listening.store(true, Ordering::Relaxed);
    };
    let served = listener::serve(&proxy, listen, bound, &drain, &exit).context("the data path failed");
    proxy.access_log.flush(LOG_PATIENCE);
    proxy.traces.flush(LOG_PATIENCE);
    proxy.audit.flush(LOG_PATIENCE);
    tracing::info!("stopped");
    served
}

/// Events for auditors are lines on stdout, beside those of the access log.
pub(crate) fn audit_to_stdout(metrics: &Arc<Metrics>) -> Audit {
    let metrics = Arc::clone(metrics);
    Audit::stdout(Component::Proxy, move || metrics.audit_dropped())
}

struct Parts {
    settings: Arc<Settings>,
    store: Arc<SnapshotStore>,
    tls: Arc<Tls>,
    status: Arc<Status>,
    metrics: Arc<Metrics>,
    decisions: Arc<Decisions>,
}

impl Parts {
    fn start_admin(&self, log: LogLevel) -> anyhow::Result<()> {
        let admin = Arc::new(Admin {
            pod: self.settings.pod.clone(),
            identity: self.settings.identity.clone(),
            certified: true,
            store: Arc::clone(&self.store),
            tls: Arc::clone(&self.tls),
            status: Arc::clone(&self.status),
            log,
            metrics: Arc::clone(&self.metrics),
            probes: Admin::probes(),
        });
        let runtime = single_threaded()?;
        let ports = self.settings.ports;
        let interception = Arc::clone(&self.status.interception);
        let (private, public, unredirected) = runtime.block_on(async {
            let private =
                admin::bind_private(ports.admin).await.context("cannot listen for the admin API")?;
            let public =
                admin::bind_public(ports.metrics).await.context("cannot listen for metrics and probes")?;
            let unredirected = match ports.check {
                0 => None,
                port => Some(admin::bind_public(port).await.context("cannot listen on the check's port")?),
            };
            anyhow::Ok((private, public, unredirected))
        })?;
        if let (Some(Ok(admin)), Ok(metrics)) = (private.first().map(|l| l.local_addr()), public.local_addr())
        {
            tracing::info!(%admin, %metrics, "serving admin and metrics");
        }
        spawn("admin", move || {
            runtime.block_on(async move {
                let mut servers = JoinSet::new();
                for listener in private {
                    servers.spawn(admin::serve(listener, admin::private(Arc::clone(&admin))));
                }
                servers.spawn(admin::serve(public, admin::public(admin)));
                if let Some(listener) = unredirected {
                    servers.spawn(admin::serve(listener, interception.unredirected()));
                }
                servers.join_next().await;
            });
        })
    }

    fn start_control(&self, drain: &CancellationToken, exit: &CancellationToken) -> anyhow::Result<()> {
        let control = Control {
            settings: Arc::clone(&self.settings),
            tls: Arc::clone(&self.tls),
            store: Arc::clone(&self.store),
            status: Arc::clone(&self.status),
            names: Names::default(),
            decisions: Arc::clone(&self.decisions),
        };
        let certificates =
            identity::run(Arc::clone(&self.settings), Arc::clone(&self.tls), Arc::clone(&self.status));
        let pod = &self.settings.pod;
        let interception = Arc::clone(&self.status.interception);
        let (status, metrics, ips) = (Arc::clone(&self.status), Arc::clone(&self.metrics), pod.ips.clone());
        let intercepted = async move {
            // Before, a check finds nobody, rules or not.
            while !status.listening.load(Ordering::Relaxed) {
                sleep(LISTENING).await;
            }
            interception.run(ips, metrics).await;
        };
        let checker = Checker {
            store: Arc::clone(&self.store),
            tls: Arc::clone(&self.tls),
            metrics: Arc::clone(&self.metrics),
            pod_ips: pod.ips.clone(),
            own_name: format!("{}/{}", pod.namespace, pod.name),
        };
        let runtime = single_threaded()?;
        let stop = {
            let _entered = runtime.enter();
            Stop::new(CancellationToken::new())?
        };
        let stopping =
            stop.run(Arc::clone(&self.status), self.settings.drain_timeout, drain.clone(), exit.clone());
        spawn("control", move || {
            runtime.block_on(async move {
                let mut tasks = JoinSet::new();
                tasks.spawn(certificates);
                tasks.spawn(control.run());
                tasks.spawn(checker.run());
                tasks.spawn(intercepted);
                tasks.spawn(stopping);
                // None of them ends by itself; a panic is the end of the process in the release build.
                while let Some(ended) = tasks.join_next().await {
                    tracing::error!(failed = ended.is_err(), "a task of the control side has ended");
                }
            });
        })
    }
}

/// What ends the process.
pub(crate) struct Stop {
    terminate: Signal,
    interrupt: Signal,
    // Another process has taken this one's place.
    relieved: CancellationToken,
}

impl Stop {
    /// Within a runtime.
    pub(crate) fn new(relieved: CancellationToken) -> std::io::Result<Self> {
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt, relieved })
    }

    /// Drains at the first sign, and ends at the second or when time is over.
    pub(crate) async fn run(
        mut self,
        status: Arc<Status>,
        drain_timeout: Duration,
        drain: CancellationToken,
        exit: CancellationToken,
    ) {
        let relieved = self.relieved.clone();
        tokio::select! {
            () = self.next() => {}
            () = relieved.cancelled() => {}
        }
        tracing::info!(within_ms = drain_timeout.as_millis() as u64, "draining");
        status.draining.store(true, Ordering::Relaxed);
        drain.cancel();
        tokio::select! {
            () = sleep(drain_timeout) => tracing::warn!("not drained in time, closing what is open"),
            () = self.next() => tracing::warn!("told to stop again, closing what is open"),
        }
        exit.cancel();
        sleep(EXIT_PATIENCE).await;
        tracing::error!("the data path did not stop");
        std::process::exit(1);
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

pub(crate) fn single_threaded() -> anyhow::Result<Runtime> {
    // Files are read on a blocking thread, one at a time: a second one would only cost memory.
    let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
    runtime.context("cannot start a runtime")
}

pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let started = thread::Builder::new().name(name.to_owned()).stack_size(512 << 10).spawn(body);
    started.map(drop).context("cannot start a thread")
}

// Container runtimes give 1024 open files by default, and leave it to the process to ask for more.
pub(crate) fn connections_within_files(wanted: usize) -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return wanted };
    let enough = hard.min((wanted as u64) * 2 + SPARE_FILES);
    if soft < enough && setrlimit(Resource::RLIMIT_NOFILE, enough, hard).is_err() {
        tracing::warn!(soft, "the limit of open files cannot be raised");
    }
    let open = getrlimit(Resource::RLIMIT_NOFILE).map_or(soft, |(soft, _)| soft);
    let room = usize::try_from(open.saturating_sub(SPARE_FILES) / 2).unwrap_or(usize::MAX).max(1);
    if room < wanted {
        tracing::warn!(
            files = open,
            connections = room,
            "fewer connections than configured, for want of open files"
        );
    }
    wanted.min(room)
}
