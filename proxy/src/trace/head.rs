//! What becomes of the trace at the head of a request: continued, begun, or left alone. Writes the headers that go on. Pure.
//!
//! - A caller that has decided is believed, either way. Without a decision the trace's id makes it, for all alike.
//! - A request that is not told of goes on as it came. One without a context gets one that says so: otherwise whoever
//!   comes next would decide again, and tell of the rest.
//! - What cannot be read is a new trace (W3C Trace Context section 4.3).

use std::time::SystemTime;

use http::header::HeaderMap;
use http::{HeaderName, HeaderValue};
use weft_api::tracing::Sampling;

use super::context::{self, Parent, RANDOM, SAMPLED, SpanId, TRACEPARENT, TRACESTATE, TraceId};
use super::{Open, b3};

/// A request's place in a trace.
#[derive(Debug)]
pub struct Begun {
    /// If anybody has named one.
    pub(crate) trace: Option<TraceId>,
    /// It is told of.
    pub(crate) open: Option<Box<Open>>,
}

/// Decides, and writes what goes on. `random` is asked for only when an id is needed.
pub(super) fn begin(headers: &mut HeaderMap, sampling: Sampling, random: impl FnOnce() -> [u64; 3]) -> Begun {
    if let Some(value) = only(headers, TRACEPARENT) {
        return match value.and_then(|value| context::parse(value.as_bytes())) {
            Some(parent) if parent.flags & SAMPLED == 0 => {
                only_fit_state(headers);
                Begun { trace: Some(parent.trace), open: None }
            }
            Some(parent) => goes_on(headers, parent, random()),
            None => anew(headers, sampling, random()),
        };
    }
    let Some(said) = b3::read(headers) else { return anew(headers, sampling, random()) };
    let trace = said.ids.map(|(trace, _)| trace);
    let told = match (said.state, trace) {
        (Some(state), _) => state != b3::State::Deny,
        (None, Some(trace)) => sampling.takes(&trace.0),
        (None, None) => false,
    };
    if !told {
        return Begun { trace, open: None };
    }
    let [high, low, span] = random();
    let trace = trace.unwrap_or_else(|| TraceId::of(high, low));
    let span = SpanId::of(span);
    b3::write(headers, &said, trace, span);
    open(trace, span, said.ids.map(|(_, parent)| parent), SAMPLED, None)
}

/// `Some(None)`: more than one.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<Option<&HeaderValue>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    Some(values.next().is_none().then_some(first))
}

fn goes_on(headers: &mut HeaderMap, parent: Parent, [span, ..]: [u64; 3]) -> Begun {
    let span = SpanId::of(span);
    headers.insert(TRACEPARENT, context::write(&Parent { span, ..parent }));
    only_fit_state(headers);
    let state = state(headers);
    open(parent.trace, span, Some(parent.span), parent.flags, state)
}

fn anew(headers: &mut HeaderMap, sampling: Sampling, [high, low, span]: [u64; 3]) -> Begun {
    let (trace, span) = (TraceId::of(high, low), SpanId::of(span));
    let told = sampling.takes(&trace.0);
    let flags = if told { SAMPLED | RANDOM } else { RANDOM };
    headers.insert(TRACEPARENT, context::write(&Parent { trace, span, flags }));
    // Of a trace that this is not.
    headers.remove(TRACESTATE);
    if told { open(trace, span, None, flags, None) } else { Begun { trace: Some(trace), open: None } }
}

/// One that is not fit to go on does not.
fn only_fit_state(headers: &mut HeaderMap) {
    if !context::is_state(headers.get_all(TRACESTATE).iter().map(HeaderValue::as_bytes)) {
        headers.remove(TRACESTATE);
    }
}

/// What goes on, as one value.
fn state(headers: &HeaderMap) -> Option<HeaderValue> {
    let all = headers.get_all(TRACESTATE);
    let first = all.iter().next()?;
    if all.iter().count() == 1 {
        return Some(first.clone());
    }
    let joined: Vec<&[u8]> = all.iter().map(HeaderValue::as_bytes).collect();
    HeaderValue::from_bytes(&joined.join(&b','.to_owned())).ok()
}

fn open(
    trace: TraceId,
    span: SpanId,
    parent: Option<SpanId>,
    flags: u8,
    state: Option<HeaderValue>,
) -> Begun {
    let open = Open { trace, span, parent, flags, state, started: SystemTime::now(), retries: Vec::new() };
    Begun { trace: Some(trace), open: Some(Box::new(open)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const UNTOLD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        headers
    }

    fn all() -> Sampling {
        "100".parse().unwrap()
    }

    fn none() -> Sampling {
        "0".parse().unwrap()
    }

    #[test]
    fn who_tells_is_followed_whatever_is_sampled_and_is_the_parent() {
        let mut head = headers(&[("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2")]);
        let open = begin(&mut head, none(), || [5, 6, 7]).open.unwrap();
        assert_eq!(open.parent.unwrap().digits(), *b"b7ad6b7169203331");
        assert_eq!(open.state.as_ref().unwrap(), "a=1,b=2");
        assert_eq!(head["traceparent"], "00-0af7651916cd43dd8448eb211c80319c-0000000000000005-01");
        assert_eq!(head.get_all("tracestate").iter().count(), 2);
    }

    #[test]
    fn who_does_not_tell_is_followed_too_and_nothing_is_touched() {
        let before = headers(&[("traceparent", UNTOLD), ("tracestate", "a=1, b=2")]);
        let mut head = before.clone();
        let begun = begin(&mut head, all(), || unreachable!("nothing is made"));
        assert!(begun.open.is_none() && begun.trace.is_some());
        assert_eq!(head, before);
        // But for what nobody could read.
        let mut head = headers(&[("traceparent", UNTOLD), ("tracestate", "not a state")]);
        begin(&mut head, all(), || unreachable!("nothing is made"));
        assert_eq!(head, headers(&[("traceparent", UNTOLD)]));
    }

    #[test]
    fn what_cannot_be_read_is_a_new_trace_without_the_old_state() {
        for lines in [
            &[("traceparent", "00-x"), ("tracestate", "a=1")][..],
            &[("traceparent", PARENT), ("traceparent", PARENT)],
        ] {
            let mut head = headers(lines);
            let open = begin(&mut head, all(), || [1, 2, 3]).open.unwrap();
            assert_eq!((open.parent, open.state), (None, None));
            assert_eq!(head.get_all("traceparent").iter().count(), 1);
            assert_eq!(head["traceparent"], "00-00000000000000010000000000000002-0000000000000003-03");
            assert!(!head.contains_key("tracestate"));
        }
    }

    #[test]
    fn a_state_that_is_none_does_not_go_on() {
        let mut head = headers(&[("traceparent", PARENT), ("tracestate", "foo =1")]);
        assert!(begin(&mut head, none(), || [5, 6, 7]).open.unwrap().state.is_none());
        assert!(!head.contains_key("tracestate"));
    }

    #[test]
    fn that_a_new_trace_is_not_told_of_is_said_to_those_who_come_next() {
        let mut head = HeaderMap::new();
        assert!(begin(&mut head, none(), || [1, 2, 3]).open.is_none());
        assert_eq!(head["traceparent"], "00-00000000000000010000000000000002-0000000000000003-02");
        let mut next = head.clone();
        assert!(begin(&mut next, all(), || unreachable!("it was decided")).open.is_none());
        assert_eq!(next, head);
    }

    #[test]
    fn b3_is_believed_where_there_is_no_w3c() {
        let told = "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1";
        let mut head = headers(&[("b3", told)]);
        let open = begin(&mut head, none(), || [1, 2, 3]).open.unwrap();
        assert_eq!(head["b3"], "80f198ee56343ba864fe8b2a57d3eff7-0000000000000003-1-e457b5a2e4d86bd1");
        assert!(open.parent.is_some() && !head.contains_key("traceparent"));
        for (value, told) in
            [("0", false), ("1", true), ("80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-0", false)]
        {
            let mut head = headers(&[("b3", value)]);
            assert_eq!(begin(&mut head, all(), || [1, 2, 3]).open.is_some(), told, "{value}");
        }
        // Whoever decides by the id decides as everybody does.
        let deferred = "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1";
        assert!(begin(&mut headers(&[("b3", deferred)]), all(), || [1, 2, 3]).open.is_some());
        assert!(begin(&mut headers(&[("b3", deferred)]), none(), || [1, 2, 3]).open.is_none());
        let mut both = headers(&[("b3", told), ("traceparent", UNTOLD)]);
        assert!(begin(&mut both, all(), || [1, 2, 3]).open.is_none());
    }

    proptest! {
        #[test]
        fn whatever_comes_what_goes_on_names_the_span(value in "\\PC{0,60}", state in "\\PC{0,60}", random: [u64; 3]) {
            let mut head = HeaderMap::new();
            for (name, text) in [(TRACEPARENT, value), (TRACESTATE, state)] {
                if let Ok(text) = text.parse() {
                    head.insert(name, text);
                }
            }
            let open = begin(&mut head, all(), || random).open.unwrap();
            let parent = context::parse(head[TRACEPARENT].as_bytes()).unwrap();
            prop_assert_eq!((parent.trace, parent.span), (open.trace, open.span));
        }
    }
}
