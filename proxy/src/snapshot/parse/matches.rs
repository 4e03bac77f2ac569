//! The conditions of a rule. In routes, those on the caller are judged here, once: the caller is this proxy's own workload.

use http::{HeaderName, Method};
use weft_api::{Identity, v1};

use super::{Invalid, Result, identity, list, regex, required};
use crate::path::normalised;
use crate::route::host::HostMatch;
use crate::route::query::QueryMatch;
use crate::route::{HeaderMatch, PathMatch, RequestMatch, SourceMatch};

/// The matches that can ever hold for requests of the own workload. `None`: there were some, and none of them can.
pub(super) fn matches(messages: &[v1::Match], own: Option<&Identity>) -> Result<Option<Vec<RequestMatch>>> {
    let parsed = list("matches", messages, request_match)?;
    let mut kept = Vec::new();
    for (i, mut matching) in parsed.into_iter().enumerate() {
        let Some(source) = matching.source.take() else {
            kept.push(matching);
            continue;
        };
        let unknown = || Invalid::new("", "cannot be judged, because this proxy has no identity");
        let own = own.ok_or_else(|| unknown().within(&format!("matches[{i}].source")))?;
        if source.fits(own, false) {
            kept.push(matching);
        }
    }
    Ok((messages.is_empty() || !kept.is_empty()).then_some(kept))
}

fn source(message: &v1::SourceMatch) -> Result<Box<SourceMatch>> {
    let identities = list("identities", &message.identities, |text| identity("", text))?;
    Ok(Box::new(SourceMatch { identities, namespaces: message.namespaces.clone() }))
}

/// With its condition on the caller.
pub(super) fn request_match(message: &v1::Match) -> Result<RequestMatch> {
    let path = match &message.path {
        None => None,
        Some(v1::r#match::Path::PathExact(whole)) => Some(PathMatch::Exact(normalised(whole).into_owned())),
        Some(v1::r#match::Path::PathPrefix(prefix)) => {
            Some(PathMatch::Prefix(normalised(prefix).into_owned()))
        }
        Some(v1::r#match::Path::PathRegex(text)) => Some(PathMatch::Regex(regex("path_regex", text)?)),
    };
    let method = match message.method.as_str() {
        "" => None,
        text => Some(
            Method::from_bytes(text.as_bytes())
                .map_err(|_| Invalid::new("method", format!("`{text}` is not an HTTP method")))?,
        ),
    };
    Ok(RequestMatch {
        path,
        method,
        headers: list("headers", &message.headers, header_match)?,
        query: list("query", &message.query, query_match)?,
        hosts: list("hosts", &message.hosts, |text| {
            HostMatch::parse(text).ok_or_else(|| Invalid::new("", format!("`{text}` is not a host")))
        })?,
        source: message.source.as_ref().map(source).transpose().map_err(|e| e.within("source"))?,
    })
}

pub(super) fn header_name(field: &str, text: &str) -> Result<HeaderName> {
    HeaderName::from_bytes(text.as_bytes())
        .map_err(|_| Invalid::new(field, format!("`{text}` is not the name of a header")))
}

/// What a value is to be, of a message that has the four forms in an enum of its own.
macro_rules! value_match {
    ($message:ident, $value:expr) => {{
        use weft_api::v1::$message::Value;
        use $crate::route::ValueMatch;
        use $crate::snapshot::parse::{Invalid, regex};
        match $value {
            Some(Value::Exact(whole)) => ValueMatch::Exact(whole.clone()),
            Some(Value::Prefix(prefix)) => ValueMatch::Prefix(prefix.clone()),
            Some(Value::Regex(text)) => ValueMatch::Regex(regex("regex", text)?),
            Some(Value::Present(wanted)) => ValueMatch::Present(*wanted),
            None => return Err(Invalid::new("value", "is not given")),
        }
    }};
}
pub(super) use value_match;

pub(super) fn header_match(message: &v1::HeaderMatch) -> Result<HeaderMatch> {
    let value = value_match!(header_match, &message.value);
    Ok(HeaderMatch { name: header_name("name", &message.name)?, value })
}

fn query_match(message: &v1::QueryMatch) -> Result<QueryMatch> {
    let value = value_match!(query_match, &message.value);
    Ok(QueryMatch { name: required("name", &message.name)?.to_owned(), value })
}
