//! What can be said of a RequestAuthentication beyond its schema and CEL rules: keys that are none, claims and headers that make no
//! sense, and what makes sense but is seldom meant. And how texts about tokens are read. Pure.

use super::Problem;
use super::alone::certificates;
use super::jwks;
use super::peer_authentication::scope_of;
use super::texts::is_label_key;
use crate::RequestAuthentication;
use crate::request_authentication::Location;

/// Problems of a RequestAuthentication by itself.
#[must_use]
pub fn request_authentication(resource: &RequestAuthentication) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut bad = |field: String, message: String| problems.push(Problem { field, message });
    let keys = resource.spec.selector.iter().flat_map(|selector| selector.match_labels.keys());
    for key in keys.filter(|key| !is_label_key(key)) {
        bad("spec.selector.matchLabels".into(), format!("`{}` is not a label key", short(key)));
    }
    for (i, issuer) in resource.spec.issuers.iter().enumerate() {
        let at = format!("spec.issuers[{i}]");
        if let Some(Err(message)) = issuer.jwks.as_deref().map(jwks::read) {
            bad(format!("{at}.jwks"), message);
        }
        if issuer.jwks_ca_bundle.as_deref().is_some_and(|bundle| certificates(bundle).is_none()) {
            bad(
                format!("{at}.jwksCaBundle"),
                "is not a list of certificates in PEM: paste each from -----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----, and nothing secret".into(),
            );
        }
        for (c, given) in issuer.claims_to_headers.iter().enumerate() {
            if let Err(message) = claim_path(&given.claim) {
                bad(format!("{at}.claimsToHeaders[{c}].claim"), message);
            }
            let token = |location: &Location| {
                location.header.as_ref().is_some_and(|h| h.name.eq_ignore_ascii_case(&given.header))
            };
            if resource.spec.issuers.iter().flat_map(|issuer| &issuer.locations).any(token) {
                bad(
                    format!("{at}.claimsToHeaders[{c}].header"),
                    format!(
                        "{} is where a token is looked for, and would be taken away before: name another header",
                        given.header
                    ),
                );
            }
        }
    }
    problems
}

/// What may be meant otherwise.
#[must_use]
pub fn request_warnings(resource: &RequestAuthentication) -> Vec<String> {
    let mut warnings = Vec::new();
    for (i, issuer) in resource.spec.issuers.iter().enumerate() {
        if issuer.audiences.is_empty() {
            warnings.push(format!(
                "spec.issuers[{i}]: without audiences, tokens are taken that {} has made for somebody else: list what yours are made for",
                short(&issuer.issuer)
            ));
        }
        if issuer.jwks_uri.as_deref().is_some_and(|uri| uri.starts_with("http://")) {
            warnings.push(format!(
                "spec.issuers[{i}].jwksUri: over http, whoever is on the way can put keys of their own there: use https"
            ));
        }
    }
    warnings
}

/// Another one that says something of the same issuer for the same workloads; `root` is Weft's own namespace.
#[must_use]
pub fn same_issuer(
    resource: &RequestAuthentication,
    other: &RequestAuthentication,
    root: &str,
) -> Option<Problem> {
    let meta = |r: &RequestAuthentication| (r.metadata.namespace.clone(), r.metadata.name.clone());
    let scope =
        |r: &RequestAuthentication| scope_of(r.metadata.namespace.as_deref(), r.spec.selector.as_ref(), root);
    if meta(resource) == meta(other) || scope(resource) != scope(other) {
        return None;
    }
    let mut issuers = resource.spec.issuers.iter().enumerate();
    let (i, issuer) = issuers.find(|(_, a)| other.spec.issuers.iter().any(|b| a.issuer == b.issuer))?;
    Some(Problem {
        field: format!("spec.issuers[{i}].issuer"),
        message: format!(
            "RequestAuthentication {} already says what is taken of {} for the same workloads: change that one, or give this one another selector",
            other.metadata.name.as_deref().unwrap_or_default(),
            short(&issuer.issuer)
        ),
    })
}

/// A claim's name and those within objects: `a.b` is `b` within `a`, `a\.b` is one name.
///
/// # Errors
/// A sentence for the user.
pub fn claim_path(text: &str) -> Result<Vec<String>, String> {
    let (mut names, mut name, mut escaped) = (Vec::new(), String::new(), false);
    for c in text.chars() {
        match c {
            '.' | '\\' if escaped => {
                name.push(c);
                escaped = false;
            }
            _ if escaped => return Err("has a backslash before something else than a dot or a backslash: write `\\.` for a dot in a name".into()),
            '\\' => escaped = true,
            '.' => names.push(std::mem::take(&mut name)),
            c => name.push(c),
        }
    }
    names.push(name);
    if escaped || names.iter().any(String::is_empty) || names.len() > 8 {
        return Err(format!(
            "`{}` is not the name of a claim: write for example sub, or realm.roles for one within an object, at most 8 deep, and `\\.` for a dot in a name",
            short(text)
        ));
    }
    Ok(names)
}

/// Whose token: issuer and subject, `None` for any. The subject is what follows the last slash, so that nobody who may issue for
/// `https://a` can be taken for somebody of `https://a/b`.
#[must_use]
pub fn principal(text: &str) -> Option<(Option<&str>, Option<&str>)> {
    if text == "*" {
        return Some((None, None));
    }
    let (issuer, subject) = text.rsplit_once('/')?;
    let part = |text| match text {
        "*" => Some(None),
        text if text.is_empty() || text.contains('*') => None,
        text => Some(Some(text)),
    };
    Some((part(issuer)?, part(subject)?))
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const JWKS: &str =
        r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

    fn resource(namespace: &str, name: &str, selector: Value, issuers: Value) -> RequestAuthentication {
        let mut spec = json!({"issuers": issuers});
        if !selector.is_null() {
            spec["selector"] = json!({"matchLabels": selector});
        }
        serde_json::from_value(json!({"apiVersion": "weft.dev/v1alpha1", "kind": "RequestAuthentication",
            "metadata": {"name": name, "namespace": namespace}, "spec": spec}))
        .unwrap()
    }

    fn fields(issuer: Value) -> Vec<String> {
        let found = request_authentication(&resource("shop", "r", Value::Null, json!([issuer])));
        found.into_iter().map(|p| p.field.trim_start_matches("spec.issuers[0].").to_owned()).collect()
    }

    #[test]
    fn what_can_never_work_is_named() {
        assert_eq!(
            fields(
                json!({"issuer": "a", "jwks": JWKS, "claimsToHeaders": [{"header": "x-user", "claim": "sub"}]})
            ),
            Vec::<String>::new()
        );
        assert_eq!(fields(json!({"issuer": "a", "jwks": "{}"})), ["jwks"]);
        assert_eq!(
            fields(json!({"issuer": "a", "jwksUri": "https://a", "jwksCaBundle": "no"})),
            ["jwksCaBundle"]
        );
        let headers = json!([{"header": "x-a", "claim": "a..b"}, {"header": "x-b", "claim": "a\\b"}, {"header": "x-token", "claim": "sub"}]);
        let issuer = json!({"issuer": "a", "jwks": JWKS, "claimsToHeaders": headers, "locations": [{"header": {"name": "X-Token"}}]});
        assert_eq!(
            fields(issuer),
            ["claimsToHeaders[0].claim", "claimsToHeaders[1].claim", "claimsToHeaders[2].header"]
        );
        let bad = resource("shop", "r", json!({"a b": "c"}), json!([{"issuer": "a", "jwks": JWKS}]));
        assert_eq!(request_authentication(&bad)[0].field, "spec.selector.matchLabels");
    }

    #[test]
    fn what_is_seldom_meant_is_a_warning() {
        let warnings = |issuer: Value| request_warnings(&resource("shop", "r", Value::Null, json!([issuer])));
        assert!(warnings(json!({"issuer": "a", "jwks": JWKS}))[0].contains("without audiences"));
        assert!(
            warnings(json!({"issuer": "a", "audiences": ["b"], "jwksUri": "http://a/"}))[0]
                .contains("use https")
        );
        assert!(warnings(json!({"issuer": "a", "audiences": ["b"], "jwksUri": "https://a/"})).is_empty());
    }

    #[test]
    fn one_resource_speaks_of_an_issuer_for_the_same_workloads() {
        let of = |namespace: &str, name: &str, selector: Value, issuers: &[&str]| {
            let issuers: Vec<Value> = issuers.iter().map(|i| json!({"issuer": i, "jwks": JWKS})).collect();
            resource(namespace, name, selector, json!(issuers))
        };
        let first = of("shop", "first", Value::Null, &["a", "b"]);
        let conflict =
            |other: &RequestAuthentication| same_issuer(other, &first, "weft-system").map(|p| p.field);
        assert_eq!(
            conflict(&of("shop", "second", Value::Null, &["c", "b"])).unwrap(),
            "spec.issuers[1].issuer"
        );
        assert_eq!(conflict(&of("shop", "second", Value::Null, &["c"])), None);
        assert_eq!(conflict(&of("shop", "second", json!({"app": "a"}), &["a"])), None, "narrower");
        assert_eq!(conflict(&of("bank", "second", Value::Null, &["a"])), None);
        assert_eq!(conflict(&of("shop", "first", Value::Null, &["a"])), None, "an update of itself");
    }

    #[test]
    fn claims_and_principals_are_read_in_one_way() {
        let path = |text: &str| claim_path(text).ok().map(|names| names.join("|"));
        for (text, expected) in [
            ("sub", Some("sub")),
            ("a.b.c", Some("a|b|c")),
            ("https://x\\.example/roles", Some("https://x.example/roles")),
            ("a\\\\b", Some("a\\b")),
        ] {
            assert_eq!(path(text).as_deref(), expected, "{text}");
        }
        for bad in ["", ".", "a.", ".a", "a\\", "a\\b", "a.b.c.d.e.f.g.h.i"] {
            assert_eq!(path(bad), None, "{bad}");
        }
        for (text, expected) in [
            ("*", (None, None)),
            ("https://a/b/c", (Some("https://a/b"), Some("c"))),
            ("https://a//c", (Some("https://a/"), Some("c"))),
            ("https://a/*", (Some("https://a"), None)),
            ("*/alice", (None, Some("alice"))),
            ("*/*", (None, None)),
        ] {
            assert_eq!(principal(text), Some(expected), "{text}");
        }
        for bad in ["", "a", "a/", "/a", "a*/b", "a/b*", "**"] {
            assert_eq!(principal(bad), None, "{bad}");
        }
    }
}
