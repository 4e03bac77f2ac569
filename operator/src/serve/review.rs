//! Asks the API server whose token it is, and whether a pod lives. A seam: the tests have their own answers.

use std::future::Future;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use weft_api::names;

use crate::index::Key;

/// A pod as the API server knows it, or as the token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundPod {
    /// Namespace and name.
    pub key: Key,
    /// Its uid.
    pub uid: String,
    /// Its ServiceAccount.
    pub service_account: String,
}

/// Why a token is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// The API server says no.
    #[error("the token is not valid: {0}")]
    Invalid(String),
    /// It is not a pod's.
    #[error(
        "the token is not bound to a pod: use a projected ServiceAccount token with audience {}",
        names::TOKEN_AUDIENCE
    )]
    Unbound,
    /// The API server does not answer.
    #[error("the API server cannot be asked about the token")]
    Api(#[from] kube::Error),
}

/// Answers about tokens and pods.
pub trait Reviewer: Send + Sync + 'static {
    /// The pod that a token of audience `weft` is bound to.
    fn review(&self, token: &str) -> impl Future<Output = Result<BoundPod, ReviewError>> + Send;
    /// The pod of that name, as it is now.
    fn pod(&self, key: &Key) -> impl Future<Output = Result<Option<BoundPod>, ReviewError>> + Send;
}

/// Asks the API server.
pub struct ApiServer(pub Client);

impl Reviewer for ApiServer {
    async fn review(&self, token: &str) -> Result<BoundPod, ReviewError> {
        let review = TokenReview {
            metadata: ObjectMeta::default(),
            spec: TokenReviewSpec {
                audiences: Some(vec![names::TOKEN_AUDIENCE.into()]),
                token: Some(token.to_owned()),
            },
            status: None,
        };
        let api: Api<TokenReview> = Api::all(self.0.clone());
        let status = api.create(&PostParams::default(), &review).await?.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            let why: String =
                status.error.unwrap_or_else(|| "not authenticated".into()).chars().take(200).collect();
            return Err(ReviewError::Invalid(why));
        }
        // An authenticator that knows no audiences would not confirm ours.
        if !status.audiences.unwrap_or_default().iter().any(|a| a == names::TOKEN_AUDIENCE) {
            return Err(ReviewError::Invalid(format!("its audience is not {}", names::TOKEN_AUDIENCE)));
        }
        bound_pod(status.user.unwrap_or_default()).ok_or(ReviewError::Unbound)
    }

    async fn pod(&self, key: &Key) -> Result<Option<BoundPod>, ReviewError> {
        let api: Api<Pod> = Api::namespaced(self.0.clone(), &key.namespace);
        let Some(pod) = api.get_opt(&key.name).await? else { return Ok(None) };
        let Some(pod) = crate::index::Pod::read(pod) else { return Ok(None) };
        Ok(Some(BoundPod { key: pod.key, uid: pod.uid, service_account: pod.service_account }))
    }
}

fn bound_pod(user: UserInfo) -> Option<BoundPod> {
    let name = user.username?;
    let (namespace, service_account) = name.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    let extra = user.extra?;
    let one = |key: &str| match extra.get(key)?.as_slice() {
        [one] if !one.is_empty() => Some(one.clone()),
        _ => None,
    };
    Some(BoundPod {
        key: Key::new(namespace, one("authentication.kubernetes.io/pod-name")?),
        uid: one("authentication.kubernetes.io/pod-uid")?,
        service_account: service_account.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn user(name: &str, extra: &[(&str, &str)]) -> UserInfo {
        let extra: BTreeMap<String, Vec<String>> = extra
            .iter()
            .map(|(k, v)| (format!("authentication.kubernetes.io/{k}"), vec![(*v).to_owned()]))
            .collect();
        UserInfo { username: Some(name.into()), extra: Some(extra), ..UserInfo::default() }
    }

    #[test]
    fn only_a_service_account_token_bound_to_a_pod_names_a_pod() {
        let bound = [("pod-name", "a-1"), ("pod-uid", "u")];
        let pod = bound_pod(user("system:serviceaccount:shop:front", &bound)).unwrap();
        assert_eq!((pod.key.to_string().as_str(), pod.service_account.as_str()), ("shop/a-1", "front"));
        assert!(bound_pod(user("system:serviceaccount:shop:front", &bound[..1])).is_none());
        assert!(bound_pod(user("system:node:n1", &bound)).is_none());
        assert!(bound_pod(user("admin", &bound)).is_none());
    }
}
