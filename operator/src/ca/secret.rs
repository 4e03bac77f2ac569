//! The root in its Secret: made by whichever replica comes first, read by all, watched. It lives on in the memory of every
//! replica, from where the leader writes it back when somebody deletes it.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::TryStreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use weft_api::{TrustDomain, names};

use super::serving::Serving;
use super::{Authority, BadRoot, Root};
use crate::watch::Patience;

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// Why there is no root.
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
}

/// Reads the root, or makes it. Two replicas that start together end up with the same one.
///
/// # Errors
/// When the API server cannot be asked, or the Secret holds something else: a root is never replaced unasked.
pub async fn ensure(
    client: Client,
    namespace: &str,
    trust_domain: &TrustDomain,
) -> Result<Root, SecretError> {
    let api: Api<Secret> = Api::namespaced(client, namespace);
    if let Some(secret) = api.get_opt(names::CA_SECRET).await? {
        return read(&secret);
    }
    let root = Root::generate(trust_domain)?;
    match create(&api, &root).await {
        Ok(()) => {
            tracing::info!(secret = names::CA_SECRET, "made a new root certificate");
            Ok(root)
        }
        Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {
            read(&api.get(names::CA_SECRET).await?)
        }
        Err(error) => Err(error.into()),
    }
}

/// Writes a root that is in memory back, unless there is one.
///
/// # Errors
/// When the API server refuses. `Ok(false)`: there is a Secret already.
pub async fn restore(client: Client, namespace: &str, root: &Root) -> Result<bool, SecretError> {
    let api: Api<Secret> = Api::namespaced(client, namespace);
    match create(&api, root).await {
        Ok(()) => Ok(true),
        Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

async fn create(api: &Api<Secret>, root: &Root) -> kube::Result<()> {
    let data = [(CERTIFICATE, &root.certificate_pem), (KEY, &root.key_pem)];
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(names::CA_SECRET.into()),
            labels: Some(BTreeMap::from([(names::MANAGED_BY.into(), names::OPERATOR.into())])),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".into()),
        data: Some(
            data.into_iter()
                .map(|(name, pem)| (name.to_owned(), ByteString(pem.clone().into_bytes())))
                .collect(),
        ),
        ..Secret::default()
    };
    api.create(&PostParams::default(), &secret).await.map(|_| ())
}

fn read(secret: &Secret) -> Result<Root, SecretError> {
    let text = |name: &'static str| {
        let bytes = secret.data.as_ref().and_then(|d| d.get(name)).ok_or(SecretError::Missing(name))?;
        Ok::<_, SecretError>(String::from_utf8_lossy(&bytes.0).into_owned())
    };
    Ok(Root::from_pem(&text(CERTIFICATE)?, &text(KEY)?)?)
}

/// Follows the Secret for ever: another root in it is taken over; `missing` is told whether it is gone.
pub async fn follow(
    client: Client,
    namespace: String,
    authority: Arc<Authority>,
    serving: Arc<Serving>,
    missing: tokio::sync::watch::Sender<bool>,
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
                take_over(&secret, &authority, &serving);
            }
            Ok(Some(watcher::Event::Delete(_))) => {
                missing.send_replace(true);
            }
            Ok(Some(watcher::Event::InitDone)) => {
                if !listed {
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

fn take_over(secret: &Secret, authority: &Authority, serving: &Serving) {
    match read(secret) {
        Ok(root) if root.der != authority.root().der => {
            tracing::warn!("Secret {} holds another root: signing with it from now on", names::CA_SECRET);
            authority.replace(root);
            if let Err(error) = serving.renew() {
                tracing::error!(error = %error, "cannot serve with the new root");
            }
        }
        Ok(_) => {}
        Err(error) => {
            tracing::error!(error = %error, "the root in the Secret cannot be used; the last one stays")
        }
    }
}
