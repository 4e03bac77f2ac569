//! B3, the headers of Zipkin, for callers that do not speak W3C Trace Context: in one header or in several. Who comes with
//! either goes on with the same. Pure functions on heads.
//! Source: openzipkin/b3-propagation, "Http Encodings".

use http::{HeaderMap, HeaderName, HeaderValue};

use super::context::{SpanId, TraceId};
use crate::http::headers::passing;

const SINGLE: HeaderName = HeaderName::from_static("b3");
const TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
const SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
const PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const STATE: HeaderName = HeaderName::from_static("x-b3-sampled");
const FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// In how many headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Single,
    Multi,
}

/// What a caller says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) form: Form,
    pub(super) ids: Option<(TraceId, SpanId)>,
    /// `None`: whoever comes next shall decide.
    pub(super) state: Option<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Deny,
    Accept,
    /// Accept, and more.
    Debug,
}

/// `None`: nothing that means anything.
pub(super) fn read(headers: &HeaderMap) -> Option<Said> {
    match headers.get(SINGLE) {
        Some(value) => single(value.as_bytes()),
        None => multi(headers),
    }
}

fn single(value: &[u8]) -> Option<Said> {
    let said = |ids, state| Some(Said { form: Form::Single, ids, state });
    let mut parts = value.split(|b| *b == b'-');
    let first = parts.next()?;
    let Some(span) = parts.next() else { return said(None, Some(state(first)?)) };
    let ids = (TraceId::parse(first)?, SpanId::parse(span)?);
    let told = parts.next().map(|word| state(word).ok_or(())).transpose().ok()?;
    let parent = parts.next().is_none_or(|parent| SpanId::parse(parent).is_some());
    if parent && parts.next().is_none() { said(Some(ids), told) } else { None }
}

fn state(word: &[u8]) -> Option<State> {
    match word {
        b"0" => Some(State::Deny),
        b"1" => Some(State::Accept),
        b"d" => Some(State::Debug),
        _ => None,
    }
}

fn multi(headers: &HeaderMap) -> Option<Said> {
    let text = |name: HeaderName| headers.get(name).map(HeaderValue::as_bytes);
    let ids = match (text(TRACE_ID), text(SPAN_ID)) {
        (Some(trace), Some(span)) => Some((TraceId::parse(trace)?, SpanId::parse(span)?)),
        (None, None) => None,
        _ => return None,
    };
    let told = match (text(FLAGS), text(STATE)) {
        (Some(b"1"), _) => Some(State::Debug),
        // The words are of libraries of old.
        (_, Some(b"1" | b"true")) => Some(State::Accept),
        (_, Some(b"0" | b"false")) => Some(State::Deny),
        _ => None,
    };
    (ids.is_some() || told.is_some()).then_some(Said { form: Form::Multi, ids, state: told })
}

/// Goes on with this span, in kind. Only for requests that are told of.
pub(super) fn write(headers: &mut HeaderMap, said: &Said, trace: TraceId, span: SpanId) {
    let digits = trace.digits();
    // An id of 64 bits stays one: some know no longer ones.
    let trace = if digits[..16] == [b'0'; 16] { &digits[16..] } else { &digits[..] };
    let span = span.digits();
    let parent = said.ids.map(|(_, parent)| parent.digits());
    let debug = said.state == Some(State::Debug);
    match said.form {
        Form::Single => {
            let mut text = [trace, b"-", &span, if debug { b"-d" } else { b"-1" }].concat();
            if let Some(parent) = parent {
                text.push(b'-');
                text.extend_from_slice(&parent);
            }
            set(headers, SINGLE, &text);
        }
        Form::Multi => {
            set(headers, TRACE_ID, trace);
            set(headers, SPAN_ID, &span);
            if let Some(parent) = parent {
                set(headers, PARENT, &parent);
            }
            if !debug {
                set(headers, STATE, b"1");
            }
        }
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, text: &[u8]) {
    // Digits and dashes are of every header.
    if let Ok(mut value) = HeaderValue::from_bytes(text) {
        passing(&mut value);
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LONG: &str = "80f198ee56343ba864fe8b2a57d3eff7";
    const SPAN: &str = "e457b5a2e4d86bd1";

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn one_header_is_read_as_zipkin_writes_it() {
        let of = |text: &str| read(&headers(&[("b3", text)]));
        let ids = |text: &str| of(text).and_then(|said| said.ids).is_some();
        let state = |text: &str| of(text).and_then(|said| said.state);
        assert!(ids(&format!("{LONG}-{SPAN}-1-05e3ac9a4f6e3b90")) && ids(&format!("{LONG}-{SPAN}")));
        assert!(ids(&format!("{}-{SPAN}-d", &LONG[16..])));
        assert_eq!(state(&format!("{LONG}-{SPAN}-d")), Some(State::Debug));
        assert_eq!(state(&format!("{LONG}-{SPAN}")), None);
        assert_eq!(
            (state("0"), state("1"), state("d")),
            (Some(State::Deny), Some(State::Accept), Some(State::Debug))
        );
        for bad in [
            "",
            "2",
            "x-y",
            &format!("{LONG}-{SPAN}-2"),
            &format!("{LONG}-{SPAN}-1-x"),
            &format!("{LONG}-{SPAN}-1-{SPAN}-1"),
            LONG,
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn several_headers_are_read_as_zipkin_writes_them() {
        let both = [("x-b3-traceid", LONG), ("x-b3-spanid", SPAN)];
        let with = |more: &[(&'static str, &str)]| read(&headers(&[&both[..], more].concat())).unwrap().state;
        assert_eq!(with(&[("x-b3-sampled", "1")]), Some(State::Accept));
        assert_eq!(with(&[("x-b3-sampled", "0")]), Some(State::Deny));
        assert_eq!(with(&[("x-b3-sampled", "0"), ("x-b3-flags", "1")]), Some(State::Debug));
        assert_eq!(with(&[]), None);
        assert_eq!(read(&headers(&[("x-b3-sampled", "0")])).unwrap().state, Some(State::Deny));
        assert_eq!(read(&headers(&both[..1])), None);
        assert_eq!(read(&headers(&[])), None);
    }

    #[test]
    fn who_comes_with_one_goes_on_with_the_same() {
        let (trace, span) = (TraceId::of(0, 7), SpanId::of(9));
        let mut one = headers(&[("b3", &format!("{LONG}-{SPAN}-1"))]);
        let said = read(&one).unwrap();
        write(&mut one, &said, said.ids.unwrap().0, span);
        assert_eq!(one["b3"], format!("{LONG}-0000000000000009-1-{SPAN}"));
        assert_eq!(read(&one).unwrap().ids, Some((said.ids.unwrap().0, span)));
        let mut several =
            headers(&[("x-b3-traceid", "0000000000000007"), ("x-b3-spanid", SPAN), ("x-b3-sampled", "1")]);
        let said = read(&several).unwrap();
        write(&mut several, &said, trace, span);
        assert_eq!(
            (&several["x-b3-traceid"], &several["x-b3-parentspanid"]),
            (&HeaderValue::from_static("0000000000000007"), &HeaderValue::from_static(SPAN))
        );
        assert_eq!(read(&several).unwrap().ids, Some((trace, span)));
    }

    proptest! {
        #[test]
        fn no_value_panics(text in "[0-9a-fd-]{0,70}") {
            let _ = read(&headers(&[("b3", &text)]));
            let _ = read(&headers(&[("x-b3-traceid", &text), ("x-b3-spanid", &text), ("x-b3-sampled", &text)]));
        }
    }
}
