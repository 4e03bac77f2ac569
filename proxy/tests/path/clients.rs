//! Ways to call.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A whole response.
#[derive(Debug)]
pub struct Got {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: HeaderMap,
}

impl Got {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The `weft-reason`, or "".
    pub fn reason(&self) -> &str {
        self.headers.get("weft-reason").map_or("", |reason| reason.to_str().unwrap())
    }

    async fn of(response: Response<hyper::body::Incoming>) -> Result<Self, hyper::Error> {
        let (head, body) = response.into_parts();
        let body = body.collect().await?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        Ok(Self { status: head.status, headers: head.headers, body: body.to_bytes(), trailers })
    }
}

pub fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header("host", "back").body(Full::default()).unwrap()
}

pub fn post(path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post(path).header("host", "back").body(Full::new(body.into())).unwrap()
}

/// A kept-alive HTTP/1 connection.
pub struct Http1(http1::SendRequest<Full<Bytes>>);

impl Http1 {
    pub async fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        Self(sender)
    }

    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Got, hyper::Error> {
        self.0.ready().await?;
        Got::of(self.0.send_request(request).await?).await
    }

    /// Without reading the body.
    pub async fn open(&mut self, request: Request<Full<Bytes>>) -> Response<hyper::body::Incoming> {
        self.0.ready().await.unwrap();
        self.0.send_request(request).await.unwrap()
    }
}

/// An HTTP/2 connection.
#[derive(Clone)]
pub struct Http2(http2::SendRequest<Full<Bytes>>);

impl Http2 {
    pub async fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).await.unwrap();
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    pub async fn send(&mut self, mut request: Request<Full<Bytes>>) -> Result<Got, hyper::Error> {
        let path = request.uri().path_and_query().unwrap().to_string();
        *request.uri_mut() = format!("http://back{path}").parse().unwrap();
        request.headers_mut().remove("host");
        self.0.ready().await?;
        Got::of(self.0.send_request(request).await?).await
    }
}

/// One request on a connection of its own.
pub async fn fetch(to: SocketAddr, request: Request<Full<Bytes>>) -> Got {
    let mut client = Http1::connect(to).await;
    timeout(Duration::from_secs(20), client.send(request)).await.expect("an answer").unwrap()
}

/// Writes bytes, half-closes if asked, and reads until the other side closes.
pub async fn raw(to: SocketAddr, bytes: &[u8], close: bool) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let _ = stream.write_all(bytes).await;
    if close {
        stream.shutdown().await.unwrap();
    }
    let mut out = Vec::new();
    let _ = timeout(Duration::from_secs(20), stream.read_to_end(&mut out)).await.expect("an end");
    String::from_utf8_lossy(&out).into_owned()
}
