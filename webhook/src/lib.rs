//! The admission webhook: adds the proxy to pods (`/mutate/pods`) and judges Weft's resources (`/validate`).
//!
//! A review runs: [`server`] (TLS, bounds) → [`review`] (the envelope) → [`inject`] or [`judge`] (pure) → the envelope again.
//! Beside it run [`serving`] (its own certificate, asked of the operator) and [`stores`] (what resources are judged
//! against). It keeps no state of its own: any replica answers any review the same way.

pub mod health;
pub mod inject;
pub mod judge;
pub mod metrics;
pub mod operator;
pub mod review;
pub mod server;
pub mod serving;
pub mod settings;
pub mod stores;
pub mod told;
