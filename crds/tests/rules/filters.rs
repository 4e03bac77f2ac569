//! TrafficPolicy: what a rule does to a request or answers itself.

use super::*;

#[test]
fn headers_are_changed_where_that_is_for_a_rule_to_do() {
    let request = |edits: Value| with_rule(json!({"headers": {"request": edits}}));
    passes(
        POLICY,
        with_rule(json!({"headers": {
            "request": {"set": [{"name": "X-A", "value": "a b"}], "add": [{"name": "x-b", "value": ""}], "remove": ["x-c"]},
            "response": {"remove": ["server", "proxied"]},
        }})),
    );
    refused(POLICY, with_rule(json!({"headers": {}})), "headers changes nothing");
    refused(POLICY, request(json!({"set": []})), "an entry of headers changes nothing");
    refused(
        POLICY,
        request(json!({"set": [{"name": "a", "value": "1"}, {"name": "a", "value": "2"}]})),
        "duplicate",
    );
    refused(
        POLICY,
        request(json!({"set": [{"name": "a b", "value": "1"}]})),
        "not the name of an HTTP header",
    );
    refused(POLICY, request(json!({"remove": [":path"]})), "not the name of an HTTP header");
    for value in ["a\nb", " a", "a ", "é"] {
        refused(POLICY, request(json!({"set": [{"name": "a", "value": value}]})), "printable ASCII");
    }
    for name in [
        "Host",
        "connection",
        "TE",
        "Content-Length",
        "transfer-encoding",
        "proxy-authorization",
        "Weft-Reason",
        "weft_client_identity",
        "x-request-id",
    ] {
        refused(POLICY, request(json!({"set": [{"name": name, "value": "1"}]})), "use rewrite.host");
        refused(POLICY, request(json!({"add": [{"name": name, "value": "1"}]})), "use rewrite.host");
        refused(POLICY, with_rule(json!({"headers": {"response": {"remove": [name]}}})), "use rewrite.host");
    }
}

#[test]
fn a_rewrite_changes_host_or_path_and_a_prefix_only_where_one_matched() {
    let path = |path: Value| with_rule(json!({"rewrite": {"path": path}}));
    let by_prefix = |rule: Value| {
        let mut rule = rule;
        rule["match"] = json!([{"path": {"prefix": "/a"}}, {"path": {"prefix": "/b"}, "method": "GET"}]);
        with_rule(rule)
    };
    for host in ["back", "shop.example:8080", "Shop"] {
        passes(POLICY, with_rule(json!({"rewrite": {"host": host}})));
    }
    for host in ["http://a", "a/b", "a:", "a b", "[::1]"] {
        refused(POLICY, with_rule(json!({"rewrite": {"host": host}})), "rewrite.host is not a host");
    }
    passes(POLICY, path(json!({"full": "/a"})));
    refused(
        POLICY,
        with_rule(json!({"rewrite": {"host": "a"}, "rateLimit": {"requests": 1, "per": "1s"}})),
        "put rateLimit into a rule without rewrite",
    );
    passes(POLICY, path(json!({"regex": {"pattern": "/(.*)", "substitution": "/x/$1/$$"}})));
    refused(POLICY, with_rule(json!({"rewrite": {}})), "rewrite changes nothing");
    refused(POLICY, path(json!({})), "rewrite.path needs exactly one");
    refused(POLICY, by_prefix(json!({"rewrite": {"path": {"prefix": "/a", "full": "/b"}}})), "exactly one");
    refused(POLICY, path(json!({"full": "a"})), "rewrite.path.full must begin with '/'");
    refused(POLICY, path(json!({"full": "/a?b"})), "rewrite.path.full must begin with '/'");
    for bad in ["x", "/$", "/$x", "/a?b", "/a b"] {
        refused(
            POLICY,
            path(json!({"regex": {"pattern": "a", "substitution": bad}})),
            "substitution must begin",
        );
    }
    for what in ["rewrite", "redirect"] {
        passes(POLICY, by_prefix(json!({what: {"path": {"prefix": ""}}})));
        passes(POLICY, by_prefix(json!({what: {"path": {"prefix": "/v2"}}})));
        refused(POLICY, by_prefix(json!({what: {"path": {"prefix": "v2"}}})), "begin with '/'");
        let where_one_matched = "replaces the prefix that matched";
        refused(POLICY, with_rule(json!({what: {"path": {"prefix": "/v2"}}})), where_one_matched);
        let exact = json!([{"path": {"prefix": "/a"}}, {"path": {"exact": "/b"}}]);
        refused(
            POLICY,
            with_rule(json!({"match": exact, what: {"path": {"prefix": "/v2"}}})),
            where_one_matched,
        );
        refused(
            POLICY,
            with_rule(json!({"match": [{"method": "GET"}], what: {"path": {"prefix": ""}}})),
            where_one_matched,
        );
    }
}

#[test]
fn a_rule_that_answers_itself_does_nothing_else() {
    passes(
        POLICY,
        with_rule(
            json!({"redirect": {"scheme": "https", "host": "shop.example", "port": 8443, "path": {"full": "/"}, "status": 308},
            "headers": {"response": {"set": [{"name": "cache-control", "value": "no-store"}]}}, "cors": {"allowOrigins": ["*"]}}),
        ),
    );
    passes(
        POLICY,
        with_rule(json!({"response": {"status": 503, "body": "{}", "contentType": "application/json"}})),
    );
    passes(POLICY, with_rule(json!({"response": {"status": 204}})));
    let redirect = |redirect: Value| with_rule(json!({"redirect": redirect}));
    refused(POLICY, redirect(json!({"status": 301})), "to where it came from");
    refused(POLICY, redirect(json!({"host": "a", "status": 304})), "must be 301, 302, 303, 307 or 308");
    refused(POLICY, redirect(json!({"scheme": "ftp"})), "enum");
    refused(POLICY, redirect(json!({"host": "a:80"})), "redirect.host is not a host");
    refused(POLICY, redirect(json!({"port": 0})), "minimum");
    refused(POLICY, redirect(json!({"path": {}})), "redirect.path needs exactly one");
    refused(POLICY, redirect(json!({"path": {"full": ""}})), "minLength");
    refused(POLICY, redirect(json!({"path": {"full": "a"}})), "redirect.path.full must begin");
    let response = |response: Value| with_rule(json!({"response": response}));
    refused(POLICY, response(json!({"status": 199})), "minimum");
    refused(POLICY, response(json!({"status": 600})), "maximum");
    refused(POLICY, response(json!({"status": 204, "body": "x"})), "cannot be sent with status 204");
    refused(POLICY, response(json!({"status": 200, "body": "x".repeat(4097)})), "maxLength");
    refused(POLICY, response(json!({"status": 200, "contentType": "text/plain"})), "give body too");
    refused(
        POLICY,
        response(json!({"status": 200, "body": "x", "contentType": "a\r\nb"})),
        "not a media type",
    );
    let both = with_rule(json!({"redirect": {"host": "a"}, "response": {"status": 200}}));
    refused(POLICY, both, "either with redirect or with response");
    for more in [
        json!({"split": [{"weight": 1}]}),
        json!({"timeout": "1s"}),
        json!({"retry": {"attempts": 1}}),
        json!({"rateLimit": {"requests": 1, "per": "1s"}}),
        json!({"circuitBreaker": {"maxRetries": 1}}),
        json!({"rewrite": {"host": "a"}}),
        json!({"fault": {"abort": {"status": 500}}}),
        json!({"headers": {"request": {"remove": ["x"]}}}),
    ] {
        let mut rule = json!({"response": {"status": 200}});
        rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        refused(POLICY, with_rule(rule), "sends the request nowhere");
    }
}

#[test]
fn a_fault_does_something_and_is_bounded() {
    let fault = |fault: Value| with_rule(json!({"fault": fault}));
    passes(
        POLICY,
        fault(json!({"delay": {"duration": "1m", "percent": 0}, "abort": {"grpcStatus": 14, "percent": 100},
            "when": {"header": "X-Chaos", "value": "1"}})),
    );
    passes(POLICY, fault(json!({"abort": {"status": 503}, "when": {"header": "x"}})));
    refused(POLICY, fault(json!({"when": {"header": "x"}})), "fault does nothing");
    refused(POLICY, fault(json!({"delay": {"duration": "61s"}})), "not be longer than 1m");
    refused(POLICY, fault(json!({"delay": {"percent": 1}})), "required");
    refused(POLICY, fault(json!({"delay": {"duration": "1s", "percent": 101}})), "maximum");
    refused(POLICY, fault(json!({"abort": {}})), "abort needs exactly one");
    refused(POLICY, fault(json!({"abort": {"status": 500, "grpcStatus": 14}})), "abort needs exactly one");
    refused(POLICY, fault(json!({"abort": {"status": 399}})), "minimum");
    refused(POLICY, fault(json!({"abort": {"grpcStatus": 17}})), "maximum");
    refused(POLICY, fault(json!({"abort": {"grpcStatus": 0}})), "minimum");
    refused(POLICY, fault(json!({"abort": {"status": 500}, "when": {"header": "a b"}})), "fault.when.header");
}

#[test]
fn cors_names_origins_methods_and_headers() {
    let cors = |cors: Value| with_rule(json!({"cors": cors}));
    passes(
        POLICY,
        cors(
            json!({"allowOrigins": ["https://shop.example", "https://*.shop.example:8443", "http://localhost:3000"],
            "allowMethods": ["PUT", "*"], "allowHeaders": ["X-A", "*"], "exposeHeaders": ["x-b"], "maxAge": "10m", "allowCredentials": true}),
        ),
    );
    passes(POLICY, cors(json!({"allowOrigins": ["*"], "allowCredentials": false})));
    refused(POLICY, cors(json!({})), "required");
    refused(POLICY, cors(json!({"allowOrigins": []})), "minItems");
    for origin in [
        "shop.example",
        "https://shop.example/",
        "https://Shop.example",
        "https://*",
        "null",
        "https://a.*.b",
    ] {
        refused(POLICY, cors(json!({"allowOrigins": [origin]})), "something that is not an origin");
    }
    refused(
        POLICY,
        cors(json!({"allowOrigins": ["https://a.example", "*"], "allowCredentials": true})),
        "every site on the web",
    );
    let with = |field: &str, value: &str| cors(json!({"allowOrigins": ["*"], field: [value]}));
    refused(POLICY, with("allowMethods", "put"), "cors.allowMethods lists");
    refused(POLICY, with("allowHeaders", "a,b"), "cors.allowHeaders lists");
    refused(POLICY, with("exposeHeaders", "a b"), "cors.exposeHeaders lists");
    refused(POLICY, cors(json!({"allowOrigins": ["*", "*"]})), "duplicate");
}
