//! `weft explain <request-id>`: reads the access logs of the proxies, hands their lines to `trail.rs` (pure), prints.

mod trail;

use crate::cluster::list;
use crate::output::{self, Format};
use crate::{Global, Scope, mesh_pod};
use anyhow::{Context as _, bail};
use clap::Args;
use futures::{AsyncBufReadExt as _, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, LogParams};
use kube::{Client, ResourceExt as _};
use std::process::ExitCode;
use trail::{Hop, Trail};
use weft_api::names;

/// Flags of `weft explain`.
#[derive(Args)]
pub struct Options {
    /// The request's `x-request-id`.
    request_id: String,
    #[command(flatten)]
    scope: Scope,
    /// How far back to look, for example 10m.
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    since: weft_crds::Duration,
}

/// At most this many lines of one proxy: an id that is too common must not fill the memory.
const HOPS_PER_POD: usize = 200;
/// Logs read at the same time.
const CONCURRENCY: usize = 8;

/// Looks and prints. Exits 1 when the request is nowhere to be found.
pub async fn run(client: Client, global: &Global, options: Options) -> anyhow::Result<ExitCode> {
    if options.request_id.trim().is_empty() {
        bail!("the request id is empty: take the x-request-id header of the response");
    }
    let api: Api<Pod> = options.scope.api(&client);
    let injected = ListParams::default().labels(&format!("{}={}", names::INJECTED, names::ENABLED));
    let pods: Vec<Pod> = list(&api, &injected).await?.into_iter().filter(mesh_pod::is_injected).collect();
    let found: Vec<_> = futures::stream::iter(&pods)
        .map(|pod| async { (mesh_pod::full_name(pod), hops(&client, pod, &options).await) })
        .buffer_unordered(CONCURRENCY)
        .collect()
        .await;
    let mut all = Vec::new();
    for (pod, hops) in found {
        match hops {
            Ok(hops) => all.extend(hops),
            Err(error) => eprintln!("weft: the log of {pod} cannot be read: {error:#}"),
        }
    }
    let trail = Trail::new(&options.request_id, all);
    match global.output {
        Format::Json => output::json(&trail)?,
        Format::Table => print!("{}", trail.text(pods.len())),
    }
    Ok(if trail.hops.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn hops(client: &Client, pod: &Pod, options: &Options) -> anyhow::Result<Vec<Hop>> {
    let namespace = pod.namespace().context("a pod without a namespace")?;
    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let params = LogParams {
        container: Some(names::PROXY_CONTAINER.to_owned()),
        since_seconds: Some(i64::try_from(options.since.0.as_secs()).unwrap_or(i64::MAX).max(1)),
        ..LogParams::default()
    };
    let mut lines = api.log_stream(&pod.name_any(), &params).await?.lines();
    let mut hops = Vec::new();
    while let Some(line) = lines.try_next().await? {
        // The cheap test first: most lines are of other requests.
        if line.contains(&options.request_id)
            && let Some(hop) = Hop::parse(&mesh_pod::full_name(pod), &options.request_id, &line)
        {
            hops.push(hop);
            if hops.len() == HOPS_PER_POD {
                break;
            }
        }
    }
    Ok(hops)
}
