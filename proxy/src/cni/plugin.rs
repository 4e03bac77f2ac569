//! The plugin as a container runtime starts it: environment and standard input in, standard output and exit code out. Composes
//! [`super::protocol`] (what is said) and [`crate::init`] (the rules). It runs once for each pod, as root on the node.

use std::fs::File;
use std::io::{Read, Write};
use std::process::ExitCode;

use nix::sched::{CloneFlags, setns};

use super::protocol::{self, Command, Config, Refusal};
use crate::init;

/// A configuration with all that a runtime adds is a few KiB.
const LONGEST: u64 = 4 << 20;

/// Does what `CNI_COMMAND` says.
#[must_use]
pub fn run() -> ExitCode {
    let mut text = Vec::new();
    let read = std::io::stdin().take(LONGEST).read_to_end(&mut text);
    let (answer, code) = match read {
        Ok(_) => answer(&text, |name| std::env::var(name).ok()),
        Err(error) => (Refusal::new(5, format!("standard input: {error}")).text("1.0.0"), ExitCode::FAILURE),
    };
    match std::io::stdout().write_all(answer.as_bytes()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

fn answer(text: &[u8], variable: impl Fn(&str) -> Option<String>) -> (String, ExitCode) {
    let command = protocol::command(variable("CNI_COMMAND").as_deref());
    if command == Ok(Command::Version) {
        return (protocol::versions(text), ExitCode::SUCCESS);
    }
    let config = match protocol::config(text) {
        Ok(config) => config,
        Err(refusal) => return (refusal.text("1.0.0"), ExitCode::FAILURE),
    };
    let done = command.and_then(|command| carry_out(command, &config, variable("CNI_NETNS").as_deref()));
    match done {
        Ok(said) => (said, ExitCode::SUCCESS),
        Err(refusal) => (refusal.text(&config.version), ExitCode::FAILURE),
    }
}

fn carry_out(command: Command, config: &Config, netns: Option<&str>) -> Result<String, Refusal> {
    if command == Command::Nothing {
        return Ok(String::new());
    }
    let result = config.result()?;
    if let Some(args) = config.rules()? {
        enter(netns.filter(|path| !path.is_empty()))?;
        let done = if command == Command::Add { init::run(&args) } else { init::verify(&args) };
        done.map_err(|error| Refusal::new(100, format!("weft-cni: {error:#}")))?;
    }
    Ok(if command == Command::Add { result } else { String::new() })
}

/// This thread, the only one, for the rest of its life.
fn enter(netns: Option<&str>) -> Result<(), Refusal> {
    let path = netns.ok_or_else(|| Refusal::new(4, "CNI_NETNS is not set"))?;
    let namespace = File::open(path).map_err(|error| Refusal::new(5, format!("{path}: {error}")))?;
    setns(namespace, CloneFlags::CLONE_NEWNET)
        .map_err(|error| Refusal::new(5, format!("cannot enter {path}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn answered(command: &str, config: &Value) -> (Value, bool) {
        let (text, code) =
            answer(config.to_string().as_bytes(), |name| (name == "CNI_COMMAND").then(|| command.to_owned()));
        (serde_json::from_str(&text).unwrap_or_default(), code == ExitCode::SUCCESS)
    }

    #[test]
    fn pods_outside_of_the_mesh_are_passed_on_untouched_and_deleting_always_succeeds() {
        let config = json!({ "cniVersion": "0.4.0", "prevResult": { "ips": [] } });
        assert_eq!(answered("ADD", &config), (json!({ "cniVersion": "0.4.0", "ips": [] }), true));
        for command in ["CHECK", "DEL", "GC", "STATUS"] {
            assert_eq!(answered(command, &config), (Value::Null, true), "{command}");
        }
        assert_eq!(answered("DEL", &json!({ "cniVersion": "1.0.0" })), (Value::Null, true));
    }

    #[test]
    fn an_injected_pod_whose_namespace_is_not_there_is_not_made() {
        let config = json!({ "cniVersion": "1.0.0", "prevResult": {},
            "runtimeConfig": { "io.kubernetes.cri.pod-annotations": { "weft.dev/redirection": "{}" } } });
        let (said, ok) = answered("ADD", &config);
        assert!(!ok && said["code"] == 4 && said["msg"].as_str().unwrap().contains("CNI_NETNS"), "{said}");
        let (said, ok) = answered("NONSENSE", &config);
        assert!(!ok && said["code"] == 4, "{said}");
    }
}
