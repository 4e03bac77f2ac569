//! Judgements that CEL cannot make: regular expressions that must compile, and resources that only make sense (or not)
//! beside others. Shared by the webhook, which refuses, and the operator, which reports in status.
//! Pure: it looks at what it is given, never at a cluster. Every sentence says what is wrong and how to set it right.

mod alone;
mod authorization_policy;
pub mod jwks;
mod peer_authentication;
mod request_authentication;
mod targets;
mod texts;
mod traffic_policy;
mod trust_domain;

pub use alone::{certificates, mesh_service, peer_authentication, traffic_policy};
pub use authorization_policy::{authorization_policy, authorization_warnings};
pub use peer_authentication::{Scope, Shadow, scope, scope_of, shadow};
pub use request_authentication::{
    claim_path, principal, request_authentication, request_warnings, same_issuer,
};
pub use targets::{older, same_external, same_target, target_service};
pub use texts::{MAX_REGEX_SIZE, regex};
pub use traffic_policy::{ServiceRef, conflict, service_refs, unresolved, within_cluster_only};
pub use trust_domain::{MAX_ROOTS, bundle, is_own, misplaced, same_trust_domain, trust_domain};

use std::fmt;

/// What is wrong with one field of one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Path of the field, for example `spec.rules[0].match[1].path.regex`.
    pub field: String,
    /// A sentence that says what is wrong and how to set it right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}
