//! HTTP/1 and HTTP/2 through the proxy. `server` reads requests, `outbound` and `inbound` handle one each, `client`
//! sends it on over connections of the `pool`, `exchange` is one request from its head to its response's end.

pub mod body;
mod client;
pub mod exchange;
mod guard;
pub mod headers;
mod hold;
pub(crate) mod inbound;
pub(crate) mod outbound;
pub(crate) mod patience;
pub mod pool;
pub(crate) mod probe;
mod pushback;
pub mod reply;
pub(crate) mod server;
mod upgrade;

pub use client::Wire;

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
