//! `weft check`: observe (this file), judge (`judge.rs`, pure), print. Repairs nothing.

mod cni;
mod judge;
mod roots;

use crate::Global;
use crate::cluster::list;
use crate::output::{self, Format};
use clap::Args;
use judge::{Finding, Level, Observed, Seen, Verdict};
use kube::api::{Api, ListParams};
use kube::{Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};
use weft_api::names;
use weft_crds::{AuthorizationPolicy, MeshService, PeerAuthentication, RequestAuthentication, TrafficPolicy};

/// Flags of `weft check`.
#[derive(Args)]
pub struct Options {
    /// Look again until nothing fails, for at most this long, for example 90s.
    #[arg(long, value_name = "DURATION")]
    wait: Option<weft_crds::Duration>,
}

/// Looks, prints, and exits 1 when something fails.
pub async fn run(client: Client, global: &Global, options: Options) -> anyhow::Result<ExitCode> {
    let deadline = Instant::now() + options.wait.map_or(Duration::ZERO, |wait| wait.0);
    let findings = loop {
        let findings = judge::judge(&Box::pin(observe(&client, &global.weft_namespace)).await);
        let failing = findings.iter().any(|f| f.level == Level::Fail);
        if !failing || Instant::now() >= deadline {
            break findings;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    match global.output {
        Format::Json => output::json(&findings)?,
        Format::Table => print!("{}", text(&findings)),
    }
    Ok(if findings.iter().any(|f| f.level == Level::Fail) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { level, subject, message, remedy } in findings {
        text.push_str(&format!("{level:<4}  {subject}: {message}\n"));
        if let Some(remedy) = remedy {
            text.push_str(&format!("      -> {remedy}\n"));
        }
    }
    let count = |level| findings.iter().filter(|f| f.level == level).count();
    text.push_str(&format!(
        "\n{} ok, {} warnings, {} failures\n",
        count(Level::Ok),
        count(Level::Warn),
        count(Level::Fail)
    ));
    text
}

/// Everything is read at the same time; what cannot be read is a finding of its own, not the end.
async fn observe(client: &Client, weft: &str) -> Observed {
    let own = |name| Api::namespaced(client.clone(), name);
    let (operators, webhooks, bundle) = (own(weft), own(weft), Api::namespaced(client.clone(), weft));
    let (injector, validator) = (Api::all(client.clone()), Api::all(client.clone()));
    let (crds, namespaces, pods) =
        (Api::all(client.clone()), Api::all(client.clone()), Api::all(client.clone()));
    let bundles = Api::all(client.clone());
    let plugin = Api::namespaced(client.clone(), weft);
    let everything = ListParams::default();
    let bundle_name = ListParams::default().fields(&format!("metadata.name={}", names::BUNDLE_CONFIGMAP));
    let (
        server,
        crds,
        operator,
        webhook,
        cni,
        injector,
        validator,
        bundle,
        namespaces,
        bundles,
        pods,
        resources,
    ) = tokio::join!(
        client.apiserver_version(),
        list(&crds, &everything),
        operators.get_opt(names::OPERATOR),
        webhooks.get_opt(names::WEBHOOK),
        plugin.get_opt(names::CNI),
        injector.get_opt(names::INJECTOR_CONFIGURATION),
        validator.get_opt(names::VALIDATOR_CONFIGURATION),
        bundle.get_opt(names::BUNDLE_CONFIGMAP),
        list(&namespaces, &everything),
        list(&bundles, &bundle_name),
        list(&pods, &everything),
        verdicts(client),
    );
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Observed {
        weft_namespace: weft.to_owned(),
        cli_version: env!("CARGO_PKG_VERSION").to_owned(),
        now_unix_s: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
        server: seen(server.map(|v| (v.major, v.minor, v.git_version))),
        crds: seen(crds),
        operator: seen(operator),
        webhook: seen(webhook),
        cni: seen(cni),
        injector: seen(injector),
        validator: seen(validator),
        bundle: seen(bundle),
        namespaces: seen(namespaces),
        bundles: seen(bundles),
        pods: seen(pods),
        resources,
    }
}

/// What the operator says of each of the user's resources.
async fn verdicts(client: &Client) -> Seen<Vec<Verdict>> {
    async fn of<K>(client: &Client, verdict: impl Fn(&K) -> Verdict) -> anyhow::Result<Vec<Verdict>>
    where
        K: Clone + DeserializeOwned + Debug + Resource<DynamicType = ()>,
    {
        Ok(list(&Api::<K>::all(client.clone()), &ListParams::default()).await?.iter().map(verdict).collect())
    }
    fn verdict<K: Resource<DynamicType = ()>>(
        resource: &K,
        conditions: Option<&[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition]>,
    ) -> Verdict {
        let name =
            format!("{}/{}", resource.meta().namespace.as_deref().unwrap_or_default(), resource.name_any());
        let generation = resource.meta().generation.unwrap_or_default();
        Verdict {
            resource: format!("{} {name}", K::kind(&())),
            generation,
            conditions: conditions.unwrap_or_default().to_vec(),
        }
    }
    let (a, b, c, d, e) = tokio::join!(
        of(client, |r: &MeshService| verdict(r, r.status.as_ref().map(|s| s.conditions.as_slice()))),
        of(client, |r: &TrafficPolicy| verdict(r, r.status.as_ref().map(|s| s.conditions.as_slice()))),
        of(client, |r: &PeerAuthentication| verdict(r, r.status.as_ref().map(|s| s.conditions.as_slice()))),
        of(client, |r: &AuthorizationPolicy| verdict(r, r.status.as_ref().map(|s| s.conditions.as_slice()))),
        of(client, |r: &RequestAuthentication| verdict(
            r,
            r.status.as_ref().map(|s| s.conditions.as_slice())
        )),
    );
    let mut all = Vec::new();
    for part in [a, b, c, d, e] {
        all.extend(seen(part)?);
    }
    Ok(all)
}

fn seen<T, E: Into<anyhow::Error>>(result: Result<T, E>) -> Seen<T> {
    result.map_err(|error| format!("{:#}", error.into()))
}
