//! What a request is hashed by, and the hash: the same in every proxy and version, so that all callers agree on where a
//! key lives. Pure; it chooses no endpoint.
//! Source: FNV-1a (Fowler, Noll, Vo) reads the bytes, the finalizer of SplitMix64 (Steele et al., 2014) spreads them.

use std::hash::Hasher as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use fnv::FnvHasher;
use http::header::{COOKIE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

/// What RingHash and Maglev look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashOn {
    /// The value of a header; of several, all in their order.
    Header(HeaderName),
    /// The value of a cookie, issued when the request has none.
    Cookie {
        /// Its name.
        name: Box<str>,
        /// How long the client keeps it; `None`: as long as it runs.
        ttl: Option<Duration>,
    },
    /// The address that the connection came from, without its port.
    SourceIp,
    /// The value of a parameter of the query, as it is written there.
    Query(Box<str>),
}

/// The key of a request; `None` when it has not what is asked for.
pub(crate) fn key(on: &HashOn, uri: &Uri, headers: &HeaderMap, client: IpAddr) -> Option<u64> {
    match on {
        HashOn::Header(name) => header(name, uri, headers),
        HashOn::Cookie { name, .. } => cookie(name, headers).map(of_bytes),
        HashOn::SourceIp => Some(of_ip(client)),
        HashOn::Query(name) => query(name, uri.query()?).map(|value| of_bytes(value.as_bytes())),
    }
}

/// The key of an opaque connection: there is nothing in it but where it comes from.
pub(crate) fn key_of_connection(on: &HashOn, client: IpAddr) -> Option<u64> {
    (*on == HashOn::SourceIp).then(|| of_ip(client))
}

fn header(name: &HeaderName, uri: &Uri, headers: &HeaderMap) -> Option<u64> {
    let mut hasher = FnvHasher::default();
    let mut any = false;
    for value in headers.get_all(name) {
        any = true;
        hasher.write(value.as_bytes());
        hasher.write_u8(0);
    }
    if any {
        return Some(mix(hasher.finish()));
    }
    // In HTTP/2 the host is no header. The same bytes, so that both versions agree.
    let authority = uri.authority().filter(|_| *name == HOST)?;
    hasher.write(authority.as_str().as_bytes());
    hasher.write_u8(0);
    Some(mix(hasher.finish()))
}

/// The value of a cookie of the request; an empty one is none.
fn cookie<'a>(name: &str, headers: &'a HeaderMap) -> Option<&'a [u8]> {
    let pairs = headers.get_all(COOKIE).iter().flat_map(|line| line.as_bytes().split(|b| *b == b';'));
    pairs
        .filter_map(|pair| pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="))
        .find(|value| !value.is_empty())
}

fn query<'a>(name: &str, query: &'a str) -> Option<&'a str> {
    query.split('&').find_map(|pair| match pair.split_once('=') {
        Some((given, value)) => (given == name).then_some(value),
        None => (pair == name).then_some(""),
    })
}

/// A new cookie: the key that its value will have in the next request, and the `Set-Cookie` that brings it there.
/// Source of the attributes: RFC 6265 section 4.1.2.
pub(crate) fn issue(name: &str, ttl: Option<Duration>, value: u128) -> (u64, Option<HeaderValue>) {
    let value = format!("{value:032x}");
    let key = of_bytes(value.as_bytes());
    let age = ttl.map(|ttl| format!("; Max-Age={}", ttl.as_secs().max(1))).unwrap_or_default();
    (key, HeaderValue::try_from(format!("{name}={value}{age}; Path=/; HttpOnly")).ok())
}

fn of_bytes(bytes: &[u8]) -> u64 {
    let mut hasher = FnvHasher::default();
    hasher.write(bytes);
    mix(hasher.finish())
}

fn of_ip(ip: IpAddr) -> u64 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => of_bytes(&ip.octets()),
        IpAddr::V6(ip) => of_bytes(&ip.octets()),
    }
}

/// Of an endpoint.
pub(super) fn of_endpoint(addr: SocketAddr) -> u64 {
    mix(of_ip(addr.ip()) ^ u64::from(addr.port()))
}

/// One more hash made of two.
pub(super) const fn with(hash: u64, more: u64) -> u64 {
    mix(hash ^ mix(more))
}

/// Every bit of the input moves half of the output's.
pub(super) const fn mix(hash: u64) -> u64 {
    let mut z = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A hash as a number from 0 to below 1.
#[allow(clippy::cast_precision_loss)]
pub(super) fn unit(hash: u64) -> f32 {
    // 24 bits are what an f32 holds exactly.
    (hash >> 40) as f32 / 16_777_216.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    fn of(on: &HashOn, uri: &'static str, lines: &[(&'static str, &'static str)]) -> Option<u64> {
        key(on, &Uri::from_static(uri), &headers(lines), CLIENT)
    }

    #[test]
    fn the_hash_is_the_same_in_every_version() {
        // Not to be changed: proxies of different versions would send the same key to different endpoints.
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(of_bytes(b"weft"), mix(0x3d8b_12f6_19f6_348b));
    }

    #[test]
    fn a_header_counts_with_all_its_values_in_order() {
        let on = HashOn::Header(HeaderName::from_static("x-user"));
        assert_eq!(of(&on, "/", &[]), None);
        let one = of(&on, "/", &[("x-user", "a")]);
        assert!(one.is_some());
        assert_eq!(of(&on, "/other?x=1", &[("x-user", "a"), ("y", "b")]), one);
        assert_ne!(of(&on, "/", &[("x-user", "a"), ("x-user", "b")]), one);
        assert_ne!(of(&on, "/", &[("x-user", "a"), ("x-user", "b")]), of(&on, "/", &[("x-user", "ab")]),);
    }

    #[test]
    fn the_host_is_the_same_key_in_both_versions_of_http() {
        let on = HashOn::Header(HOST);
        assert_eq!(of(&on, "http://back/", &[]), of(&on, "/", &[("host", "back")]));
        assert_eq!(of(&HashOn::Header(HeaderName::from_static("x")), "http://back/", &[]), None);
    }

    #[test]
    fn a_cookie_is_found_among_others_by_its_whole_name() {
        let on = HashOn::Cookie { name: "id".into(), ttl: None };
        let wanted = Some(of_bytes(b"7"));
        assert_eq!(of(&on, "/", &[("cookie", "a=1; id=7; b=2")]), wanted);
        assert_eq!(of(&on, "/", &[("cookie", "a=1"), ("cookie", "id=7")]), wanted);
        assert_eq!(of(&on, "/", &[("cookie", "id=; id=7")]), wanted);
        for none in ["", "xid=7", "idx=7", "id", "id=", "a=id=7"] {
            assert_eq!(of(&on, "/", &[("cookie", none)]), None, "{none}");
        }
    }

    #[test]
    fn a_parameter_of_the_query_is_found_by_its_whole_name() {
        let on = HashOn::Query("user".into());
        assert_eq!(of(&on, "/a?x=1&user=7", &[]), Some(of_bytes(b"7")));
        assert_eq!(of(&on, "/a?user", &[]), Some(of_bytes(b"")));
        for none in ["/a", "/a?", "/a?xuser=7", "/a?users=7", "/user=7"] {
            assert_eq!(of(&on, none, &[]), None, "{none}");
        }
    }

    #[test]
    fn an_issued_cookie_has_the_key_that_it_brings_back() {
        let (key, set) = issue("id", Some(Duration::from_secs(90)), 5);
        let set = set.unwrap();
        let text = set.to_str().unwrap();
        assert_eq!(text, "id=00000000000000000000000000000005; Max-Age=90; Path=/; HttpOnly");
        let (pair, _) = text.split_once(';').unwrap();
        let mut back = HeaderMap::new();
        back.insert(COOKIE, HeaderValue::from_str(pair).unwrap());
        let on = HashOn::Cookie { name: "id".into(), ttl: None };
        assert_eq!(super::key(&on, &Uri::from_static("/"), &back, CLIENT), Some(key));
        assert!(!issue("id", None, 5).1.unwrap().to_str().unwrap().contains("Max-Age"));
    }

    #[test]
    fn a_source_is_its_address_and_not_its_port_or_its_way_of_writing() {
        assert_eq!(of_ip("::ffff:10.0.0.1".parse().unwrap()), of_ip("10.0.0.1".parse().unwrap()));
        assert_ne!(of_ip("10.0.0.1".parse().unwrap()), of_ip("10.0.0.2".parse().unwrap()));
        assert_eq!(key_of_connection(&HashOn::Header(HOST), CLIENT), None);
        assert_eq!(key_of_connection(&HashOn::SourceIp, CLIENT), of(&HashOn::SourceIp, "/", &[]));
    }

    proptest! {
        #[test]
        fn no_request_makes_it_panic(cookies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..4), text in "[!-~]{0,40}") {
            let mut headers = HeaderMap::new();
            for value in cookies.iter().filter_map(|bytes| HeaderValue::from_bytes(bytes).ok()) {
                headers.append(COOKIE, value);
            }
            let uri = format!("/?{text}").parse().unwrap_or_default();
            for on in [HashOn::Cookie { name: "a".into(), ttl: None }, HashOn::Query("a".into()), HashOn::Header(COOKIE)] {
                let _ = super::key(&on, &uri, &headers, CLIENT);
            }
        }
    }
}
