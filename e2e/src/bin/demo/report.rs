//! Progress on the way, and the table at the end.

use anyhow::{Result, bail};
use std::time::Instant;

/// One promise and what was measured.
#[derive(Debug)]
struct Row {
    promise: &'static str,
    holds: bool,
    measured: Vec<String>,
}

/// What the demo has shown so far.
#[derive(Debug)]
pub struct Report {
    began: Instant,
    rows: Vec<Row>,
}

impl Report {
    pub fn begin() -> Self {
        Self { began: Instant::now(), rows: Vec::new() }
    }

    /// A line on the way.
    pub fn progress(&self, line: &str) {
        println!("[{:6.1} s] {line}", self.began.elapsed().as_secs_f64());
    }

    /// Runs one check. What it returns is the evidence; an error is a promise that does not hold.
    pub fn claim(&mut self, promise: &'static str, check: impl FnOnce(&Report) -> Result<Vec<String>>) {
        self.progress(&format!("checking: {promise}"));
        let (holds, measured) = match check(self) {
            Ok(measured) => (true, measured),
            Err(error) => (false, vec![format!("{error:#}")]),
        };
        for line in &measured {
            self.progress(&format!("    {line}"));
        }
        self.rows.push(Row { promise, holds, measured });
    }

    /// Prints the table. An error when a promise does not hold.
    pub fn end(&self) -> Result<()> {
        let width = self.rows.iter().map(|row| row.promise.chars().count()).max().unwrap_or(0);
        println!("\n{:width$} | holds | measured", "promise");
        println!("{:-<width$}-+-------+{:-<80}", "", "");
        for row in &self.rows {
            let mut promise = row.promise;
            let mut holds = if row.holds { "yes" } else { "NO" };
            for line in &row.measured {
                println!("{promise:width$} | {holds:^5} | {line}");
                (promise, holds) = ("", "");
            }
        }
        let broken = self.rows.iter().filter(|row| !row.holds).count();
        println!("\n{} promises checked in {:.0} s.", self.rows.len(), self.began.elapsed().as_secs_f64());
        if broken > 0 {
            bail!("{broken} of {} promises do not hold", self.rows.len());
        }
        println!(
            "All hold. Look around: kubectl -n shop get pods,msvc,tpol,pauth; `make demo-clean` removes everything."
        );
        Ok(())
    }
}
