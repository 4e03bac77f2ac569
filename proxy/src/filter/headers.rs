//! Header changes that a rule asks for. Pure.

use http::{HeaderMap, HeaderName, HeaderValue};

/// First `remove`, then `set`, then `add`.
#[derive(Debug, Default)]
pub struct HeaderChanges {
    /// Whole headers.
    pub remove: Vec<HeaderName>,
    /// In place of every value that is there.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Beside the values that are there.
    pub add: Vec<(HeaderName, HeaderValue)>,
}

impl HeaderChanges {
    /// Changes a head.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
    }
}

/// Whether a rule may change it: not what belongs to a connection or to a message's framing (RFC 9110 section 7.6.1), not the
/// host, and nothing of Weft's own, in any spelling that an application may take for it.
#[must_use]
pub fn is_changeable(name: &HeaderName) -> bool {
    let name = name.as_str();
    !matches!(
        name,
        "host"
            | "connection"
            | "keep-alive"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "content-length"
            | "expect"
            | "http2-settings"
            | weft_api::names::REQUEST_ID_HEADER
    ) && !["proxy-", "weft-", "weft_"].iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pairs: &[(&'static str, &'static str)]) -> Vec<(HeaderName, HeaderValue)> {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn values_are_removed_then_set_then_added() {
        let changes = HeaderChanges {
            remove: vec![HeaderName::from_static("x-gone")],
            set: lines(&[("x-set", "new"), ("x-fresh", "1")]),
            add: lines(&[("x-add", "more"), ("x-fresh", "2")]),
        };
        let given = [
            ("x-gone", "1"),
            ("x-gone", "2"),
            ("x-set", "a"),
            ("x-set", "b"),
            ("x-add", "one"),
            ("kept", "k"),
        ];
        let mut headers: HeaderMap = lines(&given).into_iter().collect();
        changes.apply(&mut headers);
        let all = |name: &str| headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(all("x-gone"), Vec::<&str>::new());
        assert_eq!(all("x-set"), ["new"]);
        assert_eq!(all("x-add"), ["one", "more"]);
        assert_eq!(all("x-fresh"), ["1", "2"]);
        assert_eq!(all("kept"), ["k"]);
    }

    #[test]
    fn what_belongs_to_the_connection_or_to_weft_cannot_be_changed() {
        for name in [
            "host",
            "te",
            "content-length",
            "proxy-authorization",
            "weft-client-identity",
            "weft_client_identity",
            "x-request-id",
        ] {
            assert!(!is_changeable(&HeaderName::from_static(name)), "{name}");
        }
        for name in ["x-user", "cookie", "cache-control", "weftless", "authorization"] {
            assert!(is_changeable(&HeaderName::from_static(name)), "{name}");
        }
    }
}
