//! `weft inspect`: which policies touch a pod or service, and which pods and services a policy touches.
//! Reads the cluster here; the answers are made in `world.rs` (pure).

mod world;

use crate::Global;
use crate::cluster::list;
use crate::output::{self, Format};
use anyhow::{Context as _, bail};
use clap::Args;
use kube::Client;
use kube::api::{Api, ListParams};
use serde::Serialize;
use std::process::ExitCode;
use world::World;

/// Flags of `weft inspect`.
#[derive(Args)]
pub struct Options {
    /// `pod/<name>`, `service/<name>`, `meshservice/<name>`, `trafficpolicy/<name>`, `peerauthentication/<name>`,
    /// `requestauthentication/<name>` or `authorizationpolicy/<name>` (short names as in kubectl); a bare name is a pod or a service.
    what: String,
    /// Namespace; otherwise that of the kubeconfig's context.
    #[arg(short, long)]
    namespace: Option<String>,
}

/// One fact of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// What kind of fact, for example `peer authentication`.
    pub aspect: String,
    /// What it is about.
    pub name: String,
    /// The fact.
    pub detail: String,
}

/// What is inspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pod,
    Service,
    MeshService,
    TrafficPolicy,
    PeerAuthentication,
    AuthorizationPolicy,
    RequestAuthentication,
}

fn kind(word: &str) -> Option<Kind> {
    Some(match word.to_ascii_lowercase().as_str() {
        "pod" | "pods" | "po" => Kind::Pod,
        "service" | "services" | "svc" => Kind::Service,
        "meshservice" | "meshservices" | "msvc" => Kind::MeshService,
        "trafficpolicy" | "trafficpolicies" | "tpol" => Kind::TrafficPolicy,
        "authorizationpolicy" | "authorizationpolicies" | "authz" => Kind::AuthorizationPolicy,
        "requestauthentication" | "requestauthentications" | "rauth" => Kind::RequestAuthentication,
        "peerauthentication" | "peerauthentications" | "pauth" => Kind::PeerAuthentication,
        _ => return None,
    })
}

/// Looks and prints.
pub async fn run(client: Client, global: &Global, options: Options) -> anyhow::Result<ExitCode> {
    let namespace = options.namespace.unwrap_or_else(|| client.default_namespace().to_owned());
    let world = Box::pin(read(&client, &namespace, &global.weft_namespace)).await?;
    let (kind, name) = match options.what.split_once('/') {
        Some((word, name)) => {
            (kind(word).with_context(|| format!("`{word}` is not a kind that can be inspected"))?, name)
        }
        None if world.pod(&options.what).is_some() => (Kind::Pod, options.what.as_str()),
        None => (Kind::Service, options.what.as_str()),
    };
    let facts = match kind {
        Kind::Pod => world.about_pod(name),
        Kind::Service => world.about_service(name),
        Kind::MeshService => world.about_mesh_service(name),
        Kind::TrafficPolicy => world.about_traffic_policy(name),
        Kind::PeerAuthentication => world.about_peer_authentication(name),
        Kind::AuthorizationPolicy => world.about_authorization_policy(name),
        Kind::RequestAuthentication => world.about_request_authentication(name),
    };
    let Some(facts) = facts else { bail!("there is no {kind:?} {name} in namespace {namespace}") };
    match global.output {
        Format::Json => output::json(&facts)?,
        Format::Table => {
            let rows: Vec<_> =
                facts.iter().map(|f| vec![f.aspect.clone(), f.name.clone(), f.detail.clone()]).collect();
            print!("{}", output::table(&["ASPECT", "NAME", "DETAIL"], &rows));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn read(client: &Client, namespace: &str, root: &str) -> anyhow::Result<World> {
    let everything = ListParams::default();
    let (pods, services) =
        (Api::namespaced(client.clone(), namespace), Api::namespaced(client.clone(), namespace));
    let (meshes, policies) =
        (Api::namespaced(client.clone(), namespace), Api::namespaced(client.clone(), namespace));
    let (own, of_root) = (Api::namespaced(client.clone(), namespace), Api::namespaced(client.clone(), root));
    let (authorizing, authorizing_mesh) =
        (Api::namespaced(client.clone(), namespace), Api::namespaced(client.clone(), root));
    let (requests, requests_mesh) =
        (Api::namespaced(client.clone(), namespace), Api::namespaced(client.clone(), root));
    let (
        pods,
        services,
        mesh_services,
        traffic_policies,
        own,
        of_root,
        mut authorization_policies,
        authorizing_mesh,
        mut request_authentications,
        requests_mesh,
    ) = tokio::try_join!(
        list(&pods, &everything),
        list(&services, &everything),
        list(&meshes, &everything),
        list(&policies, &everything),
        list(&own, &everything),
        list(&of_root, &everything),
        list(&authorizing, &everything),
        list(&authorizing_mesh, &everything),
        list(&requests, &everything),
        list(&requests_mesh, &everything),
    )?;
    let mut peer_authentications = own;
    if namespace != root {
        peer_authentications.extend(of_root);
        authorization_policies.extend(authorizing_mesh);
        request_authentications.extend(requests_mesh);
    }
    // A mesh-wide policy touches pods of every namespace.
    let pods = if namespace == root { list(&Api::all(client.clone()), &everything).await? } else { pods };
    Ok(World {
        root: root.to_owned(),
        namespace: namespace.to_owned(),
        pods,
        services,
        mesh_services,
        traffic_policies,
        peer_authentications,
        authorization_policies,
        request_authentications,
    })
}
