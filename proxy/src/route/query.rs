//! Conditions on query parameters. Pure.
//! Source: URL standard, "application/x-www-form-urlencoded parsing".

use std::borrow::Cow;

use super::ValueMatch;
use crate::path::escape;

/// On a query parameter.
#[derive(Clone, Debug)]
pub struct QueryMatch {
    /// Its name, decoded; case-sensitive.
    pub name: String,
    /// Its value, decoded. Of a parameter that comes more than once, one value that fits is enough.
    pub value: ValueMatch,
}

impl QueryMatch {
    pub(super) fn fits(&self, query: Option<&str>) -> bool {
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let mut values = pairs
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .filter(|(name, _)| *decoded(name) == *self.name.as_bytes())
            .map(|(_, value)| decoded(value));
        match self.value {
            ValueMatch::Present(wanted) => values.next().is_some() == wanted,
            _ => values.any(|value| std::str::from_utf8(&value).is_ok_and(|text| self.value.fits(text))),
        }
    }
}

/// As a server reads it.
pub(crate) fn decoded(text: &str) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    if !bytes.iter().any(|b| matches!(b, b'%' | b'+')) {
        return Cow::Borrowed(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'+' => out.push(b' '),
            b'%' => match escape(&bytes[at..]) {
                Some(escaped) => {
                    out.push(escaped);
                    at += 2;
                }
                None => out.push(b'%'),
            },
            _ => out.push(byte),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use regex::Regex;

    fn fits(name: &str, value: ValueMatch, query: Option<&str>) -> bool {
        QueryMatch { name: name.into(), value }.fits(query)
    }

    #[test]
    fn parameters_match_decoded_by_any_of_their_values() {
        let exact = |text: &str| ValueMatch::Exact(text.into());
        for (name, value, query, expected) in [
            ("a", exact("1"), "a=1", true),
            ("a", exact("1"), "b=2&a=1", true),
            ("a", exact("2"), "a=1&a=2", true),
            ("a", exact("1"), "A=1", false),
            ("a", exact("1"), "a=12", false),
            ("a", exact("b c"), "a=b+c", true),
            ("a", exact("b c"), "a=b%20c", true),
            ("a b", exact("é"), "a%20b=%C3%a9", true),
            ("a", exact(""), "a", true),
            ("a", exact(""), "a=", true),
            ("a", exact("b=c"), "a=b=c", true),
            ("a", exact("100%"), "a=100%", true),
            ("a", exact("x"), "a=%ff", false),
            ("a", ValueMatch::Prefix("be".into()), "a=beta", true),
            ("a", ValueMatch::Regex(Regex::new("^(?:[0-9]+)$").unwrap()), "a=42", true),
            ("a", ValueMatch::Regex(Regex::new("^(?:[0-9]+)$").unwrap()), "a=x42", false),
            ("a", ValueMatch::Present(true), "a=%ff", true),
            ("a", ValueMatch::Present(true), "b", false),
            ("a", ValueMatch::Present(false), "b", true),
        ] {
            assert_eq!(fits(name, value, Some(query)), expected, "{name} in {query}");
        }
        assert!(!fits("a", exact(""), None) && fits("a", ValueMatch::Present(false), None));
    }

    proptest! {
        #[test]
        fn no_query_makes_it_panic(query in "([a%2+=&;]|\\PC){0,40}") {
            let _ = fits("a", ValueMatch::Exact("a".into()), Some(&query));
        }
    }
}
