//! A certificate authority that somebody else keeps, such as cert-manager, in a Secret of its own: read and followed, never
//! written. Whether and when its root is taken over is decided in `rotation`.

use std::sync::Arc;
use std::time::SystemTime;

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::watch;

use super::rotation::expiry;
use super::{BadRoot, Root};
use crate::watch::Patience;

/// Why there is no root in it.
#[derive(Debug, thiserror::Error)]
pub enum GivenError {
    /// The API server.
    #[error("Secret {0}, the authority's, cannot be read")]
    Api(String, #[source] kube::Error),
    /// Nobody made it yet.
    #[error("Secret {0}, the authority's, does not exist in Weft's namespace")]
    None(String),
    /// Nobody renewed it.
    #[error("Secret {0}, the authority's, holds a certificate that has expired")]
    Expired(String),
    /// It is not of type kubernetes.io/tls.
    #[error("Secret {0}, the authority's, has no {1}")]
    Missing(String, &'static str),
    /// What is in it.
    #[error("Secret {0} holds no usable certificate authority")]
    Bad(String, #[source] BadRoot),
}

/// Its root, now.
///
/// # Errors
/// Why there is none.
pub async fn fetch(client: Client, namespace: &str, name: &str) -> Result<Arc<Root>, GivenError> {
    let api: Api<Secret> = Api::namespaced(client, namespace);
    let found = api.get_opt(name).await.map_err(|error| GivenError::Api(name.to_owned(), error))?;
    let root = read(name, &found.ok_or_else(|| GivenError::None(name.to_owned()))?)?;
    if expiry(&root) <= SystemTime::now() { Err(GivenError::Expired(name.to_owned())) } else { Ok(root) }
}

/// Follows it for ever. When it is deleted, or cannot be used, what it held last stays.
pub async fn follow(client: Client, namespace: String, name: String, told: watch::Sender<Option<Arc<Root>>>) {
    let api: Api<Secret> = Api::namespaced(client, &namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={name}")).timeout(120);
    let mut events = std::pin::pin!(watcher(api, config).backoff(Patience::default()).applied_objects());
    loop {
        match events.try_next().await {
            Ok(Some(secret)) => match read(&name, &secret) {
                Ok(root) => {
                    told.send_if_modified(|now| {
                        let other = now.as_ref().is_none_or(|now| now.der != root.der);
                        *now = Some(root);
                        other
                    });
                }
                Err(error) => {
                    let cause =
                        std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                    tracing::error!(error = %error, cause, "the other authority's Secret cannot be used; its last root stays");
                }
            },
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(error = %error, secret = name, "watching the other authority's Secret failed; trying again");
            }
        }
    }
}

fn read(name: &str, secret: &Secret) -> Result<Arc<Root>, GivenError> {
    let text = |key: &'static str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key)).filter(|bytes| !bytes.0.is_empty());
        let bytes = bytes.ok_or_else(|| GivenError::Missing(name.to_owned(), key))?;
        Ok(String::from_utf8_lossy(&bytes.0).into_owned())
    };
    let root = Root::from_pem(&text("tls.crt")?, &text("tls.key")?);
    root.map(Arc::new).map_err(|error| GivenError::Bad(name.to_owned(), error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::tests::authority;
    use k8s_openapi::ByteString;
    use std::collections::BTreeMap;

    #[test]
    fn a_secret_as_cert_manager_writes_it_is_read() {
        let root = authority::intermediate();
        let data = |keys: &[(&str, &str)]| Secret {
            data: Some(
                keys.iter().map(|(k, v)| ((*k).to_owned(), ByteString(v.as_bytes().to_vec()))).collect(),
            ),
            ..Secret::default()
        };
        let (chain, key) = (root.chain_pem.as_str(), root.key_pem.as_str());
        let whole = data(&[("ca.crt", chain), ("tls.crt", chain), ("tls.key", key)]);
        assert_eq!(read("ca", &whole).unwrap().der, root.der);
        assert!(matches!(read("ca", &data(&[("tls.crt", chain)])), Err(GivenError::Missing(_, "tls.key"))));
        let empty = Secret { data: Some(BTreeMap::new()), ..Secret::default() };
        assert!(matches!(read("ca", &empty), Err(GivenError::Missing(_, "tls.crt"))));
        let other = authority::intermediate();
        let wrong = data(&[("tls.crt", chain), ("tls.key", &other.key_pem)]);
        assert!(matches!(read("ca", &wrong), Err(GivenError::Bad(_, BadRoot::Mismatch))));
    }
}
