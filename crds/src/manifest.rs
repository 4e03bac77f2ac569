//! The CustomResourceDefinitions as the chart ships them, and the checked texts made of them.
//! kube's derive says almost everything; here is only what it cannot say. It never touches a file or a cluster.

use crate::{
    AuthorizationPolicy, MeshService, PeerAuthentication, RequestAuthentication, TrafficPolicy, TrustDomain,
};
use kube::CustomResourceExt;
use serde_json::Value;

/// All definitions, by file name.
///
/// # Errors
/// Only if a type has no JSON form, which a test rules out.
pub fn all() -> Result<Vec<(String, Value)>, serde_json::Error> {
    let all = [
        MeshService::crd(),
        TrafficPolicy::crd(),
        PeerAuthentication::crd(),
        AuthorizationPolicy::crd(),
        RequestAuthentication::crd(),
        TrustDomain::crd(),
    ];
    all.into_iter()
        .map(|crd| {
            let name = format!("weft.dev_{}.yaml", crd.spec.names.plural);
            let mut value = serde_json::to_value(crd)?;
            tidy(&mut value);
            Ok((name, value))
        })
        .collect()
}

/// - No `nullable`: a null is the same as an absent field, and the API server then drops it, so that CEL's `has` is right.
/// - No `format` of unsigned integers: the API server warns of formats that it does not know; the bounds say the same.
/// - Bounds that are whole numbers are written as such.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.get("nullable").is_some_and(Value::is_boolean) {
                map.remove("nullable");
            }
            if let Some(format) = map.get("format").and_then(Value::as_str) {
                match format {
                    "uint8" | "uint16" | "uint32" => map.insert("format".into(), "int32".into()),
                    "uint64" => map.insert("format".into(), "int64".into()),
                    _ => None,
                };
            }
            for bound in ["minimum", "maximum"] {
                if let Some(whole) = map.get(bound).and_then(Value::as_f64).filter(|n| n.fract() == 0.0) {
                    #[allow(clippy::cast_possible_truncation)]
                    map.insert(bound.into(), Value::from(whole as i64));
                }
            }
            map.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}
