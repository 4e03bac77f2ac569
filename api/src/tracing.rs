//! What a mesh says of distributed tracing: where spans go, and how many traces are told of. Read by the webhook, which writes
//! it into pods, and by the proxy, which does it. Pure; it opens nothing.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// Percent of new traces that are told of when nothing else is said.
pub const DEFAULT_SAMPLING: &str = "1";
/// OpenTelemetry's specification, "OTLP/HTTP Request": appended to an endpoint that names no path.
pub const DEFAULT_PATH: &str = "/v1/traces";
/// RFC 1035 section 2.3.4, and room for a path.
const LONGEST: usize = 1024;

/// A collector that takes OTLP over HTTP, in plain text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// DNS name, or address without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Begins with a slash.
    pub path: String,
}

/// Why a text is no endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// TLS would need roots to trust, and a mesh has its own way to them.
    #[error("https is not spoken: write http://, and let a collector in the cluster pass it on")]
    Https,
    /// Anything else.
    #[error(
        "write http://host:port of a collector that takes OTLP over HTTP, such as http://otel-collector.observability:4318"
    )]
    Form,
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        if text.starts_with("https://") {
            return Err(EndpointError::Https);
        }
        let rest = text.strip_prefix("http://").ok_or(EndpointError::Form)?;
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, "/"),
        };
        let (host, port) = authority.rsplit_once(':').ok_or(EndpointError::Form)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(EndpointError::Form)?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(address) => address.parse::<Ipv6Addr>().map_err(|_| EndpointError::Form)?.to_string(),
            None => host.to_owned(),
        };
        let of_host = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b) || b == b':';
        let of_path = |b: u8| b.is_ascii_graphic() && !b"?#\"<>\\^`{}|".contains(&b);
        let v6 = authority.starts_with('[');
        let fits = !host.is_empty()
            && text.len() <= LONGEST
            && host.bytes().all(of_host)
            && (v6 || !host.contains(':'))
            && path.bytes().all(of_path);
        let path = if path == "/" { DEFAULT_PATH } else { path }.to_owned();
        if fits { Ok(Self { host, port, path }) } else { Err(EndpointError::Form) }
    }
}

impl Endpoint {
    /// Host and port, as in a URL.
    #[must_use]
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority(), self.path)
    }
}

/// How many new traces are told of: those whose id is at least this in its last 56 bits, which are random.
/// Source: OpenTelemetry's specification, "TraceState: Probability Sampling" (rejection threshold).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling(u64);

/// All values of the random part.
const ALL: u64 = 1 << 56;

impl Sampling {
    /// Whether a new trace of this id is told of: the same for whoever asks with the same percentage.
    #[must_use]
    pub fn takes(self, trace_id: &[u8; 16]) -> bool {
        u128::from_be_bytes(*trace_id) as u64 & (ALL - 1) >= self.0
    }
}

/// Why a text is no percentage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write percent of new traces, a number from 0 to 100 such as 1 or 0.1")]
pub struct SamplingError;

impl FromStr for Sampling {
    type Err = SamplingError;

    fn from_str(text: &str) -> Result<Self, SamplingError> {
        let fits = |percent: &f64| (0.0..=100.0).contains(percent);
        let percent: f64 = text.parse().ok().filter(fits).ok_or(SamplingError)?;
        Ok(Self(((1.0 - percent / 100.0) * ALL as f64).round() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_endpoint_is_a_host_a_port_and_perhaps_a_path() {
        for (text, host, port, path) in [
            ("http://otel:4318", "otel", 4318, "/v1/traces"),
            ("http://otel.observability.svc:4318/", "otel.observability.svc", 4318, "/v1/traces"),
            ("http://10.0.0.1:80/otlp/v1/traces", "10.0.0.1", 80, "/otlp/v1/traces"),
            ("http://[fd00::1]:4318", "fd00::1", 4318, "/v1/traces"),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!((endpoint.host.as_str(), endpoint.port, endpoint.path.as_str()), (host, port, path));
            assert_eq!(endpoint.to_string().parse(), Ok(endpoint));
        }
        assert_eq!("https://otel:4318".parse::<Endpoint>(), Err(EndpointError::Https));
        for bad in [
            "",
            "otel:4318",
            "http://otel",
            "http://:4318",
            "http://otel:0",
            "http://otel:70000",
            "http://u@otel:1",
            "http://o tel:1",
            "http://otel:1/a?b",
            "http://otel:1/a b",
            "http://fd00::1:80",
            "http://[x]:80",
            "grpc://a:1",
        ] {
            assert_eq!(bad.parse::<Endpoint>(), Err(EndpointError::Form), "{bad}");
        }
    }

    #[test]
    fn a_percentage_is_from_nothing_to_all() {
        let takes = |percent: &str, id: u128| percent.parse::<Sampling>().unwrap().takes(&id.to_be_bytes());
        let last = u128::from(ALL - 1);
        assert!(!takes("0", last) && !takes("0", 0) && !takes("0.0", u128::MAX));
        assert!(takes("100", 0) && takes("100", last));
        assert!(takes("50", last / 2 + 1) && !takes("50", last / 2));
        // Only the random part counts.
        assert!(takes("0.1", u128::MAX) && !takes("0.1", u128::MAX << 56));
        for bad in ["", "x", "-1", "100.1", "NaN", "inf", "1%", "1,5"] {
            assert_eq!(bad.parse::<Sampling>(), Err(SamplingError), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn whoever_takes_less_takes_nothing_that_others_do_not(id: u128, a in 0.0..100.0_f64, b in 0.0..100.0_f64) {
            let [less, more] = [a.min(b), a.max(b)].map(|p| p.to_string().parse::<Sampling>().unwrap());
            let id = id.to_be_bytes();
            prop_assert!(!less.takes(&id) || more.takes(&id));
        }

        #[test]
        fn about_as_many_are_taken_as_was_said(percent in 0.5..99.5_f64, seed: u64) {
            let sampling: Sampling = percent.to_string().parse().unwrap();
            // A sequence that fills the range evenly (Weyl), from anywhere.
            let ids = (0..20_000_u64).map(|n| seed.wrapping_add(n.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
            let taken = ids.filter(|id| sampling.takes(&u128::from(*id).to_be_bytes())).count() as f64;
            prop_assert!((taken / 200.0 - percent).abs() < 0.5, "{taken} of 20000 at {percent}");
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = (text.parse::<Endpoint>(), text.parse::<Sampling>());
        }
    }
}
