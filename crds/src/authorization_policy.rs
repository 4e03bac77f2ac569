//! AuthorizationPolicy: who may ask workloads for what.

use crate::common::Conditions;
use crate::peer_authentication::Selector;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who may ask workloads for what. With a selector it governs those workloads; without one its whole namespace; without one in
/// Weft's own namespace, the whole mesh. All that select a workload count together: what a `Deny` fits is refused; otherwise,
/// where there is any `Allow`, what none of them fits is refused; everything else passes. Enforced by the proxy of the
/// workload that is asked.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "AuthorizationPolicy",
    namespaced,
    status = "Conditions",
    plural = "authorizationpolicies"
)]
#[kube(derive = "PartialEq", shortname = "authz", category = "weft")]
#[kube(doc = "Who may ask workloads for what: allowed, denied or audited, by caller, request and headers.")]
#[kube(printcolumn = r#"{"name":"Action", "type":"string", "jsonPath":".spec.action"}"#)]
#[kube(
    printcolumn = r#"{"name":"Dry run", "type":"boolean", "jsonPath":".spec.dryRun", "description":"true: what it would refuse is only noted"}"#
)]
#[kube(
    printcolumn = r#"{"name":"Applied", "type":"string", "jsonPath":".status.applied", "description":"proxies that have this in force / connected proxies that need it"}"#
)]
#[kube(
    printcolumn = r#"{"name":"Accepted", "type":"string", "jsonPath":".status.conditions[?(@.type==\"Accepted\")].status"}"#
)]
#[kube(printcolumn = r#"{"name":"Age", "type":"date", "jsonPath":".metadata.creationTimestamp"}"#)]
#[x_kube(
    validation = Rule::new("self.action != 'Audit' || !has(self.dryRun) || !self.dryRun").message(
        "dryRun has no meaning for action Audit, which never refuses anything: remove dryRun"
    ),
    validation = Rule::new(
        "!has(self.audit) || !self.audit || (self.action != 'Audit' && (!has(self.dryRun) || !self.dryRun))"
    ).message(
        "audit is for what is allowed or denied: an Audit policy is audited anyway, and in dry run nothing is decided; remove audit"
    ),
    validation = Rule::new("self.action == 'Allow' || (has(self.rules) && size(self.rules) > 0)").message(
        "a policy that denies or audits and has no rules does nothing: add rules; one empty rule, `- {}`, fits everything"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicySpec {
    /// The workloads, by pod labels. Default: every workload of the namespace (of the mesh, in Weft's own namespace).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// What becomes of that which a rule fits. `Allow`: it passes, and what no `Allow` policy of the workload fits is refused.
    /// `Deny`: it is refused, whatever else allows it. `Audit`: it is noted in the access log and in a metric, and is an
    /// audit event.
    pub action: Action,
    /// `true`: what it would refuse is noted, in the access log as `dry_run` and in a metric, and passes. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<bool>,
    /// `true`: each request and connection that it allows or denies is an audit event (docs/audit.md). Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<bool>,
    /// Any of them. Without any, the policy fits nothing: an `Allow` policy without rules refuses everything that no other one
    /// allows, which is the default-deny of a namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(
        merge_strategy = ListMerge::Atomic,
        validation = Rule::new(
            "self.all(a, !has(a.name) || self.exists_one(b, has(b.name) && a.name == b.name))"
        ).message(
            "rules[].name is given twice: names tell rules apart in logs, so make each unique or leave it out"
        )
    )]
    // `self::`: inside the derived schema code `Rule` is a CEL rule.
    pub rules: Vec<self::Rule>,
}

/// What becomes of that which a rule fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Action {
    /// It passes, and what no `Allow` policy of the workload fits is refused.
    Allow,
    /// It is refused, whatever else allows it.
    Deny,
    /// It is noted in the access log and in a metric, and is an audit event.
    Audit,
}

/// Fits when `from`, `to` and `when` do; what is not given fits everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Name in logs. Default: its position, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message(
            "rules[].name must be lower-case letters, digits and dashes, and begin and end with a letter or digit, for example admins"
        )
    )]
    pub name: Option<String>,
    /// Who calls: any of them. Default: everybody, callers outside of the mesh too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub from: Vec<Source>,
    /// What is asked for: any of them. Default: everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub to: Vec<Target>,
    /// Headers of the request and claims of its token: all of them. Default: whatever they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub when: Vec<Condition>,
}

/// A caller that each of the given lists names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new(
        "(has(self.identities) && size(self.identities) > 0) || (has(self.namespaces) && size(self.namespaces) > 0) || (has(self.trustDomains) && size(self.trustDomains) > 0) || (has(self.ipBlocks) && size(self.ipBlocks) > 0) || (has(self.requestPrincipals) && size(self.requestPrincipals) > 0)"
    ).message(
        "an entry of from names nobody: give it identities, namespaces, trustDomains, ipBlocks or requestPrincipals; for everybody leave from out"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// SPIFFE ids, as mTLS proves them: `spiffe://cluster.local/ns/shop/sa/front`. One `*` stands for whole segments at the end
    /// (`spiffe://cluster.local/ns/shop/*`) or at the beginning (`*/sa/front`); `*` alone is every caller of the mesh. Callers of
    /// federated trust domains are allowed only where that domain is written out; one `*` in its place denies and audits them too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 320)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        // The rest of its form the webhook judges: a whole expression would cost the API server too much here.
        validation = Rule::new("self.all(id, id.startsWith('spiffe://') || id.startsWith('*'))").message(
            "from[].identities lists something that is not the SPIFFE id of a workload: write spiffe://<trust domain>/ns/<namespace>/sa/<service account>, or one * for whole segments at its end or beginning"
        )
    )]
    pub identities: Vec<String>,
    /// Namespaces of callers of the mesh's own trust domain, as mTLS proves them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(name, name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$'))").message(
            "from[].namespaces lists something that is not the name of a namespace: write lower-case letters, digits and dashes"
        )
    )]
    pub namespaces: Vec<String>,
    /// Trust domains of callers, as mTLS proves them: the mesh's own, or federated ones (TrustDomain). Whoever is of a federated
    /// one is let in only by an `Allow` policy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 255)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(name, name.matches('^[a-z0-9._-]+$'))").message(
            "from[].trustDomains lists something that is not a trust domain: write its name alone, for example partner.example"
        )
    )]
    pub trust_domains: Vec<String>,
    /// Blocks of addresses, or single ones, of the other end of the connection: `10.0.0.0/8`, `2001:db8::/32`. What a header says
    /// of addresses (X-Forwarded-For) never counts; behind a NodePort or a load balancer it may be a node's address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 2, max = 49)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub ip_blocks: Vec<String>,
    /// Whose token (JWT) the request bears, as RequestAuthentication has verified it: `<issuer>/<subject>`. What follows the last
    /// slash is the subject. One `*` stands for any subject (`https://accounts.example/*`) or any issuer (`*/alice`); `*` alone is
    /// whoever has a good token. Of HTTP only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 512)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub request_principals: Vec<String>,
}

/// A request that each of the given lists names. On connections that are not HTTP only `ports` can be seen: the rest of an
/// `Allow` policy then fits nothing, and the rest of a `Deny` policy fits everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new(
        "(has(self.hosts) && size(self.hosts) > 0) || (has(self.ports) && size(self.ports) > 0) || (has(self.methods) && size(self.methods) > 0) || (has(self.paths) && size(self.paths) > 0) || (has(self.services) && size(self.services) > 0)"
    ).message(
        "an entry of to names nothing: give it hosts, ports, methods, paths or services; for everything leave to out"
    ),
    validation = Rule::new(
        "!(has(self.paths) && size(self.paths) > 0 && has(self.services) && size(self.services) > 0)"
    ).message(
        "services are paths of gRPC, so paths beside them could never fit: put paths and services into entries of to of their own"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Hosts that the request names (Host, or `:authority` in HTTP/2, without the port): a name, or `*.example.com` for every name
    /// below `example.com`. It is the caller who names it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(host, host.matches('^([*][.])?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$'))").message(
            "to[].hosts lists something that is not a host: write a name in lower case without scheme and port, for example shop.example or *.shop.example"
        )
    )]
    pub hosts: Vec<String>,
    /// Ports that the application listens on: container ports, not those of a Service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(range(min = 1)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub ports: Vec<u16>,
    /// Methods in capitals, for example GET.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 32)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(method, method.matches('^[A-Z][A-Z0-9_-]*$'))").message(
            "to[].methods lists something that is not an HTTP method in capital letters: write for example GET, because methods are case-sensitive"
        )
    )]
    pub methods: Vec<String>,
    /// Paths, without the query and in their normalised form. Requests whose path servers read differently (encoded slashes,
    /// backslashes and control characters, semicolons, malformed escapes) are refused with `bad-request` where a policy for
    /// their caller and port looks at paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub paths: Vec<Path>,
    /// gRPC services by their full names, `shop.Orders`, or single methods of them, `shop.Orders/Buy`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    // Shorter than hosts are: the API server reckons with what the expression costs at the most.
    #[schemars(length(max = 16), inner(length(min = 1, max = 200)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(name, name.matches('^[A-Za-z_][A-Za-z0-9_.]*(/[A-Za-z_][A-Za-z0-9_]*)?$'))").message(
            "to[].services lists something that is not a gRPC service: write its full name, for example shop.Orders, or a method of it, shop.Orders/Buy"
        )
    )]
    pub services: Vec<String>,
}

/// Exactly one of the three.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("[has(self.exact), has(self.prefix), has(self.template)].exists_one(given, given)").message(
        "an entry of paths needs exactly one of exact, prefix and template: keep one and remove the others"
    ),
    validation = Rule::new(
        "(has(self.exact) ? self.exact : has(self.prefix) ? self.prefix : has(self.template) ? self.template : '/').startsWith('/')"
    ).message(
        "a path must begin with '/': write for example /api"
    ),
    validation = Rule::new(
        "!(has(self.exact) ? self.exact : has(self.prefix) ? self.prefix : has(self.template) ? self.template : '/').contains('?')"
    ).message(
        "paths are compared without their query: remove '?' and what follows"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct Path {
    /// The whole path; upper and lower case differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub exact: Option<String>,
    /// Leading whole segments: `/a` fits `/a` and `/a/b`, not `/ab`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub prefix: Option<String>,
    /// The whole path, in which each `{name}` is any one segment: `/users/{id}/items`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub template: Option<String>,
}

/// A header or a claim, and exactly one of the four conditions. Of a header that comes more than once, one value that fits is
/// enough to `Deny` and to `Audit`; to `Allow`, each has to. Of a claim that is a list, one entry that fits is enough.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("has(self.header) != has(self.claim)").message(
        "an entry of when needs exactly one of header and claim: keep one and remove the other"
    ),
    validation = Rule::new(
        "[has(self.exact), has(self.prefix), has(self.regex), has(self.present)].exists_one(given, given)"
    ).message(
        "an entry of when needs exactly one of exact, prefix, regex and present: keep one and remove the others"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Name of a header; upper and lower case are the same. It is the caller who sets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z0-9!#$%&\\'*+.^_`|~-]+$')").message(
            "when[].header is not the name of an HTTP header: use letters, digits and dashes, without colon or spaces, for example x-user"
        ),
        validation = Rule::new("!self.matches('^[Ww][Ee][Ff][Tt]-')").message(
            "headers that begin with weft- are set by proxies, and what a caller sends under such a name means nothing: name the caller in from[].identities"
        )
    )]
    pub header: Option<String>,
    /// A claim of the request's token (JWT), as RequestAuthentication has verified it: `sub`, or with dots one within objects,
    /// `realm.roles`; a dot in a name is written `\.`. Of a list any entry, of `scope` any word. A request without token has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub claim: Option<String>,
    /// The whole value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub exact: Option<String>,
    /// The value's beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub prefix: Option<String>,
    /// A regular expression (RE2 syntax) for the whole value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub regex: Option<String>,
    /// `true`: the header or claim must be there; `false`: it must not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub present: Option<bool>,
}

impl Target {
    /// Whether it looks at anything but ports.
    #[must_use]
    pub fn of_http(&self) -> bool {
        !(self.hosts.is_empty()
            && self.methods.is_empty()
            && self.paths.is_empty()
            && self.services.is_empty())
    }
}

impl self::Rule {
    /// Whether it looks at anything that only HTTP has.
    #[must_use]
    pub fn of_http(&self) -> bool {
        !self.when.is_empty()
            || self.to.iter().any(Target::of_http)
            || self.from.iter().any(|source| !source.request_principals.is_empty())
    }
}
