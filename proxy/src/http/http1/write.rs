//! Writes heads and chunks of HTTP/1.1 messages (RFC 9112). It decides how a body is framed, by what is known of its length, and
//! sends nothing.

use bytes::{BufMut, BytesMut};
use http::header::{CONTENT_LENGTH, TRAILER, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, Method, StatusCode, Uri};
use hyper::ext::ReasonPhrase;

/// How a body that is written ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Length {
    /// After so many more bytes.
    Sized(u64),
    /// With a last chunk.
    Chunked,
}

/// Fields that say how a message is to be understood, and so are too late in a trailer (RFC 9110 section 6.5.1).
const NO_TRAILERS: [&str; 11] = [
    "authorization",
    "cache-control",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "host",
    "max-forwards",
    "set-cookie",
    "trailer",
    "transfer-encoding",
];

/// A request's head. `exact`: the size of its body, where that is known.
pub(crate) fn request(
    out: &mut BytesMut,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    exact: Option<u64>,
) -> Length {
    out.reserve(512 + uri.path().len());
    out.put_slice(method.as_str().as_bytes());
    out.put_u8(b' ');
    match uri.path_and_query() {
        Some(target) => out.put_slice(target.as_str().as_bytes()),
        None => out.put_u8(b'/'),
    }
    out.put_slice(b" HTTP/1.1\r\n");
    fields(out, headers);
    let length = match (exact, size(headers)) {
        (Some(0), _) => Length::Sized(0),
        (_, Some(stated)) => Length::Sized(stated),
        (Some(exact), None) => {
            sized(out, exact);
            Length::Sized(exact)
        }
        (None, None) => {
            out.put_slice(b"transfer-encoding: chunked\r\n");
            Length::Chunked
        }
    };
    out.put_slice(b"\r\n");
    length
}

/// What a response's head needs to be known of.
pub(crate) struct Answering<'a> {
    /// The request's method.
    pub(crate) method: &'a Method,
    /// The size of the body, where that is known.
    pub(crate) exact: Option<u64>,
}

/// A response's head. `None`: there is no body.
pub(crate) fn response(
    out: &mut BytesMut,
    head: &http::response::Parts,
    answering: &Answering<'_>,
) -> Option<Length> {
    let status = head.status;
    out.reserve(512);
    if status == StatusCode::OK && head.extensions.is_empty() {
        out.put_slice(b"HTTP/1.1 200 OK\r\n");
    } else {
        out.put_slice(b"HTTP/1.1 ");
        out.put_slice(status.as_str().as_bytes());
        out.put_u8(b' ');
        match head.extensions.get::<ReasonPhrase>() {
            Some(reason) => out.put_slice(reason.as_bytes()),
            None => out.put_slice(status.canonical_reason().unwrap_or_default().as_bytes()),
        }
        out.put_slice(b"\r\n");
    }
    let bodiless = *answering.method == Method::HEAD || matches!(status.as_u16(), 100..=199 | 204 | 304);
    fields(out, &head.headers);
    let length = match (answering.exact, size(&head.headers)) {
        _ if bodiless => None,
        (_, Some(stated)) => Some(Length::Sized(stated)),
        (Some(exact), None) => {
            sized(out, exact);
            Some(Length::Sized(exact))
        }
        (None, None) => {
            out.put_slice(b"transfer-encoding: chunked\r\n");
            Some(Length::Chunked)
        }
    };
    out.put_slice(b"\r\n");
    length
}

fn size(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn sized(out: &mut BytesMut, size: u64) {
    out.put_slice(b"content-length: ");
    out.put_slice(http::HeaderValue::from(size).as_bytes());
    out.put_slice(b"\r\n");
}

fn fields(out: &mut BytesMut, headers: &HeaderMap) {
    for (name, value) in headers {
        if *name != TRANSFER_ENCODING {
            field(out, name, value.as_bytes());
        }
    }
}

fn field(out: &mut BytesMut, name: &HeaderName, value: &[u8]) {
    let name = name.as_str().as_bytes();
    out.reserve(name.len() + value.len() + 4);
    out.put_slice(name);
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

/// The line before a chunk of so many bytes. There is none without bytes: that would be the last one.
pub(crate) fn chunk_size(out: &mut BytesMut, size: usize) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let digits = (usize::BITS - size.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        out.put_u8(DIGITS[size >> (4 * digit) & 15]);
    }
    out.put_slice(b"\r\n");
}

/// The last chunk, with the trailers that were announced.
pub(crate) fn last_chunk(out: &mut BytesMut, trailers: Option<&HeaderMap>) {
    out.put_slice(b"0\r\n");
    if let Some(trailers) = trailers {
        fields(out, trailers);
    }
    out.put_slice(b"\r\n");
}

/// Of trailers those that the head has announced and that may be one.
pub(crate) fn announced(mut trailers: HeaderMap, listed: &[HeaderName]) -> HeaderMap {
    let unfit: Vec<HeaderName> = trailers
        .keys()
        .filter(|name| !listed.contains(name) || NO_TRAILERS.contains(&name.as_str()))
        .cloned()
        .collect();
    for name in unfit {
        trailers.remove(name);
    }
    trailers
}

/// The trailers that a head announces.
pub(crate) fn listed(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(TRAILER).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderValue, Response};

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn requested(lines: &[(&'static str, &'static str)], exact: Option<u64>) -> (String, Length) {
        let mut out = BytesMut::new();
        let length = request(&mut out, &Method::POST, &"/a?b".parse().unwrap(), &headers(lines), exact);
        (String::from_utf8(out.to_vec()).unwrap(), length)
    }

    #[test]
    fn a_request_says_how_long_its_body_is_once() {
        let host = ("host", "h");
        let (text, length) = requested(&[host, ("content-length", "5")], Some(5));
        assert_eq!(
            (text.as_str(), length),
            ("POST /a?b HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\n", Length::Sized(5))
        );
        let (text, length) = requested(&[host], Some(7));
        assert_eq!(
            (text.as_str(), length),
            ("POST /a?b HTTP/1.1\r\nhost: h\r\ncontent-length: 7\r\n\r\n", Length::Sized(7))
        );
        let (text, length) = requested(&[host], None);
        assert_eq!(
            (text.as_str(), length),
            ("POST /a?b HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n", Length::Chunked)
        );
        let (text, length) = requested(&[host], Some(0));
        assert_eq!((text.as_str(), length), ("POST /a?b HTTP/1.1\r\nhost: h\r\n\r\n", Length::Sized(0)));
    }

    fn responded(
        status: u16,
        method: Method,
        lines: &[(&'static str, &'static str)],
        exact: Option<u64>,
    ) -> (String, Option<Length>) {
        let mut out = BytesMut::new();
        let mut made = Response::new(());
        *made.status_mut() = StatusCode::from_u16(status).unwrap();
        *made.headers_mut() = headers(lines);
        let length = response(&mut out, &made.into_parts().0, &Answering { method: &method, exact });
        (String::from_utf8(out.to_vec()).unwrap(), length)
    }

    #[test]
    fn a_response_has_the_length_that_is_known_or_chunks_or_no_body() {
        assert_eq!(
            responded(200, Method::GET, &[], Some(0)),
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".into(), Some(Length::Sized(0)))
        );
        assert_eq!(
            responded(404, Method::GET, &[], None),
            ("HTTP/1.1 404 Not Found\r\ntransfer-encoding: chunked\r\n\r\n".into(), Some(Length::Chunked))
        );
        let head = responded(200, Method::HEAD, &[("content-length", "12")], Some(0));
        assert_eq!(head, ("HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n".into(), None));
        assert_eq!(
            responded(304, Method::GET, &[], Some(0)),
            ("HTTP/1.1 304 Not Modified\r\n\r\n".into(), None)
        );
        assert_eq!(responded(299, Method::GET, &[], Some(1)).0, "HTTP/1.1 299 \r\ncontent-length: 1\r\n\r\n");
    }

    #[test]
    fn sizes_of_chunks_are_hexadecimal() {
        for size in [1, 9, 15, 16, 255, 4096, 65_536, usize::MAX] {
            let mut out = BytesMut::new();
            chunk_size(&mut out, size);
            assert_eq!(out, format!("{size:X}\r\n"));
        }
    }

    #[test]
    fn only_announced_and_harmless_trailers_pass() {
        let listed = listed(&headers(&[("trailer", "x-sum, content-length"), ("trailer", "x-more")]));
        let kept = announced(
            headers(&[("x-sum", "1"), ("content-length", "9"), ("x-other", "2"), ("x-more", "3")]),
            &listed,
        );
        assert_eq!(kept, headers(&[("x-sum", "1"), ("x-more", "3")]));
    }
}
