//! Start-up configuration, read once from the environment into one typed struct. Every bad value is reported, not
//! only the first. Nothing here changes while the proxy runs, and nothing here is about other workloads.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use weft_api::tracing::{DEFAULT_SAMPLING, Endpoint, Sampling};
use weft_api::{Identity, TrustDomain, names};

use crate::{logging, memory};

/// Exit code for bad configuration (`EX_USAGE` of sysexits.h).
pub const EXIT_BAD_CONFIG: u8 = 64;

/// Everything that the environment says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The own pod.
    pub pod: Pod,
    /// Who this workload is; the certificate must say the same.
    pub identity: Identity,
    /// The control plane.
    pub operator: Operator,
    /// `tracing` filter for the start.
    pub log: String,
    /// Whether each request and connection is logged.
    pub access_log: bool,
    /// Whether policies that are for auditors have their events.
    pub audit: bool,
    /// Who is told of traces. `None`: nobody.
    pub tracing: Option<Tracing>,
    /// Threads of the data path.
    pub workers: usize,
    /// How long draining may take before what is left is closed.
    pub drain_timeout: Duration,
    /// Connections at the same time, in and out together.
    pub max_connections: usize,
    /// Where to listen.
    pub ports: Ports,
    /// The projected ServiceAccount token.
    pub token_file: PathBuf,
    /// The trust bundle.
    pub bundle_file: PathBuf,
    /// Bytes that the process may hold, in place of the control group's limit.
    pub memory_limit: Option<u64>,
}

/// Who is told of how many traces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracing {
    /// The collector.
    pub endpoint: Endpoint,
    /// How many of those that begin here.
    pub sampling: Sampling,
}

/// The own pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its uid, if told.
    pub uid: String,
    /// Its addresses, never empty.
    pub ips: Vec<IpAddr>,
}

/// How to reach the operator, and who it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// DNS name (or, in tests, an address); its certificate must be for it.
    pub host: String,
    /// gRPC port.
    pub port: u16,
    /// Its identity.
    pub identity: Identity,
}

/// Where the proxy listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Redirected outgoing connections.
    pub outbound: u16,
    /// Redirected incoming connections.
    pub inbound: u16,
    /// Admin API, loopback only.
    pub admin: u16,
    /// Metrics and probes.
    pub metrics: u16,
    /// By which the proxy finds out whether traffic is redirected to it; 0: it does not.
    pub check: u16,
}

/// All that is wrong with the environment.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bad configuration: {}", self.0.join("; "))
    }
}

impl Settings {
    /// All variables, for `--help`.
    pub const HELP: &str = "\
Environment:
  WEFT_POD_NAME, WEFT_POD_NAMESPACE, WEFT_POD_UID, WEFT_POD_IPS   the own pod (addresses separated by commas)
  WEFT_SERVICE_ACCOUNT      its ServiceAccount
  WEFT_OPERATOR_ADDRESS     host:port of the operator
  WEFT_OPERATOR_NAMESPACE   the operator's namespace, if the host does not say it
  WEFT_TRUST_DOMAIN         default cluster.local
  WEFT_LOG                  log filter, default info
  WEFT_ACCESS_LOG           on (default) or off
  WEFT_AUDIT                on (default) or off: events of policies that are to be audited
  WEFT_TRACING_ENDPOINT     http://host:port of a collector that takes OTLP over HTTP; absent: no traces
  WEFT_TRACING_SAMPLING     percent of new traces that it is told of, default 1
  WEFT_WORKERS              threads of the data path, default 1
  WEFT_DRAIN_TIMEOUT        default 25s
  WEFT_MAX_CONNECTIONS      default 10000
  WEFT_MEMORY_LIMIT         such as 64Mi, default the control group's; new work is refused above 90 % of it
  WEFT_TOKEN_FILE, WEFT_BUNDLE_FILE                               the projected token and the trust bundle
  WEFT_OUTBOUND_PORT, WEFT_INBOUND_PORT, WEFT_ADMIN_PORT, WEFT_METRICS_PORT
  WEFT_CHECK_PORT           by which it finds out whether traffic is redirected to it; 0: it does not";

    /// From the process's environment.
    pub fn from_env() -> Result<Self, Problems> {
        Self::parse(|name| match std::env::var(name) {
            Ok(value) => Some(value),
            Err(std::env::VarError::NotPresent) => None,
            // Not UTF-8: no setting may be, and each one's parser says so.
            Err(std::env::VarError::NotUnicode(value)) => Some(value.to_string_lossy().into_owned()),
        })
    }

    /// From any source of variables.
    pub fn parse(var: impl Fn(&str) -> Option<String>) -> Result<Self, Problems> {
        let mut read = Reader { var, problems: Vec::new() };
        let trust_domain: Option<TrustDomain> =
            read.parsed("WEFT_TRUST_DOMAIN", Some(names::TRUST_DOMAIN), |s| {
                s.parse().map_err(|e| format!("{e}"))
            });
        let name = read.required("WEFT_POD_NAME");
        let namespace = read.required("WEFT_POD_NAMESPACE");
        let ips = read.parsed("WEFT_POD_IPS", None, addresses);
        let account = read.required("WEFT_SERVICE_ACCOUNT");
        let operator = read.parsed("WEFT_OPERATOR_ADDRESS", None, host_and_port);
        let operator_namespace = read.optional("WEFT_OPERATOR_NAMESPACE");
        let log = read.parsed("WEFT_LOG", Some("info"), |s| match logging::parse(s) {
            Ok(_) => Ok(s.to_owned()),
            Err(error) => Err(error.to_string()),
        });
        let access_log = read.parsed("WEFT_ACCESS_LOG", Some("on"), on_or_off);
        let audit = read.parsed("WEFT_AUDIT", Some("on"), on_or_off);
        let endpoint = match read.optional("WEFT_TRACING_ENDPOINT") {
            Some(_) => read.parsed("WEFT_TRACING_ENDPOINT", None, |s| s.parse().map_err(text)).map(Some),
            None => Some(None),
        };
        let sampling =
            read.parsed("WEFT_TRACING_SAMPLING", Some(DEFAULT_SAMPLING), |s| s.parse().map_err(text));
        let workers = read.parsed("WEFT_WORKERS", Some("1"), |s| number(s, 1..=64));
        let drain_timeout = read.parsed("WEFT_DRAIN_TIMEOUT", Some("25s"), duration);
        let max_connections =
            read.parsed("WEFT_MAX_CONNECTIONS", Some("10000"), |s| number(s, 1..=1_000_000));
        let outbound = read.port("WEFT_OUTBOUND_PORT", names::OUTBOUND_PORT);
        let inbound = read.port("WEFT_INBOUND_PORT", names::INBOUND_PORT);
        let admin = read.port("WEFT_ADMIN_PORT", names::ADMIN_PORT);
        let metrics = read.port("WEFT_METRICS_PORT", names::METRICS_PORT);
        let check = read.port("WEFT_CHECK_PORT", names::CHECK_PORT);
        let token_file = read.optional("WEFT_TOKEN_FILE").unwrap_or_else(|| names::TOKEN_PATH.to_owned());
        let bundle_file = read.optional("WEFT_BUNDLE_FILE").unwrap_or_else(|| names::BUNDLE_PATH.to_owned());
        let memory_limit = match read.optional("WEFT_MEMORY_LIMIT") {
            Some(_) => read.parsed("WEFT_MEMORY_LIMIT", None, memory::quantity).map(Some),
            None => Some(None),
        };
        let uid = read.optional("WEFT_POD_UID").unwrap_or_default();

        let identity = workload(&mut read, trust_domain.as_ref(), namespace.as_deref(), account.as_deref());
        let operator = operator.and_then(|(host, port)| {
            let namespace = operator_namespace.or_else(|| namespace_of(&host));
            let Some(namespace) = namespace else {
                read.problems.push(format!(
                    "WEFT_OPERATOR_NAMESPACE must be set, for `{host}` is not of the form <service>.<namespace>.svc..."
                ));
                return None;
            };
            let identity = workload(&mut read, trust_domain.as_ref(), Some(&namespace), Some(names::OPERATOR))?;
            Some(Operator { host, port, identity })
        });

        // Each `None` has left a sentence in `problems`.
        let settings = (|| {
            Some(Self {
                pod: Pod { name: name?, namespace: namespace?, uid, ips: ips? },
                identity: identity?,
                operator: operator?,
                log: log?,
                access_log: access_log?,
                audit: audit?,
                tracing: tracing(endpoint?, sampling?),
                workers: workers?,
                drain_timeout: drain_timeout?,
                max_connections: max_connections?,
                ports: Ports {
                    outbound: outbound?,
                    inbound: inbound?,
                    admin: admin?,
                    metrics: metrics?,
                    check: check?,
                },
                token_file: token_file.into(),
                bundle_file: bundle_file.into(),
                memory_limit: memory_limit?,
            })
        })();
        match settings {
            Some(settings) if read.problems.is_empty() => Ok(settings),
            _ => Err(Problems(read.problems)),
        }
    }
}

struct Reader<F> {
    var: F,
    problems: Vec<String>,
}

impl<F: Fn(&str) -> Option<String>> Reader<F> {
    // An empty variable counts as absent: that is what an unset Helm value or fieldRef becomes.
    fn optional(&self, name: &str) -> Option<String> {
        (self.var)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    fn required(&mut self, name: &str) -> Option<String> {
        let value = self.optional(name);
        if value.is_none() {
            self.problems.push(format!("{name} is not set"));
        }
        value
    }

    fn parsed<T>(
        &mut self,
        name: &str,
        default: Option<&str>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let value = match default {
            Some(default) => self.optional(name).unwrap_or_else(|| default.to_owned()),
            None => self.required(name)?,
        };
        parse(&value).map_err(|error| self.problems.push(format!("{name}: {error}"))).ok()
    }

    fn port(&mut self, name: &str, default: u16) -> Option<u16> {
        // 0 lets the kernel choose, for tests.
        self.parsed(name, Some(&default.to_string()), |s| number(s, 0..=usize::from(u16::MAX)))
            .and_then(|port| u16::try_from(port).ok())
    }
}

fn workload<F>(
    read: &mut Reader<F>,
    trust_domain: Option<&TrustDomain>,
    namespace: Option<&str>,
    account: Option<&str>,
) -> Option<Identity> {
    let text = format!("spiffe://{}/ns/{}/sa/{}", trust_domain?, namespace?, account?);
    text.parse().map_err(|error| read.problems.push(format!("{error}"))).ok()
}

fn addresses(text: &str) -> Result<Vec<IpAddr>, String> {
    text.split(',')
        .map(str::trim)
        .filter(|s| !s.is_empty())
        .map(|s| s.parse().map_err(|_| format!("`{s}` is not an IP address")))
        .collect::<Result<Vec<_>, _>>()
        .and_then(|ips| if ips.is_empty() { Err("holds no address".to_owned()) } else { Ok(ips) })
}

pub(crate) fn host_and_port(text: &str) -> Result<(String, u16), String> {
    let form = || format!("`{text}` is not host:port");
    let (host, port) = text.rsplit_once(':').ok_or_else(form)?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let port = port.parse().map_err(|_| form())?;
    let fits = host.parse::<IpAddr>().is_ok() || rustls::pki_types::DnsName::try_from(host).is_ok();
    if port == 0 || !fits { Err(form()) } else { Ok((host.to_owned(), port)) }
}

fn namespace_of(host: &str) -> Option<String> {
    let mut labels = host.split('.');
    let (_service, namespace, svc) = (labels.next()?, labels.next()?, labels.next()?);
    (svc == "svc").then(|| namespace.to_owned())
}

fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("`{text}` is neither on nor off")),
    }
}

fn text(error: impl fmt::Display) -> String {
    error.to_string()
}

fn tracing(endpoint: Option<Endpoint>, sampling: Sampling) -> Option<Tracing> {
    endpoint.map(|endpoint| Tracing { endpoint, sampling })
}

fn number(text: &str, range: std::ops::RangeInclusive<usize>) -> Result<usize, String> {
    let wrong = || format!("`{text}` is not a number from {} to {}", range.start(), range.end());
    let number = usize::from_str(text).map_err(|_| wrong())?;
    if range.contains(&number) { Ok(number) } else { Err(wrong()) }
}

// The form of the resources' durations: one number, one unit.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration such as 250ms, 30s or 2m, up to an hour");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (count, unit) = text.split_at(digits);
    let count: u64 = count.parse().map_err(|_| wrong())?;
    let millis = match unit {
        "ms" => Some(count),
        "s" => count.checked_mul(1_000),
        "m" => count.checked_mul(60_000),
        "h" => count.checked_mul(3_600_000),
        _ => None,
    };
    millis.filter(|ms| *ms <= 3_600_000).map(Duration::from_millis).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn good() -> HashMap<&'static str, String> {
        [
            ("WEFT_POD_NAME", "front-1"),
            ("WEFT_POD_NAMESPACE", "shop"),
            ("WEFT_POD_UID", "u"),
            ("WEFT_POD_IPS", "10.0.0.7,fd00::7"),
            ("WEFT_SERVICE_ACCOUNT", "front"),
            ("WEFT_OPERATOR_ADDRESS", "weft-operator.weft-system.svc.cluster.local:15010"),
        ]
        .map(|(k, v)| (k, v.to_owned()))
        .into()
    }

    fn parse(vars: &HashMap<&'static str, String>) -> Result<Settings, Problems> {
        Settings::parse(|name| vars.get(name).cloned())
    }

    #[test]
    fn what_the_webhook_sets_is_enough() {
        let settings = parse(&good()).unwrap();
        assert_eq!(settings.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/front");
        assert_eq!(
            settings.operator.identity.to_string(),
            "spiffe://cluster.local/ns/weft-system/sa/weft-operator"
        );
        assert_eq!(settings.pod.ips.len(), 2);
        assert_eq!((settings.workers, settings.access_log), (1, true));
        assert_eq!(settings.tracing, None);
        assert_eq!(settings.ports.inbound, 15006);
        assert_eq!(settings.drain_timeout, Duration::from_secs(25));
    }

    #[test]
    fn every_bad_value_is_reported_at_once() {
        let mut vars = good();
        vars.remove("WEFT_POD_NAME");
        for (name, bad) in [
            ("WEFT_POD_IPS", "10.0.0.7,x"),
            ("WEFT_OPERATOR_ADDRESS", "weft-operator"),
            ("WEFT_TRUST_DOMAIN", "Not A Domain"),
            ("WEFT_LOG", "weft=nonsense"),
            ("WEFT_ACCESS_LOG", "yes"),
            ("WEFT_AUDIT", "loud"),
            ("WEFT_TRACING_ENDPOINT", "otel:4318"),
            ("WEFT_TRACING_SAMPLING", "101"),
            ("WEFT_WORKERS", "0"),
            ("WEFT_DRAIN_TIMEOUT", "2 hours"),
            ("WEFT_MAX_CONNECTIONS", "many"),
            ("WEFT_INBOUND_PORT", "70000"),
            ("WEFT_MEMORY_LIMIT", "much"),
        ] {
            vars.insert(name, bad.to_owned());
        }
        let Problems(problems) = parse(&vars).unwrap_err();
        assert_eq!(problems.len(), 14, "{problems:#?}");
        for name in vars
            .keys()
            .filter(|n| !matches!(**n, "WEFT_POD_NAMESPACE" | "WEFT_POD_UID" | "WEFT_SERVICE_ACCOUNT"))
        {
            assert!(problems.iter().any(|p| p.starts_with(name)), "{name} is not in {problems:#?}");
        }
    }

    #[test]
    fn an_operator_outside_of_a_cluster_needs_its_namespace() {
        let mut vars = good();
        vars.insert("WEFT_OPERATOR_ADDRESS", "localhost:15010".to_owned());
        assert!(parse(&vars).unwrap_err().to_string().contains("WEFT_OPERATOR_NAMESPACE"));
        vars.insert("WEFT_OPERATOR_NAMESPACE", "mesh".to_owned());
        assert_eq!(parse(&vars).unwrap().operator.identity.namespace, "mesh");
        vars.insert("WEFT_OPERATOR_ADDRESS", "[::1]:15010".to_owned());
        assert_eq!(parse(&vars).unwrap().operator.host, "::1");
    }

    #[test]
    fn a_service_account_that_is_no_identity_is_a_problem() {
        let mut vars = good();
        vars.insert("WEFT_SERVICE_ACCOUNT", "a/b".to_owned());
        assert!(parse(&vars).is_err());
    }

    proptest! {
        #[test]
        fn no_value_panics(name in prop::sample::select(vec!["WEFT_POD_IPS", "WEFT_OPERATOR_ADDRESS", "WEFT_LOG", "WEFT_DRAIN_TIMEOUT", "WEFT_WORKERS", "WEFT_TRUST_DOMAIN"]), value in "\\PC{0,40}") {
            let mut vars = good();
            vars.insert(name, value);
            let _ = parse(&vars);
        }
    }
}
