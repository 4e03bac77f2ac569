//! The connection to the API server, and lists that say what could not be read. Nothing is written through here.

use crate::{Global, Scope};
use anyhow::Context as _;
use kube::api::{Api, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::NamespaceResourceScope;
use kube::{Client, Config, Resource};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::time::Duration;

/// A client as the flags say.
pub async fn connect(global: &Global) -> anyhow::Result<Client> {
    let options = KubeConfigOptions { context: global.context.clone(), ..KubeConfigOptions::default() };
    let mut config = match &global.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).with_context(|| format!("reading {}", path.display()))?;
            Config::from_custom_kubeconfig(file, &options).await.context("the kubeconfig is not usable")?
        }
        None if global.context.is_some() => {
            Config::from_kubeconfig(&options).await.context("the kubeconfig is not usable")?
        }
        None => Config::infer().await.context("no kubeconfig found: set KUBECONFIG or --kubeconfig")?,
    };
    config.connect_timeout = Some(Duration::from_secs(10));
    Client::try_from(config).context("the kubeconfig is not usable")
}

impl Scope {
    /// The API of a namespaced kind within this scope.
    pub fn api<K>(&self, client: &Client) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        if self.all_namespaces {
            Api::all(client.clone())
        } else {
            Api::namespaced(client.clone(), &self.name(client))
        }
    }

    /// The namespace, where one is meant.
    pub fn name(&self, client: &Client) -> String {
        self.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned())
    }
}

/// Lists in pages, so that a large cluster is not one huge answer. The error says what could not be listed.
pub async fn list<K>(api: &Api<K>, params: &ListParams) -> anyhow::Result<Vec<K>>
where
    K: Clone + DeserializeOwned + Debug + Resource,
    K::DynamicType: Default,
{
    let (mut items, mut page) = (Vec::new(), params.clone().limit(500));
    loop {
        let answer = api
            .list(&page)
            .await
            .with_context(|| format!("listing {}", K::plural(&K::DynamicType::default())))?;
        items.extend(answer.items);
        match answer.metadata.continue_ {
            Some(next) if !next.is_empty() => page = page.continue_token(&next),
            _ => return Ok(items),
        }
    }
}
