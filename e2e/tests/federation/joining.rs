//! That each operator has fetched the other's bundle over the network, and says so.

use anyhow::{Context, ensure};
use weft_e2e::chart::NAMESPACE;

use crate::meshes::meshes;

#[test]
fn each_mesh_fetches_the_others_bundle_and_shows_it() {
    meshes(|meshes| {
        for (here, there) in meshes.ways() {
            let object = here.trust_domain()?;
            let endpoint = &object["spec"]["endpoint"];
            ensure!(endpoint["profile"] == "HttpsSpiffe" && endpoint["url"] == there.url, "{endpoint}");
            let operator = format!("spiffe://{}/ns/weft-system/sa/weft-operator", there.domain);
            ensure!(endpoint["spiffeId"] == operator.as_str(), "{endpoint}");
            let bundle = &object["status"]["bundle"];
            ensure!(bundle["pem"] == there.roots()?, "not the roots of {}: {bundle}", there.domain);
            ensure!(bundle["url"] == there.url && bundle["trustDomain"] == there.domain, "{bundle}");
            ensure!(bundle["since"].is_string() && bundle["problem"].is_null(), "{bundle}");
            ensure!(bundle["sequence"].as_i64().context("no sequence")? > 0, "{bundle}");
            ensure!(here.roots()? != there.roots()?, "both have the same roots");
            let table = here.cluster.kubectl(&["get", "td", "-n", NAMESPACE])?;
            println!("{}: {}", here.domain, table.replace('\n', "\n    "));
            let row = table.lines().find(|line| line.starts_with(there.domain)).context("no row")?;
            let columns: Vec<_> = row.split_whitespace().collect();
            ensure!(columns[1..5] == [there.domain, "3/3", "True", "True"], "{table}");
        }
        Ok(())
    });
}
