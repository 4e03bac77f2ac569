//! Rows of the report, and the table that people read. No measuring.

use std::time::Duration;

use serde_json::{Value, json};
use weft_bench::control::cluster::Sizes;
use weft_bench::control::measure::{Changes, Start};

/// One figure.
#[derive(Clone, Debug)]
pub struct Row {
    scenario: String,
    sizes: Sizes,
    metric: &'static str,
    unit: &'static str,
    value: f64,
}

impl Row {
    /// A figure of a scenario.
    pub fn new(scenario: &str, sizes: Sizes, metric: &'static str, unit: &'static str, value: f64) -> Self {
        Self { scenario: scenario.to_owned(), sizes, metric, unit, value }
    }

    /// For the report.
    pub fn json(&self) -> Value {
        json!({
            "scenario": self.scenario, "metric": self.metric, "unit": self.unit, "value": self.value,
            "services": self.sizes.services, "pods": self.sizes.pods,
            "proxies": self.sizes.proxies, "calls": self.sizes.calls,
        })
    }
}

/// KiB to MiB.
#[allow(clippy::cast_precision_loss, reason = "memory of a process is far below 2^52 KiB")]
pub fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Of a start.
pub fn start(scenario: &str, sizes: Sizes, start: &Start) -> Vec<Row> {
    let row = |metric, unit, value| Row::new(scenario, sizes, metric, unit, value);
    #[allow(clippy::cast_precision_loss, reason = "counts are small")]
    let failures = start.failures as f64;
    vec![
        row("listed", "ms", ms(start.listed)),
        row("all connected", "ms", ms(start.connected)),
        row("cpu", "ms", ms(start.cpu)),
        row("attempts in vain", "", failures),
        row("rss before them", "MiB", mib(start.alone.resident)),
        row("rss", "MiB", mib(start.memory.resident)),
        row("peak rss", "MiB", mib(start.memory.peak)),
    ]
}

/// Of changes.
pub fn changes(sizes: Sizes, changes: &Changes) -> Vec<Row> {
    let row = |metric, unit, value| Row::new(changes.kind.name(), sizes, metric, unit, value);
    vec![
        row("proxies concerned", "", changes.callers),
        row("to last ack p50", "ms", ms(changes.percentile(50))),
        row("to last ack p99", "ms", ms(changes.percentile(99))),
        row("cpu per change", "ms", ms(changes.cpu_each)),
        row("messages", "", changes.messages),
        row("bytes", "", changes.bytes),
    ]
}

/// By how much each figure grew, where both were measured and neither is nothing.
pub fn growth(rows: &[Row], doubled: &[Row]) -> Value {
    let grown = rows.iter().zip(doubled).filter(|(row, _)| row.value > 0.0).map(|(row, twice)| {
        json!({ "scenario": row.scenario, "metric": row.metric, "ratio": twice.value / row.value })
    });
    grown.collect()
}

/// The table.
pub fn print(rows: &[Row], doubled: &[Row]) {
    println!("\n{:<32} {:<18} {:>12} {:>12} {:>7}  unit", "scenario", "metric", "", "doubled", "ratio");
    for (position, row) in rows.iter().enumerate() {
        let twice = doubled.get(position);
        let value = twice.map_or_else(String::new, |twice| format!("{:.2}", twice.value));
        let ratio = twice
            .filter(|_| row.value > 0.0)
            .map_or_else(String::new, |twice| format!("{:.2}", twice.value / row.value));
        println!(
            "{:<32} {:<18} {:>12.2} {value:>12} {ratio:>7}  {}",
            row.scenario, row.metric, row.value, row.unit
        );
    }
}
