//! Every threat in the model of docs/security.md is guarded by a test that exists, and every kind of threat is thought of; and so is
//! every attack of the table of attacks, which leaves out no test of `attacks`.

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
        assert!(names_tests(&root, tests) > 0, "no test guards against: {threat}");
        rows += 1;
    }
    assert!(rows >= 30 && kinds.len() == 6, "{rows} threats of {kinds:?}");
}

/// Sees that each test that is named exists and is run; how many there are.
fn names_tests(root: &Path, cell: &str) -> usize {
    let named = cell.split('`').filter(|text| text.contains("::"));
    let seen = |test: &str| {
        let (file, name) = test.split_once("::").unwrap();
        let text = fs::read_to_string(root.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        let at = text.find(&format!("fn {name}()")).unwrap_or_else(|| panic!("{file} has no {name}"));
        // What is above it, up to the item before.
        let above = text[..at].rsplit("\n\n").next().unwrap();
        assert!(above.contains("#[test]") || above.contains("#[tokio::test"), "{test} is no test: {above}");
        assert!(!above.contains("#[ignore"), "{test} is never run");
    };
    named.map(seen).count()
}

#[test]
fn each_attack_names_a_test_against_the_running_mesh_and_each_such_test_is_named() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = fs::read_to_string(root.join("docs/security.md")).unwrap();
    let (_, rest) = page.split_once("<!-- attacks -->\n").expect("docs/security.md has the attacks");
    let (table, _) = rest.split_once("<!-- /attacks -->").unwrap();
    let rows: Vec<&str> = table.lines().skip(2).filter(|line| !line.is_empty()).collect();
    for row in &rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [attack, outcome, counted, tests] = cells[..] else { panic!("four cells: {row}") };
        assert!(!outcome.is_empty() && !counted.is_empty(), "{row}");
        assert!(names_tests(&root, tests) > 0, "no test attacks by: {attack}");
    }
    // The list that the mesh was asked to withstand; each of these words is an attack's.
    for word in [
        "no certificate",
        "expired",
        "not valid yet",
        "foreign root",
        "SPIFFE id",
        "wrong namespace",
        "authority",
        "name constraints",
        "huge chain",
        "replayed",
        "another audience",
        "deleted pod",
        "CSR",
        "stolen IP",
        "plaintext",
        "headers that state",
        "`..`",
        "`%2f`",
        "`//`",
        "`;`",
        "case",
        "NUL",
        "two Hosts",
        "h2c",
        "`none`",
        "JWKS",
        "webhook",
        "stream",
    ] {
        assert!(
            rows.iter().any(|row| row.split(" | ").next().unwrap().contains(word)),
            "no attack by {word}"
        );
    }
    for entry in fs::read_dir(root.join("e2e/tests/attacks")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        for test in text.split("#[test]\nfn ").skip(1) {
            let (name, _) = test.split_once('(').unwrap();
            assert!(table.contains(&format!("::{name}`")), "{name} of {} is in no row", path.display());
        }
    }
}
