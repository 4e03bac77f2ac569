//! Active checks: asks the endpoints that this proxy is chosen to check whether they are well, again and again, on the control
//! thread, and notes what comes of it in their live state. The operator lists some of the callers of a service; each of them works
//! out by itself which endpoints are its own (`assignment`). It balances nothing, and sends nothing to the operator.
//!
//! - `ask`: one check, over the same kind of connection as requests.
//! - `standing`: from results to healthy and unhealthy, and when to ask next. Pure.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use weft_api::{names, rendezvous};

use crate::metrics::Metrics;
use crate::originate::Originate;
use crate::snapshot::{Cluster, Endpoint, Snapshot, service_of};
use crate::store::SnapshotStore;
use crate::tls::Tls;

mod ask;
pub mod standing;

use ask::Asked;
use standing::{ActiveCheck, Standing};

/// Checks at the same time; what is due beyond that waits.
const MAX_RUNNING: usize = 32;
/// Without any check there is nothing to wake up for but another snapshot.
const FAR: Duration = Duration::from_secs(3600);

/// What checking works with.
pub struct Checker {
    /// What there is to check.
    pub store: Arc<SnapshotStore>,
    /// The own certificate.
    pub tls: Arc<Tls>,
    /// Where results are counted.
    pub metrics: Arc<Metrics>,
    /// Addresses of the own pod: its application is asked without mTLS.
    pub pod_ips: Vec<IpAddr>,
    /// "namespace/pod": what the operator calls this proxy.
    pub own_name: String,
}

/// An endpoint that this proxy checks.
struct Job {
    service: Arc<str>,
    endpoint: Arc<Endpoint>,
    check: Arc<ActiveCheck>,
    /// TLS that requests are sent by, to an external service.
    originate: Option<Arc<Originate>>,
    standing: Standing,
    due: Instant,
    running: bool,
}

/// Its live state, by address: a job keeps it from being another's.
type Key = usize;

/// The endpoints that a proxy of this name has to check: each once, however many subsets hold it.
fn assignment<'a>(
    snapshot: &'a Snapshot,
    own_name: &str,
) -> HashMap<Key, (&'a Arc<Endpoint>, &'a Arc<ActiveCheck>, &'a Cluster)> {
    let mut own = HashMap::new();
    for cluster in snapshot.services.values().flat_map(|service| &service.clusters) {
        let Some(check) = &cluster.active else { continue };
        for endpoint in &cluster.endpoints {
            let key = Arc::as_ptr(&endpoint.live) as Key;
            if !own.contains_key(&key) && is_own(check, endpoint, own_name) {
                own.insert(key, (endpoint, check, &**cluster));
            }
        }
    }
    own
}

/// Without a list, e.g. before the operator has made one, everybody checks for itself.
fn is_own(check: &ActiveCheck, endpoint: &Endpoint, own_name: &str) -> bool {
    let candidates = check.checkers.iter().map(String::as_str);
    let address = endpoint.addr.to_string();
    check.checkers.is_empty()
        || rendezvous::choose(candidates, &address, check.max_checkers).contains(&own_name)
}

impl Checker {
    /// Checks for ever.
    pub async fn run(self) {
        let mut changed = self.store.changed();
        changed.mark_changed();
        let mut jobs: HashMap<Key, Job> = HashMap::new();
        let mut running: JoinSet<(Key, Asked)> = JoinSet::new();
        loop {
            let due = jobs.values().filter(|job| !job.running).map(|job| job.due).min();
            let due = due.filter(|_| running.len() < MAX_RUNNING);
            tokio::select! {
                Ok(()) = changed.changed() => self.assign(&mut jobs),
                Some(done) = running.join_next(), if !running.is_empty() => {
                    if let Ok((key, asked)) = done
                        && let Some(job) = jobs.get_mut(&key)
                    {
                        self.conclude(job, &asked);
                    }
                }
                () = sleep_until(due.unwrap_or_else(|| Instant::now() + FAR)) => self.start(&mut jobs, &mut running),
            }
        }
    }

    /// Takes over what is new, and lets go of what is not ours any more.
    fn assign(&self, jobs: &mut HashMap<Key, Job>) {
        let snapshot = self.store.load();
        let own = assignment(&snapshot, &self.own_name);
        jobs.retain(|key, job| {
            let stays = own.contains_key(key);
            if !stays {
                job.endpoint.live.checked.forget();
                job.endpoint.live.health.announce();
            }
            stays
        });
        for (key, (endpoint, check, cluster)) in own {
            if let Some(job) = jobs.get_mut(&key) {
                job.endpoint = Arc::clone(endpoint);
                job.check = Arc::clone(check);
                job.originate.clone_from(&cluster.tls);
                continue;
            }
            // Whoever takes over begins with what was known: an endpoint does not become well by its checker's leaving.
            let unhealthy = endpoint.check.as_ref().is_some_and(|check| check.unhealthy);
            endpoint.live.checked.set(unhealthy, names::HEARSAY);
            if unhealthy {
                endpoint.live.health.announce();
            }
            let first = check.interval.mul_f64(rand::rng().random_range(0.0..1.0));
            let job = Job {
                service: service_of(&cluster.name).into(),
                endpoint: Arc::clone(endpoint),
                check: Arc::clone(check),
                originate: cluster.tls.clone(),
                standing: Standing::new(unhealthy),
                due: Instant::now() + first,
                running: false,
            };
            jobs.insert(key, job);
        }
    }

    fn start(&self, jobs: &mut HashMap<Key, Job>, running: &mut JoinSet<(Key, Asked)>) {
        let now = Instant::now();
        for (key, job) in jobs.iter_mut().filter(|(_, job)| !job.running && job.due <= now) {
            if running.len() >= MAX_RUNNING {
                return;
            }
            job.running = true;
            let (key, tls) = (*key, Arc::clone(&self.tls));
            let own = self.pod_ips.contains(&job.endpoint.addr.ip());
            let (endpoint, check, originate) =
                (Arc::clone(&job.endpoint), Arc::clone(&job.check), job.originate.clone());
            running.spawn(async move {
                (key, ask::ask(&tls, originate.as_deref(), &endpoint, &check, own).await)
            });
        }
    }

    fn conclude(&self, job: &mut Job, asked: &Asked) {
        job.running = false;
        job.due = Instant::now() + job.check.wait(&mut rand::rng());
        self.metrics.checked(&job.service, asked.as_str());
        let passed = match asked {
            Asked::Passed => true,
            Asked::Failed(_) => false,
            Asked::Neither => return,
        };
        let Some(healthy) = job.standing.take(passed, &job.check) else { return };
        let why = match asked {
            Asked::Failed(why) => why.as_str(),
            _ => "",
        };
        job.endpoint.live.checked.set(!healthy, why);
        job.endpoint.live.health.announce();
        let (service, endpoint, pod) = (&job.service, job.endpoint.addr, &*job.endpoint.pod);
        if healthy {
            tracing::info!(%service, %endpoint, pod, "endpoint passes its checks again");
        } else {
            tracing::warn!(%service, %endpoint, pod, why, "endpoint fails its checks");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::tests::{applied, endpoint, service};
    use weft_api::v1;

    fn snapshot(checkers: &[&str], most: u32) -> Snapshot {
        let mut message = service(&[]);
        let cluster = &mut message.clusters[0];
        cluster.endpoints = (0..100)
            .map(|i| v1::Endpoint {
                check: Some(v1::EndpointCheck::default()),
                ..endpoint(&format!("10.0.0.{i}:80"), 1)
            })
            .collect();
        cluster.active = Some(v1::ActiveCheck {
            kind: Some(v1::active_check::Kind::Tcp(v1::TcpCheck {})),
            max_checkers: most,
            ..Default::default()
        });
        cluster.checkers = checkers.iter().map(|name| (*name).to_owned()).collect();
        let mut subset = cluster.clone();
        subset.name = "shop/back:80/v1".into();
        message.clusters.push(subset);
        applied(&Snapshot::default(), &v1::ToProxy { services: vec![message], ..Default::default() })
    }

    #[test]
    fn every_endpoint_is_checked_by_so_many_of_the_candidates_and_once_by_each() {
        let names = ["shop/a", "shop/b", "shop/c", "shop/d", "shop/e"];
        let snapshot = snapshot(&names, 2);
        let of = |name: &str| assignment(&snapshot, name).len();
        assert_eq!(names.iter().map(|name| of(name)).sum::<usize>(), 200);
        assert!(names.iter().all(|name| of(name) > 15), "badly spread");
        assert_eq!(of("shop/other"), 0);
    }

    #[test]
    fn without_a_list_everybody_checks_and_without_checks_nobody() {
        assert_eq!(assignment(&snapshot(&[], 2), "shop/other").len(), 100);
        let update = v1::ToProxy { services: vec![service(&["10.0.0.1:80"])], ..Default::default() };
        assert!(assignment(&applied(&Snapshot::default(), &update), "shop/other").is_empty());
    }
}
