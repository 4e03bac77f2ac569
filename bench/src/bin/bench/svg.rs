//! A picture of a scenario: for each number of hops and each metric that matters a panel of bars, a bar for each subject.
//! Text in, text out.

use std::fmt::Write as _;

use crate::report::{Results, Row, short};
use crate::scenario::Scenario;
use crate::subjects::Subject;

const PANEL: f64 = 360.0;
const BAR: f64 = 18.0;
const NAME: f64 = 70.0;

/// The whole file.
#[must_use]
pub fn picture(scenario: &Scenario, results: &Results) -> String {
    let rows = results.rows();
    let panels = |hops| -> Vec<&Row> {
        rows.iter()
            .filter(|row| row.hops == hops && !row.spreads.is_empty() && shown(&row.metric.name))
            .collect()
    };
    let columns = [panels(1), panels(2)];
    let (mut body, mut height) = (String::new(), 0.0_f64);
    for (column, rows) in columns.iter().enumerate() {
        let x = 20.0 + column as f64 * (PANEL + 20.0);
        let mut y = 50.0;
        for row in rows {
            y = panel(&mut body, row, x, y);
        }
        height = height.max(y);
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"20\" y=\"24\" font-size=\"15\">({}) {}: median, and least to most of all rounds</text>\n{body}</svg>\n",
        2.0 * PANEL + 60.0,
        scenario.key,
        escape(scenario.title)
    )
}

/// What says most; the rest is in the table.
fn shown(metric: &str) -> bool {
    ["throughput@", "cpu@", "added p50@", "added p99@", "rss"].iter().any(|start| metric.starts_with(start))
}

/// Draws one, and says where the next one begins.
fn panel(body: &mut String, row: &Row, x: f64, mut y: f64) -> f64 {
    let hops = if row.hops == 1 { "one hop" } else { "two hops, mTLS" };
    let most = row.spreads.iter().map(|(_, spread)| spread.max).fold(f64::MIN_POSITIVE, f64::max);
    let scale = (PANEL - NAME - 60.0) / most;
    let _ = writeln!(
        body,
        "<text x=\"{x}\" y=\"{}\" font-weight=\"bold\">{} [{}], {hops}</text>",
        y + 12.0,
        row.metric.name,
        row.metric.unit.name()
    );
    y += 20.0;
    for (subject, spread) in &row.spreads {
        let (left, middle) = (x + NAME, y + BAR / 2.0);
        let width = |value: f64| value.max(0.0) * scale;
        let _ = writeln!(
            body,
            "<text x=\"{x}\" y=\"{}\">{}</text>\n\
             <rect x=\"{left}\" y=\"{}\" width=\"{:.1}\" height=\"{}\" fill=\"{}\"/>\n\
             <path d=\"M{:.1} {middle}H{:.1}\" stroke=\"black\"/>\n\
             <text x=\"{:.1}\" y=\"{}\">{}</text>",
            middle + 4.0,
            subject.name(),
            y + 2.0,
            width(spread.median),
            BAR - 4.0,
            colour(*subject),
            left + width(spread.min),
            left + width(spread.max),
            left + width(spread.max) + 5.0,
            middle + 4.0,
            short(spread.median)
        );
        y += BAR;
    }
    y + 14.0
}

fn colour(subject: Subject) -> &'static str {
    match subject {
        Subject::None => "#bbbbbb",
        Subject::Weft => "#1b7f5c",
        Subject::Envoy => "#b0529c",
        Subject::EnvoyH2 => "#d39ac6",
        Subject::Nginx => "#7fb069",
        Subject::Haproxy => "#4f86c6",
        Subject::Relay => "#777777",
    }
}

/// For text and attributes of XML.
#[must_use]
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Metric, Unit};

    #[test]
    fn every_subject_has_a_bar_in_proportion() {
        let mut results = Results::default();
        results.add(2, Subject::Weft, vec![(Metric::at("cpu", Unit::Micros, 16), 50.0)]);
        results.add(2, Subject::Envoy, vec![(Metric::at("cpu", Unit::Micros, 16), 100.0)]);
        let text = picture(&crate::scenario::all()[0], &results);
        assert!(text.contains("cpu@16 [us], two hops"), "{text}");
        assert!(text.contains("width=\"115.0\"") && text.contains("width=\"230.0\""), "{text}");
        assert_eq!(text.matches("<rect").count(), 3, "the ground and two bars");
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(escape("a<b & \"c\""), "a&lt;b &amp; &quot;c&quot;");
    }
}
