//! What is measured: each scenario says what clients and origin speak, how much, and at which rates. Values only.

use bytes::Bytes;

use crate::load::client::Kind;
use crate::load::http2::message;
use crate::origins::Says;
use crate::subjects::{Extra, ROUTES, Speaks, Task, Wire};

/// One of them.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// On the command line and in results; the letter of the family comes first.
    pub key: &'static str,
    /// In a line.
    pub title: &'static str,
    /// What is spoken.
    pub speaks: Speaks,
    /// How clients call the first proxy.
    pub enters: Wire,
    /// Which numbers of proxies make sense.
    pub hops: &'static [usize],
    /// By whom.
    pub kind: Kind,
    /// A request of HTTP/1.1, whole; a message of gRPC; what makes bytes come.
    pub request: Bytes,
    /// What the origin answers.
    pub says: Says,
    /// Closed loops: clients of each.
    pub clients: &'static [usize],
    /// Open loops: requests a second.
    pub rates: &'static [u32],
    /// In place of load: so many connections that do nothing.
    pub idle: Option<usize>,
    /// What proxies do besides passing on.
    pub extra: Extra,
    /// What has to be known to read the figures.
    pub note: Option<&'static str>,
}

/// Open files of a proxy beside those of its connections.
const SPARE_FILES: u64 = 1000;

impl Scenario {
    /// As far as so many open files go, of which a proxied connection takes two.
    pub fn fit(&mut self, files: u64) {
        let most = usize::try_from(files.saturating_sub(SPARE_FILES) / 2).unwrap_or(usize::MAX);
        self.idle = self.idle.map(|count| count.min(most));
    }

    /// For so many proxies.
    #[must_use]
    pub fn task(&self, hops: usize) -> Task {
        let mut task = Task {
            hops,
            enters: self.enters,
            speaks: self.speaks,
            connections: self.idle.unwrap_or(1000),
            extra: self.extra,
        };
        // Connections between two proxies are shared where requests are seen; to have one for each there is to see none.
        if self.idle.is_some() && hops == 2 {
            (task.enters, task.speaks) = (Wire::Plain, Speaks::Tcp);
        }
        task
    }
}

/// Clients of an open loop: at most as many requests are under way.
pub const PACED: usize = 32;

const EVERYTHING: &str = "access logs go to /dev/null by standard output. weft: timeout, retries, breaker, ejection; called side: limit by identity, \
    strict mTLS. envoy: timeout, retries, ejection, local limit; called side: RBAC by SPIFFE id. nginx: next upstream, limit_req, limit_conn, \
    allow/deny; called side: by name. haproxy: retries, rate by stick table, acl; called side: by name. weft and envoy trace 1 % of requests, and tell a sink by OTLP over HTTP.";

/// Every scenario, in the order of the table.
#[must_use]
pub fn all() -> Vec<Scenario> {
    let a = Scenario {
        key: "a",
        title: "HTTP/1.1 keep-alive, small bodies",
        speaks: Speaks::Http1,
        enters: Wire::Plain,
        hops: &[1, 2],
        kind: Kind::Http1,
        request: get("/", ""),
        says: Says::http1(128),
        clients: &[16, 64],
        rates: &[1000, 3000],
        idle: None,
        extra: Extra::Nothing,
        note: None,
    };
    let idle = Scenario {
        enters: Wire::Mtls,
        clients: &[],
        rates: &[],
        note: Some(
            "one hop: clients speak mTLS to it; two hops: opaque connections, each with its own mTLS between",
        ),
        ..a.clone()
    };
    let many: String = (0..16).map(|n| format!("x-header-{n:02}: {n:032}\r\n")).collect();
    let grpc = Scenario { speaks: Speaks::Grpc, says: Says::http2(0), request: message(128), ..a.clone() };
    vec![
        a.clone(),
        Scenario {
            key: "b",
            title: "HTTP/2, small bodies, 4 connections",
            speaks: Speaks::Http2,
            kind: Kind::Http2,
            says: Says::http2(128),
            ..a.clone()
        },
        Scenario {
            key: "c-unary",
            title: "gRPC unary, messages of 128 bytes, 4 connections",
            kind: Kind::Unary,
            ..grpc.clone()
        },
        Scenario {
            key: "c-stream",
            title: "gRPC streaming, messages of 128 bytes back and forth on open streams, 4 connections",
            kind: Kind::Streaming,
            ..grpc
        },
        Scenario {
            key: "d-16k",
            title: "HTTP/1.1 keep-alive, bodies of 16 KiB",
            says: Says::http1(16 * 1024),
            clients: &[16],
            rates: &[1000],
            ..a.clone()
        },
        Scenario {
            key: "d-1m",
            title: "HTTP/1.1 keep-alive, bodies of 1 MiB",
            says: Says::http1(1024 * 1024),
            clients: &[16],
            rates: &[100],
            ..a.clone()
        },
        Scenario {
            key: "e",
            title: "TCP bulk; what counts is 1 MiB",
            speaks: Speaks::Tcp,
            kind: Kind::Bulk,
            request: "!".into(),
            says: Says::Bulk,
            clients: &[1, 8],
            rates: &[],
            ..a.clone()
        },
        Scenario {
            key: "f-http",
            title: "a new mTLS connection for each request of HTTP/1.1, full handshakes",
            enters: Wire::Mtls,
            hops: &[1],
            kind: Kind::NewConnection,
            clients: &[16],
            rates: &[200],
            ..a.clone()
        },
        Scenario {
            key: "f-tcp",
            title: "a new connection for each request, opaque to the proxies",
            speaks: Speaks::Tcp,
            kind: Kind::NewConnection,
            clients: &[16],
            rates: &[200],
            note: Some("two hops: a subject may resume TLS sessions between them as it does by default"),
            ..a.clone()
        },
        Scenario { key: "g-1k", title: "1,000 idle mTLS connections", idle: Some(1000), ..idle.clone() },
        Scenario { key: "g-10k", title: "10,000 idle mTLS connections", idle: Some(10_000), ..idle },
        Scenario {
            key: "h",
            title: "HTTP/1.1, 100 routes by path on the first proxy, requests for the last one with 20 headers",
            request: get(&format!("/r{}/x", ROUTES - 1), &many),
            clients: &[16],
            rates: &[1000],
            extra: Extra::Routes,
            ..a.clone()
        },
        Scenario {
            key: "i",
            title: "HTTP/1.1, everything on: retries, limits, ejection, authorisation, access log, tracing",
            clients: &[16],
            rates: &[1000],
            extra: Extra::Everything,
            note: Some(EVERYTHING),
            ..a
        },
    ]
}

/// Those that are asked for: `a`, or `a,c-unary`, or a family by its letter; everything by nothing.
#[must_use]
pub fn chosen(names: &[String]) -> Vec<Scenario> {
    let wanted = |key: &str| names.iter().any(|name| key == name || key.split('-').next() == Some(name));
    all().into_iter().filter(|scenario| names.is_empty() || wanted(scenario.key)).collect()
}

/// As curl would ask, with some lines more.
fn get(path: &str, lines: &str) -> Bytes {
    format!("GET {path} HTTP/1.1\r\nhost: app.bench\r\nuser-agent: weft-bench\r\naccept: */*\r\n{lines}\r\n")
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_are_chosen_by_name_or_family_and_keys_differ() {
        let keys = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            chosen(&names).iter().map(|scenario| scenario.key).collect::<Vec<_>>()
        };
        assert_eq!(keys(&["a"]), ["a"]);
        assert_eq!(keys(&["no-such"]), [""; 0]);
        let mut every = keys(&[]);
        assert_eq!(every.len(), all().len());
        every.dedup();
        assert_eq!(every.len(), all().len());
    }
}
