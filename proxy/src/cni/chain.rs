//! A list of CNI plugins with ours at its end, and without. Pure: the file's text in, the new text out. It never changes
//! another plugin's entry.

use serde_json::{Value, json};

use super::{ANNOTATIONS, PLUGIN};

/// Why a list cannot be changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// For example half written.
    #[error("it is not JSON: {0}")]
    NotJson(String),
    /// The configuration of a single plugin.
    #[error("it holds no list of plugins: only a list (`plugins`, a .conflist) can be chained to")]
    NoList,
}

/// The entry.
#[must_use]
pub fn entry() -> Value {
    json!({ "type": PLUGIN, "capabilities": { ANNOTATIONS: true } })
}

/// With ours last, once. `None`: it is so already.
///
/// # Errors
/// See [`Problem`].
pub fn chained(text: &str) -> Result<Option<String>, Problem> {
    changed(text, true)
}

/// Without ours. `None`: it is so already.
///
/// # Errors
/// See [`Problem`].
pub fn unchained(text: &str) -> Result<Option<String>, Problem> {
    changed(text, false)
}

fn changed(text: &str, with: bool) -> Result<Option<String>, Problem> {
    let mut list: Value = serde_json::from_str(text).map_err(|error| Problem::NotJson(error.to_string()))?;
    let plugins = list.get_mut("plugins").and_then(Value::as_array_mut).ok_or(Problem::NoList)?;
    let before = plugins.clone();
    plugins.retain(|plugin| plugin.get("type").and_then(Value::as_str) != Some(PLUGIN));
    // A list of nothing makes no network, so there is nothing to be chained after.
    if plugins.is_empty() && with {
        return Err(Problem::NoList);
    }
    if with {
        plugins.push(entry());
    }
    Ok((*plugins != before).then(|| format!("{list:#}\n")))
}

/// Which of a folder's files the container runtime takes: the first by name of those that may hold a configuration (libcni,
/// `ConfFiles`).
#[must_use]
pub fn first(names: &[String]) -> Option<&str> {
    names.iter().map(String::as_str).filter(|name| holds_configuration(name)).min()
}

/// By its name.
#[must_use]
pub fn holds_configuration(name: &str) -> bool {
    [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge", "x": [1, null]}, {"type": "portmap"}]}"#;

    #[test]
    fn ours_comes_last_once_and_leaves_no_trace() {
        let with = chained(LIST).unwrap().unwrap();
        let list: Value = serde_json::from_str(&with).unwrap();
        assert_eq!(list["plugins"][2], entry());
        assert_eq!(list["plugins"][0], json!({ "type": "bridge", "x": [1, null] }));
        assert_eq!(chained(&with), Ok(None));
        let without: Value = serde_json::from_str(&unchained(&with).unwrap().unwrap()).unwrap();
        assert_eq!(without, serde_json::from_str::<Value>(LIST).unwrap());
        assert_eq!(unchained(LIST), Ok(None));
    }

    #[test]
    fn an_older_entry_of_ours_or_one_in_the_middle_is_put_right() {
        let old = r#"{"plugins": [{"type": "bridge"}, {"type": "weft-cni", "kubeconfig": "/x"}, {"type": "portmap"}]}"#;
        let list: Value = serde_json::from_str(&chained(old).unwrap().unwrap()).unwrap();
        assert_eq!(list["plugins"], json!([{ "type": "bridge" }, { "type": "portmap" }, entry()]));
    }

    #[test]
    fn what_is_no_list_is_left_alone() {
        for text in [r#"{"type": "bridge"}"#, "[]", r#"{"plugins": []}"#, r#"{"plugins": 1}"#] {
            assert_eq!(chained(text), Err(Problem::NoList), "{text}");
        }
        assert!(matches!(chained(r#"{"plugins": [{"#), Err(Problem::NotJson(_))));
    }

    #[test]
    fn the_runtime_takes_the_first_configuration_by_name() {
        let names = ["99-b.conflist", "README", "10-a.conflist", ".10-a.conflist.tmp", "87-podman.conf"]
            .map(str::to_owned);
        assert_eq!(first(&names), Some("10-a.conflist"));
        assert_eq!(first(&["README".to_owned()]), None);
    }

    proptest! {
        #[test]
        fn nothing_in_a_file_panics(text in "\\PC{0,80}") {
            let _ = (chained(&text), unchained(&text));
        }
    }
}
