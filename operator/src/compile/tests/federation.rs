//! TrustDomains as proxies are told of them, and what is said of those that are not in force.

use serde_json::{Value, json};

use crate::ca::Root;
use crate::index::Index;
use crate::index::space::Refusal;
use crate::index::testing::{index_of, mesh_service, trust_domain};

fn root(domain: &str) -> Root {
    Root::generate(&domain.parse().unwrap(), std::time::Duration::from_secs(86_400)).unwrap()
}

fn told(index: &Index) -> Vec<(String, Vec<Vec<u8>>)> {
    let (federation, _) = crate::compile::federation(index);
    let one = |b: weft_api::v1::ForeignBundle| {
        (b.trust_domain, b.roots_der.iter().map(|der| der.to_vec()).collect())
    };
    federation.bundles.into_iter().map(one).collect()
}

fn verdict(index: &Index, key: &str) -> crate::index::space::Verdict {
    let (namespace, name) = key.split_once('/').unwrap();
    index.space(namespace).unwrap().settled.trust_domains[name].clone()
}

#[test]
fn a_bundle_is_the_last_that_was_fetched_of_this_very_spec_or_the_given_one() {
    let (given, fetched) = (root("partner.example"), root("partner.example"));
    let url = "https://bundle.partner.example/";
    let spec = json!({ "trustDomain": "partner.example", "pem": given.certificate_pem,
        "endpoint": { "url": url, "profile": "HttpsWeb" } });
    let bundle =
        |domain: &str, url: &str, pem: &str| json!({ "trustDomain": domain, "url": url, "pem": pem });
    let inline = |bundle: Value| {
        let index = index_of([trust_domain("weft-system/p", 1, spec.clone(), bundle)]);
        (told(&index).remove(0).1, verdict(&index, "weft-system/p").missing.join(""))
    };
    let (of_spec, of_status) = (vec![given.der.to_vec()], vec![fetched.der.to_vec()]);
    let (roots, missing) = inline(Value::Null);
    assert!(
        roots == of_spec && missing.contains("not fetched yet; the roots of pem are in force"),
        "{missing}"
    );
    let (roots, missing) = inline(bundle("partner.example", url, &fetched.certificate_pem));
    assert!(roots == of_status && missing.is_empty(), "{missing}");
    let mut old = bundle("partner.example", url, &fetched.certificate_pem);
    old["problem"] = "answered 500".into();
    let (roots, missing) = inline(old);
    assert!(roots == of_status && missing.contains("answered 500; the last one"), "{missing}");
    // Of another spec, or no bundle at all: whoever can write a status cannot make anything of nothing.
    for bad in [
        bundle("third.example", url, &fetched.certificate_pem),
        bundle("partner.example", "https://elsewhere/", &fetched.certificate_pem),
        bundle("partner.example", url, "no PEM"),
        json!({ "pem": 7 }),
        json!("x"),
    ] {
        assert_eq!(inline(bad.clone()).0, of_spec, "{bad}");
    }
    let without =
        json!({ "trustDomain": "partner.example", "endpoint": { "url": url, "profile": "HttpsWeb" } });
    let index = index_of([trust_domain("weft-system/p", 1, without, Value::Null)]);
    assert!(told(&index).is_empty());
    assert!(verdict(&index, "weft-system/p").missing.join("").contains("nobody of it is believed"));
    assert_eq!(index.wanted_bundles().len(), 1);
}

#[test]
fn it_counts_once_in_the_own_namespace_and_never_for_the_own_trust_domain() {
    let pem = root("partner.example").certificate_pem;
    let spec = |domain: &str| json!({ "trustDomain": domain, "pem": pem });
    let mut index = index_of([
        trust_domain("weft-system/old", 1, spec("partner.example"), Value::Null),
        trust_domain("weft-system/young", 2, spec("partner.example"), Value::Null),
        trust_domain("weft-system/own", 1, spec("cluster.local"), Value::Null),
        trust_domain("shop/elsewhere", 1, spec("third.example"), Value::Null),
        trust_domain(
            "weft-system/empty",
            1,
            json!({ "trustDomain": "fourth.example", "pem": "x" }),
            Value::Null,
        ),
    ]);
    let names = |index: &Index| told(index).into_iter().map(|(domain, _)| domain).collect::<Vec<_>>();
    assert_eq!(names(&index), ["partner.example"]);
    let refused = |index: &Index, key: &str| match verdict(index, key).refused {
        Some(Refusal::Invalid(why) | Refusal::Conflicted(why)) => why,
        None => String::new(),
    };
    assert_eq!(refused(&index, "weft-system/old"), "");
    assert!(refused(&index, "weft-system/young").contains("TrustDomain old is older"));
    assert!(refused(&index, "weft-system/own").contains("this mesh's own trust domain"));
    assert!(refused(&index, "shop/elsewhere").contains("apply it in weft-system"));
    assert!(refused(&index, "weft-system/empty").contains("not a list of certificates"));
    let dirty = trust_domain("weft-system/old", 1, spec("partner.example"), Value::Null).delete(&mut index);
    assert!(dirty.federation);
    assert_eq!(names(&index), ["partner.example"], "the younger one counts now");
    let dirty = trust_domain("weft-system/young", 2, spec("partner.example"), Value::Null).delete(&mut index);
    assert!(dirty.federation && names(&index).is_empty());
}

#[test]
fn a_service_of_another_mesh_is_called_by_its_identity() {
    let external = |tls: Value| {
        json!({ "target": { "external": {
            "hosts": ["orders.partner.example"],
            "ports": [{ "port": 80, "protocol": "Http1", "targetPort": 8080, "tls": tls }],
            "endpoints": [{ "address": "192.0.2.7" }, { "address": "gate.partner.example" }] } } })
    };
    let id = "spiffe://partner.example/ns/shop/sa/orders";
    let index = index_of([mesh_service("shop/orders", 1, 1, external(json!({ "identity": id })))]);
    let key = crate::compile::external_for(&index, "shop").remove(0);
    let service = crate::compile::service(&index, &key).unwrap();
    let cluster = &service.clusters[0];
    assert!(cluster.tls.is_none());
    assert!(cluster.endpoints.iter().all(|endpoint| endpoint.identity == id), "{cluster:?}");
    let index = index_of([mesh_service("shop/orders", 1, 1, external(json!({})))]);
    let service = crate::compile::service(&index, &key).unwrap();
    assert!(service.clusters[0].tls.is_some() && service.clusters[0].endpoints[0].identity.is_empty());
}
