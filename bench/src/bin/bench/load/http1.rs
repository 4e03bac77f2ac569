//! A client for HTTP/1.1 that understands just enough of a response to find its end: it must be cheaper than what it
//! measures. It never sends a second request before the first one's response.

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use memchr::memmem;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// As much as is read at once.
const BUFFER: usize = 64 * 1024;

/// One connection.
pub struct Http1<S> {
    stream: S,
    request: Bytes,
    buffer: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Http1<S> {
    /// Sends always the same request.
    pub fn new(stream: S, request: Bytes) -> Self {
        Self { stream, request, buffer: Vec::with_capacity(BUFFER) }
    }

    /// One request and its response; anything but 200 is an error.
    pub async fn exchange(&mut self) -> Result<()> {
        self.stream.write_all(&self.request).await?;
        self.buffer.clear();
        let head = loop {
            ensure!(self.stream.read_buf(&mut self.buffer).await? > 0, "closed in place of a response");
            if let Some(end) = memmem::find(&self.buffer, b"\r\n\r\n") {
                break end + 4;
            }
        };
        let mut left = length(&self.buffer[..head])?
            .checked_sub(self.buffer.len() - head)
            .context("more than the response came")?;
        while left > 0 {
            self.buffer.clear();
            match self.stream.read_buf(&mut self.buffer).await? {
                0 => bail!("closed in the middle of a response"),
                read => left = left.checked_sub(read).context("more than the response came")?,
            }
        }
        Ok(())
    }
}

/// Of the body that follows a head.
fn length(head: &[u8]) -> Result<usize> {
    ensure!(head.get(9..12) == Some(b"200"), "{}", String::from_utf8_lossy(head));
    let mut lines = head.split(|byte| *byte == b'\n');
    let value = lines.find_map(|line| {
        let (name, value) = line.split_at_checked(b"content-length:".len())?;
        name.eq_ignore_ascii_case(b"content-length:").then_some(value)
    });
    let value = value.context("a response without content-length")?;
    Ok(std::str::from_utf8(value)?.trim().parse()?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is the report")]
mod tests {
    use tokio::io::duplex;

    use super::*;

    #[test]
    fn a_length_is_found_in_any_case_and_nothing_but_200_counts() {
        assert_eq!(length(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n").unwrap(), 12);
        assert_eq!(length(b"HTTP/1.1 200 OK\r\na: b\r\ncontent-length:7\r\n\r\n").unwrap(), 7);
        assert!(length(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n").is_err());
        assert!(length(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
    }

    #[tokio::test]
    async fn a_response_in_pieces_is_one() {
        let (near, mut far) = duplex(16);
        let server = tokio::spawn(async move {
            let mut request = [0; 4];
            for _ in 0..2 {
                far.read_exact(&mut request).await.unwrap();
                for piece in ["HTTP/1.1 200 OK\r\nconte", "nt-length: 5\r\n\r", "\nab", "cde"] {
                    far.write_all(piece.as_bytes()).await.unwrap();
                    tokio::task::yield_now().await;
                }
            }
        });
        let mut client = Http1::new(near, Bytes::from_static(b"ping"));
        client.exchange().await.unwrap();
        client.exchange().await.unwrap();
        assert!(client.exchange().await.is_err(), "the server is gone");
        server.await.unwrap();
    }
}
