//! Spellings of a path that a policy and an application could read differently.

use anyhow::{Result, ensure};
use serde_json::json;
use weft_e2e::{App, Client, Injection, eventually, scenario};

use super::ground::{Attacker, SOON, Signer, address, get, id, leaf, served, statuses};

/// Status and reason of a path that curl sends as it stands.
fn raw_path(client: &Client<'_>, path: &str) -> Result<(String, String)> {
    let url = format!("http://server{path}");
    let command =
        ["curl", "-s", "-m", "5", "--path-as-is", "-o", "/dev/null", "-D", "-", "-w", "\n%{http_code}", &url];
    let printed = client.run_ended(&command)?.stdout;
    let reason =
        printed.lines().find_map(|line| line.strip_prefix("weft-reason: ")).unwrap_or_default().trim();
    Ok((printed.lines().last().unwrap_or_default().to_owned(), reason.to_owned()))
}

/// What is another path than the one that is allowed, however it is written.
const OTHERS: [&str; 8] = [
    "/public/../admin",
    "/public/%2e%2e/admin",
    "//admin",
    "/%61dmin",
    "/PUBLIC",
    "/Public/a",
    "/public/./../admin",
    "/public%2e/a",
];
/// What two readers may take for two paths.
const UNCLEAR: [&str; 8] = [
    "/public/..%2fadmin",
    "/public/..%5cadmin",
    "/public/..;/admin",
    "/public;x=1",
    "/public/%00",
    "/public/a%00/../../admin",
    "/public/%zz",
    "/public/%c0%af",
];

/// A byte that ends a text for some.
const RAW: [&str; 2] = ["/public\0/../admin", "/public/\0"];

#[test]
fn no_spelling_of_a_path_gets_around_a_policy() {
    scenario("authz-paths", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        let shell = Client::deploy_shell(ns, "shell")?;
        let attacker = Attacker::deploy(ns)?;
        let server = ns.pod("app=server")?;
        let ip = address(&server)?;
        ns.apply_json(&json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": { "name": "public" },
            "spec": { "action": "Allow", "rules": [{ "to": [{ "paths": [{ "prefix": "/public" }], "methods": ["GET"] }] }] } }))?;
        eventually("only what is public", SOON, || {
            let got = raw_path(&shell, "/admin")?;
            ensure!(got == ("403".into(), "policy-denied".into()), "{got:?}");
            Ok(())
        })?;
        ensure!(raw_path(&shell, "/public/a")?.0 == "200");
        // Through the caller's own proxy.
        for path in OTHERS {
            let got = raw_path(&shell, path)?;
            ensure!(got == ("403".into(), "policy-denied".into()), "{path}: {got:?}");
        }
        for path in UNCLEAR {
            let got = raw_path(&shell, path)?;
            ensure!(got == ("400".into(), "bad-request".into()), "{path}: {got:?}");
        }
        // As somebody who has taken a workload over and speaks mTLS by himself; and from outside of the mesh.
        let good = Signer::of_the_mesh(ns.cluster)?.sign(&leaf(&id(&ns.name, "shell"))?)?;
        let by_mtls = |path: &str| attacker.mtls((ip, 8080), Some(&good), get(path));
        let plain = |path: &str| attacker.plain((ip, 8080), get(path));
        let before = served(&by_mtls("/public/a")?)?;
        let denied = attacker.count(ip, "weft_policy_decisions_total", &["decision=\"refused\""])?;
        let bad = attacker.malformed(ip)?;
        for path in OTHERS {
            for (how, answer) in [("mTLS", by_mtls(path)?), ("plain", plain(path)?)] {
                ensure!(
                    statuses(&answer) == ["403"] && answer.contains("weft-reason: policy-denied"),
                    "{path} by {how}: {answer}"
                );
            }
        }
        for path in UNCLEAR.into_iter().chain(RAW) {
            for (how, answer) in [("mTLS", by_mtls(path)?), ("plain", plain(path)?)] {
                ensure!(
                    statuses(&answer) == ["400"] && answer.contains("weft-reason: bad-request"),
                    "{path:?} by {how}: {answer}"
                );
            }
        }
        let both = |n: usize| 2 * n as u64;
        attacker.counted(
            ip,
            "weft_policy_decisions_total",
            &["decision=\"refused\""],
            denied + both(OTHERS.len()),
        )?;
        attacker.malformed_are(ip, bad + both(UNCLEAR.len() + RAW.len()))?;
        let after = served(&by_mtls("/public/a")?)?;
        ensure!(after == before + 1, "{} of them reached the application", after - before - 1);
        Ok(())
    });
}
