//! Which other trust domains are believed, and by which bundles: those of Weft's own namespace, of two that name the same one the
//! older, and never the own one. What was fetched stands in the status, so that all replicas know the same and a new leader
//! knows what the last one knew. It fetches nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_api::TrustDomain;
use weft_crds::trust_domain::FetchedBundle;
use weft_crds::{TrustDomainSpec, validate};

use super::policy::{InForce, Tracked};
use super::settle::{by_age, judge};
use super::space::{Refusal, Settled};
use super::{Index, Key};

/// Of the own mesh.
pub struct Home<'a> {
    /// Weft's own namespace.
    pub namespace: &'a str,
    /// The own trust domain.
    pub trust_domain: &'a TrustDomain,
}

/// A trust domain in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Federated {
    /// What says so.
    pub in_force: InForce<TrustDomainSpec>,
    /// Its roots (DER); none: nobody of it is believed yet.
    pub roots: Vec<Vec<u8>>,
}

/// A bundle that is fetched.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The TrustDomain.
    pub key: Key,
    /// Its spec.
    pub spec: Arc<TrustDomainSpec>,
    /// The last good bundle of this spec, or what is said of it.
    pub fetched: Option<FetchedBundle>,
    /// Roots that are believed already.
    pub roots: Vec<Vec<u8>>,
}

/// What TrustDomains of a namespace come to.
pub(super) fn federate(
    resources: &mut BTreeMap<String, Tracked<TrustDomainSpec>>,
    home: &Home<'_>,
    settled: &mut Settled,
) {
    for name in by_age(resources) {
        let Some(tracked) = resources.get_mut(&name) else { continue };
        let mut verdict = judge(tracked);
        let fetched = tracked.now.status.get("bundle").cloned();
        let fetched = fetched.and_then(|value| serde_json::from_value::<FetchedBundle>(value).ok());
        if let Some(good) = &tracked.good {
            let other = settled
                .federated
                .iter()
                .find(|older| older.in_force.spec.trust_domain == good.spec.trust_domain);
            if good.key.namespace != home.namespace {
                let why = format!(
                    "a TrustDomain is for the whole mesh and counts in Weft's own namespace only: apply it in {}",
                    home.namespace
                );
                verdict.refused.get_or_insert(Refusal::Invalid(why));
            } else if let Some(why) = validate::is_own(&good.spec.trust_domain, home.trust_domain.as_str()) {
                verdict.refused.get_or_insert(Refusal::Invalid(why));
            } else if let Some(older) = other {
                verdict.refused.get_or_insert(Refusal::Conflicted(format!(
                    "TrustDomain {} is older and names {} already; keep one of the two",
                    older.in_force.key.name, good.spec.trust_domain
                )));
            } else {
                let fetched = fetched.filter(|fetched| fetched.is_of(&good.spec));
                verdict.in_force = Some(good.generation);
                let roots = roots(&good.spec, fetched.as_ref());
                verdict.missing = missing(&good.spec, fetched.as_ref(), roots.is_empty());
                settled.federated.push(Federated { in_force: good.clone(), roots });
            }
        }
        settled.trust_domains.insert(name, verdict);
    }
}

/// The last good bundle, or else those that the spec begins with. What does not make sense is none.
fn roots(spec: &TrustDomainSpec, fetched: Option<&FetchedBundle>) -> Vec<Vec<u8>> {
    let fetched = fetched.and_then(|fetched| fetched.pem.as_deref());
    let read = |pem: &str| {
        let roots = validate::certificates(pem)?;
        validate::bundle(&spec.trust_domain, &roots).ok().map(|()| roots)
    };
    fetched.and_then(read).or_else(|| read(spec.pem.as_deref()?)).unwrap_or_default()
}

fn missing(spec: &TrustDomainSpec, fetched: Option<&FetchedBundle>, nobody: bool) -> Vec<String> {
    let Some(endpoint) = &spec.endpoint else { return Vec::new() };
    let problem = match fetched {
        None => "it was not fetched yet",
        Some(fetched) => match &fetched.problem {
            Some(problem) => problem,
            None => return Vec::new(),
        },
    };
    let meanwhile = if nobody {
        "until there is one, nobody of it is believed"
    } else if fetched.is_some_and(|fetched| fetched.pem.is_some()) {
        "the last one that was fetched stays in force"
    } else {
        "the roots of pem are in force"
    };
    vec![format!("the bundle of {} at {}: {problem}; {meanwhile}", spec.trust_domain, endpoint.url)]
}

impl Index {
    /// The trust domains in force.
    pub fn federated(&self) -> impl Iterator<Item = &Federated> {
        self.space(&self.own_namespace).into_iter().flat_map(|space| &space.settled.federated)
    }

    /// Those whose bundles are fetched.
    #[must_use]
    pub fn wanted_bundles(&self) -> Vec<Wanted> {
        let space = self.space(&self.own_namespace);
        let wanted = self.federated().filter(|federated| federated.in_force.spec.endpoint.is_some());
        wanted
            .map(|federated| {
                let (key, spec) = (federated.in_force.key.clone(), Arc::clone(&federated.in_force.spec));
                let tracked = space.and_then(|space| space.trust_domains.get(&key.name));
                let fetched = tracked.and_then(|tracked| tracked.now.status.get("bundle").cloned());
                let fetched = fetched.and_then(|value| serde_json::from_value::<FetchedBundle>(value).ok());
                let fetched = fetched.filter(|fetched| fetched.is_of(&spec));
                Wanted { key, spec, fetched, roots: federated.roots.clone() }
            })
            .collect()
    }
}
