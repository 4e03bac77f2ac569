//! Clients of every manner, good and bad: each does its one thing again and again, with pauses, until it is told to stop. A
//! client never waits longer than `PATIENCE` for anything.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rand::Rng as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(10);

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Requests on one HTTP/1.1 connection.
    KeepAlive,
    /// A connection for each request.
    NewConnection,
    /// Bodies of 32 KiB, sent back.
    Upload,
    /// Ten requests at once on one HTTP/2 connection, of which some are given up.
    Http2,
    /// Goes away in the middle of a request's head.
    AbortHead,
    /// Goes away in the middle of a request's body.
    AbortUpload,
    /// Goes away in the middle of a response.
    AbortResponse,
    /// Asks for what fails or breaks off.
    Failing,
    /// Sends what is not HTTP.
    Noise,
    /// Opaque bytes, closed properly.
    Tcp,
    /// Opaque bytes, broken off.
    AbortTcp,
}

impl Manner {
    /// Every one.
    pub const ALL: [Self; 11] = [
        Self::KeepAlive,
        Self::NewConnection,
        Self::Upload,
        Self::Http2,
        Self::AbortHead,
        Self::AbortUpload,
        Self::AbortResponse,
        Self::Failing,
        Self::Noise,
        Self::Tcp,
        Self::AbortTcp,
    ];
}

/// What came of it all.
#[derive(Debug, Default)]
pub struct Counts {
    /// Rounds that went as they should, refusals that explain themselves included.
    pub done: AtomicU64,
    /// Rounds that did not, such as those that met an origin that was being stopped.
    pub failed: AtomicU64,
    /// Rounds in which nothing came for [`PATIENCE`]: something hangs.
    pub stuck: AtomicU64,
}

/// Where the proxy listens.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// For HTTP.
    pub http: SocketAddr,
    /// For opaque bytes.
    pub tcp: SocketAddr,
}

/// Does it for ever.
pub async fn run(manner: Manner, target: Target, counts: Arc<Counts>) {
    loop {
        let counter = match timeout(PATIENCE, round(manner, target)).await {
            Ok(Ok(())) => &counts.done,
            Ok(Err(_)) => &counts.failed,
            Err(_) => &counts.stuck,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        pause(5).await;
    }
}

async fn round(manner: Manner, target: Target) -> Result<()> {
    match manner {
        Manner::KeepAlive => {
            let mut stream = TcpStream::connect(target.http).await?;
            for _ in 0..20 {
                get(&mut stream, "/fast").await?;
                sleep(Duration::from_millis(10)).await;
            }
        }
        Manner::NewConnection => get(&mut TcpStream::connect(target.http).await?, "/slow").await?,
        Manner::Upload => {
            let mut stream = TcpStream::connect(target.http).await?;
            stream.write_all(&post("/echo", 32 * 1024)).await?;
            stream.write_all(&[b'u'; 32 * 1024]).await?;
            response(&mut stream).await?;
        }
        Manner::Http2 => streams(target.http).await?,
        Manner::AbortHead => {
            let mut stream = TcpStream::connect(target.http).await?;
            stream.write_all(b"GET /fast HTTP/1.1\r\nhost: app\r\nx-half").await?;
            pause(0).await;
        }
        Manner::AbortUpload => {
            let mut stream = TcpStream::connect(target.http).await?;
            stream.write_all(&post("/echo", 1024 * 1024)).await?;
            stream.write_all(&[b'u'; 100 * 1024]).await?;
            pause(0).await;
        }
        Manner::AbortResponse => {
            let mut stream = TcpStream::connect(target.http).await?;
            stream.write_all(request("/stream").as_bytes()).await?;
            stream.read_exact(&mut [0; 64]).await?;
            pause(0).await;
        }
        Manner::Failing => {
            let mut stream = TcpStream::connect(target.http).await?;
            get(&mut stream, "/fail").await?;
            // It breaks off: that is what is asked for.
            let _ = get(&mut stream, "/break").await;
        }
        Manner::Noise => {
            let mut noise = [0u8; 512];
            rand::rng().fill(&mut noise);
            let mut stream = TcpStream::connect(target.http).await?;
            stream.write_all(&noise).await?;
            pause(0).await;
        }
        Manner::Tcp => {
            let mut stream = TcpStream::connect(target.tcp).await?;
            stream.write_all(&[b't'; 4096]).await?;
            stream.shutdown().await?;
            let mut back = Vec::new();
            stream.read_to_end(&mut back).await?;
            if back.len() != 4096 {
                bail!("{} of 4096 bytes came back", back.len());
            }
        }
        Manner::AbortTcp => {
            let mut stream = TcpStream::connect(target.tcp).await?;
            stream.write_all(&[b't'; 64 * 1024]).await?;
            // With a reset instead of a proper end.
            stream.set_zero_linger()?;
        }
    }
    Ok(())
}

async fn streams(to: SocketAddr) -> Result<()> {
    let stream = TcpStream::connect(to).await?;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let mut requests = JoinSet::new();
    for n in 0..10 {
        let mut sender = sender.clone();
        let path = if n % 2 == 0 { "/fast" } else { "/stream" };
        let request = Request::get(format!("http://app{path}")).body(Empty::<Bytes>::new())?;
        requests.spawn(async move {
            let body = sender.send_request(request).await?.into_body();
            // Every third is given up once its head is there.
            if n % 3 != 0 {
                body.collect().await?;
            }
            anyhow::Ok(())
        });
    }
    drop(sender);
    let results = requests.join_all().await;
    connection.abort();
    results.into_iter().collect()
}

/// For at least so many milliseconds, and up to 25 more.
async fn pause(least: u64) {
    let pause = Duration::from_millis(least + rand::rng().random_range(0..25));
    sleep(pause).await;
}

fn request(path: &str) -> String {
    // Some fall under one of the routes that come and go.
    let drawn = rand::rng().random_range(0..8);
    format!("GET {path} HTTP/1.1\r\nhost: app\r\nx-drawn: {drawn}\r\n\r\n")
}

fn post(path: &str, length: usize) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nhost: app\r\ncontent-length: {length}\r\n\r\n").into_bytes()
}

async fn get(stream: &mut TcpStream, path: &str) -> Result<()> {
    stream.write_all(request(path).as_bytes()).await?;
    response(stream).await
}

/// Reads one response to its end; bodies here have a length or are chunked.
async fn response(stream: &mut TcpStream) -> Result<()> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(end) = find(&bytes, b"\r\n\r\n") {
            break end + 4;
        }
        more(stream, &mut bytes).await?;
    };
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    if let Some((_, rest)) = text.split_once("content-length:") {
        let length: usize =
            rest.lines().next().unwrap_or_default().trim().parse().context("content-length")?;
        while bytes.len() < head + length {
            more(stream, &mut bytes).await?;
        }
    } else if text.contains("transfer-encoding: chunked") {
        while !bytes.ends_with(b"0\r\n\r\n") {
            more(stream, &mut bytes).await?;
        }
    }
    Ok(())
}

async fn more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Result<()> {
    match stream.read_buf(bytes).await? {
        0 => bail!("the connection ended in the middle of a response"),
        _ => Ok(()),
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
