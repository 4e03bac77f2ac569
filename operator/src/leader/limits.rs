//! Divides the limits that all replicas of a Service share: asks every operator replica what its proxies are asked for,
//! and tells each what they are granted. When nobody does this for a while, every proxy goes on with its last part.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::transport::Channel;
use weft_api::v1::peers_client::PeersClient;
use weft_api::v1::{Grant, LimitsRequest, Wanted};

use super::Leader;
use super::replicas::{connect, others};
use crate::serve::Shared;
use crate::settings::Settings;
use crate::share::{Ledger, Wants};

/// How often the parts are worked out while there is a limit to divide.
const EVERY: Duration = Duration::from_millis(200);
/// How often it is looked whether there is one.
const LOOK: u32 = 5;
const ASK: Duration = Duration::from_millis(500);
/// For another replica that has never answered: until then nobody is granted anything, so that its proxies are not forgotten.
const FIRST_ANSWER: u32 = 10;

pub(super) async fn keep(leader: Leader) {
    let mut divider = Divider::default();
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut count, mut any) = (0_u32, false);
    loop {
        tick.tick().await;
        if count.is_multiple_of(LOOK) {
            any = leader.shared.store.view(|view| crate::compile::limits::any_shared(view.index));
        }
        count = count.wrapping_add(1);
        if any {
            divider.divide(&leader.shared, &leader.settings).await;
        }
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Divider {
    others: HashMap<IpAddr, Other>,
    ledger: Ledger<Replica>,
}

/// Namespace and name of a pod, and the operator replica that it is connected to if that is another one.
type Replica = (String, String, Option<IpAddr>);

#[derive(Default)]
struct Other {
    channel: Option<Channel>,
    /// Its last answer, which counts while it does not give another.
    wanted: Option<Vec<Wanted>>,
    asked: u32,
    grants: Vec<Grant>,
}

impl Divider {
    /// One look.
    pub(crate) async fn divide(&mut self, shared: &Shared, settings: &Settings) {
        self.ask(shared, settings, false).await;
        let unheard = |other: &Other| other.wanted.is_none() && other.asked < FIRST_ANSWER;
        if self.others.values().any(unheard) {
            return;
        }
        let here = shared.limits.wanted().into_iter().map(|wanted| (None, wanted));
        let there = self
            .others
            .iter()
            .flat_map(|(ip, other)| other.wanted.iter().flatten().map(|wanted| (Some(*ip), wanted.clone())));
        let wanted = here.chain(there).map(|(at, wanted)| Wants {
            limit: wanted.limit,
            replica: (wanted.namespace, wanted.pod, at),
            demand: wanted.demand,
            tally: wanted.tally,
        });
        let granted = self.ledger.divide(wanted.collect());
        let mut by_operator: BTreeMap<Option<IpAddr>, Vec<Grant>> = BTreeMap::new();
        for (limit, (namespace, pod, at), part) in granted {
            by_operator.entry(at).or_default().push(Grant {
                namespace,
                pod,
                limit,
                share: part.share,
                credit: part.credit,
                others_are_short: part.others_are_short,
            });
        }
        shared.limits.grant(&by_operator.remove(&None).unwrap_or_default());
        for (ip, other) in &mut self.others {
            other.grants = by_operator.remove(&Some(*ip)).unwrap_or_default();
        }
        self.ask(shared, settings, true).await;
    }

    /// Asks all, or tells those that have something to be told; they answer in the same way.
    async fn ask(&mut self, shared: &Shared, settings: &Settings, granting: bool) {
        let mut others = others(shared, settings);
        self.others.retain(|ip, _| others.contains(ip));
        if granting {
            others.retain(|ip| self.others.get(ip).is_some_and(|other| !other.grants.is_empty()));
        }
        let mut asked = JoinSet::new();
        for ip in others {
            let other = self.others.entry(ip).or_default();
            other.asked += 1;
            let request = LimitsRequest { grants: std::mem::take(&mut other.grants) };
            let (channel, tls) = (other.channel.clone(), Arc::clone(&shared.serving.current().client));
            let at = SocketAddr::new(ip, settings.grpc_port);
            asked.spawn(async move { (ip, timeout(ASK, exchange(at, channel, tls, request)).await) });
        }
        while let Some(Ok((ip, answer))) = asked.join_next().await {
            let Some(other) = self.others.get_mut(&ip) else { continue };
            match answer {
                Ok(Ok((channel, wanted))) => {
                    other.channel = Some(channel);
                    other.wanted = Some(wanted);
                }
                _ => {
                    tracing::debug!(%ip, "another replica did not say in time what its proxies are asked for");
                    other.channel = None;
                }
            }
        }
    }
}

async fn exchange(
    at: SocketAddr,
    channel: Option<Channel>,
    tls: Arc<rustls::ClientConfig>,
    request: LimitsRequest,
) -> Result<(Channel, Vec<Wanted>), Box<dyn std::error::Error + Send + Sync>> {
    let channel = match channel {
        Some(channel) => channel,
        None => connect(at, tls).await?,
    };
    let reply = PeersClient::new(channel.clone()).limits(request).await?.into_inner();
    Ok((channel, reply.wanted))
}
