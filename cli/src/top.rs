//! `weft top`: who calls whom, how often, how well and how fast, from the counters of the callers' proxies over a few
//! seconds. The arithmetic is in `flows.rs` (pure).

mod flows;

use crate::cluster::list;
use crate::output::{self, Format};
use crate::{Global, Scope, admin, mesh_pod};
use clap::Args;
use flows::{Counters, Flow};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;
use weft_api::names;

/// Flags of `weft top`.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    scope: Scope,
    /// How long to count.
    #[arg(long = "for", value_name = "DURATION", default_value = "5s")]
    duration: weft_crds::Duration,
}

/// Proxies asked at the same time.
const CONCURRENCY: usize = 8;

/// Counts and prints, the busiest first.
pub async fn run(client: Client, global: &Global, options: Options) -> anyhow::Result<ExitCode> {
    let api: Api<Pod> = options.scope.api(&client);
    let injected = ListParams::default().labels(&format!("{}={}", names::INJECTED, names::ENABLED));
    let pods: Vec<Pod> = list(&api, &injected).await?.into_iter().filter(mesh_pod::is_injected).collect();
    let before = scrape(&client, &pods, true).await;
    tokio::time::sleep(options.duration.0).await;
    let after = scrape(&client, &pods, false).await;
    let flows = flows::between(&before, &after);
    match global.output {
        Format::Json => output::json(&flows)?,
        Format::Table if flows.is_empty() => {
            println!("no request within {} ms, in {} proxies", options.duration.as_millis(), before.len());
        }
        Format::Table => print!("{}", table(&flows)),
    }
    Ok(ExitCode::SUCCESS)
}

/// The counters of each proxy that answers, with when they were read.
async fn scrape(client: &Client, pods: &[Pod], complain: bool) -> BTreeMap<String, (Instant, Counters)> {
    futures::stream::iter(pods.iter().filter(|pod| mesh_pod::phase(pod) == "Running"))
        .map(|pod| async move {
            let api = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
            let name = mesh_pod::full_name(pod);
            match admin::get(&api, &pod.name_any(), "/metrics").await {
                Ok(text) => Some((name, (Instant::now(), Counters::parse(&text)))),
                Err(error) => {
                    if complain {
                        eprintln!("weft: {name} is left out: {error:#}");
                    }
                    None
                }
            }
        })
        .buffer_unordered(CONCURRENCY)
        .filter_map(|scraped| async { scraped })
        .collect()
        .await
}

fn table(flows: &[Flow]) -> String {
    let percent = |share: f64| format!("{:.1}%", share * 100.0);
    let quantile = |seconds: Option<f64>| match seconds {
        None => "-".to_owned(),
        Some(s) if s.is_infinite() => ">30s".to_owned(),
        Some(s) => format!("{:.1}ms", s * 1e3),
    };
    let rows: Vec<Vec<String>> = flows
        .iter()
        .map(|flow| {
            let reasons: Vec<String> =
                flow.reasons.iter().map(|(reason, rate)| format!("{reason} {rate:.1}/s")).collect();
            vec![
                flow.from.clone(),
                flow.to.clone(),
                flow.workload.clone(),
                format!("{:.1}", flow.per_second),
                percent(flow.success),
                percent(flow.mtls),
                quantile(flow.p50_s),
                quantile(flow.p99_s),
                output::or_dash(Some(reasons.join(", "))),
            ]
        })
        .collect();
    output::table(
        &["FROM", "TO", "WORKLOAD", "REQ/S", "SUCCESS", "MTLS", "P50 <=", "P99 <=", "REFUSED BY THE PROXY"],
        &rows,
    )
}
