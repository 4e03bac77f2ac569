//! The benchmark itself, very short: that it measures, writes what it measured, and leaves nothing running. No time that it
//! measures decides anything here.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the report")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Built beside: `cargo test --workspace` builds every program before it runs a test.
fn proxy() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_weft-bench")).with_file_name("weft-proxy");
    assert!(path.exists(), "{} is not built; test with --workspace", path.display());
    path
}

fn bench(out: &Path, subjects: &str, seconds: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-bench"));
    command.arg("--proxy").arg(proxy()).arg("--out").arg(out);
    command.args(["--scenario", "a", "--subjects", subjects, "--rounds", "1", "--seconds-each", seconds]);
    command
}

#[test]
fn a_short_run_writes_rows_and_a_picture() {
    let out = tempfile::tempdir().unwrap();
    let output = bench(out.path(), "none,weft", "0.2").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));

    let results: Value = serde_json::from_slice(&fs::read(out.path().join("results.json")).unwrap()).unwrap();
    let rows = results["rows"].as_array().unwrap();
    for hops in [1, 2] {
        let row = rows.iter().find(|row| {
            row["scenario"] == "a"
                && row["hops"] == hops
                && row["subject"] == "weft"
                && row["metric"] == "cpu@16"
        });
        let row = row.unwrap_or_else(|| panic!("no figure for {hops} hops: {text}"));
        assert!(row["median"].as_f64().unwrap() > 0.0 && row["unit"] == "us", "{row}");
    }
    assert!(rows.iter().any(|row| row["subject"] == "none" && row["metric"] == "p99@1000/s"), "{text}");
    assert!(results["header"]["versions"]["weft"].is_string(), "{results:#}");
    assert!(fs::read_to_string(out.path().join("a.svg")).unwrap().starts_with("<svg"));
    assert!(!out.path().join("work").exists(), "files of subjects are left");
}

#[test]
fn an_interrupted_run_leaves_no_proxy() {
    let out = tempfile::tempdir().unwrap();
    let mut command = bench(out.path(), "weft", "60");
    let mut running = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let children = format!("/proc/{0}/task/{0}/children", running.id());
    let proxies = wait_for(|| {
        let text = fs::read_to_string(&children).unwrap();
        let ids: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        (!ids.is_empty()).then_some(ids)
    });
    // Even an end that lets it do nothing.
    kill(Pid::from_raw(running.id().cast_signed()), Signal::SIGKILL).unwrap();
    running.wait().unwrap();
    for id in proxies {
        wait_for(|| {
            let state = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            // Gone, or dead and not yet waited for by whoever took it over.
            (state.is_empty() || state.contains(") Z ")).then_some(())
        });
    }
}

fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(30) {
        if let Some(seen) = look() {
            return seen;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("it did not come");
}
