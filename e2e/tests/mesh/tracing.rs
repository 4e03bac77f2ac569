//! Distributed tracing in a cluster: proxies tell a collector, which reads spans by OpenTelemetry's own types, and the spans
//! of caller and callee are one trace.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::time::Duration;
use weft_e2e::{App, Client, Injection, Namespace, eventually, scenario};

const SOON: Duration = Duration::from_secs(20);
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

#[derive(Clone, Debug, Deserialize)]
struct Span {
    service: String,
    pod: String,
    trace: String,
    id: String,
    parent: String,
    name: String,
    kind: String,
    attributes: Map<String, Value>,
}

/// What the collector was told of a trace.
fn told(client: &Client<'_>, of: &str) -> Result<Vec<Span>> {
    let printed = client.run(&["/testapp", "get", "http://collector/v1/traces"])?;
    let all: Vec<Span> = serde_json::from_str(printed.trim()).with_context(|| printed.clone())?;
    Ok(all.into_iter().filter(|span| span.trace == of).collect())
}

/// An application whose proxy tells the collector of the namespace.
fn traced(ns: &Namespace, name: &str, sampling: &str) -> App {
    App::new(name)
        .annotation("weft.dev/trace-endpoint", &format!("http://collector.{}.svc.cluster.local:80", ns.name))
        .annotation("weft.dev/trace-sampling", sampling)
}

#[test]
fn the_spans_of_a_caller_and_of_whom_it_calls_are_one_trace() {
    scenario("tracing", Injection::Label, |ns| {
        // Proxies tell it in plain text, which is allowed by default.
        App::new("collector").deploy(ns)?;
        traced(ns, "back", "0").deploy(ns)?;
        traced(ns, "front", "0").deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        let parent = format!("traceparent: 00-{TRACE}-b7ad6b7169203331-01");
        let got = client.get_with("http://front/call?url=http://back/status/200", &["-H", &parent])?;
        got.expect(200)?;
        let spans = eventually("three spans are told of", SOON, || {
            let spans = told(&client, TRACE)?;
            ensure!(spans.len() == 3, "{spans:#?}");
            Ok(spans)
        })?;
        let find = |service: &str, kind: &str| -> Result<Span> {
            let found = spans.iter().find(|span| span.service == service && span.kind == kind);
            found.cloned().with_context(|| format!("no {kind} of {service} in {spans:#?}"))
        };
        let asked = find("front", "SPAN_KIND_SERVER")?;
        let asks = find("front", "SPAN_KIND_CLIENT")?;
        let answers = find("back", "SPAN_KIND_SERVER")?;
        ensure!(asked.parent == "b7ad6b7169203331", "{asked:?}");
        // The application has passed the header on.
        ensure!(asks.parent == asked.id && answers.parent == asks.id, "{spans:#?}");
        ensure!(asks.name.starts_with("GET") && !asks.name.contains("status"), "{asks:?}");
        ensure!(asks.attributes["url.path"] == "/status/200", "{asks:?}");
        let identity = format!("spiffe://cluster.local/ns/{}/sa/front", ns.name);
        ensure!(answers.attributes["weft.peer.identity"] == identity.as_str(), "{answers:?}");
        ensure!(answers.pod.starts_with("back-"), "{answers:?}");
        // Nobody asked for this one, and none of the traces that begin here are told of.
        client.get("http://front/call?url=http://back/")?.expect(200)?;
        client.get_with("http://front/", &["-H", &parent])?.expect(200)?;
        eventually("what came later is told of", SOON, || {
            ensure!(told(&client, TRACE)?.len() == 4, "not yet");
            Ok(())
        })?;
        let all = client.run(&["/testapp", "get", "http://collector/v1/traces"])?;
        let all: Vec<Span> = serde_json::from_str(all.trim())?;
        ensure!(all.len() == 4, "{all:#?}");
        Ok(())
    });
}
