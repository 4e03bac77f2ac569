//! Every threat in the model of docs/security.md is guarded by a test that exists, and every kind of threat is thought of.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the report")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[test]
fn each_threat_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = fs::read_to_string(root.join("docs/security.md")).unwrap();
    let (_, rest) = page.split_once("<!-- threats -->\n").expect("docs/security.md has the model");
    let (table, _) = rest.split_once("<!-- /threats -->").unwrap();
    let (mut kinds, mut rows) = (BTreeSet::new(), 0);
    for row in table.lines().skip(2).filter(|line| !line.is_empty()) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [boundary, kind, threat, guard, tests] = cells[..] else { panic!("five cells: {row}") };
        assert!(!boundary.is_empty() && !guard.is_empty(), "{row}");
        assert!("STRIDE".contains(kind) && kind.len() == 1, "{kind}: {row}");
        kinds.insert(kind);
        let named: Vec<&str> = tests.split('`').filter(|text| text.contains("::")).collect();
        assert!(!named.is_empty(), "no test guards against: {threat}");
        for test in named {
            let (file, name) = test.split_once("::").unwrap();
            let text = fs::read_to_string(root.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
            let at = text.find(&format!("fn {name}()")).unwrap_or_else(|| panic!("{file} has no {name}"));
            // What is above it, up to the item before.
            let above = text[..at].rsplit("\n\n").next().unwrap();
            assert!(
                above.contains("#[test]") || above.contains("#[tokio::test"),
                "{test} is no test: {above}"
            );
            assert!(!above.contains("#[ignore"), "{test} is never run");
        }
        rows += 1;
    }
    assert!(rows >= 30 && kinds.len() == 6, "{rows} threats of {kinds:?}");
}
