//! `weft-bench-control`: one operator, a cluster that only an API server knows of, and as many proxies as asked for. Prints a
//! table and writes a report: how long a change takes to the last acknowledgement, what it costs the operator, what that holds,
//! how a restart under everybody goes, and what becomes of all that when the cluster doubles. Loads only loopback.
#![allow(clippy::print_stdout, reason = "the report is the output")]

mod report;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use serde_json::json;
use weft_bench::control::cluster::Sizes;
use weft_bench::control::measure::{Kind, World};

use report::Row;

/// How long idling is measured.
const IDLE: Duration = Duration::from_secs(5);

/// Certificates for each proxy; the operator slows down who asks for more than ten.
const CERTIFICATES: usize = 4;

/// Services that come last, and that nobody calls.
const UNRELATED: usize = 990;

/// The control plane of a large cluster.
#[derive(Parser)]
struct Options {
    /// The operator's program, built for release.
    #[arg(long)]
    operator: PathBuf,
    /// Services.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(20..=10_000))]
    services: u32,
    /// Pods.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(20..=100_000))]
    pods: u32,
    /// Proxies that connect, each on a connection of its own.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=12_000))]
    proxies: u32,
    /// Services that each proxy calls.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=20))]
    calls: u32,
    /// Changes of each kind; of the shared service a fifth of it.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    changes: u32,
    /// Measure once more with twice as much of everything.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    double: bool,
    /// Where the report is written.
    #[arg(long, default_value = "target/bench/control.json")]
    report: PathBuf,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let options = Options::parse();
    let size = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    let sizes = Sizes {
        services: size(options.services),
        pods: size(options.pods),
        proxies: size(options.proxies),
        calls: size(options.calls),
    };
    ensure!(sizes.proxies <= sizes.pods, "each proxy needs a pod of its own");
    open_files(if options.double { sizes.proxies * 2 } else { sizes.proxies })?;
    let mut rows = measure(&options, sizes).await?;
    let mut doubled = Vec::new();
    if options.double {
        doubled = measure(&options, sizes.doubled()).await?;
    }
    report::print(&rows, &doubled);
    let growth = report::growth(&rows, &doubled);
    rows.append(&mut doubled);
    let report = json!({
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        "cores": std::thread::available_parallelism()?.get(),
        "version": env!("CARGO_PKG_VERSION"),
        "rows": rows.iter().map(Row::json).collect::<Vec<_>>(),
        "growth": growth,
    });
    if let Some(parent) = options.report.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(&options.report, serde_json::to_string_pretty(&report)? + "\n")?;
    println!("\nwritten: {}", options.report.display());
    Ok(())
}

async fn measure(options: &Options, sizes: Sizes) -> Result<Vec<Row>> {
    let mut world = World::start(&options.operator, sizes).await?;
    println!(
        "{} pods, {} services, {} proxies that call {} services each",
        world.cluster.pods(),
        sizes.services,
        world.cluster.proxies.len(),
        sizes.calls
    );
    let mut rows = report::start("cold start", sizes, &world.started);
    let idle = world.idle(IDLE).await?;
    rows.push(Row::new("idle", sizes, "cpu", "ms/s", idle.as_secs_f64() * 1e3));
    rows.push(Row::new("idle", sizes, "rss", "MiB", report::mib(world.operator.memory()?.resident)));
    let each = world.issue(sizes.proxies * CERTIFICATES, idle).await?;
    rows.push(Row::new("certificate", sizes, "cpu", "ms", each.as_secs_f64() * 1e3));
    rows.push(Row::new("certificate", sizes, "per core and second", "", 1.0 / each.as_secs_f64().max(1e-9)));
    for kind in Kind::ALL {
        let count = size_of(kind, options.changes);
        let changes = world.change(kind, count, idle).await?;
        ensure!(changes.astray == 0, "{} messages to proxies that were not concerned", changes.astray);
        rows.extend(report::changes(sizes, &changes));
    }
    rows.push(Row::new("after changes", sizes, "rss", "MiB", report::mib(world.operator.memory()?.resident)));
    let restarted = world.restart().await?;
    rows.extend(report::start("restart", sizes, &restarted));
    let told = world.grow(UNRELATED).await?;
    ensure!(told == 0, "{told} messages about services that nobody calls");
    println!("{UNRELATED} services more, which nobody calls: no message to any proxy");
    Ok(rows)
}

fn size_of(kind: Kind, changes: u32) -> usize {
    let changes = usize::try_from(changes).unwrap_or(usize::MAX);
    if kind == Kind::Shared { (changes / 5).max(2) } else { changes }
}

/// For this process and the operator, which inherits it.
fn open_files(proxies: usize) -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // A proxy's first connection may still be open while it has its second.
    let wanted = u64::try_from(proxies)?.saturating_mul(2).saturating_add(256).min(hard);
    ensure!(wanted > u64::try_from(proxies)? + 128, "{hard} open files are too few for {proxies} proxies");
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)?;
    }
    Ok(())
}
