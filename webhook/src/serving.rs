//! The serving certificate: the key is made here and never leaves memory, the operator signs, and the API server trusts the
//! operator's root (`caBundle`, patched by the operator). Renewed at two thirds of its life or when the trust bundle changes,
//! swapped without closing a connection. Losing the operator changes nothing until the certificate ends.

use crate::metrics::Metrics;
use crate::operator::{self, Address};
use anyhow::{Context, Result, bail};
use arc_swap::ArcSwapOption;
use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use rand::Rng;
use rcgen::{CertificateParams, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use weft_api::{Identity, TrustDomain, names};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// First and longest wait after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// The certificate in use; the TLS server asks it at each handshake.
#[derive(Debug, Default)]
pub struct Certificate {
    key: ArcSwapOption<CertifiedKey>,
    not_after: AtomicI64,
}

impl Certificate {
    /// Whether there is one that has not ended.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.key.load().is_some() && self.not_after.load(Ordering::Acquire) > now()
    }

    /// From now on, this one.
    pub fn install(&self, key: CertifiedKey, not_after: i64) {
        self.not_after.store(not_after, Ordering::Release);
        self.key.store(Some(Arc::new(key)));
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.key.load_full()
    }
}

/// The roots that the operator is verified against; `None` until the ConfigMap was seen.
pub type Bundle = watch::Receiver<Option<Arc<RootCertStore>>>;

/// Follows the trust bundle's ConfigMap. A deleted or broken bundle leaves the last good one in force.
pub async fn follow_bundle(configmaps: Api<ConfigMap>, bundle: watch::Sender<Option<Arc<RootCertStore>>>) {
    let only = watcher::Config::default().fields(&format!("metadata.name={}", names::BUNDLE_CONFIGMAP));
    let mut events = std::pin::pin!(watcher(configmaps, only).default_backoff().applied_objects());
    let mut current = String::new();
    while let Some(event) = events.next().await {
        let pem = match event {
            Ok(map) => map.data.and_then(|mut data| data.remove(names::BUNDLE_KEY)).unwrap_or_default(),
            Err(error) => {
                tracing::warn!(error = %format!("{:#}", anyhow::Error::from(error)), "cannot watch the trust bundle, retrying");
                continue;
            }
        };
        if pem == current {
            continue;
        }
        match roots(&pem) {
            Ok(roots) => {
                tracing::info!(roots = roots.len(), "trust bundle read");
                bundle.send_replace(Some(Arc::new(roots)));
                current = pem;
            }
            Err(error) => {
                tracing::error!(error = %format!("{error:#}"), "the trust bundle is not usable; the last one stays")
            }
        }
    }
}

/// Reads a PEM bundle.
fn roots(pem: &str) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        store
            .add(certificate.context("a certificate in the bundle is not PEM")?)
            .context("a root in the bundle is unusable")?;
    }
    if store.is_empty() {
        bail!("ConfigMap {} has no certificate under {}", names::BUNDLE_CONFIGMAP, names::BUNDLE_KEY);
    }
    Ok(store)
}

/// How a certificate is asked for.
#[derive(Clone, Debug)]
pub struct Renewal {
    /// The operator.
    pub address: Address,
    /// Of operator and webhook.
    pub trust_domain: TrustDomain,
    /// Weft's own namespace.
    pub namespace: String,
    /// The projected token, read anew each time because the kubelet replaces it.
    pub token_path: PathBuf,
}

/// Keeps the certificate fresh, for ever.
pub async fn renew(
    renewal: Renewal,
    certificate: Arc<Certificate>,
    mut bundle: Bundle,
    metrics: Arc<Metrics>,
) {
    let mut failures = 0u32;
    loop {
        let Ok(roots) = bundle.wait_for(Option::is_some).await.map(|roots| roots.clone()) else { return };
        let Some(roots) = roots else { continue };
        match renewal.ask(roots).await {
            Ok((key, not_after)) => {
                failures = 0;
                certificate.install(key, not_after);
                metrics.renewed(Some(not_after));
                let wait = renewal_wait(not_after - now());
                tracing::info!(
                    not_after_unix_s = not_after,
                    renew_in_s = wait.as_secs(),
                    "serving certificate installed"
                );
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    changed = bundle.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        // All replicas see the change at once; the operator need not.
                        tokio::time::sleep(jittered(Duration::from_secs(5))).await;
                    }
                }
            }
            Err(error) => {
                metrics.renewed(None);
                let wait = jittered(BACKOFF.0.saturating_mul(1 << failures.min(10)).min(BACKOFF.1));
                failures = failures.saturating_add(1);
                tracing::warn!(error = %format!("{error:#}"), retry_in_ms = wait.as_millis(), "no serving certificate, retrying");
                tokio::time::sleep(wait).await;
            }
        }
    }
}

impl Renewal {
    async fn ask(&self, roots: Arc<RootCertStore>) -> Result<(CertifiedKey, i64)> {
        let token = tokio::fs::read_to_string(&self.token_path)
            .await
            .with_context(|| format!("reading the token at {}", self.token_path.display()))?;
        let key = KeyPair::generate().context("making a key")?;
        // The operator takes only the public key of the request; it decides on the names.
        let csr =
            CertificateParams::default().serialize_request(&key).context("making the signing request")?;
        let operator = Identity {
            trust_domain: self.trust_domain.clone(),
            namespace: self.namespace.clone(),
            service_account: names::OPERATOR.into(),
        };
        let signed =
            operator::sign(&self.address, roots, &operator, csr.der().to_vec(), token.trim().to_owned())
                .await?;
        let chain: Vec<_> = signed.chain_der.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        self.check_names(chain.first().context("the operator sent no certificate")?)?;
        if signed.not_after_unix_s <= now() {
            bail!("the operator sent a certificate that has ended; compare the clocks");
        }
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = CertifiedKey::from_der(chain, key, &rustls::crypto::aws_lc_rs::default_provider())
            .context("the operator's certificate does not fit the key")?;
        Ok((key, signed.not_after_unix_s))
    }

    /// The API server calls `weft-webhook.<namespace>.svc`.
    fn check_names(&self, leaf: &CertificateDer<'_>) -> Result<()> {
        let wanted = format!("{}.{}.svc", names::WEBHOOK, self.namespace);
        let (_, leaf) =
            X509Certificate::from_der(leaf).context("the operator's certificate cannot be read")?;
        let names = leaf.subject_alternative_name()?.context("the operator's certificate has no names")?;
        let found = names
            .value
            .general_names
            .iter()
            .any(|name| matches!(name, GeneralName::DNSName(n) if **n == *wanted));
        if !found {
            bail!(
                "the operator's certificate lacks the name {wanted}: is this pod's ServiceAccount {}?",
                names::WEBHOOK
            );
        }
        Ok(())
    }
}

/// Two thirds of what is left, a little earlier or later, so that replicas do not ask together.
fn renewal_wait(left_s: i64) -> Duration {
    let left = u64::try_from(left_s).unwrap_or_default();
    Duration::from_secs(left).mul_f64(rand::rng().random_range(0.60..0.70)).max(Duration::from_secs(1))
}

fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::rng().random_range(0.5..1.0))
}

fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_comes_at_about_two_thirds() {
        for _ in 0..100 {
            let wait = renewal_wait(86_400).as_secs();
            assert!((51_000..=61_000).contains(&wait), "{wait}");
        }
        assert_eq!(renewal_wait(-5), Duration::from_secs(1));
    }

    #[test]
    fn a_bundle_without_a_certificate_is_refused() {
        for bad in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(roots(bad).is_err(), "{bad}");
        }
        let key = KeyPair::generate().unwrap();
        let root = CertificateParams::default().self_signed(&key).unwrap().pem();
        assert_eq!(roots(&format!("{root}{root}")).unwrap().len(), 2);
    }

    #[test]
    fn without_a_certificate_it_is_not_valid() {
        assert!(!Certificate::default().is_valid());
    }
}
