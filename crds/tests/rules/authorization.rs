//! AuthorizationPolicy.

use super::*;

fn with_authorization(rule: Value) -> Value {
    json!({"action": "Allow", "rules": [rule]})
}

#[test]
fn an_authorization_policy_with_everything_passes() {
    passes(
        AUTHZ,
        json!({"selector": {"matchLabels": {"app": "back"}}, "action": "Deny", "dryRun": true, "rules": [{"name": "admins",
            "from": [{"identities": ["spiffe://cluster.local/ns/shop/sa/front", "*", "*/sa/front"], "namespaces": ["shop"], "trustDomains": ["cluster.local", "partner.example"], "ipBlocks": ["10.0.0.0/8"], "requestPrincipals": ["https://a.example/alice", "*"]}],
            "to": [{"hosts": ["back", "*.shop.example"], "ports": [8080], "methods": ["GET"], "paths": [{"exact": "/a"}, {"prefix": "/b"}, {"template": "/u/{id}"}]},
                   {"services": ["shop.Orders", "shop.Orders/Buy"]}],
            "when": [{"header": "x-a", "exact": "1"}, {"header": "x-b", "prefix": "1"}, {"header": "x-c", "regex": "1+"}, {"header": "x-d", "present": false}, {"claim": "realm.roles", "exact": "admin"}]}]}),
    );
    passes(AUTHZ, json!({"action": "Allow"}));
    passes(AUTHZ, json!({"action": "Deny", "rules": [{}]}));
}

#[test]
fn a_policy_has_an_action_and_does_something() {
    refused(AUTHZ, json!({}), "required");
    refused(AUTHZ, json!({"action": "allow"}), "enum");
    refused(AUTHZ, json!({"action": "Deny"}), "does nothing");
    refused(AUTHZ, json!({"action": "Audit", "rules": []}), "does nothing");
    refused(AUTHZ, json!({"action": "Audit", "dryRun": true, "rules": [{}]}), "never refuses");
    passes(AUTHZ, json!({"action": "Allow", "audit": true}));
    passes(AUTHZ, json!({"action": "Deny", "audit": true, "dryRun": false, "rules": [{}]}));
    passes(AUTHZ, json!({"action": "Audit", "audit": false, "rules": [{}]}));
    refused(AUTHZ, json!({"action": "Audit", "audit": true, "rules": [{}]}), "audited anyway");
    refused(
        AUTHZ,
        json!({"action": "Deny", "audit": true, "dryRun": true, "rules": [{}]}),
        "nothing is decided",
    );
    passes(AUTHZ, json!({"action": "Audit", "rules": [{}]}));
    refused(AUTHZ, json!({"action": "Allow", "selector": {"matchLabels": {}}}), "minProperties");
    refused(AUTHZ, json!({"action": "Allow", "rules": vec![json!({}); 33]}), "maxItems");
    refused(AUTHZ, json!({"action": "Allow", "rules": [{"name": "a"}, {"name": "a"}]}), "given twice");
    refused(AUTHZ, with_authorization(json!({"name": "A b"})), "rules[].name must be");
}

#[test]
fn a_caller_is_named_by_identity_namespace_or_address() {
    let from = |source: Value| with_authorization(json!({"from": [source]}));
    refused(AUTHZ, from(json!({})), "names nobody");
    refused(AUTHZ, from(json!({"identities": []})), "names nobody");
    refused(AUTHZ, from(json!({"identities": ["front"]})), "not the SPIFFE id");
    refused(AUTHZ, from(json!({"identities": ["*", "*"]})), "duplicate");
    passes(AUTHZ, from(json!({"requestPrincipals": ["*"]})));
    refused(AUTHZ, from(json!({"requestPrincipals": ["*", "*"]})), "duplicate");
    refused(AUTHZ, from(json!({"namespaces": ["Shop"]})), "not the name of a namespace");
    refused(AUTHZ, from(json!({"ipBlocks": ["1"]})), "minLength");
    passes(AUTHZ, from(json!({"trustDomains": ["partner.example"]})));
    refused(AUTHZ, from(json!({"trustDomains": []})), "names nobody");
    for bad in ["spiffe://partner.example", "Partner.example", "*", "partner.example/ns/a"] {
        refused(AUTHZ, from(json!({"trustDomains": [bad]})), "not a trust domain");
    }
    refused(AUTHZ, from(json!({"trustDomains": vec!["a"; 2]})), "duplicate");
    refused(AUTHZ, from(json!({"ipBlocks": vec!["10.0.0.1"; 65]})), "maxItems");
    refused(AUTHZ, with_authorization(json!({"from": vec![json!({"namespaces": ["a"]}); 17]})), "maxItems");
}

#[test]
fn what_is_asked_for_is_named_as_http_knows_it() {
    let to = |target: Value| with_authorization(json!({"to": [target]}));
    let path = |path: Value| with_authorization(json!({"to": [{"paths": [path]}]}));
    refused(AUTHZ, to(json!({})), "names nothing");
    refused(AUTHZ, to(json!({"hosts": ["http://a"]})), "not a host");
    refused(AUTHZ, to(json!({"ports": [0]})), "minimum");
    refused(AUTHZ, to(json!({"methods": ["get"]})), "capital letters");
    refused(AUTHZ, to(json!({"services": ["/shop.Orders"]})), "not a gRPC service");
    refused(
        AUTHZ,
        to(json!({"services": ["shop.Orders"], "paths": [{"exact": "/"}]})),
        "entries of to of their own",
    );
    refused(AUTHZ, path(json!({})), "exactly one of exact, prefix and template");
    refused(AUTHZ, path(json!({"exact": "/a", "prefix": "/a"})), "exactly one of exact, prefix and template");
    for kind in ["exact", "prefix", "template"] {
        passes(AUTHZ, path(json!({kind: "/a/{b}"})));
        refused(AUTHZ, path(json!({kind: "a"})), "must begin with '/'");
        refused(AUTHZ, path(json!({kind: "/a?b"})), "without their query");
    }
}

#[test]
fn a_header_has_exactly_one_condition_and_is_not_one_of_wefts() {
    let when = |condition: Value| with_authorization(json!({"when": [condition]}));
    refused(AUTHZ, when(json!({"header": "x"})), "exactly one of exact, prefix, regex and present");
    refused(
        AUTHZ,
        when(json!({"header": "x", "exact": "a", "present": true})),
        "exactly one of exact, prefix, regex and present",
    );
    refused(AUTHZ, when(json!({"exact": "a"})), "exactly one of header and claim");
    refused(
        AUTHZ,
        when(json!({"header": "x", "claim": "y", "exact": "a"})),
        "exactly one of header and claim",
    );
    refused(AUTHZ, when(json!({"claim": "y"})), "exactly one of exact, prefix, regex and present");
    refused(AUTHZ, when(json!({"header": "x y", "exact": "a"})), "not the name of an HTTP header");
    for own in ["weft-client-identity", "Weft-Client-Identity"] {
        refused(AUTHZ, when(json!({"header": own, "exact": "a"})), "set by proxies");
    }
}
