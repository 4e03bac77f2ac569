//! What a proxy has to do to the head of a message: remove what concerns one connection only, keep what concerns the
//! whole way. Pure functions on heads.
//! Source: RFC 9110 sections 7.6.1 (Connection), 7.8 (Upgrade), 10.1.4 (TE); RFC 9112 sections 3.2, 6.1.

use std::net::SocketAddr;

use http::header::{
    CONNECTION, EXPECT, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};
use rand::RngCore;
use weft_api::{Identity, names};

/// `keep-alive` and `proxy-connection` are of no standard, and widely used.
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static(names::REQUEST_ID_HEADER);
const IDENTITY: HeaderName = HeaderName::from_static(names::IDENTITY_HEADER);
const REASON: HeaderName = HeaderName::from_static(names::REASON_HEADER);
/// Of one connection, beside what its `Connection` lists.
static HOP_BY_HOP: [HeaderName; 8] = [
    KEEP_ALIVE,
    PROXY_CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    HTTP2_SETTINGS,
];
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// Mark on a request whose head had a Content-Length beside its Transfer-Encoding: hyper removes the former.
#[derive(Clone, Copy, Debug)]
pub struct BothLengths;

/// Why a request is refused for its form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// CONNECT asks for a tunnel; this is no such proxy.
    #[error("CONNECT is not served")]
    Connect,
    /// RFC 9112 section 3.2: exactly one, and RFC 9110 section 7.2: a host. RFC 9113 section 8.3.1: the same in both places.
    #[error("a request needs exactly one Host, a name or address with or without a port")]
    Host,
    /// RFC 9112 section 3.2: the authority form is CONNECT's, `*` is of OPTIONS.
    #[error("the target is neither a path nor a whole URI")]
    Target,
    /// RFC 9112 section 6.1: a sign of request smuggling.
    #[error("both Transfer-Encoding and Content-Length")]
    Lengths,
    /// RFC 9112 section 6.1: no other coding could be passed on.
    #[error("a Transfer-Encoding other than chunked, or more than one")]
    Encoding,
}

/// Refuses what hyper lets through but must not reach an application.
///
/// # Errors
/// What is wrong.
pub fn check<B>(request: &Request<B>) -> Result<(), Malformed> {
    let (uri, headers, http2) = (request.uri(), request.headers(), request.version() == Version::HTTP_2);
    if request.method() == Method::CONNECT {
        return Err(Malformed::Connect);
    }
    let asterisk = uri.path() == "*" && request.method() == Method::OPTIONS;
    let authority = uri.authority().map(Authority::as_str);
    if authority.is_some() && uri.scheme().is_none() || !asterisk && !uri.path().starts_with('/') {
        return Err(Malformed::Target);
    }
    let mut hosts = headers.get_all(HOST).iter().map(HeaderValue::as_bytes);
    match (hosts.next(), authority) {
        (Some(host), _) if !is_host(host) => return Err(Malformed::Host),
        (Some(host), Some(authority)) if http2 && !host.eq_ignore_ascii_case(authority.as_bytes()) => {
            return Err(Malformed::Host);
        }
        (_, Some(authority)) if http2 && !is_host(authority.as_bytes()) => return Err(Malformed::Host),
        (None, None) if request.version() == Version::HTTP_11 => return Err(Malformed::Host),
        _ if hosts.next().is_some() => return Err(Malformed::Host),
        _ => {}
    }
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(encoding) = encodings.next() {
        if request.extensions().get::<BothLengths>().is_some() {
            return Err(Malformed::Lengths);
        }
        let chunked = encoding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
        if !chunked || encodings.next().is_some() {
            return Err(Malformed::Encoding);
        }
    }
    Ok(())
}

/// RFC 9110 section 7.2: `host [":" port]`, possibly empty. Of the characters that a name may hold by the grammar, those that
/// no host has (sub-delims) are not taken: a comma would be two hosts to somebody.
fn is_host(host: &[u8]) -> bool {
    let colon = host.iter().rposition(|b| *b == b':').filter(|at| !host[*at..].contains(&b']'));
    let (name, port) = colon.map_or((host, &[][..]), |at| (&host[..at], &host[at + 1..]));
    port.iter().all(u8::is_ascii_digit)
        && name.iter().all(|b| b.is_ascii_alphanumeric() || b"-._~%[]:".contains(b))
}

/// Whom a request is for, as the client wrote it: RFC 9112 section 3.2.2, RFC 9113 section 8.3.1.
#[must_use]
pub fn authority<B>(request: &Request<B>) -> Option<&str> {
    match request.uri().authority() {
        Some(authority) => Some(authority.as_str()),
        None => request.headers().get(HOST)?.to_str().ok(),
    }
}

/// The protocol that the client wants to change to, if it is one that can pass through.
#[must_use]
pub fn wanted_upgrade<B>(request: &Request<B>) -> Option<HeaderValue> {
    let protocol = request.headers().get(UPGRADE)?;
    let listed = connection_options(request.headers()).any(|option| option.eq_ignore_ascii_case("upgrade"));
    // HTTP/2 inside of HTTP/1.1 would pass requests by the proxy. RFC 9113 has done away with it.
    let text = protocol.to_str().ok()?;
    let h2c = text.split(',').any(|p| p.trim().get(..3).is_some_and(|p| p.eq_ignore_ascii_case("h2c")));
    (request.version() == Version::HTTP_11 && listed && !h2c).then(|| protocol.clone())
}

/// Makes a request's head fit for the next connection.
pub fn forward_request(headers: &mut HeaderMap, version: Version) {
    let mut found = headers.keys().filter(|name| is_hop_by_hop(name) || **name == EXPECT).peekable();
    if found.peek().is_none() || version == Version::HTTP_2 && only_trailers(found, headers) {
        return;
    }
    let trailers = headers.get_all(TE).iter().any(|te| {
        te.to_str().is_ok_and(|te| te.split(',').any(|coding| coding.trim().eq_ignore_ascii_case("trailers")))
    });
    remove_hop_by_hop(headers);
    // Answered by the proxy, as soon as the upstream takes the body.
    headers.remove(EXPECT);
    if trailers {
        headers.insert(TE, TRAILERS);
        if version < Version::HTTP_2 {
            headers.insert(CONNECTION, HeaderValue::from_static("te"));
        }
    }
}

/// For a request that goes on over TLS: RFC 9113 section 8.3.1 wants the scheme to be true.
pub fn to_https(uri: &mut Uri) {
    let mut parts = std::mem::take(uri).into_parts();
    if parts.scheme.is_some() {
        parts.scheme = Some(http::uri::Scheme::HTTPS);
    }
    // The parts were those of a whole one.
    *uri = Uri::from_parts(parts).unwrap_or_default();
}

/// Removes what HTTP/2 cannot say of a connection (RFC 9113 section 8.2.2), for heads that the configuration has added to.
pub fn for_http2(headers: &mut HeaderMap) {
    let mut found = headers.keys().filter(|name| is_hop_by_hop(name)).peekable();
    if found.peek().is_none() || only_trailers(found, headers) {
        return;
    }
    let trailers = headers.get(TE).is_some_and(|te| te == TRAILERS);
    remove_hop_by_hop(headers);
    if trailers {
        headers.insert(TE, TRAILERS);
    }
}

/// Whether what was found says only that trailers are welcome, as every request of gRPC does.
fn only_trailers<'a>(mut found: impl Iterator<Item = &'a HeaderName>, headers: &HeaderMap) -> bool {
    found.all(|name| *name == TE) && headers.get_all(TE).iter().all(|te| te == TRAILERS)
}

/// Makes a response's head fit for the client.
pub fn forward_response(headers: &mut HeaderMap) {
    if headers.keys().any(is_hop_by_hop) {
        remove_hop_by_hop(headers);
    }
}

/// For a request or a response that changes the protocol: puts back what [`forward_request`] has removed.
pub fn restore_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(UPGRADE, protocol);
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let listed: Vec<HeaderName> = connection_options(headers)
            .filter_map(|option| HeaderName::from_bytes(option.as_bytes()).ok())
            // RFC 9110 section 7.6.1: these are for the recipient whatever the sender lists.
            .filter(|name| *name != HOST && *name != http::header::CONTENT_LENGTH && *name != IDENTITY)
            .collect();
        for name in listed {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Looked for in one pass before anything is removed: most heads have none of them.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(name.as_str().len(), 2 | 7 | 10 | 14 | 16..=19)
        && (*name == CONNECTION || HOP_BY_HOP.contains(name))
}

fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|option| !option.is_empty())
}

/// Absolute form becomes origin form, and its authority the Host (RFC 9112 section 3.2.2).
pub fn to_origin_form(uri: &mut Uri, headers: &mut HeaderMap) {
    if let Some(authority) = uri.authority() {
        let host = authority.as_str().rsplit('@').next().unwrap_or_default();
        if let Ok(host) = HeaderValue::from_str(host) {
            headers.insert(HOST, host);
        }
    }
    if uri.scheme().is_some() || uri.authority().is_some() {
        let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        *uri = Uri::from(path);
    }
}

/// HTTP/1.0 may do without a Host; HTTP/1.1 towards the upstream may not.
pub fn ensure_host(headers: &mut HeaderMap, destination: SocketAddr) {
    if !headers.contains_key(HOST)
        && let Ok(host) = HeaderValue::from_str(&destination.to_string())
    {
        headers.insert(HOST, host);
    }
}

/// The request's id; makes one when there is none, or none that is fit for a log.
pub fn request_id(headers: &mut HeaderMap, rng: &mut impl RngCore) -> HeaderValue {
    if let Some(id) = headers.get_mut(REQUEST_ID) {
        let fits = (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic);
        if fits {
            passing(id);
            return id.clone();
        }
    }
    let mut id = fresh_id(rng);
    passing(&mut id);
    headers.insert(REQUEST_ID, id.clone());
    id
}

/// Marks a value that does not come again. Otherwise HTTP/2 keeps each in the tables of both ends, looks through all of them
/// for the next one, and drops those that do come again to make room (RFC 7541 section 6.2.3; h2 searches the values of
/// a name one by one).
pub fn passing(value: &mut HeaderValue) {
    value.set_sensitive(true);
}

fn fresh_id(rng: &mut impl RngCore) -> HeaderValue {
    let mut random = [0; 16];
    rng.fill_bytes(&mut random);
    let mut buffer = uuid::Uuid::encode_buffer();
    let text = uuid::Builder::from_random_bytes(random).into_uuid().hyphenated().encode_lower(&mut buffer);
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("0"))
}

/// Removes what a client says of itself, and states who it has proved to be.
pub fn state_identity(headers: &mut HeaderMap, identity: Option<&HeaderValue>) {
    // CGI, WSGI, Rack and PHP hand headers on with `-` and `_` alike: every spelling that would look the same.
    let alike = |name: &HeaderName| {
        let name = name.as_str();
        name.len() == names::IDENTITY_HEADER.len()
            && name
                .bytes()
                .zip(names::IDENTITY_HEADER.bytes())
                .all(|(b, own)| b == own || b == b'_' && own == b'-')
    };
    while let Some(spelling) = headers.keys().find(|name| alike(name)).cloned() {
        headers.remove(spelling);
    }
    if let Some(identity) = identity {
        headers.insert(IDENTITY, identity.clone());
    }
}

/// An identity as a header's value.
#[must_use]
pub fn identity_value(identity: &Identity) -> HeaderValue {
    // A SPIFFE id has no character that a header could not hold.
    HeaderValue::from_str(&identity.to_string()).unwrap_or(HeaderValue::from_static("invalid"))
}

/// The reason that another proxy gave in its own response.
#[must_use]
pub fn reason_of(headers: &HeaderMap) -> Option<weft_api::Reason> {
    let word = headers.get(REASON)?.to_str().ok()?;
    weft_api::Reason::ALL.iter().copied().find(|reason| reason.as_str() == word)
}

/// Removes the word that only a proxy may say.
pub fn remove_reason(headers: &mut HeaderMap) {
    headers.remove(REASON);
}

/// gRPC, by the content type (gRPC over HTTP2, "Requests").
#[must_use]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Whether a response is a stream of events, which goes on for as long as somebody listens.
#[must_use]
pub fn is_event_stream(headers: &HeaderMap) -> bool {
    const KIND: &[u8] = b"text/event-stream";
    headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|kind| kind.as_bytes().get(..KIND.len()))
        .is_some_and(|kind| kind.eq_ignore_ascii_case(KIND))
}

/// The `grpc-status` of trailers, or of the head of a trailers-only response.
#[must_use]
pub fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| {
                (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
            })
            .collect()
    }

    fn request(lines: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::new(());
        *request.headers_mut() = headers(lines);
        request
    }

    #[test]
    fn what_concerns_one_connection_is_removed() {
        let mut h = headers(&[
            ("connection", "close, X-Internal, host"),
            ("connection", "keep-alive"),
            ("x-internal", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("te", "gzip, Trailers"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAAA"),
            ("proxy-authorization", "basic"),
            ("expect", "100-continue"),
            ("host", "a"),
            ("accept", "*/*"),
        ]);
        forward_request(&mut h, Version::HTTP_11);
        let wanted = headers(&[("connection", "te"), ("te", "trailers"), ("host", "a"), ("accept", "*/*")]);
        assert_eq!(h, wanted);
    }

    #[test]
    fn http2_says_nothing_of_a_connection_but_that_trailers_are_welcome() {
        let grpc = headers(&[("te", "trailers"), ("content-type", "application/grpc")]);
        let (mut forwarded, mut sent) = (grpc.clone(), grpc.clone());
        forward_request(&mut forwarded, Version::HTTP_2);
        for_http2(&mut sent);
        assert_eq!((&forwarded, &sent), (&grpc, &grpc));
        for te in ["gzip", "trailers, gzip"] {
            let mut other = headers(&[("te", te), ("accept", "*/*")]);
            for_http2(&mut other);
            assert_eq!(other, headers(&[("accept", "*/*")]), "{te}");
        }
        let mut added =
            headers(&[("te", "trailers"), ("connection", "x-a"), ("x-a", "1"), ("keep-alive", "1")]);
        for_http2(&mut added);
        assert_eq!(added, headers(&[("te", "trailers")]));
    }

    #[test]
    fn an_id_does_not_come_again_and_is_not_kept_in_tables() {
        let mut rng = SmallRng::seed_from_u64(1);
        let (mut fresh, mut given) = (HeaderMap::new(), headers(&[("x-request-id", "abc")]));
        assert!(request_id(&mut fresh, &mut rng).is_sensitive() && fresh[REQUEST_ID].is_sensitive());
        assert_eq!(request_id(&mut given, &mut rng), "abc");
        assert!(given[REQUEST_ID].is_sensitive());
    }

    #[test]
    fn a_websocket_may_pass_and_http2_in_disguise_may_not() {
        let ws = request(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(wanted_upgrade(&ws).unwrap(), "websocket");
        assert_eq!(wanted_upgrade(&request(&[("connection", "upgrade"), ("upgrade", "foo, H2C")])), None);
        assert_eq!(wanted_upgrade(&request(&[("upgrade", "websocket")])), None);
    }

    #[test]
    fn malformed_requests_are_told_apart() {
        assert_eq!(check(&request(&[("host", "a"), ("host", "b")])), Err(Malformed::Host));
        assert_eq!(check(&request(&[])), Err(Malformed::Host));
        let mut connect = request(&[("host", "a")]);
        *connect.method_mut() = Method::CONNECT;
        assert_eq!(check(&connect), Err(Malformed::Connect));
        let mut both = request(&[("host", "a"), ("transfer-encoding", "chunked")]);
        assert_eq!(check(&both), Ok(()));
        both.extensions_mut().insert(BothLengths);
        assert_eq!(check(&both), Err(Malformed::Lengths));
        assert_eq!(check(&request(&[("host", "a")])), Ok(()));
        for codings in [
            vec!["gzip, chunked"],
            vec!["chunked, chunked"],
            vec!["chunked", "chunked"],
            vec!["identity", "chunked"],
            vec!["identity"],
            vec![""],
        ] {
            let lines: Vec<_> = codings.iter().map(|coding| ("transfer-encoding", *coding)).collect();
            let coded = request(&[&[("host", "a")], &*lines].concat());
            assert_eq!(check(&coded), Err(Malformed::Encoding), "{codings:?}");
        }
        assert_eq!(check(&request(&[("host", "a"), ("transfer-encoding", "Chunked ")])), Ok(()));
    }

    #[test]
    fn a_host_is_a_name_or_an_address_and_a_port() {
        for host in ["", "a", "a_b.example:80", "10.0.0.1", "[fd00::1]:80", "[fd00::1]", "a:"] {
            assert_eq!(check(&request(&[("host", host)])), Ok(()), "{host}");
        }
        for host in ["a, b", "a b", "a/b", "u@a", "a:port", "a?b", "a\\b", "[::1]:http"] {
            assert_eq!(check(&request(&[("host", host)])), Err(Malformed::Host), "{host}");
        }
        let http2 = |uri: &str, lines: &[(&str, &str)]| {
            let mut request = request(lines);
            *request.version_mut() = Version::HTTP_2;
            *request.uri_mut() = uri.parse().unwrap();
            check(&request)
        };
        assert_eq!(http2("http://a/", &[]), Ok(()));
        assert_eq!(http2("http://a/", &[("host", "A")]), Ok(()));
        assert_eq!(http2("http://a/", &[("host", "b")]), Err(Malformed::Host));
        assert_eq!(http2("http://u@a/", &[]), Err(Malformed::Host));
        assert_eq!(http2("/", &[("host", "b")]), Ok(()));
    }

    #[test]
    fn a_target_is_a_path_or_a_whole_uri() {
        let target = |method: &str, uri: &str| {
            let mut request = request(&[("host", "a")]);
            (*request.method_mut(), *request.uri_mut()) = (method.parse().unwrap(), uri.parse().unwrap());
            check(&request)
        };
        for (method, uri) in [("GET", "/"), ("GET", "/a?b"), ("GET", "http://b"), ("OPTIONS", "*")] {
            assert_eq!(target(method, uri), Ok(()), "{method} {uri}");
        }
        for (method, uri) in [("GET", "a"), ("GET", "a:80"), ("GET", "*")] {
            assert_eq!(target(method, uri), Err(Malformed::Target), "{method} {uri}");
        }
    }

    #[test]
    fn absolute_form_becomes_origin_form_and_names_the_host() {
        let mut h = headers(&[("host", "other")]);
        let mut uri: Uri = "http://user@shop:8080/a?b=c".parse().unwrap();
        to_origin_form(&mut uri, &mut h);
        assert_eq!(
            (uri.to_string().as_str(), h.get("host").unwrap()),
            ("/a?b=c", &HeaderValue::from_static("shop:8080"))
        );
        let mut uri: Uri = "*".parse().unwrap();
        to_origin_form(&mut uri, &mut h);
        assert_eq!(uri, "*");
    }

    #[test]
    fn no_spelling_of_a_spoofed_identity_survives() {
        let mut h = headers(&[
            ("Weft-Client-Identity", "spoofed"),
            ("weft_client_identity", "spoofed"),
            ("WEFT-client_identity", "spoofed"),
            ("weft-client-identity", "twice"),
        ]);
        state_identity(&mut h, None);
        assert!(h.is_empty());
        state_identity(&mut h, Some(&HeaderValue::from_static("spiffe://a/ns/b/sa/c")));
        assert_eq!(h.len(), 1);
    }

    #[test]
    fn a_request_id_is_kept_when_fit_and_made_when_not() {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut h = headers(&[("x-request-id", "abc")]);
        assert_eq!(request_id(&mut h, &mut rng), "abc");
        let mut h = headers(&[("x-request-id", "a b")]);
        let id = request_id(&mut h, &mut rng);
        assert_eq!((id.len(), h.get("x-request-id")), (36, Some(&id)));
        assert_ne!(request_id(&mut HeaderMap::new(), &mut rng), id);
    }
}
