//! Ids of traces and spans, and the two headers of W3C Trace Context that carry them. Pure: bytes in, values out.
//! Source: W3C Trace Context, sections 3.2 and 3.3; of level 2 the flag for random ids, and the grammar of keys.

use http::{HeaderName, HeaderValue};

/// Where the context is.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What vendors have to say about it.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// The caller may have told of the trace.
pub const SAMPLED: u8 = 1;
/// The trace's id is random where level 2 wants it to be.
pub const RANDOM: u8 = 2;
/// Section 3.2.2: version, ids and flags of version 00, with dashes.
const LENGTH: usize = 55;
/// Section 3.3.1.1.
const MAX_MEMBERS: usize = 32;
/// More than section 3.3.1.5 asks anybody to pass on.
const LONGEST_STATE: usize = 8192;

/// Not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId(pub [u8; 16]);

/// Not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanId(pub [u8; 8]);

impl TraceId {
    /// Of random numbers.
    #[must_use]
    pub fn of(high: u64, low: u64) -> Self {
        let id = (u128::from(high) << 64 | u128::from(low)).to_be_bytes();
        Self(if id == [0; 16] { 1_u128.to_be_bytes() } else { id })
    }

    /// 16 or 32 digits.
    pub(super) fn parse(digits: &[u8]) -> Option<Self> {
        let mut id = [0; 16];
        let at = if digits.len() == 16 { 8 } else { 0 };
        hex(digits, &mut id[at..])?;
        (id != [0; 16]).then_some(Self(id))
    }

    /// 32 digits.
    #[must_use]
    pub fn digits(&self) -> [u8; 32] {
        let mut text = [0; 32];
        write_hex(&self.0, &mut text);
        text
    }
}

impl SpanId {
    /// Of a random number.
    #[must_use]
    pub fn of(random: u64) -> Self {
        Self(random.max(1).to_be_bytes())
    }

    pub(super) fn parse(digits: &[u8]) -> Option<Self> {
        let mut id = [0; 8];
        hex(digits, &mut id)?;
        (id != [0; 8]).then_some(Self(id))
    }

    /// 16 digits.
    #[must_use]
    pub fn digits(&self) -> [u8; 16] {
        let mut text = [0; 16];
        write_hex(&self.0, &mut text);
        text
    }
}

/// What a caller says of the trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The trace.
    pub trace: TraceId,
    /// The caller's span.
    pub span: SpanId,
    /// Those that are known.
    pub flags: u8,
}

/// Reads a `traceparent`. `None`: it is not one, and a new trace begins.
#[must_use]
pub fn parse(value: &[u8]) -> Option<Parent> {
    let (head, rest) = value.split_at_checked(LENGTH)?;
    let mut version = [0];
    hex(head.get(..2)?, &mut version)?;
    // Section 3.2.4: of later versions the beginning is read, as long as it ends where this one does.
    let ends = match version {
        [0] => rest.is_empty(),
        [0xff] => false,
        _ => rest.first().is_none_or(|b| *b == b'-'),
    };
    let dashes = [2, 35, 52].iter().all(|at| head[*at] == b'-');
    let mut flags = [0];
    hex(&head[53..], &mut flags)?;
    let (trace, span) = (TraceId::parse(&head[3..35])?, SpanId::parse(&head[36..52])?);
    (ends && dashes).then_some(Parent { trace, span, flags: flags[0] & (SAMPLED | RANDOM) })
}

/// Writes a `traceparent`.
#[must_use]
pub fn write(parent: &Parent) -> HeaderValue {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    text[3..35].copy_from_slice(&parent.trace.digits());
    text[36..52].copy_from_slice(&parent.span.digits());
    write_hex(&[parent.flags], &mut text[53..]);
    // Digits and dashes are of every header.
    let mut value = HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("invalid"));
    crate::http::headers::passing(&mut value);
    value
}

/// Whether a `tracestate`, all of it, may be passed on with a new parent (section 3.3.1): otherwise it is better thrown away.
#[must_use]
pub fn is_state<'a>(values: impl Iterator<Item = &'a [u8]>) -> bool {
    let (mut members, mut length) = (0, 0);
    for value in values {
        length += value.len();
        for member in value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
        {
            members += 1;
            let Some(equals) = member.iter().position(|b| *b == b'=') else { return false };
            let (key, value) = member.split_at(equals);
            if !is_key(key) || !is_value(&value[1..]) {
                return false;
            }
        }
    }
    members <= MAX_MEMBERS && length <= LONGEST_STATE
}

/// Of the grammar as it is since level 2, which any key of level 1 fits.
fn is_key(key: &[u8]) -> bool {
    let rest = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-*/@".contains(b);
    key.len() <= 256
        && key.first().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && key.iter().all(rest)
}

fn is_value(value: &[u8]) -> bool {
    (1..=256).contains(&value.len())
        && value.iter().all(|b| (0x20..=0x7e).contains(b) && *b != b'=')
        && value.last() != Some(&b' ')
}

/// Lower case only, and exactly as many digits as there is room for.
fn hex(digits: &[u8], into: &mut [u8]) -> Option<()> {
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    if pairs.len() != into.len() {
        return None;
    }
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    for ([high, low], byte) in pairs.iter().zip(into) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(())
}

fn write_hex(bytes: &[u8], into: &mut [u8]) {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    for (byte, pair) in bytes.iter().zip(into.chunks_exact_mut(2)) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    /// Cases of the specification, section 3.2.2.3 and its tests.
    #[test]
    fn a_parent_is_read_as_the_specification_says() {
        let of = |version: &str, flags: &str, rest: &str| {
            parse(format!("{version}-{TRACE}-{SPAN}-{flags}{rest}").as_bytes())
        };
        let parent = of("00", "01", "").unwrap();
        assert_eq!(
            (&parent.trace.digits()[..], &parent.span.digits()[..]),
            (TRACE.as_bytes(), SPAN.as_bytes())
        );
        assert_eq!(parent.flags, SAMPLED);
        assert_eq!(of("00", "00", "").unwrap().flags, 0);
        // Flags that nobody knows yet are not passed on.
        assert_eq!(of("00", "ff", "").unwrap().flags, SAMPLED | RANDOM);
        for (version, rest, good) in [
            ("00", "-", false),
            ("00", "-extra", false),
            ("01", "", true),
            ("01", "-what-comes", true),
            ("01", "x", false),
            ("cc", "-01", true),
            ("ff", "", false),
            ("0", "", false),
            ("0g", "", false),
            ("FE", "", false),
        ] {
            assert_eq!(of(version, "01", rest).is_some(), good, "{version} {rest}");
        }
        for bad in [
            String::new(),
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}-0x"),
            format!("00_{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}_{SPAN}-01"),
            format!("00-{}.-{SPAN}-01", &TRACE[1..]),
            format!(" 00-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-01 "),
            format!("00-{TRACE}-{SPAN}"),
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad:?}");
        }
    }

    /// Cases of the specification's own tests of `tracestate`.
    #[test]
    fn a_state_is_judged_as_the_specification_says() {
        let one = |text: &str| is_state([text.as_bytes()].into_iter());
        for good in [
            "",
            "foo=1",
            "foo=1,bar=2",
            "foo=1 \t , \t bar=2",
            "foo=1,",
            ", ,foo=1",
            "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
            "a-*/_1@b-*/_1=~!",
            "0a@b=1",
            "1a=1",
            "a@1b=1",
            "foo@=1,bar=2",
            "foo@@bar=1",
            "foo@bar@baz=1",
            "foo= 1",
        ] {
            assert!(one(good), "{good:?}");
        }
        for bad in [
            "foo",
            "foo=",
            "=1",
            "foo =1",
            "FOO=1",
            "foo.bar=1",
            "@foo=1",
            "_foo=1",
            "foo=bar=baz",
            "foo=\u{1}",
        ] {
            assert!(!one(bad), "{bad:?}");
        }
        assert!(one(&format!("{}=1", "z".repeat(256))) && !one(&format!("{}=1", "z".repeat(257))));
        assert!(one(&format!("{}@{}=1", "t".repeat(241), "v".repeat(14))));
        assert!(one(&format!("a={}", "b".repeat(256))) && !one(&format!("a={}", "b".repeat(257))));
        let members = |n: usize| (0..n).map(|n| format!("k{n}=1")).collect::<Vec<_>>();
        assert!(is_state(members(32).iter().map(String::as_bytes)));
        assert!(!is_state(members(33).iter().map(String::as_bytes)), "in several headers");
    }

    #[test]
    fn no_id_is_zero() {
        assert_ne!(TraceId::of(0, 0).0, [0; 16]);
        assert_ne!(SpanId::of(0).0, [0; 8]);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(high: u64, low: u64, span: u64, flags in 0..4_u8) {
            let parent = Parent { trace: TraceId::of(high, low), span: SpanId::of(span), flags };
            let value = write(&parent);
            prop_assert_eq!(parse(value.as_bytes()), Some(parent));
            prop_assert!(value.is_sensitive());
        }

        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..80), tail in "\\PC{0,8}") {
            let _ = (parse(&bytes), is_state([bytes.as_slice()].into_iter()));
            let near = format!("00-{TRACE}-{SPAN}-0{tail}");
            prop_assert_eq!(parse(near.as_bytes()).is_some(), tail.len() == 1 && "0123456789abcdef".contains(&tail));
        }
    }
}
