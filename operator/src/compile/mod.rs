//! From the index to what a proxy is told: pure functions, no I/O, no time, no state. The same index always gives the same
//! message, whatever the order of events was.

mod active;
mod address;
mod authentication;
mod authorization;
mod balance;
mod cluster;
mod encoded;
mod endpoints;
mod external;
mod federation;
mod filters;
pub(crate) mod limits;
mod protocol;
mod route;
mod service;
#[cfg(test)]
mod tests;
mod tokens;
mod workload;

pub use address::{Target, address, target, wire};
pub use authentication::{Authentication, authentication};
pub use encoded::Encoded;
pub use endpoints::{EndpointState, endpoint_states};
pub use external::external_for;
pub use federation::federation;
pub use service::service;
pub use workload::workload;
