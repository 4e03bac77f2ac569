//! What one pod asks for in its annotations. A value that means nothing is a warning and the default holds, because a mistake
//! in an annotation must not keep a rollout from starting. It never decides what the values are used for.

use super::settings::{Resources, Settings};
use super::short;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use tracing_subscriber::filter::Targets;
use weft_api::names;
use weft_api::tracing::{Endpoint, EndpointError, Sampling};

/// Most entries in a list of ports or networks.
const MAX_ENTRIES: usize = 64;

/// The annotations, each with what it overrides in `docs/injection.md`.
pub const SKIP_INBOUND_PORTS: &str = "weft.dev/skip-inbound-ports";
/// Ports of other pods and hosts that are reached without the proxy.
pub const SKIP_OUTBOUND_PORTS: &str = "weft.dev/skip-outbound-ports";
/// Networks that are reached without the proxy.
pub const SKIP_OUTBOUND_CIDRS: &str = "weft.dev/skip-outbound-cidrs";
const CPU_REQUEST: &str = "weft.dev/proxy-cpu-request";
const CPU_LIMIT: &str = "weft.dev/proxy-cpu-limit";
const MEMORY_REQUEST: &str = "weft.dev/proxy-memory-request";
const MEMORY_LIMIT: &str = "weft.dev/proxy-memory-limit";
const LOG_LEVEL: &str = "weft.dev/log-level";
const ACCESS_LOG: &str = "weft.dev/access-log";
const TRACE_ENDPOINT: &str = "weft.dev/trace-endpoint";
const TRACE_SAMPLING: &str = "weft.dev/trace-sampling";
const WORKERS: &str = "weft.dev/proxy-workers";
/// Annotations that the webhook reads or writes; another one under `weft.dev/` is probably a slip of the pen.
const KNOWN: [&str; 17] = [
    SKIP_INBOUND_PORTS,
    SKIP_OUTBOUND_PORTS,
    SKIP_OUTBOUND_CIDRS,
    CPU_REQUEST,
    CPU_LIMIT,
    MEMORY_REQUEST,
    MEMORY_LIMIT,
    LOG_LEVEL,
    ACCESS_LOG,
    TRACE_ENDPOINT,
    TRACE_SAMPLING,
    WORKERS,
    names::INJECT,
    names::INJECTED,
    names::INJECTION_STATUS,
    names::REDIRECTION,
    names::OUTBOUND_POLICY,
];

/// A pod's own values, or the defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Overrides {
    /// Ports of the pod that are reached without the proxy.
    pub skip_inbound_ports: BTreeSet<u16>,
    /// Ports elsewhere that the pod reaches without the proxy.
    pub skip_outbound_ports: BTreeSet<u16>,
    /// Networks that the pod reaches without the proxy.
    pub skip_outbound_cidrs: Vec<String>,
    /// CPU and memory of the proxy.
    pub resources: Resources,
    /// The proxy's log filter.
    pub log: String,
    /// Whether the proxy logs each request.
    pub access_log: bool,
    /// Where the proxy tells of traces. `None`: nowhere.
    pub tracing: Option<Endpoint>,
    /// Percent of new traces that the proxy tells of.
    pub sampling: String,
    /// The proxy's worker threads.
    pub workers: u16,
}

impl Overrides {
    /// Reads the annotations; each value that means nothing adds a warning.
    pub fn read(pod: &Value, settings: &Settings, warnings: &mut Vec<String>) -> Self {
        let annotations = pod.pointer("/metadata/annotations").and_then(Value::as_object);
        let mut reader = Reader { annotations, warnings };
        let overrides = Self {
            skip_inbound_ports: reader.value(SKIP_INBOUND_PORTS, parse_ports).unwrap_or_default(),
            skip_outbound_ports: reader.value(SKIP_OUTBOUND_PORTS, parse_ports).unwrap_or_default(),
            skip_outbound_cidrs: reader.value(SKIP_OUTBOUND_CIDRS, parse_cidrs).unwrap_or_default(),
            resources: resources(&mut reader, &settings.resources),
            log: reader.value(LOG_LEVEL, parse_log).unwrap_or_else(|| settings.log.clone()),
            access_log: reader.value(ACCESS_LOG, parse_switch).unwrap_or(settings.access_log),
            tracing: reader.value(TRACE_ENDPOINT, parse_endpoint).unwrap_or_else(|| settings.tracing.clone()),
            sampling: reader
                .value(TRACE_SAMPLING, parse_sampling)
                .unwrap_or_else(|| settings.sampling.clone()),
            workers: reader.value(WORKERS, parse_workers).unwrap_or(settings.workers),
        };
        // The operator reads it; here it is only judged.
        reader.value(names::OUTBOUND_POLICY, parse_outbound_policy);
        reader.unknown();
        overrides
    }
}

struct Reader<'a, 'w> {
    annotations: Option<&'a serde_json::Map<String, Value>>,
    warnings: &'w mut Vec<String>,
}

impl Reader<'_, '_> {
    fn value<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let text = self.annotations?.get(key)?.as_str().unwrap_or_default();
        match parse(text.trim()) {
            Ok(value) => Some(value),
            Err(remedy) => {
                self.warnings.push(format!("annotation {key} is `{}` and is ignored: {remedy}", short(text)));
                None
            }
        }
    }

    fn unknown(&mut self) {
        let keys = self.annotations.into_iter().flat_map(serde_json::Map::keys);
        for key in keys.filter(|key| key.starts_with("weft.dev/") && !KNOWN.contains(&key.as_str())).take(8) {
            self.warnings
                .push(format!("annotation {} is unknown and is ignored: see docs/injection.md", short(key)));
        }
    }
}

/// A request above a limit would make the API server refuse the pod, so where only one of the two is the pod's own, the default
/// follows it.
fn resources(reader: &mut Reader<'_, '_>, defaults: &Resources) -> Resources {
    let mut pair = |request_key: &str,
                    limit_key: &str,
                    request: &Option<Quantity>,
                    limit: &Option<Quantity>| {
        let own_request = reader.value(request_key, str::parse::<Quantity>);
        let own_limit = reader.value(limit_key, str::parse::<Quantity>);
        match (&own_request, &own_limit) {
            (Some(r), Some(l)) if r > l => {
                reader.warnings.push(format!(
                    "annotation {request_key} ({r}) is above {limit_key} ({l}), and both are ignored: raise the limit or lower the request"
                ));
                (request.clone(), limit.clone())
            }
            (Some(r), None) => {
                (own_request.clone(), limit.clone().map(|l| if l < *r { r.clone() } else { l }))
            }
            (None, Some(l)) => {
                (request.clone().map(|r| if r > *l { l.clone() } else { r }), own_limit.clone())
            }
            _ => (own_request.or_else(|| request.clone()), own_limit.or_else(|| limit.clone())),
        }
    };
    let (cpu_request, cpu_limit) = pair(CPU_REQUEST, CPU_LIMIT, &defaults.cpu_request, &defaults.cpu_limit);
    let (memory_request, memory_limit) =
        pair(MEMORY_REQUEST, MEMORY_LIMIT, &defaults.memory_request, &defaults.memory_limit);
    Resources { cpu_request, cpu_limit, memory_request, memory_limit }
}

/// A comma-separated list of port numbers.
///
/// # Errors
/// The remedy.
fn parse_ports(text: &str) -> Result<BTreeSet<u16>, String> {
    let remedy =
        || "write port numbers from 1 to 65535 with commas between them, for example 9090,9091".to_owned();
    let ports: BTreeSet<u16> = entries(text)
        .map(|entry| entry.parse().ok().filter(|port| *port > 0).ok_or_else(remedy))
        .collect::<Result<_, _>>()?;
    if ports.len() > MAX_ENTRIES {
        return Err(format!("write at most {MAX_ENTRIES} ports"));
    }
    match ports
        .iter()
        .find(|port| [names::OUTBOUND_PORT, names::INBOUND_PORT, names::CHECK_PORT].contains(port))
    {
        Some(port) => Err(format!("leave out {port}, on which the proxy itself listens")),
        None => Ok(ports),
    }
}

/// A comma-separated list of networks, `address/bits` or a single address.
///
/// # Errors
/// The remedy.
fn parse_cidrs(text: &str) -> Result<Vec<String>, String> {
    let cidrs = entries(text).map(parse_cidr).collect::<Option<Vec<_>>>().ok_or_else(|| {
        "write networks as address/bits with commas between them, for example 10.20.0.0/16,fd00::/8"
            .to_owned()
    })?;
    if cidrs.len() > MAX_ENTRIES {
        return Err(format!("write at most {MAX_ENTRIES} networks"));
    }
    Ok(cidrs)
}

fn parse_cidr(entry: &str) -> Option<String> {
    let (address, bits) =
        entry.split_once('/').map_or((entry, None), |(address, bits)| (address, Some(bits)));
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits: u8 = match bits {
        Some(bits) if !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit()) => bits.parse().ok()?,
        Some(_) => return None,
        None => most,
    };
    (bits <= most).then(|| format!("{address}/{bits}"))
}

fn entries(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}

fn parse_log(text: &str) -> Result<String, String> {
    let remedy = "write error, warn, info, debug or trace, or a filter such as info,weft_proxy=debug";
    let fits = !text.is_empty() && text.len() <= 256 && text.parse::<Targets>().is_ok();
    // A bare word that is no level would be taken for the name of a module, and silence everything else.
    let bare = |word: &str| word.contains('=') || word.parse::<tracing::metadata::LevelFilter>().is_ok();
    if fits && entries(text).all(bare) { Ok(text.to_owned()) } else { Err(remedy.into()) }
}

fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err("write on or off, in quotes".into()),
    }
}

/// Empty: no traces of this pod.
fn parse_endpoint(text: &str) -> Result<Option<Endpoint>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|error: EndpointError| error.to_string())
}

fn parse_sampling(text: &str) -> Result<String, String> {
    match text.parse::<Sampling>() {
        Ok(_) => Ok(text.to_owned()),
        Err(remedy) => Err(format!("{remedy}, in quotes")),
    }
}

fn parse_outbound_policy(text: &str) -> Result<(), String> {
    match text {
        names::ALLOW_ANY | names::REGISTERED_ONLY => Ok(()),
        _ => Err(format!("write {} or {}", names::ALLOW_ANY, names::REGISTERED_ONLY)),
    }
}

fn parse_workers(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|n| (1..=64).contains(n)).ok_or_else(|| "write a number from 1 to 64".into())
}

/// A Kubernetes quantity, not negative: compared by value, written as it came.
#[derive(Clone, Debug)]
pub struct Quantity {
    text: String,
    value: f64,
}

impl FromStr for Quantity {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let remedy = || "write a quantity such as 100m or 0.5 of CPU, 64Mi of memory".to_owned();
        let digits = text.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let (number, suffix) = text.split_at(digits);
        let number: f64 =
            if text.len() <= 32 { number.parse().map_err(|_| remedy())? } else { return Err(remedy()) };
        let factor = match suffix {
            "" => 1.0,
            "n" => 1e-9,
            "u" => 1e-6,
            "m" => 1e-3,
            "k" => 1e3,
            "M" => 1e6,
            "G" => 1e9,
            "T" => 1e12,
            "P" => 1e15,
            "E" => 1e18,
            "Ki" => 1024.0,
            "Mi" => 1024f64.powi(2),
            "Gi" => 1024f64.powi(3),
            "Ti" => 1024f64.powi(4),
            "Pi" => 1024f64.powi(5),
            "Ei" => 1024f64.powi(6),
            _ => return Err(remedy()),
        };
        if number == 0.0 {
            return Err("write a quantity above zero".into());
        }
        Ok(Self { text: text.to_owned(), value: number * factor })
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        self.value.partial_cmp(&other.value)
    }
}
