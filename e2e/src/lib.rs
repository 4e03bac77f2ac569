//! The harness of the end-to-end tests, the demo and the figures: a real cluster, driven as its users drive it, by the
//! processes `kubectl` and `helm`. Works with any `KUBECONFIG`; only [`machine`] needs the nodes to run on this machine.
//! It never talks to the API server by itself and never reaches into a component.

pub mod app;
pub mod chart;
pub mod cluster;
pub mod command;
pub mod machine;
pub mod namespace;
pub mod retry;
pub mod statistics;
pub mod traffic;

pub use app::{App, Client};
pub use cluster::Cluster;
pub use namespace::{Injection, Namespace, scenario};
pub use retry::{eventually, stays};
