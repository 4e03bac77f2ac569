//! What two proxies with mTLS add to a request's latency.

use crate::Figures;
use anyhow::Result;
use std::time::Duration;
use weft_e2e::statistics::median;
use weft_e2e::{App, Client, Cluster, Injection, Namespace};

const ROUNDS: usize = 5;
const RATE: u32 = 1000;

pub fn added(cluster: &'static Cluster, figures: &mut Figures) -> Result<()> {
    let meshed = Namespace::create(cluster, "figures-lat-mesh", Injection::Label)?;
    let plain = Namespace::create(cluster, "figures-lat-plain", Injection::None)?;
    for namespace in [&meshed, &plain] {
        App::new("back").deploy(namespace)?;
    }
    let clients = [Client::deploy(&meshed, "client")?, Client::deploy(&plain, "client")?];
    let mut seen = [(Vec::new(), Vec::new()), (Vec::new(), Vec::new())];
    for round in 0..=ROUNDS {
        for (client, (p50, p99)) in clients.iter().zip(&mut seen) {
            let load = client.load("http://back/", RATE, Duration::from_secs(6), &["-c", "16"])?.finish()?;
            load.expect_no_failure(u64::from(RATE) * 5)?;
            // The first round warms up.
            if round > 0 {
                p50.push(load.p50_ms);
                p99.push(load.p99_ms);
            }
        }
    }
    let [(mesh50, mesh99), (plain50, plain99)] = seen.map(|(p50, p99)| (median(&p50), median(&p99)));
    let what = "HTTP/1.1 at 1,000 requests a second (open loop, 16 connections), median of 5 rounds of 6 s, in turns with and without mesh";
    figures.add("latency_plain_p50", plain50, "ms", what);
    figures.add("latency_plain_p99", plain99, "ms", what);
    figures.add("latency_mesh_p50", mesh50, "ms", what);
    figures.add("latency_mesh_p99", mesh99, "ms", what);
    figures.add(
        "latency_added_p50",
        mesh50 - plain50,
        "ms",
        "two proxies with mTLS against none: difference of the medians",
    );
    figures.add(
        "latency_added_p99",
        mesh99 - plain99,
        "ms",
        "two proxies with mTLS against none: difference of the medians",
    );
    Ok(())
}
