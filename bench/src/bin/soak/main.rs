//! `weft-soak`: two proxies with mTLS between them under churn of endpoints, routes, policies and origins, and clients of
//! every manner. Afterwards, at rest, the proxies must hold what they held before: memory within 10 %, no more
//! descriptors, no open connection, no more tasks. Loads only loopback, for a bounded time, and ends all that it started.
#![allow(clippy::print_stdout, reason = "the report is the output")]

mod clients;
mod config;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::sleep;
use weft_bench::certificates::{Authority, Files};
use weft_bench::origin::{Origin, Speaks};
use weft_bench::process::{Usage, Weft, free_address};

use clients::{Counts, Manner, Target};
use config::Layout;

/// Memory that a proxy may hold more at the end than at the start, in percent.
const MEMORY_PERCENT: u64 = 10;

/// At rest, before it is measured.
const CALM: Duration = Duration::from_secs(20);

/// Gauges that must be 0 at rest.
const AT_REST: [&str; 2] = ["weft_connections", "weft_upstream_connections"];
/// The gauge that must not be above what it was. It is looked at once a second.
const TASKS: &str = "weft_tasks";

/// Churn for a while; the proxies must be afterwards as they were before.
#[derive(Parser)]
struct Options {
    /// The proxy's program, built for release.
    #[arg(long)]
    proxy: PathBuf,
    /// How long the churn lasts, in seconds.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// How long the same load runs before the start is measured, in seconds: buffers and pools fill to their working size.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    warm_up: u64,
    /// How long connections may take to be given up once the load has ended, in seconds.
    #[arg(long, default_value_t = 75, value_parser = clap::value_parser!(u64).range(1..=3600))]
    rest: u64,
    /// Clients of each manner.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=50))]
    clients: u16,
    /// Of what is drawn.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the report is written.
    #[arg(long, default_value = "target/bench/soak.json")]
    report: PathBuf,
}

/// Everything that runs.
struct World {
    layout: Layout,
    files: Files,
    front: Weft,
    back: Weft,
    front_config: PathBuf,
    front_metrics: SocketAddr,
    origins: Vec<Origin>,
    rng: SmallRng,
    reloads: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let directory = tempfile::tempdir()?;
    let mut world = World::start(&options, directory.path()).await?;
    let counts = Arc::new(Counts::default());

    println!("warming up for {} s", options.warm_up);
    world.churn(Duration::from_secs(options.warm_up), options.clients, &counts).await?;
    let start = world.rested(options.rest).await?;
    let before: Vec<u64> = [&counts.done, &counts.failed].map(|count| count.load(Ordering::Relaxed)).into();
    let tasks = world.tasks().await?;
    println!("at rest: {}; tasks {tasks:?}", line(&start));

    println!("churn for {} s", options.seconds);
    world.churn(Duration::from_secs(options.seconds), options.clients, &counts).await?;
    let peak = world.usage()?;
    let end = world.rested(options.rest).await?;
    let tasks_at_end = world.tasks().await?;
    println!("at rest: {}; tasks {tasks_at_end:?}", line(&end));

    let problems = world.judge(&start, &end, [tasks, tasks_at_end], &counts).await;
    let report = json!({
        "seconds": options.seconds,
        "seed": options.seed,
        "reloads": world.reloads,
        "rounds": counts.done.load(Ordering::Relaxed) - before[0],
        "failedRounds": counts.failed.load(Ordering::Relaxed) - before[1],
        "stuckRounds": counts.stuck.load(Ordering::Relaxed),
        "tasksAtStart": tasks, "tasksAtEnd": tasks_at_end,
        "start": shown(&start), "lastUnderLoad": shown(&peak), "end": shown(&end),
        "problems": problems,
    });
    if let Some(parent) = options.report.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(&options.report, serde_json::to_string_pretty(&report)? + "\n")?;
    println!("{report:#}");
    ensure!(problems.is_empty(), "the soak found {} problems", problems.len());
    Ok(())
}

impl World {
    async fn start(options: &Options, directory: &Path) -> Result<Self> {
        let authority = Authority::new()?;
        let files = authority.issue("front", directory)?;
        let back_files = authority.issue("back", directory)?;
        let pair = || Ok::<_, anyhow::Error>((free_address()?, free_address()?));
        let layout = Layout {
            http: free_address()?,
            tcp: free_address()?,
            endpoints: (0..6).map(|_| pair()).collect::<Result<_>>()?,
            echo: pair()?,
        };
        let mut origins = Vec::new();
        for (_, application) in &layout.endpoints {
            origins.push(Origin::start(*application, Speaks::Http).await?);
        }
        origins.push(Origin::start(layout.echo.1, Speaks::Echo).await?);

        let mut rng = SmallRng::seed_from_u64(options.seed);
        let (front_metrics, back_metrics) = (free_address()?, free_address()?);
        let front_config = directory.join("front.yaml");
        let back_config = directory.join("back.yaml");
        fs::write(&back_config, config::back(&layout, back_metrics, &back_files))?;
        fs::write(&front_config, config::front(&layout, front_metrics, &files, &mut rng))?;
        let log = |name| directory.join(name);
        let back = Weft::start(&options.proxy, &back_config, back_metrics, &log("back.log")).await?;
        let front = Weft::start(&options.proxy, &front_config, front_metrics, &log("front.log")).await?;
        Ok(Self { layout, files, front, back, front_config, front_metrics, origins, rng, reloads: 0 })
    }

    /// Load, with a new configuration every half second and an origin that goes or comes every two.
    async fn churn(&mut self, time: Duration, clients: u16, counts: &Arc<Counts>) -> Result<()> {
        let target = Target { http: self.layout.http, tcp: self.layout.tcp };
        let mut load = JoinSet::new();
        for manner in Manner::ALL.into_iter().cycle().take(usize::from(clients) * Manner::ALL.len()) {
            load.spawn(clients::run(manner, target, Arc::clone(counts)));
        }
        let begin = Instant::now();
        let mut turn = 0u64;
        while begin.elapsed() < time {
            sleep(Duration::from_millis(500)).await;
            self.reload()?;
            turn += 1;
            if turn.is_multiple_of(4) {
                self.toggle().await?;
            }
            if turn.is_multiple_of(60) {
                println!("{:>5} s  {}", begin.elapsed().as_secs(), line(&self.usage()?));
            }
            ensure!(self.front.lives() && self.back.lives(), "a proxy ended under load");
        }
        load.shutdown().await;
        for origin in self.origins.iter_mut().filter(|origin| !origin.up()) {
            origin.toggle().await?;
        }
        Ok(())
    }

    /// The file is replaced as a whole, so that a proxy never reads half of one.
    fn reload(&mut self) -> Result<()> {
        let text = config::front(&self.layout, self.front_metrics, &self.files, &mut self.rng);
        let next = self.front_config.with_extension("next");
        fs::write(&next, text)?;
        fs::rename(&next, &self.front_config)?;
        self.reloads += 1;
        Ok(())
    }

    /// Of the HTTP origins at most half are down at a time; the other one, for opaque bytes, stays.
    async fn toggle(&mut self) -> Result<()> {
        let http = self.layout.endpoints.len();
        let which = self.rng.random_range(0..http);
        let down = self.origins[..http].iter().filter(|origin| !origin.up()).count();
        let origin = &mut self.origins[which];
        if !origin.up() || down < http / 2 {
            origin.toggle().await?;
        }
        Ok(())
    }

    fn usage(&self) -> Result<[Usage; 2]> {
        Ok([self.front.usage()?, self.back.usage()?])
    }

    /// Waits until no connection is open, at most so many seconds, and measures.
    async fn rested(&self, seconds: u64) -> Result<[Usage; 2]> {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(seconds) {
            sleep(Duration::from_secs(1)).await;
            let mut open = 0.0;
            for proxy in [&self.front, &self.back] {
                for gauge in AT_REST {
                    open += proxy.metric(gauge).await.context("a proxy does not show its metrics")?;
                }
            }
            if open == 0.0 {
                break;
            }
        }
        // Proxies give memory back once it is calm.
        sleep(CALM).await;
        self.usage()
    }

    /// Of both proxies, when nothing is open: once more than the time between two looks has passed.
    async fn tasks(&self) -> Result<[f64; 2]> {
        sleep(Duration::from_millis(2500)).await;
        let mut tasks = [0.0; 2];
        for (tasks, proxy) in tasks.iter_mut().zip([&self.front, &self.back]) {
            *tasks = proxy.metric(TASKS).await.context("a proxy does not show its tasks")?;
        }
        Ok(tasks)
    }

    async fn judge(
        &self,
        start: &[Usage; 2],
        end: &[Usage; 2],
        tasks: [[f64; 2]; 2],
        counts: &Counts,
    ) -> Vec<String> {
        let mut problems = Vec::new();
        let [before, after] = tasks;
        for (name, before, after) in [("front", before[0], after[0]), ("back", before[1], after[1])] {
            // None at all would mean that nobody counts.
            if before < 1.0 || after > before {
                problems.push(format!("{name}: {before} tasks at the start, {after} at the end"));
            }
        }
        for (name, proxy, start, end) in
            [("front", &self.front, start[0], end[0]), ("back", &self.back, start[1], end[1])]
        {
            if end.rss_kib * 100 > start.rss_kib * (100 + MEMORY_PERCENT) {
                problems.push(format!(
                    "{name}: {} KiB at the start, {} KiB at the end",
                    start.rss_kib, end.rss_kib
                ));
            }
            if end.descriptors > start.descriptors {
                problems.push(format!(
                    "{name}: {} descriptors at the start, {} at the end",
                    start.descriptors, end.descriptors
                ));
            }
            for gauge in AT_REST {
                match proxy.metric(gauge).await {
                    Some(0.0) => {}
                    open => problems.push(format!("{name}: {gauge} is {open:?} at rest")),
                }
            }
        }
        match counts.stuck.load(Ordering::Relaxed) {
            0 => {}
            stuck => problems.push(format!("{stuck} rounds of clients hung")),
        }
        problems
    }
}

fn line([front, back]: &[Usage; 2]) -> String {
    let one = |usage: &Usage| {
        format!("{:.1} MiB, {} descriptors", usage.rss_kib as f64 / 1024.0, usage.descriptors)
    };
    format!("front {}; back {}", one(front), one(back))
}

fn shown([front, back]: &[Usage; 2]) -> Value {
    let one = |usage: &Usage| json!({"rssKib": usage.rss_kib, "descriptors": usage.descriptors});
    json!({"front": one(front), "back": one(back)})
}
