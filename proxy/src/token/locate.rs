//! Where a request may bear a token, and how it is taken out there. Two tokens are none: nobody knows which of them the
//! application reads (RFC 6750 section 2). It does not look into tokens.

use std::borrow::Cow;

use http::header::COOKIE;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

use super::Flaw;
use crate::route::query::decoded;

/// A place for a token.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Location {
    /// A header, after a prefix; case does not matter in the prefix (RFC 9110 section 11.1).
    Header(HeaderName, String),
    /// A cookie.
    Cookie(String),
    /// A parameter of the query.
    Query(String),
}

impl Location {
    /// The token there.
    ///
    /// # Errors
    /// There are several, or something that is no text.
    pub fn token<'a>(&self, headers: &'a HeaderMap, uri: &'a Uri) -> Result<Option<Cow<'a, str>>, Flaw> {
        match self {
            Self::Header(name, prefix) => {
                let mut found = None;
                let mut count = 0;
                for value in headers.get_all(name) {
                    count += 1;
                    if let Some(rest) = after(prefix, value.as_bytes()) {
                        found = Some(std::str::from_utf8(rest).map_err(|_| Flaw::Malformed)?.into());
                    }
                }
                // Two values, of which one is none: the application may read either.
                if found.is_some() && count > 1 { Err(Flaw::Ambiguous) } else { Ok(found) }
            }
            Self::Cookie(name) => {
                let all = headers.get_all(COOKIE).iter().flat_map(|value| pairs(value.as_bytes()));
                let named = all.filter(|(key, _)| *key == name.as_bytes());
                only(named.map(|(_, value)| {
                    std::str::from_utf8(value).map(Cow::Borrowed).map_err(|_| Flaw::Malformed)
                }))
            }
            Self::Query(name) => only(parameters(uri).filter_map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                (*decoded(key) == *name.as_bytes()).then(|| match decoded(value) {
                    Cow::Borrowed(_) => Ok(Cow::Borrowed(value)),
                    Cow::Owned(bytes) => {
                        String::from_utf8(bytes).map(Cow::Owned).map_err(|_| Flaw::Malformed)
                    }
                })
            })),
        }
    }

    /// Takes the token out of a request.
    pub fn remove(&self, headers: &mut HeaderMap, uri: &mut Uri) {
        match self {
            Self::Header(name, _) => {
                headers.remove(name);
            }
            Self::Cookie(name) => {
                let left: Vec<HeaderValue> =
                    headers.get_all(COOKIE).iter().filter_map(|value| without(value, name)).collect();
                headers.remove(COOKIE);
                for value in left {
                    headers.append(COOKIE, value);
                }
            }
            Self::Query(_) => {
                if let Some(clean) = self.redacted(uri) {
                    *uri = clean;
                }
            }
        }
    }

    /// The target without the token, where it would be in it: for the log, too.
    #[must_use]
    pub fn redacted(&self, uri: &Uri) -> Option<Uri> {
        let Self::Query(name) = self else { return None };
        let is_it = |pair: &&str| *decoded(pair.split('=').next().unwrap_or_default()) == *name.as_bytes();
        if !parameters(uri).any(|pair| is_it(&pair)) {
            return None;
        }
        let left: Vec<&str> = parameters(uri).filter(|pair| !is_it(pair)).collect();
        let mut text = uri.path().to_owned();
        if !left.is_empty() {
            text.push('?');
            text.push_str(&left.join("&"));
        }
        let mut parts = uri.clone().into_parts();
        parts.path_and_query = Some(PathAndQuery::try_from(text).ok()?);
        Uri::from_parts(parts).ok()
    }
}

fn parameters(uri: &Uri) -> impl Iterator<Item = &str> {
    uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty())
}

/// At most one.
fn only<T>(mut found: impl Iterator<Item = Result<T, Flaw>>) -> Result<Option<T>, Flaw> {
    let first = found.next().transpose()?;
    if first.is_some() && found.next().is_some() { Err(Flaw::Ambiguous) } else { Ok(first) }
}

/// What follows a prefix. One that ends with a space is a scheme: whatever space follows it, it is meant, and an application
/// that is less particular must not find a token that the proxy has not seen.
fn after<'a>(prefix: &str, value: &'a [u8]) -> Option<&'a [u8]> {
    let scheme = prefix.trim_end_matches(' ');
    let (start, rest) = value.split_at_checked(scheme.len())?;
    if !start.eq_ignore_ascii_case(scheme.as_bytes()) {
        return None;
    }
    let apart = scheme.len() == prefix.len() || rest.first().is_none_or(u8::is_ascii_whitespace);
    apart.then(|| rest.trim_ascii())
}

/// RFC 6265 section 4.2.1, read as servers do: semicolons part pairs, spaces around them mean nothing.
fn pairs(value: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    value.split(|byte| *byte == b';').map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
        (pair[..at].trim_ascii(), unquoted(pair.get(at + 1..).unwrap_or_default().trim_ascii()))
    })
}

fn unquoted(value: &[u8]) -> &[u8] {
    value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value)
}

/// `None`: nothing is left.
fn without(value: &HeaderValue, name: &str) -> Option<HeaderValue> {
    let of = |pair: &&[u8]| pairs(pair).any(|(key, _)| key == name.as_bytes());
    let left: Vec<&[u8]> = value.as_bytes().split(|byte| *byte == b';').filter(|pair| !of(pair)).collect();
    let text = left.join(&b';');
    let text = text.trim_ascii();
    if text.is_empty() { None } else { HeaderValue::from_bytes(text).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap())
        };
        lines.iter().map(line).collect()
    }

    fn found(location: &Location, lines: &[(&'static str, &str)], uri: &str) -> Result<Option<String>, Flaw> {
        let (headers, uri) = (headers(lines), uri.parse().unwrap());
        location.token(&headers, &uri).map(|token| token.map(Cow::into_owned))
    }

    fn bearer() -> Location {
        Location::Header(http::header::AUTHORIZATION, "Bearer ".into())
    }

    #[test]
    fn a_header_bears_one_token_after_its_prefix() {
        for (value, expected) in [
            ("Bearer a.b.c", Some("a.b.c")),
            ("bearer  a.b.c", Some("a.b.c")),
            ("BEARER\ta", Some("a")),
            ("Bearer", Some("")),
            ("Bearer a, Bearer b", Some("a, Bearer b")),
            ("Bearera", None),
            ("Basic abc", None),
            ("", None),
        ] {
            assert_eq!(
                found(&bearer(), &[("authorization", value)], "/"),
                Ok(expected.map(str::to_owned)),
                "{value}"
            );
        }
        let plain = Location::Header(HeaderName::from_static("x-token"), String::new());
        assert_eq!(found(&plain, &[("x-token", "a")], "/"), Ok(Some("a".into())));
        for second in ["Bearer b", "Bearer a", "Basic x", ""] {
            for lines in [
                [("authorization", "Bearer a"), ("authorization", second)],
                [("authorization", second), ("authorization", "Bearer a")],
            ] {
                assert_eq!(found(&bearer(), &lines, "/"), Err(Flaw::Ambiguous), "{lines:?}");
            }
        }
        assert_eq!(
            found(&bearer(), &[("authorization", "Basic a"), ("authorization", "Basic b")], "/"),
            Ok(None)
        );
    }

    #[test]
    fn a_cookie_and_a_parameter_bear_one_token() {
        let cookie = Location::Cookie("t".into());
        for (value, expected) in [
            ("t=a.b", Ok(Some("a.b"))),
            ("x=1; t=a; y=2", Ok(Some("a"))),
            ("x=1;t = \"a\" ", Ok(Some("a"))),
            ("T=a; tt=b; t2=c", Ok(None)),
            ("t=a; t=a", Err(Flaw::Ambiguous)),
            ("t", Ok(Some(""))),
        ] {
            assert_eq!(
                found(&cookie, &[("cookie", value)], "/"),
                expected.map(|t| t.map(str::to_owned)),
                "{value}"
            );
        }
        assert_eq!(found(&cookie, &[("cookie", "t=a"), ("cookie", "t=b")], "/"), Err(Flaw::Ambiguous));
        let query = Location::Query("access_token".into());
        for (uri, expected) in [
            ("/?access_token=a.b", Ok(Some("a.b"))),
            ("/?x=1&access%5ftoken=a%2eb", Ok(Some("a.b"))),
            ("/?access_token=a&access_token=a", Err(Flaw::Ambiguous)),
            ("/?access_token=%ff", Err(Flaw::Malformed)),
            ("/?x=access_token", Ok(None)),
            ("/", Ok(None)),
        ] {
            assert_eq!(found(&query, &[], uri), expected.map(|t| t.map(str::to_owned)), "{uri}");
        }
    }

    #[test]
    fn what_is_taken_out_is_the_token_only() {
        let removed = |location: &Location, lines: &[(&'static str, &str)], uri: &str| {
            let (mut headers, mut uri) = (headers(lines), uri.parse().unwrap());
            location.remove(&mut headers, &mut uri);
            let all: Vec<String> = headers.values().map(|v| v.to_str().unwrap().to_owned()).collect();
            (all, uri.to_string())
        };
        assert_eq!(
            removed(&bearer(), &[("authorization", "Bearer a"), ("x-a", "1")], "/"),
            (vec!["1".into()], "/".into())
        );
        let cookie = Location::Cookie("t".into());
        assert_eq!(
            removed(&cookie, &[("cookie", "x=1; t=a; y=2")], "/"),
            (vec!["x=1; y=2".into()], "/".into())
        );
        assert_eq!(removed(&cookie, &[("cookie", "t=a")], "/"), (vec![], "/".into()));
        let query = Location::Query("t".into());
        assert_eq!(removed(&query, &[], "/a?x=1&t=a&y=%20"), (vec![], "/a?x=1&y=%20".into()));
        assert_eq!(removed(&query, &[], "http://b:80/a?%74=a"), (vec![], "http://b:80/a".into()));
        assert_eq!(removed(&query, &[], "/a?x"), (vec![], "/a?x".into()));
    }

    proptest! {
        #[test]
        fn what_was_taken_out_is_not_found_again(cookie in "[tx=; \"a]{0,24}", query in "[tx=&%74a]{0,24}") {
            let uri: Uri = format!("/?{query}").parse().unwrap();
            let headers = headers(&[("cookie", &cookie)]);
            for location in [Location::Cookie("t".into()), Location::Query("t".into())] {
                let (mut headers, mut uri) = (headers.clone(), uri.clone());
                location.remove(&mut headers, &mut uri);
                prop_assert_eq!(location.token(&headers, &uri), Ok(None));
            }
        }
    }
}
