//! What a rule of a TrafficPolicy does to a request besides choosing where it goes: header changes, rewrite, redirect,
//! direct response, fault injection, CORS. Types, bounds and CEL rules; it judges nothing else.

use crate::common::Duration;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Header changes both ways.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("has(self.request) || has(self.response)").message(
        "headers changes nothing: give it request or response, or leave it out"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct HeaderChanges {
    /// On the request, before it is sent. Every try has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<HeaderEdits>,
    /// On the response, before the client gets it. Refusals of the proxy itself, which carry `weft-reason`, stay as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<HeaderEdits>,
}

/// Header changes one way. First `remove`, then `set`, then `add`. Headers of the connection (such as `connection` and
/// `content-length`), `host` (see `rewrite.host`), `x-request-id` and those of Weft itself (`weft-...`) cannot be changed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new(
        "(has(self.set) && size(self.set) > 0) || (has(self.add) && size(self.add) > 0) || (has(self.remove) && size(self.remove) > 0)"
    ).message(
        "an entry of headers changes nothing: give it set, add or remove, or leave it out"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct HeaderEdits {
    /// In place of every value that is there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub set: Vec<HeaderLine>,
    /// Beside the values that are there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub add: Vec<HeaderLine>,
    /// Names of headers to remove.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 128)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(name, name.matches('^[A-Za-z0-9!#$%&\\'*+.^_`|~-]+$'))").message(
            "remove lists something that is not the name of an HTTP header: use letters, digits and dashes, without colon or spaces, for example x-user"
        ),
        validation = Rule::new(
            "!self.exists(name, name.matches('(?i)^(host|connection|keep-alive|te|trailer|transfer-encoding|upgrade|content-length|expect|http2-settings|x-request-id|proxy-.*|weft[-_].*)$'))"
        ).message(
            "remove lists a header that belongs to the connection, to the message's framing or to Weft, which the proxy alone sets: take it out of the list; to change the host use rewrite.host"
        )
    )]
    pub remove: Vec<String>,
}

/// A header.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeaderLine {
    /// Its name; upper and lower case are the same.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z0-9!#$%&\\'*+.^_`|~-]+$')").message(
            "headers[].name is not the name of an HTTP header: use letters, digits and dashes, without colon or spaces, for example x-user"
        ),
        validation = Rule::new(
            "!self.matches('(?i)^(host|connection|keep-alive|te|trailer|transfer-encoding|upgrade|content-length|expect|http2-settings|x-request-id|proxy-.*|weft[-_].*)$')"
        ).message(
            "headers[].name is a header that belongs to the connection, to the message's framing or to Weft, which the proxy alone sets: choose another name; to change the host use rewrite.host"
        )
    )]
    pub name: String,
    /// Its value.
    #[schemars(length(max = 1024))]
    #[x_kube(
        validation = Rule::new("self.matches('^([!-~]([ -~]*[!-~])?)?$')").message(
            "headers[].value must be printable ASCII without spaces around it: remove line breaks and other characters, or encode them"
        )
    )]
    pub value: String,
}

/// Changes of where a request says that it goes. It goes to the same endpoints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("has(self.host) || has(self.path)").message(
        "rewrite changes nothing: give it host or path, or leave it out"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct Rewrite {
    /// The Host header (`:authority` in HTTP/2) that the application gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?(:[0-9]{1,5})?$')").message(
            "rewrite.host is not a host: write a name, and a port if it needs one, without scheme and path, for example shop.example:8080"
        )
    )]
    pub host: Option<String>,
    /// The path; the query is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathRewrite>,
}

/// Exactly one of the three.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("[has(self.prefix), has(self.full), has(self.regex)].exists_one(given, given)").message(
        "rewrite.path needs exactly one of prefix, full and regex: keep one and remove the others"
    ),
    validation = Rule::new("!has(self.prefix) || self.prefix.matches('^(/[^?# ]*)?$')").message(
        "rewrite.path.prefix must be empty or begin with '/', without query and spaces: write for example /v2"
    ),
    validation = Rule::new("!has(self.full) || self.full.matches('^/[^?# ]*$')").message(
        "rewrite.path.full must begin with '/', without query and spaces: write for example /status"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct PathRewrite {
    /// In place of the prefix that the rule's match gives: with `match: /a` and `prefix: /b`, `/a/c` becomes `/b/c`; an empty one
    /// removes it. Slashes at the seam are neither doubled nor lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub prefix: Option<String>,
    /// In place of the whole path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub full: Option<String>,
    /// Made of parts of the path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regex: Option<PathSubstitution>,
}

/// A path made of parts of another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PathSubstitution {
    /// A regular expression (RE2 syntax) for the whole path. Where it does not fit, the path stays as it is.
    #[schemars(length(min = 1, max = 512))]
    pub pattern: String,
    /// The new path: `$1` to `$9` are the groups of the pattern, `$0` the whole path, `$$` a dollar sign.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(
        validation = Rule::new("self.matches('^/([^$?# ]|[$][0-9$])*$')").message(
            "substitution must begin with '/' and hold neither query nor spaces; a '$' must be followed by the number of a group ($1) or by another '$': write for example /items/$1"
        )
    )]
    pub substitution: String,
}

/// An answer that sends the client elsewhere, in place of sending the request anywhere. What is not given is kept of the request,
/// its query always.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("has(self.scheme) || has(self.host) || has(self.port) || has(self.path)").message(
        "redirect would send the client to where it came from: give at least one of scheme, host, port and path"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct Redirect {
    /// `http` or `https`. Default: that of the request, which inside of the mesh is `http`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Scheme>,
    /// The host. Default: that of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?$')").message(
            "redirect.host is not a host: write a name without scheme, port and path, for example shop.example; the port goes to redirect.port"
        )
    )]
    pub host: Option<String>,
    /// The port. Default: the scheme's own where `scheme` is given, otherwise that of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// The path. Default: that of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathRedirect>,
    /// 301, 302, 303, 307 or 308. With 307 and 308 the client repeats method and body. Default: 302.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(
        validation = Rule::new("self in [301, 302, 303, 307, 308]").message(
            "redirect.status must be 301, 302, 303, 307 or 308: choose one of them"
        )
    )]
    pub status: Option<u16>,
}

/// Schemes of a redirect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Port 80.
    Http,
    /// Port 443.
    Https,
}

/// Exactly one of the two.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("has(self.prefix) != has(self.full)").message(
        "redirect.path needs exactly one of prefix and full: keep one and remove the other"
    ),
    validation = Rule::new(
        "(!has(self.prefix) || self.prefix.matches('^(/[^?# ]*)?$')) && (!has(self.full) || self.full.matches('^/[^?# ]*$'))"
    ).message(
        "redirect.path.full must begin with '/', and prefix too unless it is empty, without query and spaces: write for example /v2"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct PathRedirect {
    /// In place of the prefix that the rule's match gives, as `rewrite.path.prefix`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub prefix: Option<String>,
    /// In place of the whole path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub full: Option<String>,
}

/// An answer of the proxy's own, in place of sending the request anywhere.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("!has(self.body) || !(self.status in [204, 205, 304])").message(
        "response.body cannot be sent with status 204, 205 or 304, which have none: remove body, or use status 200"
    ),
    validation = Rule::new("!has(self.contentType) || has(self.body)").message(
        "response.contentType says what body is: give body too, or remove contentType"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct DirectResponse {
    /// 200 to 599.
    #[schemars(range(min = 200, max = 599))]
    pub status: u16,
    /// The body, at most 4096 characters. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub body: Option<String>,
    /// What the body is. Default: `text/plain; charset=utf-8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(
        validation = Rule::new("self.matches('^[!-~]([ -~]*[!-~])?$')").message(
            "response.contentType is not a media type: write for example application/json"
        )
    )]
    pub content_type: Option<String>,
}

/// Failures made up in the caller's proxy, to see how callers bear them. First the delay, then the abort; each is drawn by itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("has(self.delay) || has(self.abort)").message(
        "fault does nothing: give it delay or abort, or leave it out"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct Fault {
    /// Requests that wait before they are sent. The rule's `timeout` runs meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Delay>,
    /// Requests that are answered with a failure, and never sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
    /// Only requests with this header. Default: every request of the rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<FaultCondition>,
}

/// A made-up delay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Delay {
    /// How long, at most 1m.
    #[x_kube(
        validation = Rule::new("duration(self) <= duration('1m')").message(
            "delay.duration must not be longer than 1m: write a shorter one"
        )
    )]
    pub duration: Duration,
    /// Share of the requests, 0 to 100. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub percent: Option<u32>,
}

/// A made-up failure, and exactly one of `status` and `grpcStatus`. It carries `weft-reason: fault-injected`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("has(self.status) != has(self.grpcStatus)").message(
        "abort needs exactly one of status and grpcStatus: keep one and remove the other"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct Abort {
    /// The HTTP status, 400 to 599. gRPC requests get the gRPC status that clients make of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 400, max = 599))]
    pub status: Option<u16>,
    /// The gRPC status, 1 to 16, by number: 14 is UNAVAILABLE. Only gRPC requests are aborted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub grpc_status: Option<u16>,
    /// Share of the requests, 0 to 100. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub percent: Option<u32>,
}

/// A header of the request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct FaultCondition {
    /// Its name; upper and lower case are the same.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z0-9!#$%&\\'*+.^_`|~-]+$')").message(
            "fault.when.header is not the name of an HTTP header: use letters, digits and dashes, for example x-chaos"
        )
    )]
    pub header: String,
    /// Its whole value. Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub value: Option<String>,
}

/// Cross-origin resource sharing (Fetch standard): which pages of other origins may call the service from a browser. The proxy
/// answers preflights, and replaces what the application says of it. It keeps browsers from handing responses to such pages; it
/// is no protection against other clients.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new(
        "!has(self.allowCredentials) || !self.allowCredentials || !self.allowOrigins.exists(origin, origin == '*')"
    ).message(
        "cors.allowCredentials with the origin '*' would let every site on the web act as the user who is signed in: name the origins, or remove allowCredentials"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct Cors {
    /// Origins whose pages may call: `https://shop.example`, `https://*.shop.example` for every host below it, or `*` for all.
    /// A port other than the scheme's own belongs to the origin: `http://localhost:3000`.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 253)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new(
            "self.all(origin, origin == '*' || origin.matches('^[a-z][a-z0-9+.-]*://([*][.])?[a-z0-9]([-a-z0-9.]*[a-z0-9])?(:[0-9]{1,5})?$'))"
        ).message(
            "cors.allowOrigins lists something that is not an origin: write scheme and host in lower case without path, for example https://shop.example or https://*.shop.example, or '*'"
        )
    )]
    pub allow_origins: Vec<String>,
    /// Methods that pages may use besides GET, HEAD and POST, or `*` for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 32)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(method, method == '*' || method.matches('^[A-Z][A-Z0-9_-]*$'))").message(
            "cors.allowMethods lists something that is not an HTTP method in capital letters: write for example PUT, or '*'"
        )
    )]
    pub allow_methods: Vec<String>,
    /// Request headers that pages may send besides the safelisted ones, or `*` for all but `authorization`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 128)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(name, name.matches('^[A-Za-z0-9!#$%&\\'*+.^_`|~-]+$'))").message(
            "cors.allowHeaders lists something that is not the name of an HTTP header: use letters, digits and dashes, or '*'"
        )
    )]
    pub allow_headers: Vec<String>,
    /// Response headers that pages may read besides the safelisted ones, or `*` for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 128)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(name, name.matches('^[A-Za-z0-9!#$%&\\'*+.^_`|~-]+$'))").message(
            "cors.exposeHeaders lists something that is not the name of an HTTP header: use letters, digits and dashes, or '*'"
        )
    )]
    pub expose_headers: Vec<String>,
    /// How long browsers may remember a preflight's answer, in whole seconds. Default: 5s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Duration>,
    /// Pages may send cookies and HTTP authentication. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_credentials: Option<bool>,
}
