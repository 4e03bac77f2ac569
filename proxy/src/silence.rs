//! Who speaks first? A client that says nothing may be waiting for the server (MySQL, SMTP, SSH), or may just be slow.
//! After a short silence the upstream is opened, as opaque bytes, and whoever speaks first decides. It copies nothing.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::detect::{self, First};
use crate::error::Error;
use crate::tcp::Opened;

/// What a server says within this time after connecting, it says unasked; later, it may be complaining.
const PROMPT: Duration = Duration::from_secs(1);
/// How long a client may stay silent where there is no server that it could be waiting for.
const MUTE: Duration = Duration::from_secs(1);

/// Who has spoken.
pub(crate) enum Spoke {
    /// The client. Nothing is open, or what was open is closed again.
    Client(First),
    /// The client, nothing that the proxy understands: goes on with the upstream that is open already.
    ClientOpaque(First, Opened),
    /// The server. `proven`: it always will.
    Server {
        /// With what it has said.
        upstream: Opened,
        /// See [`detect::proves_server_first`].
        proven: bool,
    },
    /// Nobody: the client is silent, and the upstream cannot be reached.
    Nobody(Error),
}

/// Waits for the client for `patience`, then for either. What the client has said is in `head`.
pub(crate) async fn end<D>(
    client: &mut TcpStream,
    head: &mut BytesMut,
    patience: Duration,
    dial: impl FnOnce() -> D,
) -> io::Result<Spoke>
where
    D: Future<Output = Result<Opened, Error>>,
{
    match timeout(patience, detect::first(client, head)).await {
        Ok(first) => return first.map(Spoke::Client),
        // In the middle of a word.
        Err(_) if !head.is_empty() => return detect::first(client, head).await.map(Spoke::Client),
        Err(_) => {}
    }
    let began = Instant::now();
    let mut upstream = tokio::select! {
        biased;
        first = detect::first(client, head) => return first.map(Spoke::Client),
        dialled = dial() => match dialled {
            Ok(upstream) => upstream,
            Err(error) => {
                // An HTTP client shall be told why.
                let late = timeout(MUTE, detect::first(client, head)).await;
                return late.unwrap_or(Ok(First::Nothing)).map(|first| match first {
                    First::Nothing => Spoke::Nobody(error),
                    first => Spoke::Client(first),
                });
            }
        },
    };
    let mut said = BytesMut::with_capacity(2048);
    let server_spoke = tokio::select! {
        biased;
        first = detect::first(client, head) => return first.map(|first| by_client(first, upstream)),
        read = upstream.io.read_buf(&mut said) => read,
    };
    // An error or the end of the upstream comes again, to whoever copies.
    let proven = matches!(server_spoke, Ok(1..)) && detect::proves_server_first(&said);
    if !proven
        && let Ok(1..) = server_spoke
        && let Ok(first) = timeout(MUTE, detect::first(client, head)).await
    {
        return first.map(|first| by_client(first, upstream.with_prefix(said.freeze())));
    }
    let prompt = began.elapsed() < PROMPT;
    Ok(Spoke::Server { upstream: upstream.with_prefix(said.freeze()), proven: proven && prompt })
}

fn by_client(first: First, upstream: Opened) -> Spoke {
    match first {
        First::Http1 | First::Http2 => Spoke::Client(first),
        First::Tls(_) | First::Opaque | First::Nothing => Spoke::ClientOpaque(first, upstream),
    }
}
