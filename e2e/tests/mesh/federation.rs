//! Two trust domains: this mesh, and another one that is a proxy in static mode with a root, an identity and policies of its own.

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};
use std::time::Duration;
use weft_api::names;
use weft_e2e::app::{CURL_IMAGE, TEST_IMAGE, pod};
use weft_e2e::{App, Client, Injection, Namespace, eventually, scenario};

const THEIRS: &str = "partner.example";
const HOST: &str = "orders.partner.example";
/// An address that nobody answers at (RFC 5737).
const NOWHERE: &str = "192.0.2.1";

/// A root, and what it has signed for a workload: PEM, and its key.
fn partner(id: &str) -> Result<(String, String, String)> {
    let mut params = CertificateParams::new([])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new([])?;
    params.subject_alt_names = vec![SanType::URI(id.try_into()?)];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let leaf = params.signed_by(&key, &*root)?;
    Ok((root.pem(), leaf.pem(), key.serialize_pem()))
}

/// A TrustDomain, which is of the whole mesh, for as long as a test lasts.
struct Believed<'a>(&'a Namespace, String);

impl<'a> Believed<'a> {
    fn new(ns: &'a Namespace, name: &str, spec: &Value) -> Result<Self> {
        ns.cluster.apply("weft-system", &trust_domain(name, spec).to_string())?;
        Ok(Self(ns, name.to_owned()))
    }
}

impl Drop for Believed<'_> {
    fn drop(&mut self) {
        let name = format!("trustdomain/{}", self.1);
        drop(self.0.cluster.kubectl(&["delete", &name, "-n", "weft-system", "--ignore-not-found"]));
    }
}

fn trust_domain(name: &str, spec: &Value) -> Value {
    json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "TrustDomain", "metadata": { "name": name }, "spec": spec })
}

/// The image of the proxy that our pods were given.
fn proxy_image(ns: &Namespace) -> Result<String> {
    let pod = ns.pod("app=back")?;
    let containers = ["initContainers", "containers"].map(|list| pod["spec"][list].as_array());
    let proxy = containers.into_iter().flatten().flatten().find(|c| c["name"] == names::PROXY_CONTAINER);
    let image = proxy.and_then(|container| container["image"].as_str());
    Ok(image.context("back has no proxy")?.to_owned())
}

/// The other mesh: an application behind a proxy, which also calls our `back`.
fn other_mesh<'a>(ns: &'a Namespace, id: &str, back: &str) -> Result<(Client<'a>, String, String)> {
    let (root, leaf, key) = partner(id)?;
    let ours = ns.object("configmap", "weft-trust-bundle")?;
    let ours = ours["data"]["roots.pem"].as_str().context("our roots")?.to_owned();
    let allow = json!({ "namespace": "shop", "name": "ours", "action": "ALLOW",
        "rules": [{ "name": "0", "from": [{ "trustDomains": ["cluster.local"] }] }] });
    let config = json!({
        "identity": { "certificate": "leaf.pem", "key": "key.pem", "roots": "root.pem",
            "federated": [{ "trustDomain": "cluster.local", "roots": "ours.pem" }] },
        "listeners": {
            "inbound": [{ "address": "0.0.0.0:15443", "application": "127.0.0.1:8080", "protocol": "Http1" }],
            "outbound": [{ "address": "127.0.0.1:9100", "service": "ours/back:80" }],
        },
        "workload": { "authorization": { "level": 3, "policies": [allow] } },
        "services": [{ "key": "ours/back:80", "namespace": "ours", "name": "back", "port": 80, "protocol": "HTTP1",
            "clusters": [{ "name": "back", "connectTimeoutMs": 2000, "idleTimeoutMs": 30000, "endpoints": [
                { "address": back, "identity": format!("spiffe://cluster.local/ns/{}/sa/back", ns.name) }] }] }],
    });
    let files = [
        ("weft.yaml", config.to_string()),
        ("root.pem", root.clone()),
        ("leaf.pem", leaf),
        ("key.pem", key),
        ("ours.pem", ours),
    ];
    let data: serde_json::Map<String, Value> =
        files.iter().map(|(name, text)| ((*name).to_owned(), STANDARD.encode(text).into())).collect();
    ns.apply_json(
        &json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "partner" }, "data": data }),
    )?;

    let mut object = pod("partner", CURL_IMAGE, &["/bin/sh", "-c", "exec sleep 100000"]);
    object["metadata"]["labels"]["weft.dev/inject"] = "disabled".into();
    object["spec"]["volumes"] = json!([{ "name": "files", "secret": { "secretName": "partner" } }]);
    let containers = object["spec"]["containers"].as_array_mut().context("containers")?;
    containers.push(json!({ "name": "server", "image": TEST_IMAGE, "imagePullPolicy": "IfNotPresent",
        "command": ["/testapp", "serve", "--http=:8080", "--grpc=:9000"] }));
    containers.push(json!({ "name": "proxy", "image": proxy_image(ns)?, "imagePullPolicy": "IfNotPresent",
        "args": ["--config", "/etc/partner/weft.yaml"],
        "volumeMounts": [{ "name": "files", "mountPath": "/etc/partner" }] }));
    let client = Client::deploy_pod(ns, "partner", object)?;
    let address = ns.pod("app=partner")?["status"]["podIP"].as_str().context("no address")?.to_owned();
    Ok((client, address, root))
}

/// Status and reason, and the body.
fn call(client: &Client<'_>, options: &str, url: &str) -> Result<(String, String)> {
    let script = format!("curl -s -m 8 {options} -w '\\n%{{http_code}} %header{{weft-reason}}' {url}");
    let said = client.shell(&script)?.stdout;
    let (body, end) = said.rsplit_once('\n').unwrap_or(("", &said));
    Ok((end.trim().to_owned(), body.to_owned()))
}

#[test]
fn two_trust_domains_call_each_other_by_name_and_nobody_else() {
    scenario("federation", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let client = Client::deploy_shell(ns, "client")?;
        let back = ns.pod("app=back")?["status"]["podIP"].as_str().context("no address")?.to_owned();
        let id = format!("spiffe://{THEIRS}/ns/shop/sa/orders");
        let (partner, address, root) = other_mesh(ns, &id, &format!("{back}:8080"))?;
        let register = |identity: &str| {
            let external = json!({ "hosts": [HOST], "endpoints": [{ "address": address }], "ports": [
                { "port": 80, "protocol": "Http1", "targetPort": 15443, "tls": { "identity": identity } }] });
            ns.apply_json(&json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "MeshService",
                "metadata": { "name": "orders" }, "spec": { "target": { "external": external } } }))
        };
        register(&id)?;
        let out = || call(&client, &format!("--resolve {HOST}:80:{NOWHERE}"), &format!("http://{HOST}/"));
        let inward = || call(&partner, "", "http://127.0.0.1:9100/");
        let awaited = |what: &str, ask: &dyn Fn() -> Result<(String, String)>, wanted: &str| {
            eventually(what, Duration::from_secs(30), || {
                let got = ask()?;
                ensure!(got.0 == wanted, "{got:?}, not {wanted}");
                Ok(got.1)
            })
        };
        awaited("nobody vouches for the server yet", &out, "503 tls-handshake")?;
        ensure!(inward()?.0.starts_with("503"), "nobody vouches for the caller yet: {:?}", inward()?);

        let name = ns.name.clone();
        let spec = json!({ "trustDomain": THEIRS, "pem": root });
        let believed = Believed::new(ns, &name, &spec)?;
        let body = awaited("a call there", &out, "200")?;
        let own = format!("spiffe://cluster.local/ns/{}/sa/client", ns.name);
        ensure!(body.contains(&own), "the other mesh was not told who calls: {body}");
        awaited("a caller of another mesh that no policy names", &inward, "403 policy-denied")?;
        let allow = |from: Value| {
            ns.apply_json(&json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy",
                "metadata": { "name": "partner" }, "spec": { "selector": { "matchLabels": { "app": "back" } },
                "action": "Allow", "rules": [{ "from": [from] }] } }))
        };
        // A namespace of ours is not theirs of the same name, nor is everybody of ours one of theirs.
        allow(json!({ "namespaces": ["shop"] }))?;
        awaited("a namespace of the same name", &inward, "403 policy-denied")?;
        allow(json!({ "identities": ["*"] }))?;
        awaited("an asterisk", &inward, "403 policy-denied")?;
        allow(json!({ "trustDomains": [THEIRS] }))?;
        let body = awaited("a caller that is let in", &inward, "200")?;
        ensure!(body.contains(&id), "the application was not told who calls: {body}");

        eventually("it is in force on all proxies", Duration::from_secs(30), || {
            let status = ns.cluster.object("weft-system", "trustdomain", &name)?["status"].clone();
            let applied = status["applied"].as_str().unwrap_or_default();
            let (have, all) = applied.split_once('/').context("not yet")?;
            ensure!(have == all && all != "0", "{status}");
            Ok(())
        })?;
        register(&format!("spiffe://{THEIRS}/ns/shop/sa/somebody-else"))?;
        awaited("somebody else is expected there", &out, "503 peer-identity-mismatch")?;
        register(&id)?;
        awaited("it is called again", &out, "200")?;

        drop(believed);
        awaited("nobody vouches for the server any more", &out, "503 tls-handshake")?;
        eventually("nobody vouches for the caller any more", Duration::from_secs(30), || {
            let got = inward()?;
            ensure!(!got.0.starts_with("200") && !got.0.ends_with("policy-denied"), "{got:?}");
            Ok(())
        })
    });
}

#[test]
fn what_could_never_be_believed_is_refused_at_once() {
    scenario("federation-refused", Injection::None, |ns| {
        let (root, leaf, _) = partner(&format!("spiffe://{THEIRS}/ns/shop/sa/orders"))?;
        let refused = |namespace: &str, spec: Value, word: &str| {
            let said = ns.cluster.apply_refused(namespace, &trust_domain("refused", &spec).to_string())?;
            ensure!(said.contains(word), "`{word}` is not in: {said}");
            anyhow::Ok(())
        };
        refused(
            "weft-system",
            json!({ "trustDomain": "cluster.local", "pem": root }),
            "this mesh's own trust domain",
        )?;
        refused(&ns.name, json!({ "trustDomain": THEIRS, "pem": root }), "apply it in weft-system")?;
        refused(
            "weft-system",
            json!({ "trustDomain": THEIRS, "pem": leaf }),
            "not a certificate authority's",
        )?;
        refused("weft-system", json!({ "trustDomain": THEIRS }), "needs pem, endpoint or both")?;
        refused("weft-system", json!({ "trustDomain": "", "pem": root }), "trustDomain")?;
        let domain = format!("{}.example", ns.name);
        let _first =
            Believed::new(ns, &format!("{}-first", ns.name), &json!({ "trustDomain": domain, "pem": root }))?;
        refused("weft-system", json!({ "trustDomain": domain, "pem": root }), "is named by TrustDomain")
    });
}
