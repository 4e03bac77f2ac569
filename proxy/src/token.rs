//! Tokens (JWT) that requests to the own workload bear: found, verified, and what of them goes on. Whoever asks gets what a good
//! token says, or why it is not good, or that there is none; whether a token is needed is the policies' to say. Keys are parsed
//! when the snapshot is built. It fetches nothing: the operator says which keys issuers have.
//! Sources: RFC 7515 (form), 7518 and 8037 (algorithms), 7519 (claims), 8725 (what attackers try).

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use weft_api::{Reason, v1};

use crate::error::Error;
use claims::Claims;
use key::Key;
use locate::Location;
use memory::Memory;

pub mod claims;
pub mod jose;
pub mod json;
pub mod key;
pub mod locate;
pub mod memory;
#[cfg(test)]
pub(crate) mod tests;

/// Longest token, in bytes.
pub const MAX_TOKEN: usize = 16 * 1024;
/// Keys that are tried for a token that names none.
const MAX_TRIED: usize = 4;

/// Why a token is not good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flaw {
    /// The request bears more than one.
    Ambiguous,
    /// It is longer than [`MAX_TOKEN`].
    TooLarge,
    /// It is no JWT.
    Malformed,
    /// Its algorithm is none of those that are taken, or none that the key is for.
    Algorithm,
    /// Its header brings a key along, or has critical extensions.
    Header,
    /// Nobody who is trusted at that place has issued it.
    UnknownIssuer,
    /// The issuer has no such key, or none is known yet.
    UnknownKey,
    /// Somebody else has signed it, or it was changed.
    Signature,
    /// It is meant for others.
    Audience,
    /// It says nothing of when it expires.
    WithoutExpiry,
    /// It has expired.
    Expired,
    /// It is not good yet.
    NotYetValid,
}

impl Flaw {
    /// Every one.
    pub const ALL: [Self; 12] = [
        Self::Ambiguous,
        Self::TooLarge,
        Self::Malformed,
        Self::Algorithm,
        Self::Header,
        Self::UnknownIssuer,
        Self::UnknownKey,
        Self::Signature,
        Self::Audience,
        Self::WithoutExpiry,
        Self::Expired,
        Self::NotYetValid,
    ];

    /// The word in the metric.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ambiguous => "ambiguous",
            Self::TooLarge => "too-large",
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::Header => "header",
            Self::UnknownIssuer => "unknown-issuer",
            Self::UnknownKey => "unknown-key",
            Self::Signature => "signature",
            Self::Audience => "audience",
            Self::WithoutExpiry => "without-expiry",
            Self::Expired => "expired",
            Self::NotYetValid => "not-yet-valid",
        }
    }

    /// The word for the client.
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Expired | Self::NotYetValid => Reason::TokenExpired,
            _ => Reason::TokenInvalid,
        }
    }

    /// With a sentence for the log, which the client does not get. It says nothing of what is in the token.
    #[must_use]
    pub fn error(self) -> Error {
        Error::new(self.reason(), self.sentence())
    }

    const fn sentence(self) -> &'static str {
        match self {
            Self::Ambiguous => {
                "the request bears several tokens, or a token beside other values in the same header"
            }
            Self::TooLarge => "the token is longer than 16 KiB",
            Self::Malformed => "the token is no signed JWT",
            Self::Algorithm => "the token's algorithm is not taken, or not one that the issuer's key is for",
            Self::Header => {
                "the token's header brings a key of its own or has critical extensions, which are not taken"
            }
            Self::UnknownIssuer => {
                "no RequestAuthentication of this workload takes tokens of that issuer in that place"
            }
            Self::UnknownKey => "the issuer has no key of that name, as far as the mesh knows",
            Self::Signature => "the token was not signed by its issuer, or was changed since",
            Self::Audience => "the token is meant for another audience",
            Self::WithoutExpiry => "the token does not say when it expires",
            Self::Expired => "the token has expired",
            Self::NotYetValid => "the token is not valid yet",
        }
    }
}

/// Whose tokens are taken, and what becomes of them.
#[derive(Debug)]
pub struct Issuer {
    /// The whole `iss`.
    pub name: String,
    /// "namespace/name" of the resource that says so.
    pub policy: Arc<str>,
    /// Any of them; none: for whomever the token is.
    pub audiences: Vec<String>,
    /// In seconds.
    pub leeway: i64,
    /// In the operator's order.
    pub keys: Vec<Key>,
    /// Where its tokens may be.
    pub locations: Vec<Location>,
    /// Header, and the claim whose value it gets.
    pub claim_headers: Vec<(HeaderName, Vec<String>)>,
    /// The application gets the token.
    pub forward: bool,
    /// Where the operator fetches the keys; empty: they are given.
    pub key_source: String,
    /// A token named a key that is not among them, since somebody last looked.
    pub missed: AtomicBool,
}

/// A token, and in which of the places it was.
type Found<'a> = (usize, Cow<'a, str>);

/// All that is asked of tokens.
#[derive(Debug)]
pub struct Tokens {
    /// As the operator said it.
    message: v1::Tokens,
    issuers: Vec<Issuer>,
    /// All places, each once.
    locations: Vec<Location>,
    /// Headers that only the proxy sets.
    own_headers: Vec<HeaderName>,
}

impl PartialEq for Tokens {
    fn eq(&self, other: &Self) -> bool {
        self.message == other.message
    }
}

/// A good token, as far as others want to know it.
#[derive(Debug, PartialEq)]
pub struct Verified {
    /// What it says.
    pub claims: Claims,
    /// "namespace/name" of the resource by which it is good.
    pub policy: Arc<str>,
    /// Headers made of it.
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Which one has issued it.
    issuer: usize,
    /// When it is good no more, leeway included; in seconds since 1970.
    pub until: i64,
}

/// What was found of a request's token.
#[derive(Clone, Debug)]
pub enum Seen {
    /// It is good.
    Good(Arc<Verified>, Known),
    /// It is not.
    Bad(Flaw),
}

/// Whether a token was good before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Known {
    /// Its signature was verified now.
    Verified,
    /// It was remembered.
    Remembered,
}

impl Seen {
    /// The word in the metric.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Good(_, Known::Verified) => "verified",
            Self::Good(_, Known::Remembered) => "remembered",
            Self::Bad(flaw) => flaw.as_str(),
        }
    }

    /// What a good one says.
    #[must_use]
    pub const fn good(&self) -> Option<&Arc<Verified>> {
        match self {
            Self::Good(verified, _) => Some(verified),
            Self::Bad(_) => None,
        }
    }
}

impl Tokens {
    /// `message`: what they were read from.
    #[must_use]
    pub fn new(issuers: Vec<Issuer>, message: v1::Tokens) -> Self {
        let (mut locations, mut own_headers) = (Vec::new(), Vec::new());
        for issuer in &issuers {
            for location in &issuer.locations {
                if !locations.contains(location) {
                    locations.push(location.clone());
                }
            }
            for (name, _) in &issuer.claim_headers {
                if !own_headers.contains(name) {
                    own_headers.push(name.clone());
                }
            }
        }
        Self { message, issuers, locations, own_headers }
    }

    /// What they were read from.
    #[must_use]
    pub const fn message(&self) -> &v1::Tokens {
        &self.message
    }

    /// Where keys are fetched that tokens have named in vain since the last call.
    #[must_use]
    pub fn missed(&self) -> Vec<String> {
        let missed = |issuer: &&Issuer| issuer.missed.swap(false, Ordering::Relaxed);
        let fetched = self.issuers.iter().filter(|issuer| !issuer.key_source.is_empty());
        fetched.filter(missed).map(|issuer| issuer.key_source.clone()).collect()
    }

    /// Looks for a request's token, takes away what only the proxy may say, and says it. `None`: it bears none.
    /// `now`: in seconds since 1970. `redact`: gets the target without the token, where it was in it.
    pub fn of_request(
        self: &Arc<Self>,
        headers: &mut HeaderMap,
        uri: &mut Uri,
        now: i64,
        memory: &mut Memory,
        redact: impl FnOnce(Uri),
    ) -> Option<Seen> {
        self.strip(headers);
        let (at, seen) = match self.find(headers, uri) {
            Ok(None) => return None,
            Err(flaw) => (0, Seen::Bad(flaw)),
            Ok(Some((at, token))) => (at, self.judge(at, &token, now, memory)),
        };
        let mut clean = None;
        for location in &self.locations {
            clean = location.redacted(clean.as_ref().unwrap_or(uri)).or(clean);
        }
        if let Some(clean) = clean {
            redact(clean);
        }
        if let Seen::Good(verified, _) = &seen {
            if self.issuers.get(verified.issuer).is_some_and(|issuer| !issuer.forward)
                && let Some(location) = self.locations.get(at)
            {
                location.remove(headers, uri);
            }
            verified.state(headers);
        }
        Some(seen)
    }

    /// The one token, and in which of the places.
    fn find<'a>(&self, headers: &'a HeaderMap, uri: &'a Uri) -> Result<Option<Found<'a>>, Flaw> {
        let mut found = None;
        for (at, location) in self.locations.iter().enumerate() {
            if let Some(token) = location.token(headers, uri)? {
                if found.is_some() {
                    return Err(Flaw::Ambiguous);
                }
                found = Some((at, token));
            }
        }
        Ok(found)
    }

    fn judge(self: &Arc<Self>, at: usize, token: &str, now: i64, memory: &mut Memory) -> Seen {
        if token.len() > MAX_TOKEN {
            return Seen::Bad(Flaw::TooLarge);
        }
        let (mark, known) = memory.find(self, token);
        let place = self.locations.get(at);
        let judged = match known {
            Some(verified) => {
                self.recall(place, &verified, now).map(|()| Seen::Good(verified, Known::Remembered))
            }
            None => self.verify(place, token, now).map(|verified| {
                let verified = Arc::new(verified);
                memory.keep(mark, &verified);
                Seen::Good(verified, Known::Verified)
            }),
        };
        judged.unwrap_or_else(Seen::Bad)
    }

    /// Of a token that was good before: whether it is good here and still.
    fn recall(&self, at: Option<&Location>, verified: &Verified, now: i64) -> Result<(), Flaw> {
        let issuer = self.issuers.get(verified.issuer).ok_or(Flaw::UnknownIssuer)?;
        if !at.is_some_and(|at| issuer.locations.contains(at)) {
            return Err(Flaw::UnknownIssuer);
        }
        verified.claims.timely(now, issuer.leeway)
    }

    /// The whole way. The signature comes before whatever the token says of itself but its issuer, who says which keys count.
    fn verify(&self, at: Option<&Location>, token: &str, now: i64) -> Result<Verified, Flaw> {
        let jose = jose::read(token)?;
        let claims = Claims::read(&jose.payload)?;
        let trusted = |issuer: &&Issuer| {
            issuer.name == claims.issuer && at.is_some_and(|at| issuer.locations.contains(at))
        };
        let (number, issuer) =
            self.issuers.iter().enumerate().find(|(_, issuer)| trusted(issuer)).ok_or(Flaw::UnknownIssuer)?;
        issuer.signed(&jose)?;
        claims.timely(now, issuer.leeway)?;
        if !claims.is_for(&issuer.audiences) {
            return Err(Flaw::Audience);
        }
        let header = |(name, claim): &(HeaderName, Vec<String>)| Some((name.clone(), claims.header(claim)?));
        let headers = issuer.claim_headers.iter().filter_map(header).collect();
        let until = claims.expires.saturating_add(issuer.leeway);
        Ok(Verified { headers, policy: Arc::clone(&issuer.policy), issuer: number, until, claims })
    }

    /// Removes what only the proxy may say, in every spelling that an application may take for it: CGI, WSGI, Rack and PHP hand
    /// headers on with `-` and `_` alike.
    fn strip(&self, headers: &mut HeaderMap) {
        let alike = |name: &HeaderName, own: &HeaderName| {
            let (name, own) = (name.as_str().as_bytes(), own.as_str().as_bytes());
            let dash = |byte: &u8| if *byte == b'_' { b'-' } else { *byte };
            name.len() == own.len() && name.iter().map(dash).eq(own.iter().map(dash))
        };
        for own in &self.own_headers {
            while let Some(spelling) = headers.keys().find(|name| alike(name, own)).cloned() {
                headers.remove(spelling);
            }
        }
    }
}

impl Issuer {
    /// Whether one of its keys, the one that the token names, has signed it.
    fn signed(&self, jose: &jose::Jose<'_>) -> Result<(), Flaw> {
        let named = |key: &&Key| jose.kid.as_deref().is_none_or(|kid| *key.kid == *kid);
        let mut candidates: Vec<&Key> = self.keys.iter().filter(named).collect();
        if candidates.is_empty() {
            // The only key of an issuer is often not named in its set, only in its tokens.
            candidates = self.keys.iter().filter(|key| key.kid.is_empty()).collect();
        }
        if candidates.is_empty() {
            // No more than a mark: whoever makes up names must not make anybody work.
            self.missed.store(true, Ordering::Relaxed);
            return Err(Flaw::UnknownKey);
        }
        candidates.retain(|key| key.algorithm == jose.algorithm);
        if candidates.is_empty() {
            return Err(Flaw::Algorithm);
        }
        // Whoever makes up tokens without a name must not make us try dozens of keys for each.
        if candidates.len() > MAX_TRIED {
            return Err(Flaw::UnknownKey);
        }
        let signed = candidates.iter().any(|key| key.signed(jose.signed, &jose.signature));
        if signed { Ok(()) } else { Err(Flaw::Signature) }
    }
}

/// In seconds since 1970, by this machine's clock.
#[must_use]
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

impl Verified {
    /// Sets the headers that are made of it, in place of whatever is there.
    pub fn state(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.headers {
            headers.insert(name.clone(), value.clone());
        }
    }
}
