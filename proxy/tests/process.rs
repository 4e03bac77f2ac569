//! The program as a whole, without a cluster.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the report")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_weft-proxy");

struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start() -> Running {
    let mut child = Command::new(PROGRAM)
        .arg("run")
        .env_clear()
        .envs([
            ("WEFT_POD_NAME", "front-1"),
            ("WEFT_POD_NAMESPACE", "shop"),
            ("WEFT_POD_IPS", "127.0.0.1"),
            ("WEFT_SERVICE_ACCOUNT", "front"),
            // Nobody listens there.
            ("WEFT_OPERATOR_ADDRESS", "127.0.0.1:1"),
            ("WEFT_OPERATOR_NAMESPACE", "weft-system"),
            ("WEFT_TOKEN_FILE", "/nonexistent/token"),
            ("WEFT_OUTBOUND_PORT", "0"),
            ("WEFT_INBOUND_PORT", "0"),
            ("WEFT_ADMIN_PORT", "0"),
            ("WEFT_METRICS_PORT", "0"),
            ("WEFT_CHECK_PORT", "0"),
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    Running { child, lines }
}

impl Running {
    fn line(&mut self, message: &str) -> Value {
        for line in self.lines.by_ref() {
            let line: Value = serde_json::from_str(&line.unwrap()).expect("every line of the log is JSON");
            if line["message"] == message {
                return line;
            }
        }
        panic!("`{message}` was not logged");
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    fn exit_within(&mut self, patience: Duration) -> Option<i32> {
        let start = Instant::now();
        while start.elapsed() < patience {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("it did not end within {patience:?}");
    }
}

fn get(at: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, at.port())).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn bad_configuration_ends_with_64_and_names_everything_that_is_wrong() {
    let output = Command::new(PROGRAM)
        .arg("run")
        .env_clear()
        .envs([("WEFT_WORKERS", "none"), ("WEFT_POD_NAME", "front-1"), ("WEFT_LOG", "loud")])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    let said = String::from_utf8(output.stderr).unwrap();
    for name in ["WEFT_WORKERS", "WEFT_LOG", "WEFT_POD_NAMESPACE", "WEFT_POD_IPS", "WEFT_OPERATOR_ADDRESS"] {
        assert!(said.contains(name), "{name} is not in {said}");
    }
    assert!(!said.contains("WEFT_POD_NAME "), "{said}");
}

#[test]
fn without_a_certificate_it_lives_but_is_not_ready_and_says_why_and_stops_when_told() {
    let mut proxy = start();
    let ports = proxy.line("serving admin and metrics");
    let metrics: SocketAddr = ports["metrics"].as_str().unwrap().parse().unwrap();
    proxy.line("listening");
    let why = proxy.line("no certificate");
    assert!(why["reason"].as_str().unwrap().contains("/nonexistent/token"), "{why}");
    assert!(get(metrics, "/live").starts_with("HTTP/1.1 200"));
    let ready = get(metrics, "/ready");
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("/nonexistent/token"), "{ready}");
    assert!(get(metrics, "/metrics").contains("weft_certificate_failures_total"));

    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.exit_within(Duration::from_secs(5)), Some(0));
}

#[test]
fn a_port_that_is_taken_is_an_error_that_names_itself() {
    let mut first = start();
    let ports = first.line("serving admin and metrics");
    let port = ports["admin"].as_str().unwrap().parse::<SocketAddr>().unwrap().port();
    let output = Command::new(PROGRAM)
        .arg("run")
        .env_clear()
        .envs([
            ("WEFT_POD_NAME", "front-1"),
            ("WEFT_POD_NAMESPACE", "shop"),
            ("WEFT_POD_IPS", "127.0.0.1"),
            ("WEFT_SERVICE_ACCOUNT", "front"),
            ("WEFT_OPERATOR_ADDRESS", "weft-operator.weft-system.svc:15010"),
        ])
        .env("WEFT_ADMIN_PORT", port.to_string())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("cannot listen for the admin API"), "{said}");
}
