//! What is said between a container runtime and the plugin. Pure: text in, text out. Source: the CNI specification 1.1
//! (sections 2, 4 and 5); older versions of it are subsets.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Value, json};
use weft_api::names;

use super::ANNOTATIONS;
use crate::init::Args;

/// Versions that are spoken. Before 0.3.0 there were no lists to be chained in.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What the runtime wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// The pod is being made.
    Add,
    /// Is it as it was made?
    Check,
    /// Nothing that the plugin would have to do something for: the rules go with the pod's network namespace.
    Nothing,
    /// Which versions are spoken.
    Version,
}

/// An error as the specification wants it: a code of its list, and a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// 1: version; 4: environment; 5: input or output; 6: not JSON; 7: configuration; 100 and above: the plugin's own.
    pub code: u32,
    /// For whoever reads the pod's events.
    pub message: String,
}

impl Refusal {
    /// With a sentence.
    pub fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// As it is written to standard output.
    #[must_use]
    pub fn text(&self, version: &str) -> String {
        json!({ "cniVersion": version, "code": self.code, "msg": self.message }).to_string()
    }
}

/// The part of the configuration that matters here.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub struct Config {
    /// Of the specification.
    #[serde(rename = "cniVersion", default)]
    pub version: String,
    /// What the plugins before this one made.
    #[serde(rename = "prevResult")]
    pub before: Option<Value>,
    /// What the runtime tells of the pod.
    #[serde(rename = "runtimeConfig", default)]
    runtime: HashMap<String, Value>,
}

/// What the webhook says of a pod's redirection, by annotation [`names::REDIRECTION`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
struct Redirection {
    skip_inbound_ports: Vec<u16>,
    skip_outbound_ports: Vec<u16>,
    skip_outbound_cidrs: Vec<String>,
}

/// By `CNI_COMMAND`.
///
/// # Errors
/// It is none.
pub fn command(name: Option<&str>) -> Result<Command, Refusal> {
    match name {
        Some("ADD") => Ok(Command::Add),
        Some("CHECK") => Ok(Command::Check),
        Some("DEL" | "GC" | "STATUS") => Ok(Command::Nothing),
        Some("VERSION") => Ok(Command::Version),
        other => Err(Refusal::new(4, format!("CNI_COMMAND is `{}`", other.unwrap_or_default()))),
    }
}

/// Reads the configuration.
///
/// # Errors
/// It is not one, or of a version that is not spoken.
pub fn config(text: &[u8]) -> Result<Config, Refusal> {
    let config: Config = serde_json::from_slice(text)
        .map_err(|error| Refusal::new(6, format!("the configuration is not understood: {error}")))?;
    if VERSIONS.contains(&config.version.as_str()) {
        Ok(config)
    } else {
        let message = format!("version `{}` is not spoken, only {}", config.version, VERSIONS.join(", "));
        Err(Refusal::new(1, message))
    }
}

impl Config {
    /// Which rules the pod gets. `None`: it is not injected, or the runtime tells no annotations. Then an injected pod's proxy
    /// finds out by itself that it has no rules, and never gets ready.
    ///
    /// # Errors
    /// The annotation is not what the webhook writes. A pod that would have other rules than it was admitted with is not made.
    pub fn rules(&self) -> Result<Option<Args>, Refusal> {
        let annotation = self.runtime.get(ANNOTATIONS).and_then(|all| all.get(names::REDIRECTION));
        let Some(text) = annotation.and_then(Value::as_str) else { return Ok(None) };
        let wrong = |error: String| Refusal::new(7, format!("annotation {}: {error}", names::REDIRECTION));
        let given: Redirection = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
        let networks = given.skip_outbound_cidrs.iter().map(|text| text.parse());
        Ok(Some(Args {
            skip_inbound_ports: given.skip_inbound_ports,
            skip_outbound_ports: given.skip_outbound_ports,
            skip_outbound_cidrs: networks.collect::<Result<_, String>>().map_err(wrong)?,
            ..Args::default()
        }))
    }

    /// What is passed on: what the plugins before this one made, for it changes nothing of it.
    ///
    /// # Errors
    /// Nothing was made before.
    pub fn result(&self) -> Result<String, Refusal> {
        let Some(Value::Object(before)) = &self.before else {
            return Err(Refusal::new(7, "weft-cni makes no network: chain it after a plugin that does"));
        };
        let mut result = before.clone();
        result.insert("cniVersion".into(), self.version.clone().into());
        Ok(Value::Object(result).to_string())
    }
}

/// The answer to VERSION.
#[must_use]
pub fn versions(text: &[u8]) -> String {
    let asked: Config = serde_json::from_slice(text).unwrap_or_default();
    let version = if asked.version.is_empty() { "1.0.0" } else { &asked.version };
    json!({ "cniVersion": version, "supportedVersions": VERSIONS }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with(annotations: Value) -> Config {
        let text = json!({ "cniVersion": "1.0.0", "name": "n", "type": "weft-cni", "runtimeConfig": { ANNOTATIONS: annotations },
            "prevResult": { "cniVersion": "1.0.0", "ips": [{ "address": "10.0.0.1/24" }] } });
        config(text.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn an_injected_pod_gets_the_rules_that_the_webhook_worked_out() {
        let text = r#"{"skipInboundPorts":[9090],"skipOutboundPorts":[3306],"skipOutboundCidrs":["10.1.0.0/16"],"later":1}"#;
        let rules = with(json!({ names::REDIRECTION: text, "other": "x" })).rules().unwrap().unwrap();
        let wanted = Args {
            skip_inbound_ports: vec![9090],
            skip_outbound_ports: vec![3306],
            skip_outbound_cidrs: vec!["10.1.0.0/16".parse().unwrap()],
            ..Args::default()
        };
        assert_eq!(rules, wanted);
        assert_eq!(with(json!({ names::REDIRECTION: "{}" })).rules(), Ok(Some(Args::default())));
    }

    #[test]
    fn other_pods_get_none_and_a_broken_annotation_is_no_pod() {
        for none in [json!(null), json!({}), json!({ "weft.dev/inject": "enabled" })] {
            assert_eq!(with(none).rules(), Ok(None));
        }
        for broken in ["", "x", r#"{"skipInboundPorts":"9"}"#, r#"{"skipOutboundCidrs":["10.0.0.0/99"]}"#] {
            let refusal = with(json!({ names::REDIRECTION: broken })).rules().unwrap_err();
            assert!(refusal.code == 7 && refusal.message.contains("weft.dev/redirection"), "{refusal:?}");
        }
    }

    #[test]
    fn what_was_made_before_is_passed_on_in_the_version_that_was_asked_for() {
        let result: Value = serde_json::from_str(&with(json!({})).result().unwrap()).unwrap();
        assert_eq!(result, json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.0.0.1/24" }] }));
        let alone = config(br#"{"cniVersion":"0.4.0"}"#).unwrap();
        assert!(alone.result().unwrap_err().message.contains("chain it after"));
    }

    #[test]
    fn versions_and_errors_are_as_the_specification_wants() {
        assert_eq!(config(br#"{"cniVersion":"0.2.0"}"#).unwrap_err().code, 1);
        assert_eq!(config(b"{").unwrap_err().code, 6);
        let versions: Value = serde_json::from_str(&versions(br#"{"cniVersion":"0.4.0"}"#)).unwrap();
        assert_eq!(
            (&versions["cniVersion"], &versions["supportedVersions"][4]),
            (&json!("0.4.0"), &json!("1.1.0"))
        );
        let refusal: Value = serde_json::from_str(&Refusal::new(7, "why").text("1.0.0")).unwrap();
        assert_eq!(refusal, json!({ "cniVersion": "1.0.0", "code": 7, "msg": "why" }));
        assert_eq!(command(Some("DEL")), Ok(Command::Nothing));
        assert_eq!(command(None).unwrap_err().code, 4);
    }

    proptest! {
        #[test]
        fn nothing_that_a_runtime_or_a_pod_says_panics(text in "\\PC{0,80}") {
            let _ = config(text.as_bytes()).map(|config| config.rules());
            let _ = with(json!({ names::REDIRECTION: text })).rules();
        }
    }
}
