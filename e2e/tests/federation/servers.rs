//! Servers of bundles that are no operator's, and what they show: certificates of authorities that a test makes, or has stolen.

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::json;
use weft_e2e::Client;
use weft_e2e::app::{CURL_IMAGE, pod};
use weft_e2e::chart::NAMESPACE;

use crate::meshes::Mesh;

pub type Root = CertifiedIssuer<'static, KeyPair>;

/// What a server shows: PEM, and its key.
pub type Shown = (String, String);

/// An authority that nobody knows.
pub fn stranger() -> Result<Root> {
    let mut params = CertificateParams::new([])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

/// What an issuer signs for whoever has this SPIFFE id.
pub fn of_workload(issuer: &Issuer<'_, KeyPair>, id: &str) -> Result<Shown> {
    signed(issuer, SanType::URI(id.try_into()?))
}

/// The same for a server of the web.
pub fn of_host(issuer: &Issuer<'_, KeyPair>, name: &str) -> Result<Shown> {
    signed(issuer, SanType::DnsName(name.try_into()?))
}

fn signed(issuer: &Issuer<'_, KeyPair>, name: SanType) -> Result<Shown> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new([])?;
    params.subject_alt_names = vec![name];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok((params.signed_by(&key, issuer)?.pem(), key.serialize_pem()))
}

/// A pod outside of the mesh, and its Service, that give this root away as a bundle, on a port for each certificate. Until it is dropped.
#[derive(Debug)]
pub struct Server<'a> {
    mesh: &'a Mesh,
    name: &'static str,
}

impl<'a> Server<'a> {
    pub fn start(mesh: &'a Mesh, name: &'static str, shown: &[Shown], root: &Root) -> Result<Self> {
        let bundle = json!({ "spiffe_refresh_hint": 60,
            "keys": [{ "kty": "EC", "use": "x509-svid", "x5c": [STANDARD.encode(root.der())] }] });
        let bundle = bundle.to_string();
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close";
        let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{bundle}", bundle.len());
        let mut data = json!({ "bundle": STANDARD.encode(answer) });
        let mut script = String::from("cd /etc/server;");
        let mut ports = Vec::new();
        for (n, (certificate, key)) in shown.iter().enumerate() {
            data[format!("{n}.pem")] = STANDARD.encode(format!("{certificate}{key}")).into();
            let port = port(n);
            ports.push(json!({ "name": format!("tls-{n}"), "port": port }));
            script += &format!(" openssl s_server -accept {port} -cert {n}.pem -key {n}.pem -HTTP -quiet &");
        }
        let server = Self { mesh, name };
        server.remove();
        let secret =
            json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "data": data });
        mesh.shop.apply_json(&secret)?;
        mesh.shop
            .apply_json(&json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
            "spec": { "selector": { "app": name }, "ports": ports } }))?;
        let mut object = pod(name, CURL_IMAGE, &["/bin/sh", "-c", &format!("{script} wait")]);
        object["metadata"]["labels"]["weft.dev/inject"] = "disabled".into();
        object["spec"]["volumes"] = json!([{ "name": "files", "secret": { "secretName": name } }]);
        object["spec"]["containers"][0]["volumeMounts"] =
            json!([{ "name": "files", "mountPath": "/etc/server" }]);
        Client::deploy_pod(&mesh.shop, name, object)?;
        Ok(server)
    }

    /// Where it shows the certificate of this number.
    pub fn url(&self, n: usize) -> String {
        format!("https://{}:{}/bundle", Self::host(self.name), port(n))
    }

    /// The name by which the operator finds it.
    pub fn host(name: &str) -> String {
        format!("{name}.shop.svc.cluster.local")
    }

    fn remove(&self) {
        let delete = ["delete", "pod,service,secret", self.name, "-n", "shop", "--ignore-not-found"];
        drop(self.mesh.cluster.kubectl(&delete));
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        self.remove();
    }
}

fn port(n: usize) -> usize {
    8440 + n
}

/// The root of a mesh, to sign with, by whoever has got hold of its key.
pub fn stolen(mesh: &Mesh) -> Result<Issuer<'static, KeyPair>> {
    let secret = mesh.cluster.object(NAMESPACE, "secret", "weft-ca")?;
    let key = secret["data"]["tls.key"].as_str().context("no key")?;
    let key = KeyPair::from_pem(&String::from_utf8(STANDARD.decode(key)?)?)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Weft");
    params.distinguished_name.push(DnType::CommonName, format!("Weft root of {}", mesh.domain));
    Ok(Issuer::new(params, key))
}
