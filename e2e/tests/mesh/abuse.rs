//! Clients that do not behave: bounded, clean refusals, and everybody else is served on.

use anyhow::{Result, ensure};
use std::time::Instant;
use weft_api::Reason;
use weft_e2e::{App, Client, Injection, scenario};

/// Sends bytes to `host port` on a plain socket (the pod's proxy takes them) and returns what came back.
fn send(client: &Client<'_>, host: &str, bytes: &str) -> Result<String> {
    let script = format!("printf '{bytes}' | nc -w 5 {host}");
    Ok(client.shell(&script)?.stdout)
}

#[test]
fn malformed_http_gets_400_with_its_reason_and_never_reaches_the_application() {
    scenario("malformed", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let client = Client::deploy_shell(ns, "client")?;
        let cases = [
            (
                "two lengths",
                "GET / HTTP/1.1\\r\\nhost: back\\r\\ncontent-length: 3\\r\\ncontent-length: 4\\r\\n\\r\\nabcd",
            ),
            (
                "length that is no number",
                "POST / HTTP/1.1\\r\\nhost: back\\r\\ncontent-length: ten\\r\\n\\r\\n",
            ),
            ("space before the colon", "GET / HTTP/1.1\\r\\nhost: back\\r\\nx-a : b\\r\\n\\r\\n"),
            ("control character in a value", "GET / HTTP/1.1\\r\\nhost: back\\r\\nx-a: b\\001c\\r\\n\\r\\n"),
            (
                "unknown transfer coding",
                "POST / HTTP/1.1\\r\\nhost: back\\r\\ntransfer-encoding: gzip, nonsense\\r\\n\\r\\n",
            ),
            // What follows the chunks must not be taken for a second request by anybody.
            (
                "length, then chunked",
                "POST / HTTP/1.1\\r\\nhost: back\\r\\ncontent-length: 60\\r\\ntransfer-encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\nGET /smuggled HTTP/1.1\\r\\nhost: back\\r\\n\\r\\n",
            ),
            (
                "chunked, then length",
                "POST / HTTP/1.1\\r\\nhost: back\\r\\ntransfer-encoding: chunked\\r\\ncontent-length: 60\\r\\n\\r\\n0\\r\\n\\r\\nGET /smuggled HTTP/1.1\\r\\nhost: back\\r\\n\\r\\n",
            ),
            ("no host", "GET / HTTP/1.1\\r\\n\\r\\n"),
        ];
        for (what, bytes) in cases {
            let answer = send(&client, "back 80", bytes)?;
            ensure!(answer.starts_with("HTTP/1.1 400"), "{what}: `{answer}`");
            ensure!(
                answer.to_lowercase().contains(&format!("weft-reason: {}", Reason::BadRequest)),
                "{what}: no reason in `{answer}`"
            );
            ensure!(!answer.contains("\"pod\""), "{what}: the application answered: {answer}");
        }
        let served = client.run(&["curl", "-s", "http://back/"])?;
        ensure!(served.contains("\"count\":1,"), "the application has seen more than this request: {served}");
        Ok(())
    });
}

#[test]
fn headers_that_are_too_large_get_431() {
    scenario("large-headers", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let client = Client::deploy_shell(ns, "client")?;
        let status = |kib: u32| -> Result<String> {
            let script = format!(
                "head -c {} /dev/zero | tr '\\0' a > /tmp/h; (printf 'x-large: '; cat /tmp/h) > /tmp/v; curl -s -m 10 -o /dev/null -D - -H @/tmp/v http://back/",
                kib * 1024
            );
            Ok(client.shell(&script)?.stdout.to_lowercase())
        };
        ensure!(status(8)?.starts_with("http/1.1 200"), "8 KiB of headers: {}", status(8)?);
        let refused = status(200)?;
        ensure!(
            refused.starts_with("http/1.1 431") && refused.contains(Reason::HeadersTooLarge.as_str()),
            "200 KiB of headers: {refused}"
        );
        Ok(())
    });
}

#[test]
fn a_client_that_never_finishes_its_head_is_sent_away_in_bounded_time() {
    scenario("slow-client", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let client = Client::deploy_shell(ns, "client")?;
        let began = Instant::now();
        // The client itself would wait for 30 s before it closes.
        let said = client.shell(
            "(printf 'GET / HTTP/1.1\\r\\nhost: back\\r\\nx-sl'; sleep 30) | (nc back 80; echo; echo closed $(date +%s)) & date +%s; wait",
        )?;
        ensure!(
            said.stdout.contains("408") && said.stdout.contains(Reason::ClientTimeout.as_str()),
            "after {:?}: {}",
            began.elapsed(),
            said.stdout
        );
        let second = |word: Option<&str>| word.and_then(|w| w.trim().parse::<u64>().ok());
        let (opened, closed) = (said.stdout.lines().next(), said.stdout.rsplit("closed ").next());
        let (Some(opened), Some(closed)) = (second(opened), second(closed)) else {
            anyhow::bail!("no times in {}", said.stdout)
        };
        ensure!(closed - opened < 20, "sent away after {} s", closed - opened);
        Ok(())
    });
}

#[test]
fn noise_on_an_http_port_closes_the_connection_and_nothing_else() {
    scenario("noise", Injection::Label, |ns| {
        App::new("back").deploy(ns)?;
        let client = Client::deploy_shell(ns, "client")?;
        for _ in 0..20 {
            client.shell("head -c 5000 /dev/urandom | nc -w 2 back 80 >/dev/null 2>&1; true")?;
            client.shell("(printf '\\026\\003\\001\\002\\000\\001'; head -c 300 /dev/urandom) | nc -w 2 back 80 >/dev/null 2>&1; true")?;
            client.shell("(printf 'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n'; head -c 300 /dev/urandom) | nc -w 2 back 80 >/dev/null 2>&1; true")?;
        }
        let served = client.run(&["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://back/"])?;
        ensure!(served == "200", "afterwards: {served}");
        for selector in ["app=back", "app=client"] {
            let pod = ns.pod(selector)?;
            for status in pod["status"]["initContainerStatuses"].as_array().into_iter().flatten() {
                ensure!(status["restartCount"] == 0, "a proxy restarted: {status}");
            }
        }
        Ok(())
    });
}
