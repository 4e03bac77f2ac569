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
pub(crate) mod inbound;
pub mod incoming;
mod judge;
mod mirror;
pub(crate) mod outbound;
pub(crate) mod patience;
pub mod pool;
pub(crate) mod probe;
mod pushback;
pub mod reply;
pub(crate) mod server;
mod upgrade;

pub use client::Wire;

/// Bytes of one HTTP/2 stream that are taken before its reader has read them (RFC 9113 section 5.2). More than the network
/// within a cluster holds.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same of a whole connection: for as many streams as a proxy puts on one, so that those which nobody reads cannot take
/// the others' share.
const CONNECTION_WINDOW: u32 = pool::MAX_STREAMS * STREAM_WINDOW;
/// Bytes of one stream that wait to be sent.
const SEND_BUFFER: usize = STREAM_WINDOW as usize;

/// Runs hyper's tasks on the worker's own thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalExec;

impl<F> hyper::rt::Executor<F> for LocalExec
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
