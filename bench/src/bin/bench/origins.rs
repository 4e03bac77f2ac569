//! The servers behind the proxies. They answer always the same, as cheaply as can be: they share a core with the clients.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Response};
use memchr::memmem;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Windows that never are what a measurement waits for.
const WINDOW: u32 = 8 * 1024 * 1024;

/// What an origin says.
#[derive(Clone, Debug)]
pub enum Says {
    /// To every HTTP/1.1 request (without a body) this, head and all.
    Http1(Bytes),
    /// To every HTTP/2 request that ends with its head so many bytes; to others what they say, and that gRPC succeeded.
    Http2(Bytes),
    /// To the first byte of a connection, bytes without an end.
    Bulk,
}

impl Says {
    /// A response of HTTP/1.1 with so many bytes.
    #[must_use]
    pub fn http1(length: usize) -> Self {
        let mut response =
            format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\r\n")
                .into_bytes();
        response.resize(response.len() + length, b'x');
        Self::Http1(response.into())
    }

    /// Responses of HTTP/2 with so many bytes.
    #[must_use]
    pub fn http2(length: usize) -> Self {
        Self::Http2(vec![b'x'; length].into())
    }
}

/// A server; it ends with all its connections when this is dropped.
pub struct Origin {
    _accepts: JoinSet<()>,
}

impl Origin {
    /// Starts one.
    pub async fn start(address: SocketAddr, says: Says) -> Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let mut accepts = JoinSet::new();
        accepts.spawn(accept(listener, Arc::new(says)));
        Ok(Self { _accepts: accepts })
    }
}

async fn accept(listener: TcpListener, says: Arc<Says>) {
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let says = Arc::clone(&says);
                connections.spawn(async move {
                    // Whatever ends a connection ends it.
                    let _ = serve(stream, &says).await;
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(stream: TcpStream, says: &Says) -> Result<()> {
    stream.set_nodelay(true)?;
    match says {
        Says::Http1(response) => http1(stream, response).await,
        Says::Http2(body) => {
            // nginx asks by HTTP/1.1 for those who asked it by HTTP/2.
            let mut first = [0; 4];
            stream.peek(&mut first).await?;
            if &first == b"PRI " {
                return http2(stream, body).await;
            }
            match Says::http1(body.len()) {
                Says::Http1(response) => http1(stream, &response).await,
                _ => Ok(()),
            }
        }
        Says::Bulk => bulk(stream).await,
    }
}

async fn http1(mut stream: TcpStream, response: &[u8]) -> Result<()> {
    let mut buffer = Vec::with_capacity(8 * 1024);
    loop {
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        while let Some(end) = memmem::find(&buffer, b"\r\n\r\n") {
            buffer.drain(..end + 4);
            stream.write_all(response).await?;
        }
    }
}

async fn http2(stream: TcpStream, body: &Bytes) -> Result<()> {
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW).max_concurrent_streams(1000);
    let mut connection = builder.handshake(stream).await?;
    let mut echoes = JoinSet::new();
    while let Some(accepted) = connection.accept().await {
        let (request, mut respond) = accepted?;
        let received = request.into_body();
        if received.is_end_stream() {
            let mut response = Response::new(());
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
            respond.send_response(response, false)?.send_data(body.clone(), true)?;
        } else {
            while echoes.try_join_next().is_some() {}
            echoes.spawn(async move {
                // Whatever ends a stream ends it.
                let _ = echo(received, respond).await;
            });
        }
    }
    Ok(())
}

async fn echo(mut received: RecvStream, mut respond: SendResponse<Bytes>) -> Result<()> {
    let mut response = Response::new(());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let mut send = respond.send_response(response, false)?;
    while let Some(data) = received.data().await {
        let data = data?;
        received.flow_control().release_capacity(data.len())?;
        send.send_data(data, false)?;
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    Ok(send.send_trailers(trailers)?)
}

async fn bulk(mut stream: TcpStream) -> Result<()> {
    let bytes = vec![b'b'; 256 * 1024];
    stream.read_u8().await?;
    loop {
        stream.write_all(&bytes).await?;
    }
}
