//! One cell in one round: a subject is started for a scenario, loaded in every way, looked at, and ended.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::load::client::Target;
use crate::load::idle::idle;
use crate::load::tls::connector;
use crate::load::{self, percentile};
use crate::origins::Origin;
use crate::ports::address;
use crate::report::{Metric, Unit};
use crate::scenario::{PACED, Scenario};
use crate::subjects::{Certificates, Chain, Programs, Subject, Wire};

/// What every cell needs.
pub struct Bench<'a> {
    /// The subjects' programs.
    pub programs: &'a Programs,
    /// For mTLS.
    pub certificates: &'a Certificates,
    /// Files of subjects.
    pub work: &'a Path,
    /// How long each load lasts.
    pub each: Duration,
}

type Values = Vec<(Metric, f64)>;

/// The proxies, what clients do, and the origin.
pub async fn started(
    bench: &Bench<'_>,
    scenario: &Scenario,
    hops: usize,
    subject: Subject,
) -> Result<(Chain, Target, Origin)> {
    let at = address()?;
    let origin = Origin::start(at, scenario.says.clone()).await?;
    let task = scenario.task(hops);
    let chain = Chain::start(subject, bench.programs, task, bench.certificates, at, bench.work).await?;
    // Without a proxy nobody is there to shake hands with.
    let tls = (task.enters == Wire::Mtls && subject != Subject::None)
        .then(|| connector(&bench.certificates.front))
        .transpose()?;
    let target = Target { address: chain.entry, kind: scenario.kind, tls, request: scenario.request.clone() };
    Ok((chain, target, origin))
}

/// All values of one cell.
pub async fn cell(bench: &Bench<'_>, scenario: &Scenario, hops: usize, subject: Subject) -> Result<Values> {
    let (chain, target, _origin) = started(bench, scenario, hops, subject).await?;
    let proxied = subject != Subject::None;
    let mut values = Vec::new();
    if let Some(count) = scenario.idle {
        ensure!(proxied, "no proxy has no memory");
        let idle = idle(&target, count, || chain.rss_kib()).await?;
        let mib = |kib: u64| kib as f64 / 1024.0;
        values.push((Metric::plain("rss at start", Unit::Mib), mib(idle.before)));
        values.push((Metric::plain("rss", Unit::Mib), mib(idle.open)));
        let each = idle.open.saturating_sub(idle.before) as f64 / count as f64;
        values.push((Metric::plain("rss for each", Unit::Kib), each));
        values.push((Metric::plain("rss 4 s after", Unit::Mib), mib(idle.after)));
        return Ok(values);
    }
    for &clients in scenario.clients {
        saturated(&mut values, bench, &chain, &target, clients, proxied).await?;
    }
    for &rate in scenario.rates {
        paced(&mut values, bench, &chain, &target, rate, proxied)
            .await
            .with_context(|| format!("at {rate}/s"))?;
    }
    if proxied {
        values.push((Metric::plain("rss", Unit::Mib), chain.rss_kib()? as f64 / 1024.0));
    }
    Ok(values)
}

async fn saturated(
    values: &mut Values,
    bench: &Bench<'_>,
    chain: &Chain,
    target: &Target,
    clients: usize,
    proxied: bool,
) -> Result<()> {
    let closed = load::closed(target, clients, bench.each, || chain.cpu_ns()).await?;
    check(closed.failed, closed.failure.as_deref(), closed.done)?;
    let (done, seconds) = (closed.done as f64, closed.time.as_secs_f64());
    if proxied {
        values.push((Metric::at("cpu", Unit::Micros, clients), closed.cpu_ns as f64 / 1e3 / done));
    }
    values.push((Metric::at("throughput", Unit::PerSecond, clients), done / seconds));
    if proxied {
        values.push((Metric::at("busy", Unit::Percent, clients), closed.cpu_ns as f64 / 1e7 / seconds));
    }
    values.push((Metric::at("load", Unit::Percent, clients), closed.own_ns as f64 / 1e7 / seconds));
    Ok(())
}

async fn paced(
    values: &mut Values,
    bench: &Bench<'_>,
    chain: &Chain,
    target: &Target,
    rate: u32,
    proxied: bool,
) -> Result<()> {
    let open = load::open(target, PACED, rate, bench.each, || chain.cpu_ns()).await?;
    let answered = open.latencies.len() as u64;
    check(open.failed, open.failure.as_deref(), answered)?;
    for (name, percent) in [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9)] {
        let micros = percentile(&open.latencies, percent) as f64 / 1e3;
        values.push((Metric::rate(name, Unit::Micros, rate), micros));
    }
    if proxied {
        values.push((Metric::rate("cpu", Unit::Micros, rate), open.cpu_ns as f64 / 1e3 / answered as f64));
    }
    Ok(())
}

/// A subject that fails requests is not measured.
pub fn check(failed: u64, failure: Option<&str>, done: u64) -> Result<()> {
    let failure = failure.unwrap_or("it hangs");
    ensure!(done > 0 && failed * 1000 <= done, "{failed} failed, {done} were answered: {failure}");
    Ok(())
}
