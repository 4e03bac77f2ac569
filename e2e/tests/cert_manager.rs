//! cert-manager's own controller keeps the mesh's certificate authority, by the very manifests of docs/howto/cert-manager.md: the
//! mesh goes over to it, and follows when it is renewed, without a failed request. `make cert-manager` builds the controller
//! and runs this: it replaces `rootSecret`, so nothing else may use the cluster meanwhile.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use weft_e2e::chart::{self, NAMESPACE};
use weft_e2e::cluster::condition;
use weft_e2e::command::Running;
use weft_e2e::{App, Client, Cluster, Injection, Namespace, eventually, scenario};

const MANIFESTS: &str = include_str!("../../docs/examples/cert-manager/mesh-ca.yaml");

/// Where `make cert-manager` has put the controller and its definitions.
fn built() -> Result<PathBuf> {
    let folder = std::env::var_os("WEFT_CERT_MANAGER")
        .context("WEFT_CERT_MANAGER is not set: use `make cert-manager`")?;
    Ok(folder.into())
}

/// Installs the definitions and starts the controller beside the cluster.
fn controller(cluster: &Cluster) -> Result<Running> {
    let folder = built()?;
    let definitions = folder.join("crds.yaml").to_string_lossy().into_owned();
    cluster.kubectl(&["apply", "--server-side", "-f", &definitions])?;
    for kind in ["issuers", "certificates", "certificaterequests"] {
        let name = format!("{kind}.cert-manager.io");
        cluster.kubectl(&["wait", "--for=condition=Established", "crd", &name, "--timeout=30s"])?;
    }
    cluster.start_program(&folder.join("cert-manager"), &[])
}

fn certificate(cluster: &Cluster) -> Result<Value> {
    cluster.object(NAMESPACE, "certificates.cert-manager.io", "mesh-ca")
}

/// The revision of the mesh's certificate, once it is ready.
fn revision(cluster: &Cluster) -> Result<u64> {
    let object = certificate(cluster)?;
    let ready = condition(&object, "Ready").map(|c| c["status"].clone());
    ensure!(ready == Some("True".into()), "not ready: {}", object["status"]);
    object["status"]["revision"].as_u64().context("no revision")
}

/// What `cmctl renew` does: it sets the condition that makes the controller issue anew.
fn renew(cluster: &Cluster) -> Result<()> {
    let mut conditions = certificate(cluster)?["status"]["conditions"].take();
    conditions.as_array_mut().context("no conditions")?.push(json!({ "type": "Issuing", "status": "True",
        "reason": "ManuallyTriggered", "message": "renewed by hand", "lastTransitionTime": "2026-01-01T00:00:00Z" }));
    let patch = json!({ "status": { "conditions": conditions } }).to_string();
    let patched = [
        "patch",
        "certificates.cert-manager.io",
        "mesh-ca",
        "-n",
        NAMESPACE,
        "--subresource=status",
        "--type=merge",
        "-p",
    ];
    cluster.kubectl(&[&patched[..], &[&patch]].concat()).map(drop)
}

/// Waits until the Secret's certificate signs alone. How long it took.
fn taken_over(ns: &Namespace) -> Result<Duration> {
    let began = Instant::now();
    eventually("the Secret's authority is the only one", Duration::from_secs(240), || {
        let given = ns.cluster.object(NAMESPACE, "secret", "mesh-ca")?["data"]["tls.crt"].clone();
        let held = ns.cluster.object(NAMESPACE, "secret", "weft-ca")?;
        ensure!(given.is_string() && held["data"]["tls.crt"] == given, "another one signs");
        let status = ns.cluster.object(NAMESPACE, "configmap", "weft-ca-status")?["data"].clone();
        ensure!(status["phase"] == "Stable" && held["data"]["old.crt"].is_null(), "{status}");
        let bundle = ns.object("configmap", "weft-trust-bundle")?["data"]["roots.pem"].clone();
        let roots = bundle.as_str().unwrap_or_default().matches("BEGIN CERTIFICATE").count();
        ensure!(roots == 1, "{roots} roots are trusted");
        Ok(())
    })?;
    Ok(began.elapsed())
}

/// OpenSSL in a pod outside of the mesh sees whose certificate `back` shows, and that the Secret's authority has signed it.
fn signed_by_cert_manager(ns: &Namespace, outsider: &Client<'_>) -> Result<()> {
    let address = ns.pod("app=back")?["status"]["podIP"].as_str().context("no address")?.to_owned();
    let bundle = ns.object("configmap", "weft-trust-bundle")?["data"]["roots.pem"].clone();
    let bundle = bundle.as_str().context("no bundle")?;
    let script = format!(
        "cat >/tmp/ca.pem <<'PEM'\n{bundle}PEM\n\
         openssl s_client -connect {address}:8080 -alpn weft/http1 </dev/null 2>/dev/null | openssl x509 >/tmp/leaf.pem; \
         openssl x509 -in /tmp/ca.pem -noout -subject; openssl verify -partial_chain -CAfile /tmp/ca.pem /tmp/leaf.pem; \
         openssl x509 -in /tmp/leaf.pem -noout -ext subjectAltName"
    );
    let said = outsider.shell(&script)?;
    let identity = format!("spiffe://cluster.local/ns/{}/sa/back", ns.name);
    for wanted in ["mesh-ca", "leaf.pem: OK", &identity] {
        ensure!(said.stdout.contains(wanted), "no {wanted:?} in {}{}", said.stdout, said.stderr);
    }
    Ok(())
}

#[test]
fn cert_manager_keeps_the_meshs_authority_and_renews_it_under_load() {
    scenario("cert-manager", Injection::Label, |ns| {
        let mut running = controller(ns.cluster)?;
        ns.cluster.apply("", MANIFESTS)?;
        let first = eventually("cert-manager has made the authority", Duration::from_secs(60), || {
            ensure!(running.is_running(), "the controller has ended");
            revision(ns.cluster)
        })?;
        let settings = ["--set=leafLifetime=60s", "--set=rootLifetime=1h", "--set=rootSecret=mesh-ca"];
        chart::install_with(ns.cluster, &settings)?;
        let outcome = under_cert_manager(ns, first);
        chart::install(ns.cluster)?;
        outcome?;
        ensure!(running.is_running(), "the controller has ended");
        drop(running);
        ns.cluster.kubectl(&[
            "delete",
            "-f",
            &built()?.join("crds.yaml").to_string_lossy(),
            "--timeout=50s",
        ])?;
        ns.cluster.kubectl(&["delete", "secret", "mesh-ca", "company-ca", "-n", NAMESPACE]).map(drop)
    });
}

fn under_cert_manager(ns: &Namespace, first: u64) -> Result<()> {
    App::new("back").replicas(2).deploy(ns)?;
    let client = Client::deploy(ns, "client")?;
    let mut outsider =
        weft_e2e::app::pod("outsider", weft_e2e::app::CURL_IMAGE, &["/bin/sh", "-c", "exec sleep 100000"]);
    outsider["metadata"]["labels"]["weft.dev/inject"] = "disabled".into();
    let outsider = Client::deploy_pod(ns, "outsider", outsider)?;
    client.get("http://back/")?.expect(200)?;
    println!("the only one {:.0} s after the mesh was told of it", taken_over(ns)?.as_secs_f64());
    signed_by_cert_manager(ns, &outsider)?;

    let (rate, length) = (50, Duration::from_secs(170));
    let load = client.load("http://back/", rate, length, &["-c", "4", "--new-connections"])?;
    renew(ns.cluster)?;
    eventually("cert-manager has renewed it", Duration::from_secs(60), || {
        let now = revision(ns.cluster)?;
        ensure!(now > first, "still revision {now}");
        Ok(())
    })?;
    println!("the renewed one is the only one {:.0} s later", taken_over(ns)?.as_secs_f64());
    signed_by_cert_manager(ns, &outsider)?;
    Client::deploy(ns, "newcomer")?.get("http://back/")?.expect(200)?;
    let load = load.finish()?;
    println!("{} requests on new connections: {}", load.sent, load.summary());
    load.expect_no_failure(u64::from(rate) * 150)
}
