//! Compiles proto/weft.proto in pure Rust (protox), so that no protoc is needed. What a proxy is told (workload, services,
//! addresses) can also be read from and written as text by serde: names in camelCase, nothing unknown, absent means
//! default, values of enums by their names. It is worked out from the file itself, so that a new field has it too.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use tonic_prost_build::Builder;

/// What a configuration file may hold, with all that they hold.
const IN_TEXT: [&str; 3] = ["Workload", "Service", "Address"];

fn main() {
    println!("cargo:rerun-if-changed=proto/weft.proto");
    let files = match protox::compile(["proto/weft.proto"], ["proto"]) {
        Ok(files) => files,
        Err(error) => panic!("proto/weft.proto does not compile: {error:?}"),
    };
    let mut names = String::new();
    let builder = in_text(tonic_prost_build::configure().bytes("."), &files, &mut names);
    if let Err(error) = builder.compile_fds(files) {
        panic!("cannot write the generated code: {error}");
    }
    let out = std::env::var("OUT_DIR").unwrap_or_default();
    if let Err(error) = std::fs::write(format!("{out}/names.rs"), names) {
        panic!("cannot write the names of enums: {error}");
    }
}

fn in_text(mut builder: Builder, files: &FileDescriptorSet, names: &mut String) -> Builder {
    let mut messages = HashMap::new();
    for file in files.file.iter().filter(|file| file.package() == "weft.v1") {
        for message in &file.message_type {
            collect(&format!(".{}.{}", file.package(), message.name()), message, &mut messages);
        }
        for listed in &file.enum_type {
            write_names(listed, names);
        }
    }
    let (mut done, mut open) = (BTreeSet::new(), IN_TEXT.map(|name| format!(".weft.v1.{name}")).to_vec());
    while let Some(path) = open.pop() {
        let Some(message) = messages.get(&path) else { continue };
        if !done.insert(path.clone()) {
            continue;
        }
        let map_entry = message.options.as_ref().is_some_and(|options| options.map_entry());
        open.extend(
            message.field.iter().filter(|f| f.r#type() == Type::Message).map(|f| f.type_name().to_owned()),
        );
        if !map_entry {
            builder = message_in_text(builder, &path, message, &messages);
        }
    }
    builder
}

fn collect<'a>(path: &str, message: &'a DescriptorProto, into: &mut HashMap<String, &'a DescriptorProto>) {
    into.insert(path.to_owned(), message);
    for nested in &message.nested_type {
        collect(&format!("{path}.{}", nested.name()), nested, into);
    }
}

fn message_in_text(
    mut builder: Builder,
    path: &str,
    message: &DescriptorProto,
    messages: &HashMap<String, &DescriptorProto>,
) -> Builder {
    const DERIVE: &str = "#[derive(serde::Serialize, serde::Deserialize)]";
    builder = builder
        .message_attribute(path, DERIVE)
        .message_attribute(path, "#[serde(rename_all = \"camelCase\", deny_unknown_fields, default)]");
    for (index, choice) in message.oneof_decl.iter().enumerate() {
        let members = message.field.iter().filter(|f| f.oneof_index == i32::try_from(index).ok());
        // `optional` is a oneof of one, which the generated code does not show.
        if members.clone().any(FieldDescriptorProto::proto3_optional) {
            continue;
        }
        let at = format!("{path}.{}", choice.name());
        builder =
            builder.enum_attribute(&at, DERIVE).enum_attribute(&at, "#[serde(rename_all = \"camelCase\")]");
        for member in members {
            // `path: {exact: /a}` instead of `path: {pathExact: /a}`.
            let short = member.name().strip_prefix(&format!("{}_", choice.name()));
            if let Some(short) = short {
                builder = builder.field_attribute(
                    format!("{at}.{}", member.name()),
                    format!("#[serde(rename = \"{short}\")]"),
                );
            }
        }
    }
    for field in message.field.iter().filter(|f| f.name() == "weight") {
        // Nobody means "only when nothing else is left" by saying nothing.
        let at = format!("{path}.{}", field.name());
        builder = builder.field_attribute(at, "#[serde(default = \"crate::text::one\")]");
    }
    for field in message.field.iter().filter(|f| f.oneof_index.is_none() || f.proto3_optional()) {
        if let Some(with) = adapter(field, messages) {
            builder = builder
                .field_attribute(format!("{path}.{}", field.name()), format!("#[serde(with = \"{with}\")]"));
        }
    }
    builder
}

/// How a field is written whose generated type does not say what it means.
fn adapter(field: &FieldDescriptorProto, messages: &HashMap<String, &DescriptorProto>) -> Option<String> {
    let repeated = field.label() == Label::Repeated;
    let of = |field: &FieldDescriptorProto, form: &str| {
        let name = field.type_name().trim_start_matches(".weft.v1.").to_owned();
        (field.r#type() == Type::Enum).then(|| format!("crate::text::{form}::<{name}>"))
    };
    match field.r#type() {
        Type::Enum if repeated => of(field, "Names"),
        Type::Enum if field.proto3_optional() => of(field, "PerhapsName"),
        Type::Enum => of(field, "Name"),
        Type::Message if repeated => {
            let entry = messages.get(field.type_name())?;
            let is_map = entry.options.as_ref().is_some_and(|options| options.map_entry());
            of(entry.field.iter().find(|f| is_map && f.name() == "value")?, "NameByKey")
        }
        // Text as it stands, such as PEM.
        Type::Bytes if repeated => Some("crate::text::Texts".to_owned()),
        Type::Bytes => Some("crate::text::Text".to_owned()),
        _ => None,
    }
}

/// `impl Named for Balancer`: BALANCER_PEAK_EWMA is `PeakEwma`.
fn write_names(listed: &EnumDescriptorProto, out: &mut String) {
    let prefix: String = listed
        .name()
        .chars()
        .flat_map(|c| c.is_ascii_uppercase().then_some('_').into_iter().chain([c.to_ascii_uppercase()]))
        .collect();
    let prefix = format!("{}_", prefix.trim_start_matches('_'));
    let _ = write!(
        out,
        "impl crate::text::Named for {} {{\n    const NAMES: &'static [(&'static str, i32)] = &[",
        listed.name()
    );
    for value in &listed.value {
        let word = value.name().strip_prefix(&prefix).unwrap_or(value.name());
        let camel: String = word.split('_').map(capitalised).collect();
        let _ = write!(out, "(\"{camel}\", {}), ", value.number());
    }
    out.push_str("];\n}\n");
}

fn capitalised(word: &str) -> String {
    let (first, rest) = word.split_at(word.len().min(1));
    format!("{first}{}", rest.to_ascii_lowercase())
}
