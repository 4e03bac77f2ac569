//! Opens a connection to one upstream: TCP, and mTLS when it is in the mesh. The peer's identity is compared with the
//! expected one before anybody can send a byte. It chooses nothing and tries once.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use weft_api::{Identity, Reason};

use crate::breaker::Permit;
use crate::error::Error;
use crate::forward::Abort;
use crate::lost::Socket;
use crate::metrics::Metrics;
use crate::proxy::Proxy;
use crate::shed::is_out_of_files;
use crate::through::write_through;
use crate::tls::{Ahead, Alpn, PeerError, Tls, peer_identity};

/// The peer is somebody else.
#[derive(Debug, thiserror::Error)]
#[error("expected {expected}, but {actual} answered")]
struct Mismatch {
    expected: Identity,
    actual: Identity,
}

/// Without a valid certificate of its own, the proxy cannot speak for its workload.
#[derive(Debug, thiserror::Error)]
#[error("this proxy has no valid certificate: is the operator running?")]
struct NoCertificate;

/// The peer did not choose the protocol that it was offered.
#[derive(Debug, thiserror::Error)]
#[error("the peer is not a proxy of the mesh: it chose another protocol")]
struct Unexpected;

/// An open connection.
#[derive(Debug)]
pub enum Upstream {
    /// To an application.
    Plain(TcpStream),
    /// To another proxy, or to an external service that wants TLS.
    Tls(Box<TlsStream<Ahead<TcpStream>>>),
}

/// Connects to `addr`; with an `identity`, by mTLS. `limit` holds for TCP and for the handshake, each.
///
/// # Errors
/// `ConnectFailed`, `ConnectTimeout`, `TlsHandshake`, `PeerIdentityMismatch`.
pub async fn open(
    tls: &Tls,
    addr: SocketAddr,
    identity: Option<&Identity>,
    alpn: Alpn,
    limit: Duration,
) -> Result<Upstream, Error> {
    if identity.is_some() && !tls.has_certificate() {
        return Err(Error::own(Reason::TlsHandshake, NoCertificate));
    }
    let tcp = match timeout(limit, TcpStream::connect(addr)).await {
        Ok(connected) => connected.map_err(failed)?,
        Err(elapsed) => return Err(Error::new(Reason::ConnectTimeout, elapsed)),
    };
    // Fails only when the peer is gone already; the first write will tell.
    let _ = tcp.set_nodelay(true);
    let Some(expected) = identity else { return Ok(Upstream::Plain(tcp)) };

    let connector = TlsConnector::from(tls.client(alpn));
    // Names the session for resumption; who answers is checked below.
    let name = ServerName::IpAddress(addr.ip().into());
    let stream = match timeout(limit, connector.connect(name, Ahead::new(tcp))).await {
        Ok(done) => done.map_err(|e| Error::new(Reason::TlsHandshake, e))?,
        Err(elapsed) => return Err(Error::new(Reason::TlsHandshake, elapsed)),
    };
    let session = stream.get_ref().1;
    let actual = peer_identity(session.peer_certificates().unwrap_or_default())
        .map_err(|e: PeerError| Error::new(Reason::TlsHandshake, e))?;
    if actual != *expected {
        let mismatch = Mismatch { expected: expected.clone(), actual };
        return Err(Error::new(Reason::PeerIdentityMismatch, mismatch));
    }
    if session.alpn_protocol() != Some(alpn.wire()) {
        return Err(Error::new(Reason::TlsHandshake, Unexpected));
    }
    Ok(Upstream::Tls(Box::new(stream)))
}

/// Whose fault it is that there is no connection.
fn failed(error: io::Error) -> Error {
    if is_out_of_files(&error) {
        return Error::own(Reason::Overloaded, error);
    }
    Error::new(Reason::ConnectFailed, error)
}

impl Upstream {
    /// What was agreed on with the peer; `None`: it is spoken to in plaintext.
    #[must_use]
    pub fn session(&self) -> Option<&rustls::CommonState> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(tls) => Some(tls.get_ref().1),
        }
    }

    /// The socket, to look whether the peer has closed.
    #[must_use]
    pub fn socket(&self) -> RawFd {
        match self {
            Self::Plain(tcp) => tcp.as_raw_fd(),
            Self::Tls(tls) => tls.get_ref().0.as_raw_fd(),
        }
    }
}

/// A connection that is counted, and holds its place under `maxConnections`, in whatever hands it is (an upgraded one
/// leaves hyper's).
pub struct Counted {
    stream: Upstream,
    metrics: Arc<Metrics>,
    permit: Option<Permit>,
    freed: Option<Arc<Notify>>,
    watched: Option<Socket>,
}

impl Counted {
    /// Counts it.
    pub(crate) fn new(proxy: &Proxy, stream: Upstream) -> Self {
        proxy.metrics.upstream_opened();
        Self { stream, metrics: Arc::clone(&proxy.metrics), permit: None, freed: None, watched: None }
    }

    /// With its place, and who is to be told when that is free again.
    pub(crate) fn with_place(mut self, permit: Option<Permit>, freed: &Arc<Notify>) -> Self {
        self.permit = permit;
        self.freed = Some(Arc::clone(freed));
        self
    }

    /// So that requests on it notice when the peer is gone; it may be nudged where the peer is a proxy of the mesh.
    pub(crate) fn watch(mut self, mesh: bool) -> Self {
        let nudged = mesh && matches!(self.stream, Upstream::Tls(_));
        self.watched = Some(Socket::new(self.stream.socket(), nudged));
        self
    }

    /// What [`Counted::watch`] made.
    pub(crate) fn watched(&self) -> Option<Socket> {
        self.watched.clone()
    }

    /// See [`Upstream::socket`].
    pub(crate) fn socket(&self) -> RawFd {
        self.stream.socket()
    }
}

impl Abort for Counted {
    fn abort(&mut self) {
        match &mut self.stream {
            Upstream::Plain(tcp) => tcp.abort(),
            // See `forward::Abort` of TLS.
            Upstream::Tls(_) => {}
        }
    }

    fn socket(&self) -> Option<&TcpStream> {
        match &self.stream {
            Upstream::Plain(tcp) => Some(tcp),
            Upstream::Tls(_) => None,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(socket) = &self.watched {
            socket.closed();
        }
        self.permit = None;
        self.metrics.upstream_closed();
        if let Some(freed) = &self.freed {
            freed.notify_waiters();
        }
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(watched) = &this.watched else { return Pin::new(&mut this.stream).poll_read(cx, buf) };
        if watched.is_nudged() {
            this.stream.nudge(cx);
        }
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        if read.is_pending() {
            watched.reads(cx.waker());
        }
        read
    }
}

write_through!(Counted, stream);

impl Upstream {
    /// Sends something that the peer's kernel has to acknowledge and that changes nothing for anybody: new keys (RFC 8446 section
    /// 4.6.3). A peer that gets more than 32 without any other bytes between may refuse them.
    fn nudge(&mut self, cx: &mut Context<'_>) {
        if let Self::Tls(tls) = self
            && tls.get_mut().1.refresh_traffic_keys().is_ok()
        {
            // What cannot be written now goes out with what waits before it, and that is not acknowledged either.
            let _ = Pin::new(tls).poll_flush(cx);
        }
    }
}

impl AsyncRead for Upstream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Upstream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_flush(cx),
            Self::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
        }
    }
}
