//! Whose tokens a pod takes: every RequestAuthentication that selects it, of its own namespace and of the mesh. Pure; keys are those
//! of the resource, or those that were fetched last.

use std::collections::HashSet;

use weft_api::v1::{self, Source, TokenAlgorithm, token_location::At};
use weft_crds::RequestAuthenticationSpec;
use weft_crds::request_authentication::{DEFAULT_LEEWAY_MS, Issuer, Location};
use weft_crds::validate::claim_path;
use weft_crds::validate::jwks::{Algorithm, Key};

use super::cluster::source;
use crate::index::policy::InForce;
use crate::index::{Index, Pod, selects};

/// What a proxy has to understand of it, see `Tokens.level`.
const LEVEL: u32 = 1;

/// The issuers of a pod; `None`: nobody looks at tokens. Of two that say something of the same issuer the narrower counts, then
/// the older: two of the same scope are in conflict, and the younger is not in force.
pub fn tokens(index: &Index, pod: &Pod, sources: &mut Vec<Source>) -> Option<v1::Tokens> {
    let mut all: Vec<(u8, (i64, &str), &InForce<RequestAuthenticationSpec>)> = Vec::new();
    let mut collect = |namespace: &str, of_mesh: bool| {
        let Some(space) = index.space(namespace) else { return };
        for (name, tracked) in &space.request_authentications {
            let verdict = space.settled.request_authentications.get(name);
            let Some(good) = tracked.good.as_ref().filter(|_| verdict.is_some_and(|v| v.in_force.is_some()))
            else {
                continue;
            };
            let scope = match &good.spec.selector {
                Some(_) if of_mesh => continue,
                Some(selector) if selects(&selector.match_labels, &pod.labels) => 0,
                Some(_) => continue,
                None if of_mesh => 2,
                None => 1,
            };
            all.push((scope, tracked.now.age(), good));
        }
    };
    collect(&pod.key.namespace, false);
    if pod.key.namespace != index.own_namespace {
        collect(&index.own_namespace, true);
    }
    all.sort_by_key(|(scope, age, _)| (*scope, *age));
    sources.extend(all.iter().map(|(.., good)| source("RequestAuthentication", good)));
    let mut known = HashSet::new();
    let mut issuers = Vec::new();
    for (.., good) in all {
        for given in good.spec.issuers.iter().filter(|given| known.insert(given.issuer.clone())) {
            issuers.push(issuer(index, given, good.key.to_string()));
        }
    }
    (!issuers.is_empty()).then_some(v1::Tokens { issuers, level: LEVEL })
}

fn issuer(index: &Index, given: &Issuer, policy: String) -> v1::TokenIssuer {
    let locations = given.locations.iter().map(location);
    let usual = given.locations.is_empty().then(|| header("authorization", "Bearer "));
    v1::TokenIssuer {
        issuer: given.issuer.clone(),
        audiences: given.audiences.clone(),
        leeway_ms: given.leeway.map_or(DEFAULT_LEEWAY_MS, |leeway| leeway.as_millis()),
        keys: index.key_sets.keys(given).iter().map(key).collect(),
        locations: locations.chain(usual).collect(),
        claim_headers: given
            .claims_to_headers
            .iter()
            .map(|given| v1::ClaimHeader {
                header: given.header.clone(),
                claim: claim_path(&given.claim).unwrap_or_default(),
            })
            .collect(),
        forward: given.forward_token.unwrap_or(true),
        policy,
        key_source: given.jwks_uri.clone().unwrap_or_default(),
        keys_pending: index.key_sets.pending(given),
    }
}

fn key(key: &Key) -> v1::TokenKey {
    let algorithm = match key.algorithm {
        Algorithm::Rs256 => TokenAlgorithm::Rs256,
        Algorithm::Ps256 => TokenAlgorithm::Ps256,
        Algorithm::Es256 => TokenAlgorithm::Es256,
        Algorithm::EdDsa => TokenAlgorithm::Eddsa,
    };
    v1::TokenKey { kid: key.kid.clone(), algorithm: algorithm.into(), key: key.bytes.clone().into() }
}

fn location(given: &Location) -> v1::TokenLocation {
    if let Some(given) = &given.header {
        return header(&given.name, given.prefix.as_deref().unwrap_or_default());
    }
    let cookie = given.cookie.clone().map(At::Cookie);
    v1::TokenLocation { at: cookie.or_else(|| given.query.clone().map(At::Query)) }
}

fn header(name: &str, prefix: &str) -> v1::TokenLocation {
    let header = v1::TokenHeader { name: name.to_ascii_lowercase(), prefix: prefix.to_owned() };
    v1::TokenLocation { at: Some(At::Header(header)) }
}
