//! What is measured: start, changes one after the other, and being started anew under everybody. Each change is written to the
//! API server, and is over when every proxy that it concerns has acknowledged what it came to. Whoever is told something that
//! does not concern it is counted too.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use prost::Message as _;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tempfile::TempDir;

use super::api_server::ApiServer;
use super::cluster::{Cluster, Sizes};
use super::objects;
use super::operator::{Memory, Operator};
use super::proxies::{self, Proxies, Told, Update};
use super::store::Store;

/// A proxy that has not got what it has to get after this never will.
const PATIENCE: Duration = Duration::from_secs(60);
/// Nothing is written for so long: what had to be written is.
const SETTLED: Duration = Duration::from_secs(3);
/// After the last change of a kind: what else comes was not called for.
const QUIET: Duration = Duration::from_millis(500);

/// The operator with its cluster and all proxies.
pub struct World {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// What the API server holds.
    pub store: Arc<Store>,
    /// The operator.
    pub operator: Operator,
    proxies: Proxies,
    /// What became of connecting.
    pub started: Start,
    generation: u64,
    _api_server: ApiServer,
    _directory: TempDir,
}

/// How a start went.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// From the process's start until it is ready: everything is listed.
    pub listed: Duration,
    /// From there until the last proxy has acknowledged everything that it needs.
    pub connected: Duration,
    /// CPU time of the operator until then.
    pub cpu: Duration,
    /// Attempts of proxies that failed and were made again.
    pub failures: usize,
    /// What the operator holds before anybody has connected.
    pub alone: Memory,
    /// What it holds when everybody has.
    pub memory: Memory,
}

/// A kind of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An endpoint of a service becomes ready or not.
    Endpoint,
    /// A TrafficPolicy has another specification.
    Policy,
    /// A pod comes, and its service's slice with it.
    Pod,
    /// An endpoint of the service that everybody calls.
    Shared,
}

impl Kind {
    /// All, in the order in which they are reported.
    pub const ALL: [Self; 4] = [Self::Endpoint, Self::Policy, Self::Pod, Self::Shared];

    /// For people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Endpoint => "endpoint of a service",
            Self::Policy => "policy of a service",
            Self::Pod => "pod added to a service",
            Self::Shared => "endpoint of the shared service",
        }
    }
}

/// What changes of one kind came to.
#[derive(Clone, Debug)]
pub struct Changes {
    /// Of which kind.
    pub kind: Kind,
    /// From the write to the last acknowledgement, in order of length.
    pub times: Vec<Duration>,
    /// CPU time of the operator for each.
    pub cpu_each: Duration,
    /// Proxies that were concerned, on average.
    pub callers: f64,
    /// Messages that went out to them, on average.
    pub messages: f64,
    /// Bytes of those messages, before TLS, on average.
    pub bytes: f64,
    /// Messages to proxies that were not concerned.
    pub astray: usize,
}

impl Changes {
    /// The time within which so many percent were over.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> Duration {
        let position = (self.times.len() * percent).div_ceil(100).max(1) - 1;
        self.times.get(position).copied().unwrap_or_default()
    }
}

/// What every concerned proxy has to be told: this service, with or without these bytes in it.
struct Expected {
    service: usize,
    text: String,
    present: bool,
}

impl World {
    /// Starts everything, and waits until every proxy has all that it needs.
    pub async fn start(program: &Path, sizes: Sizes) -> Result<Self> {
        let cluster = Arc::new(Cluster::new(sizes));
        let store = Arc::new(Store::default());
        objects::fill(&store, &cluster);
        let api_server = ApiServer::start(Arc::clone(&store)).await?;
        let directory = tempfile::tempdir()?;
        let begin = Instant::now();
        let operator = Operator::start(program, api_server.address, directory.path()).await?;
        let (listed, alone) = (begin.elapsed(), operator.memory()?);
        let begin = Instant::now();
        let mut proxies = Proxies::start(&cluster, operator.address, root(&store)?)?;
        let (connected, failures) = connected(&mut proxies, cluster.proxies.len(), begin).await?;
        let started =
            Start { listed, connected, failures, cpu: operator.cpu()?, alone, memory: operator.memory()? };
        Ok(Self {
            cluster,
            store,
            operator,
            proxies,
            started,
            generation: 1,
            _api_server: api_server,
            _directory: directory,
        })
    }

    /// CPU time of the operator for each second in which nothing happens: leases, pings, looks at what is to be written.
    pub async fn idle(&mut self, during: Duration) -> Result<Duration> {
        self.quiet().await?;
        // After a start the leader writes what became of every resource, one after the other.
        let (mut written, begin) = (None, Instant::now());
        while begin.elapsed() < PATIENCE {
            let now = self.operator.metric("weft_operator_status_writes_total").await;
            if written.is_some() && now == written {
                break;
            }
            written = now;
            tokio::time::sleep(SETTLED).await;
        }
        let before = self.operator.cpu()?;
        tokio::time::sleep(during).await;
        let spent = self.operator.cpu()?.saturating_sub(before);
        Ok(spent.div_f64(during.as_secs_f64()))
    }

    /// Makes so many changes of a kind, one after the other. `idle` is what the operator spends each second anyway.
    pub async fn change(&mut self, kind: Kind, count: usize, idle: Duration) -> Result<Changes> {
        self.quiet().await?;
        let (before, begin) = (self.operator.cpu()?, Instant::now());
        let mut all = Changes {
            kind,
            times: Vec::with_capacity(count),
            cpu_each: Duration::ZERO,
            callers: 0.0,
            messages: 0.0,
            bytes: 0.0,
            astray: 0,
        };
        let (mut callers, mut messages, mut bytes) = (0, 0, 0);
        for turn in 0..count {
            let begin = Instant::now();
            let expected = self.make(kind, turn);
            let concerned = self.cluster.callers(expected.service);
            callers += concerned.len();
            let mut waited_for = concerned.clone();
            while !waited_for.is_empty() {
                let told = self.proxies.next(PATIENCE).await;
                let Some(told) = told else {
                    bail!("{} proxies were not told of {:?} {turn}", waited_for.len(), kind);
                };
                let Told::Update { proxy, at, update } = told else {
                    bail!("a proxy came or went during the measurement: {told:?}");
                };
                if !concerned.contains(&proxy) {
                    all.astray += 1;
                    continue;
                }
                messages += 1;
                bytes += update.encoded_len();
                if expected.is_met(&update, &self.cluster)
                    && waited_for.remove(&proxy)
                    && waited_for.is_empty()
                {
                    all.times.push(at.duration_since(begin));
                }
            }
            if concerned.is_empty() {
                // Nobody is to be told; the next change finds whether somebody was.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        let elapsed = begin.elapsed();
        all.astray += self.quiet().await?;
        let spent = self.operator.cpu()?.saturating_sub(before);
        let anyway = idle.mul_f64((elapsed + QUIET).as_secs_f64());
        let mean = |sum: usize| sum as f64 / count.max(1) as f64;
        (all.callers, all.messages, all.bytes) = (mean(callers), mean(messages), mean(bytes));
        all.cpu_each = spent.saturating_sub(anyway).div_f64(count.max(1) as f64);
        all.times.sort_unstable();
        Ok(all)
    }

    /// Writes the nth change of a kind. Each undoes what an earlier one did, every other time.
    fn make(&mut self, kind: Kind, turn: usize) -> Expected {
        let (pair, undo) = (turn / 2, turn % 2 == 1);
        let services = &self.cluster.services;
        match kind {
            Kind::Endpoint | Kind::Shared => {
                let service = if kind == Kind::Shared { 0 } else { 1 + pair * 37 % (services.len() - 1) };
                let of = &services[service];
                let position = pair % of.pods.len();
                let text = of.pods[position].address();
                objects::put_slice(&self.store, of, &of.pods, (!undo).then_some(position));
                Expected { service, text, present: undo }
            }
            Kind::Policy => {
                let governed: Vec<usize> =
                    (1..services.len()).filter(|service| services[*service].governed).collect();
                let service = governed[turn * 7 % governed.len()];
                self.generation += 1;
                let rule = format!("rule-{:06}", self.generation);
                objects::put_policy(&self.store, &services[service], self.generation, &rule);
                Expected { service, text: rule, present: true }
            }
            Kind::Pod => {
                let service = 1 + pair * 41 % (services.len() - 1);
                let of = &services[service];
                let pod = self.cluster.another_pod(service);
                let mut pods = of.pods.clone();
                if undo {
                    objects::put_slice(&self.store, of, &pods, None);
                    objects::delete_pod(&self.store, of, &pod);
                } else {
                    objects::put_pod(&self.store, of, &pod);
                    pods.push(pod.clone());
                    objects::put_slice(&self.store, of, &pods, None);
                }
                Expected { service, text: pod.address(), present: !undo }
            }
        }
    }

    /// Has so many certificates signed, and says what the operator spent on each, from the connection to its end. `idle` is what
    /// it spends each second anyway.
    pub async fn issue(&mut self, count: usize, idle: Duration) -> Result<Duration> {
        self.quiet().await?;
        let (before, begin) = (self.operator.cpu()?, Instant::now());
        proxies::issue(&self.cluster, self.operator.address, root(&self.store)?, count).await?;
        let anyway = idle.mul_f64(begin.elapsed().as_secs_f64());
        let spent = self.operator.cpu()?.saturating_sub(before).saturating_sub(anyway);
        Ok(spent / u32::try_from(count)?.max(1))
    }

    /// Adds so many services that nobody calls, with ten pods each, and says how many messages went to proxies on account of it:
    /// what a proxy holds must not grow with what it does not call. Called once.
    pub async fn grow(&mut self, services: usize) -> Result<usize> {
        self.quiet().await?;
        let seen = "weft_operator_objects{kind=\"services\"}";
        let before = self.operator.metric(seen).await.context("the operator does not say what it holds")?;
        let sizes = Sizes { services, pods: services * 10, proxies: 0, calls: 2 };
        objects::fill(&self.store, &Cluster::beside(sizes));
        let begin = Instant::now();
        while self.operator.metric(seen).await.is_none_or(|now| now < before + services as f64) {
            ensure!(begin.elapsed() < PATIENCE, "the operator does not see what was added");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.quiet().await
    }

    /// Waits until nobody is told anything any more. Says how many messages came.
    async fn quiet(&mut self) -> Result<usize> {
        let mut count = 0;
        while let Some(told) = self.proxies.next(QUIET).await {
            ensure!(matches!(told, Told::Update { .. }), "a proxy came or went: {told:?}");
            count += 1;
        }
        Ok(count)
    }

    /// Ends the operator and starts it anew: everybody comes back at once, with the certificate that it has.
    pub async fn restart(&mut self) -> Result<Start> {
        self.quiet().await?;
        let begin = Instant::now();
        self.operator.restart().await?;
        let (listed, alone) = (begin.elapsed(), self.operator.memory()?);
        let begin = Instant::now();
        let (connected, failures) = connected(&mut self.proxies, self.cluster.proxies.len(), begin).await?;
        let (cpu, memory) = (self.operator.cpu()?, self.operator.memory()?);
        Ok(Start { listed, connected, failures, cpu, alone, memory })
    }
}

impl Expected {
    fn is_met(&self, update: &Update, cluster: &Cluster) -> bool {
        let key = cluster.services[self.service].key();
        let mut of_service = update.services.iter().filter(|bytes| contains(bytes, key.as_bytes()));
        of_service.any(|bytes| contains(bytes, self.text.as_bytes()) == self.present)
    }
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    memchr::memmem::find(bytes, text).is_some()
}

/// How long it took until all were there, and how many attempts failed. What came before the beginning does not count.
async fn connected(proxies: &mut Proxies, count: usize, begin: Instant) -> Result<(Duration, usize)> {
    let (mut there, mut failures) = (BTreeSet::new(), 0);
    let mut last = begin;
    let mut why = String::new();
    while there.len() < count {
        match proxies.next(PATIENCE).await {
            Some(Told::Complete { proxy, at }) => {
                there.insert(proxy);
                last = last.max(at);
            }
            Some(Told::Lost { why: said, .. }) => {
                failures += 1;
                why = said;
            }
            Some(Told::Update { .. }) => {}
            None => bail!("{} of {count} proxies are not there; one was told: {why}", count - there.len()),
        }
    }
    Ok((last.duration_since(begin), failures))
}

/// The root that the operator has made for itself, as namespaces get it.
fn root(store: &Store) -> Result<CertificateDer<'static>> {
    let key = ("weft-system".to_owned(), weft_api::names::CA_SECRET.to_owned());
    let secret = store.object("v1/secrets", &key).context("the operator has not written its root")?;
    let data = secret["data"].as_object().context("the Secret of the root is empty")?;
    let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text).ok();
    let mut all = data.values().filter_map(|value| decode(value.as_str()?));
    let certificate = all.find_map(|pem| CertificateDer::from_pem_slice(&pem).ok());
    certificate.context("the Secret holds no certificate")
}
