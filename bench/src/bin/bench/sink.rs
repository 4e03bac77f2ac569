//! Where proxies tell of traces: takes whatever comes by HTTP/1.1, and throws it away. It reads nothing of it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// A sink; it ends with all its connections when this is dropped, and says so if nobody told it anything.
pub struct Sink {
    address: SocketAddr,
    bytes: Arc<AtomicU64>,
    _accepts: JoinSet<()>,
}

impl Sink {
    /// Starts one.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, bytes, mut accepts) = (listener.local_addr()?, Arc::default(), JoinSet::new());
        accepts.spawn(accept(listener, Arc::clone(&bytes)));
        Ok(Self { address, bytes, _accepts: accepts })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if self.bytes.load(Ordering::Relaxed) == 0 {
            eprintln!("nobody told of traces");
        }
    }
}

async fn accept(listener: TcpListener, bytes: Arc<AtomicU64>) {
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let bytes = Arc::clone(&bytes);
                let take = service_fn(move |request: Request<Incoming>| {
                    let bytes = Arc::clone(&bytes);
                    async move {
                        let body = request.into_body().collect().await.map(|body| body.to_bytes());
                        bytes.fetch_add(body.map_or(0, |body| body.len() as u64), Ordering::Relaxed);
                        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
                    }
                });
                // Whatever ends a connection ends it.
                connections.spawn(async move {
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), take).await;
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
        while connections.try_join_next().is_some() {}
    }
}
