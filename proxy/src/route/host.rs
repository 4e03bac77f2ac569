//! Conditions on the host that a request names. Pure.

use http::header::HOST;
use http::{HeaderMap, Uri};

/// On the host, without port; upper and lower case are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostMatch {
    /// This one.
    Exact(String),
    /// Whatever ends with this, which begins with a dot: every name below a domain (Gateway API, Hostname).
    Below(String),
}

impl HostMatch {
    /// From a rule's text: `shop.example` or `*.shop.example`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let name = text.strip_prefix("*.").unwrap_or(text);
        let fits = !name.is_empty()
            && !name.starts_with(['.', '-'])
            && !name.ends_with(['.', '-'])
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'));
        let whole = text.to_ascii_lowercase();
        fits.then(|| match whole.strip_prefix('*') {
            Some(below) => Self::Below(below.to_owned()),
            None => Self::Exact(whole),
        })
    }

    /// Whether a host fits.
    #[must_use]
    pub fn fits(&self, host: &str) -> bool {
        match self {
            Self::Exact(whole) => host.eq_ignore_ascii_case(whole),
            Self::Below(suffix) => {
                let (host, suffix) = (host.as_bytes(), suffix.as_bytes());
                host.len() > suffix.len() && host[host.len() - suffix.len()..].eq_ignore_ascii_case(suffix)
            }
        }
    }

    /// A name counts more than a wildcard, then the longer one (Gateway API, HTTPRoute hostnames).
    pub(super) const fn rank(&self) -> (u8, usize) {
        match self {
            Self::Exact(whole) => (2, whole.len()),
            Self::Below(suffix) => (1, suffix.len() + 1),
        }
    }
}

impl std::fmt::Display for HostMatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(whole) => f.write_str(whole),
            Self::Below(suffix) => write!(f, "*{suffix}"),
        }
    }
}

/// The host that a request names, without port and final dot: of its target (absolute form, HTTP/2) before its Host header
/// (RFC 9112 section 3.2.2).
#[must_use]
pub fn of_request<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    let host = match uri.host() {
        Some(host) => host,
        None => without_port(headers.get(HOST)?.to_str().ok()?),
    };
    Some(host.strip_suffix('.').unwrap_or(host))
}

fn without_port(host: &str) -> &str {
    if host.starts_with('[') {
        return host.find(']').map_or(host, |end| &host[..=end]);
    }
    host.split_once(':').map_or(host, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn names_fit_whole_and_wildcards_take_every_name_below() {
        for (rule, host, fits) in [
            ("shop.example", "shop.example", true),
            ("shop.example", "Shop.EXAMPLE", true),
            ("shop.example", "a.shop.example", false),
            ("*.shop.example", "a.shop.example", true),
            ("*.shop.example", "a.b.SHOP.example", true),
            ("*.shop.example", "shop.example", false),
            ("*.shop.example", "myshop.example", false),
            ("*.shop.example", ".shop.example", false),
        ] {
            assert_eq!(HostMatch::parse(rule).unwrap().fits(host), fits, "{rule} {host}");
        }
        for bad in ["", "*", "*.", "a.*.b", "-a", "a b", "a:80", "a/"] {
            assert_eq!(HostMatch::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_host_is_that_of_the_target_or_of_the_header_without_port() {
        for (uri, header, host) in [
            ("/", Some("back:8080"), Some("back")),
            ("/", Some("back.shop."), Some("back.shop")),
            ("/", Some("[::1]:80"), Some("[::1]")),
            ("http://user@there:81/", Some("here"), Some("there")),
            ("/", None, None),
        ] {
            let headers = header.map(|h| (HOST, HeaderValue::from_static(h))).into_iter().collect();
            assert_eq!(of_request(&uri.parse().unwrap(), &headers), host, "{uri} {header:?}");
        }
    }
}
