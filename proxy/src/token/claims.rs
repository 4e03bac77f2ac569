//! What a verified token says: whose it is, when it is good, and its other claims, as policies and headers want them. Pure; it
//! does not know whether the token is genuine.

use http::HeaderValue;
use serde_json::{Map, Value};

use super::{Flaw, json};
use crate::route::ValueMatch;

/// The claims of a token.
#[derive(Clone, Debug, PartialEq)]
pub struct Claims {
    /// `iss`.
    pub issuer: String,
    /// `sub`.
    pub subject: Option<String>,
    /// `exp`, in seconds since 1970.
    pub expires: i64,
    all: Map<String, Value>,
}

impl Claims {
    /// Reads a payload. It must say who issued it and until when it is good: a token for ever can never be taken back.
    ///
    /// # Errors
    /// It is no set of claims.
    pub fn read(payload: &[u8]) -> Result<Self, Flaw> {
        let all = json::object(payload).ok_or(Flaw::Malformed)?;
        let text = |name: &str| match all.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(Flaw::Malformed),
        };
        let issuer = text("iss")?.ok_or(Flaw::UnknownIssuer)?;
        let subject = text("sub")?;
        let expires = seconds(&all, "exp")?.ok_or(Flaw::WithoutExpiry)?;
        Ok(Self { issuer, subject, expires, all })
    }

    /// Whether it is good at a time, in seconds since 1970, give or take the leeway.
    ///
    /// # Errors
    /// RFC 7519 sections 4.1.4 to 4.1.6: it has expired, or is of the future.
    pub fn timely(&self, now: i64, leeway: i64) -> Result<(), Flaw> {
        if now >= self.expires.saturating_add(leeway) {
            return Err(Flaw::Expired);
        }
        for name in ["nbf", "iat"] {
            if seconds(&self.all, name)?.is_some_and(|from| from > now.saturating_add(leeway)) {
                return Err(Flaw::NotYetValid);
            }
        }
        Ok(())
    }

    /// Whether it is meant for one of these; none: for whomever.
    #[must_use]
    pub fn is_for(&self, audiences: &[String]) -> bool {
        let names = |value: &Value| value.as_str().is_some_and(|text| audiences.iter().any(|a| a == text));
        audiences.is_empty()
            || match self.all.get("aud") {
                Some(Value::Array(all)) => all.iter().any(names),
                Some(one) => names(one),
                None => false,
            }
    }

    /// A claim by its name and those within objects.
    fn find(&self, path: &[String]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.all.get(first)?, |value, name| value.as_object()?.get(name))
    }

    /// Each text that a claim says: itself, each entry of a list, each word of `scope` (RFC 8693 section 4.2). Objects and what
    /// lists hold of them say nothing.
    pub fn texts(&self, path: &[String], mut each: impl FnMut(&str)) {
        let mut one = |value: &Value| match value {
            Value::String(text) if *path == ["scope"] => text.split_ascii_whitespace().for_each(&mut each),
            Value::String(text) => each(text),
            Value::Number(_) | Value::Bool(_) => each(&value.to_string()),
            Value::Null | Value::Array(_) | Value::Object(_) => {}
        };
        match self.find(path) {
            Some(Value::Array(all)) => all.iter().for_each(one),
            Some(value) => one(value),
            None => {}
        }
    }

    /// A claim as the value of a header: a list with commas between its entries. `None`: there is none, or what it says could be
    /// taken for something else, such as an entry that has a comma of its own.
    #[must_use]
    pub fn header(&self, path: &[String]) -> Option<HeaderValue> {
        let value = self.find(path)?;
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            Value::Array(all) => {
                let entries: Option<Vec<String>> = all.iter().map(entry).collect();
                entries?.join(",")
            }
            Value::Null | Value::Object(_) => return None,
        };
        let plain = text.trim() == text && !text.contains(char::is_control);
        HeaderValue::from_str(&text)
            .or_else(|_| HeaderValue::from_bytes(text.as_bytes()))
            .ok()
            .filter(|_| plain)
    }
}

fn entry(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(_) | Value::Bool(_) => value.to_string(),
        Value::Null | Value::Array(_) | Value::Object(_) => return None,
    };
    (!text.contains(',')).then_some(text)
}

/// RFC 7519 section 2, NumericDate: seconds, possibly with a fraction.
fn seconds(all: &Map<String, Value>, name: &str) -> Result<Option<i64>, Flaw> {
    match all.get(name) {
        None => Ok(None),
        #[allow(clippy::cast_possible_truncation, reason = "what is beyond is as far away as can be")]
        Some(Value::Number(number)) => {
            let whole = number.as_i64().or_else(|| number.as_f64().map(|n| n.floor() as i64));
            whole.map(Some).ok_or(Flaw::Malformed)
        }
        Some(_) => Err(Flaw::Malformed),
    }
}

/// A condition on a claim.
#[derive(Clone, Debug)]
pub struct ClaimMatch {
    /// Its name, and those within objects.
    pub claim: Vec<String>,
    /// On any of the texts that it says.
    pub value: ValueMatch,
}

impl ClaimMatch {
    /// Whether the claims of a request fit; `None`: it bears no token.
    #[must_use]
    pub fn fits(&self, claims: Option<&Claims>) -> bool {
        if let ValueMatch::Present(wanted) = self.value {
            return claims.is_some_and(|claims| claims.find(&self.claim).is_some()) == wanted;
        }
        let mut fits = false;
        if let Some(claims) = claims {
            claims.texts(&self.claim, |text| fits |= self.value.fits(text));
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    pub(crate) fn claims(value: Value) -> Result<Claims, Flaw> {
        Claims::read(value.to_string().as_bytes())
    }

    fn of(value: Value) -> Claims {
        let mut all = json!({"iss": "i", "exp": 100});
        all.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        claims(all).unwrap()
    }

    #[test]
    fn a_token_says_whose_it_is_and_until_when() {
        for (bad, flaw) in [
            (json!({"exp": 1}), Flaw::UnknownIssuer),
            (json!({"iss": ["i"], "exp": 1}), Flaw::Malformed),
            (json!({"iss": "i"}), Flaw::WithoutExpiry),
            (json!({"iss": "i", "exp": "100"}), Flaw::Malformed),
            (json!({"iss": "i", "exp": null}), Flaw::Malformed),
            (json!({"iss": "i", "exp": 1, "sub": 7}), Flaw::Malformed),
            (json!([]), Flaw::Malformed),
        ] {
            assert_eq!(claims(bad.clone()).unwrap_err(), flaw, "{bad}");
        }
    }

    #[test]
    fn times_hold_with_the_leeway_and_not_beyond() {
        let token = of(json!({"nbf": 50.9, "iat": 40}));
        for (now, leeway, expected) in [
            (99, 0, Ok(())),
            (100, 0, Err(Flaw::Expired)),
            (109, 10, Ok(())),
            (110, 10, Err(Flaw::Expired)),
            (50, 0, Ok(())),
            (49, 0, Err(Flaw::NotYetValid)),
            (40, 10, Ok(())),
            (39, 10, Err(Flaw::NotYetValid)),
        ] {
            assert_eq!(token.timely(now, leeway), expected, "{now} {leeway}");
        }
        assert_eq!(of(json!({"iat": 61})).timely(0, 60), Err(Flaw::NotYetValid));
        assert_eq!(of(json!({"nbf": "1"})).timely(50, 0), Err(Flaw::Malformed));
        assert_eq!(claims(json!({"iss": "i", "exp": 1e300})).unwrap().timely(i64::MAX - 1, 600), Ok(()));
        assert_eq!(claims(json!({"iss": "i", "exp": -1e300})).unwrap().timely(0, 600), Err(Flaw::Expired));
    }

    #[test]
    fn an_audience_is_one_or_a_list() {
        let wanted = ["a".to_owned(), "b".to_owned()];
        for (aud, expected) in [
            (json!({"aud": "a"}), true),
            (json!({"aud": ["x", "b"]}), true),
            (json!({"aud": "ab"}), false),
            (json!({"aud": []}), false),
            (json!({"aud": {"a": "a"}}), false),
            (json!({"aud": [["a"]]}), false),
            (json!({}), false),
        ] {
            assert_eq!(of(aud.clone()).is_for(&wanted), expected, "{aud}");
            assert!(of(aud).is_for(&[]));
        }
    }

    #[test]
    fn a_claim_says_texts_and_makes_a_header_only_where_it_is_clear() {
        let token = of(
            json!({"sub": "u", "groups": ["a", "b", 3, {}], "scope": "read  write", "realm": {"roles": ["x"]},
            "n": 7, "b": true, "o": {}, "z": null, "list": ["a,b"], "many": ["a", 1, false], "line": "a\nb", "name": "é", "space": " a"}),
        );
        let path = |text: &str| text.split('/').map(str::to_owned).collect::<Vec<_>>();
        let texts = |claim: &str| {
            let mut all = Vec::new();
            token.texts(&path(claim), |text| all.push(text.to_owned()));
            all
        };
        assert_eq!(texts("groups"), ["a", "b", "3"]);
        assert_eq!(texts("scope"), ["read", "write"]);
        assert_eq!(
            (texts("realm/roles"), texts("n"), texts("b")),
            (vec!["x".into()], vec!["7".into()], vec!["true".into()])
        );
        for none in ["o", "z", "nothing", "realm/none", "sub/x"] {
            assert!(texts(none).is_empty(), "{none}");
        }
        let header = |claim: &str| token.header(&path(claim));
        assert_eq!(
            (header("sub").unwrap(), header("many").unwrap()),
            ("u".parse().unwrap(), "a,1,false".parse().unwrap())
        );
        assert_eq!(header("name").unwrap().as_bytes(), "é".as_bytes());
        for none in ["o", "z", "list", "groups", "line", "nothing", "space"] {
            assert_eq!(header(none), None, "{none}");
        }
        let fits = |claim: &str, value| ClaimMatch { claim: path(claim), value }.fits(Some(&token));
        assert!(
            fits("scope", ValueMatch::Exact("write".into()))
                && !fits("scope", ValueMatch::Exact("read  write".into()))
        );
        assert!(fits("o", ValueMatch::Present(true)) && fits("nothing", ValueMatch::Present(false)));
        let absent = |value| ClaimMatch { claim: path("sub"), value }.fits(None);
        assert!(absent(ValueMatch::Present(false)) && !absent(ValueMatch::Exact("u".into())));
    }

    proptest! {
        #[test]
        fn no_header_is_made_that_says_more_entries_than_the_claim_has(entries in prop::collection::vec("\\PC{0,6}", 0..4)) {
            let token = of(json!({"groups": entries}));
            if let Some(value) = token.header(&["groups".into()]) {
                let text = String::from_utf8(value.as_bytes().to_vec()).unwrap();
                let said: Vec<&str> = if entries.is_empty() { Vec::new() } else { text.split(',').collect() };
                prop_assert_eq!(said, entries.iter().map(String::as_str).collect::<Vec<_>>());
            }
        }
    }
}
