//! Asks the other ready replicas what their proxies acknowledged. One that does not answer counts with its last answer for
//! as long as it is ready, so that the sums do not jump.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use weft_api::names;
use weft_api::v1::peers_client::PeersClient;
use weft_api::v1::{AppliedReply, AppliedRequest, ChecksReply, ChecksRequest};

use crate::serve::{Shared, fleet};
use crate::settings::Settings;

const ASK: Duration = Duration::from_secs(2);
const LARGEST_REPLY: usize = 16 << 20;

/// The other replicas.
#[derive(Default)]
pub struct Replicas {
    known: HashMap<IpAddr, Replica>,
}

#[derive(Default)]
struct Replica {
    channel: Option<Channel>,
    last: AppliedReply,
}

impl Replicas {
    /// The sums over this replica and all others.
    pub async fn applied(&mut self, shared: &Shared, settings: &Settings) -> AppliedReply {
        let others = others(shared, settings);
        self.known.retain(|ip, _| others.contains(ip));
        let mut asked = JoinSet::new();
        for ip in others {
            let channel = self.known.entry(ip).or_default().channel.clone();
            let tls = Arc::clone(&shared.serving.current().client);
            let at = SocketAddr::new(ip, settings.grpc_port);
            asked.spawn(async move { (ip, timeout(ASK, ask(at, channel, tls)).await) });
        }
        while let Some(Ok((ip, answer))) = asked.join_next().await {
            let Some(replica) = self.known.get_mut(&ip) else { continue };
            match answer {
                Ok(Ok((channel, reply))) => *replica = Replica { channel: Some(channel), last: reply },
                Ok(Err(error)) => {
                    tracing::debug!(error = %error, %ip, "another replica did not answer");
                    replica.channel = None;
                }
                Err(_) => {
                    tracing::debug!(%ip, "another replica did not answer in time");
                    replica.channel = None;
                }
            }
        }
        let others = self.known.values().map(|r| r.last.clone());
        fleet::merge(others.chain([shared.applied()]))
    }
}

/// The other replicas, asked by one that need not lead what their proxies' checks say.
#[derive(Default)]
pub struct Others {
    channels: HashMap<IpAddr, Channel>,
}

impl Others {
    /// What each says; one that does not answer, or is too old to know, says nothing.
    pub async fn checks(&mut self, shared: &Shared, settings: &Settings) -> Vec<ChecksReply> {
        let others = others(shared, settings);
        self.channels.retain(|ip, _| others.contains(ip));
        let mut asked = JoinSet::new();
        for ip in others {
            let channel = self.channels.remove(&ip);
            let tls = Arc::clone(&shared.serving.current().client);
            let at = SocketAddr::new(ip, settings.grpc_port);
            asked.spawn(async move { (ip, timeout(ASK, ask_checks(at, channel, tls)).await) });
        }
        let mut replies = Vec::new();
        while let Some(Ok((ip, answer))) = asked.join_next().await {
            match answer {
                Ok(Ok((channel, reply))) => {
                    self.channels.insert(ip, channel);
                    replies.push(reply);
                }
                Ok(Err(error)) => {
                    tracing::debug!(error = %error, %ip, "another replica did not tell its checks")
                }
                Err(_) => tracing::debug!(%ip, "another replica did not tell its checks in time"),
            }
        }
        replies
    }
}

/// Addresses of the other ready replicas.
pub(super) fn others(shared: &Shared, settings: &Settings) -> Vec<IpAddr> {
    shared.store.view(|view| {
        let pods = view.index.space(&settings.namespace).into_iter().flat_map(|s| s.pods.values());
        pods.filter(|p| p.ready && !p.ended && p.key.name != settings.pod_name)
            .filter(|p| p.labels.get("app.kubernetes.io/name").is_some_and(|n| n == names::OPERATOR))
            .filter_map(|p| p.ips.first().copied())
            .filter(|ip| Some(*ip) != settings.pod_ip)
            .collect()
    })
}

async fn ask(
    at: SocketAddr,
    channel: Option<Channel>,
    tls: Arc<rustls::ClientConfig>,
) -> Result<(Channel, AppliedReply), Box<dyn std::error::Error + Send + Sync>> {
    let channel = match channel {
        Some(channel) => channel,
        None => connect(at, tls).await?,
    };
    let mut client = PeersClient::new(channel.clone()).max_decoding_message_size(LARGEST_REPLY);
    let reply = client.applied(AppliedRequest {}).await?.into_inner();
    Ok((channel, reply))
}

async fn ask_checks(
    at: SocketAddr,
    channel: Option<Channel>,
    tls: Arc<rustls::ClientConfig>,
) -> Result<(Channel, ChecksReply), Box<dyn std::error::Error + Send + Sync>> {
    let channel = match channel {
        Some(channel) => channel,
        None => connect(at, tls).await?,
    };
    let mut client = PeersClient::new(channel.clone()).max_decoding_message_size(LARGEST_REPLY);
    let reply = client.checks(ChecksRequest {}).await?.into_inner();
    Ok((channel, reply))
}

/// Only an operator has a certificate with that DNS name.
pub(super) async fn connect(
    at: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
) -> Result<Channel, tonic::transport::Error> {
    // The address in the URI is only a name here: the connector knows where to go.
    Endpoint::from_static("http://weft-operator")
        .connect_with_connector(tower::service_fn(move |_: http::Uri| {
            let tls = TlsConnector::from(Arc::clone(&tls));
            async move {
                let tcp = TcpStream::connect(at).await?;
                let name =
                    rustls_pki_types::ServerName::try_from(names::OPERATOR).map_err(std::io::Error::other)?;
                Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, tcp).await?))
            }
        }))
        .await
}
