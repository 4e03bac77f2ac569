//! A mesh rotates its root, and the other one follows by what it fetches, under load in both directions.

use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};
use weft_e2e::chart::NAMESPACE;
use weft_e2e::eventually;

use crate::meshes::{Mesh, in_force, meshes};

/// Each way.
const RATE: u32 = 50;
/// Five minutes until the next root signs, two until the old one goes, one until the other mesh knows, and some.
const LENGTH: Duration = Duration::from_secs(540);

fn phase(mesh: &Mesh) -> Result<String> {
    let status = mesh.cluster.object(NAMESPACE, "configmap", "weft-ca-status")?;
    Ok(status["data"]["phase"].as_str().context("no phase")?.to_owned())
}

fn roots(pem: &str) -> usize {
    pem.matches("BEGIN CERTIFICATE").count()
}

#[test]
fn the_root_of_one_mesh_is_rotated_and_no_request_between_the_two_fails() {
    meshes(|meshes| {
        let (a, b) = (&meshes.a, &meshes.b);
        let mut loads = Vec::new();
        for (from, to) in meshes.ways() {
            to.lets_everybody_in()?;
            from.awaits("web", "/orders", 200, "")?;
            let url = format!("http://orders.{}/orders", to.domain);
            loads.push((from, from.client("web").load(&url, RATE, LENGTH, &["-c", "8"])?));
        }
        let before = a.roots()?;
        let began = Instant::now();
        let said =
            |what: &str| println!("{what} {:.0} s after it was asked for", began.elapsed().as_secs_f64());
        let rotate = ["annotate", "secret", "weft-ca", "-n", NAMESPACE, "weft.dev/rotate-root=weft"];
        a.cluster.kubectl(&rotate)?;
        let becomes = |wanted: &str, within: u64| {
            eventually(wanted, Duration::from_secs(within), || {
                let now = phase(a)?;
                ensure!(now == wanted, "{now}");
                Ok(())
            })?;
            said(wanted);
            anyhow::Ok(())
        };
        becomes("Distributing", 30)?;
        eventually("the other mesh learns of the next root", Duration::from_secs(120), || {
            let object = b.trust_domain()?;
            let pem = object["status"]["bundle"]["pem"].as_str().context("no bundle")?;
            ensure!(roots(pem) == 2, "{} roots", roots(pem));
            in_force(&object)
        })?;
        said("in force in the other mesh");
        let now = phase(a)?;
        ensure!(now == "Distributing", "it is {now} already: the other mesh was told too late");
        becomes("Retiring", 330)?;
        becomes("Stable", 160)?;
        eventually("the other mesh forgets the old root", Duration::from_secs(100), || {
            let object = b.trust_domain()?;
            let pem = object["status"]["bundle"]["pem"].as_str().context("no bundle")?;
            ensure!(pem == a.roots()? && roots(pem) == 1 && pem != before, "{} roots", roots(pem));
            in_force(&object)
        })?;
        said("the old one is forgotten there");
        ensure!(began.elapsed() < LENGTH - Duration::from_secs(20), "the load has ended before the rotation");
        for (from, load) in loads {
            let load = load.finish()?;
            println!("{}: {} requests, {} failed: {}", from.domain, load.sent, load.failed(), load.summary());
            load.expect_no_failure(u64::from(RATE) * (LENGTH.as_secs() - 20))?;
        }
        for (from, _) in meshes.ways() {
            from.awaits("other", "/", 200, "")?;
        }
        Ok(())
    });
}
