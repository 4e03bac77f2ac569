//! Both meshes: what is installed, who runs there, and how they are joined. In each, `web` and `other` of namespace `checkout` may call,
//! and `orders` of namespace `shop` is called.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use weft_e2e::app::{TEST_IMAGE, pod};
use weft_e2e::chart::{self, NAMESPACE};
use weft_e2e::cluster::condition;
use weft_e2e::traffic::Reply;
use weft_e2e::{App, Client, Cluster, Injection, Namespace, eventually};

use crate::page;

/// What everybody of a test's clusters can reach: a port of each node.
const NODE_PORT: u16 = 30511;
/// An address that nobody answers at (RFC 5737): applications resolve the other mesh's names to it.
const NOWHERE: &str = "192.0.2.1";
const SOON: Duration = Duration::from_secs(60);

/// One of the two.
#[derive(Debug)]
pub struct Mesh {
    pub cluster: &'static Cluster,
    /// Its trust domain, and the other one's.
    pub domain: &'static str,
    pub theirs: &'static str,
    pub checkout: Namespace,
    pub shop: Namespace,
    /// Where it serves its bundle.
    pub url: String,
}

/// Both.
#[derive(Debug)]
pub struct Meshes {
    pub a: Mesh,
    pub b: Mesh,
    // Where the files of the page lie.
    folder: PathBuf,
}

/// Runs a test on both, joined. On failure prints the state of both, and panics with the error.
pub fn meshes(test: impl FnOnce(&Meshes) -> Result<()>) {
    static MESHES: OnceLock<Result<Meshes, String>> = OnceLock::new();
    let meshes = match MESHES.get_or_init(|| Meshes::new().map_err(|error| format!("{error:#}"))) {
        Ok(meshes) => meshes,
        Err(error) => panic!("two meshes could not be made: {error}"),
    };
    if let Err(error) = meshes.join().and_then(|()| test(meshes)) {
        for mesh in [&meshes.a, &meshes.b] {
            let domains = mesh.cluster.kubectl(&["get", "td", "-n", NAMESPACE, "-o", "yaml"]);
            eprintln!("---- {} ----\n{}", mesh.domain, domains.unwrap_or_default());
            eprintln!("{}{}", mesh.checkout.diagnosis(), mesh.shop.diagnosis());
        }
        panic!("{error:#}");
    }
}

impl Meshes {
    fn new() -> Result<Self> {
        let both = std::env::var("WEFT_FEDERATION")
            .context("WEFT_FEDERATION does not name two kubeconfigs: use `make federation`")?;
        let (a, b) = both.split_once(':').context("WEFT_FEDERATION names one kubeconfig only")?;
        let began = Instant::now();
        let (a, b) = std::thread::scope(|scope| {
            let a = scope.spawn(|| Mesh::new(a, "a.example", "b.example"));
            let b = scope.spawn(|| Mesh::new(b, "b.example", "a.example"));
            (a.join(), b.join())
        });
        let (Ok(a), Ok(b)) = (a, b) else { bail!("a thread has panicked") };
        let folder = std::env::temp_dir().join(format!("weft-federation-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let meshes = Self { a: a?, b: b?, folder };
        println!("both meshes are installed after {:.0} s", began.elapsed().as_secs_f64());
        let began = Instant::now();
        meshes.join()?;
        println!("joined after {:.1} s", began.elapsed().as_secs_f64());
        Ok(meshes)
    }

    /// From each to the other.
    pub fn ways(&self) -> [(&Mesh, &Mesh); 2] {
        [(&self.a, &self.b), (&self.b, &self.a)]
    }

    /// As the page has it: steps 2 and 3, and the service of the other mesh.
    pub fn join(&self) -> Result<()> {
        for (of, there) in self.ways() {
            self.written(of)?;
            let apply = of.on_page(&page::block("kubectl apply -f a.example.yaml")?);
            there.cluster.script(&self.folder, &apply)?;
        }
        for (of, there) in self.ways() {
            there.believes(of)?;
            there.register(of, &format!("spiffe://{}/ns/shop/sa/orders", of.domain))?;
        }
        Ok(())
    }

    /// Step 2 of the page in one of them: the file that is brought over, as it is then.
    pub fn written(&self, of: &Mesh) -> Result<String> {
        let script = of.on_page(&page::block("TRUST_DOMAIN=")?);
        let script = page::with(&script, &format!("https://bundle.{}:15011/", of.domain), &of.url)?;
        of.cluster.script(&self.folder, &script)?;
        Ok(std::fs::read_to_string(self.folder.join(format!("{}.yaml", of.domain)))?)
    }

    /// As the page has it where all that was fetched is of no use any more.
    pub fn replaced(&self, of: &Mesh, there: &Mesh) -> Result<()> {
        self.written(of)?;
        let command = "kubectl replace --force -f a.example.yaml";
        ensure!(page::says(command), "the page does not say `{command}` any more");
        there.cluster.script(&self.folder, &of.on_page(command))?;
        there.believes(of)
    }
}

impl Mesh {
    fn new(kubeconfig: &str, domain: &'static str, theirs: &'static str) -> Result<Self> {
        let cluster = Cluster::open(kubeconfig)?;
        let nodes = cluster.objects("", "nodes", "")?;
        let addresses = nodes.first().and_then(|node| node["status"]["addresses"].as_array());
        let node = addresses.into_iter().flatten().find(|address| address["type"] == "InternalIP");
        let node = node.and_then(|address| address["address"].as_str()).context("a node without address")?;
        let url = format!("https://{node}:{NODE_PORT}/");
        install(cluster, domain)?;
        let checkout = Namespace::create_named(cluster, "checkout", Injection::Label)?;
        let shop = Namespace::create_named(cluster, "shop", Injection::Label)?;
        let mesh = Self { cluster, domain, theirs, checkout, shop, url };
        App::new("orders").deploy(&mesh.shop)?;
        for name in ["web", "other"] {
            let mut pod = pod(name, TEST_IMAGE, &["/testapp", "pause"]);
            pod["spec"]["hostAliases"] =
                json!([{ "ip": NOWHERE, "hostnames": [format!("orders.{theirs}")] }]);
            Client::deploy_pod(&mesh.checkout, name, pod)?;
        }
        Ok(mesh)
    }

    /// What the page says, for this mesh where it is about `a.example`.
    pub fn on_page(&self, text: &str) -> String {
        if self.domain == "a.example" { text.to_owned() } else { page::mirrored(text) }
    }

    pub fn client(&self, name: &str) -> Client<'_> {
        Client { namespace: &self.checkout, pod: name.to_owned() }
    }

    /// A call of the other mesh's `orders`.
    pub fn call(&self, who: &str, path: &str) -> Result<Reply> {
        self.client(who).get(&format!("http://orders.{}{path}", self.theirs))
    }

    /// Waits for this answer to a call; `""`: without a reason. How long that took.
    pub fn awaits(&self, who: &str, path: &str, status: u16, reason: &str) -> Result<(Reply, Duration)> {
        let began = Instant::now();
        let reply = eventually(&format!("{who} of {} gets {status} {reason}", self.domain), SOON, || {
            let reply = self.call(who, path)?;
            ensure!(reply.status == status && reply.reason() == reason, "{reply}");
            Ok(reply)
        })?;
        Ok((reply, began.elapsed()))
    }

    pub fn id(&self, of: &str) -> String {
        format!("spiffe://{}/ns/checkout/sa/{of}", self.domain)
    }

    /// The one that runs now.
    pub fn orders(&self) -> Result<String> {
        let pods = self.cluster.await_pods("shop", "app=orders", 1)?;
        let pod = self.shop.object("pod", &pods[0])?;
        Ok(pod["status"]["podIP"].as_str().context("no address")?.to_owned())
    }

    /// Registers the other mesh's `orders` by the manifest of the page, as an identity that it must have.
    pub fn register(&self, other: &Mesh, identity: &str) -> Result<()> {
        let text = self.on_page(&page::block("kind: MeshService")?);
        let (gate, orders) = (format!("orders-gate.{}", other.domain), other.orders()?);
        let text = page::with(&text, &gate, &orders)?;
        let usual = format!("spiffe://{}/ns/shop/sa/orders", other.domain);
        self.cluster.apply("", &page::with(&text, &usual, identity)?)?;
        // The same for bytes that are nobody's business, which are found by their address.
        let external = json!({ "hosts": [format!("raw.{}", other.domain)], "endpoints": [{ "address": orders }],
            "ports": [{ "port": 7000, "protocol": "Tcp", "tls": { "identity": identity } }] });
        self.checkout
            .apply_json(&json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "MeshService",
                "metadata": { "name": "raw" }, "spec": { "target": { "external": external } } }))
            .map(drop)
    }

    /// Who of the other mesh is let in to `orders` here: the policy of the page, with its source or another one.
    pub fn lets_in(&self, source: Option<Value>) -> Result<()> {
        let Some(source) = source else {
            // It is about b.example, which lets callers of a.example in.
            let text = page::block("kind: AuthorizationPolicy")?;
            let text = if self.domain == "b.example" { text } else { page::mirrored(&text) };
            return self.cluster.apply("", &text).map(drop);
        };
        self.shop
            .apply_json(&json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy",
                "metadata": { "name": "orders" }, "spec": { "selector": { "matchLabels": { "app": "orders" } },
                "action": "Allow", "rules": [{ "from": [source] }] } }))
            .map(drop)
    }

    /// Everybody of the other mesh.
    pub fn lets_everybody_in(&self) -> Result<()> {
        self.lets_in(Some(json!({ "trustDomains": [self.theirs] })))
    }

    /// The TrustDomain of the other one.
    pub fn trust_domain(&self) -> Result<Value> {
        self.cluster.object(NAMESPACE, "trustdomain", self.theirs)
    }

    /// The own roots, as they are published.
    pub fn roots(&self) -> Result<String> {
        let bundle = self.cluster.object(NAMESPACE, "configmap", "weft-trust-bundle")?;
        Ok(bundle["data"]["roots.pem"].as_str().context("no roots")?.to_owned())
    }

    /// Waits until the other one's bundle is fetched and in force on all proxies.
    pub fn believes(&self, other: &Mesh) -> Result<()> {
        eventually(&format!("{} has the bundle of {}", self.domain, other.domain), SOON * 2, || {
            let object = self.trust_domain()?;
            let status = &object["status"];
            ensure!(status["bundle"]["pem"] == other.roots()?, "{status}");
            ensure!(condition(&object, "ResolvedRefs").is_some_and(|c| c["status"] == "True"), "{status}");
            in_force(&object)
        })
    }
}

/// On all proxies.
pub fn in_force(object: &Value) -> Result<()> {
    let status = &object["status"];
    let (have, all) =
        status["applied"].as_str().and_then(|text| text.split_once('/')).context("not applied")?;
    ensure!(have == all && all != "0", "{status}");
    ensure!(status["observedGeneration"] == object["metadata"]["generation"], "{status}");
    Ok(())
}

/// By the values of the page, with a NodePort for the load balancer that these clusters do not have, and lifetimes of minutes.
pub fn install(cluster: &Cluster, domain: &str) -> Result<Duration> {
    let page = page::block("helm upgrade --install")?;
    ensure!(page.contains("--set trustDomain=a.example --set federation.serveBundle=true"), "{page}");
    let values = [
        format!("--set=trustDomain={domain}"),
        "--set=federation.serveBundle=true".into(),
        "--set=federation.serviceType=NodePort".into(),
        format!("--set=federation.nodePort={NODE_PORT}"),
        "--set=leafLifetime=60s".into(),
        "--set=rootLifetime=1h".into(),
    ];
    chart::install_with(cluster, &values.each_ref().map(String::as_str))
}
