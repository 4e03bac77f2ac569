//! What was measured, as rows: medians and spread over rounds, what is added to no proxy, ratios to Weft; as a table for people
//! and JSON for programs. Pure but for its caller, who writes it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::scenario::Scenario;
use crate::subjects::Subject;

/// Of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unit {
    /// Requests, messages or connections a second.
    PerSecond,
    /// Microseconds; for `cpu`, for each request.
    Micros,
    /// Of one core.
    Percent,
    /// Of 2^10 bytes.
    Kib,
    /// Of 2^20 bytes.
    Mib,
}

impl Unit {
    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PerSecond => "1/s",
            Self::Micros => "us",
            Self::Percent => "%",
            Self::Kib => "KiB",
            Self::Mib => "MiB",
        }
    }
}

/// What a value is of: `cpu@16` with 16 clients as fast as they can, `p99@1000/s` at a fixed rate.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Metric {
    /// As above.
    pub name: String,
    /// Of its values.
    pub unit: Unit,
}

impl Metric {
    /// With so many clients.
    #[must_use]
    pub fn at(name: &str, unit: Unit, clients: usize) -> Self {
        Self { name: format!("{name}@{clients}"), unit }
    }

    /// At so many requests a second.
    #[must_use]
    pub fn rate(name: &str, unit: Unit, rate: u32) -> Self {
        Self { name: format!("{name}@{rate}/s"), unit }
    }

    /// By itself.
    #[must_use]
    pub fn plain(name: &str, unit: Unit) -> Self {
        Self { name: name.to_owned(), unit }
    }

    fn is_latency(&self) -> bool {
        self.name.starts_with('p') && self.unit == Unit::Micros
    }
}

/// Median, least and most of some rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle one; of two the mean.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

impl Spread {
    /// `None` of nothing.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let half = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[half] } else { f64::midpoint(sorted[half - 1], sorted[half]) };
        Some(Self { median, min, max })
    }

    fn minus(self, by: f64) -> Self {
        Self { median: self.median - by, min: self.min - by, max: self.max - by }
    }
}

/// All values of one scenario, by hops (0: no proxy), metric, subject.
#[derive(Debug, Default)]
pub struct Results {
    values: BTreeMap<(usize, usize), Values>,
    order: Vec<Metric>,
    /// Why a subject has no value, or how it was configured.
    pub notes: Vec<String>,
    /// Whether a cell failed.
    pub failed: bool,
}

/// Of one metric, by subject.
type Values = (Metric, BTreeMap<Subject, Vec<f64>>);

impl Results {
    /// Takes the values of one cell and round.
    pub fn add(&mut self, hops: usize, subject: Subject, values: Vec<(Metric, f64)>) {
        let hops = if subject == Subject::None { 0 } else { hops };
        for (metric, value) in values {
            let place = self.order.iter().position(|known| *known == metric).unwrap_or_else(|| {
                self.order.push(metric.clone());
                self.order.len() - 1
            });
            let (_, by_subject) =
                self.values.entry((hops, place)).or_insert_with(|| (metric, BTreeMap::new()));
            by_subject.entry(subject).or_default().push(value);
        }
    }

    /// A note, once.
    pub fn note(&mut self, text: String) {
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    /// A cell without values.
    pub fn fail(&mut self, text: String) {
        self.failed = true;
        self.note(text);
    }

    fn none(&self, place: usize) -> Option<Spread> {
        Spread::of(self.values.get(&(0, place))?.1.get(&Subject::None)?)
    }

    /// What is shown, in order: hops, metric, each subject's spread. Latencies are what is added to no proxy, and beside no
    /// proxy's own, which has hops 0.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for (&(hops, place), (metric, by_subject)) in &self.values {
            let less = self.none(place).filter(|_| hops > 0 && metric.is_latency());
            let mut metric = metric.clone();
            if less.is_some() {
                metric.name = format!("added {}", metric.name);
            }
            let spreads = by_subject.iter().filter_map(|(&subject, values)| {
                let spread = Spread::of(values)?;
                Some((subject, less.map_or(spread, |less| spread.minus(less.median))))
            });
            rows.push(Row { hops, metric, spreads: spreads.collect() });
        }
        rows
    }
}

/// A line of the table.
#[derive(Debug)]
pub struct Row {
    /// 0 for no proxy.
    pub hops: usize,
    /// What.
    pub metric: Metric,
    /// Of whom.
    pub spreads: Vec<(Subject, Spread)>,
}

impl Row {
    /// Of one subject.
    #[must_use]
    pub fn of(&self, subject: Subject) -> Option<Spread> {
        self.spreads.iter().find(|(of, _)| *of == subject).map(|(_, spread)| *spread)
    }
}

/// For people: medians, spread, and ratios to Weft.
#[must_use]
pub fn table(scenario: &Scenario, results: &Results) -> String {
    let rows = results.rows();
    let mut text = format!("\n({}) {}\n", scenario.key, scenario.title);
    for hops in 0..=2 {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.hops == hops).collect();
        let mut subjects: Vec<Subject> = Vec::new();
        for (subject, _) in rows.iter().flat_map(|row| &row.spreads) {
            if !subjects.contains(subject) {
                subjects.push(*subject);
            }
        }
        subjects.sort_unstable();
        if subjects.is_empty() {
            continue;
        }
        let title = match hops {
            0 => "no proxy",
            1 => "one hop",
            _ => "two hops, mTLS between",
        };
        let _ = write!(text, "\n{title:<30}");
        for subject in &subjects {
            let _ = write!(text, "{:<32}", subject.name());
        }
        text.push('\n');
        for row in rows {
            let _ = write!(text, "  {:<28}", format!("{} {}", row.metric.name, row.metric.unit.name()));
            let weft = row.of(Subject::Weft).map(|spread| spread.median);
            for &subject in &subjects {
                let cell = row.of(subject).map_or("-".to_owned(), |spread| {
                    let ratio = weft.filter(|weft| subject != Subject::Weft && *weft > 0.0);
                    let ratio = ratio.map_or(String::new(), |weft| format!(" x{:.2}", spread.median / weft));
                    format!("{} ({}..{}){ratio}", short(spread.median), short(spread.min), short(spread.max))
                });
                let _ = write!(text, "{cell:<32}");
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
    }
    for note in &results.notes {
        let _ = writeln!(text, "  note: {note}");
    }
    text
}

/// For programs: a row for each subject.
#[must_use]
pub fn json(scenario: &Scenario, results: &Results) -> Vec<Value> {
    let rounded = |value: f64| (value * 1000.0).round() / 1000.0;
    let mut lines = Vec::new();
    for row in results.rows() {
        for (subject, spread) in &row.spreads {
            lines.push(json!({
                "scenario": scenario.key,
                "hops": row.hops,
                "subject": subject.name(),
                "metric": row.metric.name,
                "unit": row.metric.unit.name(),
                "median": rounded(spread.median),
                "min": rounded(spread.min),
                "max": rounded(spread.max),
            }));
        }
    }
    lines
}

/// Three digits that count.
#[must_use]
pub fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is the report")]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_median_least_and_most() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of(&[4.0, 1.0]).unwrap().median, 2.5);
    }

    #[test]
    fn latencies_are_shown_as_added_to_the_median_of_no_proxy() {
        let mut results = Results::default();
        let p50 = Metric::rate("p50", Unit::Micros, 1000);
        for value in [10.0, 12.0, 50.0] {
            results.add(1, Subject::None, vec![(p50.clone(), value)]);
        }
        results.add(2, Subject::Weft, vec![(p50.clone(), 100.0), (Metric::at("cpu", Unit::Micros, 16), 7.0)]);
        let rows = results.rows();
        let row = |hops| rows.iter().find(|row| row.hops == hops && row.metric.unit == Unit::Micros).unwrap();
        assert_eq!(
            (row(0).metric.name.as_str(), row(0).of(Subject::None).unwrap().median),
            ("p50@1000/s", 12.0)
        );
        assert_eq!(
            (row(2).metric.name.as_str(), row(2).of(Subject::Weft).unwrap().median),
            ("added p50@1000/s", 88.0)
        );
        assert_eq!(rows.last().unwrap().metric.name, "cpu@16");
    }
}
