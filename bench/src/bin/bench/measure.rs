//! One cell in one round: a subject is started for a scenario, loaded in every way, looked at, and ended.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::load::client::Target;
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

impl Bench<'_> {
    /// All values of one cell.
    pub async fn cell(
        &self,
        scenario: &Scenario,
        hops: usize,
        subject: Subject,
    ) -> Result<Vec<(Metric, f64)>> {
        let at = address()?;
        let _origin = Origin::start(at, scenario.says.clone()).await?;
        let task = scenario.task(hops);
        let chain = Chain::start(subject, self.programs, task, self.certificates, at, self.work).await?;
        // Without a proxy nobody is there to shake hands with.
        let tls = (task.enters == Wire::Mtls && subject != Subject::None)
            .then(|| connector(&self.certificates.front));
        let target = Target {
            address: chain.entry,
            kind: scenario.kind,
            tls: tls.transpose()?,
            request: scenario.request.clone(),
        };
        let mut values = Vec::new();
        let cpu = || chain.cpu_ns();
        for &clients in scenario.clients {
            let closed = load::closed(&target, clients, self.each, cpu).await?;
            check(closed.failed, closed.failure.as_deref(), closed.done)?;
            let done = closed.done as f64;
            let seconds = closed.time.as_secs_f64();
            values.push((Metric::at("throughput", Unit::PerSecond, clients), done / seconds));
            if subject != Subject::None {
                values.push((Metric::at("cpu", Unit::Micros, clients), closed.cpu_ns as f64 / 1e3 / done));
                let busy = closed.cpu_ns as f64 / 1e7 / seconds;
                values.push((Metric::at("busy", Unit::Percent, clients), busy));
            }
            values.push((Metric::at("load", Unit::Percent, clients), closed.own_ns as f64 / 1e7 / seconds));
        }
        for &rate in scenario.rates {
            let open = load::open(&target, PACED, rate, self.each, cpu)
                .await
                .with_context(|| format!("at {rate}/s"))?;
            let answered = open.latencies.len() as u64;
            check(open.failed, open.failure.as_deref(), answered)?;
            for (name, percent) in [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9)] {
                let micros = percentile(&open.latencies, percent) as f64 / 1e3;
                values.push((Metric::rate(name, Unit::Micros, rate), micros));
            }
            if subject != Subject::None {
                let micros = open.cpu_ns as f64 / 1e3 / answered as f64;
                values.push((Metric::rate("cpu", Unit::Micros, rate), micros));
            }
        }
        if subject != Subject::None {
            values.push((Metric::plain("rss", Unit::Mib), chain.rss_kib()? as f64 / 1024.0));
        }
        Ok(values)
    }
}

/// A subject that fails requests is not measured.
fn check(failed: u64, failure: Option<&str>, done: u64) -> Result<()> {
    let failure = failure.unwrap_or("it hangs");
    ensure!(done > 0 && failed * 1000 <= done, "{failed} failed, {done} were answered: {failure}");
    Ok(())
}
