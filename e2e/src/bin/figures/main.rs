//! `weft-figures`: measures Weft in a running cluster. Prints one line for each figure, `name value unit`, and writes them with
//! what they mean to `target/figures.json`. Judges nothing. Needs the nodes on this machine, and root (see `weft_e2e::machine`).
//! Installs the chart anew, to time it: not for clusters where Weft is in use. `--keep` measures what is installed;
//! `--keep latency memory` only those parts.

mod enforced;
mod http;
mod latency;
mod memory;
mod pods;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::path::PathBuf;
use weft_e2e::{Cluster, chart};

/// A measured number.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    /// What exactly was measured.
    measured: String,
}

/// All of them, printed as they come.
#[derive(Debug, Default, Serialize)]
pub struct Figures {
    cluster: String,
    processors: usize,
    figures: Vec<Figure>,
}

impl Figures {
    fn add(&mut self, name: &str, value: f64, unit: &'static str, measured: &str) {
        let value = (value * 1000.0).round() / 1000.0;
        println!("{name} {value} {unit}");
        self.figures.push(Figure { name: name.to_owned(), value, unit, measured: measured.to_owned() });
    }
}

type Part = fn(&'static Cluster, &mut Figures) -> Result<()>;

const PARTS: [(&str, Part); 5] = [
    ("images", image_sizes),
    ("pods", pods::start_overhead),
    ("memory", memory::of_proxies),
    ("enforced", enforced::apply_to_enforced),
    ("latency", latency::added),
];

fn main() -> ExitCode {
    match begin() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn begin() -> Result<()> {
    let mut only: Vec<String> = std::env::args().skip(1).collect();
    let keep = only.first().is_some_and(|first| first == "--keep");
    if keep {
        only.remove(0);
    }
    if let Some(other) = only.iter().find(|name| !keep || !PARTS.iter().any(|(part, _)| part == name)) {
        bail!(
            "unknown argument `{other}`: known are --keep and, after it, {}",
            PARTS.map(|(part, _)| part).join(", ")
        );
    }
    let cluster = Cluster::get();
    let mut figures = Figures {
        cluster: cluster.kubectl(&["get", "--raw", "/version"])?.split_whitespace().collect(),
        processors: std::thread::available_parallelism()?.get(),
        figures: Vec::new(),
    };
    if keep {
        chart::ready(cluster)?;
    } else {
        install(cluster, &mut figures)?;
    }
    for (name, measure) in PARTS {
        if only.is_empty() || only.iter().any(|wanted| wanted == name) {
            measure(cluster, &mut figures)?;
        }
    }
    write(&figures)
}

fn install(cluster: &Cluster, figures: &mut Figures) -> Result<()> {
    if chart::is_installed(cluster)? {
        chart::uninstall(cluster)?;
        chart::delete_namespace(cluster)?;
    }
    let took = chart::install(cluster)?;
    figures.add(
        "chart_install",
        took.as_secs_f64(),
        "s",
        "helm upgrade --install on a cluster without Weft, images already on the node, until operator and webhook are ready and the \
         webhooks have their caBundle",
    );
    Ok(())
}

fn image_sizes(cluster: &'static Cluster, figures: &mut Figures) -> Result<()> {
    let nodes = cluster.objects("", "nodes", "")?;
    for part in ["proxy", "operator", "webhook"] {
        let wanted = format!("/weft-{part}:");
        let images = nodes.iter().filter_map(|node| node["status"]["images"].as_array()).flatten();
        let bytes = images
            .filter(|image| {
                image["names"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .any(|n| n.as_str().is_some_and(|n| n.contains(&wanted)))
            })
            .filter_map(|image| image["sizeBytes"].as_f64())
            .next()
            .with_context(|| format!("no node reports the image weft-{part}"))?;
        figures.add(
            &format!("image_size_{part}"),
            bytes / f64::from(1 << 20),
            "MiB",
            "size of the image as the node reports it (compressed)",
        );
    }
    Ok(())
}

fn write(figures: &Figures) -> Result<()> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("figures.json"), serde_json::to_string_pretty(figures)? + "\n")
        .context("writing target/figures.json")
}
