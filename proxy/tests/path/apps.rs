//! Applications to call.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

pub type Body = BoxBody<Bytes, Infallible>;

/// What an application has seen.
#[derive(Clone, Default)]
pub struct Seen {
    pub connections: Arc<AtomicUsize>,
    pub requests: Arc<AtomicUsize>,
}

impl Seen {
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

pub fn text(body: impl Into<Bytes>) -> Response<Body> {
    Response::new(Full::new(body.into()).boxed())
}

pub fn status(code: u16) -> Response<Body> {
    let mut response = text("");
    *response.status_mut() = code.try_into().unwrap();
    response
}

/// HTTP/1 and HTTP/2 (prior knowledge).
pub async fn http<F, R>(handle: F) -> (SocketAddr, Seen)
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let seen = Seen::default();
    let counted = seen.clone();
    let addr = tcp(move |stream| {
        counted.connections.fetch_add(1, Ordering::SeqCst);
        let (handle, counted) = (handle.clone(), counted.clone());
        async move {
            let service = service_fn(move |request| {
                counted.requests.fetch_add(1, Ordering::SeqCst);
                let handled = handle(request);
                async move { Ok::<_, Infallible>(handled.await) }
            });
            let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                .serve_connection_with_upgrades(TokioIo::new(stream), service)
                .await;
        }
    })
    .await;
    (addr, seen)
}

/// Answers with method, path, headers and body of the request, a line each.
pub async fn echo() -> (SocketAddr, Seen) {
    http(|request| async {
        let (head, body) = request.into_parts();
        let mut out = format!("{} {}\n", head.method, head.uri);
        for (name, value) in &head.headers {
            out.push_str(&format!("{name}: {}\n", value.to_str().unwrap_or("?")));
        }
        out.push('\n');
        let mut out = out.into_bytes();
        out.extend_from_slice(&body.collect().await.unwrap().to_bytes());
        text(out)
    })
    .await
}

/// Upgrades to a WebSocket, as far as HTTP sees it, and sends back what comes.
pub async fn websocket() -> (SocketAddr, Seen) {
    http(|mut request| async move {
        tokio::spawn(async move {
            let mut io = TokioIo::new(hyper::upgrade::on(&mut request).await.unwrap());
            let mut buffer = [0; 100];
            while let Ok(n @ 1..) = io.read(&mut buffer).await {
                io.write_all(&buffer[..n]).await.unwrap();
            }
        });
        let mut response = status(101);
        response.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
        response.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
        response
    })
    .await
}

/// Any server.
pub async fn tcp<F, R>(serve: F) -> SocketAddr
where
    F: Fn(TcpStream) -> R + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            tokio::spawn(serve(stream));
        }
    });
    addr
}

/// Sends back what it gets.
pub async fn bytes_echo() -> SocketAddr {
    tcp(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await
}

/// Reads a request's head and body of `content-length`, then writes these bytes and closes.
pub async fn scripted(answer: &'static [u8]) -> (SocketAddr, Seen) {
    let seen = Seen::default();
    let counted = seen.clone();
    let addr = tcp(move |mut stream| {
        counted.connections.fetch_add(1, Ordering::SeqCst);
        let counted = counted.clone();
        async move {
            if read_request(&mut stream).await.is_some() {
                counted.requests.fetch_add(1, Ordering::SeqCst);
                let _ = stream.write_all(answer).await;
                let _ = stream.shutdown().await;
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest).await;
            }
        }
    })
    .await;
    (addr, seen)
}

/// Reads one HTTP/1 request whole; its text.
pub async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let mut text = String::from_utf8(head).ok()?;
    let length =
        text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    text.push_str(&String::from_utf8_lossy(&body));
    Some(text)
}

/// A body of these pieces, then trailers.
pub fn with_trailers(pieces: &[&'static str], trailers: HeaderMap) -> Body {
    let mut frames: Vec<Result<Frame<Bytes>, Infallible>> =
        pieces.iter().map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes())))).collect();
    frames.push(Ok(Frame::trailers(trailers)));
    http_body_util::StreamBody::new(futures::stream::iter(frames)).boxed()
}

/// A port where nobody listens.
pub async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

/// The same as [`echo`] over TLS, choosing among `protocols` by ALPN.
pub async fn tls_echo(
    (chain, key): (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>),
    protocols: &[&str],
) -> (SocketAddr, Seen) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let seen = Seen::default();
    let counted = seen.clone();
    let addr = tcp(move |stream| {
        let (acceptor, counted) = (acceptor.clone(), counted.clone());
        async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            counted.connections.fetch_add(1, Ordering::SeqCst);
            let session = stream.get_ref().1;
            let name = session.server_name().unwrap_or("-").to_owned();
            let alpn = String::from_utf8_lossy(session.alpn_protocol().unwrap_or(b"-")).into_owned();
            let service = service_fn(move |request: Request<Incoming>| {
                counted.requests.fetch_add(1, Ordering::SeqCst);
                let said = format!("{alpn} {name} {}", request.uri());
                async move { Ok::<_, Infallible>(text(said)) }
            });
            let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                .serve_connection_with_upgrades(TokioIo::new(stream), service)
                .await;
        }
    })
    .await;
    (addr, seen)
}

/// A stream that several threads may hold, for [`Body`].
pub fn shared<S: futures::Stream + Send + 'static>(stream: S) -> Shared<S::Item> {
    Shared(std::sync::Mutex::new(Box::pin(stream)))
}

/// See [`shared`].
pub struct Shared<T>(std::sync::Mutex<std::pin::Pin<Box<dyn futures::Stream<Item = T> + Send>>>);

impl<T> futures::Stream for Shared<T> {
    type Item = T;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<T>> {
        self.get_mut().0.get_mut().unwrap().as_mut().poll_next(cx)
    }
}
