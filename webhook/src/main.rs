//! `weft-webhook run`: wires the parts together and ends them in order. Everything else is in the library.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use std::net::{Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing_subscriber::EnvFilter;
use weft_api::audit::{Audit, Component};
use weft_api::names;
use weft_events::write::Reporter;
use weft_webhook::health::{self, Health};
use weft_webhook::inject;
use weft_webhook::metrics::Metrics;
use weft_webhook::server::{self, Webhook};
use weft_webhook::serving::{self, Certificate, Renewal};
use weft_webhook::settings::{NativeSidecar, Settings};
use weft_webhook::stores::Stores;
use weft_webhook::told;

/// Exit code for a bad configuration (sysexits.h, EX_USAGE).
const BAD_CONFIGURATION: u8 = 64;
/// Between "not ready" and not accepting: until the Service's endpoints have forgotten this pod.
const LINGER: Duration = Duration::from_secs(5);

/// Weft's admission webhook.
#[derive(Parser)]
#[command(name = "weft-webhook", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves admission reviews; configured by WEFT_* variables.
    Run,
}

fn main() -> ExitCode {
    let Cli { command: Command::Run } = Cli::parse();
    let settings = match Settings::parse(|name| std::env::var(name).ok()) {
        Ok(settings) => settings,
        Err(problems) => {
            problems.iter().for_each(|problem| eprintln!("{problem}"));
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    let filter = match EnvFilter::try_new(&settings.log) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("WEFT_LOG: {error}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter).init();
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(run(settings)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %format!("{error:#}"), "ended");
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: Settings) -> Result<()> {
    weft_api::crypto::begin()?;
    let client = Client::try_default().await.context("no access to the API server")?;
    let (going, stop) = (CancellationToken::new(), CancellationToken::new());
    let tasks = TaskTracker::new();
    let metrics = Arc::new(Metrics::default());
    let certificate = Arc::new(Certificate::default());
    let stores = Stores::watch(&client, &tasks, &stop);

    let (bundle_sender, bundle) = watch::channel(None);
    let configmaps: Api<ConfigMap> = Api::namespaced(client.clone(), &settings.namespace);
    until(&tasks, &stop, serving::follow_bundle(configmaps, bundle_sender));
    let renewal = Renewal {
        address: settings.operator.clone(),
        trust_domain: settings.trust_domain.clone(),
        namespace: settings.namespace.clone(),
        token_path: names::TOKEN_PATH.into(),
    };
    until(&tasks, &stop, serving::renew(renewal, certificate.clone(), bundle, metrics.clone()));

    let health = Health {
        certificate: certificate.clone(),
        stores: stores.clone(),
        metrics: metrics.clone(),
        going: going.clone(),
    };
    let listener = listen(names::METRICS_PORT).await?;
    let health_stop = stop.clone();
    tasks.spawn(async move {
        let served = axum::serve(listener, health::router(health))
            .with_graceful_shutdown(health_stop.cancelled_owned());
        if let Err(error) = served.await {
            tracing::error!(%error, "the metrics port ended");
        }
    });

    let mut end = signals()?;
    let Some(native_sidecar) = run_until(&mut end, native_sidecar(&settings, &client)).await else {
        return Ok(());
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        cryptography = weft_api::crypto::MODULE,
        native_sidecar,
        image = settings.proxy_image,
        "started"
    );
    let audit = audit(&settings, &metrics);
    if settings.audit && settings.audit_events {
        let writer = told::to_events(&audit, metrics.clone());
        until(&tasks, &stop, writer.run(client.clone(), reporter(&settings)));
    }
    let webhook = Arc::new(Webhook {
        settings: injected(&settings, native_sidecar),
        stores,
        metrics: metrics.clone(),
        audit: audit.clone(),
    });
    let listener = listen(names::WEBHOOK_PORT).await?;
    let tls = server::tls(certificate).context("TLS")?;
    let serving_stop = CancellationToken::new();
    let serving =
        tokio::spawn(server::serve(listener, tls, server::router(webhook), metrics, serving_stop.clone()));

    let _ = end.recv().await;
    tracing::info!("shutting down");
    going.cancel();
    // A second signal ends at once.
    let _ = tokio::time::timeout(LINGER, end.recv()).await;
    serving_stop.cancel();
    tokio::select! {
        _ = serving => {}
        _ = end.recv() => {}
    }
    audit.flush(Duration::from_secs(1));
    stop.cancel();
    tasks.close();
    let _ = tokio::time::timeout(Duration::from_secs(2), tasks.wait()).await;
    Ok(())
}

fn reporter(settings: &Settings) -> Reporter {
    let instance = settings.pod_name.clone();
    Reporter { controller: "weft.dev/weft-webhook", name: names::WEBHOOK, instance }
}

/// Events for auditors, on stdout.
fn audit(settings: &Settings, metrics: &Metrics) -> Audit {
    if !settings.audit {
        return Audit::off();
    }
    let dropped = metrics.audit_dropped.clone();
    Audit::stdout(Component::Webhook, move || {
        dropped.inc();
    })
}

fn injected(settings: &Settings, native_sidecar: bool) -> inject::Settings {
    inject::Settings {
        namespace: settings.namespace.clone(),
        image: settings.proxy_image.clone(),
        pull_policy: settings.pull_policy,
        operator_address: settings.operator.to_string(),
        trust_domain: settings.trust_domain.to_string(),
        native_sidecar,
        cni: settings.cni,
        resources: settings.resources.clone(),
        log: settings.proxy_log.clone(),
        access_log: settings.access_log,
        audit: settings.proxy_audit,
        tracing: settings.tracing.clone(),
        sampling: settings.sampling.clone(),
        workers: settings.workers,
    }
}

/// Native sidecars are on by default since Kubernetes 1.29 (KEP-753).
async fn native_sidecar(settings: &Settings, client: &Client) -> bool {
    match settings.native_sidecar {
        NativeSidecar::On => return true,
        NativeSidecar::Off => return false,
        NativeSidecar::Auto => {}
    }
    loop {
        match client.apiserver_version().await {
            Ok(version) => return at_least_1_29(&version.major, &version.minor),
            Err(error) => tracing::warn!(%error, "cannot read the API server's version, retrying"),
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

/// Some providers write the minor as `29+`.
fn at_least_1_29(major: &str, minor: &str) -> bool {
    let number =
        |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().unwrap_or_default();
    (number(major), number(minor)) >= (1, 29)
}

async fn listen(port: u16) -> Result<TcpListener> {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    match TcpListener::bind(any).await {
        Ok(listener) => Ok(listener),
        // A kernel without IPv6.
        Err(_) => TcpListener::bind(("0.0.0.0", port))
            .await
            .with_context(|| format!("cannot listen on port {port}")),
    }
}

fn until(tasks: &TaskTracker, stop: &CancellationToken, task: impl Future<Output = ()> + Send + 'static) {
    let stop = stop.clone();
    tasks.spawn(async move { stop.run_until_cancelled(task).await });
}

/// Each SIGTERM or SIGINT is one message.
fn signals() -> Result<tokio::sync::mpsc::Receiver<()>> {
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let (mut signals, sender) = (signal(kind).context("cannot handle signals")?, sender.clone());
        tokio::spawn(async move { while signals.recv().await.is_some() && sender.send(()).await.is_ok() {} });
    }
    Ok(receiver)
}

async fn run_until<T>(end: &mut tokio::sync::mpsc::Receiver<()>, task: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        value = task => Some(value),
        _ = end.recv() => None,
    }
}

#[cfg(test)]
mod tests {
    use super::at_least_1_29;

    #[test]
    fn versions_are_compared_as_numbers() {
        for (minor, native) in
            [("28", false), ("29", true), ("29+", true), ("36", true), ("9", false), ("", false)]
        {
            assert_eq!(at_least_1_29("1", minor), native, "{minor}");
        }
    }
}
