//! The custom resources of group `weft.dev`, version `v1alpha1`: types, schema bounds, CEL rules, printer columns.
//! One file a resource. Whatever a field accepts, the operator compiles and the proxy enforces.
//! It never talks to a cluster.

pub mod authorization_policy;
pub mod breaking;
pub mod common;
pub mod filters;
pub mod manifest;
pub mod mesh_service;
pub mod peer_authentication;
pub mod rate_limit;
pub mod reference;
pub mod request_authentication;
pub mod traffic_policy;
pub mod trust_domain;
pub mod validate;

pub use authorization_policy::{AuthorizationPolicy, AuthorizationPolicySpec};
pub use common::{Conditions, Duration};
pub use mesh_service::{MeshService, MeshServiceSpec, MeshServiceStatus};
pub use peer_authentication::{PeerAuthentication, PeerAuthenticationSpec};
pub use request_authentication::{RequestAuthentication, RequestAuthenticationSpec};
pub use traffic_policy::{TrafficPolicy, TrafficPolicySpec};
pub use trust_domain::{TrustDomain, TrustDomainSpec};

/// API group of every resource.
pub const GROUP: &str = "weft.dev";
/// Group and version, as resources say them.
pub const API_VERSION: &str = "weft.dev/v1alpha1";
/// The one served and stored version.
pub const VERSION: &str = "v1alpha1";
