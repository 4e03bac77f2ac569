//! Reads the heads of HTTP/1 messages. A client's request is *plain* when there is nothing about it that two readers could
//! understand differently, and nothing that needs more than an answer; every other one is left for hyper and the guards around
//! it. Pure: bytes in, a head out.
//! Source: RFC 9112 sections 3, 4, 5, 6 and 9.3.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use hyper::ext::ReasonPhrase;

use super::Malformed;

/// Lines that a head may have.
const MAX_LINES: usize = 100;

/// What the first bytes of a connection, or those after a message, are.
#[derive(Debug)]
pub(crate) enum Read<T> {
    /// A whole head, of so many bytes.
    Whole(T, usize),
    /// Not a whole one yet.
    More,
    /// For somebody else.
    Other,
}

/// A request that is served without hyper.
#[derive(Debug)]
pub(crate) struct Plain {
    pub(crate) request: Request<()>,
    /// Bytes of its body.
    pub(crate) length: u64,
    /// The client wants to close after it.
    pub(crate) last: bool,
    /// The client takes trailers.
    pub(crate) trailers: bool,
}

/// A client's request.
pub(crate) fn request(bytes: &[u8]) -> Read<Plain> {
    let mut lines = [httparse::EMPTY_HEADER; MAX_LINES];
    let mut parsed = httparse::Request::new(&mut lines);
    let length = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Read::More,
        Err(_) => return Read::Other,
    };
    match (parsed.method, parsed.path, parsed.version) {
        (Some(method), Some(path), Some(1)) => plain(&bytes[..length], method, path, parsed.headers)
            .map_or(Read::Other, |plain| Read::Whole(plain, length)),
        _ => Read::Other,
    }
}

fn plain(bytes: &[u8], method: &str, path: &str, lines: &[httparse::Header<'_>]) -> Option<Plain> {
    let mut head = Plain { request: Request::new(()), length: 0, last: false, trailers: false };
    let mut sized = false;
    for line in lines {
        match line.name.len() {
            2 if is(line, "te") => head.trailers |= lists(line.value, "trailers"),
            6 if is(line, "expect") => return None,
            7 if is(line, "upgrade") => return None,
            10 if is(line, "connection") => head.last |= lists(line.value, "close"),
            14 if is(line, "content-length") => {
                if std::mem::replace(&mut sized, true) {
                    return None;
                }
                head.length = digits(line.value)?;
            }
            17 if is(line, "transfer-encoding") => return None,
            _ => {}
        }
    }
    let whole = Bytes::copy_from_slice(bytes);
    let request = &mut head.request;
    *request.method_mut() = Method::from_bytes(method.as_bytes()).ok()?;
    *request.uri_mut() = Uri::from_maybe_shared(part(&whole, bytes, path.as_bytes())).ok()?;
    *request.headers_mut() = fields(&whole, bytes, lines)?;
    // CONNECT has a target of its own form.
    (*request.method() != Method::CONNECT).then_some(head)
}

/// How the body of a response ends (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// After so many bytes.
    Sized(u64),
    /// With its last chunk.
    Chunked,
    /// With the connection.
    Close,
}

/// An upstream's response.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) response: Response<()>,
    pub(crate) framing: Framing,
    /// The connection can be used again, for all the upstream says. One that changes its protocol cannot.
    pub(crate) keep: bool,
}

/// The response to a request of this method. 1xx are responses too.
pub(crate) fn response(bytes: &[u8], method: &Method) -> Result<Read<Answered>, Malformed> {
    let mut lines = [httparse::EMPTY_HEADER; MAX_LINES];
    let mut parsed = httparse::Response::new(&mut lines);
    let length = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(Read::More),
        Err(_) => return Err(Malformed::Head),
    };
    let (Some(code), Some(minor)) = (parsed.code, parsed.version) else { return Err(Malformed::Head) };
    let status = StatusCode::from_u16(code).map_err(|_| Malformed::Head)?;
    let bytes = &bytes[..length];
    let whole = Bytes::copy_from_slice(bytes);
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = if minor == 1 { Version::HTTP_11 } else { Version::HTTP_10 };
    if let Some(reason) = parsed.reason.filter(|reason| status.canonical_reason() != Some(reason))
        && let Ok(reason) = ReasonPhrase::try_from(part(&whole, bytes, reason.as_bytes()))
    {
        response.extensions_mut().insert(reason);
    }
    *response.headers_mut() = fields(&whole, bytes, parsed.headers).ok_or(Malformed::Head)?;
    let options =
        |wanted: &str| parsed.headers.iter().any(|line| is(line, "connection") && lists(line.value, wanted));
    let keep = if minor == 1 { !options("close") } else { options("keep-alive") };
    let framing = framing(response.headers_mut(), parsed.headers, status, minor, method)?;
    Ok(Read::Whole(
        Answered { response, framing, keep: keep && framing != Framing::Close && code != 101 },
        length,
    ))
}

fn framing(
    headers: &mut HeaderMap,
    lines: &[httparse::Header<'_>],
    status: StatusCode,
    minor: u8,
    method: &Method,
) -> Result<Framing, Malformed> {
    let bodiless =
        status.is_informational() || matches!(status.as_u16(), 204 | 304) || *method == Method::HEAD;
    let (mut coded, mut chunked, mut sized) = (false, false, None);
    // As it should be written: once, and with no zero before it.
    let mut canonical = true;
    for line in lines {
        if line.name.len() == 17 && is(line, "transfer-encoding") {
            coded = true;
            // Chunked must be the last of all codings.
            let last = line.value.rsplit(|b| *b == b',').next().unwrap_or_default();
            chunked = last.trim_ascii().eq_ignore_ascii_case(b"chunked");
        } else if line.name.len() == 14 && is(line, "content-length") {
            canonical &= sized.is_none() && (line.value.first() != Some(&b'0') || line.value == b"0");
            for (n, size) in line.value.split(|b| *b == b',').enumerate() {
                canonical &= n == 0;
                let size = digits(size.trim_ascii()).ok_or(Malformed::Head)?;
                if sized.replace(size).is_some_and(|before| before != size) {
                    return Err(Malformed::Head);
                }
            }
        }
    }
    if coded && minor == 0 {
        return Err(Malformed::Head);
    }
    match sized {
        // RFC 9112 section 6.3: the coding counts, and nobody behind shall think otherwise.
        Some(_) if coded => drop(headers.remove(CONTENT_LENGTH)),
        Some(size) if !canonical => drop(headers.insert(CONTENT_LENGTH, HeaderValue::from(size))),
        _ => {}
    }
    if coded {
        headers.remove(TRANSFER_ENCODING);
    }
    Ok(match (coded, chunked, sized) {
        _ if bodiless => Framing::Sized(0),
        (true, true, _) => Framing::Chunked,
        (true, false, _) | (false, _, None) => Framing::Close,
        (false, _, Some(size)) => Framing::Sized(size),
    })
}

/// The same bytes of the shared copy.
fn part(whole: &Bytes, bytes: &[u8], part: &[u8]) -> Bytes {
    if part.is_empty() {
        return Bytes::new();
    }
    let at = part.as_ptr() as usize - bytes.as_ptr() as usize;
    whole.slice(at..at + part.len())
}

fn fields(whole: &Bytes, bytes: &[u8], lines: &[httparse::Header<'_>]) -> Option<HeaderMap> {
    let mut headers = HeaderMap::with_capacity(lines.len() + 2);
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_maybe_shared(part(whole, bytes, line.value)).ok()?);
    }
    Some(headers)
}

fn is(line: &httparse::Header<'_>, name: &str) -> bool {
    line.name.eq_ignore_ascii_case(name)
}

fn lists(value: &[u8], wanted: &str) -> bool {
    value.split(|b| *b == b',').any(|one| one.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes()))
}

/// Nothing but digits (RFC 9110 section 8.6), and not more than fit.
fn digits(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0u64, |n, b| {
        let digit = b.is_ascii_digit().then(|| u64::from(b - b'0'))?;
        n.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plain_of(head: &str) -> Option<Plain> {
        match request(head.as_bytes()) {
            Read::Whole(plain, length) => {
                assert_eq!(length, head.len());
                Some(plain)
            }
            _ => None,
        }
    }

    #[test]
    fn a_plain_request_is_read_as_it_is() {
        let got =
            plain_of("POST /a?b=c HTTP/1.1\r\nHost: h\r\nX-One: 1\r\nx-one: 2\r\nContent-Length: 5\r\n\r\n")
                .unwrap();
        assert_eq!(
            (got.request.method().as_str(), got.request.uri().to_string().as_str()),
            ("POST", "/a?b=c")
        );
        assert_eq!((got.length, got.last, got.trailers), (5, false, false));
        let ones: Vec<_> = got.request.headers().get_all("x-one").iter().collect();
        assert_eq!(ones, ["1", "2"]);
        let got = plain_of(
            "GET / HTTP/1.1\r\nhost: h\r\nconnection: keep-alive, Close\r\nte: gzip, Trailers\r\n\r\n",
        )
        .unwrap();
        assert!(got.last && got.trailers);
    }

    #[test]
    fn whatever_could_be_disputed_is_left_to_others() {
        for lines in [
            "transfer-encoding: chunked",
            "Transfer-Encoding: identity",
            "expect: 100-continue",
            "upgrade: websocket",
            "content-length: 5\r\ncontent-length: 5",
            "content-length: 5, 5",
            "content-length: +5",
            "content-length: ",
            "content-length: 5 5",
            "content-length: 18446744073709551621",
            "content-length : 5",
            " folded: 1",
            "a: 1\r\n b: 2",
            "a: \0",
            "no colon",
        ] {
            assert!(
                plain_of(&format!("POST / HTTP/1.1\r\nhost: h\r\n{lines}\r\n\r\n")).is_none(),
                "{lines:?}"
            );
        }
        for line in [
            "GET / HTTP/1.0",
            "GET / HTTP/1.2",
            "CONNECT h:80 HTTP/1.1",
            "GET  / HTTP/1.1",
            "GET /\u{1} HTTP/1.1",
        ] {
            assert!(plain_of(&format!("{line}\r\nhost: h\r\n\r\n")).is_none(), "{line:?}");
        }
        assert!(matches!(request(b"GET / HTTP/1.1\r\nhost: h\r\n"), Read::More));
    }

    fn framed(head: &str, method: Method) -> Result<(Framing, bool), Malformed> {
        match response(head.as_bytes(), &method)? {
            Read::Whole(got, _) => {
                assert!(!got.response.headers().contains_key(TRANSFER_ENCODING));
                Ok((got.framing, got.keep))
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_end_of_a_response_is_known_by_its_head() {
        let get = |lines: &str| framed(&format!("HTTP/1.1 200 OK\r\n{lines}\r\n"), Method::GET);
        assert_eq!(get("content-length: 5\r\n"), Ok((Framing::Sized(5), true)));
        for long in ["5, 5\r\ncontent-length: 5", "005", "5,5", "5\r\ncontent-length: 5", " 5 \t"] {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {long}\r\n\r\n");
            let Ok(Read::Whole(got, _)) = response(head.as_bytes(), &Method::GET) else { panic!("{long:?}") };
            assert_eq!(got.framing, Framing::Sized(5));
            let passed_on: Vec<_> = got.response.headers().get_all(CONTENT_LENGTH).iter().collect();
            assert_eq!(passed_on, ["5"], "{long:?}");
        }
        assert_eq!(get("transfer-encoding: chunked\r\n"), Ok((Framing::Chunked, true)));
        assert_eq!(
            get("transfer-encoding: gzip, Chunked\r\ncontent-length: 5\r\n"),
            Ok((Framing::Chunked, true))
        );
        assert_eq!(
            get("transfer-encoding: chunked\r\ntransfer-encoding: gzip\r\n"),
            Ok((Framing::Close, false))
        );
        assert_eq!(get(""), Ok((Framing::Close, false)));
        assert_eq!(get("connection: a, close\r\ncontent-length: 0\r\n"), Ok((Framing::Sized(0), false)));
        for bad in [
            "content-length: 5\r\ncontent-length: 6\r\n",
            "content-length: 5, 6\r\n",
            "content-length: x\r\n",
        ] {
            assert_eq!(get(bad), Err(Malformed::Head), "{bad:?}");
        }
    }

    #[test]
    fn old_servers_and_responses_without_a_body_are_told_apart() {
        let old = |lines: &str| framed(&format!("HTTP/1.0 200 OK\r\n{lines}\r\n"), Method::GET);
        assert_eq!(old("content-length: 5\r\n"), Ok((Framing::Sized(5), false)));
        assert_eq!(old("content-length: 5\r\nconnection: Keep-Alive\r\n"), Ok((Framing::Sized(5), true)));
        assert_eq!(old("transfer-encoding: chunked\r\n"), Err(Malformed::Head));
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n";
        assert_eq!(framed(head, Method::HEAD), Ok((Framing::Sized(0), true)));
        for (status, keep) in [(101, false), (204, true), (304, true)] {
            let got = framed(&format!("HTTP/1.1 {status} X\r\n\r\n"), Method::GET);
            assert_eq!(got, Ok((Framing::Sized(0), keep)), "{status}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = (request(&bytes), response(&bytes, &Method::GET));
        }
    }
}
