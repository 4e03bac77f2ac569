//! HTTP/1 and HTTP/2 through the proxy. `server` reads requests, `outbound` and `inbound` handle one each, `client`
//! sends it on over connections of the `pool`, `exchange` is one request from its head to its response's end.

pub mod body;
mod client;
mod clock;
pub mod exchange;
mod filters;
pub(crate) mod framing;
pub mod grpc_timeout;
pub(crate) mod guard;
pub mod headers;
mod hedge;
mod hold;
pub mod http1;
pub(crate) mod http2;
pub(crate) mod inbound;
pub mod incoming;
mod judge;
mod mirror;
pub(crate) mod outbound;
pub(crate) mod patience;
pub mod pool;
pub(crate) mod probe;
mod pushback;
mod recheck;
pub mod reply;
pub(crate) mod server;
mod upgrade;

pub use client::Wire;
