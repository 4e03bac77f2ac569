//! `weft config`, `weft clusters`, `weft log`: what one pod's proxy says of itself, as its admin API says it.

use crate::output::{self, Format};
use crate::{Global, admin};
use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use serde::Deserialize;
use serde_json::Value;
use std::process::ExitCode;

/// A pod.
#[derive(Args)]
pub struct PodOptions {
    /// Name of an injected pod.
    pod: String,
    /// Namespace; otherwise that of the kubeconfig's context.
    #[arg(short, long)]
    namespace: Option<String>,
}

/// A pod and perhaps a filter.
#[derive(Args)]
pub struct LogOptions {
    #[command(flatten)]
    pod: PodOptions,
    /// The new filter, for example debug, or info,weft_proxy=trace.
    filter: Option<String>,
}

impl PodOptions {
    fn api(&self, client: Client) -> Api<Pod> {
        match &self.namespace {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::default_namespaced(client),
        }
    }
}

/// The configuration in force, as JSON.
pub async fn config(client: Client, options: PodOptions) -> anyhow::Result<ExitCode> {
    let text = admin::get(&options.api(client), &options.pod, "/config").await?;
    output::json(&serde_json::from_str::<Value>(&text)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Shows or changes the log filter.
pub async fn log(client: Client, options: LogOptions) -> anyhow::Result<ExitCode> {
    let api = options.pod.api(client);
    let answer = match options.filter {
        None => admin::get(&api, &options.pod.pod, "/log").await?,
        Some(filter) => admin::ask(&api, &options.pod.pod, http::Method::PUT, "/log", filter).await?,
    };
    println!("{}", answer.trim_end());
    Ok(ExitCode::SUCCESS)
}

/// What the table needs of a cluster; the JSON output shows everything.
#[derive(Deserialize)]
struct Cluster {
    cluster: String,
    #[serde(default)]
    balancer: String,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
struct Endpoint {
    address: String,
    #[serde(default)]
    pod: String,
    #[serde(default)]
    weight: u32,
    #[serde(default)]
    identity: Option<String>,
    #[serde(default)]
    in_flight: u64,
    #[serde(default)]
    ewma_ms: Option<f64>,
    /// Milliseconds left; 0: it waits for the request that tries it.
    #[serde(default)]
    ejected: Option<u64>,
    #[serde(default)]
    cause: Option<String>,
    /// Why it fails active checks, if it does.
    #[serde(default)]
    unhealthy: Option<String>,
}

/// Destinations and their endpoints.
pub async fn clusters(client: Client, global: &Global, options: PodOptions) -> anyhow::Result<ExitCode> {
    let text = admin::get(&options.api(client), &options.pod, "/clusters").await?;
    match global.output {
        Format::Json => output::json(&serde_json::from_str::<Value>(&text)?)?,
        Format::Table => {
            let clusters: Vec<Cluster> = serde_json::from_str(&text)?;
            if clusters.is_empty() {
                println!("no destination yet: this proxy learns about one when its workload first calls it");
            } else {
                print!("{}", cluster_table(&clusters));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn cluster_table(clusters: &[Cluster]) -> String {
    let mut rows = Vec::new();
    for cluster in clusters {
        let start =
            |endpoint: &str| vec![cluster.cluster.clone(), cluster.balancer.clone(), endpoint.to_owned()];
        if cluster.endpoints.is_empty() {
            rows.push(start("none"));
        }
        for endpoint in &cluster.endpoints {
            let mut row = start(&endpoint.address);
            row.extend([
                output::or_dash(Some(endpoint.pod.as_str())),
                endpoint.weight.to_string(),
                endpoint.in_flight.to_string(),
                endpoint.ewma_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}ms")),
                if endpoint.identity.is_some() { "mtls" } else { "plaintext" }.to_owned(),
                state(endpoint),
            ]);
            rows.push(row);
        }
    }
    let heading = ["CLUSTER", "BALANCER", "ENDPOINT", "POD", "WEIGHT", "IN FLIGHT", "LATENCY", "BY", "STATE"];
    output::table(&heading, &rows)
}

fn state(endpoint: &Endpoint) -> String {
    if let Some(unhealthy) = &endpoint.unhealthy {
        return unhealthy.clone();
    }
    let cause = endpoint.cause.as_deref().map_or_else(String::new, |cause| format!(" ({cause})"));
    match endpoint.ejected {
        None => "in use".to_owned(),
        Some(0) => format!("on trial{cause}"),
        Some(ms) => format!("ejected for {:.1}s more{cause}", ms as f64 / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_endpoint_is_a_row_and_an_ejected_one_says_why() {
        let clusters: Vec<Cluster> = serde_json::from_value(serde_json::json!([
            {"service": "shop/back:80", "cluster": "shop/back:80", "balancer": "PeakEwma", "breaker": {}, "endpoints": [
                {"address": "10.0.0.1:80", "weight": 100, "identity": "spiffe://x/ns/shop/sa/back", "pod": "back-1", "in_flight": 2, "ewma_ms": 1.26, "ejected": null, "ejections": 0, "cause": null},
                {"address": "10.0.0.2:80", "weight": 100, "identity": null, "pod": "", "in_flight": 0, "ewma_ms": null, "ejected": 4200, "ejections": 1, "cause": "5 consecutive failures"},
                {"address": "10.0.0.3:80", "pod": "back-3", "unhealthy": "unhealthy: status 503", "checked_here": true}]},
            {"service": "shop/none:80", "cluster": "shop/none:80", "endpoints": []},
        ]))
        .unwrap();
        let text = cluster_table(&clusters);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5);
        assert!(lines[1].contains("back-1") && lines[1].contains("1.3ms") && lines[1].ends_with("in use"));
        assert!(
            lines[2].contains("plaintext")
                && lines[2].ends_with("ejected for 4.2s more (5 consecutive failures)")
        );
        assert!(lines[3].ends_with("unhealthy: status 503"));
        assert!(lines[4].ends_with("none"));
    }
}
