//! `weft-demo`: installs Weft, deploys a small shop, and shows from live measurements that the mesh does what it promises.
//! Ends with a table, and with a failure when a promise does not hold. `weft-demo clean` removes everything again.

mod claims;
mod report;
mod shop;

use std::process::ExitCode;

use anyhow::{Result, bail};
use report::Report;
use weft_e2e::{Cluster, chart};

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
    match std::env::args().nth(1).as_deref() {
        None | Some("run") => run(),
        Some("clean") => clean(),
        Some(other) => bail!("unknown command `{other}`: use `run` (the default) or `clean`"),
    }
}

fn run() -> Result<()> {
    let cluster = Cluster::get();
    let mut report = Report::begin();
    let version: serde_json::Value = serde_json::from_str(&cluster.kubectl(&["version", "-o", "json"])?)?;
    let nodes = cluster.objects("", "nodes", "")?.len();
    let version = version["serverVersion"]["gitVersion"].as_str().unwrap_or("unknown version").to_owned();
    report.progress(&format!("Kubernetes {version}, {nodes} node(s)"));

    let took = chart::install(cluster)?;
    report.progress(&format!(
        "helm upgrade --install weft charts/weft: ready after {:.1} s",
        took.as_secs_f64()
    ));

    let shop = shop::Shop::deploy(cluster, &mut report)?;
    claims::identities(&shop, &mut report);
    claims::encryption(&shop, &mut report);
    claims::balance(&shop, &mut report);
    claims::canary(&shop, &mut report);
    claims::ejection(&shop, &mut report);
    claims::breaker(&shop, &mut report);
    claims::strict(&shop, &mut report);
    claims::bad_policy(&shop, &mut report);
    claims::health(&shop, &mut report);
    report.end()
}

fn clean() -> Result<()> {
    let cluster = Cluster::get();
    shop::remove(cluster)?;
    if chart::is_installed(cluster)? {
        chart::uninstall(cluster)?;
    }
    chart::delete_namespace(cluster)?;
    println!("The shop and Weft are gone from the cluster.");
    Ok(())
}
