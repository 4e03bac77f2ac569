//! The endpoint from which a bundle is fetched: gone for a while, somebody else's, and the end of all belief.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use weft_e2e::chart::{self, NAMESPACE};
use weft_e2e::cluster::condition;
use weft_e2e::{eventually, stays};

use crate::meshes::{Mesh, in_force, install, meshes};
use crate::servers::{Server, of_host, of_workload, stolen, stranger};

const SOON: Duration = Duration::from_secs(60);

fn patch(mesh: &Mesh, spec: &Value) -> Result<()> {
    let patch = json!({ "spec": spec }).to_string();
    let patch = ["patch", "td", mesh.theirs, "-n", NAMESPACE, "--type=merge", "-p", &patch];
    mesh.cluster.kubectl(&patch).map(drop)
}

/// Waits until the bundle could not be fetched. Why, and what is in force.
fn cannot_fetch(mesh: &Mesh, of: &str) -> Result<(String, Value)> {
    eventually("the bundle cannot be fetched", Duration::from_secs(100), || {
        let object = mesh.cluster.object(NAMESPACE, "trustdomain", of)?;
        let status = &object["status"];
        ensure!(condition(&object, "ResolvedRefs").is_some_and(|c| c["status"] == "False"), "{status}");
        let problem = status["bundle"]["problem"].as_str().with_context(|| status.to_string())?;
        in_force(&object)?;
        Ok((problem.to_owned(), status["bundle"].clone()))
    })
}

#[test]
fn the_last_bundle_stays_while_the_endpoint_is_gone_and_all_ends_with_the_trust_domain() {
    meshes(|meshes| {
        let (a, b) = (&meshes.a, &meshes.b);
        b.lets_everybody_in()?;
        // Then what is in force cannot be the roots of the spec.
        patch(b, &json!({ "pem": stranger()?.pem() }))?;
        a.cluster.kubectl(&["delete", "service", "weft-bundle", "-n", NAMESPACE])?;
        b.cluster.kubectl(&["rollout", "restart", "deploy/weft-operator", "-n", NAMESPACE])?;
        chart::ready(b.cluster)?;
        let (problem, bundle) = cannot_fetch(b, a.domain)?;
        println!("the endpoint is gone: {problem}");
        ensure!(bundle["pem"] == a.roots()?, "not the last good one: {bundle}");
        // A proxy that begins now knows it from the operator that began just before.
        b.cluster.kubectl(&["rollout", "restart", "deploy/orders", "-n", "shop"])?;
        b.cluster.rollout("shop", "deploy/orders")?;
        a.register(b, &format!("spiffe://{}/ns/shop/sa/orders", b.domain))?;
        a.awaits("web", "/orders", 200, "")?;
        stays("the last good bundle", Duration::from_secs(5), || a.call("web", "/orders")?.expect(200))?;

        install(a.cluster, a.domain)?;
        meshes.replaced(a, b)?;
        a.awaits("web", "/orders", 200, "")?;
        ends(a, b)?;
        meshes.join()?;
        a.awaits("web", "/orders", 200, "").map(drop)
    });
}

/// Nobody of `from` gets anything from `to` any more, neither on connections that are open.
fn ends(from: &Mesh, to: &Mesh) -> Result<()> {
    let raw = format!("{}:7000", to.orders()?);
    let held = |seconds: &str| {
        from.client("other").start(&["/testapp", "conns", &raw, "4", "--hold", seconds, "--json"])
    };
    let left_open = |printed: &str| serde_json::from_str::<Value>(printed.trim()).map(|v| v["open"].clone());
    let printed = held("2s")?.wait(SOON)?.success()?;
    ensure!(left_open(&printed)? == 4, "they do not even stay open otherwise: {printed}");

    let open = held("20s")?;
    let url = format!("http://orders.{}/orders", to.domain);
    let load = from.client("web").load(&url, 50, Duration::from_secs(20), &["-c", "2"])?;
    std::thread::sleep(Duration::from_secs(5)); // some seconds of good answers first
    let began = Instant::now();
    to.cluster.kubectl(&["delete", "td", to.theirs, "-n", NAMESPACE])?;
    eventually("the first refusal", SOON, || {
        let reply = from.call("other", "/orders")?;
        ensure!(reply.status != 200, "{reply}");
        Ok(())
    })?;
    let took = began.elapsed();
    stays("nobody is believed", Duration::from_secs(3), || {
        let reply = from.call("web", "/orders")?;
        ensure!(reply.status != 200, "{reply}");
        Ok(())
    })?;
    let load = load.finish()?;
    println!(
        "refused {:.1} s after the TrustDomain was deleted; of a load since before: {}",
        took.as_secs_f64(),
        load.summary()
    );
    ensure!(load.ok() >= 100, "it was never answered: {}", load.summary());
    ensure!(load.reasons.contains_key("client-certificate"), "not on open connections: {}", load.summary());
    ensure!(load.failed() >= 250, "some were let in afterwards: {}", load.summary());
    let printed = open.wait(SOON)?.success()?;
    ensure!(left_open(&printed)? == 0, "opaque connections are open still: {printed}");
    Ok(())
}

#[test]
fn an_endpoint_that_does_not_show_the_identity_that_is_expected_is_not_believed() {
    meshes(|meshes| {
        let (a, b) = (&meshes.a, &meshes.b);
        b.lets_everybody_in()?;
        let operator = format!("spiffe://{}/ns/weft-system/sa/weft-operator", a.domain);
        // The true endpoint, where somebody else was expected.
        let file = meshes.written(a)?;
        b.cluster.kubectl(&["delete", "td", a.domain, "-n", NAMESPACE])?;
        b.cluster.apply("", &file.replace(&operator, &a.id("web")))?;
        let (problem, bundle) = cannot_fetch(b, a.domain)?;
        println!("another identity than expected: {problem}");
        ensure!(problem.contains("TLS failed") && bundle["pem"].is_null(), "{bundle}");
        a.awaits("web", "/orders", 200, "")?; // by the roots of the file

        // Somebody of the other mesh on the way to the endpoint, a stranger who says to be the operator, and, so that it is seen that
        // these were refused for that alone, one who has the other mesh's root.
        let (stranger, root) = (stranger()?, stolen(a)?);
        let shown = [
            of_workload(&root, &a.id("web"))?,
            of_workload(&stranger, &operator)?,
            of_workload(&root, &operator)?,
        ];
        let server = Server::start(b, "impostor", &shown, &stranger)?;
        for (n, who) in ["a workload of the other mesh", "a stranger"].into_iter().enumerate() {
            b.cluster.kubectl(&["delete", "td", a.domain, "-n", NAMESPACE])?;
            b.cluster.apply("", &file.replace(&a.url, &server.url(n)))?;
            let (problem, bundle) = cannot_fetch(b, a.domain)?;
            println!("{who}: {problem}");
            ensure!(problem.contains("TLS failed") && bundle["pem"].is_null(), "{who}: {bundle}");
            a.awaits("web", "/orders", 200, "")?;
        }
        patch(b, &json!({ "endpoint": { "url": server.url(2) } }))?;
        eventually("the true identity is believed", SOON, || {
            let bundle = b.trust_domain()?["status"]["bundle"].clone();
            let pem = bundle["pem"].as_str().with_context(|| bundle.to_string())?;
            ensure!(same(pem, &stranger.pem()), "{bundle}");
            Ok(())
        })?;
        a.awaits("web", "/orders", 403, "client-certificate")
            .or_else(|_| a.awaits("web", "/orders", 503, "tls-handshake"))?;
        meshes.replaced(a, b)?;
        a.awaits("web", "/orders", 200, "").map(drop)
    });
}

/// As of SPIRE, or of an ingress: by the server's name, and an authority that signs for servers of the web.
#[test]
fn a_bundle_is_fetched_from_a_server_of_the_web_by_its_name_and_authority_only() {
    meshes(|meshes| {
        let here = &meshes.a;
        let (web, root) = (stranger()?, stranger()?);
        let shown = [of_host(&web, &Server::host("web-bundle"))?, of_host(&web, "another.example")?];
        let server = Server::start(here, "web-bundle", &shown, &root)?;
        let domain = "web.example";
        let believe = |n: usize, authority: &str| {
            let endpoint = json!({ "url": server.url(n), "profile": "HttpsWeb", "caBundle": authority });
            here.cluster.apply(
                NAMESPACE,
                &json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "TrustDomain", "metadata": { "name": domain },
                    "spec": { "trustDomain": domain, "endpoint": endpoint } })
                .to_string(),
            )
        };
        for (n, authority, what) in
            [(0, stranger()?.pem(), "of another authority"), (1, web.pem(), "of another name")]
        {
            believe(n, &authority)?;
            let (problem, bundle) = cannot_fetch(here, domain)?;
            println!("a server {what}: {problem}");
            ensure!(problem.contains("TLS failed") && bundle["pem"].is_null(), "{what}: {bundle}");
            here.cluster.kubectl(&["delete", "td", domain, "-n", NAMESPACE])?;
        }
        believe(0, &web.pem())?;
        eventually("its bundle is fetched", SOON, || {
            let object = here.cluster.object(NAMESPACE, "trustdomain", domain)?;
            let pem = object["status"]["bundle"]["pem"].as_str().with_context(|| object.to_string())?;
            ensure!(same(pem, &root.pem()), "{object}");
            in_force(&object)
        })?;
        here.cluster.kubectl(&["delete", "td", domain, "-n", NAMESPACE]).map(drop)
    });
}

/// Whether it is the same PEM, however its lines are broken.
fn same(one: &str, other: &str) -> bool {
    one.split_whitespace().flat_map(str::chars).eq(other.split_whitespace().flat_map(str::chars))
}
