//! Proxies as processes, and ports for them.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::clients::{fetch, get};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_weft-proxy");
/// For whatever is waited for.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A port where nobody listens, outside of the range that the kernel gives to clients, so that none gets it meanwhile.
pub fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 10_000).unwrap();
    for _ in 0..10_000 {
        let port = 20_000 + (start + NEXT.fetch_add(1, Ordering::SeqCst)) % 10_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
}

pub fn address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port()))
}

/// A running proxy. Killed when dropped.
pub struct Proxy {
    child: Child,
    lines: Arc<Mutex<Vec<Value>>>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Proxy {
    /// Started, and waited for until it listens.
    pub fn start(file: &Path, arguments: &[&str]) -> Self {
        let proxy = Self::spawn(Command::new(PROGRAM).arg("--config").arg(file).args(arguments));
        proxy.line("listening");
        proxy
    }

    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.env_clear().stdout(Stdio::piped()).spawn().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (output, seen) = (BufReader::new(child.stdout.take().unwrap()), Arc::clone(&lines));
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).expect("every line of the log is JSON");
                seen.lock().unwrap().push(line);
            }
        });
        Self { child, lines }
    }

    pub fn lines(&self) -> Vec<Value> {
        self.lines.lock().unwrap().clone()
    }

    /// Waits for a message in the log.
    pub fn line(&self, message: &str) -> Value {
        self.find(message, |line| line["message"] == message)
    }

    pub fn find(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(line) = self.lines().into_iter().find(&fits) {
                return line;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("`{what}` is not in {:#?}", self.lines());
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Bytes that it holds in memory.
    pub fn resident(&self) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.id())).unwrap();
        let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
        pages * 4096
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn exit(&mut self) -> Option<i32> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("it did not end: {:#?}", self.lines());
    }
}

/// A file in a directory of its own.
pub struct Config {
    dir: tempfile::TempDir,
}

impl Config {
    pub fn new(text: &str) -> Self {
        let config = Self { dir: tempfile::tempdir().unwrap() };
        config.write(text);
        config
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("weft.yaml")
    }

    /// Replaces it whole.
    pub fn write(&self, text: &str) {
        std::fs::write(self.dir.path().join("next"), text).unwrap();
        std::fs::rename(self.dir.path().join("next"), self.path()).unwrap();
    }

    pub fn check(&self) -> (Option<i32>, String) {
        let Output { status, stderr, stdout } =
            Command::new(PROGRAM).arg("check").arg("--config").arg(self.path()).output().unwrap();
        (status.code(), String::from_utf8([stdout, stderr].concat()).unwrap())
    }
}

/// What the admin API, or another plain server, says.
pub async fn ask(at: SocketAddr, path: &str) -> String {
    fetch(at, get(path)).await.text()
}

/// Waits until it is so.
pub async fn until<F: Future<Output = bool>>(what: &str, mut so: impl FnMut() -> F) {
    let start = Instant::now();
    while !so().await {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
