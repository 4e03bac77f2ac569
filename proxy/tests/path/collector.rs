//! A collector of traces, which reads the wire by itself: fields by their numbers in opentelemetry-proto, and no type of the
//! proxy's.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::BodyExt;

use crate::apps::{self, Body};

/// What was told.
#[derive(Clone, Debug)]
pub struct Span {
    pub service: String,
    pub resource: BTreeMap<String, String>,
    pub trace: String,
    pub id: String,
    pub parent: String,
    pub state: String,
    pub name: String,
    pub kind: u64,
    pub start: u64,
    pub end: u64,
    pub attributes: BTreeMap<String, String>,
    pub events: Vec<(String, BTreeMap<String, String>)>,
    /// Code and message.
    pub status: Option<(u64, String)>,
}

pub const SERVER: u64 = 2;
pub const CLIENT: u64 = 3;

#[derive(Clone, Default)]
pub struct Collected(Arc<Mutex<Vec<Span>>>);

impl Collected {
    pub fn all(&self) -> Vec<Span> {
        self.0.lock().unwrap().clone()
    }

    /// Waits for so many.
    pub async fn wait(&self, count: usize) -> Vec<Span> {
        for _ in 0..500 {
            let all = self.all();
            if all.len() >= count {
                return all;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} of {count} spans: {:#?}", self.all().len(), self.all());
    }
}

/// Takes everything.
pub async fn collector() -> (SocketAddr, Collected) {
    collector_that(|_| apps::text("")).await
}

/// Takes what it answers 200 to; told how many calls there were before.
pub async fn collector_that(
    answer: impl Fn(usize) -> Response<Body> + Clone + Send + Sync + 'static,
) -> (SocketAddr, Collected) {
    let (collected, calls) = (Collected::default(), Arc::new(Mutex::new(0)));
    let into = collected.clone();
    let (addr, _) = apps::http(move |request| {
        let (into, calls, answer) = (into.clone(), Arc::clone(&calls), answer.clone());
        async move {
            assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/v1/traces"));
            assert_eq!(request.headers()["content-type"], "application/x-protobuf");
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let call = std::mem::replace(&mut *calls.lock().unwrap(), 0);
            *calls.lock().unwrap() = call + 1;
            let response = answer(call);
            if response.status().is_success() {
                into.0.lock().unwrap().extend(spans(&body));
            }
            response
        }
    })
    .await;
    (addr, collected)
}

/// Of an `ExportTraceServiceRequest`.
fn spans(body: &[u8]) -> Vec<Span> {
    let mut all = Vec::new();
    for resource_spans in messages(body, 1) {
        let resource = messages(&resource_spans, 1).first().map(|r| attributes(r, 1)).unwrap_or_default();
        for scope_spans in messages(&resource_spans, 2) {
            all.extend(messages(&scope_spans, 2).iter().map(|span| of(span, &resource)));
        }
    }
    all
}

fn of(span: &[u8], resource: &BTreeMap<String, String>) -> Span {
    let hex = |field| {
        messages(span, field)
            .first()
            .map(|id| id.iter().map(|b| format!("{b:02x}")).collect())
            .unwrap_or_default()
    };
    let status = messages(span, 15).first().map(|status| (number(status, 3), text(status, 2)));
    Span {
        service: resource.get("service.name").cloned().unwrap_or_default(),
        resource: resource.clone(),
        trace: hex(1),
        id: hex(2),
        parent: hex(4),
        state: text(span, 3),
        name: text(span, 5),
        kind: number(span, 6),
        start: number(span, 7),
        end: number(span, 8),
        attributes: attributes(span, 9),
        events: messages(span, 11).iter().map(|event| (text(event, 2), attributes(event, 3))).collect(),
        status,
    }
}

fn attributes(message: &[u8], field: u64) -> BTreeMap<String, String> {
    let pairs = messages(message, field).into_iter().map(|pair| {
        let value = messages(&pair, 2).remove(0);
        let shown = match fields(&value).remove(0) {
            (1, Field::Bytes(text)) => String::from_utf8(text.to_vec()).unwrap(),
            (2, Field::Number(yes)) => (yes != 0).to_string(),
            (3, Field::Number(number)) => number.to_string(),
            _ => panic!("an attribute of another kind: {value:?}"),
        };
        (text(&pair, 1), shown)
    });
    pairs.collect()
}

enum Field {
    Number(u64),
    Bytes(Bytes),
}

fn messages(message: &[u8], field: u64) -> Vec<Bytes> {
    let of = |(number, value)| match value {
        Field::Bytes(bytes) if number == field => Some(bytes),
        _ => None,
    };
    fields(message).into_iter().filter_map(of).collect()
}

fn text(message: &[u8], field: u64) -> String {
    messages(message, field).pop().map(|text| String::from_utf8(text.to_vec()).unwrap()).unwrap_or_default()
}

fn number(message: &[u8], field: u64) -> u64 {
    let of = |(number, value)| match value {
        Field::Number(value) if number == field => Some(value),
        _ => None,
    };
    fields(message).into_iter().find_map(of).unwrap_or_default()
}

/// Source: protobuf.dev, "Encoding".
fn fields(mut message: &[u8]) -> Vec<(u64, Field)> {
    let mut all = Vec::new();
    while !message.is_empty() {
        let tag = varint(&mut message);
        let value = match tag & 7 {
            0 => Field::Number(varint(&mut message)),
            1 => Field::Number(u64::from_le_bytes(take(&mut message, 8).try_into().unwrap())),
            2 => {
                let length = varint(&mut message) as usize;
                Field::Bytes(Bytes::copy_from_slice(take(&mut message, length)))
            }
            5 => Field::Number(u32::from_le_bytes(take(&mut message, 4).try_into().unwrap()).into()),
            other => panic!("wire type {other}"),
        };
        all.push((tag >> 3, value));
    }
    all
}

fn varint(message: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(message, 1)[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
    }
    panic!("a number without end");
}

fn take<'a>(message: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = message.split_at(count);
    *message = rest;
    taken
}
