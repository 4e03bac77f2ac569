//! TrustDomain.

use super::*;

const DOMAINS: &str = "trustdomains";
const PEM: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

#[test]
fn a_bundle_is_given_or_fetched_or_first_given_and_then_fetched() {
    let of = |endpoint: Value| json!({"trustDomain": "partner.example", "pem": PEM, "endpoint": endpoint});
    passes(DOMAINS, json!({"trustDomain": "partner.example", "pem": PEM}));
    let spiffe = json!({"url": "https://bundle.partner.example:15011/", "profile": "HttpsSpiffe",
        "spiffeId": "spiffe://partner.example/ns/weft-system/sa/weft-operator"});
    passes(DOMAINS, of(spiffe.clone()));
    let web = json!({"url": "https://partner.example/bundle.json", "profile": "HttpsWeb"});
    passes(DOMAINS, of(web.clone()));
    passes(DOMAINS, json!({"trustDomain": "partner.example", "endpoint": web}));
    refused(DOMAINS, json!({"trustDomain": "partner.example"}), "needs pem, endpoint or both");
    refused(DOMAINS, json!({"trustDomain": "partner.example", "endpoint": spiffe}), "give them as pem");
    refused(DOMAINS, json!({"trustDomain": "partner.example", "pem": "none"}), "holds no certificate");
    refused(DOMAINS, json!({"pem": PEM}), "required");
    for bad in ["spiffe://partner.example", "Partner.example", "partner.example/x", "*"] {
        refused(DOMAINS, json!({"trustDomain": bad, "pem": PEM}), "not the name of a trust domain");
    }
}

#[test]
fn who_serves_a_bundle_is_always_verified() {
    let of = |endpoint: Value| json!({"trustDomain": "partner.example", "pem": PEM, "endpoint": endpoint});
    let web = |url: &str| of(json!({"url": url, "profile": "HttpsWeb"}));
    for bad in [
        "http://partner.example/",
        "https://",
        "https://user@partner.example/",
        "partner.example",
        "https://a b/",
    ] {
        refused(DOMAINS, web(bad), "must begin with https://");
    }
    passes(DOMAINS, web("https://[fd00::1]:15011"));
    refused(
        DOMAINS,
        of(json!({"url": "https://a/", "profile": "HttpsSpiffe"})),
        "says who serves the bundle",
    );
    refused(
        DOMAINS,
        of(json!({"url": "https://a/", "profile": "HttpsWeb", "spiffeId": "spiffe://a/ns/b/sa/c"})),
        "says who serves the bundle",
    );
    refused(DOMAINS, of(json!({"url": "https://a/"})), "required");
    refused(DOMAINS, of(json!({"url": "https://a/", "profile": "https_web"})), "enum");
    passes(DOMAINS, of(json!({"url": "https://a/", "profile": "HttpsWeb", "caBundle": PEM})));
    refused(
        DOMAINS,
        of(
            json!({"url": "https://a/", "profile": "HttpsSpiffe", "spiffeId": "spiffe://a/ns/b/sa/c", "caBundle": PEM}),
        ),
        "verifies a server of the web",
    );
}
