//! The data path over real sockets: proxies in process on loopback, certificates made on the spot, hand-made
//! configuration. What redirection would do, `Node` states (see `OriginalDst::Stated`).

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod apps;
mod attacks;
mod audit;
mod authorization;
mod balancing;
mod breaking;
mod certificates;
mod checks;
mod clients;
mod collector;
mod copies;
mod egress;
mod federation;
mod health;
mod hedging;
mod http1;
mod http2;
mod issuer;
mod limits;
#[path = "../netns/mod.rs"]
mod netns;
mod pods;
mod protocols;
mod ratelimit;
mod reasons;
mod resilience;
mod retries;
mod routing;
mod security;
mod tcp;
mod timeouts;
mod tokens;
mod traces;
mod vanish;
mod world;
