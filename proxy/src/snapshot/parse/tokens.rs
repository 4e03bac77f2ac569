//! Which tokens the own pod takes. Whatever of it cannot be understood is a reason to take none of it: half of it could take a
//! token that the whole refuses. Keys are parsed here, once. It keeps nothing itself.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use weft_api::v1;

use super::matches::header_name;
use super::{Invalid, Result, list, required, unknown};
use crate::token::key::{Algorithm, Key};
use crate::token::locate::Location;
use crate::token::{Issuer, Tokens};

/// What this proxy understands, see `Tokens.level`.
const LEVEL: u32 = 1;
/// Keys of all issuers together.
const MOST: usize = 4096;
/// In milliseconds: an hour. Beyond that nobody means it.
const LONGEST_LEEWAY: u64 = 3_600_000;

/// `None` when there is no issuer, so that a request is asked nothing. `last`: as it was before.
pub(in crate::snapshot) fn tokens(
    message: Option<&v1::Tokens>,
    last: Option<&Arc<Tokens>>,
) -> Result<Option<Arc<Tokens>>> {
    let Some(message) = message.filter(|message| !message.issuers.is_empty()) else { return Ok(None) };
    let carried = last.filter(|_| message.issuers.iter().any(|issuer| issuer.keys_pending));
    let carried = carried.map(|last| carry(message, last.message()));
    let message = carried.as_ref().unwrap_or(message);
    if let Some(last) = last.filter(|last| last.message() == message) {
        return Ok(Some(Arc::clone(last)));
    }
    parsed(message).map(|new| Some(Arc::new(new))).map_err(|e| e.within("tokens"))
}

/// With the keys that were told before, where the operator has not fetched them yet: one that has just started must not make
/// every token a bad one.
fn carry(message: &v1::Tokens, last: &v1::Tokens) -> v1::Tokens {
    let mut message = message.clone();
    for issuer in message.issuers.iter_mut().filter(|issuer| issuer.keys_pending) {
        let same = |before: &&v1::TokenIssuer| {
            before.issuer == issuer.issuer
                && before.key_source == issuer.key_source
                && !before.keys.is_empty()
        };
        if let Some(before) = last.issuers.iter().find(same) {
            issuer.keys = before.keys.clone();
            issuer.keys_pending = false;
        }
    }
    message
}

fn parsed(message: &v1::Tokens) -> Result<Tokens> {
    if message.level > LEVEL {
        let problem =
            format!("{} is beyond what this proxy understands, {LEVEL}: update the proxy", message.level);
        return Err(Invalid::new("level", problem));
    }
    let keys: usize = message.issuers.iter().map(|issuer| issuer.keys.len()).sum();
    if keys > MOST {
        return Err(Invalid::new(
            "issuers",
            format!("have {keys} keys together; more than {MOST} are not taken"),
        ));
    }
    let issuers = list("issuers", &message.issuers, issuer)?;
    for (n, issuer) in issuers.iter().enumerate() {
        if issuers[..n].iter().any(|before| before.name == issuer.name) {
            return Err(Invalid::new(format!("issuers[{n}].issuer"), "is given twice"));
        }
    }
    Ok(Tokens::new(issuers, message.clone()))
}

fn issuer(message: &v1::TokenIssuer) -> Result<Issuer> {
    if message.locations.is_empty() {
        return Err(Invalid::new("locations", "is empty"));
    }
    if message.leeway_ms > LONGEST_LEEWAY {
        return Err(Invalid::new("leeway_ms", format!("{} is more than an hour", message.leeway_ms)));
    }
    Ok(Issuer {
        name: required("issuer", &message.issuer)?.to_owned(),
        policy: message.policy.as_str().into(),
        audiences: message.audiences.clone(),
        leeway: i64::try_from(message.leeway_ms / 1000).unwrap_or_default(),
        keys: list("keys", &message.keys, key)?,
        locations: list("locations", &message.locations, location)?,
        claim_headers: list("claim_headers", &message.claim_headers, |given| {
            Ok((header_name("header", &given.header)?, claim("claim", &given.claim)?))
        })?,
        forward: message.forward,
        key_source: message.key_source.clone(),
        missed: AtomicBool::new(false),
    })
}

/// The name of a claim, and those within objects.
pub(super) fn claim(field: &str, names: &[String]) -> Result<Vec<String>> {
    if names.is_empty() { Err(Invalid::new(field, "is empty")) } else { Ok(names.to_vec()) }
}

fn key(message: &v1::TokenKey) -> Result<Key> {
    let algorithm = match v1::TokenAlgorithm::try_from(message.algorithm) {
        Ok(v1::TokenAlgorithm::Rs256) => Algorithm::Rs256,
        Ok(v1::TokenAlgorithm::Ps256) => Algorithm::Ps256,
        Ok(v1::TokenAlgorithm::Es256) => Algorithm::Es256,
        Ok(v1::TokenAlgorithm::Eddsa) => Algorithm::EdDsa,
        Ok(v1::TokenAlgorithm::Unspecified) | Err(_) => return Err(unknown("algorithm", message.algorithm)),
    };
    Key::new(&message.kid, algorithm, &message.key)
        .ok_or_else(|| Invalid::new("key", "is no key for its algorithm"))
}

fn location(message: &v1::TokenLocation) -> Result<Location> {
    use v1::token_location::At;
    Ok(match &message.at {
        Some(At::Header(header)) => {
            Location::Header(header_name("header", &header.name)?, header.prefix.clone())
        }
        Some(At::Cookie(name)) => Location::Cookie(required("cookie", name)?.to_owned()),
        Some(At::Query(name)) => Location::Query(required("query", name)?.to_owned()),
        None => {
            return Err(Invalid::new(
                "at",
                "is not given: update the proxy, its operator knows a place that it does not",
            ));
        }
    })
}
