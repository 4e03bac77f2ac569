//! The root is rotated under load, and comes back by itself after all has expired. Lifetimes of a minute in place of a day.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use weft_e2e::chart::{self, NAMESPACE};
use weft_e2e::{App, Client, Cluster, Injection, eventually, scenario};

/// With short lifetimes while it runs.
fn hurried(cluster: &Cluster, more: &[&str], test: impl FnOnce() -> Result<()>) -> Result<()> {
    let lifetimes = ["--set=leafLifetime=60s", "--set=rootLifetime=1h"];
    chart::install_with(cluster, &[&lifetimes[..], more].concat())?;
    let outcome = test();
    chart::install(cluster)?;
    outcome
}

fn secret(cluster: &Cluster) -> Result<Value> {
    cluster.object(NAMESPACE, "secret", "weft-ca")
}

fn phase(cluster: &Cluster) -> Result<String> {
    let status = cluster.object(NAMESPACE, "configmap", "weft-ca-status")?;
    Ok(status["data"]["phase"].as_str().context("no phase")?.to_owned())
}

fn trusted(cluster: &Cluster, namespace: &str) -> Result<usize> {
    let bundle = cluster.object(namespace, "configmap", "weft-trust-bundle")?;
    Ok(bundle["data"]["roots.pem"].as_str().unwrap_or_default().matches("BEGIN CERTIFICATE").count())
}

#[test]
fn the_root_is_rotated_under_load_and_no_request_fails() {
    scenario("root-rotation", Injection::Label, |ns| {
        hurried(ns.cluster, &[], || {
            App::new("back").replicas(2).deploy(ns)?;
            let client = Client::deploy(ns, "client")?;
            client.get("http://back/")?.expect(200)?;
            let before = secret(ns.cluster)?["data"]["tls.crt"].clone();
            let (rate, length) = (500, Duration::from_secs(190));
            let kept = client.load("http://back/", rate, length, &["-c", "16"])?;
            let renewed = client.load("http://back/", 20, length, &["-c", "2", "--new-connections"])?;

            let began = Instant::now();
            ns.cluster.kubectl(&[
                "annotate",
                "secret",
                "weft-ca",
                "-n",
                NAMESPACE,
                // Also when another test has left another one's root.
                "weft.dev/rotate-root=weft",
            ])?;
            for (wanted, within) in [("Distributing", 30), ("Retiring", 90), ("Stable", 160)] {
                eventually(wanted, Duration::from_secs(within), || {
                    let now = phase(ns.cluster)?;
                    ensure!(now == wanted, "{now}");
                    Ok(())
                })?;
                println!(
                    "{wanted} after {:.0} s, {} roots trusted",
                    began.elapsed().as_secs_f64(),
                    trusted(ns.cluster, &ns.name)?
                );
                if wanted == "Retiring" {
                    // The operator goes away in the middle; the next one goes on.
                    for pod in chart::pods(ns.cluster, "weft-operator")? {
                        ns.cluster.kubectl(&[
                            "delete",
                            "pod",
                            &pod,
                            "-n",
                            NAMESPACE,
                            "--grace-period=0",
                            "--force",
                        ])?;
                    }
                }
            }
            let after = secret(ns.cluster)?;
            ensure!(after["data"]["tls.crt"] != before, "the root is the same");
            for gone in ["next.key", "next.crt", "old.crt"] {
                ensure!(after["data"][gone].is_null(), "{gone} is left in the Secret");
            }
            eventually("only one root is trusted", Duration::from_secs(20), || {
                let roots = trusted(ns.cluster, &ns.name)?;
                ensure!(roots == 1, "{roots} roots");
                Ok(())
            })?;
            let told = chart::pods(ns.cluster, "weft-operator")?
                .iter()
                .map(|pod| ns.cluster.logs(NAMESPACE, pod, "operator", 20_000))
                .collect::<String>();
            let retired = "\"event\":\"rotation\",\"result\":\"done\",\"reason\":\"Stable\"";
            ensure!(told.contains(retired), "auditors were not told: {told}");
            Client::deploy(ns, "newcomer")?.get("http://back/")?.expect(200)?;
            let kept = kept.finish()?;
            println!("{} requests on kept connections: {}", kept.sent, kept.summary());
            kept.expect_no_failure(u64::from(rate) * 150)?;
            renewed.finish()?.expect_no_failure(20 * 150)
        })
    });
}

#[test]
fn after_everything_has_expired_the_mesh_comes_back_by_itself() {
    scenario("root-expired", Injection::Label, |ns| {
        hurried(ns.cluster, &[], || {
            App::new("back").deploy(ns)?;
            let client = Client::deploy(ns, "client")?;
            client.get("http://back/")?.expect(200)?;
            let replicas = ns.cluster.object(NAMESPACE, "deploy", "weft-operator")?["spec"]["replicas"]
                .as_u64()
                .context("no replicas")?;
            let scale = |replicas: u64| {
                let to = format!("--replicas={replicas}");
                ns.cluster.kubectl(&["scale", "deploy/weft-operator", "-n", NAMESPACE, &to])
            };
            scale(0)?;
            eventually("the operator is gone", Duration::from_secs(60), || {
                let left = chart::pods(ns.cluster, "weft-operator")?;
                ensure!(left.is_empty(), "left: {left:?}");
                Ok(())
            })?;
            let (certificate, key) = expired_root()?;
            let patch = json!({ "stringData": { "tls.crt": certificate, "tls.key": key } }).to_string();
            ns.cluster.kubectl(&[
                "patch",
                "secret",
                "weft-ca",
                "-n",
                NAMESPACE,
                "--type=merge",
                "-p",
                &patch,
            ])?;
            // Until the workloads' certificates have ended too. Proxies keep connections for HTTP, but none for TCP.
            let echo = || client.run(&["/testapp", "tcp", "back:7000", "hello"]).map(drop);
            eventually("all certificates have expired", Duration::from_secs(90), || {
                ensure!(echo().is_err(), "still answered");
                Ok(())
            })?;
            scale(replicas)?;
            chart::ready(ns.cluster)?;
            // The kubelet brings the new bundle into the pods in its own time.
            let began = Instant::now();
            eventually("calls are answered again", Duration::from_secs(240), echo)?;
            println!("answered again {:.0} s after the operator was back", began.elapsed().as_secs_f64());
            client.get("http://back/")?.expect(200)?;
            Client::deploy(ns, "newcomer")?.get("http://back/")?.expect(200).map(drop)
        })
    });
}

#[test]
fn the_root_of_another_authority_is_taken_over_under_load_as_cert_manager_keeps_it() {
    scenario("root-given", Injection::Label, |ns| {
        hurried(ns.cluster, &["--set=rootSecret=mesh-ca"], || {
            App::new("back").replicas(2).deploy(ns)?;
            let client = Client::deploy(ns, "client")?;
            client.get("http://back/")?.expect(200)?;
            let load = client.load(
                "http://back/",
                50,
                Duration::from_secs(180),
                &["-c", "4", "--new-connections"],
            )?;
            let (chain, key) = intermediate()?;
            let given = json!({ "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
                "metadata": { "name": "mesh-ca" }, "stringData": { "tls.crt": chain, "tls.key": key } });
            ns.cluster.apply(NAMESPACE, &given.to_string())?;
            let given = ns.cluster.object(NAMESPACE, "secret", "mesh-ca")?["data"]["tls.crt"].clone();
            let began = Instant::now();
            eventually("the other authority's root is the only one", Duration::from_secs(220), || {
                let held = secret(ns.cluster)?;
                ensure!(held["data"]["tls.crt"] == given, "another one signs");
                let now = phase(ns.cluster)?;
                ensure!(now == "Stable" && held["data"]["old.crt"].is_null(), "{now}");
                let roots = trusted(ns.cluster, &ns.name)?;
                ensure!(roots == 1, "{roots} roots are trusted, and the company's should not be");
                Ok(())
            })?;
            println!("the only one {:.0} s after its Secret was made", began.elapsed().as_secs_f64());
            Client::deploy(ns, "newcomer")?.get("http://back/")?.expect(200)?;
            let load = load.finish()?;
            println!("{} requests on new connections: {}", load.sent, load.summary());
            load.expect_no_failure(50 * 150)
        })?;
        ns.cluster.kubectl(&["delete", "secret", "mesh-ca", "-n", NAMESPACE]).map(drop)
    });
}

/// An intermediate authority with its root after it.
fn intermediate() -> Result<(String, String)> {
    let params = |name: &str, constraints| {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2046, 1, 1);
        params.is_ca = rcgen::IsCa::Ca(constraints);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        params
    };
    let company = params("company", rcgen::BasicConstraints::Unconstrained);
    let (above, key) = (rcgen::KeyPair::generate()?, rcgen::KeyPair::generate()?);
    let root = company.self_signed(&above)?;
    let issuer = rcgen::Issuer::from_params(&company, &above);
    let between = params("mesh", rcgen::BasicConstraints::Constrained(0)).signed_by(&key, &issuer)?;
    Ok((format!("{}{}", between.pem(), root.pem()), key.serialize_pem()))
}

/// A root as Weft makes it, of long ago.
fn expired_root() -> Result<(String, String)> {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "Weft");
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let key = rcgen::KeyPair::generate()?;
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}
