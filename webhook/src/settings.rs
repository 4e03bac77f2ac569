//! The environment, parsed once; every bad value is reported at once.

use crate::inject::{PullPolicy, Quantity, Resources};
use crate::operator::Address;
use clap::ValueEnum;
use std::fmt::Display;
use std::str::FromStr;
use weft_api::tracing::{DEFAULT_SAMPLING, Endpoint, Sampling};
use weft_api::{TrustDomain, names};

/// Whether pods get the proxy as a native sidecar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NativeSidecar {
    /// When the API server is Kubernetes 1.29 or newer.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Weft's own namespace.
    pub namespace: String,
    /// Name of this pod: who writes Events.
    pub pod_name: String,
    /// Trust domain.
    pub trust_domain: TrustDomain,
    /// The operator.
    pub operator: Address,
    /// As a native sidecar?
    pub native_sidecar: NativeSidecar,
    /// Whether a CNI plugin redirects.
    pub cni: bool,
    /// Image of the proxy.
    pub proxy_image: String,
    /// When it is pulled.
    pub pull_policy: PullPolicy,
    /// Of the proxy.
    pub resources: Resources,
    /// The proxy's log filter.
    pub proxy_log: String,
    /// Whether proxies log requests.
    pub access_log: bool,
    /// Whether proxies tell auditors what policies for them decide.
    pub proxy_audit: bool,
    /// Whether auditors are told of each admission.
    pub audit: bool,
    /// Whether they are told by Kubernetes Events too.
    pub audit_events: bool,
    /// Where proxies tell of traces. `None`: nowhere.
    pub tracing: Option<Endpoint>,
    /// Percent of new traces that they tell of, as it was written.
    pub sampling: String,
    /// The proxy's worker threads.
    pub workers: u16,
    /// The webhook's own log filter.
    pub log: String,
}

impl Settings {
    /// Reads what `env` answers.
    ///
    /// # Errors
    /// One sentence for each bad value.
    pub fn parse(env: impl Fn(&str) -> Option<String>) -> Result<Self, Vec<String>> {
        let mut reader = Reader { env, problems: Vec::new() };
        let namespace = reader.text("WEFT_NAMESPACE", "weft-system");
        let operator = format!("{}.{namespace}.svc.cluster.local:{}", names::OPERATOR, names::OPERATOR_PORT);
        let trust_domain = reader.parsed("WEFT_TRUST_DOMAIN", names::TRUST_DOMAIN);
        let operator = reader.parsed("WEFT_OPERATOR_ADDRESS", &operator);
        let workers = reader.parsed::<u16>("WEFT_PROXY_WORKERS", "1").filter(|n| (1..=64).contains(n));
        if workers.is_none() {
            reader.problems.push("WEFT_PROXY_WORKERS must be a number from 1 to 64".into());
        }
        let sidecar = [("auto", NativeSidecar::Auto), ("on", NativeSidecar::On), ("off", NativeSidecar::Off)];
        let native_sidecar = reader.one_of("WEFT_NATIVE_SIDECAR", &sidecar);
        let access_log = reader.one_of("WEFT_ACCESS_LOG", &[("on", true), ("off", false)]);
        let proxy_audit = reader.one_of("WEFT_PROXY_AUDIT", &[("on", true), ("off", false)]);
        let audit = reader.one_of("WEFT_AUDIT", &[("on", true), ("off", false)]);
        let audit_events = reader.one_of("WEFT_AUDIT_EVENTS", &[("on", true), ("off", false)]);
        let cni = reader.one_of("WEFT_REDIRECTION", &[("init", false), ("cni", true)]);
        let tracing = reader.endpoint("WEFT_PROXY_TRACING_ENDPOINT");
        // Only judged here: the proxy reads the same text.
        reader.parsed::<Sampling>("WEFT_PROXY_TRACING_SAMPLING", DEFAULT_SAMPLING);
        let sampling = reader.text("WEFT_PROXY_TRACING_SAMPLING", DEFAULT_SAMPLING);
        let pull_policy = reader.pull_policy();
        let resources = Resources {
            cpu_request: reader.quantity("WEFT_PROXY_CPU_REQUEST"),
            cpu_limit: reader.quantity("WEFT_PROXY_CPU_LIMIT"),
            memory_request: reader.quantity("WEFT_PROXY_MEMORY_REQUEST"),
            memory_limit: reader.quantity("WEFT_PROXY_MEMORY_LIMIT"),
        };
        let (Some(trust_domain), Some(operator), Some(workers), true) =
            (trust_domain, operator, workers, reader.problems.is_empty())
        else {
            return Err(reader.problems);
        };
        Ok(Self {
            trust_domain,
            operator,
            native_sidecar,
            cni,
            proxy_image: reader.text(
                "WEFT_PROXY_IMAGE",
                concat!("ghcr.io/weft-mesh/weft-proxy:", env!("CARGO_PKG_VERSION")),
            ),
            pull_policy,
            resources,
            proxy_log: reader.text("WEFT_PROXY_LOG", "info"),
            access_log,
            proxy_audit,
            audit,
            audit_events,
            tracing,
            sampling,
            workers,
            log: reader.text("WEFT_LOG", "info"),
            pod_name: reader.text("WEFT_POD_NAME", names::WEBHOOK),
            namespace,
        })
    }
}

struct Reader<F> {
    env: F,
    problems: Vec<String>,
}

impl<F: Fn(&str) -> Option<String>> Reader<F> {
    /// An empty value is the same as none.
    fn given(&self, name: &str) -> Option<String> {
        (self.env)(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    fn text(&self, name: &str, default: &str) -> String {
        self.given(name).unwrap_or_else(|| default.to_owned())
    }

    fn parsed<T: FromStr<Err: Display>>(&mut self, name: &str, default: &str) -> Option<T> {
        self.text(name, default).parse().map_err(|error| self.problems.push(format!("{name}: {error}"))).ok()
    }

    fn one_of<T: Copy>(&mut self, name: &str, choices: &[(&str, T)]) -> T {
        let given = self.given(name);
        let found = given.as_deref().and_then(|text| choices.iter().find(|(word, _)| *word == text));
        if found.is_none() && given.is_some() {
            let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
            self.problems.push(format!("{name} must be one of {}", words.join(", ")));
        }
        found.unwrap_or(&choices[0]).1
    }

    fn pull_policy(&mut self) -> PullPolicy {
        let name = "WEFT_PROXY_IMAGE_PULL_POLICY";
        self.given(name)
            .map(|text| {
                PullPolicy::from_str(&text, false).unwrap_or_else(|_| {
                    self.problems.push(format!("{name} must be one of IfNotPresent, Always, Never"));
                    PullPolicy::default()
                })
            })
            .unwrap_or_default()
    }

    fn endpoint(&mut self, name: &str) -> Option<Endpoint> {
        let given = self.given(name)?;
        given.parse().map_err(|error| self.problems.push(format!("{name}: {error}"))).ok()
    }

    fn quantity(&mut self, name: &str) -> Option<Quantity> {
        match self.given(name)?.parse() {
            Ok(quantity) => Some(quantity),
            Err(error) => {
                self.problems.push(format!("{name}: {error}"));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_given_is_enough() {
        let settings = Settings::parse(|_| None).unwrap();
        assert_eq!(settings.operator.to_string(), "weft-operator.weft-system.svc.cluster.local:15010");
        assert_eq!(
            (settings.workers, settings.access_log, settings.native_sidecar),
            (1, true, NativeSidecar::Auto)
        );
    }

    #[test]
    fn every_bad_value_is_named_at_once() {
        let bad = |name: &str| (name != "WEFT_NAMESPACE" && name != "WEFT_LOG").then(|| "!bad!".to_owned());
        let problems = Settings::parse(bad).unwrap_err().join("\n");
        for name in [
            "WEFT_TRUST_DOMAIN",
            "WEFT_OPERATOR_ADDRESS",
            "WEFT_PROXY_WORKERS",
            "WEFT_NATIVE_SIDECAR",
            "WEFT_REDIRECTION",
            "WEFT_ACCESS_LOG",
            "WEFT_PROXY_AUDIT",
            "WEFT_AUDIT",
            "WEFT_PROXY_TRACING_ENDPOINT",
            "WEFT_PROXY_TRACING_SAMPLING",
            "WEFT_PROXY_IMAGE_PULL_POLICY",
            "WEFT_PROXY_CPU_REQUEST",
            "WEFT_PROXY_MEMORY_LIMIT",
        ] {
            assert!(problems.contains(name), "{name} is not in:\n{problems}");
        }
    }
}
