//! The own certificate from files: read whole, judged, and only then given to `tls`. Files that are half changed do not
//! fit each other, and are refused like any others. A private key goes nowhere else.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use weft_api::{Identity, TrustDomain};

use super::file::IdentityFiles;
use crate::dial::chain;
use crate::tls::{Foreign, Leaf, Tls, TlsError};

/// Chains and bundles are a handful of certificates.
const MAX_FILE: u64 = 1 << 20;

/// What the three files hold, fit to be used.
#[derive(Debug)]
pub(super) struct Material {
    pub(super) leaf: Leaf,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Vec<CertificateDer<'static>>,
    foreign: Foreign,
}

impl Material {
    /// Reads the files. Every mistake is named.
    pub(super) fn read(files: &IdentityFiles) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let mut take = |field: &str, path: &Path| {
            let read = pem(path).map_err(|problem| problems.push(format!("identity.{field}: {problem}")));
            read.unwrap_or_default()
        };
        let (chain_pem, key_pem, roots_pem) =
            (take("certificate", &files.certificate), take("key", &files.key), take("roots", &files.roots));
        let foreign_pem: Vec<_> =
            files.federated.iter().map(|domain| take("federated", &domain.roots)).collect();
        if !problems.is_empty() {
            return Err(problems);
        }
        let certificates = |pem: &[u8]| CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
        let certificates_of = |field: &str, path: &Path, pem: &[u8]| match certificates(pem) {
            Ok(list) if list.is_empty() => {
                Err(format!("identity.{field}: {} holds no certificate in PEM", path.display()))
            }
            Ok(list) => Ok(list),
            Err(error) => Err(format!("identity.{field}: {} is damaged: {error}", path.display())),
        };
        let own = certificates_of("certificate", &files.certificate, &chain_pem);
        let roots = certificates_of("roots", &files.roots, &roots_pem);
        let key = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|error| {
            format!("identity.key: {} holds no private key in PEM: {error}", files.key.display())
        });
        let (mut foreign, mut bad) = (Foreign::new(), Vec::new());
        for (n, (files, pem)) in files.federated.iter().zip(foreign_pem).enumerate() {
            let field = format!("federated[{n}]");
            match (files.trust_domain.parse::<TrustDomain>(), certificates_of(&field, &files.roots, &pem)) {
                (Ok(domain), Ok(roots)) => {
                    if foreign.insert(domain, roots).is_some() {
                        bad.push(format!("identity.{field}: {} stands twice", files.trust_domain));
                    }
                }
                (domain, roots) => {
                    bad.extend(domain.err().map(|error| format!("identity.{field}: {error}")));
                    bad.extend(roots.err());
                }
            }
        }
        match (own, key, roots) {
            (Ok(own), Ok(key), Ok(roots)) if bad.is_empty() => {
                Self::judge(own, key, roots, foreign).map_err(|problem| vec![problem])
            }
            (own, key, roots) => {
                Err([own.err(), key.err(), roots.err()].into_iter().flatten().chain(bad).collect())
            }
        }
    }

    fn judge(
        own: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        roots: Vec<CertificateDer<'static>>,
        foreign: Foreign,
    ) -> Result<Self, String> {
        let unusable = |error: TlsError| format!("identity: {}", chain(&error));
        // As a whole, aside from what is in force.
        let tls = Tls::from_der(own.clone(), key.clone_key(), roots.clone()).map_err(unusable)?;
        tls.set_foreign(foreign.clone()).map_err(|error| format!("identity.federated: {}", chain(&error)))?;
        if !tls.own_is_trusted() {
            return Err("identity: the certificate does not lead to any of the roots".to_owned());
        }
        let leaf = tls.own().map(|own| own.leaf.clone()).ok_or("identity: there is no certificate")?;
        if leaf.not_after <= SystemTime::now() {
            return Err(format!("identity: the certificate of {} has expired", leaf.identity));
        }
        Ok(Self { leaf, chain: own, key, roots, foreign })
    }

    /// Who the certificate says that this proxy is.
    pub(super) const fn identity(&self) -> &Identity {
        &self.leaf.identity
    }

    /// Whether it is in force already.
    pub(super) fn is_in_force(&self, tls: &Tls) -> bool {
        tls.own().is_some_and(|own| own.chain == self.chain)
            && tls.roots() == self.roots
            && *tls.foreign() == self.foreign
    }

    /// Puts it in force; open connections keep what they have.
    pub(super) fn apply(self, tls: &Tls) -> Result<(), TlsError> {
        tls.set_identity(self.chain, self.key, self.roots)?;
        tls.set_foreign(self.foreign)
    }
}

fn pem(path: &Path) -> Result<Vec<u8>, String> {
    let unreadable = |error| format!("{} cannot be read: {error}", path.display());
    if fs::metadata(path).map_err(unreadable)?.len() > MAX_FILE {
        return Err(format!("{} is larger than 1 MiB", path.display()));
    }
    fs::read(path).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Ca, identity};
    use std::time::Duration;

    fn files(dir: &Path) -> IdentityFiles {
        let at = |name: &str| dir.join(name);
        IdentityFiles {
            certificate: at("tls.crt"),
            key: at("tls.key"),
            roots: at("roots.pem"),
            federated: Vec::new(),
        }
    }

    fn write(dir: &Path, ca: &Ca, life: Duration) {
        let uri = identity("shop", "front").to_string();
        let (chain, key) = ca.issue(&[&uri], &[], life);
        let pem = |kind: &str, der: &[u8]| {
            use base64_of::encode;
            format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", encode(der))
        };
        fs::write(dir.join("tls.crt"), pem("CERTIFICATE", &chain[0])).unwrap();
        fs::write(dir.join("tls.key"), pem("PRIVATE KEY", key.secret_der())).unwrap();
        fs::write(dir.join("roots.pem"), ca.root_pem()).unwrap();
    }

    /// RFC 4648 section 4, for the tests.
    mod base64_of {
        pub fn encode(bytes: &[u8]) -> String {
            const SIGNS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
            let mut out = String::new();
            for group in bytes.chunks(3) {
                let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte))
                    << (8 * (3 - group.len()));
                for sign in 0..4 {
                    let six = bits >> (18 - 6 * sign) & 63;
                    out.push(if sign <= group.len() { SIGNS[six as usize] as char } else { '=' });
                }
            }
            out
        }
    }

    #[test]
    fn what_fits_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new("root");
        write(dir.path(), &ca, Duration::from_secs(3600));
        let material = Material::read(&files(dir.path())).unwrap();
        assert_eq!(material.identity(), &identity("shop", "front"));
        let tls = Tls::new();
        assert!(!material.is_in_force(&tls));
        Material::read(&files(dir.path())).unwrap().apply(&tls).unwrap();
        assert!(material.is_in_force(&tls) && tls.own_is_trusted());
    }

    #[test]
    fn what_does_not_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let of = || Material::read(&files(dir.path())).map(drop).unwrap_err();
        assert_eq!(of().len(), 3, "{:?}", of());
        let ca = Ca::new("root");
        write(dir.path(), &ca, Duration::from_secs(3600));
        fs::write(dir.path().join("tls.key"), "nothing").unwrap();
        assert!(of()[0].contains("holds no private key"), "{:?}", of());
        // Only half of a rotation.
        let key = fs::read(dir.path().join("roots.pem")).unwrap();
        write(dir.path(), &Ca::new("other"), Duration::from_secs(3600));
        fs::write(dir.path().join("roots.pem"), key).unwrap();
        assert!(of()[0].contains("does not lead to any of the roots"), "{:?}", of());
    }
}
