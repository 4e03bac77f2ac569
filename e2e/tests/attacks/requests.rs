//! Requests that claim an identity, name two hosts, or hide another request: sent by somebody in the mesh who speaks mTLS without a
//! proxy, and from outside of it.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_e2e::{App, Client, Injection, Namespace, eventually, scenario};

use super::ground::{Attacker, SOON, Shown, Signer, address, get, id, leaf, served, statuses};

#[test]
fn the_callee_is_told_the_callers_service_account_and_what_clients_claim_is_removed() {
    scenario("identity", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        for caller in ["alice", "bob"] {
            let client = Client::deploy(ns, caller)?;
            let reply = client
                .get_with(
                    "http://server/",
                    &["-H", "weft-client-identity: spiffe://cluster.local/ns/x/sa/admin"],
                )?
                .expect(200)?;
            let expected = id(&ns.name, caller);
            ensure!(
                reply.seen_identity() == Some(expected.as_str()),
                "the callee was told {:?}, not {expected}",
                reply.seen_identity()
            );
        }
        Ok(())
    });
}

fn body(answer: &str) -> Result<Value> {
    let (_, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no body in {answer}"))?;
    let at = body.find('{').with_context(|| format!("no JSON in {answer}"))?;
    let mut values = serde_json::Deserializer::from_str(&body[at..]).into_iter();
    Ok(values.next().context("no JSON")??)
}

/// Both ways to the application, past any proxy of the caller's.
struct Ways<'a> {
    attacker: &'a Attacker<'a>,
    ip: &'a str,
    good: Shown,
}

impl<'a> Ways<'a> {
    fn new(ns: &Namespace, attacker: &'a Attacker<'a>, ip: &'a str) -> Result<Self> {
        let good = Signer::of_the_mesh(ns.cluster)?.sign(&leaf(&id(&ns.name, "mallory"))?)?;
        Ok(Self { attacker, ip, good })
    }

    fn both(&self, bytes: &[u8]) -> Result<[(&'static str, String); 2]> {
        Ok([
            ("mTLS", self.attacker.mtls((self.ip, 8080), Some(&self.good), bytes)?),
            ("plain", self.attacker.plain((self.ip, 8080), bytes)?),
        ])
    }
}

#[test]
fn a_caller_outside_of_the_mesh_cannot_claim_an_identity() {
    scenario("identity-claim", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        let attacker = Attacker::deploy(ns)?;
        let server = ns.pod("app=server")?;
        let ways = Ways::new(ns, &attacker, address(&server)?)?;
        let me = id(&ns.name, "mallory");
        for spelling in
            ["weft-client-identity", "Weft-Client-Identity", "WEFT-CLIENT-IDENTITY", "weft_client_identity"]
        {
            let request = format!(
                "POST / HTTP/1.1\r\nhost: server\r\n{spelling}: spoofed-a\r\n{spelling}: spoofed-b\r\nconnection: close, weft-client-identity\r\nte: trailers\r\ntransfer-encoding: chunked\r\ntrailer: {spelling}\r\n\r\n2\r\nhi\r\n0\r\n{spelling}: spoofed-c\r\n\r\n"
            );
            for (how, answer) in ways.both(request.as_bytes())? {
                ensure!(statuses(&answer) == ["200"], "{spelling} by {how}: {answer}");
                let seen = &body(&answer)?["headers"];
                let expected = if how == "mTLS" { json!(me) } else { Value::Null };
                ensure!(seen["weft-client-identity"] == expected, "{spelling} by {how}: {seen}");
                // Some applications take one spelling for the other.
                ensure!(!seen.to_string().contains("spoofed"), "{spelling} by {how}: {seen}");
            }
        }
        Ok(())
    });
}

#[test]
fn two_hosts_are_none_and_the_one_that_is_judged_is_the_one_that_is_read() {
    scenario("two-hosts", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        let attacker = Attacker::deploy(ns)?;
        let server = ns.pod("app=server")?;
        let ip = address(&server)?;
        let ways = Ways::new(ns, &attacker, ip)?;
        ns.apply_json(&json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": { "name": "open" },
            "spec": { "action": "Allow", "rules": [{ "to": [{ "hosts": ["server"] }] }] } }))?;
        let ask = |target: &str, hosts: &[&str]| {
            let hosts: String = hosts.iter().map(|host| format!("host: {host}\r\n")).collect();
            format!("GET {target} HTTP/1.1\r\n{hosts}connection: close\r\n\r\n")
        };
        eventually("only the open host", SOON, || {
            for (how, answer) in ways.both(ask("/", &["closed"]).as_bytes())? {
                ensure!(statuses(&answer) == ["403"], "{how}: {answer}");
            }
            Ok(())
        })?;
        let before = served(&attacker.plain((ip, 8080), get("/"))?)?;
        let bad = attacker.malformed(ip)?;
        for (target, hosts, status) in [
            ("http://closed/x", &["server"][..], "403"),
            ("/", &["server", "closed"], "400"),
            ("/", &["closed", "server"], "400"),
            ("/", &["server", "server"], "400"),
            ("/", &["server,closed"], "400"),
            ("/", &["server.evil"], "403"),
            ("/", &[], "400"),
        ] {
            for (how, answer) in ways.both(ask(target, hosts).as_bytes())? {
                ensure!(statuses(&answer) == [status], "{target} {hosts:?} by {how}: {answer}");
            }
        }
        attacker.malformed_are(ip, bad + 10)?;
        // The target is what counts, and all that the application gets to see.
        let after = ways.both(ask("http://server/x", &["closed"]).as_bytes())?;
        for (how, answer) in &after {
            ensure!(
                body(answer)?["host"] == "server" && !body(answer)?.to_string().contains("closed"),
                "{how}: {answer}"
            );
        }
        let count = served(&after[1].1)?;
        ensure!(count == before + 2, "{} of them reached the application", count - before - 2);
        Ok(())
    });
}

/// What came with an upgrade, or behind a body of disputed length, would pass the policy.
#[test]
fn nothing_is_smuggled_behind_an_upgrade_to_http2_or_a_disputed_length() {
    scenario("smuggling", Injection::Label, |ns| {
        App::new("server").deploy(ns)?;
        let attacker = Attacker::deploy(ns)?;
        let server = ns.pod("app=server")?;
        let ip = address(&server)?;
        let ways = Ways::new(ns, &attacker, ip)?;
        ns.apply_json(&json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": { "name": "public" },
            "spec": { "action": "Allow", "rules": [{ "to": [{ "paths": [{ "prefix": "/public" }] }] }] } }))?;
        eventually("only what is public", SOON, || {
            let answer = attacker.plain((ip, 8080), get("/admin"))?;
            ensure!(statuses(&answer) == ["403"], "{answer}");
            Ok(())
        })?;
        let mut before = served(&attacker.plain((ip, 8080), get("/public"))?)?;
        // The preface, SETTINGS, and HEADERS of stream 3: GET /admin, as HPACK writes it without Huffman's code.
        let mut hidden = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
        let block = b"\x82\x86\x04\x06/admin\x01\x06server";
        hidden.extend([0, 0, block.len() as u8, 1, 5, 0, 0, 0, 3]);
        hidden.extend(block);
        for upgrade in ["h2c", "H2C", "websocket, h2c"] {
            let head = format!(
                "GET /public HTTP/1.1\r\nhost: server\r\nconnection: upgrade, http2-settings\r\nupgrade: {upgrade}\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n"
            );
            for (how, answer) in ways.both(&[head.as_bytes(), &hidden].concat())? {
                ensure!(statuses(&answer).first() == Some(&"200"), "{upgrade} by {how}: {answer}");
                ensure!(
                    !answer.contains("HTTP/1.1 101") && !answer.contains("/admin"),
                    "{upgrade} by {how}: {answer}"
                );
            }
        }
        before += 6;
        let bad = attacker.malformed(ip)?;
        let smuggled = "GET /admin HTTP/1.1\r\nhost: server\r\n\r\n";
        let disputed = [
            format!(
                "POST /public HTTP/1.1\r\nhost: server\r\ncontent-length: {}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}",
                5 + smuggled.len()
            ),
            format!(
                "POST /public HTTP/1.1\r\nhost: server\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n{smuggled}"
            ),
            format!(
                "POST /public HTTP/1.1\r\nhost: server\r\ncontent-length: 0\r\ncontent-length: {}\r\n\r\n{smuggled}",
                smuggled.len()
            ),
        ];
        for request in &disputed {
            for (how, answer) in ways.both(request.as_bytes())? {
                ensure!(
                    statuses(&answer) == ["400"] && answer.contains("weft-reason: bad-request"),
                    "{how}: {answer}"
                );
            }
        }
        attacker.malformed_are(ip, bad + 6)?;
        let after = served(&attacker.plain((ip, 8080), get("/public"))?)?;
        ensure!(after == before + 1, "{} hidden requests reached the application", after - before - 1);
        Ok(())
    });
}
