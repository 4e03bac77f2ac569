//! TrustDomain: another mesh (or any SPIFFE issuer) whose identities are believed, and where the roots that vouch for them come from.

use crate::common::Conditions;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Another trust domain whose identities are believed, such as another mesh's. It counts in Weft's own namespace only, and there
/// for the whole mesh. Its bundle vouches for identities of that trust domain and for no others. Whoever is of it is let in only
/// where an AuthorizationPolicy allows it by `identities` that name the trust domain, or by `trustDomains`. When it is
/// deleted, nobody of it is believed any more, on open connections neither.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "TrustDomain",
    namespaced,
    status = "TrustDomainStatus"
)]
#[kube(derive = "PartialEq", shortname = "td", category = "weft")]
#[kube(doc = "Another trust domain whose identities are believed, and where its bundle comes from.")]
#[kube(printcolumn = r#"{"name":"Trust domain", "type":"string", "jsonPath":".spec.trustDomain"}"#)]
#[kube(
    printcolumn = r#"{"name":"Applied", "type":"string", "jsonPath":".status.applied", "description":"proxies that have this in force / connected proxies that need it"}"#
)]
#[kube(
    printcolumn = r#"{"name":"Accepted", "type":"string", "jsonPath":".status.conditions[?(@.type==\"Accepted\")].status"}"#
)]
#[kube(
    printcolumn = r#"{"name":"Bundle", "type":"string", "jsonPath":".status.conditions[?(@.type==\"ResolvedRefs\")].status", "description":"False: the bundle could not be fetched"}"#
)]
#[kube(printcolumn = r#"{"name":"Age", "type":"date", "jsonPath":".metadata.creationTimestamp"}"#)]
#[x_kube(
    validation = Rule::new("has(self.pem) || has(self.endpoint)").message(
        "a TrustDomain needs pem, endpoint or both: give the other mesh's roots as PEM, or the URL at which its operator serves them"
    ),
    validation = Rule::new("!has(self.endpoint) || self.endpoint.profile != 'HttpsSpiffe' || has(self.pem)").message(
        "profile HttpsSpiffe verifies the endpoint by the other mesh's own roots, the first of which have to come another way: give them as pem"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct TrustDomainSpec {
    /// Its name, as it stands in its SPIFFE ids: `partner.example` of `spiffe://partner.example/ns/shop/sa/front`.
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-z0-9._-]+$')").message(
            "trustDomain is not the name of a trust domain: write lower-case letters, digits, dots and dashes, without spiffe://, for example partner.example"
        )
    )]
    pub trust_domain: String,
    /// Its root certificates (PEM). Without `endpoint` they are its whole bundle, and you replace them yourself before the other mesh
    /// rotates its root. With `endpoint` they count until the first bundle was fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65536))]
    #[x_kube(
        validation = Rule::new("self.contains('-----BEGIN CERTIFICATE-----')").message(
            "pem holds no certificate: paste the roots of the other mesh as PEM, each from -----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----"
        )
    )]
    pub pem: Option<String>,
    /// Its SPIFFE bundle endpoint, from which the operator fetches the bundle again and again, so that it follows rotations of the
    /// other mesh's root. While that fails the last good one stays. Default: `pem` is all there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<BundleEndpoint>,
}

/// Where a trust domain serves its bundle, as SPIFFE Federation has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("(self.profile == 'HttpsSpiffe') == has(self.spiffeId)").message(
        "spiffeId says who serves the bundle where profile is HttpsSpiffe, for example spiffe://partner.example/ns/weft-system/sa/weft-operator: give it there, and nowhere else"
    ),
    validation = Rule::new("!has(self.caBundle) || self.profile == 'HttpsWeb'").message(
        "caBundle verifies a server of the web, which profile HttpsSpiffe does not know: remove it, or write profile HttpsWeb"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct BundleEndpoint {
    /// Its URL. What it answers must be a SPIFFE bundle (JWKS); redirects are not followed.
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(
        validation = Rule::new("self.matches('^https://[^/?#@ ]+(/[^#@ ]*)?$')").message(
            "endpoint.url must begin with https://, because whoever serves the bundle decides whom this mesh believes: write for example https://bundle.partner.example:15011/"
        )
    )]
    pub url: String,
    /// How its server is verified. `HttpsSpiffe`: by the bundle that is known, as `spiffeId`. `HttpsWeb`: by its name, as browsers do.
    pub profile: Profile,
    /// Who serves it, where `profile` is `HttpsSpiffe`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub spiffe_id: Option<String>,
    /// Certificates (PEM) of the authorities that may have signed the server's, where `profile` is `HttpsWeb`. Default: the
    /// authorities that browsers trust.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65536))]
    #[x_kube(
        validation = Rule::new("self.contains('-----BEGIN CERTIFICATE-----')").message(
            "endpoint.caBundle holds no certificate: paste the authority's certificates as PEM, each from -----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----"
        )
    )]
    pub ca_bundle: Option<String>,
}

/// How the server of a bundle is verified (SPIFFE Federation, section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Profile {
    /// By the trust domain's own bundle and a SPIFFE id.
    HttpsSpiffe,
    /// By its name, as browsers do.
    HttpsWeb,
}

/// What the mesh makes of it. Written by the operator only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrustDomainStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// "N/M": how many of the connected proxies have it in force.
    #[schemars(length(max = 32))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<String>,
    /// `Accepted`, `ResolvedRefs` (the bundle is the newest that could be fetched) and `Programmed`, each with a sentence that says why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The last good bundle that was fetched: what every replica of the operator tells proxies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<FetchedBundle>,
}

/// A bundle that was fetched. It counts for the trust domain and the URL that it names, so that it is none of another spec's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct FetchedBundle {
    /// For which trust domain.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 255))]
    pub trust_domain: String,
    /// From where.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub url: String,
    /// Its roots (PEM); absent: none was ever fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 131072))]
    pub pem: Option<String>,
    /// `spiffe_sequence` of the document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<i64>,
    /// When it was fetched first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub since: Option<String>,
    /// Why there is no newer one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub problem: Option<String>,
}

impl FetchedBundle {
    /// Whether it is of this spec.
    #[must_use]
    pub fn is_of(&self, spec: &TrustDomainSpec) -> bool {
        self.trust_domain == spec.trust_domain
            && spec.endpoint.as_ref().is_some_and(|endpoint| endpoint.url == self.url)
    }
}

impl From<TrustDomainStatus> for Conditions {
    fn from(status: TrustDomainStatus) -> Self {
        Self {
            observed_generation: status.observed_generation,
            applied: status.applied,
            conditions: status.conditions,
        }
    }
}
