//! `weft status`: one line for each proxy, from its Pod object and, unless `--quick`, from its own admin API.

use crate::cluster::list;
use crate::output::{self, Format};
use crate::{Global, Scope, admin, mesh_pod};
use clap::Args;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::process::ExitCode;
use std::time::SystemTime;
use weft_api::names;

/// Flags of `weft status`.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    scope: Scope,
    /// Only what the API server knows: do not ask the proxies.
    #[arg(long)]
    quick: bool,
}

/// Proxies asked at the same time.
const CONCURRENCY: usize = 8;

/// A row.
#[derive(Debug, Default, Serialize)]
struct Proxy {
    namespace: String,
    pod: String,
    version: Option<String>,
    ready: bool,
    restarts: i32,
    identity: Option<String>,
    config_version: Option<u64>,
    connected: Option<bool>,
    certificate_not_after_unix_s: Option<i64>,
    /// What is wrong, in the proxy's or the kubelet's words.
    trouble: Option<String>,
}

/// What is read of `/config`.
#[derive(Deserialize)]
struct Config {
    version: u64,
    connected: bool,
    #[serde(default)]
    error: Option<String>,
    identity: String,
}

/// What is read of `/certs`.
#[derive(Deserialize)]
struct Certs {
    #[serde(default)]
    not_after_unix_s: Option<i64>,
    #[serde(default)]
    error: Option<String>,
}

/// Lists and prints.
pub async fn run(client: Client, global: &Global, options: Options) -> anyhow::Result<ExitCode> {
    let api: Api<Pod> = options.scope.api(&client);
    let injected = ListParams::default().labels(&format!("{}={}", names::INJECTED, names::ENABLED));
    let pods: Vec<Pod> = list(&api, &injected).await?.into_iter().filter(mesh_pod::is_injected).collect();
    let mut proxies: Vec<Proxy> = futures::stream::iter(&pods)
        .map(|pod| async {
            let mut proxy = known(pod);
            if !options.quick && mesh_pod::phase(pod) == "Running" {
                let api = Api::namespaced(client.clone(), &proxy.namespace);
                ask(&api, &mut proxy).await;
            }
            proxy
        })
        .buffer_unordered(CONCURRENCY)
        .collect()
        .await;
    proxies.sort_by(|a, b| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)));
    match global.output {
        Format::Json => output::json(&proxies)?,
        Format::Table if proxies.is_empty() => {
            println!(
                "no proxies: annotate a namespace with weft.dev/inject=enabled and restart its workloads (or look with -A)"
            );
        }
        Format::Table => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            print!("{}", table(&proxies, i64::try_from(now).unwrap_or(i64::MAX)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn known(pod: &Pod) -> Proxy {
    Proxy {
        namespace: pod.namespace().unwrap_or_default(),
        pod: pod.name_any(),
        version: mesh_pod::proxy_version(pod).map(str::to_owned),
        ready: mesh_pod::proxy_ready(pod),
        restarts: mesh_pod::proxy_restarts(pod),
        trouble: mesh_pod::proxy_trouble(pod),
        ..Proxy::default()
    }
}

async fn ask(api: &Api<Pod>, proxy: &mut Proxy) {
    async fn read<T: DeserializeOwned>(api: &Api<Pod>, pod: &str, path: &str) -> anyhow::Result<T> {
        Ok(serde_json::from_str(&admin::get(api, pod, path).await?)?)
    }
    let mut trouble = proxy.trouble.take();
    match read::<Config>(api, &proxy.pod, "/config").await {
        Ok(config) => {
            proxy.config_version = Some(config.version);
            proxy.connected = Some(config.connected);
            proxy.identity = Some(config.identity);
            trouble = trouble.or(config.error);
        }
        Err(error) => trouble = Some(format!("{error:#}")),
    }
    if let Ok(certs) = read::<Certs>(api, &proxy.pod, "/certs").await {
        proxy.certificate_not_after_unix_s = certs.not_after_unix_s;
        trouble = certs.error.or(trouble);
    }
    proxy.trouble = trouble;
}

fn table(proxies: &[Proxy], now: i64) -> String {
    let rows: Vec<Vec<String>> = proxies
        .iter()
        .map(|p| {
            vec![
                p.namespace.clone(),
                p.pod.clone(),
                output::or_dash(p.version.clone()),
                if p.ready { "yes" } else { "NO" }.to_owned(),
                p.restarts.to_string(),
                output::or_dash(p.identity.clone()),
                p.config_version.map_or_else(|| "-".to_owned(), |v| v.to_string()),
                p.connected.map_or("-", |c| if c { "yes" } else { "NO" }).to_owned(),
                p.certificate_not_after_unix_s.map_or_else(|| "-".to_owned(), |end| left(end - now)),
                output::or_dash(p.trouble.clone()),
            ]
        })
        .collect();
    let heading = [
        "NAMESPACE",
        "POD",
        "VERSION",
        "READY",
        "RESTARTS",
        "IDENTITY",
        "CONFIG",
        "CONNECTED",
        "CERTIFICATE",
        "TROUBLE",
    ];
    output::table(&heading, &rows)
}

fn left(seconds: i64) -> String {
    match seconds {
        i64::MIN..=0 => "EXPIRED".to_owned(),
        1..=5_999 => format!("{}m", seconds / 60),
        _ => format!("{}h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_stands_out() {
        let proxy = Proxy {
            namespace: "shop".into(),
            pod: "back-1".into(),
            connected: Some(false),
            certificate_not_after_unix_s: Some(100),
            trouble: Some("connection refused".into()),
            ..Proxy::default()
        };
        let text = table(&[proxy], 200);
        let line = text.lines().nth(1).unwrap();
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(
            cells,
            ["shop", "back-1", "-", "NO", "0", "-", "-", "NO", "EXPIRED", "connection", "refused"]
        );
    }
}
