//! `weft-bench`: Weft beside its peers on the same work, in one run. Loads loopback only, for a bounded time, with bounded
//! numbers of connections, and leaves nothing running. docs/performance.md says how to read what it prints.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the report is the output")]

mod child;
mod flame;
mod load;
mod measure;
mod origins;
mod ports;
mod profile;
mod report;
mod scenario;
mod sink;
mod subjects;
mod svg;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum as _};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};

use measure::Bench;
use report::Results;
use scenario::Scenario;
use subjects::{Certificates, Programs, Subject};

/// Open files of this program and of each subject.
const FILES: u64 = 100_000;

/// Measures Weft beside Envoy, nginx, haproxy and no proxy.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    programs: Programs,
    /// Which: letters, or names such as `c-unary`; all of them if not given.
    #[arg(long, value_delimiter = ',')]
    scenario: Vec<String>,
    /// How often everything is measured, each time in another order.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// How long each load lasts, in seconds.
    #[arg(long, default_value_t = 1.0)]
    seconds_each: f64,
    /// Who: none, weft, envoy, envoy-h2, nginx, haproxy, relay (the floor); all of them if not given.
    #[arg(long, value_delimiter = ',')]
    subjects: Vec<Subject>,
    /// Proxies in a row.
    #[arg(long, value_delimiter = ',', default_value = "1,2", value_parser = clap::value_parser!(u8).range(1..=2))]
    hops: Vec<u8>,
    /// Show where Weft's time goes instead, as a flame graph of each scenario; with a proxy that has symbols.
    #[arg(long)]
    profile: bool,
    /// Clients at the same time of a profile; as many as the scenario begins with if not given.
    #[arg(long, requires = "profile")]
    clients: Option<usize>,
    /// Where results and pictures are written.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut options = Options::parse();
    ensure!((0.1..=300.0).contains(&options.seconds_each), "--seconds-each is from 0.1 to 300");
    if options.subjects.is_empty() {
        options.subjects = Subject::value_variants().to_vec();
    }
    let mut scenarios = scenario::chosen(&options.scenario);
    ensure!(!scenarios.is_empty(), "there is no scenario {}", options.scenario.join(", "));
    // For thousands of connections, each of which is several files to proxies; root may have as many as it wants.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if setrlimit(Resource::RLIMIT_NOFILE, FILES, FILES).is_err() {
        setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    }
    let (files, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    scenarios.iter_mut().for_each(|scenario| scenario.fit(files));
    child::stay()?;
    tokio::select! {
        done = run(&options, &scenarios) => done,
        // Whatever runs is dropped, and so ended.
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
    }
}

async fn run(options: &Options, scenarios: &[Scenario]) -> Result<()> {
    let work = std::path::absolute(options.out.join("work"))?;
    fs::create_dir_all(&work).with_context(|| format!("cannot write {}", work.display()))?;
    let certificates = Certificates::new(&work)?;
    let bench = Bench {
        programs: &options.programs,
        certificates: &certificates,
        work: &work,
        each: Duration::from_secs_f64(options.seconds_each),
    };
    if options.profile {
        for scenario in scenarios {
            for hops in
                options.hops.iter().map(|&hops| hops.into()).filter(|hops| scenario.hops.contains(hops))
            {
                println!(
                    "{}",
                    profile::profile(&bench, scenario, hops, options.clients, &options.out).await?
                );
            }
        }
        return Ok(fs::remove_dir_all(&work)?);
    }
    let header = header(options)?;
    println!("{header:#}");
    let (mut rows, mut failed) = (Vec::new(), false);
    for scenario in scenarios {
        let results = measured(&bench, options, scenario).await;
        print!("{}", report::table(scenario, &results));
        rows.extend(report::json(scenario, &results));
        failed |= results.failed;
        write(&options.out, &format!("{}.svg", scenario.key), &svg::picture(scenario, &results))?;
        // After each one: what was measured is not lost when a later one is interrupted.
        let all = json!({"header": header, "rows": rows});
        write(&options.out, "results.json", &format!("{all:#}\n"))?;
    }
    // What subjects said is kept where one of them failed.
    if failed {
        println!("see {}", work.display());
    } else {
        fs::remove_dir_all(&work)?;
    }
    Ok(())
}

async fn measured(bench: &Bench<'_>, options: &Options, scenario: &Scenario) -> Results {
    let mut results = Results::default();
    results.notes.extend(scenario.note.map(str::to_owned));
    results.notes.extend(scenario.idle.map(|count| format!("{count} connections, as far as open files go")));
    let mut cells = Vec::new();
    for &subject in &options.subjects {
        let mut hops: Vec<usize> = options.hops.iter().map(|&hops| hops.into()).collect();
        hops.retain(|hops| scenario.hops.contains(hops));
        if subject == Subject::None {
            hops.truncate(1);
        }
        for hops in hops {
            if subject.fits(&scenario.task(hops)) && (subject != Subject::None || scenario.idle.is_none()) {
                cells.push((hops, subject));
            }
        }
    }
    // What memory a connection takes does not vary, and opening thousands takes its time.
    let rounds = if scenario.idle.is_some() { 1 } else { options.rounds };
    for round in 0..rounds {
        if round > 0 {
            cells.rotate_left(2);
        }
        for &(hops, subject) in &cells {
            eprint!("\r\x1b[K({}) round {}: {}, {hops} hops", scenario.key, round + 1, subject.name());
            match measure::cell(bench, scenario, hops, subject).await {
                Ok(values) => results.add(hops, subject, values),
                Err(error) => results.fail(format!("{}, {hops} hops: {error:#}", subject.name())),
            }
        }
    }
    eprint!("\r\x1b[K");
    results
}

/// On what, and of which versions.
fn header(options: &Options) -> Result<Value> {
    let versions = options.subjects.iter().filter(|subject| **subject != Subject::None);
    let versions =
        versions.map(|subject| Ok((subject.name().to_owned(), subject.version(&options.programs)?.into())));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(json!({
        "versions": versions.collect::<Result<serde_json::Map<String, Value>>>()?,
        "kernel": kernel.trim(),
        "processor": model,
        "cores": child::count(),
        "pinned": child::cores().map(|(proxies, load)| json!({"proxies": proxies, "clientsAndOrigin": load})),
        "unixTime": since.as_secs(),
        "rounds": options.rounds,
        "secondsEach": options.seconds_each,
    }))
}

fn write(directory: &Path, name: &str, text: &str) -> Result<()> {
    let path = directory.join(name);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}
