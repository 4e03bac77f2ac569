//! Who is who: identities from end to end, encryption on the wire, and addresses that lie.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;
use weft_api::Reason;
use weft_e2e::machine::Capture;
use weft_e2e::{App, Client, Injection, eventually, scenario};

#[test]
fn the_callee_is_told_the_callers_service_account_and_what_clients_claim_is_removed() {
    scenario("identity", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        for caller in ["alice", "bob"] {
            let client = Client::deploy(ns, caller)?;
            let reply = client
                .get_with(
                    "http://server/",
                    &["-H", "weft-client-identity: spiffe://cluster.local/ns/x/sa/admin"],
                )?
                .expect(200)?;
            let expected = format!("spiffe://cluster.local/ns/{}/sa/{caller}", ns.name);
            ensure!(
                reply.seen_identity() == Some(expected.as_str()),
                "the callee was told {:?}, not {expected}",
                reply.seen_identity()
            );
        }
        Ok(())
    });
}

#[test]
fn a_caller_outside_of_the_mesh_cannot_claim_an_identity() {
    scenario("identity-claim", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        let outsider = outsider(ns)?;
        let reply = outsider
            .get_with(
                "http://server/",
                &["-H", "weft-client-identity: spiffe://cluster.local/ns/x/sa/admin"],
            )?
            .expect(200)?;
        ensure!(reply.seen_identity().is_none(), "the callee was told {:?}", reply.seen_identity());
        Ok(())
    });
}

fn outsider(ns: &weft_e2e::Namespace) -> Result<Client<'_>> {
    let mut pod = weft_e2e::app::pod("outsider", weft_e2e::app::TEST_IMAGE, &["/testapp", "pause"]);
    pod["metadata"]["labels"]["weft.dev/inject"] = "disabled".into();
    Client::deploy_pod(ns, "outsider", pod)
}

#[test]
fn no_plaintext_crosses_between_pods_and_a_capture_would_have_seen_it() {
    scenario("capture", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        let (client, outsider) = (Client::deploy(ns, "client")?, outsider(ns)?);
        let server = ns.pod("app=server")?;

        let capture = Capture::start(&server)?;
        outsider.get_with("http://server/", &["-H", "x-secret: plainly-visible-secret"])?.expect(200)?;
        let frames = capture.finish()?;
        ensure!(
            frames.containing("plainly-visible-secret") > 0,
            "the control failed: {} frames, plaintext unseen",
            frames.count()
        );

        let capture = Capture::start(&server)?;
        for reply in client.get_many(
            "http://server/well-hidden-secret",
            20,
            2,
            &["-H", "x-secret: well-hidden-secret", "--new-connections"],
        )? {
            ensure!(
                reply.expect(200)?.seen_header("x-secret") == Some("well-hidden-secret"),
                "the header did not arrive"
            );
        }
        client.run(&["/testapp", "tcp", "server:7000", "well-hidden-secret"])?;
        let frames = capture.finish()?;
        ensure!(frames.bytes() > 4000 && frames.count() > 20, "only {} frames were seen", frames.count());
        ensure!(
            frames.containing("well-hidden-secret") == 0,
            "plaintext in {} frames",
            frames.containing("well-hidden-secret")
        );
        Ok(())
    });
}

/// A Service without selector and a hand-made EndpointSlice: it says `target` and the address of another pod.
fn lying_service(name: &str, target: &Value, address: &Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
          "spec": { "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] } },
        { "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
          "metadata": { "name": format!("{name}-1"), "labels": { "kubernetes.io/service-name": name } },
          "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
          "endpoints": [{ "addresses": [address], "conditions": { "ready": true },
            "targetRef": { "kind": "Pod", "name": target["metadata"]["name"], "namespace": target["metadata"]["namespace"], "uid": target["metadata"]["uid"] } }] }
    ] })
}

#[test]
fn an_endpoint_whose_address_now_belongs_to_another_workload_is_refused() {
    scenario("stolen-ip", Injection::Label, |ns| {
        App::new("right").deploy(ns)?;
        App::new("thief").deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        let (right, thief) = (ns.pod("app=right")?, ns.pod("app=thief")?);
        ns.apply_json(&lying_service("honest", &right, &right["status"]["podIP"]))?;
        ns.apply_json(&lying_service("stolen", &right, &thief["status"]["podIP"]))?;
        eventually("the honest one works", Duration::from_secs(15), || {
            client.get("http://honest/")?.expect(200)
        })?;
        for _ in 0..5 {
            client.get("http://stolen/")?.expect_reason(503, Reason::PeerIdentityMismatch)?;
        }
        Ok(())
    });
}

#[test]
fn an_outsider_that_shows_no_certificate_gets_no_answer_from_the_mesh_port() {
    scenario("no-certificate", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        let outsider = crate::strictness::outsider(ns)?;
        let address = ns.pod("app=server")?["status"]["podIP"].as_str().context("no address")?.to_owned();
        let script = format!(
            "printf 'GET / HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n' | openssl s_client -quiet -connect {address}:8080 -alpn weft/http1 2>&1; true"
        );
        let said = outsider.shell(&script)?.stdout;
        ensure!(!said.contains("200 OK"), "an anonymous TLS client was served: {said}");
        let shown = outsider.shell(&format!(
            "openssl s_client -connect {address}:8080 -alpn weft/http1 -showcerts </dev/null 2>/dev/null | openssl x509 -noout -ext subjectAltName"
        ))?;
        let expected = format!("spiffe://cluster.local/ns/{}/sa/server", ns.name);
        ensure!(
            shown.stdout.contains(&expected),
            "the certificate at the callee's port is not {expected}: {} {}",
            shown.stdout,
            shown.stderr
        );
        Ok(())
    });
}
