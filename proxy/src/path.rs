//! The one form of a path in which rules compare it, so that another spelling of the same path does not get past them.
//! Pure. It never changes what is sent: the application gets the path as the client wrote it, unless a rule rewrites it.
//! Source: RFC 3986 sections 5.2.4 (dot segments), 6.2.2.1 and 6.2.2.2 (percent-encoding).

use std::borrow::Cow;

/// The path (without query) with percent-encoded unreserved characters decoded, other escapes in capitals, empty segments
/// dropped and dot segments resolved. A path that has none of these is borrowed. `%2F` stays: it is data, no separator.
#[must_use]
pub fn normalised(path: &str) -> Cow<'_, str> {
    if !path.starts_with('/') || is_plain(path.as_bytes()) {
        return Cow::Borrowed(path);
    }
    Cow::Owned(resolved(&decoded(path)))
}

fn is_plain(path: &[u8]) -> bool {
    let mut last = 0;
    for &byte in path {
        if byte == b'%' || last == b'/' && matches!(byte, b'/' | b'.') {
            return false;
        }
        last = byte;
    }
    true
}

fn decoded(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match escape(rest.as_bytes()) {
            Some(byte) if is_unreserved(byte) => out.push(char::from(byte)),
            Some(_) => {
                out.push('%');
                out.extend(rest[..2].chars().map(|digit| digit.to_ascii_uppercase()));
            }
            // No escape: so that it cannot become one by what follows it.
            None => {
                out.push_str("%25");
                continue;
            }
        }
        rest = &rest[2..];
    }
    out.push_str(rest);
    out
}

/// The byte that two hexadecimal digits stand for.
pub(crate) fn escape(digits: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*digits.get(at)?).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
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
            ("*", "*"),
            ("", ""),
        ] {
            assert_eq!(normalised(given), form, "{given}");
        }
        assert!(matches!(normalised("/plain/path"), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn the_form_of_a_form_is_itself(path in "/([a.%/2fFeE1]|%2e|%2f|\\PC){0,20}") {
            let once = normalised(&path).into_owned();
            prop_assert_eq!(normalised(&once), once.as_str());
            prop_assert!(once.starts_with('/') && !once.contains("//"));
            prop_assert!(once.split('/').all(|segment| segment != "." && segment != ".."));
        }
    }
}
