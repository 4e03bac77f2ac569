//! Destinations outside of the cluster, which a pod on the host's network plays: nobody in the cluster has its address.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;
use weft_e2e::app::{CURL_IMAGE, TEST_IMAGE, pod};
use weft_e2e::{App, Client, Injection, Namespace, eventually, scenario};

const HOST: &str = "api.outside.example";
/// An address that nobody answers at (RFC 5737).
const NOWHERE: &str = "192.0.2.1";

/// A server of the outside: its pod, and its address.
fn outside<'a>(ns: &'a Namespace, name: &str, image: &str, command: &[&str]) -> Result<(Client<'a>, String)> {
    let mut server = pod(name, image, command);
    server["metadata"]["labels"]["weft.dev/inject"] = "disabled".into();
    server["spec"]["hostNetwork"] = true.into();
    let server = Client::deploy_pod(ns, name, server)?;
    let address =
        ns.pod(&format!("app={name}"))?["status"]["podIP"].as_str().context("no address")?.to_owned();
    Ok((server, address))
}

fn register(ns: &Namespace, name: &str, external: &Value) -> Result<()> {
    let object = json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "MeshService", "metadata": { "name": name },
        "spec": { "target": { "external": external } } });
    ns.apply_json(&object).map(drop)
}

/// Status, reason and body of a call of `host:port`, which the client believes to be at `address`; status 0: no answer.
fn call(client: &Client<'_>, url: &str, host: &str, port: u16, address: &str) -> Result<(String, String)> {
    let script = format!(
        "curl -sk -m 8 --resolve {host}:{port}:{address} -w '\\n%{{http_code}} %header{{weft-reason}}' {url}"
    );
    let said = client.shell(&script)?.stdout;
    let (body, end) = said.rsplit_once('\n').unwrap_or(("", &said));
    Ok((end.trim().to_owned(), body.to_owned()))
}

#[test]
fn what_is_not_registered_is_refused_where_a_namespace_wants_that() {
    scenario("egress-policy", Injection::Label, |ns| {
        let (_server, address) =
            outside(ns, "outside", TEST_IMAGE, &["/testapp", "serve", "--http=:28080", "--grpc=:28090"])?;
        App::new("back").deploy(ns)?;
        let client = Client::deploy_shell(ns, "client")?;
        let url = format!("http://{address}:28080/");
        let plain = || call(&client, &url, "x", 1, NOWHERE);
        ensure!(plain()?.0 == "200", "allowed by default: {:?}", plain()?);

        ns.cluster.kubectl(&[
            "annotate",
            "namespace",
            &ns.name,
            "weft.dev/outbound-policy=RegisteredOnly",
        ])?;
        eventually("it is refused", Duration::from_secs(20), || {
            let got = plain()?;
            ensure!(got.0 == "502 not-registered", "{got:?}");
            Ok(())
        })?;
        let inside = client.run(&["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://back/"])?;
        ensure!(inside == "200", "a Service: {inside}");
        let api = "curl -sk -m 8 -o /dev/null -w '%{http_code}' https://kubernetes.default.svc/healthz";
        let api = client.shell(api)?.stdout;
        ensure!(api != "000", "the API server did not answer: {api}");

        let ports = json!([{ "port": 28080, "protocol": "Http1" }]);
        register(ns, "outside", &json!({ "hosts": [address], "ports": ports }))?;
        eventually("it is registered", Duration::from_secs(20), || {
            let got = plain()?;
            ensure!(got.0 == "200", "{got:?}");
            Ok(())
        })
    });
}

#[test]
fn a_server_name_reaches_the_registered_endpoint_and_the_proxy_speaks_tls_for_its_application() {
    scenario("egress-tls", Injection::Label, |ns| {
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        // The image has no configuration of openssl.
        let script = format!(
            "set -e; cd /tmp; export OPENSSL_CONF=/tmp/conf; \
             printf '[req]\\ndistinguished_name=dn\\n[dn]\\n[ca]\\nbasicConstraints=critical,CA:TRUE\\n' > conf; \
             for ca in ca other; do openssl req -x509 {key} -days 2 -subj /CN=$ca -extensions ca -keyout $ca.key -out $ca.crt; done; \
             openssl req {key} -subj /CN=outside -addext subjectAltName=DNS:{HOST} -keyout key.pem -out csr.pem; \
             openssl x509 -req -in csr.pem -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -copy_extensions copy -out cert.pem; \
             exec openssl s_server -www -quiet -accept 28443 -key key.pem -cert cert.pem"
        );
        let (server, address) = outside(ns, "outside", CURL_IMAGE, &["/bin/sh", "-c", &script])?;
        let authority = |name: &str| {
            eventually("the server has its certificates", Duration::from_secs(30), || {
                server.run(&["cat", &format!("/tmp/{name}.crt"), "/tmp/cert.pem"])
            })?;
            server.run(&["cat", &format!("/tmp/{name}.crt")])
        };
        let external = |ca: &str| -> Result<Value> {
            Ok(json!({ "hosts": [HOST], "endpoints": [{ "address": address, "weight": 100 }], "ports": [
                { "port": 28443, "protocol": "Tls" },
                { "port": 28081, "protocol": "Http1", "targetPort": 28443, "tls": { "caBundle": authority(ca)? } },
            ] }))
        };
        register(ns, "outside", &external("ca")?)?;
        ns.cluster.kubectl(&[
            "annotate",
            "namespace",
            &ns.name,
            "weft.dev/outbound-policy=RegisteredOnly",
        ])?;
        let client = Client::deploy_shell(ns, "client")?;

        let tls = |host: &str, at: &str| call(&client, &format!("https://{host}:28443/"), host, 28443, at);
        eventually("the application's TLS arrives", Duration::from_secs(20), || {
            let got = tls(HOST, &address)?;
            ensure!(got.0 == "200", "{got:?}");
            Ok(())
        })?;
        let elsewhere = tls(HOST, NOWHERE)?;
        ensure!(elsewhere.0 == "200", "it goes to the endpoint, wherever the client would go: {elsewhere:?}");
        let spoofed = tls("other.example", &address)?;
        ensure!(spoofed.0 == "000", "a name that is not registered, at a registered address: {spoofed:?}");

        let http = || call(&client, &format!("http://{HOST}:28081/"), HOST, 28081, NOWHERE);
        let got = http()?;
        ensure!(got.0 == "200" && got.1.contains("s_server"), "the proxy speaks TLS: {got:?}");
        let mut another_name = external("ca")?;
        let tls = json!({ "caBundle": authority("ca")?, "sni": "other.example" });
        another_name["ports"][1]["tls"] = tls;
        register(ns, "outside", &another_name)?;
        eventually("it asks for the name that it is told to", Duration::from_secs(20), || {
            let got = http()?;
            ensure!(got.0 == "503 tls-handshake", "the certificate is for {HOST}: {got:?}");
            Ok(())
        })?;
        register(ns, "outside", &external("ca")?)?;
        eventually("and again for the host", Duration::from_secs(20), || {
            let got = http()?;
            ensure!(got.0 == "200", "{got:?}");
            Ok(())
        })?;
        register(ns, "outside", &external("other")?)?;
        eventually("a server of another authority is refused", Duration::from_secs(20), || {
            let got = http()?;
            ensure!(got.0 == "503 tls-handshake", "{got:?}");
            Ok(())
        })?;
        let shown = ns.cluster.kubectl(&["get", "msvc", "outside", "-n", &ns.name])?;
        ensure!(shown.contains(HOST) && shown.contains("1/1"), "{shown}");
        let cleartext = json!({ "hosts": ["*.example.com"], "ports": [{ "port": 443, "protocol": "Tls" }] });
        let object = json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "MeshService", "metadata": { "name": "bad" },
            "spec": { "target": { "external": cleartext } } });
        let refused = ns.apply_refused(&object.to_string())?;
        ensure!(refused.contains("without endpoints the host itself is resolved"), "{refused}");
        Ok(())
    });
}

#[test]
fn an_endpoint_by_name_follows_the_names_addresses() {
    scenario("egress-dns", Injection::Label, |ns| {
        let mut addresses = Vec::new();
        for name in ["one", "two"] {
            App::new(name).label("weft.dev/inject", "disabled").deploy(ns)?;
            let pod = ns.pod(&format!("app={name}"))?;
            addresses.push(pod["status"]["podIP"].as_str().context("no address")?.to_owned());
        }
        ns.apply_json(&json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "moving" },
            "spec": { "clusterIP": "None", "ports": [{ "name": "http", "port": 8080 }] } }))?;
        let point = |to: &str| {
            ns.apply_json(
                &json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": { "name": "moving-1", "labels": { "kubernetes.io/service-name": "moving" } },
                "ports": [{ "name": "http", "port": 8080 }], "endpoints": [{ "addresses": [to] }] }),
            )
        };
        point(&addresses[0])?;
        let name = format!("moving.{}.svc.cluster.local", ns.name);
        register(
            ns,
            "moving",
            &json!({ "hosts": [HOST], "ports": [{ "port": 28082, "protocol": "Http1" }],
            "endpoints": [{ "address": name, "port": 8080 }] }),
        )?;
        let client = Client::deploy_shell(ns, "client")?;
        for (position, server) in ["one-", "two-"].iter().enumerate() {
            point(&addresses[position])?;
            eventually(&format!("{server} answers"), Duration::from_secs(60), || {
                let got = call(&client, &format!("http://{HOST}:28082/"), HOST, 28082, NOWHERE)?;
                ensure!(got.0 == "200" && got.1.contains(server), "{got:?}");
                Ok(())
            })?;
        }
        Ok(())
    });
}
