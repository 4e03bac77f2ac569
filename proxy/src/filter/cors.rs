//! Cross-origin resource sharing: which pages of other origins a browser lets call, and read the answer. Pure.
//! Source: Fetch standard (fetch.spec.whatwg.org), "HTTP CORS protocol", sections on requests, responses, and "CORS protocol
//! and HTTP caches".

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method};

const ANY: HeaderValue = HeaderValue::from_static("*");
const TRUE: HeaderValue = HeaderValue::from_static("true");
const BY_ORIGIN: HeaderValue = HeaderValue::from_static("origin");

/// Of one rule.
#[derive(Debug)]
pub struct Cors {
    /// Whose pages may call.
    pub origins: Vec<Origin>,
    /// Methods besides GET, HEAD and POST.
    pub methods: Allowed,
    /// Request headers besides the safelisted ones.
    pub headers: Allowed,
    /// Response headers that pages may read.
    pub exposed: Allowed,
    /// Seconds that a preflight's answer may be remembered.
    pub max_age: HeaderValue,
    /// With cookies and HTTP authentication. Never together with [`Origin::Any`].
    pub credentials: bool,
}

/// Origins that are allowed.
#[derive(Debug, PartialEq, Eq)]
pub enum Origin {
    /// All of them.
    Any,
    /// This one.
    One(String),
    /// What begins with the scheme and ends with the rest of host and port: `https://`, `.shop.example:8080`.
    Below(String, String),
}

/// Names in a response.
#[derive(Debug, PartialEq, Eq)]
pub enum Allowed {
    /// None are added.
    None,
    /// These, as the header's value.
    List(HeaderValue),
    /// All of them.
    Any,
}

/// What a request's origin is to the rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No page of a browser asks.
    NoOrigin,
    /// Allowed, with what to say of it.
    Granted(HeaderValue),
    /// Not allowed.
    Refused,
}

/// A request that is to be answered without asking the application.
#[derive(Debug)]
pub enum Preflight {
    /// With these headers, as 204.
    Granted(HeaderMap),
    /// The origin is not allowed.
    Refused,
}

impl Cors {
    /// What the request's origin is to the rule.
    #[must_use]
    pub fn standing(&self, headers: &HeaderMap) -> Standing {
        let Some(origin) = headers.get(ORIGIN) else { return Standing::NoOrigin };
        if self.is_open() {
            return Standing::Granted(ANY);
        }
        let allowed = origin.to_str().is_ok_and(|text| self.origins.iter().any(|known| known.fits(text)));
        if allowed { Standing::Granted(origin.clone()) } else { Standing::Refused }
    }

    /// The answer to a preflight: an OPTIONS request with both an origin and the method that is to come.
    #[must_use]
    pub fn preflight(&self, method: &Method, headers: &HeaderMap, standing: &Standing) -> Option<Preflight> {
        let wanted = headers.get(ACCESS_CONTROL_REQUEST_METHOD)?;
        if *method != Method::OPTIONS {
            return None;
        }
        let origin = match standing {
            Standing::NoOrigin => return None,
            Standing::Refused => return Some(Preflight::Refused),
            Standing::Granted(origin) => origin,
        };
        let mut answer = HeaderMap::new();
        self.grant(origin, &mut answer);
        if let Some(methods) = self.methods.value(self.credentials, Some(wanted)) {
            answer.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
        }
        if let Some(names) = self.headers.value(self.credentials, headers.get(ACCESS_CONTROL_REQUEST_HEADERS))
        {
            answer.insert(ACCESS_CONTROL_ALLOW_HEADERS, names);
        }
        answer.insert(ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        Some(Preflight::Granted(answer))
    }

    /// Says on a response what the page may do with it, in place of what the application says.
    pub fn mark(&self, standing: &Standing, response: &mut HeaderMap) {
        for name in
            [ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_EXPOSE_HEADERS]
        {
            response.remove(name);
        }
        match standing {
            Standing::Granted(origin) => {
                self.grant(origin, response);
                if let Some(exposed) = self.exposed.value(self.credentials, None) {
                    response.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
                }
            }
            // The same to everybody, so that caches need not tell requests apart.
            Standing::NoOrigin if self.is_open() => {
                response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
            }
            Standing::NoOrigin | Standing::Refused => {
                response.append(VARY, BY_ORIGIN);
            }
        }
    }

    fn grant(&self, origin: &HeaderValue, response: &mut HeaderMap) {
        response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if self.credentials {
            response.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        }
        if !self.is_open() {
            response.append(VARY, BY_ORIGIN);
        }
    }

    /// Whether the answer is the same for every origin.
    fn is_open(&self) -> bool {
        !self.credentials && self.origins.contains(&Origin::Any)
    }
}

impl Origin {
    /// From the rule's text, which is in lower case as browsers write origins.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::Any);
        }
        let (scheme, host) = text.split_once("://")?;
        let plain = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.:_[]".contains(&b))
        };
        let name = host.strip_prefix("*.").unwrap_or(host);
        if !plain(scheme) || !plain(name) {
            return None;
        }
        Some(match host.strip_prefix('*') {
            Some(below) => Self::Below(format!("{scheme}://"), below.to_owned()),
            None => Self::One(text.to_owned()),
        })
    }

    fn fits(&self, origin: &str) -> bool {
        match self {
            Self::Any => true,
            Self::One(whole) => origin == whole,
            Self::Below(scheme, rest) => origin
                .strip_prefix(scheme.as_str())
                .and_then(|host| host.strip_suffix(rest.as_str()))
                // An origin has neither path nor user, so what is left can only be labels; anything else is no origin.
                .is_some_and(|labels| {
                    !labels.is_empty()
                        && labels
                            .bytes()
                            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
                }),
        }
    }
}

impl Allowed {
    /// From the rule's list.
    #[must_use]
    pub fn new(names: &[String]) -> Option<Self> {
        if names.is_empty() {
            return Some(Self::None);
        }
        if names.iter().any(|name| name == "*") {
            return Some(Self::Any);
        }
        HeaderValue::try_from(names.join(", ")).ok().map(Self::List)
    }

    /// With credentials `*` is but a name: then what is asked for is repeated.
    fn value(&self, credentials: bool, asked: Option<&HeaderValue>) -> Option<HeaderValue> {
        match self {
            Self::None => None,
            Self::List(names) => Some(names.clone()),
            Self::Any if credentials => asked.cloned(),
            Self::Any => Some(ANY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderName;
    use proptest::prelude::*;

    fn cors(origins: &[&str], credentials: bool) -> Cors {
        let list = |names: &[&str]| {
            Allowed::new(&names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap()
        };
        Cors {
            origins: origins.iter().map(|text| Origin::parse(text).unwrap()).collect(),
            methods: list(&["PUT", "DELETE"]),
            headers: list(&["x-one", "x-two"]),
            exposed: list(&["x-seen"]),
            max_age: HeaderValue::from_static("600"),
            credentials,
        }
    }

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn preflight(cors: &Cors, request: &HeaderMap) -> Option<Preflight> {
        cors.preflight(&Method::OPTIONS, request, &cors.standing(request))
    }

    #[test]
    fn origins_fit_whole_or_below_a_host() {
        for (rule, origin, fits) in [
            ("https://shop.example", "https://shop.example", true),
            ("https://shop.example", "http://shop.example", false),
            ("https://shop.example", "https://shop.example:8443", false),
            ("https://shop.example", "https://shop.example.evil", false),
            ("https://*.shop.example", "https://a.shop.example", true),
            ("https://*.shop.example", "https://a.b.shop.example", true),
            ("https://*.shop.example", "https://shop.example", false),
            ("https://*.shop.example", "https://evilshop.example", false),
            ("https://*.shop.example", "https://evil.example/.shop.example", false),
            ("https://*.shop.example", "https://a.shop.example:8443", false),
            ("https://*.shop.example:8443", "https://a.shop.example:8443", true),
            ("http://localhost:3000", "http://localhost:3000", true),
            ("https://shop.example", "null", false),
            ("*", "null", true),
        ] {
            assert_eq!(Origin::parse(rule).unwrap().fits(origin), fits, "{rule} {origin}");
        }
        for bad in [
            "shop.example",
            "https://",
            "https://shop.example/path",
            "https://*",
            "https://a.*.b",
            "https://Shop",
        ] {
            assert_eq!(Origin::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_preflight_is_answered_with_what_is_allowed() {
        let request =
            headers(&[("origin", "https://shop.example"), ("access-control-request-method", "PUT")]);
        let Some(Preflight::Granted(answer)) = preflight(&cors(&["https://shop.example"], false), &request)
        else {
            panic!("no answer")
        };
        let wanted = headers(&[
            ("access-control-allow-origin", "https://shop.example"),
            ("vary", "origin"),
            ("access-control-allow-methods", "PUT, DELETE"),
            ("access-control-allow-headers", "x-one, x-two"),
            ("access-control-max-age", "600"),
        ]);
        assert_eq!(answer, wanted);
    }

    #[test]
    fn what_is_no_preflight_goes_on_and_a_foreign_one_is_refused() {
        let cors = cors(&["https://shop.example"], false);
        let plain = headers(&[("origin", "https://shop.example")]);
        assert!(preflight(&cors, &plain).is_none(), "an OPTIONS request without the method to come");
        let both = headers(&[("origin", "https://shop.example"), ("access-control-request-method", "PUT")]);
        assert!(cors.preflight(&Method::GET, &both, &cors.standing(&both)).is_none());
        let nobody = headers(&[("access-control-request-method", "PUT")]);
        assert!(preflight(&cors, &nobody).is_none());
        let foreign =
            headers(&[("origin", "https://evil.example"), ("access-control-request-method", "PUT")]);
        assert!(matches!(preflight(&cors, &foreign), Some(Preflight::Refused)));
    }

    #[test]
    fn a_star_is_spelled_out_when_there_are_credentials() {
        let rule = Cors {
            methods: Allowed::Any,
            headers: Allowed::Any,
            exposed: Allowed::Any,
            ..cors(&["https://a.example"], true)
        };
        let request = headers(&[
            ("origin", "https://a.example"),
            ("access-control-request-method", "PATCH"),
            ("access-control-request-headers", "authorization,x-a"),
        ]);
        let Some(Preflight::Granted(answer)) = preflight(&rule, &request) else { panic!("no answer") };
        assert_eq!(answer["access-control-allow-methods"], "PATCH");
        assert_eq!(answer["access-control-allow-headers"], "authorization,x-a");
        assert_eq!(answer["access-control-allow-credentials"], "true");
        let open = Cors { credentials: false, ..rule };
        let Some(Preflight::Granted(answer)) = preflight(&open, &request) else { panic!("no answer") };
        assert_eq!(
            (&answer["access-control-allow-methods"], &answer["access-control-allow-headers"]),
            (&ANY, &ANY)
        );
    }

    #[test]
    fn a_response_says_what_the_rule_says_and_not_what_the_application_says() {
        let said = [
            ("access-control-allow-origin", "https://evil.example"),
            ("access-control-allow-credentials", "true"),
        ];
        let rule = cors(&["https://shop.example"], false);
        let mut response = headers(&said);
        rule.mark(&rule.standing(&headers(&[("origin", "https://shop.example")])), &mut response);
        let wanted = headers(&[
            ("access-control-allow-origin", "https://shop.example"),
            ("vary", "origin"),
            ("access-control-expose-headers", "x-seen"),
        ]);
        assert_eq!(response, wanted);
        for request in [headers(&[("origin", "https://evil.example")]), headers(&[])] {
            let mut response = headers(&said);
            rule.mark(&rule.standing(&request), &mut response);
            assert_eq!(response, headers(&[("vary", "origin")]), "caches must tell origins apart");
        }
    }

    #[test]
    fn an_open_service_says_the_same_to_everybody() {
        let rule = cors(&["*"], false);
        for request in [headers(&[("origin", "https://any.example")]), headers(&[])] {
            let mut response = HeaderMap::new();
            rule.mark(&rule.standing(&request), &mut response);
            assert_eq!(response["access-control-allow-origin"], "*");
            assert!(!response.contains_key("vary"));
        }
    }

    proptest! {
        #[test]
        fn nothing_but_hosts_below_gets_through_a_wildcard(origin in "https://[a-z./@:#?-]{0,12}\\.shop\\.example") {
            let rule = Origin::parse("https://*.shop.example").unwrap();
            if rule.fits(&origin) {
                let uri: http::Uri = origin.parse().unwrap();
                prop_assert!(uri.host().is_some_and(|host| host.ends_with(".shop.example")), "{origin}");
            }
        }
    }
}
