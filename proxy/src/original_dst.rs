//! Where a redirected connection was going: first step of both paths. The kernel's connection tracking knows
//! (`SO_ORIGINAL_DST`, linux/netfilter_ipv4.h; `IP6T_SO_ORIGINAL_DST`). It never guesses: without an answer, or when the
//! answer is the listener itself, the connection was not redirected but called directly, and following it would loop. What
//! comes in for a port of the proxy is not the application's business: passed on, it would seem to come from the own pod.
//! Without redirection (static mode) the listener says it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use socket2::SockRef;
use tokio::net::TcpStream;
use weft_api::names;

use crate::record::Direction;

/// States a connection's original destination.
pub type State = dyn Fn(&TcpStream, Direction) -> io::Result<SocketAddr> + Send + Sync;

/// How the original destination is found.
#[derive(Clone, Default)]
pub enum OriginalDst {
    /// From the kernel.
    #[default]
    Kernel,
    /// Stated, where nothing is redirected: tests.
    Stated(Arc<State>),
    /// What the listener is for: its own address outbound, the application's inbound. Nothing: its name has not been
    /// resolved yet.
    Listener(Arc<ArcSwapOption<SocketAddr>>),
}

impl std::fmt::Debug for OriginalDst {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kernel => "Kernel",
            Self::Stated(_) => "Stated",
            Self::Listener(_) => "Listener",
        })
    }
}

impl OriginalDst {
    /// Of an accepted connection, never IPv4-mapped.
    ///
    /// # Errors
    /// The connection was not redirected.
    pub fn of(&self, stream: &TcpStream, direction: Direction) -> io::Result<SocketAddr> {
        let local = canonical(stream.local_addr()?);
        let original = match self {
            Self::Kernel => {
                let original = kernel(stream, local)?;
                let own = names::PROXY_PORTS.contains(&original.port());
                if own && direction == Direction::Inbound {
                    let why = "a port of the proxy itself, which nobody outside of the pod may call";
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
                }
                original
            }
            Self::Stated(state) => state(stream, direction)?,
            Self::Listener(destination) => {
                let unknown =
                    || io::Error::new(io::ErrorKind::NotFound, "the application's name is not resolved");
                return destination.load().as_deref().copied().ok_or_else(unknown);
            }
        };
        let original = canonical(original);
        if original == local {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "called directly, not redirected"));
        }
        Ok(original)
    }
}

fn kernel(stream: &TcpStream, local: SocketAddr) -> io::Result<SocketAddr> {
    // A dual-stack socket answers for IPv4 by the IPv4 option.
    let socket = SockRef::from(stream);
    let original = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() }?;
    original.as_socket().ok_or_else(|| io::Error::other("the original destination is no internet address"))
}

/// `::ffff:10.0.0.1` is 10.0.0.1.
#[must_use]
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn a_direct_call_is_refused() {
        let (_client, server) = pair().await;
        assert!(OriginalDst::Kernel.of(&server, Direction::Outbound).is_err());
    }

    #[tokio::test]
    async fn a_stated_destination_is_canonical_and_never_the_listener() {
        let (_client, server) = pair().await;
        let stated = OriginalDst::Stated(Arc::new(|_, _| Ok("[::ffff:10.1.2.3]:80".parse().unwrap())));
        assert_eq!(stated.of(&server, Direction::Inbound).unwrap(), "10.1.2.3:80".parse().unwrap());
        let known = Arc::new(ArcSwapOption::empty());
        let listener = OriginalDst::Listener(Arc::clone(&known));
        assert_eq!(listener.of(&server, Direction::Inbound).unwrap_err().kind(), io::ErrorKind::NotFound);
        known.store(Some(Arc::new("10.1.2.4:80".parse().unwrap())));
        assert_eq!(listener.of(&server, Direction::Inbound).unwrap(), "10.1.2.4:80".parse().unwrap());
        let looping = OriginalDst::Stated(Arc::new(|stream, _| stream.local_addr()));
        assert!(looping.of(&server, Direction::Inbound).is_err());
    }
}
