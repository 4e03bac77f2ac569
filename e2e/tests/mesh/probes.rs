//! kubelet's probes under Strict: kubelet is outside of the mesh and must pass nevertheless, for what is declared.

use anyhow::{Context, ensure};
use serde_json::json;
use std::time::Duration;
use weft_e2e::{App, Injection, eventually, scenario, stays};

use crate::strictness::{outsider, peer_authentication};

#[test]
fn probes_of_every_kind_pass_under_strict_and_open_nothing_else() {
    scenario("probes", Injection::Label, |ns| {
        ns.apply_json(&peer_authentication("Strict"))?;
        let probes = [
            ("probe-http", json!({ "httpGet": { "path": "/healthz?from=kubelet", "port": 8080 } })),
            ("probe-tcp", json!({ "tcpSocket": { "port": 7000 } })),
            ("probe-grpc", json!({ "grpc": { "port": 9000 } })),
            (
                "probe-exec",
                json!({ "exec": { "command": ["/testapp", "get", "http://127.0.0.1:8080/healthz"] } }),
            ),
        ];
        for (name, probe) in &probes {
            let mut probe = probe.clone();
            probe["periodSeconds"] = 1.into();
            probe["timeoutSeconds"] = 2.into();
            App::new(name)
                .probes(json!({ "startupProbe": probe, "readinessProbe": probe, "livenessProbe": probe }))
                .apply(ns)?;
        }
        for (name, _) in &probes {
            App::new(name).ready(ns)?;
        }
        // A failing liveness probe would restart after three periods.
        stays("all are ready and none restarted", Duration::from_secs(5), || {
            for (name, _) in &probes {
                let pod = ns.pod(&format!("app={name}"))?;
                let state = &pod["status"]["containerStatuses"][0];
                ensure!(state["ready"] == true && state["restartCount"] == 0, "{name}: {state}");
            }
            Ok(())
        })?;
        let outsider = outsider(ns)?;
        let address = ns.pod("app=probe-http")?["status"]["podIP"].as_str().context("no address")?.to_owned();
        let status = |path: &str| {
            outsider.run(&[
                "curl",
                "-s",
                "-m",
                "5",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                &format!("http://{address}:8080{path}"),
            ])
        };
        ensure!(status("/healthz?from=kubelet")? == "200", "the declared probe does not pass");
        for path in ["/", "/healthz", "/healthz?from=kubelet&more", "/healthz/../", "/bytes/10"] {
            ensure!(status(path)? == "403", "{path} passes under Strict with {}", status(path)?);
        }
        Ok(())
    });
}

#[test]
fn a_failing_probe_still_fails_through_the_proxy() {
    scenario("probe-fails", Injection::Label, |ns| {
        let app = App::new("server").probes(json!({
            "readinessProbe": { "tcpSocket": { "port": 4444 }, "periodSeconds": 1 },
        }));
        app.apply(ns)?;
        eventually("the application runs", Duration::from_secs(60), || {
            let pod = ns.pod("app=server")?;
            ensure!(
                !pod["status"]["containerStatuses"][0]["state"]["running"].is_null(),
                "{}",
                pod["status"]
            );
            Ok(())
        })?;
        stays("a closed port is not ready", Duration::from_secs(5), || {
            let pod = ns.pod("app=server")?;
            ensure!(
                pod["status"]["containerStatuses"][0]["ready"] == false,
                "a probe of a closed port passed"
            );
            Ok(())
        })
    });
}
