//! Where a redirect sends the client. Pure.

use http::uri::Authority;
use http::{HeaderValue, StatusCode, Uri};

use super::rewrite::{PathChange, Unfit};

/// What is not given is kept of the request.
#[derive(Debug)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<&'static str>,
    /// A name without port.
    pub host: Option<String>,
    /// Without: that of `scheme` where given, otherwise the request's.
    pub port: Option<u16>,
    /// The query is always kept.
    pub path: Option<PathChange>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

impl Redirect {
    /// The `location` for a request. A request that names no host gets a relative one, unless the rule names the host.
    /// Gateway API, HTTPRequestRedirectFilter: the port that goes without saying is left out.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn location(
        &self,
        uri: &Uri,
        authority: Option<&Authority>,
        prefix: Option<&str>,
    ) -> Result<HeaderValue, Unfit> {
        let path = match &self.path {
            Some(change) => change.apply(uri.path(), prefix)?,
            None => None,
        };
        let mut location = String::new();
        if let Some(host) = self.host.as_deref().or(authority.map(Authority::host)) {
            let scheme = self.scheme.unwrap_or("http");
            let own = if scheme == "https" { 443 } else { 80 };
            let kept = || authority.and_then(Authority::port_u16).filter(|_| self.scheme.is_none());
            location = format!("{scheme}://{host}");
            if let Some(port) = self.port.or_else(kept).filter(|port| *port != own) {
                location.push_str(&format!(":{port}"));
            }
        }
        location.push_str(path.as_deref().unwrap_or_else(|| uri.path()));
        if let Some(query) = uri.query() {
            location.push('?');
            location.push_str(query);
        }
        HeaderValue::try_from(location).map_err(|_| Unfit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirect() -> Redirect {
        Redirect { scheme: None, host: None, port: None, path: None, status: StatusCode::FOUND }
    }

    #[test]
    fn what_is_not_given_is_kept_of_the_request() {
        let full = || Some(PathChange::Full("/new".into()));
        let prefix = || Some(PathChange::Prefix("/new".into()));
        for (rule, authority, uri, expected) in [
            (
                Redirect { scheme: Some("https"), ..redirect() },
                Some("shop:8080"),
                "/a?b=c",
                "https://shop/a?b=c",
            ),
            (
                Redirect { scheme: Some("https"), port: Some(443), ..redirect() },
                Some("shop"),
                "/",
                "https://shop/",
            ),
            (
                Redirect { scheme: Some("https"), port: Some(80), ..redirect() },
                Some("shop"),
                "/",
                "https://shop:80/",
            ),
            (
                Redirect { host: Some("other".into()), ..redirect() },
                Some("shop:8080"),
                "/a",
                "http://other:8080/a",
            ),
            (Redirect { port: Some(80), ..redirect() }, Some("shop:8080"), "/a", "http://shop/a"),
            (Redirect { path: full(), ..redirect() }, Some("shop"), "/old?q", "http://shop/new?q"),
            (Redirect { path: prefix(), ..redirect() }, Some("shop"), "/old/x", "http://shop/new/x"),
            (Redirect { path: full(), ..redirect() }, None, "/old", "/new"),
            (Redirect { path: full(), ..redirect() }, Some("[::1]:8080"), "/old", "http://[::1]:8080/new"),
        ] {
            let authority: Option<Authority> = authority.map(|text| text.parse().unwrap());
            let location = rule.location(&uri.parse().unwrap(), authority.as_ref(), Some("/old")).unwrap();
            assert_eq!(location, expected, "{rule:?}");
        }
    }
}
