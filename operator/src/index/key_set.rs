//! Keys of issuers that were fetched, as far as the index knows them: which sets are wanted, what each has come to, and what to say
//! of those that are missing. It fetches nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_crds::request_authentication::Issuer;
use weft_crds::validate::jwks;

use super::{Dirty, Entry, Index, Key};

/// Where a set is fetched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeySource {
    /// `jwksUri`.
    pub uri: String,
    /// By which its server is verified; `None`: those of the web.
    pub ca_bundle: Option<String>,
}

impl KeySource {
    /// Of an issuer whose keys are fetched.
    #[must_use]
    pub fn of(issuer: &Issuer) -> Option<Self> {
        Some(Self { uri: issuer.jwks_uri.clone()?, ca_bundle: issuer.jwks_ca_bundle.clone() })
    }

    /// In the index.
    #[must_use]
    pub fn key(&self) -> Key {
        Key::new(self.ca_bundle.clone().unwrap_or_default(), &self.uri)
    }
}

/// What a set has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySet {
    /// Where it is fetched.
    pub source: KeySource,
    /// The last good keys.
    pub keys: Option<Arc<Vec<jwks::Key>>>,
    /// Why there are no newer ones.
    pub problem: Option<String>,
}

/// All sets, by the key of their source.
#[derive(Default)]
pub struct KeySets(BTreeMap<Key, KeySet>);

impl KeySets {
    /// Nothing was fetched.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys of an issuer: its own, or those that were fetched.
    #[must_use]
    pub fn keys(&self, issuer: &Issuer) -> Arc<Vec<jwks::Key>> {
        if let Some(text) = &issuer.jwks {
            return Arc::new(jwks::read(text).unwrap_or_default());
        }
        let set = KeySource::of(issuer).and_then(|source| self.0.get(&source.key()));
        set.and_then(|set| set.keys.clone()).unwrap_or_default()
    }

    /// Whether the keys of an issuer were never fetched here: another replica may have told proxies of them.
    #[must_use]
    pub fn pending(&self, issuer: &Issuer) -> bool {
        let set = |source: KeySource| self.0.get(&source.key()).and_then(|set| set.keys.as_ref());
        KeySource::of(issuer).is_some_and(|source| set(source).is_none())
    }

    /// What to say of an issuer whose newest keys are not there.
    #[must_use]
    pub fn missing(&self, issuer: &Issuer) -> Option<String> {
        let source = KeySource::of(issuer)?;
        let (problem, known) = match self.0.get(&source.key()) {
            None => ("they were not fetched yet", false),
            Some(set) => (set.problem.as_deref()?, set.keys.is_some()),
        };
        let meanwhile = if known {
            "the last ones that were fetched stay in force"
        } else {
            "until there are some, all tokens of it are refused"
        };
        Some(format!("the keys of issuer {} at {}: {problem}; {meanwhile}", issuer.issuer, source.uri))
    }
}

impl Index {
    /// All sets that are wanted.
    #[must_use]
    pub fn key_sources(&self) -> BTreeSet<KeySource> {
        let all = self.spaces.values().flat_map(|space| space.request_authentications.values());
        let good = all.filter_map(|tracked| tracked.good.as_ref());
        good.flat_map(|good| &good.spec.issuers).filter_map(KeySource::of).collect()
    }
}

impl Entry for KeySet {
    fn key(&self) -> Key {
        self.source.key()
    }
    fn keys(index: &Index) -> Vec<Key> {
        index.key_sets.0.keys().cloned().collect()
    }
    fn put(index: &mut Index, key: &Key, entry: Option<Self>, dirty: &mut Dirty) {
        if index.key_sets.0.get(key) == entry.as_ref() {
            return;
        }
        match entry {
            Some(entry) => index.key_sets.0.insert(key.clone(), entry),
            None => index.key_sets.0.remove(key),
        };
        let of_it = |issuer: &Issuer| KeySource::of(issuer).is_some_and(|source| source.key() == *key);
        for (namespace, space) in &index.spaces {
            for tracked in space.request_authentications.values() {
                let Some(good) = tracked.good.as_ref().filter(|good| good.spec.issuers.iter().any(of_it))
                else {
                    continue;
                };
                dirty.unsettled.insert(namespace.clone());
                dirty.pods.extend(index.selected(namespace, &[good.spec.selector.as_ref()]));
            }
        }
    }
}
