//! What a connection speaks, by the client's first bytes. `classify` is the pure decision; `first` waits for as many
//! bytes as it takes, bounded in size and time. It consumes nothing: what was read stays in the caller's buffer.
//!
//! A client that says nothing may be waiting for the server to speak first: the paths handle that (see `outbound`).

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};

use crate::hello::{self, ClientHello, Parsed};

/// What the first bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum First {
    /// A request line.
    Http1,
    /// The connection preface.
    Http2,
    /// A ClientHello.
    Tls(ClientHello),
    /// Anything else.
    Opaque,
    /// The client closed before it said anything.
    Nothing,
}

/// RFC 9113 section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Longest method that is taken for one.
const MAX_METHOD: usize = 24;
/// Longest head that is looked at.
pub const MAX_HEAD: usize = 64 * 1024;
/// A client that has begun a head has this long to end it.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// `None`: more bytes are needed.
#[must_use]
pub fn classify(bytes: &[u8]) -> Option<First> {
    if bytes.is_empty() {
        return None;
    }
    match hello::parse(bytes) {
        Parsed::Hello(hello) => return Some(First::Tls(hello)),
        Parsed::Incomplete => return None,
        Parsed::Other => {}
    }
    let common = bytes.len().min(PREFACE.len());
    if bytes[..common] == PREFACE[..common] {
        return (common == PREFACE.len()).then_some(First::Http2);
    }
    request_line(bytes)
}

/// RFC 9112 section 3: method SP target SP HTTP/1.x CRLF; and what a lenient server may take for that, so that it comes to
/// the HTTP server, which refuses it, and not past it. Methods in upper case only: an opaque protocol whose first bytes are
/// letters should not have to wait.
fn request_line(bytes: &[u8]) -> Option<First> {
    // RFC 9112 section 2.2: a server should ignore an empty line before the request line. Some ignore more.
    let bytes = bytes.trim_ascii_start();
    let method = method(bytes);
    if method > MAX_METHOD {
        return Some(First::Opaque);
    }
    match bytes.get(method) {
        None => return None,
        Some(b' ' | b'\t') if method > 0 => {}
        Some(_) => return Some(First::Opaque),
    }
    let end = bytes.iter().position(|b| *b == b'\n')?;
    let line = bytes[..end].trim_ascii_end();
    let version = line.rsplit(|b| matches!(b, b' ' | b'\t')).next().unwrap_or_default();
    let http = version.get(..5).is_some_and(|name| name.eq_ignore_ascii_case(b"HTTP/"));
    Some(if http { First::Http1 } else { First::Opaque })
}

fn method(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|b| b.is_ascii_uppercase() || matches!(b, b'-' | b'_')).count()
}

/// What is taken for granted of bytes that did not become clear. A method and a path, of a request line that does not end,
/// are not opaque: a client could send the rest of a request afterwards, past the HTTP server.
fn presumed(bytes: &[u8]) -> First {
    let bytes = bytes.trim_ascii_start();
    let rest = &bytes[method(bytes)..];
    let target = rest.trim_ascii_start();
    if rest.len() > target.len() && matches!(target.first(), Some(b'/' | b'*' | b'h' | b'H')) {
        First::Http1
    } else {
        First::Opaque
    }
}

/// Reads until it is clear what the bytes are. Waits without limit for the first byte, then up to [`HEAD_TIMEOUT`];
/// what is not clear by then, or by [`MAX_HEAD`] bytes, is opaque, unless it is the beginning of a request line. May be
/// dropped and called again.
pub async fn first<IO: AsyncRead + Unpin>(io: &mut IO, head: &mut BytesMut) -> io::Result<First> {
    let mut deadline = None;
    loop {
        if let Some(first) = classify(head) {
            return Ok(first);
        }
        if head.len() >= MAX_HEAD {
            return Ok(presumed(head));
        }
        if head.capacity() - head.len() < 512 {
            head.reserve(2048);
        }
        let read = if head.is_empty() {
            io.read_buf(head).await?
        } else {
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + HEAD_TIMEOUT);
            match timeout_at(deadline, io.read_buf(head)).await {
                Ok(read) => read?,
                Err(_) => return Ok(presumed(head)),
            }
        };
        if read == 0 {
            return Ok(if head.is_empty() { First::Nothing } else { First::Opaque });
        }
    }
}

/// [`first`] where the port is declared to speak HTTP: but for TLS, whatever comes is for the HTTP server to judge.
pub async fn first_of_http<IO: AsyncRead + Unpin>(io: &mut IO, head: &mut BytesMut) -> io::Result<First> {
    Ok(match first(io, head).await? {
        First::Opaque => First::Http1,
        first => first,
    })
}

/// Whether a server's first bytes prove that it speaks first. HTTP servers send some things unasked: a time-out notice
/// (`HTTP/1.1 408`), or HTTP/2 settings (RFC 9113 section 3.4). Those prove nothing.
#[must_use]
pub fn proves_server_first(bytes: &[u8]) -> bool {
    let http1 = bytes.starts_with(b"HTTP/1.");
    let settings = matches!(bytes, [_, _, _, 4, 0, 0, 0, 0, 0, ..]);
    !bytes.is_empty() && !http1 && !settings
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    #[test]
    fn protocols_are_told_by_their_first_bytes() {
        for (bytes, wanted) in [
            (b"GET / HTTP/1.1\r\n".as_slice(), Some(First::Http1)),
            (b"OPTIONS * HTTP/1.0\r\n", Some(First::Http1)),
            (b"M-SEARCH * HTTP/1.1\r\n", Some(First::Http1)),
            (b"\r\nGET / HTTP/1.1\r\n", Some(First::Http1)),
            (b"GET / HTTP/1.1\n", Some(First::Http1)),
            // Not valid, which the HTTP server has to say.
            (b"\n \r\n\tGET\t/\tHTTP/1.1\r\n", Some(First::Http1)),
            (b"GET / HTTP/1.10\r\n", Some(First::Http1)),
            (b"GET / http/1.1 \r\n", Some(First::Http1)),
            (b"PRI * HTTP/2.0\r\n\r\nXX", Some(First::Http1)),
            (b"GET /\r\n", Some(First::Opaque)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", Some(First::Http2)),
            (b"PRI * HT", None),
            (b"GE", None),
            (b"GET /very/long", None),
            (b"", None),
            (b"\r", None),
            (b"*1\r\n$4\r\nPING\r\n", Some(First::Opaque)),
            (b"PING\r\n", Some(First::Opaque)),
            (b"get / HTTP/1.1\r\n", Some(First::Opaque)),
            (b"INVITE sip:a SIP/2.0\r\n", Some(First::Opaque)),
            (b"CONNECT {\"verbose\":false}\r\n", Some(First::Opaque)),
            (b"GET /\0", None),
            (b"GET /\0 HTTP/1.1\r\n", Some(First::Http1)),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", Some(First::Opaque)),
            (&[22, 3, 1], None),
        ] {
            assert_eq!(classify(bytes), wanted, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn what_http_servers_send_unasked_proves_nothing() {
        assert!(proves_server_first(b"220 mail ready\r\n"));
        assert!(proves_server_first(b"\x4a\0\0\0\x0a8.0.36\0"));
        assert!(!proves_server_first(b"HTTP/1.1 408 Request Timeout\r\n"));
        assert!(!proves_server_first(&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100]));
        assert!(!proves_server_first(b""));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_in_the_middle_is_opaque_in_the_end() {
        let (mut client, mut server) = tokio::io::duplex(64);
        client.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
        let began = Instant::now();
        let mut head = BytesMut::new();
        assert_eq!(first(&mut server, &mut head).await.unwrap(), First::Opaque);
        assert_eq!((began.elapsed(), head.len()), (HEAD_TIMEOUT, 6));
    }

    #[tokio::test]
    async fn bytes_that_come_one_by_one_are_enough() {
        let (mut client, mut server) = tokio::io::duplex(1);
        let writer = tokio::spawn(async move {
            client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
            client
        });
        let mut head = BytesMut::new();
        assert_eq!(first(&mut server, &mut head).await.unwrap(), First::Http1);
        drop(writer.await.unwrap());
        assert_eq!(first(&mut server, &mut BytesMut::new()).await.unwrap(), First::Nothing);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_line_that_stops_in_the_middle_is_no_way_past_the_http_server() {
        let (mut client, mut server) = tokio::io::duplex(64);
        client.write_all(b"GET / HTT").await.unwrap();
        assert_eq!(first(&mut server, &mut BytesMut::new()).await.unwrap(), First::Http1);
        client.write_all(b"STATS now").await.unwrap();
        assert_eq!(first(&mut server, &mut BytesMut::new()).await.unwrap(), First::Opaque);
    }

    #[tokio::test(start_paused = true)]
    async fn on_a_port_of_http_only_tls_is_not_for_the_http_server() {
        for (bytes, wanted) in [
            (b"*1\r\n".as_slice(), First::Http1),
            (b"get / HTTP/1.1\r\n", First::Http1),
            (&[22, 3, 1, 0, 4, 1, 0, 0, 0], First::Tls(ClientHello::default())),
            (PREFACE, First::Http2),
        ] {
            let (mut client, mut server) = tokio::io::duplex(64);
            client.write_all(bytes).await.unwrap();
            assert_eq!(first_of_http(&mut server, &mut BytesMut::new()).await.unwrap(), wanted);
        }
    }

    #[tokio::test]
    async fn a_head_without_end_is_for_the_http_server_to_refuse() {
        let (mut client, mut server) = tokio::io::duplex(4096);
        tokio::spawn(async move {
            let _ = client.write_all(b"GET /").await;
            while client.write_all(&[b'a'; 1024]).await.is_ok() {}
        });
        let mut head = BytesMut::new();
        assert_eq!(first(&mut server, &mut head).await.unwrap(), First::Http1);
        assert!((MAX_HEAD..MAX_HEAD * 2).contains(&head.len()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_classified_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = classify(&bytes);
        }

        #[test]
        fn more_bytes_never_change_a_decision(bytes in "[A-Z*/ \t\r\n0-9.]{0,60}", cut in 0usize..60) {
            let cut = cut.min(bytes.len());
            if let Some(first) = classify(&bytes.as_bytes()[..cut]) {
                prop_assert_eq!(classify(bytes.as_bytes()), Some(first));
            }
        }
    }
}
