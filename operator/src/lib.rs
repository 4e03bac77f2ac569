//! The operator: Kubernetes watch → [`index`] → [`compile`] (pure) → stream to the proxies ([`serve`]); the certificate
//! authority ([`ca`]); and what only one replica may do ([`leader`]).

pub mod admin;
pub mod ca;
pub mod check;
pub mod checks;
pub mod cleanup;
pub mod compile;
pub mod federation;
pub mod index;
pub mod keys;
pub mod leader;
pub mod metrics;
pub mod run;
pub mod serve;
pub mod settings;
pub mod share;
pub mod store;
pub mod told;
pub mod watch;
