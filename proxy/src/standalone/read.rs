//! From the file's text to its values, with every mistake named and not only the first: what is wrong is taken out and the
//! rest read again. Pure. It judges the form of each value, not what they mean together.

use serde_json::{Map, Value as Json};
use serde_path_to_error::{Path, Segment};
use serde_yaml::Value as Yaml;

use super::file::File;

/// Mistakes that are named at most; whoever has more than these has another kind of file.
const MAX_PROBLEMS: usize = 50;
/// A file with ten thousand endpoints is about this large.
pub(super) const MAX_SIZE: u64 = 4 << 20;

/// Parses the text.
pub(super) fn parse(text: &str) -> Result<File, Vec<String>> {
    let yaml: Yaml = serde_yaml::from_str(text).map_err(|e| vec![format!("it is not YAML: {e}")])?;
    let mut json = match yaml {
        Yaml::Null => Json::Object(Map::new()),
        yaml => to_json(yaml).map_err(|problem| vec![problem])?,
    };
    let mut problems = Vec::new();
    loop {
        let error = match serde_path_to_error::deserialize::<_, File>(&json) {
            Ok(file) if problems.is_empty() => return Ok(file),
            Ok(_) => return Err(problems),
            Err(error) => error,
        };
        let path = error.path().clone();
        let at = if path.iter().next().is_none() { String::new() } else { format!("{path}: ") };
        problems.push(format!("{at}{}", error.into_inner()));
        if problems.len() >= MAX_PROBLEMS || !remove(&mut json, &path) {
            return Err(problems);
        }
    }
}

/// YAML has keys of any kind (`8080: Strict`); what is read here has texts.
fn to_json(yaml: Yaml) -> Result<Json, String> {
    Ok(match yaml {
        Yaml::Null => Json::Null,
        Yaml::Bool(value) => Json::Bool(value),
        Yaml::Number(number) => serde_json::to_value(number).map_err(|e| e.to_string())?,
        Yaml::String(text) => Json::String(text),
        Yaml::Sequence(items) => Json::Array(items.into_iter().map(to_json).collect::<Result<_, _>>()?),
        Yaml::Mapping(entries) => {
            let entry = |(key, value)| Ok((key_text(key)?, to_json(value)?));
            Json::Object(entries.into_iter().map(entry).collect::<Result<_, String>>()?)
        }
        Yaml::Tagged(tagged) => return Err(format!("`{}`: tags are not used here", tagged.tag)),
    })
}

fn key_text(key: Yaml) -> Result<String, String> {
    match key {
        Yaml::String(text) => Ok(text),
        Yaml::Number(number) => Ok(number.to_string()),
        Yaml::Bool(value) => Ok(value.to_string()),
        _ => Err("a key is neither a text nor a number".to_owned()),
    }
}

/// Takes out what a path leads to, as deep as it goes. Whether there was anything to take out.
fn remove(json: &mut Json, path: &Path) -> bool {
    let segments: Vec<&Segment> = path.iter().collect();
    let Some((last, parents)) = segments.split_last() else { return false };
    let mut at = json;
    for segment in parents {
        let next = match segment {
            Segment::Map { key } => at.get_mut(key),
            Segment::Seq { index } => at.get_mut(index),
            // Of an enum, whose variant is a key too.
            Segment::Enum { variant } => at.get_mut(variant),
            Segment::Unknown => None,
        };
        match next {
            Some(next) => at = next,
            None => return false,
        }
    }
    match (last, at) {
        (Segment::Map { key } | Segment::Enum { variant: key }, Json::Object(map)) => {
            map.remove(key).is_some()
        }
        (Segment::Seq { index }, Json::Array(items)) if *index < items.len() => {
            items.remove(*index);
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use weft_api::v1;

    #[test]
    fn an_empty_file_has_all_defaults() {
        assert_eq!(parse("").unwrap(), File::default());
        assert_eq!(parse("# nothing\n").unwrap(), File::default());
    }

    #[test]
    fn what_the_operator_says_can_be_written() {
        let file = parse(
            "
workload: {portMtls: {8080: Permissive}, probes: [{port: 80, kind: {httpPath: /healthz}}]}
services:
  - namespace: shop
    name: back
    port: 80
    protocol: HTTP1
    routes:
      - matches: [{path: {prefix: /v2}, method: GET, headers: [{name: x-tester, value: {exact: yes}}]}]
        backends: [{cluster: v2}]
        retry: {attempts: 2, on: [ConnectFailure, 5xx]}
    clusters:
      - {name: v2, balancer: LeastRequest, endpoints: [{address: 'back:80'}]}
",
        )
        .unwrap();
        let service = &file.services[0];
        assert_eq!(service.protocol(), v1::Protocol::Http1);
        assert_eq!(service.clusters[0].balancer(), v1::Balancer::LeastRequest);
        // Not the wire's 0, which means "only when nothing else is left".
        assert_eq!((service.clusters[0].endpoints[0].weight, service.routes[0].backends[0].weight), (1, 1));
        let retry = service.routes[0].retry.as_ref().unwrap();
        assert_eq!(retry.on, [v1::RetryOn::ConnectFailure as i32, v1::RetryOn::RetryOn5xx as i32]);
        assert_eq!(service.routes[0].matches[0].path, Some(v1::r#match::Path::PathPrefix("/v2".to_owned())));
        assert_eq!(file.workload.port_mtls[&8080], v1::MtlsMode::Permissive as i32);
    }

    #[test]
    fn every_mistake_is_named_with_its_place() {
        let problems = parse(
            "
worker: 2
workers: many
listeners:
  outbound: [{address: nowhere, service: a}, {address: '127.0.0.1:80'}]
services:
  - {name: back, clusters: [{balancer: Fastest, endpoint: []}], routes: [{matches: [{path: {suffix: /a}}]}]}
",
        )
        .unwrap_err();
        for wanted in [
            "worker: unknown field `worker`",
            "workers: invalid type",
            "listeners.outbound[0].address: invalid socket address",
            "missing field `service`",
            "services[0].clusters[0].balancer: `Fastest` is none of PeakEwma",
            "services[0].clusters[0].endpoint: unknown field `endpoint`",
            "unknown variant `suffix`, expected one of `exact`, `prefix`, `regex`",
        ] {
            assert!(problems.iter().any(|p| p.contains(wanted)), "{wanted} is not in {problems:#?}");
        }
    }

    #[test]
    fn what_is_not_yaml_at_all_is_told() {
        assert!(parse("a: [1").unwrap_err()[0].starts_with("it is not YAML: "));
        assert_eq!(parse("- 1").unwrap_err().len(), 1);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a-z0-9 :{}\\[\\],\n'!&*-]{0,120}") {
            let _ = parse(&text);
        }
    }
}
