//! How much later an injected pod is ready.

use crate::Figures;
use anyhow::Result;
use std::time::Instant;
use weft_e2e::statistics::median;
use weft_e2e::{Client, Cluster, Injection, Namespace};

const ROUNDS: usize = 10;

pub fn start_overhead(cluster: &'static Cluster, figures: &mut Figures) -> Result<()> {
    let meshed = Namespace::create(cluster, "figures-meshed", Injection::Label)?;
    let plain = Namespace::create(cluster, "figures-plain", Injection::None)?;
    // One of each beforehand: the first pod of a namespace also waits for its trust bundle and ServiceAccount machinery.
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        for (namespace, seconds) in [(&meshed, &mut with), (&plain, &mut without)] {
            let name = format!("pod-{round}");
            let began = Instant::now();
            Client::deploy(namespace, &name)?;
            if round > 0 {
                seconds.push(began.elapsed().as_secs_f64());
            }
            namespace.delete("pod", &name)?;
        }
    }
    figures.add(
        "pod_start_plain",
        median(&without),
        "s",
        "kubectl apply until Ready of a pod without proxy; median of 10",
    );
    figures.add(
        "pod_start_injected",
        median(&with),
        "s",
        "the same with the proxy injected; in turns with the plain ones",
    );
    figures.add("pod_start_overhead", median(&with) - median(&without), "s", "difference of the two medians");
    Ok(())
}
