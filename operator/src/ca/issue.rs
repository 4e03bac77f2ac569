//! Signs leaves. A leaf is one SPIFFE id (X.509-SVID section 2: exactly one URI), for client and server use.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rcgen::{
    Certificate, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    PublicKeyData, SanType, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::sync::watch;
use weft_api::Identity;

use super::root::{BACKDATE, Root, serial};
use super::roots::Roots;

/// Why a leaf could not be made.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// A name does not fit into a certificate, or signing failed.
    #[error("the certificate could not be made")]
    Make(#[from] rcgen::Error),
    /// A leaf would outlive it.
    #[error("the root certificate has expired")]
    RootExpired,
}

/// A signed leaf.
#[derive(Debug)]
pub struct Issued {
    /// Leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// When it expires.
    pub not_after: SystemTime,
}

/// A signed leaf for somebody who wants PEM and exact times.
#[derive(Debug)]
pub struct Certified {
    /// The leaf, without the root.
    pub pem: String,
    /// Its beginning, in whole seconds.
    pub not_before: SystemTime,
    /// Its end, in whole seconds.
    pub not_after: SystemTime,
}

impl Certified {
    /// From beginning to end.
    #[must_use]
    pub fn life(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }
}

/// Signs with the root of the moment, and says which ones are trusted.
#[derive(Debug)]
pub struct Authority {
    roots: ArcSwap<Roots>,
    lifetime: Duration,
    changes: watch::Sender<u64>,
}

impl Authority {
    /// Signs with the signing one of these roots, for that long.
    #[must_use]
    pub fn new(roots: impl Into<Roots>, lifetime: Duration) -> Self {
        Self { roots: ArcSwap::from_pointee(roots.into()), lifetime, changes: watch::Sender::new(0) }
    }

    /// The root that signs.
    #[must_use]
    pub fn root(&self) -> Arc<Root> {
        Arc::clone(&self.roots.load().signing)
    }

    /// All of them.
    #[must_use]
    pub fn roots(&self) -> Arc<Roots> {
        self.roots.load_full()
    }

    /// How long leaves are good.
    #[must_use]
    pub const fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// From now on, these.
    pub fn replace(&self, roots: impl Into<Roots>) {
        self.roots.store(Arc::new(roots.into()));
        self.changes.send_modify(|n| *n += 1);
    }

    /// Hears of other roots.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// A leaf for a public key.
    ///
    /// # Errors
    /// When the root has expired, or a name does not fit.
    pub fn issue(
        &self,
        key: &SubjectPublicKeyInfo,
        identity: &Identity,
        dns_names: &[String],
    ) -> Result<Issued, IssueError> {
        self.sign(key, identity, dns_names, SystemTime::now())
    }

    /// A leaf for a public key that is dated back by `backdate` and good for `life` from there, or until the root ends.
    ///
    /// # Errors
    /// When the root has expired, or a name does not fit.
    pub fn certify(
        &self,
        key: &SubjectPublicKeyInfo,
        identity: &Identity,
        backdate: Duration,
        life: Duration,
    ) -> Result<Certified, IssueError> {
        let now = SystemTime::now();
        let root = self.root();
        // Certificates know whole seconds only.
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let not_before = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) - backdate;
        let not_after = (not_before + life).min(living_end(&root, now)?);
        let leaf = leaf(&root, key, identity, &[], not_before, not_after)?;
        Ok(Certified { pem: leaf.pem(), not_before, not_after })
    }

    pub(super) fn sign(
        &self,
        key: &impl PublicKeyData,
        identity: &Identity,
        dns_names: &[String],
        now: SystemTime,
    ) -> Result<Issued, IssueError> {
        let root = self.root();
        let not_after = (now + self.lifetime).min(living_end(&root, now)?);
        let leaf = leaf(&root, key, identity, dns_names, now - BACKDATE, not_after)?;
        Ok(Issued { chain: vec![leaf.der().clone()], not_after })
    }
}

/// When a root ends that is good now.
fn living_end(root: &Root, now: SystemTime) -> Result<SystemTime, IssueError> {
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(root.not_after.max(0).unsigned_abs());
    if end <= now { Err(IssueError::RootExpired) } else { Ok(end) }
}

fn leaf(
    root: &Root,
    key: &impl PublicKeyData,
    identity: &Identity,
    dns_names: &[String],
    not_before: SystemTime,
    not_after: SystemTime,
) -> Result<Certificate, IssueError> {
    let mut params = CertificateParams::default();
    // The subject is empty, so the alternative names are critical (RFC 5280 section 4.2.1.6); rcgen sees to that.
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    for name in dns_names {
        params.subject_alt_names.push(SanType::DnsName(name.clone().try_into()?));
    }
    params.not_before = OffsetDateTime::from(not_before);
    params.not_after = OffsetDateTime::from(not_after);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial());
    Ok(params.signed_by(key, &root.issuer)?)
}
