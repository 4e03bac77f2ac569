//! The program by itself, without Kubernetes: real processes, with the files of `docs/examples/`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the report")]

#[allow(dead_code, reason = "shared with the in-process tests")]
#[path = "../path/apps.rs"]
mod apps;
#[allow(dead_code, reason = "shared with the in-process tests")]
#[path = "../path/clients.rs"]
mod clients;
#[allow(dead_code, reason = "shared with the in-process tests")]
#[path = "../path/collector.rs"]
mod collector;
mod compose;
mod process;
mod restart;
mod settings;
mod shed;
mod traces;
