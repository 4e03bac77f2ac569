//! What can be said of an AuthorizationPolicy beyond its schema and CEL rules: identities, addresses, paths and expressions
//! that make no sense, and what makes sense but is seldom meant. Pure.

use super::Problem;
use super::request_authentication::{claim_path, principal};
use super::texts::{is_label_key, regex};
use crate::AuthorizationPolicy;
use crate::authorization_policy::{Action, Path, Rule};
use std::net::IpAddr;

/// Problems of an AuthorizationPolicy by itself.
#[must_use]
pub fn authorization_policy(resource: &AuthorizationPolicy) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut bad = |field: String, message: String| problems.push(Problem { field, message });
    let keys = resource.spec.selector.iter().flat_map(|selector| selector.match_labels.keys());
    for key in keys.filter(|key| !is_label_key(key)) {
        bad("spec.selector.matchLabels".into(), format!("`{}` is not a label key", short(key)));
    }
    for (r, rule) in resource.spec.rules.iter().enumerate() {
        let at = format!("spec.rules[{r}]");
        for (f, source) in rule.from.iter().enumerate() {
            for (i, text) in source.identities.iter().enumerate() {
                if let Err(error) = weft_api::spiffe::pattern(text) {
                    let message = format!(
                        "{error}: write the identity of a caller, for example spiffe://cluster.local/ns/shop/sa/front, or one * for whole segments at its end or beginning, for example spiffe://cluster.local/ns/shop/* or */sa/front"
                    );
                    bad(format!("{at}.from[{f}].identities[{i}]"), message);
                }
            }
            for (i, text) in source.ip_blocks.iter().enumerate().filter(|(_, text)| !is_block(text)) {
                let message = format!(
                    "`{}` is not a block of IP addresses: write for example 10.0.0.0/8, 10.1.2.3 or 2001:db8::/32",
                    short(text)
                );
                bad(format!("{at}.from[{f}].ipBlocks[{i}]"), message);
            }
        }
        for (f, source) in rule.from.iter().enumerate() {
            for (i, text) in source.request_principals.iter().enumerate() {
                if principal(text).is_none() {
                    let message = format!(
                        "`{}` is not whose token it is: write <issuer>/<subject>, for example https://accounts.example/alice, with * for any issuer or any subject, or * alone for whoever has a good token",
                        short(text)
                    );
                    bad(format!("{at}.from[{f}].requestPrincipals[{i}]"), message);
                }
            }
        }
        for (t, target) in rule.to.iter().enumerate() {
            for (i, path) in target.paths.iter().enumerate() {
                if let Some(message) = bad_path(path) {
                    bad(format!("{at}.to[{t}].paths[{i}]"), message);
                }
            }
        }
        for (i, condition) in rule.when.iter().enumerate() {
            if let Some(Err(message)) = condition.regex.as_deref().map(regex) {
                bad(format!("{at}.when[{i}].regex"), message);
            }
            if let Some(Err(message)) = condition.claim.as_deref().map(claim_path) {
                bad(format!("{at}.when[{i}].claim"), message);
            }
        }
    }
    problems
}

/// What may be meant otherwise. `trust_domain`: the mesh's own, where it is known.
#[must_use]
pub fn authorization_warnings(resource: &AuthorizationPolicy, trust_domain: Option<&str>) -> Vec<String> {
    let spec = &resource.spec;
    let mut warnings = Vec::new();
    let dry = if spec.dry_run == Some(true) { " (noted only, as long as it is in dry run)" } else { "" };
    if spec.action == Action::Allow && spec.rules.is_empty() {
        warnings.push(format!(
            "spec.rules: without rules it allows nothing, so that everything is refused that no other Allow policy of the same workloads allows{dry}"
        ));
    }
    for (r, rule) in spec.rules.iter().enumerate() {
        warnings.extend(of_opaque(r, rule, spec.action));
        for (f, source) in rule.from.iter().enumerate() {
            for text in &source.identities {
                let domain = text.strip_prefix("spiffe://").and_then(|rest| rest.split('/').next());
                if let (Some(domain), Some(own)) = (domain, trust_domain)
                    && domain != own
                {
                    warnings.push(format!(
                        "spec.rules[{r}].from[{f}].identities: {} is not of the trust domain {own}, so no caller of this mesh has it, and it fits somebody only while a TrustDomain federates that one",
                        short(text)
                    ));
                }
            }
        }
    }
    warnings
}

/// On ports that do not speak HTTP, what looks at HTTP does something else.
fn of_opaque(r: usize, rule: &Rule, action: Action) -> Option<String> {
    let everywhere = rule.to.is_empty() || rule.to.iter().any(|target| target.ports.is_empty());
    if !rule.of_http() || !everywhere {
        return None;
    }
    match action {
        Action::Deny => Some(format!(
            "spec.rules[{r}]: hosts, methods, paths, services, headers and tokens cannot be seen on connections that are not HTTP, so there the rule denies whatever else it fits: name the HTTP ports in to[].ports if the workload has others"
        )),
        Action::Allow | Action::Audit => None,
    }
}

fn bad_path(path: &Path) -> Option<String> {
    let text = path.exact.as_ref().or(path.prefix.as_ref()).or(path.template.as_ref())?;
    let unclear = ["%2f", "%2F", "%5c", "%5C", "\\", ";"].into_iter().find(|part| text.contains(part));
    if let Some(part) = unclear {
        return Some(format!(
            "`{part}` can be in no path that is compared, because requests with it are refused: remove it"
        ));
    }
    let Some(bytes) = decoded(text.as_bytes()) else {
        return Some("has a percent sign that begins no escape: write %25 for the sign itself".into());
    };
    let escapes = std::str::from_utf8(&bytes).ok().filter(|decoded| !decoded.contains(char::is_control));
    let Some(decoded) = escapes else {
        return Some(
            "has control characters or escapes that are not UTF-8, and requests with them are refused: remove them"
                .into(),
        );
    };
    let rest = decoded.strip_prefix('/').unwrap_or(decoded);
    let count = rest.split('/').count();
    let misplaced = |(at, segment): (usize, &str)| match segment {
        "." | ".." => true,
        "" => at + 1 < count,
        _ => false,
    };
    if rest.split('/').enumerate().any(misplaced) {
        return Some(
            "has empty or dot segments, which no path has when it is compared: write it without".into(),
        );
    }
    let template = path.template.as_ref()?;
    let named = |segment: &&str| segment.contains(['{', '}']);
    let mut names = template.split('/').filter(named);
    let whole = |segment: &str| {
        let name = segment.strip_prefix('{').and_then(|s| s.strip_suffix('}'));
        name.is_some_and(|name| !name.is_empty() && !name.contains(['{', '}']))
    };
    (!names.all(whole))
        .then(|| "template may have {name} only as a whole segment: write for example /users/{id}".into())
}

/// With its escapes decoded; `None`: a percent sign begins none.
fn decoded(text: &[u8]) -> Option<Vec<u8>> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text);
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |at: usize| char::from(*after.get(at)?).to_digit(16);
        bytes.push(u8::try_from(digit(0)? * 16 + digit(1)?).ok()?);
        rest = &after[2..];
    }
    Some(bytes)
}

/// As the proxy reads it.
fn is_block(text: &str) -> bool {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let Ok(address) = address.parse::<IpAddr>() else { return false };
    let most = if address.is_ipv4() { 32 } else { 128 };
    let mapped = address.is_ipv6() && address.to_canonical().is_ipv4();
    let least = if mapped { 96 } else { 0 };
    length.is_none_or(|length| {
        length.bytes().all(|b| b.is_ascii_digit())
            && length.parse::<u8>().is_ok_and(|length| (least..=most).contains(&length))
    })
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn policy(spec: Value) -> AuthorizationPolicy {
        AuthorizationPolicy::new("p", serde_json::from_value(spec).unwrap())
    }

    fn fields(rule: Value) -> Vec<String> {
        let found = authorization_policy(&policy(json!({"action": "Allow", "rules": [rule]})));
        found.into_iter().map(|p| p.field.trim_start_matches("spec.rules[0].").to_owned()).collect()
    }

    #[test]
    fn what_can_never_fit_is_named() {
        let identities = json!({"from": [{"identities": ["spiffe://a/ns/b/sa/c", "*", "*/sa/c", "spiffe://a/ns/b/*", "spiffe://a/ns/b*", "*front"]}]});
        assert_eq!(fields(identities), ["from[0].identities[4]", "from[0].identities[5]"]);
        let blocks = json!({"from": [{"ipBlocks": ["10.0.0.0/8", "::1", "::ffff:1.2.3.4/97", "10.0.0.0/33", "ten", "10.0.0.0/+8"]}]});
        assert_eq!(fields(blocks), ["from[0].ipBlocks[3]", "from[0].ipBlocks[4]", "from[0].ipBlocks[5]"]);
        for good in [
            json!({"exact": "/"}),
            json!({"prefix": "/a/"}),
            json!({"template": "/users/{id}/x%20y"}),
            json!({"exact": "/a.b/..c"}),
            json!({"exact": "/caf%c3%a9/%3B"}),
        ] {
            assert_eq!(fields(json!({"to": [{"paths": [good]}]})), Vec::<String>::new(), "{good}");
        }
        for bad in [
            json!({"exact": "/a/../b"}),
            json!({"exact": "/.."}),
            json!({"prefix": "//a"}),
            json!({"exact": "/a//b"}),
            json!({"exact": "/a%2Fb"}),
            json!({"exact": "/a;b"}),
            json!({"exact": "/100%"}),
            json!({"exact": "/a%00"}),
            json!({"prefix": "/%ff"}),
            json!({"prefix": "/a/%2e%2E"}),
            json!({"template": "/{a}/%2e/b"}),
            json!({"template": "/a{b}"}),
            json!({"template": "/{}"}),
        ] {
            assert_eq!(fields(json!({"to": [{"paths": [bad]}]})), ["to[0].paths[0]"], "{bad}");
        }
        assert_eq!(
            fields(json!({"when": [{"header": "x", "exact": "("}, {"header": "x", "regex": "("}]})),
            ["when[1].regex"]
        );
    }

    #[test]
    fn what_is_seldom_meant_is_a_warning() {
        let warnings = |spec: Value| authorization_warnings(&policy(spec), Some("cluster.local"));
        assert!(warnings(json!({"action": "Allow"}))[0].contains("allows nothing"));
        assert!(warnings(json!({"action": "Allow", "dryRun": true}))[0].contains("dry run"));
        let admin = |ports: Value| json!({"action": "Deny", "rules": [{"to": [{"paths": [{"prefix": "/admin"}], "ports": ports}]}]});
        assert!(warnings(admin(json!([])))[0].contains("not HTTP"));
        assert_eq!(warnings(admin(json!([8080]))), Vec::<String>::new());
        let from = |id: &str| json!({"action": "Allow", "rules": [{"from": [{"identities": [id]}]}]});
        assert!(warnings(from("spiffe://other/ns/a/sa/b"))[0].contains("trust domain cluster.local"));
        for fine in ["spiffe://cluster.local/ns/a/sa/b", "*/sa/b", "*"] {
            assert_eq!(warnings(from(fine)), Vec::<String>::new(), "{fine}");
        }
    }
}
