//! RequestAuthentication.

use super::*;

fn issuer(more: Value) -> Value {
    let mut issuer =
        json!({"issuer": "https://accounts.example", "jwksUri": "https://accounts.example/keys"});
    issuer.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"issuers": [issuer]})
}

#[test]
fn a_request_authentication_with_everything_passes() {
    passes(
        REQUESTS,
        json!({"selector": {"matchLabels": {"app": "back"}}, "issuers": [
            {"issuer": "https://accounts.example", "audiences": ["shop", "https://shop.example"], "leeway": "30s",
             "jwksUri": "https://accounts.example:8443/.well-known/jwks.json?x=1", "jwksCaBundle": "-----BEGIN CERTIFICATE-----",
             "locations": [{"header": {"name": "X-Token", "prefix": "Bearer "}}, {"cookie": "session"}, {"query": "access_token"}],
             "claimsToHeaders": [{"header": "x-user", "claim": "sub"}], "forwardToken": false},
            {"issuer": "own", "jwks": "{\"keys\": []}"}]}),
    );
    for uri in ["http://keys.shop/keys", "https://10.0.0.1/", "https://[2001:db8::1]:8443/keys", "https://a"]
    {
        passes(REQUESTS, issuer(json!({"jwksUri": uri})));
    }
}

#[test]
fn keys_come_from_one_place_that_can_be_asked() {
    refused(REQUESTS, json!({}), "required");
    refused(REQUESTS, json!({"issuers": []}), "minItems");
    refused(REQUESTS, issuer(json!({"jwks": "{}"})), "exactly one of jwks and jwksUri");
    refused(REQUESTS, json!({"issuers": [{"issuer": "a"}]}), "exactly one of jwks and jwksUri");
    refused(
        REQUESTS,
        json!({"issuers": [{"issuer": "a", "jwks": "{}"}, {"issuer": "a", "jwks": "{}"}]}),
        "duplicate",
    );
    refused(REQUESTS, issuer(json!({"jwksUri": "http://a", "jwksCaBundle": "x"})), "begins with https");
    for bad in [
        "ftp://a/keys",
        "https://user@a/keys",
        "https://a/keys#x",
        "//a/keys.json",
        "https:///keys",
        "https://a b/",
    ] {
        refused(REQUESTS, issuer(json!({"jwksUri": bad})), "jwksUri must be");
    }
    refused(REQUESTS, issuer(json!({"leeway": "11m"})), "longer than 10m");
    refused(REQUESTS, issuer(json!({"leeway": "1"})), "pattern");
    refused(REQUESTS, issuer(json!({"audiences": ["a", "a"]})), "duplicate");
    refused(REQUESTS, issuer(json!({"selector": {}})), "unknown");
}

#[test]
fn a_token_has_one_place_and_headers_of_claims_have_names_of_their_own() {
    let at = |location: Value| issuer(json!({"locations": [location]}));
    refused(REQUESTS, at(json!({})), "exactly one of header, cookie and query");
    refused(REQUESTS, at(json!({"cookie": "a", "query": "b"})), "exactly one of header, cookie and query");
    refused(REQUESTS, at(json!({"header": {"name": "x y"}})), "not the name of an HTTP header");
    for own in ["Cookie", "host", "weft-client-identity", "proxy-authorization", "X-Request-Id"] {
        refused(REQUESTS, at(json!({"header": {"name": own}})), "name another one");
    }
    refused(REQUESTS, at(json!({"header": {"name": "x", "prefix": "a b "}})), "prefix must be");
    refused(REQUESTS, at(json!({"cookie": "a;b"})), "not the name of a cookie");
    refused(REQUESTS, at(json!({"query": "a&b"})), "not the name of a parameter");
    let header = |name: &str| issuer(json!({"claimsToHeaders": [{"header": name, "claim": "sub"}]}));
    passes(REQUESTS, header("x-user"));
    for bad in ["X-User", "x user", "x:user"] {
        refused(REQUESTS, header(bad), "not the name of an HTTP header in lower case");
    }
    for own in [
        "authorization",
        "host",
        "cookie",
        "content-type",
        "weft-user",
        "weft_client_identity",
        "x-request-id",
    ] {
        refused(REQUESTS, header(own), "means something else");
    }
    let twice = json!([{"header": "x-a", "claim": "a"}, {"header": "x-a", "claim": "b"}]);
    refused(REQUESTS, issuer(json!({"claimsToHeaders": twice})), "duplicate");
}
