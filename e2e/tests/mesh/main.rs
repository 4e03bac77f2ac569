//! Tests on a real cluster through the shipped chart and images. Each runs in its own namespace, so they run side by side.
//! What would disturb others (the operator or webhook going away, uninstalling) is in `disruption` and `uninstall`.

mod abuse;
mod admission;
mod audit;
mod authorization;
mod balancing;
mod egress;
mod faults;
mod federation;
mod fields;
mod flow;
mod health;
mod identity;
mod injection;
mod isolation;
mod limits;
mod policy;
mod probes;
mod protocols;
mod resilience;
mod routing;
mod services;
mod status;
mod strictness;
mod tokens;
mod tracing;
mod volumes;
