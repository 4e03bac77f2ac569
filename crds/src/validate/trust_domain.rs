//! What can be said of a TrustDomain beyond its schema and CEL rules: bundles that vouch for nobody or for somebody else, and
//! trust domains that are the own one or stand twice. Pure.

use super::Problem;
use super::alone::certificates;
use crate::TrustDomain;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Problems of a TrustDomain by itself.
#[must_use]
pub fn trust_domain(resource: &TrustDomain) -> Vec<Problem> {
    let spec = &resource.spec;
    let mut problems = Vec::new();
    let mut bad = |field: &str, message: String| problems.push(Problem { field: field.into(), message });
    if let Err(error) = spec.trust_domain.parse::<weft_api::TrustDomain>() {
        bad("spec.trustDomain", error.to_string());
    }
    if let Some(pem) = &spec.pem {
        match certificates(pem) {
            None => bad(
                "spec.pem",
                "is not a list of certificates in PEM: paste each from -----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----, and nothing secret".into(),
            ),
            Some(roots) => {
                if let Err(message) = bundle(&spec.trust_domain, &roots) {
                    bad("spec.pem", message);
                }
            }
        }
    }
    let Some(endpoint) = &spec.endpoint else { return problems };
    if let Some(id) = &endpoint.spiffe_id {
        match id.parse::<weft_api::Identity>() {
            Err(error) => bad("spec.endpoint.spiffeId", error.to_string()),
            Ok(identity) if identity.trust_domain.as_str() != spec.trust_domain => bad(
                "spec.endpoint.spiffeId",
                format!(
                    "{id} is not of trust domain {}, whose roots verify it: name an identity of that one, or write profile HttpsWeb",
                    spec.trust_domain
                ),
            ),
            Ok(_) => {}
        }
    }
    if endpoint.ca_bundle.as_deref().is_some_and(|bundle| certificates(bundle).is_none()) {
        bad(
            "spec.endpoint.caBundle",
            "is not a list of certificates in PEM: paste each from -----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----, and nothing secret".into(),
        );
    }
    problems
}

/// Where it stands, and beside what. `root`: Weft's own namespace; `own`: the own trust domain, where it is known.
#[must_use]
pub fn misplaced(resource: &TrustDomain, root: &str, own: Option<&str>) -> Option<Problem> {
    let namespace = resource.metadata.namespace.as_deref().unwrap_or_default();
    if namespace != root {
        return Some(Problem {
            field: "metadata.namespace".into(),
            message: format!(
                "a TrustDomain is for the whole mesh and counts in Weft's own namespace only: apply it in {root}"
            ),
        });
    }
    is_own(&resource.spec.trust_domain, own?)
        .map(|message| Problem { field: "spec.trustDomain".into(), message })
}

/// Why the own trust domain cannot be a foreign one.
#[must_use]
pub fn is_own(trust_domain: &str, own: &str) -> Option<String> {
    (trust_domain == own).then(|| {
        format!(
            "{own} is this mesh's own trust domain, for which its own roots alone vouch: name the other mesh's, and where both have the same name give one of them another (chart value trustDomain)"
        )
    })
}

/// Of two that name the same trust domain the older counts.
#[must_use]
pub fn same_trust_domain(resource: &TrustDomain, other: &TrustDomain) -> Option<Problem> {
    let (this, that) = (&resource.metadata, &other.metadata);
    let same = resource.spec.trust_domain == other.spec.trust_domain
        && this.namespace == that.namespace
        && this.name != that.name;
    same.then(|| Problem {
        field: "spec.trustDomain".into(),
        message: format!(
            "trust domain {} is named by TrustDomain {} already: change that one",
            resource.spec.trust_domain,
            that.name.as_deref().unwrap_or_default()
        ),
    })
}

/// Roots that one bundle may have.
pub const MAX_ROOTS: usize = 32;

/// Whether roots (DER) can vouch for a trust domain: each a certificate authority, and none that says to be of another one.
///
/// # Errors
/// A sentence.
pub fn bundle(trust_domain: &str, roots: &[Vec<u8>]) -> Result<(), String> {
    if roots.is_empty() {
        return Err("holds no root certificate, so that nobody would be believed".into());
    }
    if roots.len() > MAX_ROOTS {
        return Err(format!("holds {} roots; more than {MAX_ROOTS} are not taken", roots.len()));
    }
    for (i, der) in roots.iter().enumerate() {
        let Ok((rest, root)) = X509Certificate::from_der(der) else {
            return Err(format!("certificate {} cannot be read", i + 1));
        };
        if !rest.is_empty() || !root.is_ca() {
            return Err(format!(
                "certificate {} is not a certificate authority's (CA:TRUE): give the roots of the other mesh, not a certificate of one of its workloads",
                i + 1
            ));
        }
        let names = root.subject_alternative_name().ok().flatten();
        let mut uris =
            names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
                GeneralName::URI(uri) => uri.strip_prefix("spiffe://"),
                _ => None,
            });
        // X.509-SVID section 4.2: an authority may say of which trust domain it is.
        let own = |rest: &str| rest.split('/').next() == Some(trust_domain);
        if let Some(other) = uris.find(|rest| !own(rest)) {
            let other: String = other.chars().take(80).collect();
            return Err(format!(
                "certificate {} is of spiffe://{other}, not of trust domain {trust_domain}",
                i + 1
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust_domain::TrustDomainSpec;
    use serde_json::{Value, json};

    /// Of a real authority (openssl req -x509, a hundred years), and of a leaf.
    const ROOT: &str = include_str!("trust_domain/root.pem");
    const LEAF: &str = include_str!("trust_domain/leaf.pem");
    const OTHERS: &str = include_str!("trust_domain/others.pem");

    fn resource(name: &str, namespace: &str, spec: Value) -> TrustDomain {
        let mut resource = TrustDomain::new(name, serde_json::from_value::<TrustDomainSpec>(spec).unwrap());
        resource.metadata.namespace = Some(namespace.into());
        resource
    }

    fn said(spec: Value) -> String {
        trust_domain(&resource("p", "weft-system", spec)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_bundle_is_of_authorities_of_that_trust_domain() {
        let pem = |pem: &str| said(json!({"trustDomain": "partner.example", "pem": pem}));
        assert_eq!(pem(ROOT), "");
        assert_eq!(pem(&format!("{ROOT}{ROOT}")), "");
        assert!(pem("-----BEGIN CERTIFICATE-----").contains("not a list of certificates"));
        assert!(pem(LEAF).contains("certificate 1 is not a certificate authority's"), "{}", pem(LEAF));
        assert!(pem(&format!("{ROOT}{LEAF}")).contains("certificate 2"));
        assert!(pem(OTHERS).contains("is of spiffe://third.example, not of"), "{}", pem(OTHERS));
        let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert!(pem(&format!("{ROOT}{key}")).contains("nothing secret"));
        assert!(pem(&ROOT.repeat(MAX_ROOTS + 1)).contains("more than 32"));
        assert!(bundle("a", &[]).unwrap_err().contains("nobody would be believed"));
    }

    #[test]
    fn who_serves_a_bundle_is_of_its_own_trust_domain() {
        let of = |id: &str| {
            said(json!({"trustDomain": "partner.example", "pem": ROOT, "endpoint": {
                "url": "https://a", "profile": "HttpsSpiffe", "spiffeId": id}}))
        };
        assert_eq!(of("spiffe://partner.example/ns/weft-system/sa/weft-operator"), "");
        assert!(of("spiffe://third.example/ns/weft-system/sa/weft-operator").contains("not of trust domain"));
        assert!(of("partner.example").contains("not a SPIFFE id"));
        let web = json!({"trustDomain": "partner.example", "endpoint": {
            "url": "https://a", "profile": "HttpsWeb", "caBundle": "none"}});
        assert!(said(web).contains("caBundle"));
    }

    #[test]
    fn it_stands_once_in_the_own_namespace_and_is_not_the_own_one() {
        let spec = |domain: &str| json!({"trustDomain": domain, "pem": ROOT});
        let this = resource("a", "weft-system", spec("partner.example"));
        let at = |resource: &TrustDomain| {
            misplaced(resource, "weft-system", Some("cluster.local")).map(|problem| problem.to_string())
        };
        assert_eq!(at(&this), None);
        assert!(
            at(&resource("a", "shop", spec("partner.example"))).unwrap().contains("apply it in weft-system")
        );
        let own = at(&resource("a", "weft-system", spec("cluster.local"))).unwrap();
        assert!(own.contains("this mesh's own trust domain"), "{own}");
        let other = resource("b", "weft-system", spec("partner.example"));
        assert!(same_trust_domain(&this, &other).unwrap().to_string().contains("TrustDomain b already"));
        assert_eq!(same_trust_domain(&this, &this), None);
        assert_eq!(same_trust_domain(&this, &resource("b", "weft-system", spec("third.example"))), None);
    }
}
