//! The data plane of Weft. `inbound` and `outbound` are the two paths of a connection; every other module is one
//! step of them, and steps do not know each other. It never talks to Kubernetes, only to the operator, or is told by a file.

pub mod access_log;
pub mod adaptive;
pub mod admin;
pub mod backoff;
pub mod balance;
pub mod breaker;
pub mod checks;
mod clock;
pub mod connect;
pub mod control;
pub mod detect;
pub mod dial;
pub mod dns;
pub mod egress;
pub mod error;
mod ewma;
pub mod forward;
#[cfg(test)]
mod fuzz;
pub mod handover;
pub mod hello;
pub mod http;
pub mod identity;
mod inbound;
pub mod init;
pub mod limit;
pub mod listener;
pub mod logging;
mod lost;
pub mod memory;
pub mod metrics;
mod named;
pub mod original_dst;
pub mod originate;
mod outbound;
pub mod outlier;
pub mod prefixed;
pub mod proxy;
pub mod record;
pub mod retry;
pub mod route;
pub mod run;
pub mod settings;
pub mod shed;
mod silence;
pub mod snapshot;
mod sock_diag;
pub mod standalone;
pub mod status;
pub mod store;
mod tcp;
#[cfg(test)]
pub(crate) mod testing;
pub mod tls;
mod worker;
