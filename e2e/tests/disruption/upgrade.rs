//! `helm upgrade` and `helm test`.

use anyhow::{Result, ensure};
use weft_e2e::chart::{self, NAMESPACE};
use weft_e2e::{Injection, Namespace, scenario};

fn identities(ns: &Namespace) -> Result<Vec<String>> {
    let pods = ns.cluster.objects(NAMESPACE, "pods", "")?;
    // One that a former upgrade has replaced may still be on its way out.
    let stay = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let mut all: Vec<_> = stay.map(|pod| pod["metadata"]["uid"].to_string()).collect();
    for deployment in ns.cluster.objects(NAMESPACE, "deployments", "")? {
        all.push(format!(
            "{} generation {}",
            deployment["metadata"]["name"], deployment["metadata"]["generation"]
        ));
    }
    for configuration in ns.cluster.objects("", "mutatingwebhookconfigurations", "")? {
        all.push(configuration["webhooks"].to_string());
    }
    all.sort();
    Ok(all)
}

#[test]
fn an_upgrade_to_the_same_version_changes_nothing() {
    scenario("upgrade", Injection::None, |ns| {
        let before = identities(ns)?;
        chart::install(ns.cluster)?;
        let after = identities(ns)?;
        ensure!(before == after, "before {before:#?}\nafter {after:#?}");
        Ok(())
    });
}

#[test]
fn helm_test_passes() {
    scenario("helm-test", Injection::None, |ns| {
        ns.cluster.helm(&["test", chart::RELEASE, "-n", NAMESPACE, "--timeout=120s"]).map(drop)
    });
}
