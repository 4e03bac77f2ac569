//! Each field acts or is refused: so each is in a test of admission, in one of what proxies are told, and in one against a
//! real cluster. (That each has a sentence for the reference, `rules` sees.) A field counts as mentioned where one file has its
//! name and those of all fields around it. That a mention is a good test is for its reader to see; that there is none is
//! seen here.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the report")]

use std::fs;
use std::path::Path;

use serde_json::Value;

/// The helpers of the tests write these around what a test gives.
const AROUND: [&str; 1] = ["rules"];

/// Each field of the specs of all resources, with those around it.
fn fields() -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for (_, crd) in weft_crds::manifest::all().unwrap() {
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        walk(schema, &[kind.to_owned()], &mut all);
    }
    assert!(all.len() > 150, "{} fields: the walk has lost its way", all.len());
    all
}

fn walk(schema: &Value, path: &[String], all: &mut Vec<Vec<String>>) {
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        let path = [path, std::slice::from_ref(name)].concat();
        walk(inner, &path, all);
        all.push(path);
    }
    for inner in within(schema) {
        walk(inner, path, all);
    }
}

/// What a list or a map holds.
fn within(schema: &Value) -> impl Iterator<Item = &Value> {
    [&schema["items"], &schema["additionalProperties"]].into_iter().filter(|inner| inner.is_object())
}

/// The texts of a directory's files.
fn texts(directory: &str) -> Vec<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(directory);
    let files = fs::read_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let files =
        files.map(|file| file.unwrap().path()).filter(|file| file.extension().is_some_and(|e| e == "rs"));
    files.map(|file| fs::read_to_string(file).unwrap()).collect()
}

/// As a key of JSON, or of YAML.
fn names(text: &str, field: &str) -> bool {
    text.contains(&format!("\"{field}\"")) || text.contains(&format!(" {field}:"))
}

fn missing(texts: &[String]) -> Vec<String> {
    let mentioned = |path: &[String]| {
        let around = |name: &&String| !AROUND.contains(&name.as_str());
        texts.iter().any(|text| path.iter().filter(around).all(|name| names(text, name)))
    };
    fields().iter().filter(|path| !mentioned(&path[1..])).map(|path| path.join(".")).collect()
}

#[test]
fn every_field_is_in_a_test_against_a_cluster() {
    // What takes two clusters has a directory of its own.
    let missing = missing(&["e2e/tests/mesh", "e2e/tests/federation"].map(texts).concat());
    assert!(missing.is_empty(), "in no test of e2e/tests/mesh or federation:\n{}", missing.join("\n"));
}

#[test]
fn every_field_is_in_a_test_of_admission() {
    let missing = missing(&texts("crds/tests/rules"));
    assert!(missing.is_empty(), "in no test of crds/tests/rules:\n{}", missing.join("\n"));
}

#[test]
fn every_field_is_in_a_test_of_what_proxies_are_told() {
    // Where the operator fetches a bundle, proxies are not told: they get the bundle.
    let mut missing = missing(&texts("operator/src/compile/tests"));
    missing.retain(|field| !field.starts_with("TrustDomain.endpoint."));
    assert!(missing.is_empty(), "in no test of operator/src/compile/tests:\n{}", missing.join("\n"));
}

#[test]
fn a_field_that_nobody_mentions_is_found() {
    let text = r#"json!({ "circuitBreaker": { "maxRetries": 1 } })"#.to_owned();
    let missing = missing(&[text]);
    assert!(!missing.contains(&"TrafficPolicy.rules.circuitBreaker.maxRetries".to_owned()));
    assert!(missing.contains(&"TrafficPolicy.rules.circuitBreaker.maxPendingRequests".to_owned()));
}
