//! The roots of the mesh at one moment: which one signs, which one comes next, which ones are still trusted. A rotation goes
//! through three standings, each of which is whole in the Secret, so that a crash in any of them loses nothing. It decides
//! nothing: `rotation` does.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};

use super::Root;

/// Where a rotation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, prometheus_client::encoding::EncodeLabelValue)]
pub enum Phase {
    /// One root, which signs.
    Stable,
    /// The next root is being made known; the present one signs.
    Distributing,
    /// The new root signs; certificates that the old one has signed are still good.
    Retiring,
}

impl Phase {
    /// All of them, in the order of a rotation.
    pub const ALL: [Self; 3] = [Self::Stable, Self::Distributing, Self::Retiring];

    /// As users read it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stable => "Stable",
            Self::Distributing => "Distributing",
            Self::Retiring => "Retiring",
        }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Roots {
    /// Signs.
    pub signing: Arc<Root>,
    /// Will sign, once everybody trusts it.
    pub next: Option<Arc<Root>>,
    /// Have signed: certificate and PEM. Their keys are gone.
    pub old: Vec<(CertificateDer<'static>, String)>,
    /// When this standing began, in ms since 1970; of two standings the later one counts. 0: nobody has said.
    pub epoch: i64,
}

impl<R: Into<Arc<Root>>> From<R> for Roots {
    fn from(root: R) -> Self {
        Self { signing: root.into(), next: None, old: Vec::new(), epoch: 0 }
    }
}

impl Roots {
    /// Where a rotation stands. What is being distributed comes first: until then nothing else goes on.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        if self.next.is_some() {
            Phase::Distributing
        } else if self.old.is_empty() {
            Phase::Stable
        } else {
            Phase::Retiring
        }
    }

    /// Every root that is trusted, the signing one first.
    #[must_use]
    pub fn bundle(&self) -> Vec<CertificateDer<'static>> {
        let next = self.next.iter().map(|root| &root.der);
        std::iter::once(&self.signing.der)
            .chain(next)
            .chain(self.old.iter().map(|(der, _)| der))
            .cloned()
            .collect()
    }

    /// The same as PEM.
    #[must_use]
    pub fn bundle_pem(&self) -> String {
        let next = self.next.iter().map(|root| root.certificate_pem.as_str());
        let old = self.old.iter().map(|(_, pem)| pem.as_str());
        let mut text = String::new();
        for pem in std::iter::once(self.signing.certificate_pem.as_str()).chain(next).chain(old) {
            text.push_str(pem.trim_end());
            text.push('\n');
        }
        text
    }

    /// The same for the wire.
    #[must_use]
    pub fn bundle_wire(&self) -> Vec<bytes::Bytes> {
        self.bundle().iter().map(|der| bytes::Bytes::copy_from_slice(der)).collect()
    }

    /// A name for exactly this bundle, by which acknowledgements are counted.
    #[must_use]
    pub fn bundle_id(&self) -> String {
        let mut hash = Sha256::new();
        for der in self.bundle() {
            hash.update((der.len() as u64).to_be_bytes());
            hash.update(&der);
        }
        hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// When this standing began.
    #[must_use]
    pub fn since(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.epoch.max(0).unsigned_abs())
    }

    /// Whether the other one says the same.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        self.epoch == other.epoch && self.phase() == other.phase() && self.bundle() == other.bundle()
    }

    /// With a next root, from now on to be made known.
    #[must_use]
    pub fn begin(&self, next: impl Into<Arc<Root>>, now: SystemTime) -> Self {
        Self { next: Some(next.into()), epoch: self.later(now), ..self.clone() }
    }

    /// The next root signs, and the present one is only trusted. Without a next one nothing changes.
    #[must_use]
    pub fn switch(&self, now: SystemTime) -> Self {
        let Some(next) = &self.next else { return self.clone() };
        let mut old = self.old.clone();
        old.insert(0, (self.signing.der.clone(), self.signing.certificate_pem.clone()));
        Self { signing: Arc::clone(next), next: None, old, epoch: self.later(now) }
    }

    /// The old ones are not trusted any more.
    #[must_use]
    pub fn retire(&self, now: SystemTime) -> Self {
        Self { old: Vec::new(), epoch: self.later(now), ..self.clone() }
    }

    /// Nothing of before is good any more.
    #[must_use]
    pub fn replace(&self, root: impl Into<Arc<Root>>, now: SystemTime) -> Self {
        Self { signing: root.into(), next: None, old: Vec::new(), epoch: self.later(now) }
    }

    /// The same, as beginning now.
    #[must_use]
    pub fn stamp(&self, now: SystemTime) -> Self {
        Self { epoch: self.later(now), ..self.clone() }
    }

    // Never earlier than what was, whatever the clock says.
    fn later(&self, now: SystemTime) -> i64 {
        let ms = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        i64::try_from(ms).unwrap_or(i64::MAX).max(self.epoch.saturating_add(1))
    }
}
