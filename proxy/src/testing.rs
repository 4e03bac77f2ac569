//! For tests only: a certificate authority in memory.

pub mod operator;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::time::{Duration, SystemTime};
use weft_api::Identity;

/// A chain, leaf first, and its key.
pub type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// A root and its key.
pub struct Ca(CertifiedIssuer<'static, KeyPair>);

/// `spiffe://cluster.local/ns/<namespace>/sa/<account>`
pub fn identity(namespace: &str, account: &str) -> Identity {
    format!("spiffe://cluster.local/ns/{namespace}/sa/{account}").parse().unwrap()
}

impl Ca {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn root(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    pub fn root_pem(&self) -> String {
        self.0.pem()
    }

    /// For an hour.
    pub fn workload(&self, identity: &Identity) -> Pair {
        self.issue(&[&identity.to_string()], &[], Duration::from_secs(3600))
    }

    pub fn issue(&self, uris: &[&str], dns: &[&str], life: Duration) -> Pair {
        let key = KeyPair::generate().unwrap();
        let chain = self.sign(
            &key,
            uris,
            dns,
            SystemTime::now() - Duration::from_secs(60),
            life + Duration::from_secs(60),
        );
        (chain, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())))
    }

    /// Certifies a public key, as the operator does.
    pub fn sign(
        &self,
        key: &impl PublicKeyData,
        uris: &[&str],
        dns: &[&str],
        from: SystemTime,
        life: Duration,
    ) -> Vec<CertificateDer<'static>> {
        let mut params = CertificateParams::new([]).unwrap();
        params.subject_alt_names = uris.iter().map(|u| SanType::URI((*u).try_into().unwrap())).collect();
        params.subject_alt_names.extend(dns.iter().map(|d| SanType::DnsName((*d).try_into().unwrap())));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = from.into();
        params.not_after = (from + life).into();
        params.serial_number = Some(SerialNumber::from_slice(&rand::random::<u64>().to_be_bytes()));
        vec![params.signed_by(key, &self.0).unwrap().der().clone()]
    }

    /// An expired one.
    pub fn expired(&self, identity: &Identity) -> Pair {
        let key = KeyPair::generate().unwrap();
        let from = SystemTime::now() - Duration::from_secs(7200);
        let chain = self.sign(&key, &[&identity.to_string()], &[], from, Duration::from_secs(3600));
        (chain, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())))
    }
}
