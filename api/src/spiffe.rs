//! Workload identities: `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`.
//! Parsing only; certificates are read elsewhere.
//! Source: SPIFFE-ID specification, sections 2.1 and 2.2 (length, characters).

use std::fmt;
use std::str::FromStr;

/// Why a text is not an identity or a trust domain.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseError {
    /// Not `spiffe://…`, or longer than 2048 bytes.
    #[error(
        "`{0}` is not a SPIFFE id of the form spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>"
    )]
    Form(String),
    /// A trust domain may hold lower-case letters, digits, `.`, `-` and `_`, up to 255 bytes.
    #[error("`{0}` is not a trust domain: use lower-case letters, digits, dots, dashes and underscores")]
    TrustDomain(String),
}

/// The name of a set of identities that one root vouches for, e.g. `cluster.local`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = ParseError;
    fn from_str(s: &str) -> Result<Self, ParseError> {
        let fits = !s.is_empty()
            && s.len() <= 255
            && s.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_'));
        if fits { Ok(Self(s.to_owned())) } else { Err(ParseError::TrustDomain(s.to_owned())) }
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who a workload is. Displayed, and compared, as its SPIFFE id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// The trust domain whose root signs it.
    pub trust_domain: TrustDomain,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Kubernetes ServiceAccount.
    pub service_account: String,
}

impl Identity {
    /// Whether a text is this identity's, without making one of it.
    #[must_use]
    pub fn is_written(&self, text: &str) -> bool {
        let account = text
            .strip_prefix("spiffe://")
            .and_then(|rest| rest.strip_prefix(self.trust_domain.as_str())?.strip_prefix("/ns/"))
            .and_then(|rest| rest.strip_prefix(self.namespace.as_str())?.strip_prefix("/sa/"));
        account == Some(self.service_account.as_str())
    }
}

impl FromStr for Identity {
    type Err = ParseError;
    fn from_str(s: &str) -> Result<Self, ParseError> {
        let form = || ParseError::Form(s.chars().take(200).collect());
        if s.len() > 2048 {
            return Err(form());
        }
        let rest = s.strip_prefix("spiffe://").ok_or_else(form)?;
        let mut parts = rest.split('/');
        let (Some(domain), Some("ns"), Some(namespace), Some("sa"), Some(account), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(form());
        };
        let segment = |p: &str| {
            !p.is_empty()
                && p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
                && p != "."
                && p != ".."
        };
        if !segment(namespace) || !segment(account) {
            return Err(form());
        }
        Ok(Self {
            trust_domain: domain.parse()?,
            namespace: namespace.to_owned(),
            service_account: account.to_owned(),
        })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

/// Checks a text that stands for identities: a whole one, or with one `*` for whole segments at its end
/// (`spiffe://cluster.local/ns/shop/*`) or at its beginning (`*/sa/front`), or `*` for each that there is.
/// Part of a segment is not possible: `ns/shop*` would be `shop-of-somebody-else` too.
///
/// # Errors
/// When it is none.
pub fn pattern(text: &str) -> Result<(), ParseError> {
    let form = || ParseError::Form(text.chars().take(200).collect());
    let rest = match (text.strip_suffix("/*"), text.strip_prefix("*/")) {
        _ if text == "*" => return Ok(()),
        (Some(rest), None) if rest.starts_with("spiffe:/") => rest,
        (None, Some(rest)) => rest,
        _ => return text.parse::<Identity>().map(|_| ()),
    };
    let fits = text.len() <= 2048
        && rest.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'/' | b':'));
    if fits { Ok(()) } else { Err(form()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_identity_survives_a_round_trip(d in "[a-z0-9._-]{1,40}", n in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", a in "[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?") {
            let id = Identity { trust_domain: d.parse().unwrap(), namespace: n, service_account: a };
            let text = id.to_string();
            let longer = format!("{}a", text);
            prop_assert!(id.is_written(&text) && !id.is_written(&longer) && !id.is_written(&text[1..]));
            prop_assert_eq!(text.parse::<Identity>().unwrap(), id);
        }

        #[test]
        fn any_text_parses_or_is_refused_without_panic(s in "\\PC{0,80}") {
            let _ = s.parse::<Identity>();
        }
    }

    #[test]
    fn an_asterisk_stands_for_whole_segments_at_one_end() {
        for good in [
            "*",
            "spiffe://a/*",
            "spiffe://a/ns/b/*",
            "spiffe://a/ns/b/sa/*",
            "*/sa/c",
            "*/ns/b/sa/c",
            "spiffe://a/ns/b/sa/c",
        ] {
            assert_eq!(pattern(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "**",
            "a*",
            "spiffe://a/ns/b*",
            "*b/sa/c",
            "*/b/*",
            "spiffe://*/ns/b/sa/c",
            "spiffe://a/ns/b/sa/c*",
            "http://a/*",
            "*/a b",
        ] {
            assert!(pattern(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn near_misses_are_refused() {
        for bad in [
            "",
            "spiffe://",
            "http://a/ns/b/sa/c",
            "spiffe://a/ns/b/sa/",
            "spiffe://a/ns/b/sa/c/",
            "spiffe://a/ns//sa/c",
            "spiffe://A/ns/b/sa/c",
            "spiffe://a/NS/b/sa/c",
            "spiffe://a/ns/../sa/c",
            "spiffe://a/ns/b/sa/c?x",
            "spiffe://a:80/ns/b/sa/c",
            "spiffe://a/ns/b%2f/sa/c",
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad} was taken");
        }
    }
}
