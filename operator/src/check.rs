//! `weft-operator check`: asks readiness endpoints until each says yes. Run by `helm test` from a pod of its own, because
//! the images hold no shell and no curl. It needs no permission and changes nothing.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// What to ask.
#[derive(Args, Clone, Debug)]
pub struct Check {
    /// Readiness of the operator, such as http://10.96.0.7:15020/ready.
    #[arg(long)]
    pub operator_url: Target,
    /// Readiness of the webhook.
    #[arg(long)]
    pub webhook_url: Target,
    /// How long to try again.
    #[arg(long, default_value = "60s")]
    pub patience: weft_crds::Duration,
}

/// Where to ask. Only http, and always with a port; the brackets of an IPv6 address may be missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    host: String,
    port: u16,
    path: String,
}

impl std::str::FromStr for Target {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is not of the form http://host:port/path");
        let rest = text.strip_prefix("http://").ok_or_else(bad)?;
        let (authority, path) = rest.split_once('/').ok_or_else(bad)?;
        let (host, port) = authority.rsplit_once(':').ok_or_else(bad)?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || text.bytes().any(|b| b.is_ascii_whitespace() || b.is_ascii_control()) {
            return Err(bad());
        }
        Ok(Self { host: host.to_owned(), port: port.parse().map_err(|_| bad())?, path: format!("/{path}") })
    }
}

/// One attempt.
const ATTEMPT: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(500);
/// More of an answer is not read.
const LONGEST: u64 = 8 * 1024;

/// Asks until both are ready.
///
/// # Errors
/// When one was not ready in time, with its last answer.
pub async fn run(check: &Check) -> anyhow::Result<()> {
    let until = Instant::now() + check.patience.0;
    for (part, target) in [("operator", &check.operator_url), ("webhook", &check.webhook_url)] {
        wait(target, until).await.with_context(|| format!("the {part} is not ready"))?;
        println!("ok  {part} is ready");
    }
    Ok(())
}

async fn wait(target: &Target, until: Instant) -> anyhow::Result<()> {
    loop {
        let answer = timeout(ATTEMPT, ask(target)).await.unwrap_or_else(|_| bail!("no answer within 3 s"));
        match answer {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= until => return Err(error),
            Err(_) => sleep(PAUSE).await,
        }
    }
}

async fn ask(target: &Target) -> anyhow::Result<()> {
    let Target { host, port, path } = target;
    let mut stream = TcpStream::connect((host.as_str(), *port)).await.context("connecting")?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: weft\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).unwrap_or("no HTTP status");
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body.trim());
    ensure!(status == "200", "it answered {status}: {body}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[test]
    fn addresses_of_both_families_and_names_are_taken_and_other_texts_are_not() {
        let target = |text: &str| text.parse::<Target>().map(|t| (t.host, t.port, t.path));
        assert_eq!(target("http://10.0.0.1:80/ready"), Ok(("10.0.0.1".into(), 80, "/ready".into())));
        assert_eq!(target("http://[fd00::1]:80/"), Ok(("fd00::1".into(), 80, "/".into())));
        assert_eq!(target("http://fd00::1:80/"), Ok(("fd00::1".into(), 80, "/".into())));
        for bad in [
            "",
            "https://a:1/",
            "http://a/",
            "http://a:1",
            "http://:1/",
            "http://a:99999/",
            "http://a:1/\r\nx: y",
        ] {
            assert!(target(bad).is_err(), "{bad:?} was taken");
        }
    }

    async fn serves(answers: &'static [&'static str]) -> Target {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 256];
                let _ = stream.read(&mut request).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        format!("http://127.0.0.1:{port}/ready").parse().unwrap()
    }

    fn check(operator_url: Target, webhook_url: Target, patience: &str) -> Check {
        Check { operator_url, webhook_url, patience: patience.parse().unwrap() }
    }

    #[tokio::test]
    async fn a_part_that_becomes_ready_passes() {
        let operator = serves(&["HTTP/1.1 503 No\r\n\r\nwaiting", "HTTP/1.1 200 OK\r\n\r\nready"]).await;
        let webhook = serves(&["HTTP/1.1 200 OK\r\n\r\n"]).await;
        run(&check(operator, webhook, "10s")).await.unwrap();
    }

    #[tokio::test]
    async fn a_part_that_stays_unready_is_named_with_its_last_answer() {
        let operator = serves(&["HTTP/1.1 200 OK\r\n\r\n"]).await;
        let webhook = serves(&["HTTP/1.1 503 No\r\n\r\nno certificate"]).await;
        let error = format!("{:#}", run(&check(operator, webhook, "0s")).await.unwrap_err());
        assert_eq!(error, "the webhook is not ready: it answered 503: no certificate");
    }
}
