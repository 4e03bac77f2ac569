//! Writes what a workload is given, as the operator gives it: `root.pem`, `chain.pem` and `key.pem`, and the bundle that other
//! meshes are given, `bundle.json`, with a next root in it, into the folder of the first argument. For tests in which programs of others verify it; it keeps nothing.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use std::{env, fs};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use weft_api::{Identity, TrustDomain};
use weft_operator::ca::{Authority, Root, Roots, public_key};
use weft_operator::federation::document;

const DAY: Duration = Duration::from_secs(86_400);

fn main() -> anyhow::Result<()> {
    let folder = PathBuf::from(env::args_os().nth(1).context("say into which folder")?);
    let domain: TrustDomain = "cluster.local".parse()?;
    let authority = Authority::new(Root::generate(&domain, DAY * 365)?, DAY);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let request = CertificateParams::default().serialize_request(&key)?;
    let identity: Identity = "spiffe://cluster.local/ns/shop/sa/back".parse()?;
    let issued = authority.issue(&public_key(request.der())?, &identity, &[])?;
    let chain: String = issued.chain.iter().map(|certificate| pem(certificate)).collect();
    fs::write(folder.join("root.pem"), &authority.root().certificate_pem)?;
    fs::write(folder.join("chain.pem"), chain)?;
    fs::write(folder.join("key.pem"), key.serialize_pem())?;
    let now = SystemTime::now();
    let roots = Roots::clone(&authority.roots()).stamp(now).begin(Root::generate(&domain, DAY * 365)?, now);
    fs::write(folder.join("bundle.json"), document::write(&roots.bundle(), roots.epoch, DAY))?;
    Ok(())
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = (0..text.len()).step_by(64).map(|at| &text[at..text.len().min(at + 64)]).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
