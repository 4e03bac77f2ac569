//! What a rule does to a request besides choosing where it goes: from the resource to the message. Pure; bounds and
//! grammar were judged at admission, and the proxy checks them once more.

use weft_api::v1::{self, abort, path_change};
use weft_crds::filters as crd;
use weft_crds::traffic_policy::Rule;

/// `None` when the rule does nothing of the kind.
pub fn of(rule: &Rule) -> Option<v1::Filters> {
    let headers = rule.headers.as_ref();
    let filters = v1::Filters {
        request: headers.and_then(|h| h.request.as_ref()).map(edits),
        response: headers.and_then(|h| h.response.as_ref()).map(edits),
        rewrite: rule.rewrite.as_ref().map(rewrite),
        redirect: rule.redirect.as_ref().map(redirect),
        response_instead: rule.response.as_ref().map(response),
        fault: rule.fault.as_ref().map(fault),
        cors: rule.cors.as_ref().map(cors),
    };
    (filters != v1::Filters::default()).then_some(filters)
}

fn edits(given: &crd::HeaderEdits) -> v1::HeaderChanges {
    v1::HeaderChanges {
        remove: given.remove.iter().map(|name| name.to_ascii_lowercase()).collect(),
        set: given.set.iter().map(line).collect(),
        add: given.add.iter().map(line).collect(),
    }
}

fn line(given: &crd::HeaderLine) -> v1::HeaderLine {
    v1::HeaderLine { name: given.name.to_ascii_lowercase(), value: given.value.clone() }
}

fn rewrite(given: &crd::Rewrite) -> v1::Rewrite {
    let change = given.path.as_ref().and_then(|path| {
        let prefix = path.prefix.clone().map(path_change::Change::Prefix);
        let full = || path.full.clone().map(path_change::Change::Full);
        let regex = || {
            path.regex.as_ref().map(|regex| {
                path_change::Change::Regex(v1::PathSubstitution {
                    pattern: regex.pattern.clone(),
                    substitution: regex.substitution.clone(),
                })
            })
        };
        prefix.or_else(full).or_else(regex)
    });
    v1::Rewrite { host: given.host.clone().unwrap_or_default(), path: change.map(path) }
}

const fn path(change: path_change::Change) -> v1::PathChange {
    v1::PathChange { change: Some(change) }
}

fn redirect(given: &crd::Redirect) -> v1::Redirect {
    let change = given.path.as_ref().and_then(|path| {
        let prefix = path.prefix.clone().map(path_change::Change::Prefix);
        prefix.or_else(|| path.full.clone().map(path_change::Change::Full))
    });
    let scheme = given.scheme.map(|scheme| match scheme {
        crd::Scheme::Http => "http",
        crd::Scheme::Https => "https",
    });
    v1::Redirect {
        scheme: scheme.unwrap_or_default().to_owned(),
        host: given.host.clone().unwrap_or_default(),
        port: given.port.map_or(0, u32::from),
        path: change.map(path),
        status: given.status.unwrap_or(302).into(),
    }
}

fn response(given: &crd::DirectResponse) -> v1::DirectResponse {
    v1::DirectResponse {
        status: given.status.into(),
        body: given.body.clone().unwrap_or_default(),
        content_type: given.content_type.clone().unwrap_or_else(|| "text/plain; charset=utf-8".into()),
    }
}

fn fault(given: &crd::Fault) -> v1::Fault {
    v1::Fault {
        delay: given.delay.as_ref().map(|delay| v1::Delay {
            duration_ms: delay.duration.as_millis(),
            percent: delay.percent.unwrap_or(100),
        }),
        abort: given.abort.as_ref().map(|abort| {
            let status = abort.status.map(|status| abort::With::Status(status.into()));
            let grpc = || abort.grpc_status.map(|status| abort::With::GrpcStatus(status.into()));
            v1::Abort { with: status.or_else(grpc), percent: abort.percent.unwrap_or(100) }
        }),
        when: given.when.as_ref().map(|when| v1::FaultCondition {
            header: when.header.to_ascii_lowercase(),
            value: when.value.clone(),
        }),
    }
}

fn cors(given: &crd::Cors) -> v1::Cors {
    v1::Cors {
        allow_origins: given.allow_origins.clone(),
        allow_methods: given.allow_methods.clone(),
        allow_headers: given.allow_headers.clone(),
        expose_headers: given.expose_headers.clone(),
        max_age_s: given.max_age.map_or(5, |age| age.as_millis().div_ceil(1000)),
        allow_credentials: given.allow_credentials.unwrap_or(false),
    }
}
