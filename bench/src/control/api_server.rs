//! The API server's side of HTTP, as far as the operator speaks it: LIST in pages, WATCH, GET, POST, PUT, PATCH, DELETE of
//! whatever is in the store, and TokenReview. Admission, schemas and permissions it has none; everything it is asked it does.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::store::{Event, Key, Store};

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Serves a store until dropped.
pub struct ApiServer {
    /// Where.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl ApiServer {
    /// On a free port of loopback.
    pub async fn start(store: Arc<Store>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let store = Arc::clone(&store);
                let answer = service_fn(move |request| answer(Arc::clone(&store), request));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer),
                );
            }
        });
        Ok(Self { address, task })
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    collection: String,
    namespace: String,
    name: Option<String>,
}

/// `/api/v1[/namespaces/NS]/KIND[/NAME[/status]]`, `/apis/GROUP/VERSION...` likewise. The status is stored with its object.
fn place(path: &str) -> Option<Place> {
    let mut parts = path.trim_matches('/').split('/');
    let group = match parts.next()? {
        "api" => parts.next()?.to_owned(),
        "apis" => format!("{}/{}", parts.next()?, parts.next()?),
        _ => return None,
    };
    let rest: Vec<&str> = parts.collect();
    let (namespace, rest) = match rest.as_slice() {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        rest => ("", rest),
    };
    let (kind, name) = match rest {
        [kind] => (kind, None),
        [kind, name] | [kind, name, "status"] => (kind, Some((*name).to_owned())),
        _ => return None,
    };
    Some(Place { collection: format!("{group}/{kind}"), namespace: namespace.to_owned(), name })
}

async fn answer(store: Arc<Store>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let Some(place) = place(head.uri.path()) else { return Ok(refuse(StatusCode::NOT_FOUND)) };
    let query = Query::parse(head.uri.query().unwrap_or_default());
    let given = || serde_json::from_slice::<Value>(&body).ok();
    let response = match (&head.method, &place.name) {
        (&Method::GET, None) if query.watch => watch(&store, &place, query),
        (&Method::GET, None) => list(&store, &place, &query),
        (&Method::GET, Some(name)) => {
            let found = store.object(&place.collection, &(place.namespace.clone(), name.clone()));
            found.map_or_else(|| refuse(StatusCode::NOT_FOUND), |object| send(&object))
        }
        (&Method::POST, None) if place.collection.ends_with("/tokenreviews") => match given() {
            Some(review) => send(&reviewed(&review)),
            None => refuse(StatusCode::BAD_REQUEST),
        },
        (&Method::POST, None) => match given() {
            Some(mut object) if object.is_object() => {
                let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                object["metadata"]["namespace"] = json!(place.namespace);
                send(&store.put(&place.collection, (place.namespace, name), object))
            }
            _ => refuse(StatusCode::BAD_REQUEST),
        },
        (&Method::PUT | &Method::PATCH, Some(name)) => match given() {
            Some(change) if change.is_object() => {
                let key: Key = (place.namespace.clone(), name.clone());
                let before = store.object(&place.collection, &key);
                let mut object = before.map_or_else(|| json!({}), |before| Value::clone(&before));
                merge(&mut object, change);
                // What is made by an apply says neither; the operator looks for what it has written by both.
                object["metadata"]["name"] = json!(name);
                if !place.namespace.is_empty() {
                    object["metadata"]["namespace"] = json!(place.namespace);
                }
                send(&store.put(&place.collection, key, object))
            }
            _ => refuse(StatusCode::BAD_REQUEST),
        },
        (&Method::DELETE, Some(name)) => {
            let gone = store.delete(&place.collection, &(place.namespace.clone(), name.clone()));
            gone.map_or_else(|| refuse(StatusCode::NOT_FOUND), |object| send(&object))
        }
        _ => refuse(StatusCode::METHOD_NOT_ALLOWED),
    };
    Ok(response)
}

/// RFC 7396, as far as objects of Kubernetes need it.
fn merge(into: &mut Value, change: Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (name, value) in change {
                if value.is_null() {
                    into.remove(&name);
                } else {
                    merge(into.entry(name).or_insert(Value::Null), value);
                }
            }
        }
        (into, change) => *into = change,
    }
}

/// A token is "namespace/pod/uid/service-account", and always valid.
fn reviewed(review: &Value) -> Value {
    let token = review["spec"]["token"].as_str().unwrap_or_default();
    let parts: Vec<&str> = token.split('/').collect();
    let [namespace, pod, uid, account] = parts.as_slice() else {
        return json!({ "metadata": {}, "spec": {}, "status": { "authenticated": false, "error": "not a token" } });
    };
    json!({ "metadata": {}, "spec": {}, "status": {
        "authenticated": true,
        "audiences": [weft_api::names::TOKEN_AUDIENCE],
        "user": {
            "username": format!("system:serviceaccount:{namespace}:{account}"),
            "extra": { "authentication.kubernetes.io/pod-name": [pod], "authentication.kubernetes.io/pod-uid": [uid] },
        },
    }})
}

#[derive(Default)]
struct Query {
    watch: bool,
    since: u64,
    seconds: u64,
    limit: usize,
    from: usize,
    named: Option<String>,
}

impl Query {
    fn parse(text: &str) -> Self {
        let mut query = Self { seconds: 300, limit: usize::MAX, ..Self::default() };
        for (name, value) in text.split('&').filter_map(|pair| pair.split_once('=')) {
            match name {
                "watch" => query.watch = value == "true" || value == "1",
                "resourceVersion" => query.since = value.parse().unwrap_or_default(),
                "timeoutSeconds" => query.seconds = value.parse().unwrap_or(300),
                "limit" => query.limit = value.parse().unwrap_or(usize::MAX),
                "continue" => query.from = value.parse().unwrap_or_default(),
                "fieldSelector" => {
                    query.named = value.strip_prefix("metadata.name%3D").map(str::to_owned);
                }
                _ => {}
            }
        }
        query
    }
}

impl Place {
    fn holds(&self, key: &Key, query: &Query) -> bool {
        (self.namespace.is_empty() || self.namespace == key.0)
            && query.named.as_ref().is_none_or(|name| name == &key.1)
    }
}

fn list(store: &Store, place: &Place, query: &Query) -> Response<Body> {
    let (version, objects) = store.list(&place.collection);
    let mut fitting = objects.iter().filter(|(key, _)| place.holds(key, query)).skip(query.from);
    let page: Vec<&Value> = fitting.by_ref().take(query.limit).map(|(_, object)| &**object).collect();
    let more = if fitting.next().is_some() { (query.from + page.len()).to_string() } else { String::new() };
    send(&json!({
        "kind": "List", "apiVersion": "v1",
        "metadata": { "resourceVersion": version.to_string(), "continue": more },
        "items": page,
    }))
}

fn watch(store: &Store, place: &Place, query: Query) -> Response<Body> {
    let Some((past, coming)) = store.watch(&place.collection, query.since) else {
        return refuse(StatusCode::GONE);
    };
    let end = Instant::now() + Duration::from_secs(query.seconds);
    let place = Place { collection: String::new(), namespace: place.namespace.clone(), name: None };
    let events = stream::iter(past).chain(receive(coming)).filter_map(move |event| {
        let line = place.holds(&event.key, &query).then_some(event.line);
        std::future::ready(line)
    });
    let frames = events.map(|line| Ok::<_, Infallible>(Frame::data(line))).take_until(sleep_until(end));
    json_response(StatusCode::OK, StreamBody::new(frames).boxed_unsync())
}

/// Ends for a reader that is too slow: it lists anew.
fn receive(coming: broadcast::Receiver<Event>) -> impl Stream<Item = Event> + Send {
    stream::unfold(coming, |mut coming| async move { Some((coming.recv().await.ok()?, coming)) })
}

fn send(object: &Value) -> Response<Body> {
    json_response(StatusCode::OK, Full::from(object.to_string()).boxed_unsync())
}

fn refuse(code: StatusCode) -> Response<Body> {
    let reason = code.canonical_reason().unwrap_or_default();
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason.replace(' ', ""), "code": code.as_u16(),
    });
    json_response(code, Full::from(status.to_string()).boxed_unsync())
}

fn json_response(code: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_collections_objects_and_their_status() {
        let of = |path: &str| place(path).map(|p| (p.collection, p.namespace, p.name.unwrap_or_default()));
        let some = |a: &str, b: &str, c: &str| Some((a.to_owned(), b.to_owned(), c.to_owned()));
        assert_eq!(of("/api/v1/pods"), some("v1/pods", "", ""));
        assert_eq!(of("/api/v1/namespaces/shop/pods/a"), some("v1/pods", "shop", "a"));
        assert_eq!(of("/api/v1/namespaces"), some("v1/namespaces", "", ""));
        assert_eq!(of("/api/v1/namespaces/shop"), some("v1/namespaces", "", "shop"));
        let policies = "weft.dev/v1alpha1/trafficpolicies";
        let path = format!("/apis/weft.dev/v1alpha1/namespaces/shop/{}/p/status", "trafficpolicies");
        assert_eq!(of(&path), some(policies, "shop", "p"));
        assert_eq!(of("/metrics"), None);
    }

    #[test]
    fn a_patch_changes_what_it_names() {
        let mut object = json!({ "a": { "b": 1, "c": 2 }, "d": [1] });
        merge(&mut object, json!({ "a": { "b": null, "e": 3 }, "d": [2] }));
        assert_eq!(object, json!({ "a": { "c": 2, "e": 3 }, "d": [2] }));
    }
}
