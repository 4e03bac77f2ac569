//! Starts a proxy by itself: reads, takes over or binds the listeners, starts the threads, and brings the process to its
//! end. Like [`crate::run`], but for who says what to do. It serves nothing itself.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use weft_api::{Identity, TrustDomain, names, v1};

use super::apply::{self, Live, Loaded, RESOLVED};
use super::certificate::Material;
use super::file::File;
use super::plan;
use super::sockets::{ADMIN, Held, METRICS, Sockets};
use crate::access_log::AccessLog;
use crate::admin::{self, Admin};
use crate::checks::Checker;
use crate::dns::{Names, Resolver};
use crate::handover::{self, Labelled, Predecessor, Station};
use crate::listener::{self, Change, Listening};
use crate::metrics::Metrics;
use crate::original_dst::OriginalDst;
use crate::proxy::{Leaving, Proxy};
use crate::run::{LOG_PATIENCE, Stop, audit_to_stdout, connections_within_files, single_threaded, spawn};
use crate::settings::{Pod, Problems, duration};
use crate::status::Status;
use crate::store::SnapshotStore;
use crate::tls::Tls;
use crate::{logging, memory, snapshot::Snapshot, trace};

/// How long clients without a request may take to make a last one, when the proxy drains. Less where draining may not
/// take as long.
const PATIENCE: Duration = Duration::from_secs(5);

/// Judges a file as the start would, without doing anything.
///
/// # Errors
/// Everything that is wrong with it.
pub fn check(path: &Path) -> Result<(), Problems> {
    apply::load(path).map(drop).map_err(Problems)
}

/// Runs until told to stop, or until another process takes its place.
///
/// # Errors
/// [`Problems`] with the file, or a failure of the system.
pub fn run(path: &Path, takeover: Option<&Path>) -> anyhow::Result<()> {
    let Loaded { file, certificate } = apply::load(path).map_err(Problems)?;
    let log = logging::start(&file.log).context("cannot start logging")?;
    let identity = identity_or_default(certificate.as_ref().map(Material::identity), &file.workload);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), cryptography = weft_api::crypto::MODULE, %identity, file = %path.display(), "starting");

    let metrics = Arc::new(Metrics::new());
    let access_log = match file.access_log {
        true => AccessLog::stdout(Arc::clone(&metrics)).context("cannot start the access log")?,
        false => AccessLog::off(),
    };
    // Policies say what is audited.
    let audit = audit_to_stdout(&metrics);
    let admin = Arc::new(Admin {
        pod: Pod {
            name: identity.service_account.clone(),
            namespace: identity.namespace.clone(),
            uid: String::new(),
            ips: Vec::new(),
        },
        identity: identity.clone(),
        certified: certificate.is_some(),
        store: Arc::new(SnapshotStore::new()),
        tls: Arc::new(Tls::new()),
        status: Arc::new(Status::new(Arc::clone(&metrics))),
        log,
        metrics: Arc::clone(&metrics),
        probes: Admin::probes(),
    });
    if let Some(certificate) = certificate {
        admin.status.signed(Ok(certificate.leaf.not_after));
        certificate.apply(&admin.tls).context("the certificate cannot be used")?;
    }
    let resource = trace::Resource {
        store: Arc::clone(&admin.store),
        name: identity.service_account.clone(),
        namespace: identity.namespace.clone(),
        pod: String::new(),
        uid: String::new(),
    };
    let traces = trace::start(file.tracing.as_ref(), resource, Arc::clone(&metrics))
        .context("cannot start the tracing")?;
    let proxy = Arc::new(Proxy {
        store: Arc::clone(&admin.store),
        tls: Arc::clone(&admin.tls),
        metrics,
        access_log,
        traces,
        audit,
        identity: Arc::new(identity),
        pod_ips: Vec::new(),
        max_connections: connections_within_files(file.max_connections),
        original_dst: OriginalDst::default(),
        interception: Arc::default(),
        leaving: Leaving::Gently(drain_timeout(&file.drain_timeout)?.div_f64(2.0).min(PATIENCE)),
        memory_limit: memory_limit(&file)?,
    });

    let runtime = single_threaded()?;
    let resolver = Resolver::new(&file.dns.servers).map_err(anyhow::Error::msg);
    let (mut resolved, resolving) = Names::new(resolver.context("cannot set up the resolving of names")?);
    runtime.spawn(resolving);
    resolved.want(plan::names(&file));
    // Driven for a moment; what is not known by then is applied when it is.
    let _ = runtime.block_on(async { timeout(RESOLVED, resolved.settled()).await });
    let own = admin.certified.then_some(&admin.identity);
    let plan = plan::plan(&file, &resolved.found(), own, &Snapshot::default()).map_err(Problems)?;

    let station = takeover.map(Path::to_owned).or_else(|| file.restart_socket.clone());
    let predecessor = station.as_deref().map(handover::take).transpose()?.flatten();
    let (predecessor, mut taken) = predecessor.map_or((None, Vec::new()), |(who, all)| (Some(who), all));
    let mut sockets = Sockets::default();
    let mut workers: Vec<Vec<Listening>> = (0..file.workers).map(|_| Vec::new()).collect();
    for (key, destination) in &plan.listeners {
        let held = Held::new(*key, file.workers, &mut taken);
        sockets.insert(*key, held.with_context(|| format!("cannot listen at {}", key.1))?);
        sockets.aim(key, *destination);
        for (worker, listening) in workers.iter_mut().zip(sockets.of(key, file.workers)?) {
            worker.extend(listening);
        }
    }
    let (drain, exit, relieved) =
        (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    start_admin(&admin, [file.admin, file.metrics], &mut sockets, &mut taken, &relieved)?;
    // What is left has no listener in this file.
    drop(taken);

    let sockets = Arc::new(Mutex::new(sockets));
    let (addresses, services) = (plan.snapshot.addresses.len(), plan.snapshot.services.len());
    admin.store.publish(plan.snapshot);
    admin.status.updated(1, 0, addresses, services);
    let live = |controls| Live {
        path: path.to_owned(),
        file: file.clone(),
        admin: Arc::clone(&admin),
        sockets: Arc::clone(&sockets),
        controls,
        names: resolved,
        version: 1,
    };
    let stop =
        Stopping { status: Arc::clone(&admin.status), drain: drain.clone(), exit: exit.clone(), relieved };
    let drain_timeout = drain_timeout(&file.drain_timeout)?;
    let mut failed = Ok(());
    let started = |controls: Vec<mpsc::Sender<Change>>| {
        admin.status.listening.store(true, Ordering::Relaxed);
        tracing::info!(listeners = plan.listeners.len(), workers = file.workers, "listening");
        failed = start_control(runtime, live(controls), &stop, drain_timeout)
            .and_then(|()| succeed(predecessor, station, &sockets, &stop));
        if failed.is_err() {
            stop.exit.cancel();
            stop.drain.cancel();
        }
    };
    let served = listener::run(&proxy, workers, started, &drain, &exit).context("the data path failed");
    proxy.access_log.flush(LOG_PATIENCE);
    proxy.traces.flush(LOG_PATIENCE);
    proxy.audit.flush(LOG_PATIENCE);
    tracing::info!("stopped");
    failed.and(served)
}

/// Who the proxy is: as certified, or by the names that the file gives it.
pub(super) fn identity_or_default(own: Option<&Identity>, workload: &v1::Workload) -> Identity {
    let or = |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
    own.cloned().unwrap_or_else(|| Identity {
        trust_domain: trust_domain(),
        namespace: or(&workload.namespace, "default"),
        service_account: or(&workload.name, "weft-proxy"),
    })
}

#[expect(clippy::expect_used, reason = "a constant, and tested")]
fn trust_domain() -> TrustDomain {
    names::TRUST_DOMAIN.parse().expect("the default trust domain is one")
}

fn drain_timeout(text: &str) -> anyhow::Result<Duration> {
    duration(text).map_err(anyhow::Error::msg)
}

fn memory_limit(file: &File) -> anyhow::Result<Option<u64>> {
    let stated =
        file.memory_limit.as_deref().map(memory::quantity).transpose().map_err(anyhow::Error::msg)?;
    Ok(stated.or_else(memory::limit_of_group))
}

struct Stopping {
    status: Arc<Status>,
    drain: CancellationToken,
    exit: CancellationToken,
    /// Another process has the listeners.
    relieved: CancellationToken,
}

fn start_admin(
    admin: &Arc<Admin>,
    [private, public]: [Option<std::net::SocketAddr>; 2],
    sockets: &mut Sockets,
    taken: &mut Vec<Labelled>,
    relieved: &CancellationToken,
) -> anyhow::Result<()> {
    let mut bind = |kind: &str, address: Option<std::net::SocketAddr>| -> anyhow::Result<_> {
        let bound = address.map(|address| sockets.other(kind, address, taken)).transpose();
        bound.with_context(|| format!("cannot listen for {kind}"))
    };
    let routers = [
        (bind(ADMIN, private)?, admin::private(Arc::clone(admin))),
        (bind(METRICS, public)?, admin::public(Arc::clone(admin))),
    ];
    let (runtime, relieved) = (single_threaded()?, relieved.clone());
    spawn("admin", move || {
        runtime.block_on(async move {
            let mut servers = JoinSet::new();
            for (socket, router) in routers {
                let Some(socket) = socket else { continue };
                match tokio::net::TcpListener::from_std(socket) {
                    Ok(listener) => drop(servers.spawn(admin::serve(listener, router))),
                    Err(error) => tracing::error!(%error, "cannot serve the admin API"),
                }
            }
            relieved.cancelled().await;
        });
    })
}

fn start_control(
    runtime: Runtime,
    live: Live,
    stop: &Stopping,
    drain_timeout: Duration,
) -> anyhow::Result<()> {
    let (hangup, signals) = {
        let _entered = runtime.enter();
        (signal(SignalKind::hangup())?, Stop::new(stop.relieved.clone())?)
    };
    let (sockets, drain) = (Arc::clone(&live.sockets), stop.drain.clone());
    let admin = &live.admin;
    let checker = Checker {
        store: Arc::clone(&admin.store),
        tls: Arc::clone(&admin.tls),
        metrics: Arc::clone(&admin.metrics),
        pod_ips: admin.pod.ips.clone(),
        own_name: format!("{}/{}", admin.pod.namespace, admin.pod.name),
    };
    let stopping =
        signals.run(Arc::clone(&stop.status), drain_timeout, stop.drain.clone(), stop.exit.clone());
    spawn("control", move || {
        runtime.block_on(async move {
            let mut tasks = JoinSet::new();
            tasks.spawn(live.run(hangup));
            tasks.spawn(checker.run());
            tasks.spawn(stopping);
            tasks.spawn(async move {
                drain.cancelled().await;
                // As long as there are copies, clients would wait in queues that nobody looks at.
                *sockets.lock().unwrap_or_else(PoisonError::into_inner) = Sockets::default();
            });
            // A panic is the end of the process in the release build.
            while tasks.join_next().await.is_some() {}
        });
    })
}

/// Relieves the process before this one, and waits for the one after.
fn succeed(
    predecessor: Option<Predecessor>,
    station: Option<PathBuf>,
    sockets: &Arc<Mutex<Sockets>>,
    stop: &Stopping,
) -> anyhow::Result<()> {
    if let Some(predecessor) = predecessor {
        match predecessor.relieve() {
            Ok(()) => tracing::info!("the listeners were taken over"),
            Err(error) => tracing::error!(%error, "the process before this one may still serve"),
        }
    }
    let Some(path) = station else { return Ok(()) };
    let station = Station::open(&path).with_context(|| format!("cannot listen at {}", path.display()))?;
    let (sockets, relieved, drain) = (Arc::clone(sockets), stop.relieved.clone(), stop.drain.clone());
    spawn("handover", move || {
        let copies = || sockets.lock().unwrap_or_else(PoisonError::into_inner).copies();
        match station.hand_over(copies) {
            Ok(successor) => {
                tracing::info!("the listeners were handed over");
                relieved.cancel();
                // Workers stop to accept with it.
                drain.cancel();
                successor.leave_to();
            }
            Err(error) => tracing::error!(%error, "nobody can take over from this process any more"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_certificate_the_file_says_who_it_is() {
        let named = v1::Workload { name: "edge".to_owned(), ..Default::default() };
        let of = |workload: &v1::Workload| identity_or_default(None, workload).to_string();
        assert_eq!(of(&v1::Workload::default()), "spiffe://cluster.local/ns/default/sa/weft-proxy");
        assert_eq!(of(&named), "spiffe://cluster.local/ns/default/sa/edge");
    }
}
