//! Another host or path for a request. Pure. It chooses no endpoint: a rewritten request goes where the rule sends it.

use http::header::HOST;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Uri};
use regex::Regex;

use crate::path::normalised;

/// Longest path that a rule may make; what `Uri` can hold is a little more.
pub const MAX_PATH: usize = 32 * 1024;

/// Of a request's target.
#[derive(Debug)]
pub struct Rewrite {
    /// Host header and `:authority`, the same in both forms.
    pub host: Option<(Authority, HeaderValue)>,
    /// The path.
    pub path: Option<PathChange>,
}

/// Another path.
#[derive(Debug)]
pub enum PathChange {
    /// In place of the prefix that matched.
    Prefix(String),
    /// In place of all of it.
    Full(String),
    /// Made of its parts, where it fits; compiled with anchors.
    Regex(Regex, Template),
}

/// A path with holes.
#[derive(Debug, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Group(usize),
}

/// The path that a rule makes is too long, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the rule makes a path of it that is too long or malformed")]
pub struct Unfit;

impl Rewrite {
    /// Changes where a request says that it goes. `prefix`: the one that its match gave.
    ///
    /// # Errors
    /// When the new path cannot be one.
    pub fn apply(&self, uri: &mut Uri, headers: &mut HeaderMap, prefix: Option<&str>) -> Result<(), Unfit> {
        let path = match &self.path {
            Some(change) => change.apply(uri.path(), prefix)?,
            None => None,
        };
        let host = self.host.as_ref();
        if path.is_some() || host.is_some() && uri.authority().is_some() {
            let mut parts = std::mem::take(uri).into_parts();
            if let Some(path) = path {
                let query = parts.path_and_query.as_ref().and_then(PathAndQuery::query);
                parts.path_and_query = Some(with_query(path, query)?);
            }
            if let Some((authority, _)) = host
                && parts.authority.is_some()
            {
                parts.authority = Some(authority.clone());
            }
            *uri = Uri::from_parts(parts).map_err(|_| Unfit)?;
        }
        if let Some((authority, value)) = host
            && (uri.authority().is_none() || headers.contains_key(HOST))
        {
            debug_assert_eq!(authority.as_str().as_bytes(), value.as_bytes());
            headers.insert(HOST, value.clone());
        }
        Ok(())
    }
}

fn with_query(mut path: String, query: Option<&str>) -> Result<PathAndQuery, Unfit> {
    if let Some(query) = query {
        path.push('?');
        path.push_str(query);
    }
    PathAndQuery::try_from(path).map_err(|_| Unfit)
}

impl PathChange {
    /// The new path for one without query; `None` where it stays. What is left of the old one is in its normalised form, in
    /// which it was matched.
    ///
    /// # Errors
    /// When it would be too long.
    pub fn apply(&self, path: &str, prefix: Option<&str>) -> Result<Option<String>, Unfit> {
        let path = normalised(path);
        let new = match self {
            Self::Full(full) => Some(full.clone()),
            Self::Prefix(new) => prefix.and_then(|old| replaced(&path, old, new)),
            Self::Regex(regex, template) => match regex.captures(&path) {
                Some(groups) => Some(template.fill(&groups)?),
                None => None,
            },
        };
        match new {
            Some(new) if new.len() > MAX_PATH => Err(Unfit),
            new => Ok(new),
        }
    }
}

/// Gateway API, HTTPPathModifier, ReplacePrefixMatch: slashes at the seam are neither doubled nor lost.
fn replaced(path: &str, old: &str, new: &str) -> Option<String> {
    let rest = path.strip_prefix(old.trim_end_matches('/'))?;
    if !rest.is_empty() && !rest.starts_with('/') {
        return None;
    }
    let new = new.trim_end_matches('/');
    let made = format!("{new}{rest}");
    Some(if made.is_empty() { "/".to_owned() } else { made })
}

impl Template {
    /// From its text: `$0` to `$9` are groups, `$$` a dollar sign. `groups`: how many the expression has, with the whole.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str, groups: usize) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            if c != '$' {
                literal.push(c);
                continue;
            }
            match chars.next().map(|next| (next, next.to_digit(10))) {
                Some(('$', _)) => literal.push('$'),
                Some((_, Some(group))) if (group as usize) < groups => {
                    if !literal.is_empty() {
                        pieces.push(Piece::Text(std::mem::take(&mut literal)));
                    }
                    pieces.push(Piece::Group(group as usize));
                }
                Some((_, Some(group))) => return Err(format!("the expression has no group {group}")),
                _ => return Err("`$` must be followed by the number of a group, or by `$`".to_owned()),
            }
        }
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal));
        }
        Ok(Self(pieces))
    }

    fn fill(&self, groups: &regex::Captures<'_>) -> Result<String, Unfit> {
        let mut out = String::new();
        for piece in &self.0 {
            let text = match piece {
                Piece::Text(text) => text.as_str(),
                Piece::Group(group) => groups.get(*group).map_or("", |found| found.as_str()),
            };
            // Groups may come many times over: bounded before it is written.
            if out.len() + text.len() > MAX_PATH {
                return Err(Unfit);
            }
            out.push_str(text);
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_prefix_is_replaced_as_gateway_api_says() {
        // The table of HTTPPathModifier, and "/" as the prefix.
        for (path, old, new, expected) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo", "/", "/xyz", "/xyz/foo"),
            ("/", "/", "/xyz", "/xyz/"),
            ("//foo/./bar", "/foo", "/xyz", "/xyz/bar"),
        ] {
            let change = PathChange::Prefix(new.into());
            assert_eq!(change.apply(path, Some(old)).unwrap().unwrap(), expected, "{path} {old} {new}");
        }
    }

    #[test]
    fn a_path_is_made_of_the_groups_of_an_expression() {
        let regex = Regex::new("^(?:/(v[0-9])/([^/]+)(/.*)?)$").unwrap();
        let groups = regex.captures_len();
        let template = Template::parse("/$2/$1$3/$$", groups).unwrap();
        let change = PathChange::Regex(regex, template);
        assert_eq!(change.apply("/v1/items/7", None).unwrap().unwrap(), "/items/v1/7/$");
        assert_eq!(change.apply("/v1/items", None).unwrap().unwrap(), "/items/v1/$");
        assert_eq!(change.apply("/other", None).unwrap(), None, "where it does not fit, the path stays");
        assert!(Template::parse("/$4", groups).unwrap_err().contains("no group 4"));
        assert!(Template::parse("/$x", groups).is_err() && Template::parse("/$", groups).is_err());
    }

    #[test]
    fn a_path_that_would_grow_beyond_bounds_is_refused() {
        let change =
            PathChange::Regex(Regex::new("^(?:(.*))$").unwrap(), Template::parse("/$1$1$1", 2).unwrap());
        assert_eq!(change.apply(&format!("/{}", "a".repeat(MAX_PATH / 2)), None), Err(Unfit));
    }

    fn request(uri: &str, host: Option<&'static str>) -> (Uri, HeaderMap) {
        let host = host.map(|host| (HOST, HeaderValue::from_static(host)));
        (uri.parse().unwrap(), host.into_iter().collect())
    }

    #[test]
    fn the_host_is_rewritten_where_the_request_names_it_and_the_query_stays() {
        let rewrite = Rewrite {
            host: Some((Authority::from_static("new:81"), HeaderValue::from_static("new:81"))),
            path: Some(PathChange::Full("/full".into())),
        };
        for (uri, host, to, header) in [
            ("/a?b=c", Some("old"), "/full?b=c", Some("new:81")),
            ("/a", None, "/full", Some("new:81")),
            ("http://old:80/a?b", None, "http://new:81/full?b", None),
            ("http://old/a", Some("old"), "http://new:81/full", Some("new:81")),
        ] {
            let (mut given, mut headers) = request(uri, host);
            rewrite.apply(&mut given, &mut headers, None).unwrap();
            assert_eq!(given.to_string(), to);
            assert_eq!(headers.get(HOST).map(|host| host.to_str().unwrap()), header, "{uri}");
        }
    }

    proptest! {
        #[test]
        fn a_replaced_prefix_leaves_a_path(path in "(/[a-c]{0,2}){1,4}", old in "/[a-c]{0,2}/?", new in "(/[x-z]{1,2}){0,2}/?") {
            if let Some(made) = replaced(&path, &old, &new) {
                prop_assert!(made.starts_with('/'), "{made}");
                prop_assert!(Uri::try_from(made).is_ok());
            }
        }
    }
}
