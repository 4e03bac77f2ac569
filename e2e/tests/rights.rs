//! What the chart's parts may do, word for word: every rule of every role of the chart is in the table of docs/security.md, and
//! the table has no other. So a new right has to be written down, and whoever reads the table reads all. Also: how every pod of
//! the chart is confined. Reads the templates themselves; needs no cluster.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the report")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn templates(folder: &Path, into: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            templates(&path, into);
        } else if path.extension().is_some_and(|ext| ext == "yaml") {
            into.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
        }
    }
}

/// The documents of all templates, with the lines left out that are helm's alone.
fn documents() -> Vec<(String, String)> {
    let mut files = Vec::new();
    templates(&root().join("charts/weft/templates"), &mut files);
    files.sort();
    assert!(files.len() >= 8, "the templates are somewhere else");
    let plain = |text: &str| {
        let lines = text.lines().filter(|line| !line.trim_start().starts_with("{{"));
        lines.collect::<Vec<_>>().join("\n").replace("{{ . | quote }}", "\"(rootSecret)\"")
    };
    files
        .into_iter()
        .flat_map(|(file, text)| {
            let documents: Vec<String> = text.split("\n---").map(plain).collect();
            documents.into_iter().map(move |document| (file.clone(), document))
        })
        .collect()
}

fn line_after<'a>(document: &'a str, key: &str) -> &'a str {
    document.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim()
}

fn words(list: &Value) -> String {
    let words = list.as_array().into_iter().flatten();
    words.map(|word| word.as_str().unwrap().to_owned()).collect::<Vec<_>>().join(", ")
}

/// A line of the table for each rule.
fn rights() -> Vec<String> {
    let mut all = Vec::new();
    for (file, document) in documents() {
        let kind = line_after(&document, "kind: ");
        if !matches!(kind, "Role" | "ClusterRole") {
            continue;
        }
        let name = line_after(&document, "  name: ");
        let (_, rules) = document.split_once("\nrules:").expect("a role has rules");
        assert!(!rules.contains("{{"), "{file}: this test does not see what {name} comes to");
        let rules: Value = serde_yaml::from_str(&format!("rules:{rules}")).unwrap();
        for rule in rules["rules"].as_array().unwrap() {
            let fields: Vec<&str> = rule.as_object().unwrap().keys().map(String::as_str).collect();
            let known = ["apiGroups", "resources", "resourceNames", "verbs"];
            assert!(fields.iter().all(|field| known.contains(field)), "{name}: {fields:?}");
            let group = match words(&rule["apiGroups"]) {
                core if core.is_empty() => "core".to_owned(),
                group => group,
            };
            let named = match &rule["resourceNames"] {
                Value::Null => "any".to_owned(),
                names => words(names),
            };
            let (resources, verbs) = (words(&rule["resources"]), words(&rule["verbs"]));
            for text in [&group, &resources, &named, &verbs] {
                assert!(!text.contains('*'), "{name} has a right to everything: {rule}");
            }
            all.push(format!("| {kind} `{name}` | {group} | {resources} | {named} | {verbs} |"));
        }
    }
    all
}

#[test]
fn every_right_of_the_chart_is_in_the_table_of_the_security_page_and_no_other() {
    let page = fs::read_to_string(root().join("docs/security.md")).unwrap();
    let (_, rest) = page.split_once("<!-- rights -->\n").expect("docs/security.md has the table");
    let (table, _) = rest.split_once("<!-- /rights -->").unwrap();
    let written: Vec<&str> = table.lines().skip(2).filter(|line| !line.is_empty()).collect();
    let all = rights();
    assert!(all.len() > 20, "only {} rules were found", all.len());
    assert_eq!(written, all, "the table should be:\n{}\n", all.join("\n"));
}

#[test]
fn nobody_but_the_operator_reads_secrets_and_it_only_by_name() {
    for line in rights().iter().filter(|line| line.contains("secrets")) {
        let creates = line.ends_with("| any | create |");
        assert!(creates || !line.contains("| any |"), "{line}");
        assert!(line.contains("`weft-operator`") || line.ends_with("| weft-ca | delete |"), "{line}");
    }
}

/// The helpers that confine pods, and that every pod and container uses them.
#[test]
fn every_pod_of_the_chart_is_confined() {
    let helpers = fs::read_to_string(root().join("charts/weft/templates/_helpers.tpl")).unwrap();
    for line in [
        "runAsNonRoot: true",
        "seccompProfile: {type: RuntimeDefault}",
        "allowPrivilegeEscalation: false",
        "readOnlyRootFilesystem: true",
        "capabilities: {drop: [ALL]}",
    ] {
        assert!(helpers.contains(&format!("\n{line}\n")), "{line} is gone");
    }
    let mut files = Vec::new();
    templates(&root().join("charts/weft/templates"), &mut files);
    let mut containers = 0;
    for (file, text) in files {
        let images = text.matches("\n          image: ").count() + text.matches("\n      image: ").count();
        let confined = text.matches("include \"weft.containerSecurity\"").count();
        assert_eq!(images, confined, "{file}: a container without its security context");
        let pod = text.matches("include \"weft.podSecurity\"").count()
            + text.matches("include \"weft.podCommon\"").count();
        assert_eq!(pod, usize::from(images > 0), "{file}: a pod without its security context");
        for word in ["hostNetwork", "hostPID", "hostIPC", "hostPath", "privileged: true"] {
            // The plugin of the nodes' network is theirs, so its installer cannot do without these two.
            let needed = file.ends_with("/cni/daemonset.yaml") && ["hostNetwork", "hostPath"].contains(&word);
            assert!(needed || !text.contains(word), "{file} has {word}");
        }
        containers += images;
    }
    assert_eq!(containers, 5, "operator, webhook, CNI installer, clean-up and helm test");
}
