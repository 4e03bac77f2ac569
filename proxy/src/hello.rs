//! What a TLS ClientHello says before any key is agreed: the server name, and whether it is of another Weft proxy. Pure
//! parser of outside input; it terminates nothing and trusts nothing that it reads.
//! Source: RFC 8446 sections 4.1.2, 4.2 and 5.1; RFC 6066 section 3 (server name); RFC 7301 (ALPN).

use std::borrow::Cow;

/// The parts of a ClientHello that matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// The server name, if it is one.
    pub sni: Option<String>,
    /// It offers one of the protocols between proxies.
    pub weft: bool,
}

/// What the first bytes of a connection are, as far as TLS is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Not the beginning of TLS.
    Other,
    /// May become a ClientHello.
    Incomplete,
    /// A ClientHello; a malformed one has no name.
    Hello(ClientHello),
}

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;
/// RFC 8446 section 5.1: at most 2^14 bytes of plaintext in a record.
const MAX_RECORD: usize = 1 << 14;

/// Looks at the first bytes.
#[must_use]
pub fn parse(bytes: &[u8]) -> Parsed {
    let [first, rest @ ..] = bytes else { return Parsed::Incomplete };
    // The record's version is 3.x; RFC 8446 section 5.1 has x ignored.
    if *first != HANDSHAKE || rest.first().is_some_and(|major| *major != 3) {
        return Parsed::Other;
    }
    match handshake(bytes) {
        Err(parsed) => parsed,
        Ok(message) => Parsed::Hello(read(&message).unwrap_or_default()),
    }
}

/// Puts together the first handshake message, which may be spread over several records.
fn handshake(mut records: &[u8]) -> Result<Cow<'_, [u8]>, Parsed> {
    let mut message: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    loop {
        let [kind, _, _, high, low, rest @ ..] = records else { return Err(Parsed::Incomplete) };
        let length = usize::from(*high) << 8 | usize::from(*low);
        if *kind != HANDSHAKE || length == 0 || length > MAX_RECORD {
            return Err(Parsed::Other);
        }
        let piece = &rest[..length.min(rest.len())];
        if message.is_empty() {
            message = Cow::Borrowed(piece);
        } else {
            message.to_mut().extend_from_slice(piece);
        }
        if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(Parsed::Other);
        }
        if let [_, a, b, c, body @ ..] = &*message {
            let wanted = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            if body.len() >= wanted {
                return Ok(match message {
                    Cow::Borrowed(all) => Cow::Borrowed(&all[4..4 + wanted]),
                    Cow::Owned(all) => Cow::Owned(all[4..4 + wanted].to_vec()),
                });
            }
        }
        if rest.len() < length {
            return Err(Parsed::Incomplete);
        }
        records = &rest[length..];
    }
}

fn read(body: &[u8]) -> Option<ClientHello> {
    let mut body = Reader(body);
    body.take(2 + 32)?;
    body.prefixed8()?;
    body.prefixed16()?;
    body.prefixed8()?;
    let mut hello = ClientHello::default();
    if body.0.is_empty() {
        return Some(hello);
    }
    let mut extensions = Reader(body.prefixed16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let content = Reader(extensions.prefixed16()?);
        match kind {
            EXTENSION_SERVER_NAME => hello.sni = server_name(content),
            EXTENSION_ALPN => hello.weft = offers_weft(content)?,
            _ => {}
        }
    }
    Some(hello)
}

fn server_name(mut content: Reader<'_>) -> Option<String> {
    let mut list = Reader(content.prefixed16()?);
    let kind = list.take(1)?;
    let name = list.prefixed16()?;
    // It goes to logs: nothing but what a host name can hold.
    let fits = kind == [0]
        && (1..=253).contains(&name.len())
        && name.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    if fits { String::from_utf8(name.to_ascii_lowercase()).ok() } else { None }
}

fn offers_weft(mut content: Reader<'_>) -> Option<bool> {
    let mut list = Reader(content.prefixed16()?);
    let mut weft = false;
    while !list.0.is_empty() {
        weft |= crate::tls::Alpn::of_wire(list.prefixed8()?).is_some();
    }
    Some(weft)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    fn u16(&mut self) -> Option<u16> {
        let bytes = self.take(2)?;
        Some(u16::from_be_bytes(bytes.try_into().ok()?))
    }

    fn prefixed8(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?.first().copied()?;
        self.take(usize::from(length))
    }

    fn prefixed16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustls::pki_types::ServerName;
    use std::sync::Arc;

    fn rustls_hello(name: &'static str, alpn: &[&[u8]]) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        let name = ServerName::try_from(name).unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut out = Vec::new();
        client.write_tls(&mut out).unwrap();
        out
    }

    /// The same handshake bytes in records of at most `size` bytes.
    fn fragmented(hello: &[u8], size: usize) -> Vec<u8> {
        let pieces = hello[5..].chunks(size);
        pieces.flat_map(|p| [&[22, 3, 1, (p.len() >> 8) as u8, p.len() as u8], p].concat()).collect()
    }

    #[test]
    fn the_name_and_our_protocol_are_read_from_a_real_hello() {
        let hello = rustls_hello("shop.example.com", &[b"h2", b"weft/http2"]);
        let wanted = ClientHello { sni: Some("shop.example.com".into()), weft: true };
        assert_eq!(parse(&hello), Parsed::Hello(wanted.clone()));
        for size in [1, 7, 100] {
            assert_eq!(parse(&fragmented(&hello, size)), Parsed::Hello(wanted.clone()), "records of {size}");
        }
    }

    #[test]
    fn another_clients_tls_is_not_ours() {
        let Parsed::Hello(hello) = parse(&rustls_hello("a.b", &[b"h2", b"http/1.1"])) else { panic!() };
        assert!(!hello.weft);
        let Parsed::Hello(hello) = parse(&rustls_hello("10.0.0.1", &[])) else { panic!() };
        assert_eq!(hello, ClientHello::default());
    }

    #[test]
    fn every_beginning_of_a_hello_is_incomplete() {
        let hello = rustls_hello("a.b", &[b"weft/tcp"]);
        for n in 0..hello.len() {
            assert_eq!(parse(&hello[..n]), Parsed::Incomplete, "{n} bytes");
        }
    }

    #[test]
    fn other_protocols_are_not_tls() {
        for other in
            [b"GET / HTTP/1.1".as_slice(), &[22, 2, 0], &[22, 2, 9], &[21, 3, 1], &[22, 3, 1, 0, 1, 2]]
        {
            assert_eq!(parse(other), Parsed::Other, "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = parse(&bytes);
            let _ = parse(&[&[22, 3, 1], &*bytes].concat());
        }

        #[test]
        fn a_damaged_hello_is_taken_without_panic(at in 0usize..400, byte in any::<u8>()) {
            let mut hello = rustls_hello("a.b", &[b"weft/tcp"]);
            let at = at % hello.len();
            hello[at] = byte;
            let _ = parse(&hello);
        }
    }
}
