//! What attacks stand on: a pod outside of the mesh with openssl and curl, certificates that the mesh's own root has signed
//! (or somebody else), and counters of the parts that are attacked.

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use serde_json::Value;
use std::time::Duration;
use weft_api::names;
use weft_e2e::app::{CURL_IMAGE, pod};
use weft_e2e::{Client, Cluster, Namespace, chart, eventually};

/// For what is to come about by itself.
pub const SOON: Duration = Duration::from_secs(20);

/// A certificate with those that lead to a root, and its key; as PEM.
pub struct Shown {
    pub chain: Vec<String>,
    pub key: String,
}

/// Somebody who signs: the mesh's root, or another one.
pub struct Signer(Issuer<'static, KeyPair>);

impl Signer {
    /// With the key of the mesh's own root, which only an administrator can read.
    pub fn of_the_mesh(cluster: &Cluster) -> Result<Self> {
        let secret = cluster.object(chart::NAMESPACE, "secret", names::CA_SECRET)?;
        let part = |name: &str| -> Result<String> {
            let text = secret["data"][name].as_str().with_context(|| format!("the Secret has no {name}"))?;
            Ok(String::from_utf8(STANDARD.decode(text)?)?)
        };
        let key = KeyPair::from_pem(&part("tls.key")?)?;
        Ok(Self(Issuer::from_ca_cert_pem(&part("tls.crt")?, key)?))
    }

    /// Whoever has this certificate, whether or not it may sign.
    pub fn by(certificate: &str, key: &KeyPair) -> Result<Self> {
        Ok(Self(Issuer::from_ca_cert_pem(certificate, KeyPair::from_pem(&key.serialize_pem())?)?))
    }

    /// Of nobody's trust.
    pub fn foreign() -> Result<Self> {
        Ok(Self(Issuer::new(authority(), KeyPair::generate()?)))
    }

    /// Signs what it is given, whatever that is.
    pub fn sign(&self, params: &CertificateParams) -> Result<Shown> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?;
        Ok(Shown { chain: vec![certificate.pem()], key: key.serialize_pem() })
    }

    /// Signed by whoever holds `by`, whose certificate this one has signed.
    pub fn sign_below(&self, by: &CertificateParams, params: &CertificateParams) -> Result<Shown> {
        let between = self.sign(by)?;
        let below = Self(Issuer::new(by.clone(), KeyPair::from_pem(&between.key)?));
        let mut shown = below.sign(params)?;
        shown.chain.extend(between.chain);
        Ok(shown)
    }

    /// Below so many authorities, each signed by the one before.
    pub fn sign_deep(&self, depth: usize, params: &CertificateParams) -> Result<Shown> {
        let mut above = self.sign(&authority())?;
        for _ in 1..depth {
            let issuer = Self(Issuer::new(authority(), KeyPair::from_pem(&above.key)?));
            let mut next = issuer.sign(&authority())?;
            next.chain.extend(above.chain);
            above = next;
        }
        let mut shown = Self(Issuer::new(authority(), KeyPair::from_pem(&above.key)?)).sign(params)?;
        shown.chain.extend(above.chain);
        Ok(shown)
    }
}

/// What a workload's certificate says, to be changed.
pub fn leaf(uri: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new([])?;
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

/// What an authority's says.
pub fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params
}

/// A pod without a proxy, next to the mesh.
pub struct Attacker<'a>(Client<'a>);

impl<'a> Attacker<'a> {
    pub fn deploy(ns: &'a Namespace) -> Result<Self> {
        let mut pod = pod("attacker", CURL_IMAGE, &["/bin/sh", "-c", "exec sleep 100000"]);
        pod["metadata"]["labels"]["weft.dev/inject"] = "disabled".into();
        Client::deploy_pod(ns, "attacker", pod).map(Self)
    }

    /// Runs a script in it; all that it printed, on both outputs, whatever the outcome.
    pub fn run(&self, script: &str) -> Result<String> {
        let ns = self.0.namespace;
        let ended =
            ns.cluster.exec_ended(&ns.name, &self.0.pod, "app", &["/bin/sh"], Some(script.as_bytes()))?;
        Ok(ended.stdout + &ended.stderr)
    }

    /// Puts a file into it.
    pub fn put(&self, path: &str, bytes: impl AsRef<[u8]>) -> Result<()> {
        let said = self.run(&format!("{} > {path} && echo there", decoded(bytes)))?;
        ensure!(said.trim() == "there", "{path}: {said}");
        Ok(())
    }

    /// These bytes to `address port`, in the clear; what came back. The sending side stays open until the other end closes, or for
    /// some seconds: a client that closes it is taken for gone.
    pub fn plain(&self, to: (&str, u16), bytes: impl AsRef<[u8]>) -> Result<String> {
        self.run(&format!(
            "in=/tmp/in.$$; mkfifo $in; {{ {}; exec sleep 5; }} > $in & nc -w 1 {} {} < $in; kill $!; rm $in",
            decoded(bytes),
            to.0,
            to.1
        ))
    }

    /// These bytes by TLS, as a proxy of the mesh would say them; what came back, and what openssl says of it.
    pub fn mtls(&self, to: (&str, u16), show: Option<&Shown>, bytes: impl AsRef<[u8]>) -> Result<String> {
        self.tls(to, show, "-tls1_3 -alpn weft/http1", bytes)
    }

    /// With other options of `openssl s_client`.
    pub fn tls(
        &self,
        to: (&str, u16),
        show: Option<&Shown>,
        options: &str,
        bytes: impl AsRef<[u8]>,
    ) -> Result<String> {
        let (mut files, mut shows) = (String::new(), String::new());
        if let Some(shown) = show {
            let (own, above) = shown.chain.split_first().context("an empty chain")?;
            for (name, text) in [("leaf", own), ("key", &shown.key), ("chain", &above.concat())] {
                files += &format!("{} > /tmp/{name}.pem\n", decoded(text));
            }
            shows = "-cert /tmp/leaf.pem -key /tmp/key.pem".to_owned();
            if !above.is_empty() {
                shows += " -cert_chain /tmp/chain.pem";
            }
        }
        self.run(&format!(
            "{files}{} | timeout 8 openssl s_client -quiet -connect {}:{} {options} {shows} 2>&1; true",
            decoded(bytes),
            to.0,
            to.1
        ))
    }

    /// Sum of the samples of a counter whose labels contain all of `labels`, as the part at this address serves it.
    pub fn count(&self, address: &str, counter: &str, labels: &[&str]) -> Result<u64> {
        let text = self.run(&format!("curl -s -m 5 http://{address}:{}/metrics", names::METRICS_PORT))?;
        ensure!(text.contains("# EOF"), "no metrics from {address}: {text}");
        let fits = |line: &&str| {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            name == counter && labels.iter().all(|label| line.contains(label))
        };
        let value = |line: &str| line.rsplit(' ').next().and_then(|n| n.parse::<f64>().ok());
        let sum: f64 = text.lines().filter(fits).filter_map(value).sum();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of requests")]
        Ok(sum as u64)
    }

    /// The same of all replicas of one of Weft's own parts.
    pub fn count_of(&self, part: &str, counter: &str, labels: &[&str]) -> Result<u64> {
        let all = self.0.namespace.cluster.objects(chart::NAMESPACE, "pods", "")?;
        let mut sum = 0;
        for pod in all.iter().filter(|pod| weft_e2e::cluster::name(pod).starts_with(part)) {
            sum += self.count(address(pod)?, counter, labels)?;
        }
        Ok(sum)
    }

    /// How many requests a proxy has found malformed: those with a head that can be read, and connections that ended before that.
    pub fn malformed(&self, address: &str) -> Result<u64> {
        let reason = ["direction=\"inbound\"", "reason=\"bad-request\""];
        let requests = self.count(address, "weft_requests_total", &reason)?;
        Ok(requests + self.count(address, "weft_refusals_total", &reason)?)
    }

    /// Waits until there are that many.
    pub fn malformed_are(&self, address: &str, least: u64) -> Result<()> {
        eventually("malformed requests are counted", SOON, || {
            let count = self.malformed(address)?;
            ensure!(count >= least, "there are {count}, not {least}");
            Ok(())
        })
    }

    /// Waits until a counter has come that far.
    pub fn counted(&self, address: &str, counter: &str, labels: &[&str], least: u64) -> Result<()> {
        eventually(&format!("{counter} {labels:?} of {address}"), SOON, || {
            let count = self.count(address, counter, labels)?;
            ensure!(count >= least, "it is {count}, not {least}");
            Ok(())
        })
    }
}

/// A command that prints these bytes.
fn decoded(bytes: impl AsRef<[u8]>) -> String {
    format!("echo {} | base64 -d", STANDARD.encode(bytes))
}

/// Of a pod.
pub fn address(pod: &Value) -> Result<&str> {
    pod["status"]["podIP"].as_str().context("the pod has no address")
}

/// A request without a body, at whose end the connection is closed.
pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n")
}

/// Statuses of the answers, in order.
pub fn statuses(answers: &str) -> Vec<&str> {
    let all = answers.match_indices("HTTP/1.1 ");
    all.filter_map(|(at, start)| answers[at + start.len()..].get(..3)).collect()
}

/// How many requests the application has had, as it says in an answer.
pub fn served(answer: &str) -> Result<u64> {
    let (_, rest) = answer.rsplit_once("\"count\":").with_context(|| format!("no count in {answer}"))?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Ok(digits.parse()?)
}

/// The SPIFFE id of a ServiceAccount.
pub fn id(namespace: &str, account: &str) -> String {
    format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")
}
