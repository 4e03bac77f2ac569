//! Clients for HTTP/2: many share a connection. A client sends requests, each on a stream of its own, or messages of gRPC back
//! and forth on one stream that stays open.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

/// A connection; it ends when this is dropped.
pub struct Connection {
    sender: SendRequest<Bytes>,
    _drives: JoinSet<()>,
}

/// Windows that never are what a measurement waits for.
const WINDOW: u32 = 8 * 1024 * 1024;

impl Connection {
    /// Shakes hands on what is connected.
    pub async fn new(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Self> {
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW);
        let (sender, connection) = builder.handshake(stream).await?;
        let mut drives = JoinSet::new();
        drives.spawn(async move {
            // Its end is seen by whoever waits for a response.
            let _ = connection.await;
        });
        Ok(Self { sender, _drives: drives })
    }

    /// A request whose response is read to its end; with a message it is a unary call of gRPC.
    pub async fn exchange(&self, message: Option<&Bytes>) -> Result<()> {
        let mut sender = self.sender.clone().ready().await?;
        let (response, mut body) = sender.send_request(request(message.is_some()), message.is_none())?;
        if let Some(message) = message {
            body.send_data(message.clone(), true)?;
        }
        let mut body = answered(response.await?)?;
        while let Some(data) = body.data().await {
            let length = data?.len();
            body.flow_control().release_capacity(length)?;
        }
        match message {
            Some(_) => {
                succeeded(body.trailers().await?.as_ref().and_then(|trailers| trailers.get("grpc-status")))
            }
            None => Ok(()),
        }
    }

    /// A stream of messages.
    pub async fn stream(&self) -> Result<Messages> {
        let mut sender = self.sender.clone().ready().await?;
        let (response, send) = sender.send_request(request(true), false)?;
        Ok(Messages { send, response: Some(response), receive: None })
    }
}

/// One stream of gRPC whose other side sends back each message.
pub struct Messages {
    send: SendStream<Bytes>,
    response: Option<ResponseFuture>,
    receive: Option<RecvStream>,
}

impl Messages {
    /// One message there and back.
    pub async fn exchange(&mut self, message: &Bytes) -> Result<()> {
        self.send.send_data(message.clone(), false)?;
        if let Some(response) = self.response.take() {
            self.receive = Some(answered(response.await?)?);
        }
        let receive = self.receive.as_mut().context("the stream failed before")?;
        let mut left = message.len();
        while left > 0 {
            let data = receive.data().await.context("the stream ended")??;
            receive.flow_control().release_capacity(data.len())?;
            left = left.checked_sub(data.len()).context("more than the message came back")?;
        }
        Ok(())
    }
}

/// A message of gRPC with so many bytes: not compressed, length, content.
#[must_use]
pub fn message(length: u32) -> Bytes {
    let mut bytes = vec![0];
    bytes.extend(length.to_be_bytes());
    bytes.resize(bytes.len() + length as usize, b'm');
    bytes.into()
}

fn request(grpc: bool) -> Request<()> {
    let mut request = Request::new(());
    let headers = request.headers_mut();
    headers.insert(header::USER_AGENT, HeaderValue::from_static("weft-bench"));
    if grpc {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = http::Uri::from_static("http://app.bench/bench.Echo/Send");
    } else {
        headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
        *request.uri_mut() = http::Uri::from_static("http://app.bench/");
    }
    request
}

fn answered(response: Response<RecvStream>) -> Result<RecvStream> {
    ensure!(response.status() == StatusCode::OK, "{response:?}");
    // What has failed before it began has its status in the head.
    if let Some(status) = response.headers().get("grpc-status") {
        succeeded(Some(status))?;
    }
    Ok(response.into_body())
}

fn succeeded(status: Option<&HeaderValue>) -> Result<()> {
    ensure!(status.is_some_and(|status| status == "0"), "grpc-status is {status:?}");
    Ok(())
}
