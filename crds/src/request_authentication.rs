//! RequestAuthentication: whose tokens (JWT) requests to workloads may bear.

use crate::common::{Conditions, Duration};
use crate::peer_authentication::Selector;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// Whose tokens (JWT) requests to workloads may bear. With a selector it governs those workloads; without one its whole
/// namespace; without one in Weft's own namespace, the whole mesh. All that select a workload count together; of two that name
/// the same issuer the narrower counts for it, then the older. A request that bears a token that is not good is refused; one
/// that bears none passes, unless an AuthorizationPolicy asks for one. Enforced by the proxy of the workload that is asked.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "RequestAuthentication",
    namespaced,
    status = "Conditions",
    plural = "requestauthentications"
)]
#[kube(derive = "PartialEq", shortname = "rauth", category = "weft")]
#[kube(doc = "Whose tokens (JWT) requests to workloads may bear, and what of them reaches the application.")]
#[kube(printcolumn = r#"{"name":"Issuers", "type":"string", "jsonPath":".spec.issuers[*].issuer"}"#)]
#[kube(
    printcolumn = r#"{"name":"Applied", "type":"string", "jsonPath":".status.applied", "description":"proxies that have this in force / connected proxies that need it"}"#
)]
#[kube(
    printcolumn = r#"{"name":"Accepted", "type":"string", "jsonPath":".status.conditions[?(@.type==\"Accepted\")].status"}"#
)]
#[kube(
    printcolumn = r#"{"name":"Keys", "type":"string", "jsonPath":".status.conditions[?(@.type==\"ResolvedRefs\")].status", "description":"False: keys of an issuer could not be fetched"}"#
)]
#[kube(printcolumn = r#"{"name":"Age", "type":"date", "jsonPath":".metadata.creationTimestamp"}"#)]
#[serde(rename_all = "camelCase")]
pub struct RequestAuthenticationSpec {
    /// The workloads, by pod labels. Default: every workload of the namespace (of the mesh, in Weft's own namespace).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// Who issues tokens. A token of anybody else is refused.
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["issuer".into()]))]
    pub issuers: Vec<Issuer>,
}

/// Somebody who issues tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("has(self.jwks) != has(self.jwksUri)").message(
        "an issuer needs exactly one of jwks and jwksUri: give its keys, or where the operator fetches them, and remove the other"
    ),
    validation = Rule::new("!has(self.jwksCaBundle) || (has(self.jwksUri) && self.jwksUri.startsWith('https://'))").message(
        "jwksCaBundle verifies the server of jwksUri over TLS: give a jwksUri that begins with https://, or remove jwksCaBundle"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct Issuer {
    /// The claim `iss` of its tokens, whole: `https://accounts.example`.
    #[schemars(length(min = 1, max = 256))]
    pub issuer: String,
    /// What its tokens may be meant for: the claim `aud` must name one of these. Default: any audience, so that tokens that the
    /// same issuer made for others are taken too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub audiences: Vec<String>,
    /// By how much the clocks of issuer and cluster may differ, for `exp`, `nbf` and `iat`. At most 10m. Default: 60s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(
        validation = Rule::new("duration(self) <= duration('10m')").message(
            "leeway must not be longer than 10m, because for so long a token is taken after it has expired: write a shorter one, for example 60s"
        )
    )]
    pub leeway: Option<Duration>,
    /// Its public keys: a JSON Web Key Set (RFC 7517), as text. Keys of other kinds than RSA (2048 to 4096 bits), P-256 and Ed25519
    /// are left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 65536))]
    pub jwks: Option<String>,
    /// Where the operator fetches them: every 5 minutes, or as the answer's `cache-control` says, between 1 minute and 1 hour.
    /// Redirects are not followed. While they cannot be fetched, the last ones stay in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 8, max = 1024))]
    #[x_kube(
        validation = Rule::new("self.matches('^https?://([A-Za-z0-9.-]+|\\\\x5b[0-9a-f:.]+\\\\x5d)(:[0-9]{1,5})?(/[^ #]*)?$')").message(
            "jwksUri must be an http or https URI with a host and without user, password and fragment: write for example https://accounts.example/.well-known/jwks.json"
        )
    )]
    pub jwks_uri: Option<String>,
    /// Certificates, in PEM, by which the server of `jwksUri` is verified. Default: those of the web.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32768))]
    pub jwks_ca_bundle: Option<String>,
    /// Where its tokens are in requests. A request with more than one is refused. Default: the header `Authorization` after
    /// `Bearer`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub locations: Vec<Location>,
    /// Headers that the application gets with what a good token says. Whoever else sends a header of such a name has it removed,
    /// with or without a token.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["header".into()]))]
    pub claims_to_headers: Vec<ClaimHeader>,
    /// Whether the application gets the token itself, too. Default: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward_token: Option<bool>,
}

/// Exactly one of the three.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("[has(self.header), has(self.cookie), has(self.query)].exists_one(given, given)").message(
        "an entry of locations needs exactly one of header, cookie and query: keep one and remove the others"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct Location {
    /// A header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderLocation>,
    /// A cookie, by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z0-9!#$%&\\'*+.^_`|~-]+$')").message(
            "locations[].cookie is not the name of a cookie: use letters, digits, dashes and underscores, for example session"
        )
    )]
    pub cookie: Option<String>,
    /// A parameter of the query, by its name. Queries are in the logs of whatever is on the way: prefer a header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z0-9._~-]+$')").message(
            "locations[].query is not the name of a parameter: use letters, digits, dots, dashes and underscores, for example access_token"
        )
    )]
    pub query: Option<String>,
}

/// A header, and what stands in it before the token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeaderLocation {
    /// Its name; upper and lower case are the same.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z0-9!#$%&\\'*+.^_`|~-]+$')").message(
            "locations[].header.name is not the name of an HTTP header: use letters, digits and dashes, without colon or spaces, for example x-token"
        ),
        validation = Rule::new(
            "!self.matches('(?i)^(host|cookie|connection|keep-alive|te|trailer|transfer-encoding|upgrade|content-length|expect|http2-settings|x-request-id|proxy-.*|weft[-_].*)$')"
        ).message(
            "locations[].header.name is a header that belongs to the connection, to the message's framing or to Weft: name another one; for a cookie use cookie in place of header"
        )
    )]
    pub name: String,
    /// What stands before the token, with the space that follows it: `"Bearer "`. Default: nothing, the whole value is the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(
        validation = Rule::new("self.matches('^[!-~]+ ?$')").message(
            "locations[].header.prefix must be printable ASCII without spaces but one at its end: write for example \"Bearer \""
        )
    )]
    pub prefix: Option<String>,
}

/// A header that is made of a claim.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimHeader {
    /// Name of the header, in lower case.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-z0-9!#$%&\\'*+.^_`|~-]+$')").message(
            "claimsToHeaders[].header is not the name of an HTTP header in lower case: use letters, digits and dashes, without colon or spaces, for example x-user"
        ),
        validation = Rule::new(
            "!self.matches('^(host|cookie|authorization|connection|keep-alive|te|trailer|transfer-encoding|upgrade|content-length|content-type|expect|http2-settings|x-request-id|proxy-.*|weft[-_].*)$')"
        ).message(
            "claimsToHeaders[].header is a header that means something else already, and would be taken away from every request: name another one, for example x-user"
        )
    )]
    pub header: String,
    /// The claim: `sub`, or with dots one within objects, `realm.roles`; a dot in a name is written `\.`. Of a list the header has
    /// all entries, with commas between. Objects make no header, nor do texts that a header could not hold clearly.
    #[schemars(length(min = 1, max = 256))]
    pub claim: String,
}

/// What is taken where no leeway is given, in milliseconds.
pub const DEFAULT_LEEWAY_MS: u64 = 60_000;
