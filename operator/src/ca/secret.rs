//! The roots in their Secret: made by whichever replica comes first, read by all, watched. They live on in the memory of
//! every replica, from where the leader writes them back when somebody deletes them. Each step of a rotation is one write, which
//! the API server refuses when somebody else has written in between.
//!
//! `tls.crt` and `tls.key` sign; `next.crt` and `next.key` will; `old.crt` is still trusted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::TryStreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::sync::watch;
use weft_api::names;

use super::given::{self, GivenError};
use super::root::END;
use super::rotation::{self, Facts, Maker, Next, Step, Trusted};
use super::serving::Serving;
use super::{Authority, BadRoot, Phase, Root, Roots};
use crate::settings::Settings;
use crate::watch::Patience;

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const OLD: &str = "old.crt";

/// Why there are no roots.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The API server.
    #[error("Secret {} cannot be read or written", names::CA_SECRET)]
    Api(#[from] kube::Error),
    /// What is in the Secret.
    #[error("Secret {} holds no usable root", names::CA_SECRET)]
    Bad(#[from] BadRoot),
    /// A key of the Secret is missing.
    #[error("the Secret of the root has no {0}")]
    Missing(&'static str),
    /// It is not Weft's, so only its maker can make another one.
    #[error("{0}")]
    Expired(String),
    /// Another authority's.
    #[error(transparent)]
    Given(#[from] GivenError),
}

/// The Secret as it was read.
#[derive(Clone, Debug)]
pub struct Standing {
    /// The roots.
    pub roots: Roots,
    /// Somebody asks for a rotation, in these words.
    pub wanted: Option<String>,
    /// Which phase the Secret says that it is in.
    pub marked: Option<String>,
    // Written back with everything in it that is none of Weft's.
    secret: Secret,
}

impl Standing {
    /// For events.
    #[must_use]
    pub fn uid(&self) -> &str {
        self.secret.metadata.uid.as_deref().unwrap_or_default()
    }

    /// Whether somebody wrote it who does not mark phases.
    #[must_use]
    pub fn unmarked(&self) -> bool {
        self.marked.as_deref() != Some(self.roots.phase().as_str())
    }

    /// Whether somebody asks for a root of Weft's making: of one that Weft did not make in so many words.
    #[must_use]
    pub fn wants_weft(&self) -> bool {
        self.wanted.as_ref().is_some_and(|how| self.roots.signing.is_weft() || how == names::ROTATE_TO_WEFT)
    }

    /// The roots after a step.
    ///
    /// # Errors
    /// When a root cannot be made.
    pub fn after(
        &self,
        step: Step,
        make: impl FnOnce() -> Result<Arc<Root>, BadRoot>,
        now: SystemTime,
    ) -> Result<Roots, BadRoot> {
        Ok(match step {
            Step::Stamp => self.roots.stamp(now),
            Step::Begin => self.roots.begin(make()?, now),
            Step::Switch => self.roots.switch(now),
            Step::Retire => self.roots.retire(now),
            Step::Replace => self.roots.replace(make()?, now),
        })
    }
}

/// Reads the roots, or makes the first one. Two replicas that start together end up with the same one. What has expired is
/// followed by what there is to follow it, because nobody could connect to ask for that.
///
/// # Errors
/// When the API server cannot be asked, or the Secret holds something else: a root of somebody else's making is never
/// replaced unasked.
pub async fn ensure(client: Client, settings: &Settings) -> Result<Roots, SecretError> {
    let namespace = &settings.namespace;
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let now = SystemTime::now();
    let make = || Root::generate(&settings.trust_domain, settings.root_lifetime).map(Arc::new);
    let given = async || match &settings.root_secret {
        Some(name) => Ok::<_, GivenError>(Some(given::fetch(client, namespace, name).await?)),
        None => Ok(None),
    };
    let Some(secret) = api.get_opt(names::CA_SECRET).await? else {
        let first = given().await?.map_or_else(make, Ok)?;
        let roots = Roots::from(first).stamp(now);
        return match create(&api, &roots).await {
            Ok(()) => {
                let of_weft = settings.root_secret.is_none();
                tracing::info!(
                    secret = names::CA_SECRET,
                    of_weft,
                    "there was no root certificate: wrote the first"
                );
                Ok(roots)
            }
            Err(error) if is_taken(&error) => Ok(read(&api.get(names::CA_SECRET).await?)?.roots),
            Err(error) => Err(error.into()),
        };
    };
    let standing = read(&secret)?;
    if rotation::expiry(&standing.roots.signing) > now {
        return Ok(standing.roots);
    }
    // Without it there may be a next root.
    let given =
        given().await.inspect_err(|error| tracing::error!(error = %error, "no root of the other authority"));
    let given = given.ok().flatten();
    let other = settings.root_secret.is_some().then_some(given.as_deref());
    let facts = Facts {
        now,
        maker: Maker::of(&standing.roots, other, now),
        wanted: false,
        unmarked: false,
        leaf_lifetime: Duration::ZERO,
        trusted: Trusted::default(),
        abroad: Duration::ZERO,
    };
    let step = match rotation::next(&standing.roots, &facts) {
        Next::Do(step) => step,
        Next::Wait(why) => return Err(SecretError::Expired(why)),
    };
    let roots = standing.after(step, || given.map_or_else(make, Ok), now)?;
    write(&api, &standing, &roots).await?;
    tracing::warn!(
        ?step,
        "the root had expired: proxies follow as soon as they have read the new trust bundle"
    );
    Ok(roots)
}

/// Writes roots that are in memory back, unless there are some.
///
/// # Errors
/// When the API server refuses. `Ok(false)`: there is a Secret already.
pub async fn restore(client: Client, namespace: &str, roots: &Roots) -> Result<bool, SecretError> {
    let api: Api<Secret> = Api::namespaced(client, namespace);
    match create(&api, roots).await {
        Ok(()) => Ok(true),
        Err(error) if is_taken(&error) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Writes the next standing in place of one that was read.
///
/// # Errors
/// When the API server refuses, also because somebody else has written since.
pub async fn step(
    client: Client,
    namespace: &str,
    standing: &Standing,
    roots: &Roots,
) -> Result<(), SecretError> {
    Ok(write(&Api::namespaced(client, namespace), standing, roots).await?)
}

async fn write(api: &Api<Secret>, standing: &Standing, roots: &Roots) -> kube::Result<()> {
    let mut secret = standing.secret.clone();
    fill(&mut secret, roots);
    if roots.phase() == Phase::Distributing {
        // Done as asked.
        secret.metadata.annotations.get_or_insert_default().remove(names::ROTATE_ROOT);
    }
    // It carries the version that was read.
    api.replace(names::CA_SECRET, &PostParams::default(), &secret).await.map(|_| ())
}

async fn create(api: &Api<Secret>, roots: &Roots) -> kube::Result<()> {
    let mut secret = Secret {
        metadata: ObjectMeta {
            name: Some(names::CA_SECRET.into()),
            labels: Some(BTreeMap::from([(names::MANAGED_BY.into(), names::OPERATOR.into())])),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".into()),
        ..Secret::default()
    };
    fill(&mut secret, roots);
    api.create(&PostParams::default(), &secret).await.map(|_| ())
}

fn fill(secret: &mut Secret, roots: &Roots) {
    let data = secret.data.get_or_insert_default();
    let old: String = roots.old.iter().map(|(_, pem)| pem.as_str()).collect();
    let next = roots.next.as_ref();
    for (name, text) in [
        (CERTIFICATE, Some(roots.signing.chain_pem.as_str())),
        (KEY, Some(roots.signing.key_pem.as_str())),
        (NEXT_CERTIFICATE, next.map(|root| root.chain_pem.as_str())),
        (NEXT_KEY, next.map(|root| root.key_pem.as_str())),
        (OLD, Some(old.as_str()).filter(|old| !old.is_empty())),
    ] {
        match text {
            Some(text) => data.insert(name.to_owned(), ByteString(text.as_bytes().to_vec())),
            None => data.remove(name),
        };
    }
    let annotations = secret.metadata.annotations.get_or_insert_default();
    annotations.insert(names::ROOTS_EPOCH.to_owned(), roots.epoch.to_string());
    annotations.insert(names::ROOTS_PHASE.to_owned(), roots.phase().as_str().to_owned());
}

fn is_taken(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_conflict() || status.is_already_exists())
}

fn read(secret: &Secret) -> Result<Standing, SecretError> {
    let text = |name: &'static str| {
        let bytes = secret.data.as_ref()?.get(name).filter(|bytes| !bytes.0.is_empty())?;
        Some(String::from_utf8_lossy(&bytes.0).into_owned())
    };
    let needed = |name| text(name).ok_or(SecretError::Missing(name));
    let annotation = |name: &str| secret.metadata.annotations.as_ref()?.get(name).cloned();
    let next = match (text(NEXT_CERTIFICATE), text(NEXT_KEY)) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some(Arc::new(Root::from_pem(&certificate, &key)?)),
        (None, _) => return Err(SecretError::Missing(NEXT_CERTIFICATE)),
        (_, None) => return Err(SecretError::Missing(NEXT_KEY)),
    };
    let roots = Roots {
        signing: Arc::new(Root::from_pem(&needed(CERTIFICATE)?, &needed(KEY)?)?),
        next,
        old: old(&text(OLD).unwrap_or_default())?,
        epoch: annotation(names::ROOTS_EPOCH).and_then(|epoch| epoch.parse().ok()).unwrap_or_default(),
    };
    Ok(Standing {
        roots,
        wanted: annotation(names::ROTATE_ROOT),
        marked: annotation(names::ROOTS_PHASE),
        secret: secret.clone(),
    })
}

fn old(pem: &str) -> Result<Vec<(CertificateDer<'static>, String)>, BadRoot> {
    let blocks = pem.split_inclusive(END).filter(|block| block.contains(END));
    let read = |block: &str| {
        let der = CertificateDer::from_pem_slice(block.as_bytes());
        Ok((der.map_err(|e| BadRoot::Certificate(e.to_string()))?, format!("{}\n", block.trim())))
    };
    blocks.map(read).collect()
}

/// Follows the Secret for ever: other roots in it are taken over, and told to whoever asks for the standing; `None`: it is gone.
pub async fn follow(
    client: Client,
    namespace: String,
    authority: Arc<Authority>,
    serving: Arc<Serving>,
    standing: watch::Sender<Option<Arc<Standing>>>,
    missing: watch::Sender<bool>,
) {
    let api: Api<Secret> = Api::namespaced(client, &namespace);
    let config =
        watcher::Config::default().fields(&format!("metadata.name={}", names::CA_SECRET)).timeout(120);
    let mut events = std::pin::pin!(watcher(api, config).backoff(Patience::default()));
    let mut listed = false;
    loop {
        match events.try_next().await {
            Ok(Some(watcher::Event::Init)) => listed = false,
            Ok(Some(watcher::Event::Apply(secret) | watcher::Event::InitApply(secret))) => {
                listed = true;
                missing.send_replace(false);
                if let Some(read) = take_over(&secret, &authority, &serving) {
                    standing.send_replace(Some(Arc::new(read)));
                }
            }
            Ok(Some(watcher::Event::Delete(_))) => {
                standing.send_replace(None);
                missing.send_replace(true);
            }
            Ok(Some(watcher::Event::InitDone)) => {
                if !listed {
                    standing.send_replace(None);
                    missing.send_replace(true);
                }
            }
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(error = %error, secret = names::CA_SECRET, "watching the root failed; trying again")
            }
        }
    }
}

fn take_over(secret: &Secret, authority: &Authority, serving: &Serving) -> Option<Standing> {
    let standing = match read(secret) {
        Ok(standing) => standing,
        Err(error) => {
            tracing::error!(error = %error, "the roots in the Secret cannot be used; the last ones stay");
            return None;
        }
    };
    let before = authority.roots();
    if !before.same(&standing.roots) {
        let phase = standing.roots.phase().as_str();
        if before.signing.der == standing.roots.signing.der {
            tracing::info!(phase, "other roots are trusted from now on");
        } else {
            tracing::warn!(phase, "signing with another root from now on");
        }
        authority.replace(standing.roots.clone());
        if let Err(error) = serving.renew() {
            tracing::error!(error = %error, "cannot serve with the new root");
        }
    }
    Some(standing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::tests::authority;

    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

    fn root() -> Root {
        Root::generate(&"cluster.local".parse().unwrap(), YEAR).unwrap()
    }

    fn written(roots: &Roots) -> Secret {
        let mut secret = Secret::default();
        fill(&mut secret, roots);
        secret
    }

    #[test]
    fn every_standing_is_read_as_it_was_written() {
        let now = SystemTime::now();
        let first = Roots::from(root()).stamp(now);
        let second = first.begin(root(), now);
        let third = second.switch(now);
        let again = third.begin(root(), now).switch(now);
        assert_eq!(again.old.len(), 2);
        for roots in [first, second, third, again] {
            let standing = read(&written(&roots)).unwrap();
            assert!(standing.roots.same(&roots));
            assert_eq!(standing.roots.bundle_pem(), roots.bundle_pem());
            assert!(!standing.unmarked());
        }
    }

    #[test]
    fn the_key_of_an_old_root_is_kept_nowhere() {
        let now = SystemTime::now();
        let first = Roots::from(root()).stamp(now);
        let secret = written(&first.begin(root(), now).switch(now));
        let all: String =
            secret.data.unwrap().values().map(|v| String::from_utf8_lossy(&v.0).into_owned()).collect();
        assert!(!all.contains(first.signing.key_pem.trim()));
    }

    #[test]
    fn to_another_kind_of_root_only_in_so_many_words() {
        let asked = |root: Root, how: &str| {
            let mut secret = written(&Roots::from(root).stamp(SystemTime::now()));
            let annotations = secret.metadata.annotations.get_or_insert_default();
            annotations.insert(names::ROTATE_ROOT.into(), how.into());
            read(&secret).unwrap().wants_weft()
        };
        assert!(asked(root(), "now"));
        assert!(!asked(authority::intermediate(), "now"));
        assert!(asked(authority::intermediate(), "weft"));
        assert!(!read(&written(&Roots::from(root()))).unwrap().wants_weft());
    }

    #[test]
    fn a_next_root_that_somebody_puts_there_begins_a_rotation() {
        let mut secret = written(&Roots::from(root()).stamp(SystemTime::now()));
        let next = root();
        let data = secret.data.as_mut().unwrap();
        data.insert(NEXT_CERTIFICATE.into(), ByteString(next.certificate_pem.clone().into_bytes()));
        assert!(matches!(read(&secret), Err(SecretError::Missing(NEXT_KEY))));
        let data = secret.data.as_mut().unwrap();
        data.insert(NEXT_KEY.into(), ByteString(next.key_pem.clone().into_bytes()));
        let standing = read(&secret).unwrap();
        assert_eq!(standing.roots.phase(), Phase::Distributing);
        assert!(standing.unmarked(), "when it began has to be noted first");
    }
}
