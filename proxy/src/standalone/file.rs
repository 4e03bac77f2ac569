//! The configuration file's schema: a head of its own, and then what the operator says too (`workload`, `services`), in
//! the YAML form of `api/proto/weft.proto`. Types only; `read` parses, `plan` judges.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::Error;
use weft_api::tracing::DEFAULT_SAMPLING;
use weft_api::v1;

use crate::settings::Tracing;

/// The whole file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct File {
    /// Where clients connect to.
    pub(super) listeners: Listeners,
    /// The own certificate. Without it: plaintext only.
    pub(super) identity: Option<IdentityFiles>,
    /// Admin API; a loopback address. Absent: none.
    pub(super) admin: Option<SocketAddr>,
    /// Metrics, `/ready` and `/live`. Absent: none.
    pub(super) metrics: Option<SocketAddr>,
    /// Threads of the data path.
    pub(super) workers: usize,
    /// Log filter.
    pub(super) log: String,
    /// Whether each request and connection is logged.
    pub(super) access_log: bool,
    /// Who is told of traces. Absent: nobody.
    #[serde(deserialize_with = "tracing")]
    pub(super) tracing: Option<Tracing>,
    /// How long draining may take, such as `25s`.
    pub(super) drain_timeout: String,
    /// Connections at the same time, in and out together.
    pub(super) max_connections: usize,
    /// Bytes that the process may hold, such as `64Mi`. Absent: the control group's limit.
    #[serde(deserialize_with = "number_or_text")]
    pub(super) memory_limit: Option<String>,
    /// Where a process that takes this one's place finds its listeners.
    pub(super) restart_socket: Option<PathBuf>,
    /// How names of endpoints are resolved.
    pub(super) dns: Dns,
    /// As the operator says it. `namespace`, `pod`, `name`, `identity` and `mtls` may be left out.
    pub(super) workload: v1::Workload,
    /// As the operator says it, but an endpoint's address may be `name:port`; `key`, `defaultCluster` and a last route
    /// that matches everything may be left out.
    pub(super) services: Vec<v1::Service>,
}

impl Default for File {
    fn default() -> Self {
        Self {
            listeners: Listeners::default(),
            identity: None,
            admin: None,
            metrics: None,
            workers: 1,
            log: "info".to_owned(),
            access_log: true,
            tracing: None,
            drain_timeout: "25s".to_owned(),
            max_connections: 10_000,
            memory_limit: None,
            restart_socket: None,
            dns: Dns::default(),
            workload: v1::Workload::default(),
            services: Vec::new(),
        }
    }
}

/// `67108864` is a number to YAML, and `64Mi` a text.
fn number_or_text<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a number of bytes such as 67108864, 64Mi or 1Gi")]
    enum Either {
        Number(u64),
        Text(String),
    }
    Ok(Option::<Either>::deserialize(from)?.map(|either| match either {
        Either::Number(number) => number.to_string(),
        Either::Text(text) => text,
    }))
}

/// `tracing: {endpoint, sampling}`, the second a number or a text, and not needed.
fn tracing<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Tracing>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "percent of new traces, a number from 0 to 100 such as 1 or 0.1")]
    enum Percent {
        Number(f64),
        Text(String),
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Stated {
        endpoint: String,
        sampling: Option<Percent>,
    }
    let Some(stated) = Option::<Stated>::deserialize(from)? else { return Ok(None) };
    let sampling = match stated.sampling {
        Some(Percent::Number(number)) => number.to_string(),
        Some(Percent::Text(text)) => text,
        None => DEFAULT_SAMPLING.to_owned(),
    };
    let endpoint = stated.endpoint.parse().map_err(D::Error::custom)?;
    Ok(Some(Tracing { endpoint, sampling: sampling.parse().map_err(D::Error::custom)? }))
}

/// Both ways.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Listeners {
    /// For the own application, and other clients: each is one service.
    pub(super) outbound: Vec<OutboundListener>,
    /// In front of the own application.
    pub(super) inbound: Vec<InboundListener>,
}

/// Every connection to it goes to one service.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct OutboundListener {
    /// `ip:port`.
    pub(super) address: SocketAddr,
    /// Its key, "namespace/name:port".
    pub(super) service: String,
}

/// Every connection to it goes to the application.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct InboundListener {
    /// `ip:port`.
    pub(super) address: SocketAddr,
    /// `ip:port` or `name:port`.
    pub(super) application: String,
    /// `Strict` with an identity, `Disable` without, if not given. Of the application's port: two listeners in front of
    /// the same port have the same.
    #[serde(default)]
    pub(super) mtls: Option<String>,
    /// What the application speaks; detected if not given. Of the application's port too.
    #[serde(default)]
    pub(super) protocol: Option<String>,
}

/// PEM files; read again when they change.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct IdentityFiles {
    /// Leaf first. The leaf's SPIFFE id is who this proxy is.
    pub(super) certificate: PathBuf,
    /// The leaf's private key.
    pub(super) key: PathBuf,
    /// Whom to trust: for identities of the own trust domain.
    pub(super) roots: PathBuf,
    /// Other trust domains, each with the roots of its identities.
    #[serde(default)]
    pub(super) federated: Vec<FederatedFiles>,
}

impl IdentityFiles {
    /// All of them.
    pub(super) fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        let federated = self.federated.iter().map(|domain| &domain.roots);
        [&self.certificate, &self.key, &self.roots].into_iter().chain(federated)
    }

    /// The same, to be changed.
    pub(super) fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let federated = self.federated.iter_mut().map(|domain| &mut domain.roots);
        [&mut self.certificate, &mut self.key, &mut self.roots].into_iter().chain(federated)
    }
}

/// Another trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FederatedFiles {
    /// Its name.
    pub(super) trust_domain: String,
    /// Its roots, in PEM.
    pub(super) roots: PathBuf,
}

/// See [`crate::dns`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Dns {
    /// Asked instead of those of `/etc/resolv.conf`.
    pub(super) servers: Vec<SocketAddr>,
}

#[cfg(test)]
mod tests {
    use super::super::read;

    #[test]
    fn percent_of_traces_is_a_number_or_a_text_or_not_said() {
        let of = |text: &str| read::parse(text).map(|file| file.tracing);
        let stated = |sampling: &str| {
            of(&format!("tracing: {{endpoint: \"http://a:4318\"{sampling}}}")).unwrap().unwrap()
        };
        assert_eq!(stated(""), stated(", sampling: 1"));
        assert_eq!(stated(", sampling: 0.5"), stated(", sampling: \"0.5\""));
        assert_eq!(of("workers: 1"), Ok(None));
        for (bad, word) in [
            ("tracing: {endpoint: a}", "http://host:port"),
            ("tracing: {endpoint: \"https://a:1\"}", "https"),
            ("tracing: {endpoint: \"http://a:1\", sampling: 101}", "from 0 to 100"),
            ("tracing: {endpoint: \"http://a:1\", sampling: {}}", "from 0 to 100"),
            ("tracing: {sampling: 1}", "endpoint"),
            ("tracing: {endpoint: \"http://a:1\", rate: 1}", "rate"),
        ] {
            let problems = of(bad).unwrap_err();
            assert!(
                problems.len() == 1 && problems[0].contains(word) && problems[0].starts_with("tracing"),
                "{problems:?}"
            );
        }
    }
}
