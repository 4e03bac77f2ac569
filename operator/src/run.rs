//! `weft-operator run`: puts the parts together, and takes them apart on SIGTERM in an order in which no proxy notices more
//! than that it has to connect to another replica.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use kube::Client;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_api::audit::{Audit, Component};
use weft_api::names;
use weft_events::Sink;
use weft_events::write::Reporter;

use crate::admin::{self, Admin};
use crate::ca::serving::Serving;
use crate::ca::{Authority, Roots, given, secret};
use crate::checks;
use crate::federation;
use crate::index::Index;
use crate::keys;
use crate::leader::Leader;
use crate::leader::events::Events;
use crate::metrics::{InEvents, Metrics};
use crate::serve::fleet::Fleet;
use crate::serve::review::ApiServer;
use crate::serve::{self, Shared};
use crate::settings::Settings;
use crate::store::Store;
use crate::told;
use crate::watch::{self, Synced};

/// Between SIGTERM and the end of the streams: proxies that connect again must not be sent here once more, and it takes the
/// cluster a moment to see that this replica goes.
const LINGER: Duration = Duration::from_secs(2);
/// For streams to end.
const DRAIN: Duration = Duration::from_secs(5);
/// For audit events to be written.
const FLUSH: Duration = Duration::from_secs(1);
/// For one answer of the API server.
const REQUEST: Duration = Duration::from_secs(10);

/// Runs until SIGTERM.
///
/// # Errors
/// When a part cannot start.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    settings.check().map_err(anyhow::Error::msg)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), cryptography = weft_api::crypto::MODULE, "starting");
    let (client, writer) = clients().await?;
    let metrics = Arc::new(Metrics::default());
    let mut index = Index::new(&settings.namespace, settings.trust_domain.clone());
    index.outbound_policy = settings.outbound_policy;
    let store = Arc::new(Store::new(index, Arc::clone(&metrics)));
    let synced = Synced::default();
    let mut tasks = JoinSet::new();
    watch::start(&client, &store, &metrics, &synced, &mut tasks);

    let roots = roots(&writer, &settings).await;
    let authority = Arc::new(Authority::new(roots, settings.leaf_lifetime));
    let serving = Serving::new(Arc::clone(&authority), settings.trust_domain.clone(), &settings.namespace)
        .context("the operator's own certificate cannot be made")?;
    let audit = audit(&settings, &metrics);
    let events = kubernetes_events(&settings, &metrics, &writer, &mut tasks);
    let sink = events.clone();
    audit.also(move |event| told::note(event).into_iter().for_each(|note| sink.tell(note, 1)));
    let (refusals, refused) = serve::refusals::Refusals::new();
    let shared = Arc::new(Shared {
        store,
        fleet: Arc::new(Fleet::default()),
        limits: Arc::default(),
        missed: Arc::default(),
        refusals,
        authority: Arc::clone(&authority),
        serving: Arc::new(serving),
        metrics,
        audit,
        events,
        namespace: settings.namespace.clone(),
        stop: CancellationToken::new(),
        tasks: TaskTracker::new(),
    });

    let (missing, root_missing) = tokio::sync::watch::channel(false);
    let (read, standing) = tokio::sync::watch::channel(None);
    let serving = Arc::clone(&shared.serving);
    tasks.spawn(secret::follow(
        client.clone(),
        settings.namespace.clone(),
        authority,
        Arc::clone(&serving),
        read,
        missing,
    ));
    tasks.spawn(async move { serving.keep_renewed().await });
    let given = settings.root_secret.clone().map(|name| {
        let (told, given) = tokio::sync::watch::channel(None);
        tasks.spawn(given::follow(client.clone(), settings.namespace.clone(), name, told));
        given
    });

    let end = CancellationToken::new();
    let ready = Arc::new(AtomicBool::new(false));
    let health = Admin { shared: Arc::clone(&shared), ready: Arc::clone(&ready) };
    let listener = listen(settings.metrics_port).await?;
    let mut admin = tokio::spawn(admin::run(health, listener, end.clone()));

    // Nobody gets an answer from half an index.
    while !synced.all() {
        sleep(Duration::from_millis(20)).await;
    }
    let listener = listen(settings.grpc_port).await?;
    tracing::info!(port = settings.grpc_port, "serving");
    ready.store(true, Ordering::Release);
    let mut server =
        tokio::spawn(serve::run(Arc::clone(&shared), Arc::new(ApiServer(writer.clone())), listener));

    tasks.spawn(serve::refusals::write(refused, Events::new(&writer, &settings.pod_name)));
    if let Some(port) = settings.bundle_port {
        let listener = listen(port).await?;
        tracing::info!(port, "serving the bundle to other meshes");
        tasks.spawn(federation::serve::run(Arc::clone(&shared), listener));
    }
    let fetcher = keys::fetch::Fetcher::new();
    let (store, metrics, missed) = (&shared.store, &shared.metrics, &shared.missed);
    tasks.spawn(keys::keep(Arc::clone(store), Arc::clone(metrics), Arc::clone(missed), fetcher));
    tasks.spawn(checks::keep(Arc::clone(&shared), settings.clone()));
    let leader = Leader {
        client: client.clone(),
        writer,
        shared: Arc::clone(&shared),
        settings: settings.clone(),
        root_missing,
        standing,
        given,
        published: Arc::default(),
    };
    let resign = CancellationToken::new();
    let leading = tokio::spawn(leader.run(resign.clone()));

    let mut term = signal(SignalKind::terminate()).context("SIGTERM cannot be caught")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be caught")?;
    tokio::select! {
        _ = term.recv() => tracing::info!("stopping (SIGTERM)"),
        _ = interrupt.recv() => tracing::info!("stopping (SIGINT)"),
        ended = &mut server => ended.context("the gRPC server panicked")?.context("the gRPC server failed")?,
        ended = &mut admin => ended.context("the metrics server panicked")?.context("the metrics server failed")?,
    }
    ready.store(false, Ordering::Release);
    // Releases the Lease, so that another replica need not wait for it to run out.
    resign.cancel();
    let drained = async {
        let _ = tokio::join!(leading, sleep(LINGER));
        shared.stop.cancel();
        shared.tasks.close();
        shared.tasks.wait().await;
        if !server.is_finished() {
            let _ = server.await;
        }
    };
    tokio::select! {
        () = drained => {}
        () = sleep(LINGER + DRAIN) => tracing::warn!("not every stream ended in time"),
        _ = term.recv() => tracing::warn!("stopping at once (second signal)"),
        _ = interrupt.recv() => tracing::warn!("stopping at once (second signal)"),
    }
    tasks.shutdown().await;
    shared.audit.flush(FLUSH);
    end.cancel();
    Ok(())
}

/// One client for watches, which may be silent for long, and one for requests that must not hang.
async fn clients() -> anyhow::Result<(Client, Client)> {
    let mut config = kube::Config::infer().await.context("no way to reach the API server is configured")?;
    let watches = Client::try_from(config.clone()).context("the API server cannot be reached this way")?;
    config.read_timeout = Some(REQUEST);
    let writer = Client::try_from(config).context("the API server cannot be reached this way")?;
    Ok((watches, writer))
}

/// Events for auditors, on stdout.
fn audit(settings: &Settings, metrics: &Metrics) -> Audit {
    if !settings.audit {
        return Audit::off();
    }
    let dropped = metrics.audit_dropped.clone();
    Audit::stdout(Component::Operator, move || {
        dropped.inc();
    })
}

/// Kubernetes Events of the same, and of what proxies report. Each replica writes of what it has heard.
fn kubernetes_events(
    settings: &Settings,
    metrics: &Metrics,
    client: &Client,
    tasks: &mut JoinSet<()>,
) -> Sink {
    if !settings.audit_events {
        return Sink::off();
    }
    let told = metrics.audit_kubernetes_events.clone();
    let (sink, writer) = Sink::new(move |fate, times| {
        told.get_or_create(&InEvents::new(fate)).inc_by(times);
    });
    let reporter = Reporter {
        controller: "weft.dev/weft-operator",
        name: names::OPERATOR,
        instance: settings.pod_name.clone(),
    };
    tasks.spawn(writer.run(client.clone(), reporter));
    sink
}

/// The roots, however long the API server takes to give them.
async fn roots(client: &Client, settings: &Settings) -> Roots {
    let mut pause = Duration::from_millis(200);
    loop {
        match secret::ensure(client.clone(), settings).await {
            Ok(roots) => return roots,
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                tracing::error!(error = %error, cause, "there is no root certificate; trying again");
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(10));
    }
}

/// Both address families, or IPv4 alone where there is no IPv6.
async fn listen(port: u16) -> anyhow::Result<TcpListener> {
    let dual = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    match TcpListener::bind(dual).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
            .await
            .with_context(|| format!("port {port} cannot be listened on")),
    }
}
