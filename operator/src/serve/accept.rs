//! Accepts TCP and does the TLS handshakes, each with the newest certificate, many at a time, none for long.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::Shared;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes under way; more wait in the listener's backlog.
const HANDSHAKES: usize = 128;
/// Connections open; a cluster with more proxies has more replicas.
const CONNECTIONS: usize = 16_384;
/// After an accept error such as "too many open files".
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections whose handshake is done.
pub fn incoming(listener: TcpListener, shared: Arc<Shared>) -> ReceiverStream<io::Result<Connection>> {
    let (done, connections) = mpsc::channel(HANDSHAKES);
    let tasks = shared.tasks.clone();
    tasks.spawn(accept(listener, shared, done));
    ReceiverStream::new(connections)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, done: mpsc::Sender<io::Result<Connection>>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (tcp, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(error = %error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(handshake) = Arc::clone(&handshakes).acquire_owned().await else { return };
        let Ok(open) = Arc::clone(&connections).try_acquire_owned() else {
            tracing::warn!(%from, "refused a connection: {CONNECTIONS} are open");
            continue;
        };
        let acceptor = TlsAcceptor::from(Arc::clone(&shared.serving.current().server));
        let (done, metrics) = (done.clone(), Arc::clone(&shared.metrics));
        shared.tasks.spawn(async move {
            let _handshake = handshake;
            // Small messages must not wait for each other.
            let _ = tcp.set_nodelay(true);
            match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)).await {
                Ok(Ok(tls)) => {
                    let _ = done.send(Ok(Connection { tls, _open: open })).await;
                }
                Ok(Err(error)) => {
                    metrics.failed_handshakes.inc();
                    tracing::debug!(%from, error = %error, "TLS handshake failed");
                }
                Err(_) => {
                    metrics.failed_handshakes.inc();
                    tracing::debug!(%from, "TLS handshake took too long");
                }
            }
        });
    }
}

/// A connection that counts while it is open.
pub struct Connection {
    tls: TlsStream<TcpStream>,
    _open: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = <TlsStream<TcpStream> as Connected>::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.tls.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
