//! The one form of a path in which rules compare it, so that another spelling of the same path does not get past them.
//! Pure. It never changes what is sent: the application gets the path as the client wrote it, unless a rule rewrites it.
//! Source: RFC 3986 sections 5.2.4 (dot segments), 6.2.2.1 and 6.2.2.2 (percent-encoding).

use std::borrow::Cow;

/// The path (without query) with percent-encoded characters decoded where they may stand in a path as they are, all others
/// encoded in capitals, empty segments dropped and dot segments resolved. A path that has none of these is borrowed. `%2F`
/// stays: it is data, no separator; `%3B` too, because some servers cut a segment at a `;`.
#[must_use]
pub fn normalised(path: &str) -> Cow<'_, str> {
    if !path.starts_with('/') || is_plain(path.as_bytes()) {
        return Cow::Borrowed(path);
    }
    Cow::Owned(resolved(&decoded(path)))
}

/// A path that all servers read alike.
#[derive(Debug, PartialEq, Eq)]
pub struct Clear<'a> {
    /// See [`normalised`].
    pub path: Cow<'a, str>,
    /// It had empty or dot segments: an application that does not resolve them would read another path.
    pub resolved: bool,
}

/// The path in its normalised form, if servers agree what it means.
///
/// # Errors
/// What they do not agree about.
pub fn clear(path: &str) -> Result<Clear<'_>, &'static str> {
    if !path.starts_with('/') || is_plain(path.as_bytes()) && !path.contains(';') {
        return Ok(Clear { path: Cow::Borrowed(path), resolved: false });
    }
    unambiguous(path.as_bytes())?;
    let decoded = decoded(path);
    let form = resolved(&decoded);
    Ok(Clear { resolved: form != decoded, path: Cow::Owned(form) })
}

/// What one server takes for a separator or an end is data for another; what is no UTF-8 may be an escape of another kind.
fn unambiguous(path: &[u8]) -> Result<(), &'static str> {
    let (mut bytes, mut rest) = (Vec::with_capacity(path.len()), path);
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let byte = match (byte, escape(rest)) {
            (b'%', None) => return Err("a percent sign that begins no escape"),
            (b'%', Some(byte)) => {
                rest = &rest[2..];
                match byte {
                    b'/' => return Err("an encoded slash"),
                    0..=0x1f | 0x7f => return Err("an encoded control character"),
                    byte => byte,
                }
            }
            (b';', _) => return Err("a semicolon, after which some servers do not read on"),
            (byte, _) => byte,
        };
        if byte == b'\\' {
            return Err("a backslash, which some servers take for a slash");
        }
        bytes.push(byte);
    }
    std::str::from_utf8(&bytes).map(|_| ()).map_err(|_| "escapes that are not UTF-8")
}

fn is_plain(path: &[u8]) -> bool {
    let mut last = 0;
    for &byte in path {
        let stays = byte == b'/' || is_of_paths(byte);
        if !stays || last == b'/' && matches!(byte, b'/' | b'.') {
            return false;
        }
        last = byte;
    }
    true
}

fn decoded(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match (byte, escape(rest)) {
            // No escape: so that it cannot become one by what follows it.
            (b'%', None) => out.push_str("%25"),
            (b'%', Some(byte)) => {
                rest = &rest[2..];
                if is_of_paths(byte) && byte != b';' {
                    out.push(char::from(byte));
                } else {
                    escaped(byte, &mut out);
                }
            }
            (byte, _) if byte == b'/' || is_of_paths(byte) => out.push(char::from(byte)),
            (byte, _) => escaped(byte, &mut out),
        }
    }
    out
}

fn escaped(byte: u8, out: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(char::from(DIGITS[usize::from(byte >> 4)]));
    out.push(char::from(DIGITS[usize::from(byte & 15)]));
}

/// The byte that two hexadecimal digits stand for.
pub(crate) fn escape(digits: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*digits.get(at)?).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

/// What a segment of a path may hold as it is (RFC 3986 section 3.3, `pchar`).
const fn is_of_paths(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'-' | b'.'
                | b'_'
                | b'~'
                | b'!'
                | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b','
                | b';'
                | b'='
                | b':'
                | b'@'
        )
}

fn resolved(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut directory = true;
    for segment in path.split('/') {
        directory = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => {
                kept.pop();
            }
            _ => kept.push(segment),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in &kept {
        out.push('/');
        out.push_str(segment);
    }
    if directory {
        out.push('/');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_spelling_of_a_path_has_one_form() {
        for (given, form) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("/.hidden", "/.hidden"),
            ("/a.b/..c", "/a.b/..c"),
            ("//a///b", "/a/b"),
            ("/a//", "/a/"),
            ("/a/./b/.", "/a/b/"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/../../x", "/x"),
            ("/%61dmin", "/admin"),
            ("/a/%2e%2E/b", "/b"),
            ("/a%2fb", "/a%2Fb"),
            ("/%2561", "/%2561"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/100%", "/100%25"),
            ("/%%341", "/%2541"),
            ("/%zz", "/%25zz"),
            ("/v1/x%3Adelete", "/v1/x:delete"),
            ("/a%3bb;c", "/a%3Bb;c"),
            ("/caf\u{e9}/{x}|%7c", "/caf%C3%A9/%7Bx%7D%7C%7C"),
            ("*", "*"),
            ("", ""),
        ] {
            assert_eq!(normalised(given), form, "{given}");
        }
        assert!(matches!(normalised("/plain/path"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_path_that_servers_read_differently_has_no_clear_form() {
        for (given, form, resolved) in [
            ("/a/b", "/a/b", false),
            ("/a/../b", "/b", true),
            ("/a/%2e%2e/b", "/b", true),
            ("//a", "/a", true),
            ("/a/.", "/a/", true),
            ("/%61%3ab", "/a:b", false),
            ("/caf%c3%a9", "/caf%C3%A9", false),
            ("/%252f", "/%252f", false),
            ("/a%3b", "/a%3B", false),
            ("*", "*", false),
        ] {
            let clear = clear(given).unwrap();
            assert_eq!((&*clear.path, clear.resolved), (form, resolved), "{given}");
        }
        for bad in [
            "/a%2fb", "/a%2Fb", "/a%5cb", "/a\\b", "/a%00", "/a%0d%0a", "/a%7f", "/100%", "/%zz", "/a;b",
            "/..;/a", "/%c0%af", "/%ff",
        ] {
            assert!(clear(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_clear_form_is_the_normalised_one(path in "/([a.%/;2fFeE1\\\\]|%2e|%2f|%c3%a9|\\PC){0,20}") {
            if let Ok(clear) = clear(&path) {
                prop_assert_eq!(&*clear.path, &*normalised(&path));
                prop_assert!(!clear.path.contains([';', '\\']));
            }
        }

        #[test]
        fn the_form_of_a_form_is_itself(path in "/([a.%/2fFeE1]|%2e|%2f|\\PC){0,20}") {
            let once = normalised(&path).into_owned();
            prop_assert_eq!(normalised(&once), once.as_str());
            prop_assert!(once.starts_with('/') && !once.contains("//"));
            prop_assert!(once.split('/').all(|segment| segment != "." && segment != ".."));
        }
    }
}
