//! What a rule does besides choosing where requests go. Every name, value and path is checked and compiled here, so that
//! the request path only applies it.

use std::time::Duration;

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderName, HeaderValue, StatusCode};
use weft_api::v1::{self, abort, path_change};

use super::matches::header_name;
use super::{Invalid, Result, list, millis, port_of, regex};
use crate::filter::cors::{Allowed, Cors, Origin};
use crate::filter::direct::Direct;
use crate::filter::fault::{Abort, Fault, MAX_DELAY};
use crate::filter::headers::{HeaderChanges, is_changeable};
use crate::filter::redirect::Redirect;
use crate::filter::rewrite::{MAX_PATH, PathChange, Rewrite, Template};
use crate::filter::{Answer, Filters};

/// Longest body of a direct response: 4096 characters of four bytes.
const MAX_BODY: usize = 16 * 1024;

pub(super) fn filters(message: &v1::Filters) -> Result<Filters> {
    let answer = match (&message.redirect, &message.response_instead) {
        (Some(_), Some(_)) => {
            return Err(Invalid::new("redirect", "a rule answers either with it or with a response"));
        }
        (Some(given), None) => Some(Answer::Redirect(redirect(given).map_err(|e| e.within("redirect"))?)),
        (None, Some(given)) => Some(Answer::Direct(direct(given).map_err(|e| e.within("response"))?)),
        (None, None) => None,
    };
    Ok(Filters {
        request: inside("request", message.request.as_ref(), changes)?,
        response: inside("response", message.response.as_ref(), changes)?,
        rewrite: inside("rewrite", message.rewrite.as_ref(), rewrite)?,
        answer,
        fault: inside("fault", message.fault.as_ref(), fault)?,
        cors: inside("cors", message.cors.as_ref(), cors)?,
    })
}

fn inside<T, U>(field: &str, message: Option<&T>, parse: impl Fn(&T) -> Result<U>) -> Result<Option<U>> {
    message.map(parse).transpose().map_err(|e| e.within(field))
}

fn changes(message: &v1::HeaderChanges) -> Result<HeaderChanges> {
    Ok(HeaderChanges {
        remove: list("remove", &message.remove, |name| changeable("", name))?,
        set: list("set", &message.set, header_line)?,
        add: list("add", &message.add, header_line)?,
    })
}

fn header_line(message: &v1::HeaderLine) -> Result<(HeaderName, HeaderValue)> {
    Ok((changeable("name", &message.name)?, value("value", &message.value)?))
}

fn changeable(field: &str, text: &str) -> Result<HeaderName> {
    let name = header_name(field, text)?;
    if !is_changeable(&name) {
        let problem = format!("`{name}` belongs to the connection, to the message's framing or to Weft");
        return Err(Invalid::new(field, problem));
    }
    Ok(name)
}

fn value(field: &str, text: &str) -> Result<HeaderValue> {
    HeaderValue::from_str(text)
        .map_err(|_| Invalid::new(field, format!("`{}` is not a header's value", text.escape_debug())))
}

fn rewrite(message: &v1::Rewrite) -> Result<Rewrite> {
    let host = match message.host.as_str() {
        "" => None,
        text => {
            let authority: Authority =
                text.parse().map_err(|_| Invalid::new("host", format!("`{text}` is not a host")))?;
            Some((authority, value("host", text)?))
        }
    };
    Ok(Rewrite { host, path: inside("path", message.path.as_ref(), path_change)? })
}

fn path_change(message: &v1::PathChange) -> Result<PathChange> {
    let path = |field: &str, text: &str| {
        let fits = text.len() <= MAX_PATH
            && !text.contains(['?', '#'])
            && text.parse::<http::uri::PathAndQuery>().is_ok();
        if fits { Ok(text.to_owned()) } else { Err(Invalid::new(field, format!("`{text}` is not a path"))) }
    };
    match &message.change {
        Some(path_change::Change::Prefix(prefix)) if prefix.is_empty() => {
            Ok(PathChange::Prefix(String::new()))
        }
        Some(path_change::Change::Prefix(prefix)) => path("prefix", prefix).map(PathChange::Prefix),
        Some(path_change::Change::Full(full)) => path("full", full).map(PathChange::Full),
        Some(path_change::Change::Regex(given)) => {
            let regex = regex("pattern", &given.pattern)?;
            let substitution = path("substitution", &given.substitution)?;
            let template = Template::parse(&substitution, regex.captures_len())
                .map_err(|problem| Invalid::new("substitution", problem))?;
            Ok(PathChange::Regex(regex, template))
        }
        None => Err(Invalid::new("change", "is not given")),
    }
}

fn redirect(message: &v1::Redirect) -> Result<Redirect> {
    let scheme = match message.scheme.as_str() {
        "" => None,
        "http" => Some("http"),
        "https" => Some("https"),
        other => return Err(Invalid::new("scheme", format!("`{other}` is neither http nor https"))),
    };
    let host = match message.host.as_str() {
        "" => None,
        text if text.parse::<Authority>().is_ok_and(|host| host.host() == text) => Some(text.to_owned()),
        text => return Err(Invalid::new("host", format!("`{text}` is not a host"))),
    };
    let port = match message.port {
        0 => None,
        port => Some(port_of(port).map_err(|e| e.within("port"))?),
    };
    let path = inside("path", message.path.as_ref(), path_change)?;
    if matches!(path, Some(PathChange::Regex(..))) {
        return Err(Invalid::new("path", "cannot be a regex"));
    }
    let status = match message.status {
        0 => StatusCode::FOUND,
        known @ (301 | 302 | 303 | 307 | 308) => status("status", known)?,
        other => return Err(Invalid::new("status", format!("{other} is not that of a redirect"))),
    };
    Ok(Redirect { scheme, host, port, path, status })
}

fn status(field: &str, code: u32) -> Result<StatusCode> {
    let known = u16::try_from(code).ok().filter(|code| (200..600).contains(code));
    known
        .and_then(|code| StatusCode::from_u16(code).ok())
        .ok_or_else(|| Invalid::new(field, format!("{code} is not a status that a response can have")))
}

fn direct(message: &v1::DirectResponse) -> Result<Direct> {
    if message.body.len() > MAX_BODY {
        return Err(Invalid::new("body", format!("is longer than {MAX_BODY} bytes")));
    }
    Ok(Direct {
        status: status("status", message.status)?,
        body: Bytes::copy_from_slice(message.body.as_bytes()),
        content_type: value("content_type", &message.content_type)?,
    })
}

fn fault(message: &v1::Fault) -> Result<Fault> {
    let abort = message.abort.as_ref().map(|given| {
        let with = match given.with {
            Some(abort::With::Status(code)) => Abort::Http(status("status", code)?),
            Some(abort::With::GrpcStatus(code @ 1..=16)) => Abort::Grpc(u16::try_from(code).unwrap_or(2)),
            Some(abort::With::GrpcStatus(code)) => {
                return Err(Invalid::new("grpc_status", format!("{code} is not a gRPC status of a failure")));
            }
            None => return Err(Invalid::new("with", "is not given")),
        };
        Ok((with, given.percent))
    });
    let when = message.when.as_ref().map(|when| {
        let wanted = when.value.as_deref().map(|text| value("value", text)).transpose()?;
        Ok((header_name("header", &when.header)?, wanted))
    });
    Ok(Fault {
        delay: message
            .delay
            .map(|given| (millis(given.duration_ms).unwrap_or(Duration::ZERO).min(MAX_DELAY), given.percent)),
        abort: abort.transpose().map_err(|e: Invalid| e.within("abort"))?,
        when: when.transpose().map_err(|e: Invalid| e.within("when"))?,
    })
}

fn cors(message: &v1::Cors) -> Result<Cors> {
    let allowed = |field: &str, names: &[String]| {
        Allowed::new(names).ok_or_else(|| Invalid::new(field, "holds what cannot be in a header"))
    };
    let origins = list("allow_origins", &message.allow_origins, |text| {
        Origin::parse(text).ok_or_else(|| Invalid::new("", format!("`{text}` is not an origin")))
    })?;
    if message.allow_credentials && origins.contains(&Origin::Any) {
        return Err(Invalid::new("allow_credentials", "cannot be given to every origin"));
    }
    Ok(Cors {
        origins,
        methods: allowed("allow_methods", &message.allow_methods)?,
        headers: allowed("allow_headers", &message.allow_headers)?,
        exposed: allowed("expose_headers", &message.expose_headers)?,
        max_age: HeaderValue::from(message.max_age_s.min(86_400)),
        credentials: message.allow_credentials,
    })
}
