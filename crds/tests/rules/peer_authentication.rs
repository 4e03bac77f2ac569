//! PeerAuthentication.

use super::*;

#[test]
fn a_mode_is_given_and_known() {
    passes(AUTH, json!({"mtls": {"mode": "Strict"}}));
    passes(AUTH, json!({"mtls": {"mode": "Disable"}, "selector": {"matchLabels": {"app": "a"}}}));
    refused(AUTH, json!({}), "required");
    refused(AUTH, json!({"mtls": {"mode": "strict"}}), "enum");
    refused(AUTH, json!({"mtls": {"mode": "Strict"}, "selector": {"matchLabels": {}}}), "minProperties");
}

#[test]
fn modes_of_ports_need_a_selector_and_port_numbers() {
    let ports = |ports: Value| json!({"mtls": {"mode": "Strict"}, "selector": {"matchLabels": {"app": "a"}}, "portLevelMtls": ports});
    passes(AUTH, ports(json!({"1": {"mode": "Permissive"}, "65535": {"mode": "Disable"}})));
    refused(
        AUTH,
        json!({"mtls": {"mode": "Strict"}, "portLevelMtls": {"80": {"mode": "Disable"}}}),
        "portLevelMtls needs a selector",
    );
    for bad in ["0", "65536", "080", "+80"] {
        refused(
            AUTH,
            ports(json!({bad: {"mode": "Disable"}})),
            "the keys of portLevelMtls are container port numbers",
        );
    }
    assert_ne!(problems(AUTH, &ports(json!({"http": {"mode": "Disable"}}))), Vec::<String>::new());
    let many =
        (1..=65).map(|port| (port.to_string(), json!({"mode": "Strict"}))).collect::<serde_json::Map<_, _>>();
    refused(AUTH, ports(many.into()), "maxProperties");
}
