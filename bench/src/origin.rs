//! A server behind a proxy, which answers by path, and can be stopped and started again at its address without a word to
//! anybody. HTTP/1.1 and HTTP/2 at one port; another kind repeats bytes.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// What an origin speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// `/fast`, `/slow`, `/stream`, `/echo`, `/fail`, `/break`.
    Http,
    /// Everything is sent back.
    Echo,
}

/// A server at one address.
pub struct Origin {
    /// Where it is, or was.
    pub address: SocketAddr,
    speaks: Speaks,
    running: Option<DropGuard>,
}

impl Origin {
    /// Starts one at an address.
    pub async fn start(address: SocketAddr, speaks: Speaks) -> Result<Self> {
        let mut origin = Self { address, speaks, running: None };
        origin.toggle().await?;
        Ok(origin)
    }

    /// Stops it with all its connections where it runs, and starts it where it does not.
    pub async fn toggle(&mut self) -> Result<()> {
        if self.running.take().is_none() {
            let listener = TcpListener::bind(self.address).await?;
            let stop = CancellationToken::new();
            let speaks = self.speaks;
            let accept = accept(listener, speaks);
            self.running = Some(stop.clone().drop_guard());
            tokio::spawn(async move { stop.run_until_cancelled(accept).await });
        }
        Ok(())
    }

    /// Whether it runs.
    #[must_use]
    pub fn up(&self) -> bool {
        self.running.is_some()
    }
}

/// Ends with all its connections when it is dropped.
async fn accept(listener: TcpListener, speaks: Speaks) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true);
                    connections.spawn(serve(stream, speaks));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(mut stream: TcpStream, speaks: Speaks) {
    match speaks {
        Speaks::Http => {
            let server = auto::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
        }
        Speaks::Echo => {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        }
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let mut response = Response::new(full(Bytes::from_static(&[b'x'; 128])));
    match request.uri().path() {
        "/slow" => tokio::time::sleep(Duration::from_millis(50)).await,
        "/stream" => *response.body_mut() = slowly(40, false),
        "/break" => *response.body_mut() = slowly(3, true),
        "/fail" => *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE,
        "/echo" => {
            let body = request.into_body().map_err(std::io::Error::other);
            *response.body_mut() = body.boxed_unsync();
        }
        _ => {}
    }
    Ok(response)
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// 1 KiB every 5 ms, and possibly no proper end.
fn slowly(chunks: u64, breaks: bool) -> Body {
    let chunks = stream::iter(0..chunks).then(move |n| async move {
        tokio::time::sleep(Duration::from_millis(5)).await;
        if breaks && n == 2 {
            return Err(std::io::Error::other("broken on purpose"));
        }
        Ok(Frame::data(Bytes::from_static(&[b's'; 1024])))
    });
    StreamBody::new(chunks).boxed_unsync()
}
