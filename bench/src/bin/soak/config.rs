//! Configurations for the proxies under test: the fixed one of the called side, and for the calling side a new one for each
//! drawing of endpoints, policies, limits and routes. It writes nothing.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use rand::Rng;
use rand::seq::IndexedRandom as _;
use weft_bench::certificates::{Files, identity};

/// Where everything is.
pub struct Layout {
    /// Of the calling proxy: for HTTP.
    pub http: SocketAddr,
    /// Of the calling proxy: for opaque bytes.
    pub tcp: SocketAddr,
    /// Of the called proxy, and the origins behind, in the same order.
    pub endpoints: Vec<(SocketAddr, SocketAddr)>,
    /// Of the called proxy, and the origin behind, for opaque bytes.
    pub echo: (SocketAddr, SocketAddr),
}

/// The called side: one listener for each origin.
pub fn back(layout: &Layout, metrics: SocketAddr, files: &Files) -> String {
    let mut text = head(metrics, files);
    text.push_str("  inbound:\n");
    for (listener, application) in &layout.endpoints {
        let _ =
            writeln!(text, "    - {{address: \"{listener}\", application: \"{application}\", mtls: Strict}}");
    }
    let (listener, application) = layout.echo;
    let _ = writeln!(
        text,
        "    - {{address: \"{listener}\", application: \"{application}\", mtls: Strict, protocol: Tcp}}"
    );
    text
}

/// The calling side, drawn anew each time.
pub fn front(layout: &Layout, metrics: SocketAddr, files: &Files, rng: &mut impl Rng) -> String {
    let mut text = head(metrics, files);
    let _ = write!(
        text,
        "  outbound:\n    - {{address: \"{}\", service: \"bench/app:80\"}}\n    - {{address: \"{}\", service: \"bench/echo:7\"}}\n\
         services:\n  - namespace: bench\n    name: app\n    port: 80\n    clusters:\n",
        layout.http, layout.tcp
    );
    let balancers = ["PeakEwma", "LeastRequest", "RoundRobin", "Random"];
    let subsets = ["all", "some"];
    for subset in subsets {
        let least = if subset == "all" { 2 } else { 1 };
        let count = rng.random_range(least..=layout.endpoints.len());
        let endpoints: Vec<_> = layout.endpoints.choose_multiple(rng, count).collect();
        let _ = writeln!(
            text,
            "      - name: bench/app:80/{subset}\n        balancer: {}\n        breaker: {{maxConcurrentRequests: {}}}\n        \
             outlier: {{consecutiveFailures: 5, baseEjectionMs: 500, maxEjectionMs: 2000, maxEjectedPercent: 50}}\n        endpoints:",
            balancers.choose(rng).unwrap_or(&"PeakEwma"),
            [4, 64, 4096].choose(rng).unwrap_or(&64),
        );
        for (address, _) in endpoints {
            let _ = writeln!(
                text,
                "          - {{address: \"{address}\", weight: {}, identity: \"{}\"}}",
                rng.random_range(1..=200),
                identity("back")
            );
        }
    }
    text.push_str("    routes:\n");
    for route in 0..rng.random_range(1..=8) {
        let _ = writeln!(
            text,
            "      - name: drawn-{route}\n        matches: [{{headers: [{{name: x-drawn, value: {{exact: \"{route}\"}}}}]}}]\n        \
             timeoutMs: {}\n        retry: {{attempts: {}, on: [ConnectFailure, Reset, GatewayError], budgetPercent: 20, budgetMinPerSecond: 10}}\n        \
             backends: [{{cluster: bench/app:80/all, weight: {}}}, {{cluster: bench/app:80/some, weight: 10}}]",
            rng.random_range(20..=2000),
            rng.random_range(0..=3),
            rng.random_range(1..=100),
        );
    }
    let _ = write!(
        text,
        "  - namespace: bench\n    name: echo\n    port: 7\n    protocol: Tcp\n    clusters:\n      - name: bench/echo:7\n        \
         endpoints: [{{address: \"{}\", identity: \"{}\"}}]\n",
        layout.echo.0,
        identity("back")
    );
    text
}

fn head(metrics: SocketAddr, files: &Files) -> String {
    let path = |path: &Path| path.display().to_string();
    format!(
        "metrics: \"{metrics}\"\nlog: warn\naccessLog: true\nidentity: {{certificate: \"{}\", key: \"{}\", roots: \"{}\"}}\nlisteners:\n",
        path(&files.certificate),
        path(&files.key),
        path(&files.roots)
    )
}
