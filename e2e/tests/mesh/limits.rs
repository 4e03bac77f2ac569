//! TrafficPolicy: how many requests the pods behind a Service take.

use anyhow::{Result, ensure};
use serde_json::json;
use std::time::Duration;
use weft_api::Reason;
use weft_e2e::traffic::Reply;
use weft_e2e::{App, Client, Injection, eventually, scenario};

use super::policy::policy;

const SOON: Duration = Duration::from_secs(15);

fn header<'a>(reply: &'a Reply, name: &str) -> &'a str {
    reply.headers.get(name).map_or("", String::as_str)
}

/// How many of as many requests were served, the rest being refused for the limit.
fn served(client: &Client<'_>, requests: u32) -> Result<usize> {
    let replies = client.get_many("http://back/", requests, 2, &[])?;
    for reply in replies.iter().filter(|reply| reply.status != 200) {
        reply.clone().expect_reason(429, Reason::RateLimited)?;
    }
    Ok(replies.iter().filter(|reply| reply.status == 200).count())
}

#[test]
fn beyond_the_limit_there_is_429_and_the_client_is_told_when_to_come_back() {
    scenario("ratelimit", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        ns.apply_json(&policy(
            "back",
            json!([{ "match": [{ "path": { "prefix": "/healthz" } }] }, { "rateLimit": { "requests": 3, "per": "1h" } }]),
        ))?;
        let first = eventually("the limit is in force", SOON, || {
            let reply = client.get("http://back/")?;
            ensure!(!header(&reply, "ratelimit-policy").is_empty(), "{reply}");
            Ok(reply)
        })?;
        ensure!(header(&first, "ratelimit-policy") == "\"back/1\";q=3;w=3600", "{:?}", first.headers);
        ensure!(header(&first, "ratelimit").starts_with("\"back/1\";r=2;t="), "{:?}", first.headers);
        ensure!(served(&client, 10)? == 2, "not exactly two more");
        let refused = client.get("http://back/")?.expect_reason(429, Reason::RateLimited)?;
        let wait: u64 = header(&refused, "retry-after").parse()?;
        ensure!((1..=1200).contains(&wait), "retry-after {wait}");
        // Another rule, and the kubelet: neither is under the limit. A refusal ejects nobody.
        client.get("http://back/healthz")?.expect(200)?;
        std::thread::sleep(Duration::from_secs(4));
        client.get("http://back/healthz")?.expect(200)?;
        Ok(())
    });
}

#[test]
fn a_limit_of_scope_mesh_holds_over_all_replicas_within_five_percent() {
    scenario("ratelimit-mesh", Injection::Label, |ns| {
        App::new("back").replicas(3).deploy(ns)?;
        let client = Client::deploy(ns, "client")?;
        let limit = json!({ "requests": 100, "per": "1s", "burst": 50, "scope": "Mesh" });
        ns.apply_json(&policy("back", json!([{ "rateLimit": limit }])))?;
        let seconds = 20;
        let load = || client.load("http://back/", 250, Duration::from_secs(seconds), &[])?.finish();
        eventually("it is in force, and the parts have settled", SOON, || {
            let reply = client.get_many("http://back/", 200, 4, &[])?;
            ensure!(
                reply.iter().any(|reply| reply.reason() == Reason::RateLimited.as_str()),
                "nothing is refused"
            );
            Ok(())
        })?;
        eventually("the limit, all replicas together", Duration::from_secs(120), || {
            let load = load()?;
            let refused = load.reasons.get(Reason::RateLimited.as_str()).copied().unwrap_or_default();
            ensure!(load.ok() + refused == load.sent, "other failures: {}", load.summary());
            ensure!(load.pods.len() == 3, "not all replicas were called: {}", load.summary());
            let error = load.ok() as f64 / (100 * seconds) as f64 - 1.0;
            println!("scope Mesh over 3 replicas: {} admitted, off by {:.2} %", load.ok(), error * 100.0);
            ensure!(error.abs() <= 0.05, "off by {:.2} %: {}", error * 100.0, load.summary());
            Ok(())
        })
    });
}

#[test]
fn a_limit_by_identity_gives_each_caller_its_own() {
    scenario("ratelimit-identity", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let (one, two) = (Client::deploy(ns, "one")?, Client::deploy(ns, "two")?);
        let rule = json!([{ "rateLimit": { "requests": 5, "per": "1h", "key": { "type": "Identity" } } }]);
        ns.apply_json(&policy("back", rule))?;
        eventually("the limit is in force", SOON, || {
            let refused = one.get("http://back/")?;
            refused.expect_reason(429, Reason::RateLimited).map(drop)
        })?;
        ensure!(served(&two, 20)? == 5, "the second caller has not its own five");
        ensure!(served(&one, 5)? == 0, "the first caller got more");
        Ok(())
    });
}
