//! What a limit tells requests apart by: a hash over the part of the request that is its key. No allocation. A request
//! that lacks the part falls into one bucket with all others that lack it.

use std::hash::{Hash, Hasher};
use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue};

/// A part of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// Nothing: all requests are counted together.
    All,
    /// The client's SPIFFE id.
    Identity,
    /// The client's address.
    SourceIp,
    /// All values of a header.
    Header(HeaderName),
    /// What stands for the names in a path template.
    Path(Template),
}

/// `/users/{id}`: segments that are compared, and such that stand for any one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Segment>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(Box<[u8]>),
    Any,
}

/// What a request says of itself, as far as keys go.
pub struct Asked<'a> {
    /// Without the query.
    pub path: &'a str,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Proved by mTLS.
    pub identity: Option<&'a HeaderValue>,
    /// The other end of the connection.
    pub client: IpAddr,
}

impl Key {
    /// The key of a request; `None`: all are counted together.
    #[must_use]
    pub fn hash(&self, asked: &Asked<'_>, mut hasher: impl Hasher) -> Option<u64> {
        match self {
            Self::All => return None,
            Self::Identity => asked.identity.map(HeaderValue::as_bytes).hash(&mut hasher),
            Self::SourceIp => asked.client.to_canonical().hash(&mut hasher),
            Self::Header(name) => {
                asked.headers.get_all(name).iter().for_each(|value| value.as_bytes().hash(&mut hasher));
            }
            Self::Path(template) => template.hash(asked.path, &mut hasher),
        }
        Some(hasher.finish())
    }
}

impl Template {
    /// From its text; a sentence when it is none.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let Some(rest) = text.strip_prefix('/') else { return Err("must begin with '/'") };
        let mut segments = Vec::new();
        for segment in rest.split('/') {
            let name = segment.strip_prefix('{').and_then(|s| s.strip_suffix('}'));
            segments.push(match name {
                Some(name) if !name.is_empty() && !name.contains(['{', '}']) => Segment::Any,
                None if !segment.contains(['{', '}']) => {
                    Segment::Literal(decoded(segment).collect::<Vec<_>>().into())
                }
                _ => return Err("may have {name} only as a whole segment"),
            });
        }
        if !segments.contains(&Segment::Any) {
            return Err("has no {name}");
        }
        Ok(Self(segments))
    }

    /// Nothing is added when the path does not fit.
    fn hash(&self, path: &str, hasher: &mut impl Hasher) {
        if !self.fits(path) {
            return;
        }
        for (wanted, segment) in self.0.iter().zip(segments(path)) {
            if *wanted == Segment::Any {
                decoded(segment).for_each(|byte| hasher.write_u8(byte));
                // No byte of a path's segment: "/a/bc" is not "/ab/c".
                hasher.write_u8(b'/');
            }
        }
    }

    fn fits(&self, path: &str) -> bool {
        let mut given = segments(path);
        self.0.iter().all(|wanted| match (wanted, given.next()) {
            (Segment::Literal(wanted), Some(segment)) => decoded(segment).eq(wanted.iter().copied()),
            (Segment::Any, Some(segment)) => !segment.is_empty(),
            (_, None) => false,
        }) && given.next().is_none()
    }
}

fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.strip_prefix('/').unwrap_or(path).split('/')
}

/// The bytes of a segment without percent encoding (RFC 3986 section 2.1): one resource has one bucket, however a client
/// spells it.
fn decoded(segment: &str) -> impl Iterator<Item = u8> {
    let mut rest = segment.as_bytes();
    std::iter::from_fn(move || {
        let hex = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let (byte, after) = match *rest {
            [b'%', high, low, ..] => match (hex(high), hex(low)) {
                (Some(high), Some(low)) => (high << 4 | low, &rest[3..]),
                _ => (b'%', &rest[1..]),
            },
            [byte, ..] => (byte, &rest[1..]),
            [] => return None,
        };
        rest = after;
        Some(byte)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::hash::DefaultHasher;

    fn path(template: &str, path: &str) -> Option<u64> {
        let (headers, key) = (HeaderMap::new(), Key::Path(Template::parse(template).unwrap()));
        key.hash(
            &Asked { path, headers: &headers, identity: None, client: [127, 0, 0, 1].into() },
            DefaultHasher::new(),
        )
    }

    #[test]
    fn a_template_tells_apart_what_stands_for_its_names_and_nothing_else() {
        let key = |text| path("/users/{id}/items/{item}", text);
        assert_eq!(key("/users/7/items/a"), key("/users/%37/items/a"));
        assert_eq!(key("/users/7/items/a"), key("/use%72s/7/items/%61"));
        let different = ["/users/7/items/a", "/users/8/items/a", "/users/7/items/b", "/users/7a/items/"];
        for (i, a) in different.iter().enumerate() {
            for b in &different[i + 1..] {
                assert_ne!(key(a), key(b), "{a} {b}");
            }
        }
        // All that do not fit are counted together.
        for other in ["/", "/users/7/items", "/users//items/a", "/users/7/items/a/", "//users/7/items/a", ""]
        {
            assert_eq!(key(other), key("/elsewhere"), "{other}");
        }
        assert_ne!(path("/{a}/{b}", "/a/bc"), path("/{a}/{b}", "/ab/c"));
    }

    #[test]
    fn what_is_no_template_is_refused() {
        for bad in ["", "users/{id}", "/users", "/users/{}", "/users/{id", "/users/x{id}", "/{a{b}}"] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_other_keys_tell_apart_what_they_say() {
        let mut headers = HeaderMap::new();
        headers.append("x-user", HeaderValue::from_static("a"));
        let (none, mut two, mut joined) = (HeaderMap::new(), headers.clone(), HeaderMap::new());
        two.append("x-user", HeaderValue::from_static("b"));
        joined.append("x-user", HeaderValue::from_static("ab"));
        let (ours, theirs) = (HeaderValue::from_static("spiffe://a"), HeaderValue::from_static("spiffe://b"));
        let asked =
            |headers, identity, last| Asked { path: "/", headers, identity, client: [10, 0, 0, last].into() };
        let hash = |key: &Key, asked: Asked<'_>| key.hash(&asked, DefaultHasher::new());
        assert_eq!(hash(&Key::All, asked(&none, None, 1)), None);
        assert_ne!(
            hash(&Key::Identity, asked(&none, Some(&ours), 1)),
            hash(&Key::Identity, asked(&none, Some(&theirs), 1))
        );
        assert_ne!(
            hash(&Key::Identity, asked(&none, Some(&ours), 1)),
            hash(&Key::Identity, asked(&none, None, 1))
        );
        assert_ne!(hash(&Key::SourceIp, asked(&none, None, 1)), hash(&Key::SourceIp, asked(&none, None, 2)));
        let mapped = Asked { client: "::ffff:10.0.0.1".parse().unwrap(), ..asked(&none, None, 9) };
        assert_eq!(hash(&Key::SourceIp, asked(&none, None, 1)), hash(&Key::SourceIp, mapped));
        let by_user = Key::Header(HeaderName::from_static("x-user"));
        assert_ne!(hash(&by_user, asked(&none, None, 1)), hash(&by_user, asked(&headers, None, 1)));
        assert_ne!(hash(&by_user, asked(&joined, None, 1)), hash(&by_user, asked(&two, None, 1)));
    }

    proptest! {
        #[test]
        fn any_path_is_read_without_panic(text in ".{0,60}") {
            let _ = path("/a/{b}/c", &text);
        }
    }
}
