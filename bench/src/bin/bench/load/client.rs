//! Who sends: one client of each kind, and what all clients of a measurement have in common.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::http1::Http1;
use super::http2::{Connection, Messages};

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Requests on kept HTTP/1.1 connections, one each.
    Http1,
    /// A connection for each request of HTTP/1.1.
    NewConnection,
    /// Requests of HTTP/2 on shared connections.
    Http2,
    /// Unary calls of gRPC on shared connections.
    Unary,
    /// Messages of gRPC, each client on a stream of its own that stays open; streams share connections.
    Streaming,
    /// Bytes that come without an end; each [`CHUNK`] counts.
    Bulk,
}

/// Connections that clients of HTTP/2 share, as applications have few.
const SHARED: usize = 4;
/// What counts as one of [`Kind::Bulk`].
const CHUNK: usize = 1024 * 1024;

/// What a measurement's clients do.
#[derive(Clone)]
pub struct Target {
    /// Where they connect to.
    pub address: SocketAddr,
    /// What they do.
    pub kind: Kind,
    /// How they shake hands, where they do.
    pub tls: Option<TlsConnector>,
    /// What they send: a request as it is on the wire, or a message.
    pub request: Bytes,
}

impl Target {
    /// So many clients, connected.
    pub async fn clients(&self, count: usize) -> Result<Vec<Client>> {
        let mut clients = Vec::with_capacity(count);
        let mut shared = Vec::new();
        for place in 0..count {
            let wire = match self.kind {
                Kind::Http2 | Kind::Unary | Kind::Streaming => {
                    if shared.len() <= place % SHARED {
                        shared.push(Arc::new(Connection::new(self.connect().await?).await?));
                    }
                    self.on(Arc::clone(&shared[place % SHARED])).await?
                }
                _ => self.wire().await?,
            };
            clients.push(Client { target: self.clone(), wire });
        }
        Ok(clients)
    }

    /// One client that has done one exchange.
    pub async fn used(&self) -> Result<Client> {
        let mut client = Client { target: self.clone(), wire: self.wire().await? };
        client.exchange().await?;
        Ok(client)
    }

    async fn wire(&self) -> Result<Wire> {
        Ok(match self.kind {
            Kind::Http1 => Wire::Http1(Http1::new(self.connect().await?, self.request.clone())),
            Kind::NewConnection => Wire::Nothing,
            Kind::Http2 | Kind::Unary | Kind::Streaming => {
                self.on(Arc::new(Connection::new(self.connect().await?).await?)).await?
            }
            Kind::Bulk => {
                let mut stream = self.connect().await?;
                stream.write_all(&self.request).await?;
                Wire::Bulk(stream, vec![0; 256 * 1024])
            }
        })
    }

    async fn on(&self, connection: Arc<Connection>) -> Result<Wire> {
        Ok(match self.kind {
            Kind::Streaming => Wire::Streaming(connection.stream().await?, connection),
            _ => Wire::Http2(connection),
        })
    }

    /// A connection, with TLS where there is any.
    pub async fn connect(&self) -> Result<Box<dyn Stream>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(match &self.tls {
            None => Box::new(stream),
            Some(tls) => {
                let name = ServerName::try_from("bench.local").context("the name is one")?;
                Box::new(tls.connect(name, stream).await?)
            }
        })
    }
}

/// TCP, or TLS on it.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// One client, which does one exchange at a time.
pub struct Client {
    target: Target,
    wire: Wire,
}

enum Wire {
    Nothing,
    Http1(Http1<Box<dyn Stream>>),
    Http2(Arc<Connection>),
    Streaming(Messages, #[allow(dead_code, reason = "it lives as long as its streams")] Arc<Connection>),
    Bulk(Box<dyn Stream>, Vec<u8>),
}

impl Client {
    /// Sends, and waits for the whole answer.
    pub async fn exchange(&mut self) -> Result<()> {
        let request = &self.target.request;
        match &mut self.wire {
            Wire::Nothing => Http1::new(self.target.connect().await?, request.clone()).exchange().await,
            Wire::Http1(http) => http.exchange().await,
            Wire::Http2(connection) => {
                connection.exchange((self.target.kind == Kind::Unary).then_some(request)).await
            }
            Wire::Streaming(messages, _) => messages.exchange(request).await,
            Wire::Bulk(stream, buffer) => {
                let mut left = CHUNK;
                while left > 0 {
                    let most = left.min(buffer.len());
                    let read = stream.read(&mut buffer[..most]).await?;
                    ensure!(read > 0, "the bytes ended");
                    left -= read;
                }
                Ok(())
            }
        }
    }

    /// A connection in place of one that failed.
    pub async fn renew(&mut self) -> Result<()> {
        self.wire = self.target.wire().await?;
        Ok(())
    }
}
