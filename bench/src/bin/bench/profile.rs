//! Where Weft's time goes under a scenario: perf looks at its processes while clients ask as fast as they are answered, and
//! what it saw becomes a flame graph and stacks for other tools. By the processor's clock, which virtual machines have too.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;

use crate::flame;
use crate::load;
use crate::measure::{Bench, check, started};
use crate::scenario::Scenario;
use crate::subjects::Subject;

/// Samples a second; not a divisor of what timers do.
const FREQUENCY: &str = "997";
/// By unwind tables, which every function has, of so many bytes of the stack: the C library's system calls have no frame
/// pointers, and without callers they are the largest boxes and say nothing.
const STACKS: &str = "dwarf,16384";
/// Of the list of functions.
const LINES: usize = 25;

/// Writes `profile-<scenario>-<hops>.svg` and `.stacks`, and returns what to print.
pub async fn profile(
    bench: &Bench<'_>,
    scenario: &Scenario,
    hops: usize,
    clients: Option<usize>,
    out: &Path,
) -> Result<String> {
    let fewest =
        scenario.clients.first().with_context(|| format!("{} has no load to profile", scenario.key))?;
    let clients = clients.unwrap_or(*fewest);
    let (chain, target, _origin) = started(bench, scenario, hops, Subject::Weft).await?;
    let ids: Vec<String> = chain.processes.iter().map(|process| process.id().to_string()).collect();
    let ids = ids.join(",");
    let data = bench.work.join("perf.data");
    let (closed, script) = tokio::join!(
        load::closed(&target, clients, bench.each, || chain.cpu_ns()),
        recorded(&ids, &data, bench.each.as_secs_f64()),
    );
    let (closed, stacks) = (closed?, flame::collapse(&script?));
    check(closed.failed, closed.failure.as_deref(), closed.done)?;
    ensure!(!stacks.is_empty(), "perf saw nothing");

    let name = format!("profile-{}-{hops}", scenario.key);
    let title = format!("({}) {}, {hops} hops", scenario.key, scenario.title);
    let picture = out.join(format!("{name}.svg"));
    fs::write(&picture, flame::graph(&title, &stacks))?;
    let lines: String = stacks.iter().map(|(stack, samples)| format!("{stack} {samples}\n")).collect();
    fs::write(out.join(format!("{name}.stacks")), lines)?;

    let samples: u64 = stacks.values().sum();
    let mut text = format!(
        "{title}: {:.1} us of processor time for each exchange (perf included), {samples} samples\n",
        closed.cpu_ns as f64 / 1e3 / closed.done as f64
    );
    for (name, own) in flame::hottest(&stacks, LINES) {
        let _ = writeln!(text, "{:6.2} %  {name}", 100.0 * own as f64 / samples as f64);
    }
    let _ = writeln!(text, "{}", picture.display());
    Ok(text)
}

async fn recorded(ids: &str, data: &Path, seconds: f64) -> Result<String> {
    // Starts together with the load, and so sees the warm-up's end too; connecting is over by then.
    tokio::time::sleep(load::WARM_UP).await;
    let record = Command::new("perf")
        .args(["record", "-q", "-e", "cpu-clock", "-F", FREQUENCY, "--call-graph", STACKS, "-p", ids, "-o"])
        .arg(data)
        .args(["--", "sleep", &seconds.to_string()])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("cannot run perf; install linux-perf")?;
    ensure!(record.status.success(), "perf record: {}", String::from_utf8_lossy(&record.stderr));
    let script = Command::new("perf")
        .args(["script", "--no-inline", "-F", "ip,sym", "-i"])
        .arg(data)
        .kill_on_drop(true)
        .output()
        .await?;
    ensure!(script.status.success(), "perf script: {}", String::from_utf8_lossy(&script.stderr));
    Ok(String::from_utf8_lossy(&script.stdout).into_owned())
}
