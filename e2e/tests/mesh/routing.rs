//! TrafficPolicy: what a rule does to a request besides choosing where it goes, and what else it matches by.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;
use weft_api::Reason;
use weft_e2e::{App, Client, Injection, Namespace, eventually, scenario};

use crate::policy::policy;

const SOON: Duration = Duration::from_secs(10);

fn back_and_client(ns: &Namespace) -> Result<Client<'_>> {
    App::new("back").deploy(ns)?;
    Client::deploy(ns, "client")
}

/// A rule that answers by itself, so that the status says which one it was.
fn says(status: u16, matching: Value) -> Value {
    json!({ "match": [matching], "response": { "status": status, "body": "from the rule" } })
}

#[test]
fn headers_host_and_path_are_changed_on_the_way() {
    scenario("rewrite", Injection::Label, |ns| {
        let client = back_and_client(ns)?;
        ns.apply_json(&policy("back", json!([
            { "match": [{ "path": { "prefix": "/old" } }], "rewrite": { "host": "inner.example", "path": { "prefix": "/new" } },
              "headers": {
                "request": { "set": [{ "name": "X-Env", "value": "test" }], "remove": ["x-secret"] },
                "response": { "set": [{ "name": "cache-control", "value": "no-store" }], "remove": ["x-version"] } } },
            { "match": [{ "path": { "prefix": "/users" } }],
              "rewrite": { "path": { "regex": { "pattern": "/users/([0-9]+)/(.*)", "substitution": "/$2/of/$1" } } } }
        ])))?;
        let sent = ["-H", "x-env: prod", "-H", "x-secret: 1"];
        eventually("the policy is in force", SOON, || {
            let reply = client.get_with("http://back/old/thing?q=1", &sent)?.expect(200)?;
            ensure!(reply.headers.get("cache-control").is_some_and(|v| v == "no-store"), "{reply}");
            Ok(())
        })?;
        let reply = client.get_with("http://back/old/thing?q=1", &sent)?.expect(200)?;
        ensure!(reply.body["path"].as_str().is_some_and(|path| path.starts_with("/new/thing")), "{reply}");
        ensure!(reply.body["host"] == "inner.example", "{reply}");
        ensure!(reply.seen_header("x-env") == Some("test"), "{reply}");
        ensure!(reply.seen_header("x-secret").is_none(), "{reply}");
        ensure!(!reply.headers.contains_key("x-version"), "{reply}");
        let reply = client.get("http://back/users/7/orders")?.expect(200)?;
        ensure!(reply.body["path"].as_str().is_some_and(|path| path.starts_with("/orders/of/7")), "{reply}");
        let reply = client.get_with("http://back/else", &sent)?.expect(200)?;
        ensure!(reply.headers.contains_key("x-version"), "a request of no rule was changed: {reply}");
        Ok(())
    });
}

#[test]
fn a_rule_redirects_answers_and_tells_browsers_who_may_call() {
    scenario("answers", Injection::Label, |ns| {
        let client = back_and_client(ns)?;
        ns.apply_json(&policy("back", json!([
            { "match": [{ "path": { "prefix": "/moved" } }],
              "redirect": { "scheme": "https", "host": "shop.example", "path": { "prefix": "/new" }, "status": 308 } },
            { "match": [{ "path": { "exact": "/closed" } }],
              "response": { "status": 410, "body": "{\"closed\":true}", "contentType": "application/json" } },
            { "cors": { "allowOrigins": ["https://*.shop.example"], "allowMethods": ["PUT"], "maxAge": "10m" } }
        ])))?;
        eventually("the policy is in force", SOON, || client.get("http://back/closed")?.expect(410))?;
        let reply = client.get("http://back/closed")?.expect(410)?;
        ensure!(reply.body["closed"] == true && reply.reason().is_empty(), "{reply}");
        let reply = client.get("http://back/moved/here?a=b")?.expect(308)?;
        let location = reply.headers.get("location").map(String::as_str);
        ensure!(location == Some("https://shop.example/new/here?a=b"), "{location:?}");
        let preflight = |origin: &str| {
            let origin = format!("origin: {origin}");
            let more = ["-X", "OPTIONS", "-H", &origin, "-H", "access-control-request-method: PUT"];
            client.get_with("http://back/", &more)
        };
        let reply = preflight("https://www.shop.example")?.expect(204)?;
        let allowed = reply.headers.get("access-control-allow-origin").map(String::as_str);
        ensure!(allowed == Some("https://www.shop.example"), "{reply}");
        preflight("https://evil.example")?.expect_reason(403, Reason::CorsRefused)?;
        let reply =
            client.get_with("http://back/", &["-H", "origin: https://www.shop.example"])?.expect(200)?;
        ensure!(reply.headers.contains_key("access-control-allow-origin"), "{reply}");
        Ok(())
    });
}

#[test]
fn faults_are_injected_into_requests_with_the_header_and_no_others() {
    scenario("chaos", Injection::Label, |ns| {
        let client = back_and_client(ns)?;
        ns.apply_json(&policy("back", json!([
            { "match": [{ "path": { "prefix": "/slow" } }],
              "fault": { "delay": { "duration": "400ms" }, "when": { "header": "x-chaos", "value": "1" } } },
            { "fault": { "abort": { "status": 503, "percent": 100 }, "when": { "header": "x-chaos" } } }
        ])))?;
        let chaos = ["-H", "x-chaos: 1"];
        eventually("the policy is in force", SOON, || {
            client.get_with("http://back/", &chaos)?.expect_reason(503, Reason::FaultInjected)
        })?;
        client.get("http://back/")?.expect(200)?;
        let slow = client.get_with("http://back/slow", &chaos)?.expect(200)?;
        ensure!(slow.ms >= 400.0, "a delayed request took {} ms", slow.ms);
        Ok(())
    });
}

#[test]
fn rules_match_by_query_host_and_caller() {
    scenario("match-more", Injection::Label, |ns| {
        let client = back_and_client(ns)?;
        let identity = |account: &str| format!("spiffe://cluster.local/ns/{}/sa/{account}", ns.name);
        ns.apply_json(&policy("back", json!([
            says(401, json!({ "path": { "prefix": "/by/caller" }, "source": { "identities": [identity("nobody")] } })),
            says(402, json!({ "path": { "prefix": "/by/caller" }, "source": { "namespaces": [ns.name] } })),
            says(403, json!({ "query": [{ "name": "v", "exact": "a b" }] })),
            says(404, json!({ "hosts": ["*.shop.example"] })),
        ])))?;
        eventually("the policy is in force", SOON, || client.get("http://back/by/caller")?.expect(402))?;
        // Another spelling of the path is the same path.
        client.get("http://back//by/%63aller/x")?.expect(402)?;
        client.get("http://back/?v=a%20b")?.expect(403)?;
        client.get("http://back/?v=ab")?.expect(200)?;
        client.get_with("http://back/", &["-H", "Host: www.shop.example"])?.expect(404)?;
        client.get_with("http://back/", &["-H", "Host: shop.example"])?.expect(200)?;
        Ok(())
    });
}

#[test]
fn the_most_specific_rule_counts_where_that_is_asked_for() {
    scenario("precedence", Injection::Label, |ns| {
        let client = back_and_client(ns)?;
        let rules = json!([
            says(401, json!({ "path": { "prefix": "/a" } })),
            says(402, json!({ "path": { "prefix": "/a/b" } })),
            says(403, json!({ "path": { "exact": "/a/b" } })),
        ]);
        let mut written = policy("back", rules);
        ns.apply_json(&written)?;
        eventually("the first rule counts", SOON, || client.get("http://back/a/b")?.expect(401))?;
        written["spec"]["precedence"] = json!("Specificity");
        ns.apply_json(&written)?;
        eventually("the most specific rule counts", SOON, || client.get("http://back/a/b")?.expect(403))?;
        client.get("http://back/a/b/c")?.expect(402)?;
        client.get("http://back/a")?.expect(401)?;
        Ok(())
    });
}
