//! Certificates for proxies that run without an operator: one root, and a leaf for each identity, as PEM files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// A root that signs.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root_pem: String,
}

/// The files of one identity.
#[derive(Clone, Debug)]
pub struct Files {
    /// Leaf, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// The root, PEM.
    pub roots: PathBuf,
}

impl Authority {
    /// A fresh one.
    pub fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new([])?;
        // Not the leaves' name: to OpenSSL a certificate whose issuer has its own name has signed itself.
        params.distinguished_name.push(DnType::CommonName, "root");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root_pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), root_pem })
    }

    /// Writes `name.crt`, `name.key` and `roots.pem` into a directory; the identity is
    /// `spiffe://cluster.local/ns/bench/sa/NAME`.
    pub fn issue(&self, name: &str, into: &Path) -> Result<Files> {
        self.issue_with(name, vec![SanType::URI(identity(name).try_into()?)], into)
    }

    /// The same with a DNS name in place of the identity, for peers that verify nothing else.
    pub fn issue_dns(&self, name: &str, into: &Path) -> Result<Files> {
        self.issue_with(name, vec![SanType::DnsName(name.try_into()?)], into)
    }

    fn issue_with(&self, name: &str, names: Vec<SanType>, into: &Path) -> Result<Files> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new([])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = names;
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&key, &self.issuer)?;
        let files = Files {
            certificate: into.join(format!("{name}.crt")),
            key: into.join(format!("{name}.key")),
            roots: into.join("roots.pem"),
        };
        for (path, text) in [
            (&files.certificate, leaf.pem()),
            (&files.key, key.serialize_pem()),
            (&files.roots, self.root_pem.clone()),
        ] {
            fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(files)
    }
}

/// The SPIFFE id that [`Authority::issue`] gives to a name.
#[must_use]
pub fn identity(name: &str) -> String {
    format!("spiffe://cluster.local/ns/bench/sa/{name}")
}
