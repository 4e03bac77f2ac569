//! Tests of `write`, against an API server that is made up.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the report")]

use std::sync::{Arc, Mutex};

use kube::client::Body;
use serde_json::{Value, json};

use super::*;
use crate::{Note, Regarding, Sink};

type Seen = Arc<Mutex<Vec<(http::Method, String, Value)>>>;

/// Notes what is written, and takes it unless the namespace is `gone`.
fn api_server(seen: Seen) -> Client {
    let answer = move |request: http::Request<Body>| {
        let seen = Arc::clone(&seen);
        async move {
            let (parts, body) = request.into_parts();
            let written: Value = serde_json::from_slice(&body.collect_bytes().await?)?;
            let path = parts.uri.path().to_owned();
            let gone = path.contains("/gone/");
            seen.lock().unwrap().push((parts.method, path, written));
            let answer = match gone {
                true => {
                    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "", "reason": "NotFound", "code": 404 })
                }
                false => json!({ "metadata": { "name": "weft-test-x1" }, "eventTime": null }),
            };
            let code = if gone { 404 } else { 201 };
            let body = Body::from(serde_json::to_vec(&answer)?);
            Ok::<_, tower::BoxError>(http::Response::builder().status(code).body(body)?)
        }
    };
    Client::new(tower::service_fn(answer), "default")
}

fn note(namespace: &str, text: &str) -> Note {
    let regarding = Regarding {
        api_version: "weft.dev/v1alpha1",
        kind: "AuthorizationPolicy".into(),
        namespace: namespace.into(),
        name: "a".into(),
        uid: "u1".into(),
    };
    Note { regarding, warning: true, reason: "Denied", action: "Decide", text: text.into() }
}

#[tokio::test(start_paused = true)]
async fn an_event_is_written_at_once_and_counts_what_comes_after_it() {
    let (seen, counted) = (Seen::default(), Arc::new(Mutex::new((0, 0))));
    let count = Arc::clone(&counted);
    let (sink, writer) = Sink::new(move |fate, times| match fate {
        Fate::Written => count.lock().unwrap().0 += times,
        Fate::Dropped => count.lock().unwrap().1 += times,
    });
    let reporter = Reporter { controller: "weft.dev/weft-test", name: "weft-test", instance: "pod-1".into() };
    let writing = tokio::spawn(writer.run(api_server(Arc::clone(&seen)), reporter));
    sink.tell(note("shop", &format!("one\nline {}", "ä".repeat(2000))), 1);
    sink.tell(note("gone", "nowhere"), 4);
    // No part of a path that is of another kind, and nothing that the others would wait for.
    for made_up in
        ["", "shop/events?", "../../../api/v1/namespaces/shop", "a b", "Shop", "-", &"a".repeat(64)]
    {
        sink.tell(note(made_up, "x"), 1);
    }
    tokio::time::sleep(LOOK * 3).await;
    let first = std::mem::take(&mut *seen.lock().unwrap());
    assert_eq!(first.len(), 2, "{first:?}");
    let (method, path, event) = first.iter().find(|(_, path, _)| path.contains("/shop/")).unwrap();
    assert_eq!((method, &**path), (&http::Method::POST, "/apis/events.k8s.io/v1/namespaces/shop/events"));
    assert_eq!(
        (&event["type"], &event["reason"], &event["action"]),
        (&json!("Warning"), &json!("Denied"), &json!("Decide"))
    );
    assert_eq!((&event["regarding"]["uid"], &event["series"]), (&json!("u1"), &Value::Null));
    assert_eq!(
        (&event["reportingController"], &event["reportingInstance"], &event["metadata"]["generateName"]),
        (&json!("weft.dev/weft-test"), &json!("pod-1"), &json!("weft-test-"))
    );
    let text = event["note"].as_str().unwrap();
    assert!(text.starts_with("one line ") && (990..=1000).contains(&text.len()), "{}", text.len());
    assert!(event["eventTime"].as_str().is_some_and(|time| time.ends_with('Z')), "{event}");
    assert_eq!(*counted.lock().unwrap(), (1, 4 + 7), "there are no such namespaces");
    drop(sink);
    writing.await.unwrap();
}

#[tokio::test]
async fn an_event_that_there_is_gets_another_count_and_nothing_else() {
    let seen = Seen::default();
    let reporter = Reporter { controller: "weft.dev/weft-test", name: "weft-test", instance: "pod-1".into() };
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_772_323_199);
    let note = Arc::new(note("shop", "x"));
    let due = Write { note, event: Some("e1".into()), count: u64::MAX, more: 1, first: at, last: at };
    assert_eq!(write(&api_server(Arc::clone(&seen)), &reporter, &due).await.unwrap(), "weft-test-x1");
    let (method, path, change) = seen.lock().unwrap().remove(0);
    assert_eq!((method, &*path), (http::Method::PATCH, "/apis/events.k8s.io/v1/namespaces/shop/events/e1"));
    let series = json!({ "count": i32::MAX, "lastObservedTime": "2026-02-28T23:59:59.000000Z" });
    assert_eq!(change, json!({ "series": series }));
}
